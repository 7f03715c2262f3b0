//! Stores the idempotency records of [`steadfast-server`](steadfast_server) in one file, for one
//! process.
//!
//! The store is embedded and durable: there is no server to run.
//!
//! ```no_run
//! use steadfast_redb::RedbStore;
//! use steadfast_server::{IdempotencyLayer, Scope};
//!
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let store = RedbStore::open("keys.redb")?;
//! let layer = IdempotencyLayer::new(store, Scope::single_caller()).required();
//! # Ok(())
//! # }
//! ```
//!
//! The store writes a claim to the disk before your handler starts, and its end before the response
//! leaves. See [`RedbStore`] for the effects of a crash, a full disk and a damaged file.
//!
//! If several processes serve your API, use `steadfast-redis` or `steadfast-postgres`. [The
//! guide](https://docs.rs/steadfast/latest/steadfast/guide/server/) compares the stores.

// This file has the rules of the `Store` contract. The others:
//
// * `tables`: the content of the file
// * `writer`: the one thread that writes
// * `open`: the check of a file
// * `salvage`: the readable records of a damaged file
// * `open_database`, `failure`: one open database, and what is done about panics and failures
// * `shared`: the database that is closed and opened again while it is in use
// * `backend`: the lock and the header of the file
// * `engine`: what the crate `steadfast-outbox` uses of all this
//
// The tests over a failing disk are in `tests/`. Those over killed processes are in the workspace's
// `tests/it/server/crash/`.

mod backend;
#[doc(hidden)]
pub mod engine;
mod error;
mod failure;
mod file;
mod open;
mod open_database;
mod salvage;
mod shared;
mod tables;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redb::Database;
use steadfast_core::clock::Steady;
use steadfast_core::milliseconds;
use steadfast_server::{
    Claim, ClaimOutcome, ClaimRef, ClaimToken, End, Fingerprint, FinishOutcome, KeyHolder, RecordError, RecordId,
    RecordState, Store, StoreError, StoreLimit, verify_identity,
};

use self::backend::LockedFile;
use self::failure::{Failed, unreadable};
use self::open_database::OpenDatabase;
use self::shared::SharedDatabase;
use self::tables::{Entry, Phase, Records, Tables};
use self::writer::Writer;

pub use self::error::OpenError;
pub use self::open::RedbOptions;
pub use redb;

/// Number of expired records that a claim removes.
const SWEEP: usize = 4;

/// A store that keeps its records in a file.
///
/// ```
/// use steadfast_redb::RedbStore;
/// use steadfast_server::{IdempotencyLayer, Scope};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("keys.redb");
/// let store = RedbStore::open(path)?.max_records(1_000_000);
/// let layer = IdempotencyLayer::new(store, Scope::single_caller()).required();
/// # Ok(())
/// # }
/// ```
///
/// The file belongs to one process at a time. When a process dies, its claims stay in the file. The
/// next process that opens the file knows that their owners are gone: they are
/// [unknown](RecordState::Unknown) at once, before their leases end.
///
/// The store reads the wall clock once, when it opens the file, and adds the time that has passed
/// since. Clock jumps during a run change nothing. Setting the clock back between two runs
/// lengthens the retention of existing records; setting it forward shortens it.
///
/// # Damage
///
/// A crash of the process or of the machine loses no acknowledged write, and you need not decide
/// anything. Damage is different: something else has changed the file. Opening reads the whole file
/// ([measured](https://docs.rs/steadfast/latest/steadfast/guide/performance/#the-embedded-store)).
/// It refuses a damaged file with [`OpenError::Damaged`] and does not change it.
/// [`RedbOptions::accept_repair`] opens such a file with the records that can still be read.
///
/// Damage to an open file is found when the file is opened next, or when redb reads the damaged
/// part. In the second case the call returns [`StoreError::Unreadable`], and the store checks the
/// file again unless redb can now read the record. Until then, a record outside redb's cache may be
/// missing unnoticed.
///
/// redb panics on some damaged files. The store turns such a panic into an error, but the panic
/// hook still prints its message. An older copy of the file is not damaged, so the store cannot
/// tell it from the current one.
///
/// # After an I/O error
///
/// After a disk error (a full disk, a failed sync) the store no longer trusts the database in
/// memory. It closes the database and opens it again, with the same check. The first attempt starts
/// after 100 ms; the pauses then double, up to 30 s.
///
/// * **Changes** return [`StoreError::Unavailable`] until an attempt succeeds.
/// * **Reads** work until the first attempt, and again after the successful one.
/// * **Claims** that held at the error hold again, for the rest of their leases.
///
/// The file stays locked and its descriptor stays open, so that no other process mistakes these
/// claims for those of a dead process. A file system that was mounted again therefore needs a new
/// process. If the check finds damage, the attempts end.
pub struct RedbStore {
    shared: Arc<SharedDatabase>,
    writer: Writer<Records>,
    time: Steady,
    /// Tells this process's claims from those of earlier processes.
    boot: [u8; 16],
    max_records: u64,
}

