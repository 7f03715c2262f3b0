//! The content of the file: the records by their identity, and an index of their expiry.

use std::time::Duration;

use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition, TableHandle,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};
use steadfast_core::milliseconds;
use steadfast_server::{
    ClaimRef, Fingerprint, IDENTITY_VERSION, Record, RecordError, RecordId, RecordState, TOMBSTONE, seal, unseal,
};

use super::failure::{Failed, Failure, unreadable};
use super::writer::Layout;

pub(super) const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("steadfast_records");
/// The expiry of each record: big-endian milliseconds, then the identity. So the first entries
/// expire first.
const EXPIRY: TableDefinition<'_, &[u8], ()> = TableDefinition::new("steadfast_expiry");
/// Released and cancelled claims: identity and token, with the time in milliseconds until which the
/// tombstone is kept.
const TOMBSTONES: TableDefinition<'_, &[u8], u64> = TableDefinition::new("steadfast_tombstones");
/// The expiry of each tombstone, as in [`EXPIRY`].
const TOMBSTONE_EXPIRY: TableDefinition<'_, &[u8], ()> = TableDefinition::new("steadfast_tombstone_expiry");

/// Facts about the file as a whole.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("steadfast_meta");
/// Set when redb has repaired the database and nobody has accepted the repair.
const REPAIRED: &str = "repaired";
/// The identity version of the records, big-endian.
const IDENTITY: &str = "identity_version";

/// Number of expired records that a claim removes at a time when it finds no room.
const ROOM: usize = 16;

/// Begins a transaction whose commit syncs twice: first the data, then the switch to the new
/// commit. With one sync, redb cannot tell a commit that was damaged later from one that a crash
/// cut short, and drops both.
///
/// # Errors
///
/// The database has failed.
pub fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

/// The facts about a file as a whole.
pub(super) struct Meta {
    /// Whether redb has repaired the file and nobody has accepted the repair.
    pub(super) is_repaired: bool,
    /// The identity version of the records.
    pub(super) identity: Option<u32>,
}

/// Creates missing tables, so that a reader finds them before the first write. A file without
/// records gets the current identity version. `accept` accepts a repair by redb.
pub(super) fn create(database: &Database, accept: bool) -> Result<Meta, Failed> {
    let transaction = begin(database)?;
    if transaction.list_tables()?.any(|table| table.name().starts_with("steadfast_outbox_")) {
        return Err(Failure::Outbox.into());
    }
    let is_empty = Tables::open(&transaction)?.records.is_empty()?;
    let meta = {
        let mut meta = transaction.open_table(META)?;
        if accept {
            meta.remove(REPAIRED)?;
        }
        if is_empty && meta.get(IDENTITY)?.is_none() {
            meta.insert(IDENTITY, IDENTITY_VERSION.to_be_bytes().as_slice())?;
        }
        Meta { is_repaired: meta.get(REPAIRED)?.is_some(), identity: identity(&meta)? }
    };
    transaction.commit()?;
    Ok(meta)
}

