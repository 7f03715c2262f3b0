//! The contract of [`Store`](crate::Store) as code, in the smallest form that can be executed.
//!
//! Other stores keep records differently, and tests compare them with this one: they must return
//! the same results. The model has no clock, no threads and no failures, so a model checker can
//! explore its states. Ids, tokens and requests are small numbers; times are milliseconds.

use std::collections::BTreeMap;

use crate::FinishOutcome;

/// A pure store: a value that can be cloned, compared and hashed.
///
/// Its caller makes time pass. Expired records and tombstones are removed at once, so two models
/// with the same future are equal. The clauses in prose are at
/// [`Store`](crate::Store#the-contract).
///
/// ```
/// use steadfast_server::model_store::{ModelClaim, ModelClaimOutcome, ModelStore};
///
/// let mut store = ModelStore::default();
/// let (lease, retention) = (30_000, 60_000);
/// let claim = ModelClaim { id: 1, token: 1, request: 7, lease, retention, take_over: false };
/// assert_eq!(store.claim(claim), ModelClaimOutcome::Acquired);
/// store.pass(30_000);
/// let other = ModelClaim { token: 2, take_over: true, ..claim };
/// assert_eq!(store.claim(other), ModelClaimOutcome::Acquired);
/// assert!(!store.renew(1, 1, 30_000), "the first claim was taken over");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelStore {
    records: BTreeMap<u8, Record>,
    /// Tokens that acquire nothing any more, and how long the store still remembers them.
    tombstones: BTreeMap<(u8, u16), u64>,
    bounds: Bounds,
}

/// The choices that the contract leaves to a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Bounds {
    tombstone: u64,
    max_records: usize,
    counts_tombstones: bool,
    joins_tombstones: bool,
}

/// The record of a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Record {
    /// The token of the record's claim.
    token: u16,
    request: u8,
    phase: Phase,
    /// Whether the claim took the key over from one that may have run.
    took_over: bool,
    /// How long the record is kept after the lease, or after the end of the claim.
    retention: u64,
    /// How long the record is still kept.
    kept_for: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// The claim has not ended. It holds for the rest of its lease.
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
    /// The token of this claim.
    pub token: u16,
    /// The request, by its fingerprint.
    pub request: u8,
    /// How long the claim holds without renewal, in milliseconds.
    pub lease: u64,
    /// How long the record is kept, in milliseconds.
    pub retention: u64,
    /// Whether to take over a claim of the same request whose outcome is unknown.
    pub take_over: bool,
}

/// The result of a claim: see [`ClaimOutcome`](crate::ClaimOutcome).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "every answer of the contract")]
pub enum ModelClaimOutcome {
    /// The key is this token's.
    Acquired,
    /// The key has a record of another claim.
    Existing(ModelRecordState),
    /// The token was released or cancelled before.
    Cancelled,
    /// There is no room for one more record.
    Full,
}

/// The state of a key: see [`RecordState`](crate::RecordState).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "every state of the contract")]
pub enum ModelRecordState {
    /// A claim holds the key.
    InProgress {
        /// The request that claimed it.
        request: u8,
        /// The rest of its lease, in milliseconds.
        lease_left: u64,
    },
    /// The operation has completed, with this response.
    Completed {
        /// The request that completed.
        request: u8,
        /// The response.
        answer: u8,
    },
    /// The operation may have run, and its outcome is unknown.
    Unknown {
        /// The request that may have run.
        request: u8,
    },
}

/// How a claim ends: see [`End`](crate::End).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "every end of the contract")]
pub enum ModelEnd {
    /// The operation has completed.
    Completed {
        /// Its response.
        answer: u8,
        /// How long the response is kept from now, in milliseconds.
        retention: u64,
    },
    /// Nothing was executed.
    Released,
    /// The operation may have run.
    Unknown,
    /// Nothing runs under this claim, and its caller does not know whether it was made.
    Cancelled,
}

impl Default for ModelStore {
    /// Creates a store without a bound, which keeps tombstones for [`TOMBSTONE`](crate::TOMBSTONE).
    fn default() -> Self {
        Self::new(600_000, usize::MAX)
    }
}

impl ModelStore {
    /// Creates a store that keeps tombstones for this many milliseconds, and has room for this many
    /// records.
    #[must_use]
    pub fn new(tombstone: u64, max_records: usize) -> Self {
        let bounds = Bounds { tombstone, max_records, counts_tombstones: false, joins_tombstones: false };
        Self { records: BTreeMap::new(), tombstones: BTreeMap::new(), bounds }
    }

    /// Makes each tombstone take the room of a record.
    #[must_use]
    pub fn counting_tombstones(mut self) -> Self {
        self.bounds.counts_tombstones = true;
        self
    }

