//! Opening a file: it is checked as a whole before anything in it is believed, and before anything
//! is written to it.
//!
//! redb's own recovery after a crash is part of the check, and loses nothing: commits are
//! two-phase, so the last one that was acknowledged is whole, whatever the crash has left beside
//! it. So whatever fails the check is damage.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use redb::Database;
use redb::backends::FileBackend;

use super::backend::{Backend, Gate, LockedFile};
use super::error::OpenError;
use super::shared::{OpenDatabase, catch_panic};

use super::{RedbStore, file, salvage, tables};

/// How a [`RedbStore`] is opened. Made by [`RedbStore::options`].
///
/// ```no_run
/// use steadfast_redb::{OpenError, RedbStore};
///
/// # fn main() -> Result<(), OpenError> {
/// // A person has read the error of the first attempt, and has decided.
/// let repair = std::env::args().any(|argument| argument == "--accept-repair");
/// let store = RedbStore::options().accept_repair(repair).open("keys.redb")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct RedbOptions {
    accept_repair: bool,
}

impl RedbOptions {
    /// Opens a damaged file too, with the records that can still be read. Default: `false`, which
    /// returns [`OpenError::Damaged`].
    ///
    /// **Records may be lost, and their operations can then run a second time.** A person should
    /// decide this, for one file: a program that always sets it has no protection. A file without
    /// damage is opened as usual.
    ///
    /// The readable records are copied into a new file, which takes the name of the damaged one.
    /// The damaged file is kept beside it under its name with `.damaged-1` at the end, or the next
    /// free number. Tables that are not this store's are not copied. A claim that was running is
    /// unknown afterwards, as it is after every end of its process. The number of records is logged
    /// at WARN.
    ///
    /// For [`open_database`](Self::open_database) it is redb that repairs, with the commit before the last.
    #[must_use]
    pub fn accept_repair(mut self, accept: bool) -> Self {
        self.accept_repair = accept;
        self
    }

    /// Opens the file, or creates it. As [`RedbStore::open`], with these options.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<RedbStore, OpenError> {
        let path = path.as_ref();
        if !path.try_exists().map_err(|error| OpenError::system(Some(path), error))? {
            file::create(path).map_err(|error| OpenError::system(Some(path), error))?;
        }
        // There is nothing in an empty file that a repair could keep.
        let mut file = existing(path).map_err(OpenError::without_repair)?;
        let mut opened = checked(&file);
        if self.accept_repair
            && let Err(OpenError::Damaged { source, .. }) = &opened
        {
            tracing::warn!(target: "steadfast", path = %path.display(), error = %source, "a damaged file is repaired");
            salvage::replace(&file)?;
            file = existing(path)?;
            opened = checked(&file);
        }
        RedbStore::start(opened?, Some(file), self.accept_repair)
    }

    /// Uses a database that the program has opened. As [`RedbStore::from_database`], with these options.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub fn open_database(&self, database: Database) -> Result<RedbStore, OpenError> {
        let mut opened = OpenDatabase::new(database, None);
        match opened.call_mut(Database::check_integrity) {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
                // redb has repaired it already, and would find nothing the next time.
                opened.call(tables::mark_repaired).map_err(|error| OpenError::system(None, error.into_failure()))?;
            }
            Ok(Err(error)) => return Err(OpenError::of(None, error).without_repair()),
            Err(panic) => return Err(OpenError::beyond_repair(None, panic)),
        }
        RedbStore::start(opened, None, self.accept_repair)
    }
}

/// A file that is there. One without content is not what a store has left, and must not become a
/// new and empty one.
fn existing(path: &Path) -> Result<Arc<LockedFile>, OpenError> {
    let system = |error| OpenError::system(Some(path), error);
    let file = File::options().read(true).write(true).open(path).map_err(system)?;
    if file.metadata().map_err(system)?.len() == 0 {
        return Err(OpenError::damaged(Some(path), "it is empty"));
    }
    let backend = FileBackend::new(file).map_err(|error| OpenError::of(Some(path), error))?;
    Ok(Arc::new(LockedFile::new(path, backend)))
}

/// Opens the database in a file, if all of it is as redb has written it. Otherwise the file is left
/// as it is.
pub(super) fn checked(file: &Arc<LockedFile>) -> Result<OpenDatabase, OpenError> {
    let path = Some(file.path());
    let gate = Gate::hold_back();
    let backend = Backend::new(file.clone(), gate.clone());
    let open = || Database::builder().set_check_integrity_on_open(true).create_with_backend(backend);
    let database = match catch_panic(open) {
        Ok(Ok(database)) => Ok(OpenDatabase::new(database, Some(gate.clone()))),
        Ok(Err(error)) => Err(OpenError::of(path, error)),
        Err(panic) => Err(OpenError::damaged(path, panic)),
    };
    // Whatever redb has found, it had locked the file before it looked.
    if !matches!(database, Err(OpenError::InUse { .. })) {
        file.keep_lock();
    }
    let opened = database?;
    gate.open(file).map_err(|error| OpenError::system(path, error))?;
    Ok(opened)
}