impl RedbStore {
    /// Opens the file, or creates it, and checks all of its content.
    ///
    /// Blocks the thread while it reads: about a second for 100,000 records on a slow disk
    /// ([measured](https://docs.rs/steadfast/latest/steadfast/guide/performance/#the-embedded-store)).
    /// Call it before you serve, or on a thread that may block.
    ///
    /// If the process dies during the call, there is either no file or a complete one. A second
    /// file, whose name ends in `.new-` and a number, may be left beside it. You may delete that
    /// one.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] if the file is damaged or in use, or if it cannot be read or
    /// written. The same holds for a file whose records have another
    /// [`IDENTITY_VERSION`](steadfast_server::IDENTITY_VERSION).
    ///
    /// ```
    /// use steadfast_redb::{OpenError, RedbStore};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("keys.redb");
    /// let store = RedbStore::open(&path)?;
    ///
    /// // The open store holds the file's lock.
    /// assert!(matches!(RedbStore::open(&path), Err(OpenError::InUse { .. })));
    /// # drop(store);
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::options().open(path)
    }

    /// Uses a database that you have opened, for example with a cache size or a storage of your
    /// own.
    ///
    /// The names of the store's tables begin with `steadfast_`. The store checks the whole
    /// database, as [`open`](Self::open) checks a file, with three differences:
    ///
    /// * redb has already recovered the database by its own rules. If redb has to repair it during
    ///   the check, the store refuses it now and later, until a repair is accepted.
    /// * A damaged bit in the header of the file can hide the last commit, because redb has no
    ///   checksum for it. Files that the store opens itself have one.
    /// * After an I/O error every change returns [`StoreError::Unavailable`] until your program
    ///   opens the database again.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] if the database is damaged or cannot be written.
    ///
    /// ```
    /// use steadfast_redb::{RedbStore, redb};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("shop.redb");
    /// let database = redb::Database::builder().set_cache_size(16 * 1024 * 1024).create(path)?;
    /// let store = RedbStore::from_database(database)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_database(database: Database) -> Result<Self, OpenError> {
        Self::options().open_database(database)
    }

    /// Returns the options for opening a file or a database, with their defaults.
    ///
    /// ```no_run
    /// use steadfast_redb::RedbStore;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = RedbStore::options().accept_repair(true).open("keys.redb")?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn options() -> RedbOptions {
        RedbOptions::default()
    }

    fn start(opened: OpenDatabase, file: Option<Arc<LockedFile>>, accept_repair: bool) -> Result<Self, OpenError> {
        let path = file.as_ref().map(|file| file.path().to_owned());
        let path = path.as_deref();
        let boot = *ClaimToken::new().map_err(|error| OpenError::system(path, error))?.as_bytes();
        let meta = opened.call(|database| tables::create(database, accept_repair));
        let meta = meta.map_err(|failed| OpenError::system(path, failed.into_failure()))?;
        if meta.is_repaired {
            return Err(OpenError::damaged(path, "redb had to repair the database"));
        }
        verify_identity(meta.identity).map_err(|mismatch| OpenError::identity(path, mismatch))?;
        let (shared, time) = (SharedDatabase::new(opened, file.clone()), Steady::start());
        let writer =
            Writer::start(shared.clone(), Records { boot }, time).map_err(|error| OpenError::system(path, error))?;
        Ok(Self { shared, writer, time, boot, max_records: u64::MAX })
    }

    /// Sets the maximum number of records. Default: no limit.
    ///
    /// Running claims and [tombstones](steadfast_server::TOMBSTONE) count too. A claim beyond the
    /// limit returns [`StoreError::Full`].
    #[must_use]
    pub fn max_records(mut self, records: u64) -> Self {
        self.max_records = records;
        self
    }

    fn made(&self, claim: ClaimRef) -> MadeClaim {
        MadeClaim { claim, boot: self.boot, now: self.time.now_ms() }
    }

    /// Reads a key beside the writer, at the current time of the store's clock.
    async fn read<T: Send + 'static>(
        &self,
        id: RecordId,
        read: impl FnOnce(&Database, u64) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (shared, now) = (self.shared.clone(), self.time.now_ms());
        let read = tokio::task::spawn_blocking(move || shared.call(|database| read(database, now))).await;
        match read.map_err(|error| StoreError::Unavailable(error.into()))? {
            Ok(found) => Ok(found),
            Err(Failed::Call(error)) => Err(error),
            Err(Failed::Database(failure)) => {
                self.writer.confirm(move |tables| tables.get(id.as_bytes()));
                let damaged = failure.is_damage();
                Err(if damaged {
                    StoreError::Unreadable(RecordError::Damaged)
                } else {
                    StoreError::Unavailable(failure.into())
                })
            }
        }
    }
}

