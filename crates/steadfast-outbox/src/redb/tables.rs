//! The content of the file: the entries, and what finds them by name, by due time and by sweep time.

use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction,
};
use steadfast_redb::engine::{Failed, Layout};

use crate::change::{Change, Refusal, Terms};
use crate::clock::{HighWater, Now};
use crate::codec;
use crate::entry::Entry;
use crate::id::OperationId;
use crate::rules::{self, NewEntry};
use crate::store::{Applied, OutboxStoreError, Submitted, Usage};

/// The entries by their identifiers.
pub(super) const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("steadfast_outbox_entries");
pub(super) const NAMES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("steadfast_outbox_names");
/// When each entry is due: big-endian milliseconds, then the identifier. The value is its origin.
pub(super) const DUE: TableDefinition<'_, &[u8], &str> = TableDefinition::new("steadfast_outbox_due");
/// When each entry can be swept, as in [`DUE`].
const SWEEP: TableDefinition<'_, &[u8], ()> = TableDefinition::new("steadfast_outbox_sweep");
/// Facts about the file as a whole.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("steadfast_outbox_meta");

/// The high-water mark of the clock.
const CLOCK: &str = "clock";
/// The size of all entries, big-endian.
const BYTES: &str = "bytes";

/// Number of entries that a submission sweeps when it finds no room.
const ROOM: usize = 16;

/// Returns the time of the wall clock, in milliseconds since the Unix epoch.
pub(super) type Wall = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The clock of an open file. Readers move it on too: if only writers did, the time would stand still
/// after the wall clock was set back, and nothing would ever be due.
#[derive(Clone)]
pub(super) struct FileClock {
    wall: Wall,
    high_water: Arc<Mutex<HighWater>>,
}

impl FileClock {
    pub(super) fn new(wall: Wall, high_water: HighWater) -> Self {
        Self { wall, high_water: Arc::new(Mutex::new(high_water)) }
    }

    /// Returns the time, and the mark that remembers it.
    pub(super) fn tick(&self) -> (Now, HighWater) {
        let mut high_water = self.high_water.lock().unwrap_or_else(PoisonError::into_inner);
        let now = high_water.tick((self.wall)());
        (now, *high_water)
    }
}

/// A call that has failed, and not the database.
pub(super) type Called<T> = Result<Result<T, OutboxStoreError>, Failed>;

/// The layout of an outbox.
pub(super) struct Entries {
    pub(super) clock: FileClock,
}

impl Layout for Entries {
    type Tables<'a> = Tables<'a>;

    fn open<'a>(&self, transaction: &'a WriteTransaction) -> Result<Tables<'a>, Failed> {
        let meta = transaction.open_table(META)?;
        let (now, clock) = self.clock.tick();
        let bytes = bytes(&meta)?;
        Ok(Tables {
            entries: transaction.open_table(ENTRIES)?,
            names: transaction.open_table(NAMES)?,
            due: transaction.open_table(DUE)?,
            sweep: transaction.open_table(SWEEP)?,
            meta,
            clock,
            now,
            bytes,
        })
    }

    fn close(&self, mut tables: Tables<'_>) -> Result<(), Failed> {
        tables.keep_size()?;
        let encoded = postcard::to_stdvec(&tables.clock);
        let clock = encoded.map_err(|_| redb::Error::Corrupted("the clock of the outbox".to_owned()))?;
        tables.meta.insert(CLOCK, clock.as_slice())?;
        Ok(())
    }

    fn reopened(&self, _: &Database, _: u64, _: u64) -> Result<(), Failed> {
        // The workers of this process still have their claims, and their fences tell who is late.
        Ok(())
    }
}

/// Reads the high-water mark. A new file has none.
pub(super) fn clock(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<HighWater, redb::Error> {
    let Some(bytes) = meta.get(CLOCK)? else { return Ok(HighWater::default()) };
    // Without it an old key could pass for a young one.
    postcard::from_bytes(bytes.value()).map_err(|_| redb::Error::Corrupted("the clock of the outbox".to_owned()))
}

fn bytes(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<u64, redb::Error> {
    let bytes = meta.get(BYTES)?;
    Ok(bytes.and_then(|bytes| bytes.value().try_into().ok()).map_or(0, u64::from_be_bytes))
}

/// The tables of one write transaction, and its time.
pub(super) struct Tables<'a> {
    pub(super) entries: Table<'a, &'static [u8], &'static [u8]>,
    pub(super) names: Table<'a, &'static str, &'static [u8]>,
    pub(super) due: Table<'a, &'static [u8], &'static str>,
    pub(super) sweep: Table<'a, &'static [u8], ()>,
    meta: Table<'a, &'static str, &'static [u8]>,
    clock: HighWater,
    now: Now,
    pub(super) bytes: u64,
}

/// How much a store may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

pub(super) fn index_key(at_ms: u64, id: OperationId) -> Vec<u8> {
    [at_ms.to_be_bytes().as_slice(), id.as_uuid().as_bytes()].concat()
}

fn split(key: &[u8]) -> Option<(u64, OperationId)> {
    let (at, id) = key.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*at), to_id(id)?))
}

