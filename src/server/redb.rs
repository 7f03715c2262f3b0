//! The embedded durable store: one file, one process, nothing to operate.
//!
//! A record must be on the disk before anybody acts on it: the claim before the handler starts, the end before the answer leaves. A
//! sync per call would allow a few hundred calls a second, so one thread writes for all: whatever waits is put into one transaction
//! and synced once, and nobody is answered before that. [redb](https://docs.rs/redb) keeps the file whole through `kill -9` and power
//! loss.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::record::{self, Record, RecordError};
use super::store::{
    Claim, ClaimToken, Claimed, Completed, Completion, Fingerprint, RecordId, State, Store, StoreError,
};
use crate::clock::{Steady, milliseconds};

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("steadfast_records");
/// When each is forgotten: big-endian milliseconds, then the identity, so that the first entries are the next to go.
const EXPIRY: TableDefinition<'_, &[u8], ()> = TableDefinition::new("steadfast_expiry");

/// The most calls that share one sync.
const BATCH: usize = 256;
/// The most calls that wait for the writer before the next caller is held back.
const QUEUE: usize = 1024;
/// A claim removes so many expired records on its way.
const SWEEP: usize = 4;

/// Records in a file.
///
/// The file belongs to one process at a time. A process that dies leaves its claims behind; the next one that opens the file knows
/// that their owners are gone, so they are [unknown](State::Unknown) at once, without waiting for their leases.
///
/// Retention is counted by the wall clock at opening plus the time that has passed since, so jumps of the clock while the process runs
/// change nothing. A clock that was set back between two runs makes records live longer; one that was set forward, shorter.
pub struct RedbStore {
    database: Arc<Database>,
    writer: Option<JoinHandle<()>>,
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
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
    /// Opens the file, or creates it.
    ///
    /// # Errors
    ///
    /// It cannot be read or written, another process has it, or it is no redb file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::over(Database::create(path).map_err(|error| OpenError(error.into()))?)
    }

    /// The most records, running claims included; a claim beyond it is [`StoreError::Full`]. Default: none.
    #[must_use]
    pub fn max_records(mut self, records: u64) -> Self {
        self.max_records = records;
        self
    }

    fn over(database: Database) -> Result<Self, OpenError> {
        let boot = ClaimToken::new().map_err(|error| OpenError(error.into()))?;
        create_tables(&database).map_err(|error| OpenError(error.into()))?;
        let database = Arc::new(database);
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let writing = database.clone();
        let writer =
            std::thread::Builder::new().name("steadfast-redb".to_owned()).spawn(move || write_all(&writing, waiting));
        let writer = writer.map_err(|error| OpenError(error.into()))?;
        Ok(Self {
            database,
            writer: Some(writer),
            jobs: Some(jobs),
            time: Steady::start(),
            boot: *boot.as_bytes(),
            max_records: u64::MAX,
        })
    }

    /// Has the writer do `work` in its next transaction; the result arrives once that is on the disk.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tables<'_>) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, result) = oneshot::channel();
        let task = Task { work: Some(work), value: None, reply };
        let gone = || StoreError::Unavailable("the writer has ended".into());
        self.jobs.as_ref().ok_or_else(gone)?.send(Box::new(task)).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    /// What is known of a key, read beside the writer.
    async fn read(&self, id: RecordId) -> Result<Option<Entry>, StoreError> {
        let (database, now) = (self.database.clone(), self.time.now_ms());
        let read = move || -> Result<Option<Entry>, Failed> {
            let transaction = database.begin_read()?;
            let records = transaction.open_table(RECORDS)?;
            let entry = records.get(id.as_bytes().as_slice())?.map(|bytes| Entry::decode(bytes.value())).transpose()?;
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
        self.write(move |tables| {
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

impl Drop for RedbStore {
    /// Waits for the writer, so that the file is closed when this returns.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // A writer that has panicked has been reported by the panic hook.
            let _panicked = writer.join();
        }
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").field("max_records", &self.max_records).finish_non_exhaustive()
    }
}

/// What is kept of a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    fingerprint: [u8; 32],
    token: [u8; 16],
    boot: [u8; 16],
    phase: Phase,
    retention_ms: u64,
    forget_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Phase {
    Running {
        until_ms: u64,
    },
    /// [`Record::encode`]'s bytes.
    Done(Vec<u8>),
    Unknown,
}

impl Entry {
    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        record::unseal(bytes)
    }

    fn is_running(&self, boot: &[u8; 16]) -> bool {
        matches!(self.phase, Phase::Running { .. }) && self.boot == *boot
    }

    fn state(&self, boot: &[u8; 16], now: u64) -> Result<State, RecordError> {
        let fingerprint = Fingerprint::from_bytes(self.fingerprint);
        Ok(match &self.phase {
            Phase::Running { until_ms } if self.is_running(boot) && *until_ms > now => {
                State::running(fingerprint, Duration::from_millis(until_ms - now))
            }
            Phase::Running { .. } | Phase::Unknown => State::unknown(fingerprint),
            Phase::Done(bytes) => State::done(fingerprint, Record::decode(bytes)?),
        })
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
        } else if tables.records.len()? >= self.max_records {
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
        self.write(move |tables| claim.make(tables)).await
    }

    async fn renew(&self, id: &RecordId, token: ClaimToken, lease: Duration) -> Result<bool, StoreError> {
        let (id, boot, now, lease_ms) = (*id, self.boot, self.time.now_ms(), milliseconds(lease));
        self.write(move |tables| {
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
        self.write(move |tables| tables.sweep(now, most)).await
    }
}

/// Why a piece of work did not succeed.
enum Failed {
    /// The transaction is of no use any more, for anybody in it.
    Transaction(redb::Error),
    /// This call alone.
    Call(StoreError),
}

impl Failed {
    fn into_store_error(self) -> StoreError {
        match self {
            Self::Transaction(error) => StoreError::Unavailable(error.into()),
            Self::Call(error) => error,
        }
    }
}

impl<E: Into<redb::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Transaction(error.into())
    }
}

impl From<RecordError> for Failed {
    fn from(error: RecordError) -> Self {
        Self::Call(StoreError::Unreadable(error))
    }
}

/// The two tables of one write transaction.
struct Tables<'a> {
    records: Table<'a, &'static [u8], &'static [u8]>,
    expiry: Table<'a, &'static [u8], ()>,
}