/// Returns the entry of a key, unless its retention is over.
fn live_entry(database: &Database, id: &RecordId, now: u64) -> Result<Option<Entry>, Failed> {
    Ok(tables::read(database, id)?.filter(|entry| entry.forget_ms > now))
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").field("max_records", &self.max_records).finish_non_exhaustive()
    }
}

/// A claim with owned fields, so that it can be sent to the writer.
struct OwnedClaim {
    id: RecordId,
    token: [u8; 16],
    fingerprint: [u8; 32],
    lease_ms: u64,
    retention_ms: u64,
    take_over: bool,
    boot: [u8; 16],
    now: u64,
    max_records: u64,
}

impl OwnedClaim {
    fn make(self, tables: &mut Tables<'_>) -> Result<ClaimOutcome<()>, Failed> {
        tables.sweep(self.now, SWEEP)?;
        if tables.is_buried(self.reference(), self.now)? {
            return Ok(ClaimOutcome::Cancelled);
        }
        let mut took_over = false;
        if let Some(entry) = tables.get(self.id.as_bytes())? {
            let live = entry.forget_ms > self.now;
            if live && !self.may_have(&entry)? {
                return Ok(ClaimOutcome::Existing(entry.state(&self.boot, self.now).map_err(unreadable)?));
            }
            took_over = live && (entry.took_over || entry.token != self.token);
            tables.remove(self.id.as_bytes(), &entry)?;
        } else if !tables.has_room(self.max_records, self.now)? {
            let full = StoreLimit::new("max_records", "raise it with RedbStore::max_records");
            let max = usize::try_from(self.max_records).unwrap_or(usize::MAX);
            return Err(Failed::Call(StoreError::Full(full.max(max))));
        }
        let until_ms = self.now.saturating_add(self.lease_ms);
        let entry = Entry {
            fingerprint: self.fingerprint,
            token: self.token,
            boot: self.boot,
            phase: Phase::Running { until_ms },
            took_over,
            retention_ms: self.retention_ms,
            forget_ms: until_ms.saturating_add(self.retention_ms),
        };
        tables.put(self.id.as_bytes(), &entry)?;
        Ok(ClaimOutcome::Acquired(()))
    }

