//! Damage to the bytes of a store, without its knowledge.

use crate::Result;
use crate::control::Switches;

/// Bytes in the current layout that are no valid record.
pub(crate) const DAMAGE: &[u8] = b"\x01these bytes are no record";

/// The place of the records.
#[derive(Clone)]
pub(crate) enum Damage {
    /// The store's own memory, which nobody else can write to: its reads return damage instead.
    Memory(Switches),
    Redb(crate::redb::ReopenedStore),
    Redis {
        url: String,
        prefix: String,
    },
    Postgres {
        url: String,
        schema: String,
    },
}

impl Damage {
    /// Overwrites every completed record with bytes that do not decode.
    pub(crate) async fn corrupt(&self) -> Result<()> {
        match self {
            Self::Memory(switches) => {
                switches.damage_records();
                Ok(())
            }
            Self::Redb(store) => store.damage_records().await,
            Self::Redis { url, prefix } => corrupt_redis(url, prefix).await,
            Self::Postgres { url, schema } => corrupt_postgres(url, schema).await,
        }
    }
}
async fn corrupt_redis(url: &str, prefix: &str) -> Result<()> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let keys: Vec<String> = redis::cmd("KEYS").arg(format!("{prefix}*")).query_async(&mut connection).await?;
    for key in keys {
        if redis::cmd("HEXISTS").arg(&key).arg("record").query_async(&mut connection).await? {
            redis::cmd("HSET").arg(&key).arg("record").arg(DAMAGE).query_async::<()>(&mut connection).await?;
        }
    }
    Ok(())
}
async fn corrupt_postgres(url: &str, schema: &str) -> Result<()> {
    use sqlx::Connection as _;
    let options = url.parse::<sqlx::postgres::PgConnectOptions>()?.options([("search_path", schema)]);
    let mut connection = sqlx::PgConnection::connect_with(&options).await?;
    let damage = "UPDATE steadfast_records SET record = '\\x01 6e6f207265636f7264' WHERE state = 'done'";
    sqlx::query(damage).execute(&mut connection).await?;
    Ok(())
}