fn expiry_key(id: &RecordId, forget_ms: u64) -> Vec<u8> {
    [forget_ms.to_be_bytes().as_slice(), id.as_bytes()].concat()
}

impl Tables<'_> {
    fn get(&self, id: &RecordId) -> Result<Option<Entry>, Failed> {
        let bytes = self.records.get(id.as_bytes().as_slice())?;
        Ok(bytes.map(|bytes| Entry::decode(bytes.value())).transpose()?)
    }

    fn put(&mut self, id: &RecordId, entry: &Entry) -> Result<(), Failed> {
        self.records.insert(id.as_bytes().as_slice(), record::seal(entry).as_slice())?;
        self.expiry.insert(expiry_key(id, entry.forget_ms).as_slice(), ())?;
        Ok(())
    }

    fn remove(&mut self, id: &RecordId, entry: &Entry) -> Result<(), Failed> {
        self.records.remove(id.as_bytes().as_slice())?;
        self.expiry.remove(expiry_key(id, entry.forget_ms).as_slice())?;
        Ok(())
    }

    fn sweep(&mut self, now: u64, most: usize) -> Result<usize, Failed> {
        let mut swept = 0;
        while swept < most {
            let Some(key) = self.expiry.first()?.map(|(key, _)| key.value().to_vec()) else { break };
            let Some((forget_ms, id)) = key.split_first_chunk::<8>() else { break };
            if u64::from_be_bytes(*forget_ms) > now {
                break;
            }
            self.records.remove(id)?;
            self.expiry.remove(key.as_slice())?;
            swept += 1;
        }
        Ok(swept)
    }
}

fn create_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(RECORDS)?;
    transaction.open_table(EXPIRY)?;
    Ok(transaction.commit()?)
}

/// A call on its way to the writer and back.
trait Job: Send {
    /// Does the work; an error spoils the transaction.
    fn run(&mut self, tables: &mut Tables<'_>) -> Result<(), redb::Error>;

    /// Tells the caller, once it is known what became of the transaction.
    fn answer(self: Box<Self>, committed: &Result<(), Arc<redb::Error>>);
}

struct Task<F, T> {
    work: Option<F>,
    value: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnOnce(&mut Tables<'_>) -> Result<T, Failed> + Send> Job for Task<F, T> {
    fn run(&mut self, tables: &mut Tables<'_>) -> Result<(), redb::Error> {
        let Some(work) = self.work.take() else { return Ok(()) };
        match work(tables) {
            Ok(value) => self.value = Some(Ok(value)),
            Err(Failed::Call(error)) => self.value = Some(Err(error)),
            Err(Failed::Transaction(error)) => return Err(error),
        }
        Ok(())
    }

    fn answer(self: Box<Self>, committed: &Result<(), Arc<redb::Error>>) {
        let unavailable = |error: Arc<redb::Error>| StoreError::Unavailable(error.to_string().into());
        let answer = match (committed, self.value) {
            (Ok(()), Some(value)) => value,
            (Ok(()), None) => Err(StoreError::Unavailable("the call was not made".into())),
            (Err(error), _) => Err(unavailable(error.clone())),
        };
        // Whoever asked may have gone; what was written stays, and its token can ask again.
        let _gone = self.reply.send(answer);
    }
}

/// The writer: one transaction after another, each for all that wait, until the store is dropped.
fn write_all(database: &Database, mut waiting: mpsc::Receiver<Box<dyn Job>>) {
    while let Some(first) = waiting.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = waiting.try_recv()
        {
            batch.push(next);
        }
        let committed = commit(database, &mut batch).map_err(Arc::new);
        for job in batch {
            job.answer(&committed);
        }
    }
}

fn commit(database: &Database, batch: &mut [Box<dyn Job>]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut tables = Tables { records: transaction.open_table(RECORDS)?, expiry: transaction.open_table(EXPIRY)? };
        for job in batch {
            job.run(&mut tables)?;
        }
    }
    Ok(transaction.commit()?)
}
