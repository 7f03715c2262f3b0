//! The store in a file: embedded, durable, for one process at a time.

mod check;
mod error;
mod tables;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use redb::{Database, ReadableDatabase};
use steadfast_core::clock::{self, Steady};
use steadfast_core::milliseconds;
use steadfast_redb::engine::{Failed, LockedFile, OpenDatabase, SharedDatabase, Writer, open_file};
use steadfast_server::StoreError;

use self::check::Wrong;
use self::tables::{Called, ENTRIES, Entries, FileClock, Limits, Tables, Wall};
use crate::change::{Change, Terms};
use crate::entry::Entry;
use crate::id::OperationId;
use crate::rules::NewEntry;
use crate::store::{Applied, OutboxStore, OutboxStoreError, Submitted, Usage};

pub use self::error::OutboxOpenError;

/// A store that keeps its operations in a file, with [redb](https://docs.rs/redb).
///
/// ```
/// use steadfast_outbox::{OutboxOpenError, RedbOutbox};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("operations.redb");
/// let store = RedbOutbox::open(&path)?.max_entries(100_000);
///
/// // The file belongs to one process at a time.
/// assert!(matches!(RedbOutbox::open(&path), Err(OutboxOpenError::InUse { .. })));
/// # drop(store);
/// # Ok(())
/// # }
/// ```
///
/// Every change is synced to the disk before its method returns. Changes that wait at the same time
/// share one sync. A crash of the process or of the machine loses nothing that was acknowledged.
///
/// Opening reads and checks the whole file, and refuses a damaged one. After a disk error, such as a
/// full disk, changes fail until the file could be opened and checked again: the store tries that by
/// itself, with growing pauses.
pub struct RedbOutbox {
    shared: Arc<SharedDatabase>,
    writer: Writer<Entries>,
    clock: FileClock,
    limits: Limits,
}

impl fmt::Debug for RedbOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbOutbox").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl RedbOutbox {
    /// Opens the file, or creates it, and checks all of its content. Blocks the thread while it reads.
    ///
    /// Operations that a worker had are free to be taken up: the file's lock proves that the process
    /// of that worker is gone.
    ///
    /// # Errors
    ///
    /// The file is in use, damaged, of another kind or format, or cannot be read or written. It is
    /// not changed then.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OutboxOpenError> {
        Self::open_with(path.as_ref(), true, Arc::new(wall_ms))
    }

    /// Opens the file as [`open`](Self::open) does, but creates none.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), and [`OutboxOpenError::Missing`].
    pub fn open_existing(path: impl AsRef<Path>) -> Result<Self, OutboxOpenError> {
        let path = path.as_ref();
        match path.try_exists() {
            Ok(true) => Self::open_with(path, false, Arc::new(wall_ms)),
            Ok(false) => Err(OutboxOpenError::Missing { path: path.to_owned() }),
            Err(error) => Err(OutboxOpenError::system(path, error)),
        }
    }

    /// Opens a file with another wall clock, for tests.
    #[doc(hidden)]
    pub fn open_with(path: &Path, create: bool, wall: Wall) -> Result<Self, OutboxOpenError> {
        let (opened, file) = open_file(path, create).map_err(|error| OutboxOpenError::of(path, error))?;
        Self::start(opened, file, wall)
    }

    /// Uses the database of a file.
    #[doc(hidden)]
    pub fn start(opened: OpenDatabase, file: Arc<LockedFile>, wall: Wall) -> Result<Self, OutboxOpenError> {
        let path = file.path().to_owned();
        let prepared = opened.call(|database| check::prepare(database, wall));
        let failed = |failed: Failed| match failed.into_failure() {
            failure if failure.is_damage() => OutboxOpenError::damaged(&path, failure),
            failure => OutboxOpenError::system(&path, failure),
        };
        let clock = match prepared.map_err(failed)? {
            Ok(clock) => clock,
            Err(Wrong::NotAnOutbox(reason)) => return Err(OutboxOpenError::NotAnOutbox { path, reason }),
            Err(Wrong::Format(version)) => {
                return Err(OutboxOpenError::Format { path, source: format!("it has format {version}").into() });
            }
            Err(Wrong::Damaged(what)) => return Err(OutboxOpenError::damaged(&path, what)),
        };
        let shared = SharedDatabase::new(opened, Some(file));
        let layout = Entries { clock: clock.clone() };
        let writer = Writer::start(shared.clone(), layout, Steady::start());
        let writer = writer.map_err(|error| OutboxOpenError::system(&path, error))?;
        Ok(Self { shared, writer, clock, limits: Limits { entries: 1_000_000, bytes: 1 << 30 } })
    }

    /// Sets the maximum number of entries, with those that have ended. A submission beyond it is an
    /// error, and nothing unacknowledged is removed for it. Default: 1,000,000.
    #[must_use]
    pub fn max_entries(mut self, entries: u64) -> Self {
        self.limits.entries = entries;
        self
    }

    /// Sets the maximum size of all entries, in bytes, without redb's own overhead. The entry that
    /// reaches it still fits. Default: 1 GiB.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.limits.bytes = bytes;
        self
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tables<'_>) -> Called<T> + Send + 'static,
    ) -> Result<T, OutboxStoreError> {
        unwrapped(self.writer.write(work).await)
    }

    /// Reads beside the writer, as of the last transaction.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Called<T> + Send + 'static,
    ) -> Result<T, OutboxStoreError> {
        let shared = self.shared.clone();
        let read = tokio::task::spawn_blocking(move || shared.call(work)).await;
        match read.map_err(|error| OutboxStoreError::Unavailable(error.into()))? {
            Ok(called) => called,
            Err(failed) => {
                // If the failure is not this reader's alone, the writer meets it and opens the file again.
                self.writer.confirm(|tables| tables.apply(OperationId::NONE, &Change::Acknowledge));
                Err(OutboxStoreError::Unavailable(Box::new(failed.into_failure())))
            }
        }
    }
}

