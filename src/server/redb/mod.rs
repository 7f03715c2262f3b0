//! The embedded durable store: one file, one process, nothing to operate.
//!
//! A record must be on the disk before anybody acts on it: the claim before the handler starts, the end before the answer leaves.
//! [redb](https://docs.rs/redb) keeps the file whole through `kill -9` and power loss. Here are the rules of the [`Store`] contract;
//! what the file holds is in [`tables`], and who may write to it in [`writer`].

mod file;
mod identity;
mod tables;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redb::Database;

use self::tables::{Entry, Failed, Phase, Tables};
use self::writer::Writer;
use super::store::{Claim, ClaimRef, ClaimToken, Claimed, Completed, End, RecordId, State, Store, StoreError};
use crate::clock::{Steady, milliseconds};

/// A claim removes so many expired records on its way.
const SWEEP: usize = 4;

/// Records in a file.
///
/// The file belongs to one process at a time. A process that dies leaves its claims behind; the next one that opens the file knows
/// that their owners are gone, so they are [unknown](State::Unknown) at once, without waiting for their leases.
///
/// Retention is counted by the wall clock at opening plus the time that has passed since, so jumps of the clock while the process runs
/// change nothing. A clock that was set back between two runs makes records live longer; one that was set forward, shorter.
///
/// After the disk has failed once (it was full, a sync returned an error) nobody can say what the file will hold, so every change is
/// [`StoreError::Unavailable`] until the file is opened again. What was durable before may still be answered.
pub struct RedbStore {
    database: Arc<Database>,
    writer: Writer,
    time: Steady,
    /// Tells this process's claims from those of earlier ones.
    boot: [u8; 16],
    max_records: u64,
}

/// Why a file cannot be used as a store.
#[derive(Debug, thiserror::Error)]
#[error("the store cannot be opened: {0}")]
pub struct OpenError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl RedbStore {
    /// Opens the file, or creates it. A process that dies meanwhile leaves no file or a whole one, and perhaps a `….new-…` beside it
    /// that may be deleted.
    ///
    /// # Errors
    ///
    /// It cannot be read or written, another process has it, it is no redb file, or its records are
    /// of another [`IDENTITY_VERSION`](crate::server::IDENTITY_VERSION).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        if !path.exists() {
            file::create(path).map_err(OpenError)?;
        }
        Self::over(Database::create(path).map_err(|error| OpenError(error.into()))?)
    }

    /// A store in a database that was opened by the caller, with a cache size or a storage of its own. Its tables begin with
    /// `steadfast_`.
    ///
    /// # Errors
    ///
    /// It cannot be written, or its records are of another
    /// [`IDENTITY_VERSION`](crate::server::IDENTITY_VERSION).
    pub fn over(database: Database) -> Result<Self, OpenError> {
        let boot = ClaimToken::new().map_err(|error| OpenError(error.into()))?;
        identity::verify(&database).map_err(OpenError)?;
        tables::create(&database).map_err(|error| OpenError(error.into()))?;
        let database = Arc::new(database);
        Ok(Self {
            writer: Writer::start(database.clone()).map_err(|error| OpenError(error.into()))?,
            database,
            time: Steady::start(),
            boot: *boot.as_bytes(),
            max_records: u64::MAX,
        })
    }

    /// The most records, running claims included; a claim beyond it is [`StoreError::Full`]. Default: none.
    #[must_use]
    pub fn max_records(mut self, records: u64) -> Self {
        self.max_records = records;
        self
    }

    /// Reads beside the writer, at this instant of the store's clock.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database, u64) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (database, now) = (self.database.clone(), self.time.now_ms());
        let read = tokio::task::spawn_blocking(move || read(&database, now)).await;
        read.map_err(|error| StoreError::Unavailable(error.into()))?.map_err(Failed::into_store_error)
    }
}

/// What is known of a key.
fn live_entry(database: &Database, id: &RecordId, now: u64) -> Result<Option<Entry>, Failed> {
    Ok(tables::read(database, id)?.filter(|entry| entry.forget_ms > now))
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").field("max_records", &self.max_records).finish_non_exhaustive()
    }
}