/// Returns the identity version of the records, if the file has one.
pub(super) fn identity(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Option<u32>, redb::Error> {
    let bytes = meta.get(IDENTITY)?;
    Ok(bytes.and_then(|bytes| bytes.value().try_into().ok()).map(u32::from_be_bytes))
}

/// Notes that redb has repaired the database, so that later openings refuse it too.
pub(super) fn mark_repaired(database: &Database) -> Result<(), Failed> {
    let transaction = begin(database)?;
    transaction.open_table(META)?.insert(REPAIRED, [].as_slice())?;
    Ok(transaction.commit()?)
}

/// Adds intact records from a damaged file. Of two records under one key, the one that is further
/// along stays.
pub(super) fn adopt(database: &Database, records: Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), Failed> {
    let transaction = begin(database)?;
    {
        let mut tables = Tables::open(&transaction)?;
        for (id, bytes) in records {
            let (Ok(id), Ok(entry)) = (<[u8; 32]>::try_from(id), Entry::decode(&bytes)) else { continue };
            match tables.get(&id)? {
                Some(there) if there.phase.rank() >= entry.phase.rank() => continue,
                Some(there) => tables.remove(&id, &there)?,
                None => {}
            }
            tables.put(&id, &entry)?;
        }
    }
    Ok(transaction.commit()?)
}

pub(super) fn count(database: &Database) -> Result<u64, Failed> {
    Ok(database.begin_read()?.open_table(RECORDS)?.len()?)
}

/// Restores the claims of this boot that held at `since_ms`, for the rest of their leases. Their
/// handlers were running, but the file could not be written to renew them.
fn extend_leases(database: &Database, boot: &[u8; 16], since_ms: u64, now_ms: u64) -> Result<(), Failed> {
    let transaction = begin(database)?;
    {
        let mut tables = Tables::open(&transaction)?;
        for (id, entry) in tables.held(boot, since_ms)? {
            let Phase::Running { until_ms } = entry.phase else { continue };
            tables.remove(&id, &entry)?;
            tables.put(&id, &entry.renewed(now_ms, until_ms - since_ms))?;
        }
    }
    Ok(transaction.commit()?)
}

/// Reads one entry beside the writer, as of the last transaction.
pub(super) fn read(database: &Database, id: &RecordId) -> Result<Option<Entry>, Failed> {
    let records = database.begin_read()?.open_table(RECORDS)?;
    let bytes = records.get(id.as_bytes().as_slice())?;
    bytes.map(|bytes| Entry::decode(bytes.value())).transpose().map_err(unreadable)
}

/// Returns whether this claim has a tombstone, as of the last transaction.
pub(super) fn has_tombstone(database: &Database, claim: ClaimRef, now: u64) -> Result<bool, Failed> {
    let tombstones = database.begin_read()?.open_table(TOMBSTONES)?;
    Ok(tombstones.get(tombstone_key(claim).as_slice())?.is_some_and(|until| until.value() > now))
}

/// The stored entry of a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) fingerprint: [u8; 32],
    pub(super) token: [u8; 16],
    pub(super) boot: [u8; 16],
    pub(super) phase: Phase,
    /// Whether the operation may have run before this claim began.
    pub(super) took_over: bool,
    pub(super) retention_ms: u64,
    pub(super) forget_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Phase {
    Running {
        until_ms: u64,
    },
    /// The bytes of [`Record::encode`].
    Done(Vec<u8>),
    Unknown,
}

impl Phase {
    /// Ranks the phases by how much is known of the operation's end.
    fn rank(&self) -> u8 {
        match self {
            Self::Running { .. } => 0,
            Self::Unknown => 1,
            Self::Done(_) => 2,
        }
    }
}

impl Entry {
    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        unseal(bytes)
    }

    /// Returns the same claim with a lease that begins now.
    pub(super) fn renewed(self, now_ms: u64, lease_ms: u64) -> Self {
        let until_ms = now_ms.saturating_add(lease_ms);
        let forget_ms = until_ms.saturating_add(self.retention_ms);
        Self { phase: Phase::Running { until_ms }, forget_ms, ..self }
    }

    /// Returns the entry with an unknown end.
    pub(super) fn into_unknown(self, now_ms: u64) -> Self {
        let forget_ms = now_ms.saturating_add(self.retention_ms);
        Self { phase: Phase::Unknown, forget_ms, ..self }
    }

    /// Returns whether this process can still renew and end the claim.
    pub(super) fn is_running(&self, boot: &[u8; 16]) -> bool {
        matches!(self.phase, Phase::Running { .. }) && self.boot == *boot
    }

    pub(super) fn state(&self, boot: &[u8; 16], now: u64) -> Result<RecordState, RecordError> {
        let fingerprint = Fingerprint::from_bytes(self.fingerprint);
        Ok(match &self.phase {
            Phase::Running { until_ms } if self.is_running(boot) && *until_ms > now => {
                RecordState::in_progress(fingerprint, Duration::from_millis(until_ms - now))
            }
            Phase::Running { .. } | Phase::Unknown => RecordState::unknown(fingerprint),
            Phase::Done(bytes) => RecordState::completed(fingerprint, Record::decode(bytes)?),
        })
    }
}

/// The layout of a database with records. `boot` marks the claims of this store, which outlive the
/// database.
pub(super) struct Records {
    pub(super) boot: [u8; 16],
}

impl Layout for Records {
    type Tables<'a> = Tables<'a>;

    fn open<'a>(&self, transaction: &'a WriteTransaction) -> Result<Tables<'a>, Failed> {
        Ok(Tables::open(transaction)?)
    }

    fn close(&self, _: Tables<'_>) -> Result<(), Failed> {
        Ok(())
    }

    fn reopened(&self, database: &Database, since_ms: u64, now_ms: u64) -> Result<(), Failed> {
        extend_leases(database, &self.boot, since_ms, now_ms)
    }
}

/// The tables of one write transaction.
pub(super) struct Tables<'a> {
    records: Table<'a, &'static [u8], &'static [u8]>,
    expiry: Table<'a, &'static [u8], ()>,
    tombstones: Table<'a, &'static [u8], u64>,
    tombstone_expiry: Table<'a, &'static [u8], ()>,
}

/// Builds an index key. Big-endian, so that the next entry to expire comes first.
fn expiry_key(name: &[u8], forget_ms: u64) -> Vec<u8> {
    [forget_ms.to_be_bytes().as_slice(), name].concat()
}

