//! The contract of [`Store`](crate::Store) as code: what a store answers to every call, in
//! the smallest form that can be executed.
//!
//! Other stores differ in how they keep records, and are compared with this one: they must give the
//! same answers. It has no clock, no threads and no failures, so a checker can explore its states.
//! Names are small numbers; times are milliseconds.

use std::collections::BTreeMap;

use crate::FinishOutcome;

/// A store that is pure: a value that can be cloned, compared and hashed.
///
/// It is told when time passes. Records and tombstones that are past their time are gone at once, so
/// two stores that answer the same are equal. The clauses in prose are with
/// [`Store`](crate::Store#the-contract).
///
/// ```
/// use steadfast_server::model_store::{ModelClaim, ModelClaimOutcome, ModelStore};
///
/// let mut store = ModelStore::default();
/// let claim = ModelClaim { id: 1, token: 1, request: 7, lease: 30_000, retention: 60_000, take_over: false };
/// assert_eq!(store.claim(claim), ModelClaimOutcome::Acquired);
/// store.pass(30_000);
/// let other = ModelClaim { token: 2, take_over: true, ..claim };
/// assert_eq!(store.claim(other), ModelClaimOutcome::Acquired);
/// assert!(!store.renew(1, 1, 30_000), "the first claim was taken over");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelStore {
    records: BTreeMap<u8, Record>,
    /// The claims that win nothing any more, and how long the store remembers that.
    tombstones: BTreeMap<(u8, u16), u64>,
    bounds: Bounds,
}

/// What a store may choose.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Bounds {
    tombstone: u64,
    max_records: usize,
    counts_tombstones: bool,
    joins_tombstones: bool,
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Record {
    /// The claim that the record is of.
    token: u16,
    request: u8,
    phase: Phase,
    /// The claim took the key over from one that may have run.
    took_over: bool,
    /// How long the record is kept once the lease is over, or the claim has ended.
    retention: u64,
    /// How long it is kept from now on.
    kept_for: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// The claim has not ended. It holds until its lease is over.
    Running {
        lease_left: u64,
    },
    Done {
        answer: u8,
    },
    Unknown,
}

/// A claim: see [`Claim`](crate::Claim).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "it is written as a literal, and has the fields of the contract")]
pub struct ModelClaim {
    /// The key.
    pub id: u8,
    /// The name of this claim.
    pub token: u16,
    /// What the request is: its fingerprint.
    pub request: u8,
    /// How long the claim holds unless it is renewed, in milliseconds.
    pub lease: u64,
    /// How long what is known of the key is kept, in milliseconds.
    pub retention: u64,
    /// Whether to take over a claim of the same request whose outcome is unknown.
    pub take_over: bool,
}

/// What came of a claim: see [`ClaimOutcome`](crate::ClaimOutcome).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "every answer of the contract")]
pub enum ModelClaimOutcome {
    /// The key is this token's.
    Acquired,
    /// It is, or was, another's.
    Existing(ModelRecordState),
    /// The token was released or cancelled before.
    Cancelled,
    /// There is no room for one more record.
    Full,
}

/// What is known of a key: see [`State`](crate::RecordState).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "every state of the contract")]
pub enum ModelRecordState {
    /// A claim that holds.
    InProgress {
        /// The request that claimed it.
        request: u8,
        /// How long its lease still lasts, in milliseconds.
        lease_left: u64,
    },
    /// It ended, and this was the answer.
    Completed {
        /// The request that was answered.
        request: u8,
        /// The answer.
        answer: u8,
    },
    /// It may have run, and nobody knows how it ended.
    Unknown {
        /// The request that may have run.
        request: u8,
    },
}

/// How a claim ends: see [`End`](crate::End).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "every end of the contract")]
pub enum ModelEnd {
    /// The operation is done.
    Completed {
        /// Its answer.
        answer: u8,
        /// How long the answer is kept from now, in milliseconds.
        retention: u64,
    },
    /// Nothing was executed.
    Released,
    /// The operation may have run.
    Unknown,
    /// Nobody runs anything under this claim, and nobody knows whether it was made.
    Cancelled,
}

