//! Rows that were read, the rules applied to them, and the difference to write. Pure.

use std::collections::BTreeMap;

use steadfast_outbox::codec::{self, CodecError};
use steadfast_outbox::model::Model;
use steadfast_outbox::rules::NewEntry;
use steadfast_outbox::{Applied, Change, Entry, Now, OperationId, OutboxStoreError, Submitted, Terms, Usage};
use uuid::Uuid;

/// An operation as it was read.
pub(super) struct Row {
    pub(super) id: OperationId,
    pub(super) version: Uuid,
    pub(super) name: Option<String>,
    pub(super) entry: Result<Entry, CodecError>,
}

/// Rows that were read at one moment, and what becomes of them.
pub(super) struct Draft {
    now: Now,
    read: BTreeMap<OperationId, (Uuid, Option<Entry>)>,
    /// Rows whose content is not what was written. Nothing changes them.
    broken: BTreeMap<OperationId, (Option<String>, CodecError)>,
    model: Model,
}

impl Draft {
    pub(super) fn new(now: Now, rows: Vec<Row>) -> Self {
        let mut draft = Self { now, read: BTreeMap::new(), broken: BTreeMap::new(), model: Model::default() };
        for Row { id, version, name, entry } in rows {
            match entry {
                Ok(entry) => {
                    draft.model.insert(entry.clone());
                    draft.read.insert(id, (version, Some(entry)));
                }
                Err(error) => {
                    draft.read.insert(id, (version, None));
                    draft.broken.insert(id, (name, error));
                }
            }
        }
        draft
    }

    /// Returns the version that an operation had when it was read.
    pub(super) fn version(&self, id: OperationId) -> Option<Uuid> {
        self.read.get(&id).map(|(version, _)| *version)
    }

    /// Returns the operation that was read, if one was.
    pub(super) fn only(mut self) -> Result<Option<Entry>, OutboxStoreError> {
        match self.broken.pop_first() {
            Some((_, (_, error))) => Err(error.into()),
            None => Ok(self.read.pop_first().and_then(|(_, (_, entry))| entry)),
        }
    }

    /// Returns whether an operation of this identifier or name is there.
    pub(super) fn has(&self, new: &NewEntry) -> bool {
        self.read.contains_key(&new.id) || new.name.as_deref().is_some_and(|name| self.model.find(name).is_some())
    }

    pub(super) fn submit(&mut self, new: &NewEntry, terms: Option<Terms>) -> Result<Submitted, OutboxStoreError> {
        let is_meant = |id: OperationId, name: &Option<String>| id == new.id || name.is_some() && *name == new.name;
        if let Some((_, (_, error))) = self.broken.iter().find(|(id, (name, _))| is_meant(**id, name)) {
            return Err(error.clone().into());
        }
        self.model.submit(new.clone(), terms, self.now)
    }

    pub(super) fn apply(&mut self, id: OperationId, change: &Change) -> Result<Applied, OutboxStoreError> {
        match self.broken.get(&id) {
            Some((_, error)) => Err(error.clone().into()),
            None => Ok(self.model.apply(id, change, self.now)),
        }
    }

    pub(super) fn claim_due(&mut self, terms: Terms, limit: usize) -> Vec<Entry> {
        self.model.claim_due(terms, limit, &[], self.now)
    }

    pub(super) fn sweep(&mut self, limit: usize) -> usize {
        self.model.sweep(limit, self.now)
    }

    /// Returns the rows that nobody can read.
    pub(super) fn unreadable(&self) -> impl Iterator<Item = (OperationId, &CodecError)> {
        self.broken.iter().map(|(id, (_, error))| (*id, error))
    }

    /// Returns the difference between what was read and what is there now.
    pub(super) fn writes(&self) -> Result<Writes, CodecError> {
        let mut writes = Writes::default();
        for entry in self.model.entries() {
            let before = self.read.get(&entry.id);
            if before.is_none_or(|(_, before)| before.as_ref() != Some(entry)) {
                writes.put(before.map(|(version, _)| *version), entry)?;
            }
        }
        let is_gone = |id: &OperationId| !self.broken.contains_key(id) && self.model.get(*id).is_none();
        writes.removed = self.read.keys().filter(|id| is_gone(id)).map(|id| *id.as_uuid()).collect();
        Ok(writes)
    }
}

/// Rows to write, column by column, and rows to remove.
#[derive(Clone, Default)]
pub(super) struct Writes {
    pub(super) ids: Vec<Uuid>,
    /// The versions that were read. `None`: the operation is new.
    pub(super) before: Vec<Option<Uuid>>,
    pub(super) names: Vec<Option<String>>,
    pub(super) origins: Vec<String>,
    pub(super) states: Vec<String>,
    pub(super) due: Vec<Option<i64>>,
    pub(super) sweep: Vec<Option<i64>>,
    pub(super) entries: Vec<Vec<u8>>,
    pub(super) removed: Vec<Uuid>,
}

impl Writes {
    /// Returns what the new rows add.
    pub(super) fn added(&self) -> Usage {
        let new = self.before.iter().zip(&self.entries).filter(|(before, _)| before.is_none());
        new.fold(Usage::default(), |sum, (_, entry)| Usage::new(sum.entries + 1, sum.bytes + entry.len() as u64))
    }

    fn put(&mut self, before: Option<Uuid>, entry: &Entry) -> Result<(), CodecError> {
        let at = |ms: Option<u64>| ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX));
        self.entries.push(codec::encode(entry)?);
        self.ids.push(*entry.id.as_uuid());
        self.before.push(before);
        self.names.push(entry.name.clone());
        self.origins.push(entry.request.origin());
        self.states.push(entry.state.label().to_owned());
        self.due.push(at(entry.due_ms()));
        self.sweep.push(at(entry.sweep_ms()));
        Ok(())
    }
}