    fn reference(&self) -> ClaimRef {
        ClaimRef::new(self.id, ClaimToken::from_bytes(self.token))
    }

    /// Returns whether the caller may have the key: either it repeats the same claim, or it takes
    /// over an unknown one. In both cases the request must be the same.
    fn may_have(&self, entry: &Entry) -> Result<bool, Failed> {
        let state = entry.state(&self.boot, self.now).map_err(unreadable)?;
        let holder = KeyHolder {
            token: ClaimToken::from_bytes(entry.token),
            fingerprint: Fingerprint::from_bytes(entry.fingerprint),
            is_running: entry.is_running(&self.boot),
            is_unknown: matches!(state, RecordState::Unknown { .. }),
        };
        let (token, fingerprint) = (ClaimToken::from_bytes(self.token), Fingerprint::from_bytes(self.fingerprint));
        Ok(holder.gives_way_to(token, fingerprint, self.take_over))
    }
}

/// An existing claim that the writer is to renew or end.
struct MadeClaim {
    claim: ClaimRef,
    boot: [u8; 16],
    now: u64,
}

impl MadeClaim {
    /// Returns the entry of this claim, running or ended.
    fn entry(&self, tables: &Tables<'_>) -> Result<Option<Entry>, Failed> {
        let ours = |entry: &Entry| entry.token == *self.claim.token.as_bytes() && entry.forget_ms > self.now;
        Ok(tables.get(self.claim.id.as_bytes())?.filter(ours))
    }

    fn replace(&self, tables: &mut Tables<'_>, entry: Entry, end: impl FnOnce(Entry) -> Entry) -> Result<(), Failed> {
        tables.remove(self.claim.id.as_bytes(), &entry)?;
        tables.put(self.claim.id.as_bytes(), &end(entry))
    }

    fn renew(&self, tables: &mut Tables<'_>, lease_ms: u64) -> Result<bool, Failed> {
        let Some(entry) = self.entry(tables)?.filter(|entry| entry.is_running(&self.boot)) else { return Ok(false) };
        self.replace(tables, entry, |entry| entry.renewed(self.now, lease_ms))?;
        Ok(true)
    }

    fn complete(&self, tables: &mut Tables<'_>, record: Vec<u8>, retention_ms: u64) -> Result<FinishOutcome, Failed> {
        match self.entry(tables)? {
            Some(entry) if entry.is_running(&self.boot) => {
                let forget_ms = self.now.saturating_add(retention_ms);
                self.replace(tables, entry, |entry| Entry { phase: Phase::Done(record), forget_ms, ..entry })?;
                Ok(FinishOutcome::Stored)
            }
            Some(Entry { phase: Phase::Done(_), .. }) => Ok(FinishOutcome::Stored),
            _ => Ok(FinishOutcome::Fenced),
        }
    }

    fn end_as_unknown(&self, tables: &mut Tables<'_>) -> Result<FinishOutcome, Failed> {
        match self.entry(tables)? {
            Some(entry) if entry.is_running(&self.boot) => {
                self.replace(tables, entry, |entry| entry.into_unknown(self.now))?;
                Ok(FinishOutcome::Stored)
            }
            // The claim was ended as unknown before, or its process has died.
            Some(Entry { phase: Phase::Unknown | Phase::Running { .. }, .. }) => Ok(FinishOutcome::Stored),
            _ => Ok(FinishOutcome::Fenced),
        }
    }