pub(super) fn to_id(bytes: &[u8]) -> Option<OperationId> {
    Some(steadfast::uuid::Uuid::from_bytes(bytes.try_into().ok()?).into())
}

impl Tables<'_> {
    fn get(&self, id: OperationId) -> Called<Option<Entry>> {
        get(&self.entries, id)
    }

    pub(super) fn has_clock(&self) -> Result<bool, Failed> {
        Ok(self.meta.get(CLOCK)?.is_some())
    }

    /// Writes down the size of all entries.
    pub(super) fn keep_size(&mut self) -> Result<(), Failed> {
        self.meta.insert(BYTES, self.bytes.to_be_bytes().as_slice())?;
        Ok(())
    }

    /// Writes an entry in place of `before`, with everything that finds it.
    pub(super) fn put(&mut self, before: Option<&Entry>, entry: &Entry) -> Called<()> {
        let encoded = match codec::encode(entry) {
            Ok(encoded) => encoded,
            Err(error) => return Ok(Err(error.into())),
        };
        let id = entry.id.as_uuid().as_bytes().as_slice();
        let size = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let replaced = self.entries.insert(id, encoded.as_slice())?.map(|old| size(old.value()));
        self.bytes = self.bytes.saturating_sub(replaced.unwrap_or_default()).saturating_add(size(&encoded));
        let (old_due, old_sweep) = before.map_or((None, None), |before| (before.due_ms(), before.sweep_ms()));
        if old_due != entry.due_ms() {
            if let Some(at) = old_due {
                self.due.remove(index_key(at, entry.id).as_slice())?;
            }
            if let Some(at) = entry.due_ms() {
                self.due.insert(index_key(at, entry.id).as_slice(), entry.request.origin().as_str())?;
            }
        }
        if old_sweep != entry.sweep_ms() {
            if let Some(at) = old_sweep {
                self.sweep.remove(index_key(at, entry.id).as_slice())?;
            }
            if let Some(at) = entry.sweep_ms() {
                self.sweep.insert(index_key(at, entry.id).as_slice(), ())?;
            }
        }
        if let (None, Some(name)) = (before, &entry.name) {
            self.names.insert(name.as_str(), id)?;
        }
        Ok(Ok(()))
    }

    fn remove(&mut self, entry: &Entry) -> Result<(), Failed> {
        let id = entry.id.as_uuid().as_bytes().as_slice();
        let size = self.entries.remove(id)?.map(|old| old.value().len() as u64);
        self.bytes = self.bytes.saturating_sub(size.unwrap_or_default());
        if let Some(at) = entry.due_ms() {
            self.due.remove(index_key(at, entry.id).as_slice())?;
        }
        if let Some(at) = entry.sweep_ms() {
            self.sweep.remove(index_key(at, entry.id).as_slice())?;
        }
        if let Some(name) = &entry.name {
            self.names.remove(name.as_str())?;
        }
        Ok(())
    }

    pub(super) fn submit(&mut self, new: NewEntry, terms: Option<Terms>, limits: Limits) -> Called<Submitted> {
        if let Some(name) = &new.name {
            let id = self.names.get(name.as_str())?.and_then(|id| to_id(id.value()));
            if let Some(id) = id {
                return Ok(match self.get(id)? {
                    Ok(Some(entry)) if rules::is_same(&entry, &new) => Ok(Submitted::Existing(entry)),
                    Ok(_) => Err(OutboxStoreError::name_taken(name, id)),
                    Err(error) => Err(error),
                });
            }
        }
        match self.get(new.id)? {
            Ok(None) => {}
            // The same submission once more.
            Ok(Some(entry)) => return Ok(Ok(Submitted::Existing(entry))),
            Err(error) => return Ok(Err(error)),
        }
        let entry = rules::open(new, terms, self.now);
        if let Err(full) = self.make_room(limits)? {
            return Ok(Err(full));
        }
        Ok(self.put(None, &entry)?.map(|()| Submitted::New(entry)))
    }

    /// Checks that one more entry fits, after a sweep if need be. Nothing unacknowledged is removed.
    fn make_room(&mut self, limits: Limits) -> Called<()> {
        let full = |tables: &Self| -> Result<Option<String>, Failed> {
            Ok(if tables.entries.len()? >= limits.entries {
                Some(format!("max_entries {}", limits.entries))
            } else if tables.bytes >= limits.bytes {
                Some(format!("max_bytes {}", limits.bytes))
            } else {
                None
            })
        };
        if full(self)?.is_none() {
            return Ok(Ok(()));
        }
        if let Err(error) = self.sweep(ROOM)? {
            return Ok(Err(error));
        }
        Ok(match full(self)? {
            None => Ok(()),
            Some(what) => Err(OutboxStoreError::full(what)),
        })
    }

    pub(super) fn apply(&mut self, id: OperationId, change: &Change) -> Called<Applied> {
        let before = match self.get(id)? {
            Ok(Some(before)) => before,
            Ok(None) => return Ok(Ok(Applied::Refused(Refusal::NotFound(id)))),
            Err(error) => return Ok(Err(error)),
        };
        let mut entry = before.clone();
        match rules::apply(&mut entry, change, self.now) {
            Ok(()) => Ok(self.put(Some(&before), &entry)?.map(|()| Applied::Done(entry))),
            Err(refusal) => Ok(Ok(Applied::Refused(refusal))),
        }
    }

    pub(super) fn claim_due(&mut self, terms: Terms, limit: usize, except: &[String]) -> Called<Vec<Entry>> {
        let mut due = Vec::new();
        for found in self.due.iter()? {
            let (key, origin) = found?;
            let Some((at, id)) = split(key.value()) else { continue };
            if at > self.now.ms || due.len() == limit {
                break;
            }
            if !except.iter().any(|except| except == origin.value()) {
                due.push((id, key.value().to_vec()));
            }
        }
        let mut claimed = Vec::new();
        for (id, key) in due {
            match self.apply(id, &Change::Claim(terms))? {
                Ok(Applied::Done(entry)) => claimed.push(entry),
                Ok(Applied::Refused(_)) => {}
                Err(error) => {
                    // It would be found again at once, for ever. `list` still shows that it is there.
                    tracing::error!(target: "steadfast", operation = %id, %error, "an operation cannot be read and is left alone");
                    self.due.remove(key.as_slice())?;
                }
            }
        }
        Ok(Ok(claimed))
    }

    pub(super) fn sweep(&mut self, limit: usize) -> Called<usize> {
        let mut ready = Vec::new();
        for found in self.sweep.iter()?.take(limit) {
            let (key, _) = found?;
            match split(key.value()) {
                Some((at, id)) if at <= self.now.ms => ready.push((id, key.value().to_vec())),
                _ => break,
            }
        }
        let swept = ready.len();
        for (id, key) in ready {
            let Ok(Some(before)) = self.get(id)? else {
                // It would be found again for ever.
                self.sweep.remove(key.as_slice())?;
                continue;
            };
            let mut entry = before.clone();
            if !rules::sweep(&mut entry, self.now) {
                self.remove(&before)?;
            } else if let Err(error) = self.put(Some(&before), &entry)? {
                return Ok(Err(error));
            }
        }
        Ok(Ok(swept))
    }
}

