//! What the file holds: the records by their identity, and an index of when each may be forgotten.

use std::time::Duration;

use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};

use crate::server::record::{self, Record, RecordError};
use crate::server::store::{Fingerprint, RecordId, State, StoreError};

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("steadfast_records");
/// When each is forgotten: big-endian milliseconds, then the identity, so that the first entries are the next to go.
const EXPIRY: TableDefinition<'_, &[u8], ()> = TableDefinition::new("steadfast_expiry");

/// A transaction whose commit syncs twice: first what it has written, then that it is the current
/// one. With one sync, redb cannot tell a commit that was damaged later from one that a crash cut
/// short, and forgets either.
pub(super) fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

/// A new file gets its tables, so that a reader finds them before the first write.
pub(super) fn create(database: &Database) -> Result<(), redb::Error> {
    let transaction = begin(database)?;
    Tables::open(&transaction)?;
    Ok(transaction.commit()?)
}

/// Reads one entry beside the writer, as the last transaction left it.
pub(super) fn read(database: &Database, id: &RecordId) -> Result<Option<Entry>, Failed> {
    let records = database.begin_read()?.open_table(RECORDS)?;
    let bytes = records.get(id.as_bytes().as_slice())?;
    Ok(bytes.map(|bytes| Entry::decode(bytes.value())).transpose()?)
}

/// What is kept of a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) fingerprint: [u8; 32],
    pub(super) token: [u8; 16],
    pub(super) boot: [u8; 16],
    pub(super) phase: Phase,
    pub(super) retention_ms: u64,
    pub(super) forget_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Phase {
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

    pub(super) fn is_running(&self, boot: &[u8; 16]) -> bool {
        matches!(self.phase, Phase::Running { .. }) && self.boot == *boot
    }

    pub(super) fn state(&self, boot: &[u8; 16], now: u64) -> Result<State, RecordError> {
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

/// Why a piece of work did not succeed.
pub(super) enum Failed {
    /// The transaction is of no use any more, for anybody in it.
    Transaction(redb::Error),
    /// This call alone.
    Call(StoreError),
}

impl Failed {
    pub(super) fn into_store_error(self) -> StoreError {
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
pub(super) struct Tables<'a> {
    records: Table<'a, &'static [u8], &'static [u8]>,
    expiry: Table<'a, &'static [u8], ()>,
}

fn expiry_key(id: &RecordId, forget_ms: u64) -> Vec<u8> {
    [forget_ms.to_be_bytes().as_slice(), id.as_bytes()].concat()
}

impl<'a> Tables<'a> {
    pub(super) fn open(transaction: &'a WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self { records: transaction.open_table(RECORDS)?, expiry: transaction.open_table(EXPIRY)? })
    }

    /// How many there are, those that may be forgotten included.
    pub(super) fn count(&self) -> Result<u64, Failed> {
        Ok(self.records.len()?)
    }

    pub(super) fn get(&self, id: &RecordId) -> Result<Option<Entry>, Failed> {
        let bytes = self.records.get(id.as_bytes().as_slice())?;
        Ok(bytes.map(|bytes| Entry::decode(bytes.value())).transpose()?)
    }

    pub(super) fn put(&mut self, id: &RecordId, entry: &Entry) -> Result<(), Failed> {
        self.records.insert(id.as_bytes().as_slice(), record::seal(entry).as_slice())?;
        self.expiry.insert(expiry_key(id, entry.forget_ms).as_slice(), ())?;
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &RecordId, entry: &Entry) -> Result<(), Failed> {
        self.records.remove(id.as_bytes().as_slice())?;
        self.expiry.remove(expiry_key(id, entry.forget_ms).as_slice())?;
        Ok(())
    }

    pub(super) fn sweep(&mut self, now: u64, most: usize) -> Result<usize, Failed> {
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
