//! The check of a file when it is opened.

use redb::{Database, ReadableTable, ReadableTableMetadata, TableHandle};
use steadfast_redb::engine::{Failed, Layout, begin};

use super::tables::{Entries, FileClock, META, Tables, Wall, clock, index_key, to_id};
use crate::codec::{self, CodecError};
use crate::entry::{Entry, State};
use crate::rules;

/// The beginning of the names of all tables of an outbox.
const PREFIX: &str = "steadfast_outbox_";
/// The version of the layout, big-endian.
const FORMAT: &str = "format";
const FORMAT_VERSION: u32 = 1;

/// What is wrong with the content of a database.
pub(super) enum Wrong {
    /// It belongs to somebody else.
    NotAnOutbox(String),
    Format(u32),
    Damaged(String),
}

/// Prepares a database: makes the tables of a new one, and checks the entries and the indexes of an
/// old one. Ends the leases of earlier processes, which are gone. Returns the clock of the file.
pub(super) fn prepare(database: &Database, wall: Wall) -> Result<Result<FileClock, Wrong>, Failed> {
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
    let high_water = clock(&transaction.open_table(META)?)?;
    let layout = Entries { clock: FileClock::new(wall, high_water) };
    let mut tables = layout.open(&transaction)?;
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
    layout.close(tables)?;
    transaction.commit()?;
    Ok(Ok(layout.clock))
}

/// Checks that every entry can be read and is found, and that nothing else is found. Returns the
/// entries that a worker has.
fn check(tables: &Tables<'_>) -> Result<Result<Vec<Entry>, Wrong>, Failed> {
    let damaged = |what: String| Ok(Err(Wrong::Damaged(what)));
    let (mut running, mut bytes, mut found) = (Vec::new(), 0, [0_u64; 3]);
    for stored in tables.entries.iter()? {
        let (id, encoded) = stored?;
        let Some(id) = to_id(id.value()) else { return damaged("an identifier is not one".to_owned()) };
        let entry = match codec::decode(id, encoded.value()) {
            Ok(entry) => entry,
            Err(CodecError::Version(version)) => return Ok(Err(Wrong::Format(u32::from(version)))),
            Err(error) => return damaged(error.to_string()),
        };
        if !is_found(tables, &entry)? {
            return damaged(format!("operation {id} is not in its index"));
        }
        bytes += encoded.value().len() as u64;
        let has = [entry.due_ms().is_some(), entry.sweep_ms().is_some(), entry.name.is_some()];
        for (count, has) in found.iter_mut().zip(has) {
            *count += u64::from(has);
        }
        if matches!(entry.state, State::Running { .. }) {
            running.push(entry);
        }
    }
    if !tables.entries.is_empty()? && !tables.has_clock()? {
        return damaged("the time of its last change is missing".to_owned());
    }
    let indexed = [tables.due.len()?, tables.sweep.len()?, tables.names.len()?];
    if indexed != found || bytes != tables.bytes {
        return damaged("an index has operations that are not there".to_owned());
    }
    Ok(Ok(running))
}

/// Returns whether an entry is found by its name, by its due time and by its sweep time.
fn is_found(tables: &Tables<'_>, entry: &Entry) -> Result<bool, Failed> {
    if let Some(at) = entry.due_ms()
        && tables.due.get(index_key(at, entry.id).as_slice())?.is_none()
    {
        return Ok(false);
    }
    if let Some(at) = entry.sweep_ms()
        && tables.sweep.get(index_key(at, entry.id).as_slice())?.is_none()
    {
        return Ok(false);
    }
    let Some(name) = &entry.name else { return Ok(true) };
    Ok(tables.names.get(name.as_str())?.is_some_and(|id| to_id(id.value()) == Some(entry.id)))
}
