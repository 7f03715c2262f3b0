//! The database that reader and writer share, and that can be closed and opened anew beneath them.
//!
//! redb panics on some damaged files. Every call of it goes through here, so that a panic becomes
//! an error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};

use redb::Database;
use steadfast_server::StoreError;

use super::backend::{Gate, LockedFile};
use super::error::OpenError;
use super::open;
use super::tables::Failed;

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
    #[error("the file has failed and could not be opened again: {0}")]
    Reopen(#[source] OpenError),
    #[error("the database has failed: {0}. It was opened by the program, so the program must open it again")]
    NotOurs(#[source] Arc<Failure>),
}

impl Failure {
    /// Whether what was met is damage, and not a file that cannot be reached.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Panic | Self::Redb(redb::Error::Corrupted(_)))
    }
}

/// Calls redb, and makes its panic an error.
pub(super) fn catch_panic<T>(call: impl FnOnce() -> T) -> Result<T, Failure> {
    // What a panic leaves behind inside redb is not trusted. The writer closes the database without
    // letting it write, and the next open checks the file. Until then a record is still believed:
    // it has a checksum of its own.
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| Failure::Panic)
}

/// A database that is open. Closing it does not panic.
pub(super) struct OpenDatabase {
    /// Here until the drop.
    database: Option<Database>,
    /// `None`: the file is not ours.
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

    /// Closes it without writing what redb writes when it closes.
    fn give_up(self) {
        if let Some(gate) = &self.gate {
            gate.shut();
        }
    }
}

impl Drop for OpenDatabase {
    fn drop(&mut self) {
        let database = self.database.take();
        // A panic has been reported by the panic hook, and the next open checks the file.
        let _panic = catch_panic(move || drop(database));
    }
}

pub(super) struct SharedDatabase {
    /// `None` while it is being opened again.
    current: RwLock<Option<OpenDatabase>>,
    /// `None`: the file is not ours.
    file: Option<Arc<LockedFile>>,
}

impl SharedDatabase {
    pub(super) fn new(opened: OpenDatabase, file: Option<Arc<LockedFile>>) -> Arc<Self> {
        Arc::new(Self { current: RwLock::new(Some(opened)), file })
    }

    /// Calls the database, on a thread that may block.
    pub(super) fn call<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failed>) -> Result<T, Failed> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().ok_or(Failure::Closed)?.call(work)
    }

    pub(super) fn can_reopen(&self) -> bool {
        self.file.is_some()
    }

    /// Closes the database and opens it anew, if the file passes its check. `prepare` is called
    /// before anybody else sees it.
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
