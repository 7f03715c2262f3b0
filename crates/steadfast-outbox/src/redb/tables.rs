//! The content of the file: the entries, and what finds them by name, by due time and by sweep time.

use std::sync::Arc;

use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition, TableHandle,
    WriteTransaction,
};
use steadfast_redb::engine::{Failed, Layout, begin};

use crate::change::{Change, Refusal, Terms};
use crate::clock::{HighWater, Now};
use crate::codec::{self, CodecError};
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
const PREFIX: &str = "steadfast_outbox_";

/// The version of the layout, big-endian.
const FORMAT: &str = "format";
const FORMAT_VERSION: u32 = 1;
/// The high-water mark of the clock.
const CLOCK: &str = "clock";
/// The size of all entries, big-endian.
const BYTES: &str = "bytes";

/// Number of entries that a submission sweeps when it finds no room.
const ROOM: usize = 16;

/// Returns the time of the wall clock, in milliseconds since the Unix epoch.
pub(super) type Wall = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A call that has failed, and not the database.
pub(super) type Called<T> = Result<Result<T, OutboxStoreError>, Failed>;

/// The layout of an outbox.
pub(super) struct Entries {
    pub(super) wall: Wall,
}

impl Layout for Entries {
    type Tables<'a> = Tables<'a>;

    fn open<'a>(&self, transaction: &'a WriteTransaction) -> Result<Tables<'a>, Failed> {
        let meta = transaction.open_table(META)?;
        let mut clock = clock(&meta)?;
        let now = clock.tick((self.wall)());
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
        let encoded = postcard::to_stdvec(&tables.clock);
        let clock = encoded.map_err(|_| redb::Error::Corrupted("the clock of the outbox".to_owned()))?;
        tables.meta.insert(CLOCK, clock.as_slice())?;
        tables.meta.insert(BYTES, tables.bytes.to_be_bytes().as_slice())?;
        Ok(())
    }

    fn reopened(&self, _: &Database, _: u64, _: u64) -> Result<(), Failed> {
        // The workers of this process still have their claims, and their fences tell who is late.
        Ok(())
    }
}

/// Reads the high-water mark. A new file has none.
fn clock(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<HighWater, redb::Error> {
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
    entries: Table<'a, &'static [u8], &'static [u8]>,
    names: Table<'a, &'static str, &'static [u8]>,
    due: Table<'a, &'static [u8], &'static str>,
    sweep: Table<'a, &'static [u8], ()>,
    meta: Table<'a, &'static str, &'static [u8]>,
    clock: HighWater,
    pub(super) now: Now,
    bytes: u64,
}

/// How much a store may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

fn index_key(at_ms: u64, id: OperationId) -> Vec<u8> {
    [at_ms.to_be_bytes().as_slice(), id.as_uuid().as_bytes()].concat()
}

fn split(key: &[u8]) -> Option<(u64, OperationId)> {
    let (at, id) = key.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*at), to_id(id)?))
}

fn to_id(bytes: &[u8]) -> Option<OperationId> {
    Some(steadfast::uuid::Uuid::from_bytes(bytes.try_into().ok()?).into())
}

