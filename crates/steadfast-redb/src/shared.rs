//! The database that readers and the writer share. It can be closed and opened again while they use
//! it.

use std::sync::{Arc, PoisonError, RwLock};

use redb::Database;

use super::backend::LockedFile;
use super::failure::{Failed, Failure};
use super::open;
use super::open_database::OpenDatabase;

#[allow(missing_debug_implementations, reason = "not public: see `engine`")]
/// A database that can be closed and opened again.
pub struct SharedDatabase {
    /// `None` while the file is being opened again.
    current: RwLock<Option<OpenDatabase>>,
    /// `None` for a database that the program opened.
    file: Option<Arc<LockedFile>>,
}

impl SharedDatabase {
    /// Shares an open database.
    #[must_use]
    pub fn new(opened: OpenDatabase, file: Option<Arc<LockedFile>>) -> Arc<Self> {
        Arc::new(Self { current: RwLock::new(Some(opened)), file })
    }

    /// Calls the database. Use it on a thread that may block.
    ///
    /// # Errors
    ///
    /// The work or the database has failed.
    pub fn call<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failed>) -> Result<T, Failed> {
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
