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
use super::store::{Claim, ClaimToken, Claimed, Completed, Completion, RecordId, State, Store, StoreError};
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

    /// What is known of a key, read beside the writer.
    async fn read(&self, id: RecordId) -> Result<Option<Entry>, StoreError> {
        let (database, now) = (self.database.clone(), self.time.now_ms());
        let read = move || -> Result<Option<Entry>, Failed> {
            let entry = tables::read(&database, &id)?;
            Ok(entry.filter(|entry| entry.forget_ms > now))
        };
        let read = tokio::task::spawn_blocking(read).await;
        read.map_err(|error| StoreError::Unavailable(error.into()))?.map_err(Failed::into_store_error)
    }

    /// Changes the entry of a claim that is still `token`'s: one that has ended is not ended again, and a completion that is repeated
    /// is answered as the first was.
    async fn fenced(
        &self,
        id: RecordId,
        token: ClaimToken,
        completes: bool,
        change: impl FnOnce(Entry, u64) -> Option<Entry> + Send + 'static,
    ) -> Result<Completed, StoreError> {
        let (now, boot) = (self.time.now_ms(), self.boot);
        self.writer
            .write(move |tables| {
                let ours = |entry: &Entry| entry.token == *token.as_bytes() && entry.forget_ms > now;
                let Some(entry) = tables.get(&id)?.filter(ours) else { return Ok(Completed::Lost) };
                match entry.phase {
                    Phase::Running { .. } if entry.boot == boot => {}
                    Phase::Done(_) if completes => return Ok(Completed::Stored),
                    _ => return Ok(Completed::Lost),
                }
                tables.remove(&id, &entry)?;
                if let Some(changed) = change(entry, now) {
                    tables.put(&id, &changed)?;
                }
                Ok(Completed::Stored)
            })
            .await
    }
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
        if let Some(entry) = tables.get(&self.id)? {
            let live = entry.forget_ms > self.now;
            if live && !self.may_have(&entry)? {
                return Ok(Claimed::Known(entry.state(&self.boot, self.now)?));
            }
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
            retention_ms: self.retention_ms,
            forget_ms: until_ms.saturating_add(self.retention_ms),
        };
        tables.put(&self.id, &entry)?;
        Ok(Claimed::Won(()))
    }

    /// It is the same claim, repeated; or one that nobody knows the end of, of the same request, and it may be taken over.
    fn may_have(&self, entry: &Entry) -> Result<bool, Failed> {
        let same_claim = entry.token == self.token && entry.is_running(&self.boot);
        let unknown = matches!(entry.state(&self.boot, self.now)?, State::Unknown { .. });
        Ok(same_claim || (self.take_over && unknown && entry.fingerprint == self.fingerprint))
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
        // Most repeats find an end, and need no sync to be told.
        if let Some(entry) = self.read(claim.id).await?
            && !claim.may_have(&entry).map_err(Failed::into_store_error)?
        {
            return entry.state(&self.boot, claim.now).map(Claimed::Known).map_err(StoreError::Unreadable);
        }
        self.writer.write(move |tables| claim.make(tables)).await
    }

    async fn renew(&self, id: &RecordId, token: ClaimToken, lease: Duration) -> Result<bool, StoreError> {
        let (id, boot, now, lease_ms) = (*id, self.boot, self.time.now_ms(), milliseconds(lease));
        self.writer
            .write(move |tables| {
                let ours = |entry: &Entry| entry.token == *token.as_bytes() && entry.is_running(&boot);
                let Some(mut entry) = tables.get(&id)?.filter(ours) else { return Ok(false) };
                tables.remove(&id, &entry)?;
                let until_ms = now.saturating_add(lease_ms);
                entry.phase = Phase::Running { until_ms };
                entry.forget_ms = until_ms.saturating_add(entry.retention_ms);
                tables.put(&id, &entry)?;
                Ok(true)
            })
            .await
    }

    async fn complete(
        &self,
        id: &RecordId,
        token: ClaimToken,
        (): (),
        completion: Completion,
    ) -> Result<Completed, StoreError> {
        let retention_ms = milliseconds(completion.retention);
        let bytes = completion.record.encode();
        let change = move |entry: Entry, now: u64| {
            let forget_ms = now.saturating_add(retention_ms);
            Some(Entry { phase: Phase::Done(bytes), forget_ms, ..entry })
        };
        self.fenced(*id, token, true, change).await
    }

    async fn release(&self, id: &RecordId, token: ClaimToken, (): ()) -> Result<Completed, StoreError> {
        self.fenced(*id, token, false, |_, _| None).await
    }

    async fn abandon(&self, id: &RecordId, token: ClaimToken, _: Option<()>) -> Result<Completed, StoreError> {
        let change = |entry: Entry, now: u64| {
            let forget_ms = now.saturating_add(entry.retention_ms);
            Some(Entry { phase: Phase::Unknown, forget_ms, ..entry })
        };
        self.fenced(*id, token, false, change).await
    }

    async fn look(&self, id: &RecordId) -> Result<Option<State>, StoreError> {
        let now = self.time.now_ms();
        let entry = self.read(*id).await?;
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
        let error = store.release(&before, held.token, ()).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        assert!(matches!(store.look(&before).await.unwrap(), Some(State::Running { .. })));
        assert_eq!(store.look(&after).await.unwrap(), None);
    }
}
