//! The database that readers and the writer share. It can be closed and opened again while they use
//! it.
//!
//! redb panics on some damaged files. Every call to redb goes through this module, so that a panic
//! becomes an error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};

use redb::Database;
use steadfast_server::StoreError;

use super::backend::{Gate, LockedFile};
use super::error::OpenError;
use super::open;
use super::tables::Failed;

/// A failure that makes the database unusable for all callers until its file is opened again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Redb(#[source] redb::Error),
    #[error("{0}")]
    Record(#[source] StoreError),
    #[error("redb panicked; see the panic message on standard error")]
    Panic,
    #[error("the file is closed after a failure")]
    Closed,
    #[error("the store failed and could not be reopened: {0}")]
    Reopen(#[source] OpenError),
    #[error("the database has failed: {0}. Your program opened it, so your program must open it again")]
    NotOurs(#[source] Arc<Failure>),
}

impl Failure {
    /// Returns whether the file is damaged, rather than out of reach.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Panic | Self::Redb(redb::Error::Corrupted(_)))
    }
}

/// Calls redb and turns its panic into an error.
pub(super) fn catch_panic<T>(call: impl FnOnce() -> T) -> Result<T, Failure> {
    // The state that a panic leaves inside redb is not trusted. The writer closes the database
    // without letting it write, and the next opening checks the file. Until then readers may still
    // use records: each has a checksum of its own.
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| Failure::Panic)
}

/// An open database. Dropping it does not panic.
pub(super) struct OpenDatabase {
    /// `Some` until the drop.
    database: Option<Database>,
    /// `None` for a database that the program opened.
    gate: Option<Arc<Gate>>,
}

impl OpenDatabase {
    pub(super) fn new(database: Database, gate: Option<Arc<Gate>>) -> Self {
        Self { database: Some(database), gate }
    }

    pub(super) fn call<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failed>) -> Result<T, Failed> {
        let Some(database) = &self.database else { return Err(Failure::Closed.into()) };
        catch_panic(|| work(database)).unwrap_or_else(|panic| Err(panic.into()))
    }

    pub(super) fn call_mut<T>(&mut self, work: impl FnOnce(&mut Database) -> T) -> Result<T, Failure> {
        let database = self.database.as_mut().ok_or(Failure::Closed)?;
        catch_panic(|| work(database))
    }

    /// Closes the database, and stops redb from writing while it closes.
    fn give_up(self) {
        if let Some(gate) = &self.gate {
            gate.shut();
        }
    }
}

impl Drop for OpenDatabase {
    fn drop(&mut self) {
        let database = self.database.take();
        // The panic hook has reported a panic, and the next opening checks the file.
        let _panic = catch_panic(move || drop(database));
    }
}

pub(super) struct SharedDatabase {
    /// `None` while the file is being opened again.
    current: RwLock<Option<OpenDatabase>>,
    /// `None` for a database that the program opened.
    file: Option<Arc<LockedFile>>,
}

impl SharedDatabase {
    pub(super) fn new(opened: OpenDatabase, file: Option<Arc<LockedFile>>) -> Arc<Self> {
        Arc::new(Self { current: RwLock::new(Some(opened)), file })
    }

    /// Calls the database. Use it on a thread that may block.
    pub(super) fn call<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failed>) -> Result<T, Failed> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().ok_or(Failure::Closed)?.call(work)
    }

    pub(super) fn can_reopen(&self) -> bool {
        self.file.is_some()
    }

    /// Closes the database and opens it again, if the file passes its check. Calls `prepare` before
    /// any other caller sees it.
    ///
    /// # Errors
    ///
    /// The file cannot be opened. The database stays closed.
    pub(super) fn reopen(&self, prepare: impl FnOnce(&Database) -> Result<(), Failed>) -> Result<(), Failure> {
        let file = self.file.as_ref().ok_or(Failure::Closed)?;
        let failed = self.current.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(failed) = failed {
            failed.give_up();
        }
        let opened = open::checked(file).map_err(Failure::Reopen)?;
        if let Err(error) = opened.call(prepare) {
            opened.give_up();
            return Err(error.into_failure());
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(opened);
        Ok(())
    }
}
