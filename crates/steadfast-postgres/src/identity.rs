//! How the records of a table are identified.

use std::sync::atomic::Ordering;

use sqlx::Row as _;
use steadfast_server::{StoreError, verify_identity};

use super::PostgresStore;
use super::error::unavailable;

impl PostgresStore {
    /// Verifies that the records of the table are identified as this build identifies them
    /// ([`IDENTITY_VERSION`](steadfast_server::IDENTITY_VERSION)).
    ///
    /// [`create_table`](Self::create_table) does this. Call it at start if you run
    /// [`SCHEMA`](Self::SCHEMA) yourself; the first claim does it otherwise.
    ///
    /// # Errors
    ///
    /// [`StoreError::IdentityMismatch`]; or the database cannot be reached, or lacks the tables.
    pub async fn verify_identity(&self) -> Result<(), StoreError> {
        let row = self.bounded(self.optional_row(sqlx::query(include_str!("sql/identity.sql")))).await?;
        let found = row.map(|row| row.try_get::<i32, _>(0)).transpose().map_err(unavailable)?;
        verify_identity(found.and_then(|version| u32::try_from(version).ok()))?;
        self.verified.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Before the first claim, unless it was verified before.
    pub(super) async fn verify_once(&self) -> Result<(), StoreError> {
        if self.verified.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Boxed: every claim has room for it, and one needs it.
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