impl Tables<'_> {
    fn get(&self, id: OperationId) -> Called<Option<Entry>> {
        get(&self.entries, id)
    }

    /// Writes an entry in place of `before`, with everything that finds it.
    fn put(&mut self, before: Option<&Entry>, entry: &Entry) -> Called<()> {
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
    use std::ops::Bound;
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
pub(super) fn has_sweep(database: &Database, wall_ms: u64) -> Result<bool, Failed> {
    let read = database.begin_read()?;
    let now = clock(&read.open_table(META)?)?.tick(wall_ms);
    let first = read.open_table(SWEEP)?.first()?.and_then(|(key, _)| split(key.value()));
    Ok(first.is_some_and(|(at, _)| at <= now.ms))
}

/// Returns how long it is until an entry is due.
pub(super) fn next_due(database: &Database, except: &[String], wall_ms: u64) -> Result<Option<u64>, Failed> {
    let read = database.begin_read()?;
    let now = clock(&read.open_table(META)?)?.tick(wall_ms);
    for found in read.open_table(DUE)?.iter()? {
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

/// What is wrong with the content of a database.
pub(super) enum Wrong {
    /// It belongs to somebody else.
    NotAnOutbox(String),
    Format(u32),
    Damaged(String),
}

/// Prepares a database: makes the tables of a new one, and checks the entries and the indexes of an
/// old one. Ends the leases of earlier processes, which are gone.
pub(super) fn prepare(database: &Database) -> Result<Result<(), Wrong>, Failed> {
    let transaction = begin(database)?;
    if let Some(other) = transaction.list_tables()?.find(|table| !table.name().starts_with(PREFIX)) {
        let reason = format!("it has the table `{}`", other.name());
        return Ok(Err(Wrong::NotAnOutbox(reason)));
    }
    let format = {
        let mut meta = transaction.open_table(META)?;
        let format = meta.get(FORMAT)?.map(|format| format.value().try_into().map_or(0, u32::from_be_bytes));
        if format.is_none() {
            meta.insert(FORMAT, FORMAT_VERSION.to_be_bytes().as_slice())?;
        }
        format
    };
    if let Some(other) = format.filter(|format| *format != FORMAT_VERSION) {
        return Ok(Err(Wrong::Format(other)));
    }
    {
        // The time plays no part in this.
        let mut tables = Entries { wall: Arc::new(|| 0) }.open(&transaction)?;
        let entries = match check(&tables)? {
            Ok(entries) => entries,
            Err(wrong) => return Ok(Err(wrong)),
        };
        for before in entries {
            let mut entry = before.clone();
            rules::end_lease(&mut entry);
            if let Err(error) = tables.put(Some(&before), &entry)? {
                return Ok(Err(Wrong::Damaged(error.to_string())));
            }
        }
        tables.meta.insert(BYTES, tables.bytes.to_be_bytes().as_slice())?;
    }
    transaction.commit()?;
    Ok(Ok(()))
}

/// Checks that every entry can be read and is found, and that nothing else is found. Returns the
/// entries that a worker has.
fn check(tables: &Tables<'_>) -> Result<Result<Vec<Entry>, Wrong>, Failed> {
    let damaged = |what: String| Ok(Err(Wrong::Damaged(what)));
    let (mut running, mut size) = (Vec::new(), 0);
    let mut found = [0_u64; 3];
    for stored in tables.entries.iter()? {
        let (id, bytes) = stored?;
        let Some(id) = to_id(id.value()) else { return damaged("an identifier is not one".to_owned()) };
        let entry = match codec::decode(id, bytes.value()) {
            Ok(entry) => entry,
            Err(CodecError::Version(version)) => return Ok(Err(Wrong::Format(u32::from(version)))),
            Err(error) => return damaged(error.to_string()),
        };
        size += bytes.value().len() as u64;
        let due = entry.due_ms().map(|at| index_key(at, id));
        let sweep = entry.sweep_ms().map(|at| index_key(at, id));
        let has_due = match &due {
            Some(due) => tables.due.get(due.as_slice())?.is_some(),
            None => true,
        };
        let has_sweep = match &sweep {
            Some(sweep) => tables.sweep.get(sweep.as_slice())?.is_some(),
            None => true,
        };
        let has_name = match &entry.name {
            Some(name) => tables.names.get(name.as_str())?.is_some_and(|named| to_id(named.value()) == Some(id)),
            None => true,
        };
        if !(has_due && has_sweep && has_name) {
            return damaged(format!("operation {id} is not in its index"));
        }
        found[0] += u64::from(due.is_some());
        found[1] += u64::from(sweep.is_some());
        found[2] += u64::from(entry.name.is_some());
        if matches!(entry.state, crate::State::Running { .. }) {
            running.push(entry);
        }
    }
    if !tables.entries.is_empty()? && tables.meta.get(CLOCK)?.is_none() {
        return damaged("the time of its last change is missing".to_owned());
    }
    let indexed = [tables.due.len()?, tables.sweep.len()?, tables.names.len()?];
    if indexed != found || size != tables.bytes {
        return damaged("an index has operations that are not there".to_owned());
    }
    Ok(Ok(running))
}