/// A claim, owned: it travels to the writer.
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
    fn make(self, tables: &mut Tables<'_>) -> Result<Claimed<()>, Failed> {
        tables.sweep(self.now, SWEEP)?;
        if tables.is_buried(&self.token, self.now)? {
            return Ok(Claimed::Cancelled);
        }
        let mut took_over = false;
        if let Some(entry) = tables.get(&self.id)? {
            let live = entry.forget_ms > self.now;
            if live && !self.may_have(&entry)? {
                return Ok(Claimed::Known(entry.state(&self.boot, self.now)?));
            }
            took_over = live && (entry.took_over || entry.token != self.token);
            tables.remove(&self.id, &entry)?;
        } else if tables.count()? >= self.max_records {
            return Err(Failed::Call(StoreError::Full));
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
        tables.put(&self.id, &entry)?;
        Ok(Claimed::Won(()))
    }

    /// It is the same claim, repeated; or one that nobody knows the end of, of the same request, and it may be taken over.
    fn may_have(&self, entry: &Entry) -> Result<bool, Failed> {
        let same = entry.token == self.token;
        let unknown = matches!(entry.state(&self.boot, self.now)?, State::Unknown { .. });
        let takes_over = self.take_over && unknown && !same && entry.fingerprint == self.fingerprint;
        Ok((same && entry.is_running(&self.boot)) || takes_over)
    }
}

/// An end on its way to the writer.
struct OwnedEnd {
    claim: ClaimRef,
    boot: [u8; 16],
    now: u64,
}

impl OwnedEnd {
    /// The entry of this claim, whether it still runs or has ended.
    fn entry(&self, tables: &Tables<'_>) -> Result<Option<Entry>, Failed> {
        let ours = |entry: &Entry| entry.token == *self.claim.token.as_bytes() && entry.forget_ms > self.now;
        Ok(tables.get(&self.claim.id)?.filter(ours))
    }

    fn replace(&self, tables: &mut Tables<'_>, entry: Entry, end: impl FnOnce(Entry) -> Entry) -> Result<(), Failed> {
        tables.remove(&self.claim.id, &entry)?;
        tables.put(&self.claim.id, &end(entry))
    }

    fn complete(&self, tables: &mut Tables<'_>, record: Vec<u8>, retention_ms: u64) -> Result<Completed, Failed> {
        match self.entry(tables)? {
            Some(entry) if entry.is_running(&self.boot) => {
                let forget_ms = self.now.saturating_add(retention_ms);
                self.replace(tables, entry, |entry| Entry { phase: Phase::Done(record), forget_ms, ..entry })?;
                Ok(Completed::Stored)
            }
            Some(Entry { phase: Phase::Done(_), .. }) => Ok(Completed::Stored),
            _ => Ok(Completed::Lost),
        }
    }

    fn end_as_unknown(&self, tables: &mut Tables<'_>) -> Result<Completed, Failed> {
        match self.entry(tables)? {
            Some(entry) if entry.is_running(&self.boot) => {
                self.replace(tables, entry, |entry| entry.into_unknown(self.now))?;
                Ok(Completed::Stored)
            }
            Some(Entry { phase: Phase::Unknown, .. }) => Ok(Completed::Stored),
            _ => Ok(Completed::Lost),
        }
    }

    fn release(&self, tables: &mut Tables<'_>) -> Result<Completed, Failed> {
        if tables.is_buried(self.claim.token.as_bytes(), self.now)? {
            return Ok(Completed::Stored);
        }
        let Some(entry) = self.entry(tables)?.filter(|entry| entry.is_running(&self.boot)) else {
            return Ok(Completed::Lost);
        };
        tables.remove(&self.claim.id, &entry)?;
        tables.bury(self.claim.token.as_bytes(), self.now)?;
        Ok(Completed::Stored)
    }

    fn cancel(&self, tables: &mut Tables<'_>) -> Result<Completed, Failed> {
        if tables.is_buried(self.claim.token.as_bytes(), self.now)? {
            return Ok(Completed::Stored);
        }
        match self.entry(tables)? {
            Some(entry) if !entry.is_running(&self.boot) => return Ok(Completed::Lost),
            // What it took over may have run: that is unknown again.
            Some(entry) if entry.took_over => self.replace(tables, entry, |entry| entry.into_unknown(self.now))?,
            Some(entry) => tables.remove(&self.claim.id, &entry)?,
            None => {}
        }
        tables.bury(self.claim.token.as_bytes(), self.now)?;
        Ok(Completed::Stored)
    }
}