    /// Makes all tombstones of a key last as long as the newest one.
    #[must_use]
    pub fn joining_tombstones(mut self) -> Self {
        self.bounds.joins_tombstones = true;
        self
    }

    /// Lets this many milliseconds pass.
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

    /// Claims a key, or returns its state.
    pub fn claim(&mut self, claim: ModelClaim) -> ModelClaimOutcome {
        // A late copy of a released or cancelled claim.
        if self.tombstones.contains_key(&(claim.id, claim.token)) {
            return ModelClaimOutcome::Cancelled;
        }
        let took_over = match self.records.get(&claim.id) {
            None if !self.has_room() => return ModelClaimOutcome::Full,
            None => false,
            // Under one key there is one request.
            Some(record) if record.request != claim.request => return ModelClaimOutcome::Existing(record.state()),
            // The first reply was lost: the same claim is acquired again, and its lease restarts.
            Some(record) if record.token == claim.token && record.is_running() => record.took_over,
            Some(record) if record.gives_way_to(&claim) => true,
            Some(record) => return ModelClaimOutcome::Existing(record.state()),
        };
        let ModelClaim { token, request, lease, retention, .. } = claim;
        let (phase, kept_for) = (Phase::Running { lease_left: lease }, lease.saturating_add(retention));
        self.keep(claim.id, Record { token, request, phase, took_over, retention, kept_for });
        ModelClaimOutcome::Acquired
    }

    /// Restarts the lease of a claim, if the claim has not ended and was not taken over.
    pub fn renew(&mut self, id: u8, token: u16, lease: u64) -> bool {
        let Some(record) = self.running(id, token) else { return false };
        let (phase, kept_for) = (Phase::Running { lease_left: lease }, lease.saturating_add(record.retention));
        self.keep(id, Record { phase, kept_for, ..record });
        true
    }

    /// Ends a claim. A claim ends once; the same end repeated returns what it returned before.
    pub fn finish(&mut self, id: u8, token: u16, end: ModelEnd) -> FinishOutcome {
        let is_buried = self.tombstones.contains_key(&(id, token));
        let running = self.running(id, token);
        let ended = self.records.get(&id).filter(|record| record.token == token && !record.is_running());
        match (end, running, ended.map(|record| record.phase)) {
            (ModelEnd::Completed { answer, retention }, Some(record), _) => {
                self.keep(id, Record { phase: Phase::Done { answer }, retention, kept_for: retention, ..record });
            }
            (ModelEnd::Unknown, Some(record), _) => self.keep_as_unknown(id, record),
            // The operation that it took over may have run: its outcome is unknown again.
            (ModelEnd::Cancelled, Some(record), _) if record.took_over => {
                self.keep_as_unknown(id, record);
                self.bury(id, token);
            }
            (ModelEnd::Released | ModelEnd::Cancelled, Some(_), _) => {
                self.records.remove(&id);
                self.bury(id, token);
            }
            // The same end, repeated.
            (ModelEnd::Completed { .. }, None, Some(Phase::Done { .. }))
            | (ModelEnd::Unknown, None, Some(Phase::Unknown)) => {}
            (ModelEnd::Released | ModelEnd::Cancelled, None, _) if is_buried => {}
            // The claim is still on its way, or was never made.
            (ModelEnd::Cancelled, None, None) => self.bury(id, token),
            _ => return FinishOutcome::Fenced,
        }
        FinishOutcome::Stored
    }

    /// Returns the state of a key.
    #[must_use]
    pub fn get(&self, id: u8) -> Option<ModelRecordState> {
        self.records.get(&id).map(Record::state)
    }

    /// Ends the process and opens the store in another one. The store belongs to one process at a
    /// time, so the owners of its claims are gone and their outcome is unknown.
    pub fn restart(&mut self) {
        for record in self.records.values_mut().filter(|record| record.is_running()) {
            record.phase = Phase::Unknown;
        }
    }

    /// Returns the token of the claim whose record a key has.
    #[cfg(test)]
    pub(crate) fn holder(&self, id: u8) -> Option<u16> {
        self.records.get(&id).map(|record| record.token)
    }

    /// Returns the number of tombstones.
    #[cfg(test)]
    pub(crate) fn tombstones(&self) -> usize {
        self.tombstones.len()
    }

    /// Forgets a key. No store may do that; the exploration shows why.
    #[cfg(test)]
    pub(crate) fn forget_key(&mut self, id: u8) {
        self.records.remove(&id);
    }

    /// Returns the record of a claim that can be renewed and ended. Its lease may be over: until
    /// another claim takes the key over, the claim is still its token's.
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

    /// Returns whether a claim takes the key over: it allows that, and the outcome is unknown. A
    /// token whose claim has ended takes over nothing.
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