impl Default for ModelStore {
    /// A store without a bound, whose tombstones are kept for [`TOMBSTONE`](crate::TOMBSTONE).
    fn default() -> Self {
        Self::new(600_000, usize::MAX)
    }
}

impl ModelStore {
    /// A store that keeps tombstones for so many milliseconds, and has room for so many records.
    #[must_use]
    pub fn new(tombstone: u64, max_records: usize) -> Self {
        let bounds = Bounds { tombstone, max_records, counts_tombstones: false, joins_tombstones: false };
        Self { records: BTreeMap::new(), tombstones: BTreeMap::new(), bounds }
    }

    /// A store in which a tombstone takes the room of a record.
    #[must_use]
    pub fn counting_tombstones(mut self) -> Self {
        self.bounds.counts_tombstones = true;
        self
    }

    /// A store that keeps all tombstones of a key for as long as the last one.
    #[must_use]
    pub fn joining_tombstones(mut self) -> Self {
        self.bounds.joins_tombstones = true;
        self
    }

    /// So many milliseconds pass.
    pub fn pass(&mut self, time: u64) {
        for record in self.records.values_mut() {
            if let Phase::Running { lease_left } = &mut record.phase {
                *lease_left = lease_left.saturating_sub(time);
            }
            record.kept_for = record.kept_for.saturating_sub(time);
        }
        self.tombstones.values_mut().for_each(|left| *left = left.saturating_sub(time));
        self.forget();
    }

    /// Claims a key, or says what is known of it.
    pub fn claim(&mut self, claim: ModelClaim) -> ModelClaimOutcome {
        // However late it arrives.
        if self.tombstones.contains_key(&(claim.id, claim.token)) {
            return ModelClaimOutcome::Cancelled;
        }
        let took_over = match self.records.get(&claim.id) {
            None if !self.has_room() => return ModelClaimOutcome::Full,
            None => false,
            // Under one key there is one request.
            Some(record) if record.request != claim.request => return ModelClaimOutcome::Existing(record.state()),
            // A reply was lost: the same claim is won again, and its lease starts anew.
            Some(record) if record.token == claim.token && record.is_running() => record.took_over,
            Some(record) if record.gives_way_to(&claim) => true,
            Some(record) => return ModelClaimOutcome::Existing(record.state()),
        };
        let ModelClaim { token, request, lease, retention, .. } = claim;
        let (phase, kept_for) = (Phase::Running { lease_left: lease }, lease.saturating_add(retention));
        self.keep(claim.id, Record { token, request, phase, took_over, retention, kept_for });
        ModelClaimOutcome::Acquired
    }

    /// Starts the lease of a claim anew, if the claim has not ended and was not taken over.
    pub fn renew(&mut self, id: u8, token: u16, lease: u64) -> bool {
        let Some(record) = self.running(id, token) else { return false };
        let (phase, kept_for) = (Phase::Running { lease_left: lease }, lease.saturating_add(record.retention));
        self.keep(id, Record { phase, kept_for, ..record });
        true
    }

