//! The database that reader and writer share.
//!
//! redb panics on some damaged files. Every call of it goes through here, so that a panic becomes
//! an error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use redb::Database;

use super::tables::Failed;
use crate::server::store::StoreError;

/// What makes a database useless for everybody, until its file is opened again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Redb(#[source] redb::Error),
    #[error("{0}")]
    Record(#[source] StoreError),
    #[error("redb panicked; the panic's message is on standard error")]
    Panic,
    #[error("the file is closed after a failure")]
    Closed,
}

impl Failure {
    /// Whether what was met is damage, and not a file that cannot be reached.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Panic | Self::Redb(redb::Error::Corrupted(_)))
    }
}

/// Calls redb.
pub(super) fn catch_panic<T>(call: impl FnOnce() -> T) -> Result<T, Failure> {
    // What a panic leaves behind inside redb is never used for an answer: the database is closed,
    // without writing.
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| Failure::Panic)
}

/// A database that is open. Closing it does not panic.
pub(super) struct OpenDatabase {
    /// Here until the drop.
    database: Option<Database>,
}

impl OpenDatabase {
    pub(super) fn new(database: Database) -> Self {
        Self { database: Some(database) }
    }

    pub(super) fn call<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failed>) -> Result<T, Failed> {
        let Some(database) = &self.database else { return Err(Failure::Closed.into()) };
        catch_panic(|| work(database)).unwrap_or_else(|panic| Err(panic.into()))
    }

    pub(super) fn call_mut<T>(&mut self, work: impl FnOnce(&mut Database) -> T) -> Result<T, Failure> {
        let database = self.database.as_mut().ok_or(Failure::Closed)?;
        catch_panic(|| work(database))
    }
}

impl Drop for OpenDatabase {
    fn drop(&mut self) {
        let database = self.database.take();
        // A panic has been reported by the panic hook, and the next open checks the file.
        let _panic = catch_panic(move || drop(database));
    }
}

pub(super) struct SharedDatabase(OpenDatabase);

impl SharedDatabase {
    pub(super) fn new(opened: OpenDatabase) -> Arc<Self> {
        Arc::new(Self(opened))
    }

    /// Calls the database, on a thread that may block.
    pub(super) fn call<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failed>) -> Result<T, Failed> {
        self.0.call(work)
    }
}
