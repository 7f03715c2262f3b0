//! A new file with the records that can still be read of a damaged one.
//!
//! redb has no checksum for a single record, so it refuses a damaged file as a whole. A record of
//! ours has one. So both commits that the file holds are read without redb's check, each from both
//! ends, and every record that is what was written is copied. The index of what expires when is
//! made anew.

use std::fs;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{BackendError, ConcurrencyMode, Database, ReadableDatabase, ReadableTable, StorageBackend};
use steadfast_server::{IdentityMismatch, verify_identity};

use super::backend::{self, LockedFile};
use super::error::OpenError;
use super::file;
use super::shared::{Failure, catch_panic};
use super::tables::{self, Failed, META, RECORDS};

/// Records that are copied in one transaction.
const BATCH: usize = 4096;

/// A key and its value, as they were read.
pub(super) type Raw = (Vec<u8>, Vec<u8>);

/// Puts a new file with the readable records in the place of a damaged one, which is kept beside
/// it.
///
/// A crash meanwhile leaves either of the two under the file's name, and never none.
pub(super) fn replace(damaged: &Arc<LockedFile>) -> Result<(), OpenError> {
    let path = damaged.path();
    let new = file::beside(path);
    let swapped = copy(damaged, &new).and_then(|records| {
        let kept = swap(path, &new).map_err(|error| OpenError::system(Some(path), error))?;
        Ok((records, kept))
    });
    if swapped.is_err() {
        // It may not have come to be.
        let _gone = fs::remove_file(&new);
    }
    let (records, kept) = swapped?;
    tracing::warn!(
        target: "steadfast", path = %path.display(), kept = %kept.display(), records,
        "a damaged file was replaced by one with the records that could be read"
    );
    Ok(())
}

/// Returns how many records there are in the new file.
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

/// Where records go that were read.
struct Copying<'a> {
    database: &'a Database,
    batch: Vec<Raw>,
    /// How the damaged file says that its records are identified.
    identity: Result<(), IdentityMismatch>,
    result: Result<(), Failed>,
}

impl Copying<'_> {
    /// `false`: the new file cannot be written.
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

/// Copies the records of one commit, until damage is met.
fn read(file: &Arc<LockedFile>, slot: u8, backward: bool, copying: &mut Copying<'_>) -> Result<(), redb::Error> {
    let commit = Commit { file: file.clone(), slot };
    let mut builder = Database::builder();
    // The one mode in which redb reads a file without the state of its allocator, which may be
    // damaged too.
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
        // A damaged page may lead back to one that was read already, and so on for ever.
        let goes_on = last.is_none_or(|last| if backward { last > key } else { last < key });
        if !goes_on || !copying.take((key.clone(), value.value().to_vec())) {
            break;
        }
        last = Some(key);
    }
    Ok(())
}

/// Gives the new file the damaged one's name, and the damaged one another. Returns that.
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

/// One of the two commits of a file, to be read as if the file had been closed after it. The lock
/// is held by others.
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