pub(super) fn get(
    entries: &impl ReadableTable<&'static [u8], &'static [u8]>,
    id: OperationId,
) -> Called<Option<Entry>> {
    let bytes = entries.get(id.as_uuid().as_bytes().as_slice())?;
    let Some(bytes) = bytes else { return Ok(Ok(None)) };
    Ok(codec::decode(id, bytes.value()).map(Some).map_err(OutboxStoreError::from))
}

pub(super) fn find(database: &Database, name: &str) -> Called<Option<Entry>> {
    let read = database.begin_read()?;
    let id = read.open_table(NAMES)?.get(name)?.and_then(|id| to_id(id.value()));
    match id {
        Some(id) => get(&read.open_table(ENTRIES)?, id),
        None => Ok(Ok(None)),
    }
}

pub(super) fn list(database: &Database, after: Option<OperationId>, limit: usize) -> Called<Vec<Entry>> {
    let entries = database.begin_read()?.open_table(ENTRIES)?;
    let after = after.map(|after| *after.as_uuid().as_bytes());
    let start = after.as_ref().map_or(Bound::Unbounded, |after| Bound::Excluded(after.as_slice()));
    let mut listed = Vec::new();
    for found in entries.range::<&[u8]>((start, Bound::Unbounded))?.take(limit) {
        let (id, bytes) = found?;
        let Some(id) = to_id(id.value()) else { continue };
        match codec::decode(id, bytes.value()) {
            Ok(entry) => listed.push(entry),
            Err(error) => return Ok(Err(error.into())),
        }
    }
    Ok(Ok(listed))
}

/// Returns whether there is something to sweep.
pub(super) fn has_sweep(database: &Database, now: Now) -> Result<bool, Failed> {
    let sweep = database.begin_read()?.open_table(SWEEP)?;
    let first = sweep.first()?.and_then(|(key, _)| split(key.value()));
    Ok(first.is_some_and(|(at, _)| at <= now.ms))
}

/// Returns how long it is until an entry is due.
pub(super) fn next_due(database: &Database, except: &[String], now: Now) -> Result<Option<u64>, Failed> {
    let due = database.begin_read()?.open_table(DUE)?;
    for found in due.iter()? {
        let (key, origin) = found?;
        if !except.iter().any(|except| except == origin.value()) {
            return Ok(split(key.value()).map(|(at, _)| at.saturating_sub(now.ms)));
        }
    }
    Ok(None)
}

pub(super) fn usage(database: &Database) -> Result<Usage, Failed> {
    let read = database.begin_read()?;
    Ok(Usage::new(read.open_table(ENTRIES)?.len()?, bytes(&read.open_table(META)?)?))
}
