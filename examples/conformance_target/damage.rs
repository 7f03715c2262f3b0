//! What a case does to the bytes of a store, behind the back of whoever reads them.

use crate::Result;

/// Where the records are, for a store whose records can be got at from outside.
#[derive(Clone)]
pub(crate) enum Damage {
    NotOffered,
    #[cfg(feature = "redis")]
    Redis {
        url: String,
        prefix: String,
    },
    #[cfg(feature = "postgres")]
    Postgres {
        url: String,
        schema: String,
    },
}

impl Damage {
    /// Overwrites every completed record with bytes that do not decode; `false` if that is not offered.
    pub(crate) async fn corrupt(&self) -> Result<bool> {
        match self {
            Self::NotOffered => Ok(false),
            #[cfg(feature = "redis")]
            Self::Redis { url, prefix } => corrupt_redis(url, prefix).await.map(|()| true),
            #[cfg(feature = "postgres")]
            Self::Postgres { url, schema } => corrupt_postgres(url, schema).await.map(|()| true),
        }
    }
}

#[cfg(feature = "redis")]
async fn corrupt_redis(url: &str, prefix: &str) -> Result<()> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let keys: Vec<String> = redis::cmd("KEYS").arg(format!("{prefix}*")).query_async(&mut connection).await?;
    for key in keys {
        if redis::cmd("HEXISTS").arg(&key).arg("record").query_async(&mut connection).await? {
            let damage = b"\x01these bytes are no record".as_slice();
            redis::cmd("HSET").arg(&key).arg("record").arg(damage).query_async::<()>(&mut connection).await?;
        }
    }
    Ok(())
}

#[cfg(feature = "postgres")]
async fn corrupt_postgres(url: &str, schema: &str) -> Result<()> {
    use sqlx::Connection as _;
    let options = url.parse::<sqlx::postgres::PgConnectOptions>()?.options([("search_path", schema)]);
    let mut connection = sqlx::PgConnection::connect_with(&options).await?;
    let damage = "UPDATE steadfast_records SET record = '\\x01 6e6f207265636f7264' WHERE state = 'done'";
    sqlx::query(damage).execute(&mut connection).await?;
    Ok(())
}