/// Builds the key of a claim's tombstone.
fn tombstone_key(claim: ClaimRef) -> Vec<u8> {
    [claim.id.as_bytes().as_slice(), claim.token.as_bytes()].concat()
}

/// Removes and returns the first name of an expiry index, if it has expired.
fn next_expired(expiry: &mut Table<'_, &'static [u8], ()>, now: u64) -> Result<Option<Vec<u8>>, Failed> {
    let Some(key) = expiry.first()?.map(|(key, _)| key.value().to_vec()) else { return Ok(None) };
    let Some((forget_ms, name)) = key.split_first_chunk::<8>() else { return Ok(None) };
    if u64::from_be_bytes(*forget_ms) > now {
        return Ok(None);
    }
    expiry.remove(key.as_slice())?;
    Ok(Some(name.to_vec()))
}

impl<'a> Tables<'a> {
    pub(super) fn open(transaction: &'a WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            expiry: transaction.open_table(EXPIRY)?,
            tombstones: transaction.open_table(TOMBSTONES)?,
            tombstone_expiry: transaction.open_table(TOMBSTONE_EXPIRY)?,
        })
    }

    /// Counts records and tombstones, expired ones included.
    fn count(&self) -> Result<u64, Failed> {
        Ok(self.records.len()?.saturating_add(self.tombstones.len()?))
    }

    /// Keeps a tombstone, so that the token can never claim the key again.
    pub(super) fn bury(&mut self, claim: ClaimRef, now: u64) -> Result<(), Failed> {
        let (name, until) = (tombstone_key(claim), now.saturating_add(milliseconds(TOMBSTONE)));
        if let Some(before) = self.tombstones.insert(name.as_slice(), until)?.map(|before| before.value()) {
            self.tombstone_expiry.remove(expiry_key(&name, before).as_slice())?;
        }
        self.tombstone_expiry.insert(expiry_key(&name, until).as_slice(), ())?;
        Ok(())
    }

    pub(super) fn is_buried(&self, claim: ClaimRef, now: u64) -> Result<bool, Failed> {
        Ok(self.tombstones.get(tombstone_key(claim).as_slice())?.is_some_and(|until| until.value() > now))
    }

    /// Returns whether one more record fits into `most`. Removes expired records first.
    pub(super) fn has_room(&mut self, most: u64, now: u64) -> Result<bool, Failed> {
        loop {
            let before = self.count()?;
            if before < most {
                return Ok(true);
            }
            self.sweep(now, ROOM)?;
            if self.count()? == before {
                return Ok(false);
            }
        }
    }

    pub(super) fn get(&self, id: &[u8; 32]) -> Result<Option<Entry>, Failed> {
        let bytes = self.records.get(id.as_slice())?;
        bytes.map(|bytes| Entry::decode(bytes.value())).transpose().map_err(unreadable)
    }

    pub(super) fn put(&mut self, id: &[u8; 32], entry: &Entry) -> Result<(), Failed> {
        self.records.insert(id.as_slice(), seal(entry).as_slice())?;
        self.expiry.insert(expiry_key(id, entry.forget_ms).as_slice(), ())?;
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &[u8; 32], entry: &Entry) -> Result<(), Failed> {
        self.records.remove(id.as_slice())?;
        self.expiry.remove(expiry_key(id, entry.forget_ms).as_slice())?;
        Ok(())
    }

    /// Returns the claims of this boot that held at `since_ms`. Reads all records.
    fn held(&self, boot: &[u8; 16], since_ms: u64) -> Result<Vec<([u8; 32], Entry)>, Failed> {
        let mut held = Vec::new();
        for record in self.records.iter()? {
            let (id, bytes) = record?;
            // An unreadable record belongs to no claim.
            let (Ok(id), Ok(entry)) = (<[u8; 32]>::try_from(id.value()), Entry::decode(bytes.value())) else {
                continue;
            };
            if entry.is_running(boot) && matches!(entry.phase, Phase::Running { until_ms } if until_ms > since_ms) {
                held.push((id, entry));
            }
        }
        Ok(held)
    }

    /// Removes up to `most` expired records and as many tombstones. Returns the number of records.
    pub(super) fn sweep(&mut self, now: u64, most: usize) -> Result<usize, Failed> {
        for _ in 0..most {
            let Some(claim) = next_expired(&mut self.tombstone_expiry, now)? else { break };
            self.tombstones.remove(claim.as_slice())?;
        }
        for swept in 0..most {
            let Some(id) = next_expired(&mut self.expiry, now)? else { return Ok(swept) };
            self.records.remove(id.as_slice())?;
        }
        Ok(most)
    }
}
