//! A store in memory that is the rules and nothing else: the written contract, which the other
//! stores are compared with.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use steadfast_core::clock::Steady;

use crate::change::{Change, Refusal, Terms};
use crate::clock::Now;
use crate::codec;
use crate::entry::Entry;
use crate::id::OperationId;
use crate::rules::{self, NewEntry};
use crate::store::{Applied, OutboxStore, OutboxStoreError, Submitted, Usage};

/// The contract of a store as a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    entries: BTreeMap<OperationId, Entry>,
}

impl Model {
    /// Puts an entry in as it is.
    pub fn insert(&mut self, entry: Entry) {
        self.entries.insert(entry.id, entry);
    }

    /// Returns all entries, in the order of their identifiers.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// See [`OutboxStore::submit`].
    ///
    /// # Errors
    ///
    /// The name belongs to another operation.
    pub fn submit(&mut self, new: NewEntry, terms: Option<Terms>, now: Now) -> Result<Submitted, OutboxStoreError> {
        if let Some(name) = &new.name
            && let Some(entry) = self.find(name)
        {
            return match rules::is_same(&entry, &new) {
                true => Ok(Submitted::Existing(entry)),
                false => Err(OutboxStoreError::name_taken(name, entry.id)),
            };
        }
        if let Some(entry) = self.get(new.id) {
            return Ok(Submitted::Existing(entry));
        }
        let entry = rules::open(new, terms, now);
        self.entries.insert(entry.id, entry.clone());
        Ok(Submitted::New(entry))
    }

    /// See [`OutboxStore::apply`].
    pub fn apply(&mut self, id: OperationId, change: &Change, now: Now) -> Applied {
        let Some(entry) = self.entries.get_mut(&id) else { return Applied::Refused(Refusal::NotFound(id)) };
        match rules::apply(entry, change, now) {
            Ok(()) => Applied::Done(entry.clone()),
            Err(refusal) => Applied::Refused(refusal),
        }
    }

    /// See [`OutboxStore::claim_due`].
    pub fn claim_due(&mut self, terms: Terms, limit: usize, except: &[String], now: Now) -> Vec<Entry> {
        let due = self.due(except).into_iter().take_while(|(due, _)| *due <= now.ms);
        let due: Vec<OperationId> = due.take(limit).map(|(_, id)| id).collect();
        let claimed = due.into_iter().filter_map(|id| match self.apply(id, &Change::Claim(terms), now) {
            Applied::Done(entry) => Some(entry),
            Applied::Refused(_) => None,
        });
        claimed.collect()
    }

    /// See [`OutboxStore::next_due`].
    #[must_use]
    pub fn next_due(&self, except: &[String], now: Now) -> Option<Duration> {
        let (due, _) = self.due(except).into_iter().next()?;
        Some(Duration::from_millis(due.saturating_sub(now.ms)))
    }

    fn due(&self, except: &[String]) -> Vec<(u64, OperationId)> {
        let wanted = self.entries.values().filter(|entry| !except.contains(&entry.request.origin()));
        let mut due: Vec<_> = wanted.filter_map(|entry| Some((entry.due_ms()?, entry.id))).collect();
        due.sort_unstable();
        due
    }

    /// See [`OutboxStore::get`].
    #[must_use]
    pub fn get(&self, id: OperationId) -> Option<Entry> {
        self.entries.get(&id).cloned()
    }

    /// See [`OutboxStore::find`].
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Entry> {
        self.entries.values().find(|entry| entry.name.as_deref() == Some(name)).cloned()
    }

    /// See [`OutboxStore::list`].
    #[must_use]
    pub fn list(&self, after: Option<OperationId>, limit: usize) -> Vec<Entry> {
        let behind = self.entries.values().filter(|entry| after.is_none_or(|after| entry.id > after));
        behind.take(limit).cloned().collect()
    }

    /// See [`OutboxStore::usage`].
    ///
    /// # Errors
    ///
    /// An entry cannot be encoded.
    pub fn usage(&self) -> Result<Usage, OutboxStoreError> {
        let mut usage = Usage::default();
        for entry in self.entries.values() {
            usage.entries += 1;
            usage.bytes = usage.bytes.saturating_add(codec::encode(entry)?.len() as u64);
        }
        Ok(usage)
    }

    /// Does what opening a store does whose earlier owners are gone.
    pub fn reopen(&mut self) {
        self.entries.values_mut().for_each(rules::end_lease);
    }

    /// See [`OutboxStore::sweep`].
    pub fn sweep(&mut self, limit: usize, now: Now) -> usize {
        let ready = |entry: &Entry| entry.sweep_ms().filter(|at| *at <= now.ms).map(|at| (at, entry.id));
        let mut ready: Vec<_> = self.entries.values().filter_map(ready).collect();
        ready.sort_unstable();
        ready.truncate(limit);
        for (_, id) in &ready {
            if let Some(entry) = self.entries.get_mut(id)
                && !rules::sweep(entry, now)
            {
                self.entries.remove(id);
            }
        }
        ready.len()
    }
}

/// A store in memory, for tests and for programs that need no durability. A restart loses all of it.
#[derive(Debug)]
pub struct MemoryOutbox {
    model: Mutex<Model>,
    time: Steady,
}

impl Default for MemoryOutbox {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryOutbox {
    /// Makes an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self { model: Mutex::default(), time: Steady::start() }
    }

    fn with<T>(&self, call: impl FnOnce(&mut Model, Now) -> T) -> T {
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        call(&mut model, Now::certain(self.time.now_ms()))
    }
}

impl OutboxStore for MemoryOutbox {
    const IS_SHARED: bool = false;

    async fn submit(&self, new: NewEntry, terms: Option<Terms>) -> Result<Submitted, OutboxStoreError> {
        self.with(|model, now| model.submit(new, terms, now))
    }

    async fn apply(&self, id: OperationId, change: Change) -> Result<Applied, OutboxStoreError> {
        Ok(self.with(|model, now| model.apply(id, &change, now)))
    }

    async fn claim_due(&self, terms: Terms, limit: usize, except: Vec<String>) -> Result<Vec<Entry>, OutboxStoreError> {
        Ok(self.with(|model, now| model.claim_due(terms, limit, &except, now)))
    }

    async fn next_due(&self, except: Vec<String>) -> Result<Option<Duration>, OutboxStoreError> {
        Ok(self.with(|model, now| model.next_due(&except, now)))
    }

    async fn get(&self, id: OperationId) -> Result<Option<Entry>, OutboxStoreError> {
        Ok(self.with(|model, _| model.get(id)))
    }

    async fn find(&self, name: &str) -> Result<Option<Entry>, OutboxStoreError> {
        Ok(self.with(|model, _| model.find(name)))
    }

    async fn list(&self, after: Option<OperationId>, limit: usize) -> Result<Vec<Entry>, OutboxStoreError> {
        Ok(self.with(|model, _| model.list(after, limit)))
    }

    async fn usage(&self) -> Result<Usage, OutboxStoreError> {
        self.with(|model, _| model.usage())
    }

    async fn sweep(&self, limit: usize) -> Result<usize, OutboxStoreError> {
        Ok(self.with(|model, now| model.sweep(limit, now)))
    }
}
