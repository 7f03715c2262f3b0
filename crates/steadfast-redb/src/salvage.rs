//! Copies the readable records of a damaged file into a new one.
//!
//! redb has no checksum for a single record, so it refuses a damaged file as a whole. The store's
//! records have one. So this module reads both commits in the file without redb's check, each from
//! both ends, and copies every intact record. It builds the expiry index again.

use std::fs;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{BackendError, ConcurrencyMode, Database, ReadableDatabase, ReadableTable, StorageBackend};
use steadfast_server::{IdentityMismatch, verify_identity};

use super::backend::{self, LockedFile};
use super::error::OpenError;
use super::failure::{Failed, Failure, catch_panic};
use super::file;
use super::tables::{self, META, RECORDS};

/// Number of records that are copied in one transaction.
const BATCH: usize = 4096;

/// A key and its value, as read from the file.
pub(super) type Raw = (Vec<u8>, Vec<u8>);

/// Replaces a damaged file by a new one with the readable records, and keeps the damaged file
/// beside it.
///
/// After a crash in the middle, one of the two files has the original name.
pub(super) fn replace(damaged: &Arc<LockedFile>) -> Result<(), OpenError> {
    let path = damaged.path();
    let new = file::beside(path);
    let swapped = copy(damaged, &new).and_then(|records| {
        let kept = swap(path, &new).map_err(|error| OpenError::system(Some(path), error))?;
        Ok((records, kept))
    });
    if swapped.is_err() {
        // The file may not exist yet.
        let _gone = fs::remove_file(&new);
    }
    let (records, kept) = swapped?;
    tracing::warn!(
        target: "steadfast", path = %path.display(), kept = %kept.display(), records,
        "replaced a damaged file by a new one with the readable records"
    );
    Ok(())
}

/// Returns the number of records in the new file.
fn copy(damaged: &Arc<LockedFile>, new: &Path) -> Result<u64, OpenError> {
    let path = Some(damaged.path());
    let written = |failed: Failed| OpenError::system(path, failed.into_failure());
    let database = file::new_database(new).map_err(|error| OpenError::system(path, error))?;
    tables::create(&database, true).map_err(written)?;
    let (mut whole, mut met) = (false, None);
    for (slot, backward) in [(0, false), (0, true), (1, false), (1, true)] {
        let mut copying = Copying { database: &database, batch: Vec::new(), identity: Ok(()), result: Ok(()) };
        let read = catch_panic(|| read(damaged, slot, backward, &mut copying));
        copying.flush();
        copying.result.map_err(written)?;
        copying.identity.map_err(|mismatch| OpenError::identity(path, mismatch))?;
        match read {
            Ok(Ok(())) => whole = true,
            Ok(Err(error)) => met = Some(Failure::Redb(error)),
            Err(panic) => met = Some(panic),
        }
    }
    match (tables::count(&database).map_err(written)?, met) {
        (0, Some(met)) if !whole => Err(OpenError::beyond_repair(path, met)),
        (records, _) => Ok(records),
    }
}

/// The destination of the records that were read.
struct Copying<'a> {
    database: &'a Database,
    batch: Vec<Raw>,
    /// The result of checking the damaged file's identity version.
    identity: Result<(), IdentityMismatch>,
    result: Result<(), Failed>,
}

impl Copying<'_> {
    /// Adds a record. Returns `false` if the new file cannot be written.
    fn take(&mut self, record: Raw) -> bool {
        self.batch.push(record);
        if self.batch.len() == BATCH {
            self.flush();
        }
        self.result.is_ok()
    }

    fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        if self.result.is_ok() {
            self.result = tables::adopt(self.database, batch);
        }
    }
}

/// Copies the records of one commit up to the first damage.
fn read(file: &Arc<LockedFile>, slot: u8, backward: bool, copying: &mut Copying<'_>) -> Result<(), redb::Error> {
    let commit = Commit { file: file.clone(), slot };
    let mut builder = Database::builder();
    // The only mode in which redb reads a file without its allocator state, which may be damaged
    // too.
    builder.set_concurrency_mode(ConcurrencyMode::SingleWriter);
    let commit = builder.open_read_only_with_backend(commit)?.begin_read()?;
    if let Ok(meta) = commit.open_table(META)
        && let Ok(Some(version)) = tables::identity(&meta)
    {
        copying.identity = verify_identity(Some(version));
    }
    let records = commit.open_table(RECORDS)?;
    let mut entries = records.iter()?;
    let mut last: Option<Vec<u8>> = None;
    while let Some(entry) = if backward { entries.next_back() } else { entries.next() } {
        let (key, value) = entry?;
        let key = key.value().to_vec();
        // A damaged page may lead back to an earlier one, in an endless circle.
        let goes_on = last.is_none_or(|last| if backward { last > key } else { last < key });
        if !goes_on || !copying.take((key.clone(), value.value().to_vec())) {
            break;
        }
        last = Some(key);
    }
    Ok(())
}

/// Gives the new file the name of the damaged one, which gets another name. Returns that name.
fn swap(path: &Path, new: &Path) -> io::Result<PathBuf> {
    let mut number = 1;
    let kept = loop {
        let kept = file::with_suffix(path, &format!(".damaged-{number}"));
        match fs::hard_link(path, &kept) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            linked => break linked.map(|()| kept)?,
        }
    };
    fs::set_permissions(new, fs::metadata(path)?.permissions())?;
    fs::rename(new, path)?;
    file::sync_folder(path)?;
    Ok(kept)
}

/// One of the two commits of a file, read as if the file had been closed after it. The store
/// already holds the lock.
#[derive(Debug)]
struct Commit {
    file: Arc<LockedFile>,
    slot: u8,
}

impl StorageBackend for Commit {
    fn len(&self) -> io::Result<u64> {
        self.file.backend().len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.backend().read(offset, out)?;
        if offset == 0 {
            backend::choose_commit(out, self.slot);
        }
        Ok(())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn try_lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn query_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(false)
    }
}
