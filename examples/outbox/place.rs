//! Where the operations are kept: a file in a temporary folder, or a schema of a database.

use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use steadfast_postgres::PostgresOutbox;
use tempfile::TempDir;

use crate::{Arguments, Error};

const WANTED: &str = "this wants a PostgreSQL: ./scripts/with_servers.sh cargo run --example outbox -- --postgres, \
                      or --database postgres://…";

pub(crate) enum Place {
    File { _folder: TempDir, path: String },
    Schema { pool: PgPool, name: String },
}

impl Place {
    pub(crate) async fn make(arguments: &Arguments) -> Result<Self, Error> {
        if !arguments.postgres {
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("operations.redb").to_string_lossy().into_owned();
            return Ok(Self::File { _folder: folder, path });
        }
        let database = arguments.database.as_deref().ok_or(WANTED)?;
        let name = format!("outbox_{:x}", fastrand::u64(..));
        let pool = PgPool::connect(database).await?;
        sqlx::query(AssertSqlSafe(format!("CREATE SCHEMA {name}"))).execute(&pool).await?;
        postgres(database, &name)?.create_table().await?;
        Ok(Self::Schema { pool, name })
    }

    /// Returns the path of the file, or the name of the schema.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::File { path, .. } => path,
            Self::Schema { name, .. } => name,
        }
    }

    pub(crate) async fn remove(self) -> Result<(), Error> {
        if let Self::Schema { pool, name } = self {
            sqlx::query(AssertSqlSafe(format!("DROP SCHEMA {name} CASCADE"))).execute(&pool).await?;
        }
        Ok(())
    }
}

/// Returns the store in this schema.
pub(crate) fn postgres(database: &str, schema: &str) -> Result<PostgresOutbox, Error> {
    let options: PgConnectOptions = database.parse()?;
    let pool = PgPoolOptions::new().max_connections(5).connect_lazy_with(options.options([("search_path", schema)]));
    Ok(PostgresOutbox::new(pool))
}
