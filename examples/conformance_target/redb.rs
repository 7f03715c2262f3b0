//! A store in a file that can be closed, damaged and reopened while the server runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redb::{Database, ReadableTable, TableDefinition};
use steadfast_redb::RedbStore;
use steadfast_server::{Claim, ClaimOutcome, ClaimRef, End, FinishOutcome, RecordId, RecordState, Store, StoreError};

use crate::Result;
use crate::damage::DAMAGE;
use crate::handlers::pause;

type Stored<T> = std::result::Result<T, StoreError>;

#[derive(Clone)]
pub(crate) struct ReopenedStore {
    path: PathBuf,
    max_records: u64,
    /// `None` while the file is being damaged.
    current: Arc<RwLock<Option<Arc<RedbStore>>>>,
}

impl ReopenedStore {
    pub(crate) fn open(path: PathBuf, max_records: u64) -> Result<Self> {
        let store = Self { path, max_records, current: Arc::default() };
        store.reopen()?;
        Ok(store)
    }

    fn reopen(&self) -> Result<()> {
        let opened = RedbStore::open(&self.path)?.max_records(self.max_records);
        self.replace(Some(Arc::new(opened)));
        Ok(())
    }

    fn replace(&self, store: Option<Arc<RedbStore>>) -> Option<Arc<RedbStore>> {
        std::mem::replace(&mut *self.current.write().unwrap_or_else(PoisonError::into_inner), store)
    }

    fn current(&self) -> Stored<Arc<RedbStore>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        current.ok_or_else(|| StoreError::Unavailable("the file is being damaged".into()))
    }

    /// Overwrites every completed record with bytes that do not decode.
    pub(crate) async fn damage_records(&self) -> Result<()> {
        let mut store = self.replace(None);
        // Calls in progress also hold the store.
        while let Some(shared) = store {
            store = Arc::try_unwrap(shared).err();
            pause(1).await;
        }
        let damaged = damage(&self.path);
        self.reopen()?;
        damaged
    }
}

fn damage(path: &Path) -> Result<()> {
    const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("steadfast_records");
    /// Offset of the operation's state: after version, checksum, fingerprint, token and the
    /// process's name.
    const PHASE: usize = 1 + 8 + 32 + 16 + 16;
    const DONE: u8 = 1;
    let database = Database::open(path)?;
    let transaction = database.begin_write()?;
    {
        let mut records = transaction.open_table(RECORDS)?;
        let mut completed = Vec::new();
        for record in records.iter()? {
            let (id, bytes) = record?;
            if bytes.value().get(PHASE) == Some(&DONE) {
                completed.push(id.value().to_vec());
            }
        }
        for id in completed {
            records.insert(id.as_slice(), DAMAGE)?;
        }
    }
    Ok(transaction.commit()?)
}

impl Store for ReopenedStore {
    type Session = ();

    async fn claim(&self, claim: &Claim<'_>) -> Stored<ClaimOutcome<()>> {
        self.current()?.claim(claim).await
    }

    async fn renew(&self, claim: ClaimRef, lease: Duration) -> Stored<bool> {
        self.current()?.renew(claim, lease).await
    }

    async fn finish(&self, claim: ClaimRef, session: Option<()>, end: &End) -> Stored<FinishOutcome> {
        self.current()?.finish(claim, session, end).await
    }

    async fn get(&self, id: &RecordId) -> Stored<Option<RecordState>> {
        self.current()?.get(id).await
    }

    async fn purge_expired(&self, most: usize) -> Stored<usize> {
        self.current()?.purge_expired(most).await
    }
}