    fn release(&self, tables: &mut Tables<'_>) -> Result<FinishOutcome, Failed> {
        if tables.is_buried(self.claim, self.now)? {
            return Ok(FinishOutcome::Stored);
        }
        let Some(entry) = self.entry(tables)?.filter(|entry| entry.is_running(&self.boot)) else {
            return Ok(FinishOutcome::Fenced);
        };
        tables.remove(self.claim.id.as_bytes(), &entry)?;
        tables.bury(self.claim, self.now)?;
        Ok(FinishOutcome::Stored)
    }

    fn cancel(&self, tables: &mut Tables<'_>) -> Result<FinishOutcome, Failed> {
        if tables.is_buried(self.claim, self.now)? {
            return Ok(FinishOutcome::Stored);
        }
        match self.entry(tables)? {
            Some(entry) if !entry.is_running(&self.boot) => return Ok(FinishOutcome::Fenced),
            // The operation that this claim took over may have run, so it is unknown again.
            Some(entry) if entry.took_over => self.replace(tables, entry, |entry| entry.into_unknown(self.now))?,
            Some(entry) => tables.remove(self.claim.id.as_bytes(), &entry)?,
            None => {}
        }
        tables.bury(self.claim, self.now)?;
        Ok(FinishOutcome::Stored)
    }
}

impl Store for RedbStore {
    type Session = ();

    async fn claim(&self, claim: &Claim<'_>) -> Result<ClaimOutcome<()>, StoreError> {
        let claim = OwnedClaim {
            id: *claim.id,
            token: *claim.token.as_bytes(),
            fingerprint: *claim.fingerprint.as_bytes(),
            lease_ms: milliseconds(claim.lease),
            retention_ms: milliseconds(claim.retention),
            take_over: claim.take_over,
            boot: self.boot,
            now: self.time.now_ms(),
            max_records: self.max_records,
        };
        let (id, reference) = (claim.id, claim.reference());
        let known = self.read(id, move |database, now| {
            let Some(entry) = live_entry(database, &id, now)? else { return Ok(None) };
            Ok(Some((entry, tables::has_tombstone(database, reference, now)?)))
        });
        // Most repeats find a finished operation, and need no sync.
        match known.await? {
            Some((_, true)) => return Ok(ClaimOutcome::Cancelled),
            Some((entry, false)) if !claim.may_have(&entry).map_err(Failed::into_store_error)? => {
                return entry.state(&self.boot, claim.now).map(ClaimOutcome::Existing).map_err(StoreError::Unreadable);
            }
            _ => {}
        }
        self.writer.write(move |tables| claim.make(tables)).await
    }

    async fn renew(&self, claim: ClaimRef, lease: Duration) -> Result<bool, StoreError> {
        let (made, lease_ms) = (self.made(claim), milliseconds(lease));
        self.writer.write(move |tables| made.renew(tables, lease_ms)).await
    }

    async fn finish(&self, claim: ClaimRef, _: Option<()>, end: &End) -> Result<FinishOutcome, StoreError> {
        let made = self.made(claim);
        match end {
            End::Completed(completion) => {
                let (record, retention_ms) = (completion.record.encode(), milliseconds(completion.retention));
                self.writer.write(move |tables| made.complete(tables, record, retention_ms)).await
            }
            End::Released => self.writer.write(move |tables| made.release(tables)).await,
            End::Unknown => self.writer.write(move |tables| made.end_as_unknown(tables)).await,
            End::Cancelled => self.writer.write(move |tables| made.cancel(tables)).await,
        }
    }

    async fn get(&self, id: &RecordId) -> Result<Option<RecordState>, StoreError> {
        let (id, now) = (*id, self.time.now_ms());
        let entry = self.read(id, move |database, now| live_entry(database, &id, now)).await?;
        entry.map(|entry| entry.state(&self.boot, now)).transpose().map_err(StoreError::Unreadable)
    }

    async fn purge_expired(&self, most: usize) -> Result<usize, StoreError> {
        let now = self.time.now_ms();
        self.writer.write(move |tables| tables.sweep(now, most)).await
    }
}

#[cfg(test)]
mod tests;