impl Store for RedbStore {
    type Session = ();

    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed<()>, StoreError> {
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
        let (id, token) = (claim.id, claim.token);
        let known = self.read(move |database, now| {
            let Some(entry) = live_entry(database, &id, now)? else { return Ok(None) };
            Ok(Some((entry, tables::has_tombstone(database, &token, now)?)))
        });
        // Most repeats find an end, and need no sync to be told.
        match known.await? {
            Some((_, true)) => return Ok(Claimed::Cancelled),
            Some((entry, false)) if !claim.may_have(&entry).map_err(Failed::into_store_error)? => {
                return entry.state(&self.boot, claim.now).map(Claimed::Known).map_err(StoreError::Unreadable);
            }
            _ => {}
        }
        self.writer.write(move |tables| claim.make(tables)).await
    }

    async fn renew(&self, claim: ClaimRef, lease: Duration) -> Result<bool, StoreError> {
        let (boot, now, lease_ms) = (self.boot, self.time.now_ms(), milliseconds(lease));
        self.writer
            .write(move |tables| {
                let ours = |entry: &Entry| entry.token == *claim.token.as_bytes() && entry.is_running(&boot);
                let Some(mut entry) = tables.get(&claim.id)?.filter(ours) else { return Ok(false) };
                tables.remove(&claim.id, &entry)?;
                let until_ms = now.saturating_add(lease_ms);
                entry.phase = Phase::Running { until_ms };
                entry.forget_ms = until_ms.saturating_add(entry.retention_ms);
                tables.put(&claim.id, &entry)?;
                Ok(true)
            })
            .await
    }

    async fn finish(&self, claim: ClaimRef, _: Option<()>, end: &End) -> Result<Completed, StoreError> {
        let ending = OwnedEnd { claim, boot: self.boot, now: self.time.now_ms() };
        match end {
            End::Completed(completion) => {
                let (record, retention_ms) = (completion.record.encode(), milliseconds(completion.retention));
                self.writer.write(move |tables| ending.complete(tables, record, retention_ms)).await
            }
            End::Released => self.writer.write(move |tables| ending.release(tables)).await,
            End::Unknown => self.writer.write(move |tables| ending.end_as_unknown(tables)).await,
            End::Cancelled => self.writer.write(move |tables| ending.cancel(tables)).await,
        }
    }

    async fn look(&self, id: &RecordId) -> Result<Option<State>, StoreError> {
        let (id, now) = (*id, self.time.now_ms());
        let entry = self.read(move |database, now| live_entry(database, &id, now)).await?;
        entry.map(|entry| entry.state(&self.boot, now)).transpose().map_err(StoreError::Unreadable)
    }

    async fn sweep(&self, most: usize) -> Result<usize, StoreError> {
        let now = self.time.now_ms();
        self.writer.write(move |tables| tables.sweep(now, most)).await
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};

    use redb::StorageBackend;
    use redb::backends::InMemoryBackend;

    use super::*;
    use crate::server::Fingerprint;

    /// A disk whose syncs fail once it is told so, which no disk can be asked to do.
    #[derive(Debug)]
    struct Disk {
        memory: InMemoryBackend,
        broken: Arc<AtomicBool>,
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.memory.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.memory.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.memory.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            if self.broken.load(Ordering::SeqCst) {
                return Err(io::Error::other("no sync"));
            }
            self.memory.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.memory.write(offset, data)
        }
    }

    #[tokio::test]
    async fn a_claim_that_is_not_on_the_disk_is_not_won_and_nothing_is_stored_after_that() {
        const HOUR: Duration = Duration::from_secs(3600);
        let broken = Arc::new(AtomicBool::new(false));
        let disk = Disk { memory: InMemoryBackend::new(), broken: broken.clone() };
        let store = RedbStore::over(Database::builder().create_with_backend(disk).unwrap()).unwrap();
        let (before, after) = (RecordId::new("", "before"), RecordId::new("", "after"));
        let claim = |id| Claim::new(id, ClaimToken::new().unwrap(), Fingerprint::from_bytes([1; 32]), HOUR, HOUR);
        let held = claim(&before);
        assert!(matches!(store.claim(&held).await.unwrap(), Claimed::Won(())));

        broken.store(true, Ordering::SeqCst);
        let error = store.claim(&claim(&after)).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)) && error.to_string().contains("no sync"), "{error}");

        // The disk works again, and what the file holds is still not known.
        broken.store(false, Ordering::SeqCst);
        let error = store.claim(&claim(&after)).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        let error = store.finish(held.reference(), Some(()), &End::Released).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        assert!(matches!(store.look(&before).await.unwrap(), Some(State::Running { .. })));
        assert_eq!(store.look(&after).await.unwrap(), None);
    }
}
