//! The identity version of the records in a table.

use std::sync::atomic::Ordering;

use sqlx::Row as _;
use steadfast_server::{StoreError, verify_identity};

use super::PostgresStore;
use super::error::unavailable;

impl PostgresStore {
    /// Verifies that this build identifies records as the build did that wrote the table
    /// ([`IDENTITY_VERSION`](steadfast_server::IDENTITY_VERSION)).
    ///
    /// [`create_table`](Self::create_table) does this too. Call it at start if you run
    /// [`SCHEMA`](Self::SCHEMA) yourself. Otherwise the first claim does it.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::IdentityMismatch`] if the versions differ, or
    /// [`StoreError::Unavailable`] if the database cannot be reached or lacks the tables.
    ///
    /// ```no_run
    /// use sqlx::PgPool;
    /// use steadfast_postgres::{PostgresStore, sqlx};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// // A migration has created the tables.
    /// let store = PostgresStore::new(PgPool::connect("postgres://localhost/shop").await?);
    /// store.verify_identity().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn verify_identity(&self) -> Result<(), StoreError> {
        let row = self.bounded(self.database.optional_row(sqlx::query(include_str!("sql/identity.sql")))).await?;
        let found = row.map(|row| row.try_get::<i32, _>(0)).transpose().map_err(unavailable)?;
        verify_identity(found.and_then(|version| u32::try_from(version).ok()))?;
        self.verified.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Verifies the identity version, unless it has been verified before.
    pub(super) async fn verify_once(&self) -> Result<(), StoreError> {
        if self.verified.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Boxed, since every claim would reserve room for this future and only the first needs it.
        Box::pin(self.verify_identity()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steadfast_server::IDENTITY_VERSION;

    #[test]
    fn schema_writes_this_version() {
        assert!(PostgresStore::SCHEMA.contains(&format!("SELECT {IDENTITY_VERSION} WHERE NOT EXISTS")));
    }
}