fn wall_ms() -> u64 {
    milliseconds(clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn unwrapped<T>(written: Result<Result<T, OutboxStoreError>, StoreError>) -> Result<T, OutboxStoreError> {
    written.unwrap_or_else(|error| Err(OutboxStoreError::Unavailable(reason(error))))
}

/// Returns what is behind an error of the writer.
fn reason(error: StoreError) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        StoreError::Unavailable(reason) => reason,
        other => other.into(),
    }
}

fn called<T>(value: Result<T, Failed>) -> Called<T> {
    value.map(Ok)
}

impl OutboxStore for RedbOutbox {
    const IS_SHARED: bool = false;

    async fn submit(&self, new: NewEntry, terms: Option<Terms>) -> Result<Submitted, OutboxStoreError> {
        let limits = self.limits;
        self.write(move |tables| tables.submit(new, terms, limits)).await
    }

    async fn apply(&self, id: OperationId, change: Change) -> Result<Applied, OutboxStoreError> {
        if change == Change::Acknowledge {
            // Nobody loses anything if it is lost, so it is not worth a sync.
            return unwrapped(self.writer.write_along(move |tables| tables.apply(id, &change)).await);
        }
        self.write(move |tables| tables.apply(id, &change)).await
    }

    async fn claim_due(&self, terms: Terms, limit: usize, except: Vec<String>) -> Result<Vec<Entry>, OutboxStoreError> {
        // Mostly nothing is due, and then there is nothing to sync.
        if self.next_due(except.clone()).await?.is_none_or(|time| !time.is_zero()) {
            return Ok(Vec::new());
        }
        self.write(move |tables| tables.claim_due(terms, limit, &except)).await
    }

    async fn next_due(&self, except: Vec<String>) -> Result<Option<Duration>, OutboxStoreError> {
        let (now, _) = self.clock.tick();
        let due = self.read(move |database| called(tables::next_due(database, &except, now))).await?;
        Ok(due.map(Duration::from_millis))
    }

    async fn get(&self, id: OperationId) -> Result<Option<Entry>, OutboxStoreError> {
        self.read(move |database| tables::get(&database.begin_read()?.open_table(ENTRIES)?, id)).await
    }

    async fn find(&self, name: &str) -> Result<Option<Entry>, OutboxStoreError> {
        let name = name.to_owned();
        self.read(move |database| tables::find(database, &name)).await
    }

    async fn list(&self, after: Option<OperationId>, limit: usize) -> Result<Vec<Entry>, OutboxStoreError> {
        self.read(move |database| tables::list(database, after, limit)).await
    }

    async fn usage(&self) -> Result<Usage, OutboxStoreError> {
        self.read(|database| called(tables::usage(database))).await
    }

    async fn sweep(&self, limit: usize) -> Result<usize, OutboxStoreError> {
        let (now, _) = self.clock.tick();
        if !self.read(move |database| called(tables::has_sweep(database, now))).await? {
            return Ok(0);
        }
        unwrapped(self.writer.write_along(move |tables| tables.sweep(limit)).await)
    }
}
