//! Opens a file after checking it as a whole. Nothing in it is trusted, and nothing is written,
//! before that.
//!
//! The check includes redb's own recovery after a crash, which loses nothing. Commits are
//! two-phase, so the last acknowledged one is complete, whatever else the crash has left in the
//! file. A file that fails the check is therefore damaged.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use redb::Database;
use redb::backends::FileBackend;

use super::backend::{Backend, Gate, LockedFile};
use super::error::OpenError;
use super::failure::catch_panic;
use super::open_database::OpenDatabase;

use super::{RedbStore, file, salvage, tables};

/// Options for opening a [`RedbStore`]. Returned by [`RedbStore::options`].
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
    /// decide this for one file. A program that always sets it has no protection. A file without
    /// damage is opened as usual.
    ///
    /// A repair copies the readable records into a new file, which takes the name of the damaged
    /// one. The damaged file stays beside it, with `.damaged-1` or the next free number added to
    /// its name. Tables of other programs are not copied. Claims that were running are unknown
    /// afterwards, as after every end of the process. The store logs the number of records at WARN.
    ///
    /// With [`open_database`](Self::open_database), redb does the repair: it goes back to the
    /// commit before the last.
    ///
    /// ```
    /// use steadfast_redb::{OpenError, RedbStore};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("keys.redb");
    /// // A file without damage is opened as usual.
    /// drop(RedbStore::open(&path)?);
    /// drop(RedbStore::options().accept_repair(true).open(&path)?);
    ///
    /// // A file that redb has not written has nothing to keep.
    /// std::fs::write(&path, "not a database")?;
    /// let repaired = RedbStore::options().accept_repair(true).open(&path);
    /// assert!(matches!(repaired, Err(OpenError::BeyondRepair { .. })));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn accept_repair(mut self, accept: bool) -> Self {
        self.accept_repair = accept;
        self
    }

    /// Opens the file, or creates it. Does the same as [`RedbStore::open`], with these options.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] if the file is damaged, in use, or cannot be read or written.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<RedbStore, OpenError> {
        let path = path.as_ref();
        if !path.try_exists().map_err(|error| OpenError::system(Some(path), error))? {
            file::create(path).map_err(|error| OpenError::system(Some(path), error))?;
        }
        // An empty file has nothing that a repair could keep.
        let mut file = existing(path).map_err(OpenError::without_repair)?;
        let mut opened = checked(&file);
        if self.accept_repair
            && let Err(OpenError::Damaged { source, .. }) = &opened
        {
            tracing::warn!(target: "steadfast", path = %path.display(), error = %source, "repairing a damaged file");
            salvage::replace(&file)?;
            file = existing(path)?;
            opened = checked(&file);
        }
        RedbStore::start(opened?, Some(file), self.accept_repair)
    }

    /// Uses a database that you have opened. Does the same as [`RedbStore::from_database`], with
    /// these options.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] if the database is damaged or cannot be written.
    pub fn open_database(&self, database: Database) -> Result<RedbStore, OpenError> {
        let mut opened = OpenDatabase::new(database, None);
        match opened.call_mut(Database::check_integrity) {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
                // redb has repaired the database already, and would find no damage the next time.
                opened.call(tables::mark_repaired).map_err(|error| OpenError::system(None, error.into_failure()))?;
            }
            Ok(Err(error)) => return Err(OpenError::of(None, error).without_repair()),
            Err(panic) => return Err(OpenError::beyond_repair(None, panic)),
        }
        RedbStore::start(opened, None, self.accept_repair)
    }
}

/// Opens a file after checking all of it, and creates it if `create` says so. The lock of the file is
/// held until the second value is dropped.
///
/// # Errors
///
/// The file is damaged, in use, missing, or cannot be read or written.
pub fn open_file(path: &Path, create: bool) -> Result<(OpenDatabase, Arc<LockedFile>), OpenError> {
    let system = |error| OpenError::system(Some(path), error);
    if create && !path.try_exists().map_err(system)? {
        file::create(path).map_err(|error| OpenError::system(Some(path), error))?;
    }
    let file = existing(path)?;
    Ok((checked(&file)?, file))
}

/// Opens an existing file. No store leaves an empty file, so an empty one is refused rather than
/// turned into a new store.
fn existing(path: &Path) -> Result<Arc<LockedFile>, OpenError> {
    let system = |error| OpenError::system(Some(path), error);
    let file = File::options().read(true).write(true).open(path).map_err(system)?;
    if file.metadata().map_err(system)?.len() == 0 {
        return Err(OpenError::damaged(Some(path), "the file is empty"));
    }
    let backend = FileBackend::new(file).map_err(|error| OpenError::of(Some(path), error))?;
    Ok(Arc::new(LockedFile::new(path, backend)))
}

/// Opens the database in a file, provided that all of it is as redb wrote it. Otherwise leaves the
/// file unchanged.
///
/// # Errors
///
/// The file is damaged, in use, or cannot be read or written.
pub fn checked(file: &Arc<LockedFile>) -> Result<OpenDatabase, OpenError> {
    let path = Some(file.path());
    let gate = Gate::hold_back();
    let backend = Backend::new(file.clone(), gate.clone());
    let open = || Database::builder().set_check_integrity_on_open(true).create_with_backend(backend);
    let database = match catch_panic(open) {
        Ok(Ok(database)) => Ok(OpenDatabase::new(database, Some(gate.clone()))),
        Ok(Err(error)) => Err(OpenError::of(path, error)),
        Err(panic) => Err(OpenError::damaged(path, panic)),
    };
    // redb locks the file before it reads it, so every other result means that the lock is held.
    if !matches!(database, Err(OpenError::InUse { .. })) {
        file.keep_lock();
    }
    let opened = database?;
    gate.open(file).map_err(|error| OpenError::system(path, error))?;
    Ok(opened)
}