    /// Ends a claim. A claim ends once; the end that it had, repeated, is told what it was told.
    pub fn finish(&mut self, id: u8, token: u16, end: ModelEnd) -> FinishOutcome {
        let is_buried = self.tombstones.contains_key(&(id, token));
        let running = self.running(id, token);
        let ended = self.records.get(&id).filter(|record| record.token == token && !record.is_running());
        match (end, running, ended.map(|record| record.phase)) {
            (ModelEnd::Completed { answer, retention }, Some(record), _) => {
                self.keep(id, Record { phase: Phase::Done { answer }, retention, kept_for: retention, ..record });
            }
            (ModelEnd::Unknown, Some(record), _) => self.keep_as_unknown(id, record),
            // What it took over may have run: that is unknown again.
            (ModelEnd::Cancelled, Some(record), _) if record.took_over => {
                self.keep_as_unknown(id, record);
                self.bury(id, token);
            }
            (ModelEnd::Released | ModelEnd::Cancelled, Some(_), _) => {
                self.records.remove(&id);
                self.bury(id, token);
            }
            // The same end once more.
            (ModelEnd::Completed { .. }, None, Some(Phase::Done { .. }))
            | (ModelEnd::Unknown, None, Some(Phase::Unknown)) => {}
            (ModelEnd::Released | ModelEnd::Cancelled, None, _) if is_buried => {}
            // The claim is still on its way, or never was made.
            (ModelEnd::Cancelled, None, None) => self.bury(id, token),
            _ => return FinishOutcome::Fenced,
        }
        FinishOutcome::Stored
    }

    /// What is known of a key.
    #[must_use]
    pub fn get(&self, id: u8) -> Option<ModelRecordState> {
        self.records.get(&id).map(Record::state)
    }

    /// The process ends and another one opens the store, which belongs to one process at a time. The
    /// owners of its claims are gone, so their outcome is unknown.
    pub fn restart(&mut self) {
        for record in self.records.values_mut().filter(|record| record.is_running()) {
            record.phase = Phase::Unknown;
        }
    }

    /// The claim that the record of a key is of.
    #[cfg(test)]
    pub(crate) fn holder(&self, id: u8) -> Option<u16> {
        self.records.get(&id).map(|record| record.token)
    }

    /// How many tombstones there are.
    #[cfg(test)]
    pub(crate) fn tombstones(&self) -> usize {
        self.tombstones.len()
    }

    /// Forgets what is known of a key. No store may do that; the exploration shows why.
    #[cfg(test)]
    pub(crate) fn forget_key(&mut self, id: u8) {
        self.records.remove(&id);
    }

    /// The record of a claim that can be renewed and ended. Its lease may be over: as long as nobody
    /// has taken the key over, the claim is still its token's.
    fn running(&self, id: u8, token: u16) -> Option<Record> {
        self.records.get(&id).filter(|record| record.token == token && record.is_running()).cloned()
    }

    fn keep(&mut self, id: u8, record: Record) {
        self.records.insert(id, record);
        self.forget();
    }

    fn keep_as_unknown(&mut self, id: u8, record: Record) {
        self.keep(id, Record { phase: Phase::Unknown, kept_for: record.retention, ..record });
    }

    fn has_room(&self) -> bool {
        let tombstones = if self.bounds.counts_tombstones { self.tombstones.len() } else { 0 };
        self.records.len() + tombstones < self.bounds.max_records
    }

    fn bury(&mut self, id: u8, token: u16) {
        self.tombstones.insert((id, token), self.bounds.tombstone);
        if self.bounds.joins_tombstones {
            let of_key = self.tombstones.iter_mut().filter(|((key, _), _)| *key == id);
            of_key.for_each(|(_, left)| *left = self.bounds.tombstone);
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.records.retain(|_, record| record.kept_for > 0);
        self.tombstones.retain(|_, left| *left > 0);
    }
}

impl Record {
    fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// Whether a claim takes the key over: it asks for that, and the outcome is unknown. A token whose
    /// claim has ended takes nothing over.
    fn gives_way_to(&self, claim: &ModelClaim) -> bool {
        let is_unknown = matches!(self.state(), ModelRecordState::Unknown { .. });
        is_unknown && claim.take_over && claim.token != self.token
    }

    fn state(&self) -> ModelRecordState {
        let request = self.request;
        match self.phase {
            Phase::Running { lease_left: 0 } | Phase::Unknown => ModelRecordState::Unknown { request },
            Phase::Running { lease_left } => ModelRecordState::InProgress { request, lease_left },
            Phase::Done { answer } => ModelRecordState::Completed { request, answer },
        }
    }
}
