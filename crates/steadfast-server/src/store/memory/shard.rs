//! A part of the store's table: the records of its keys, and when each is checked for expiry. Plain
//! values; the callers hold the lock.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::HashTable;

use super::later;
use super::room::Usage;
use super::slots::{Slot, Slots};
use super::tombstones::Tombstones;
use crate::store::{
    Claim, ClaimRef, ClaimToken, Fingerprint, KeyHolder, Record, RecordId, RecordState, ScopeId, StoreError,
};

#[derive(Debug, Default)]
pub(super) struct Shard {
    pub(super) slots: Slots<Entry>,
    /// The slot of each record.
    index: HashTable<Slot>,
    hasher: RandomState,
    pub(super) expiry: Expiry,
    pub(super) tombstones: Tombstones,
}

/// When each record is checked for expiry. Two records may share an instant, so the slot is part of
/// the key.
pub(super) type Expiry = BTreeSet<(Instant, Slot)>;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: RecordId,
    fingerprint: Fingerprint,
    pub(super) token: ClaimToken,
    pub(super) phase: Phase,
    /// Whether the operation may have run before this claim began.
    pub(super) took_over: bool,
    pub(super) scope: Option<ScopeId>,
    pub(super) retention: Duration,
    pub(super) forget_at: Instant,
    /// Its place in `expiry`.
    pub(super) looked_at: Instant,
    /// Bytes reserved or used.
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) enum Phase {
    Running {
        until: Instant,
    },
    /// With the packed record.
    Done(Bytes),
    Unknown,
}

/// The state of a key, as read under the lock. A record is unpacked outside the lock.
pub(super) enum Known {
    State(RecordState),
    Done(Fingerprint, Bytes),
}

impl Known {
    pub(super) fn state(self) -> Result<RecordState, StoreError> {
        match self {
            Self::State(state) => Ok(state),
            Self::Done(fingerprint, packed) => {
                Ok(RecordState::completed(fingerprint, Record::unpack(&packed).map_err(StoreError::Unreadable)?))
            }
        }
    }
}

impl Shard {
    pub(super) fn hash(&self, id: &RecordId) -> u64 {
        self.hasher.hash_one(id)
    }

    /// Returns the slot of a record. `hash` is that of its identity.
    pub(super) fn find(&self, hash: u64, id: &RecordId) -> Option<Slot> {
        self.index.find(hash, |slot| self.slots.get(*slot).is_some_and(|entry| entry.id == *id)).copied()
    }

    pub(super) fn entry(&self, id: &RecordId) -> Option<&Entry> {
        self.slots.get(self.find(self.hash(id), id)?)
    }

    /// Returns the entry of a record with its slot, and the list to keep it in.
    pub(super) fn entry_mut(&mut self, id: &RecordId) -> Option<(Slot, &mut Entry, &mut Expiry)> {
        let slot = self.find(self.hash(id), id)?;
        Some((slot, self.slots.get_mut(slot)?, &mut self.expiry))
    }

    /// Adds a record that is not here. `hash` is that of its identity.
    pub(super) fn insert(&mut self, hash: u64, entry: Entry) {
        let looked_at = entry.looked_at;
        let slot = self.slots.insert(entry);
        let Self { index, slots, hasher, .. } = self;
        index.insert_unique(hash, slot, |slot| slots.get(*slot).map_or(0, |entry| hasher.hash_one(entry.id)));
        self.expiry.insert((looked_at, slot));
    }

    /// Puts another record of the same identity into a slot.
    pub(super) fn replace(&mut self, slot: Slot, entry: Entry) {
        let Some(place) = self.slots.get_mut(slot) else { return };
        self.expiry.remove(&(place.looked_at, slot));
        self.expiry.insert((entry.looked_at, slot));
        *place = entry;
    }

    fn remove(&mut self, slot: Slot) -> Option<Entry> {
        let entry = self.slots.remove(slot)?;
        if let Ok(place) = self.index.find_entry(self.hasher.hash_one(entry.id), |other| *other == slot) {
            place.remove();
        }
        self.expiry.remove(&(entry.looked_at, slot));
        Some(entry)
    }

    /// Removes the entry of a claim that is held. Returns `None` if it is not held.
    pub(super) fn remove_held(&mut self, claim: ClaimRef, now: Instant) -> Option<Entry> {
        let slot = self.find(self.hash(&claim.id), &claim.id)?;
        if !self.slots.get(slot)?.is_held_by(claim.token, now) {
            return None;
        }
        self.remove(slot)
    }

    /// Checks up to `looks` due records, and removes up to `most` that have expired. Passes each of
    /// these to `left`.
    pub(super) fn sweep(&mut self, now: Instant, most: usize, looks: usize, mut left: impl FnMut(&Entry)) -> Usage {
        let mut gone = Usage::default();
        for _ in 0..looks {
            let Some((looked_at, slot)) = self.expiry.first().copied() else { break };
            if gone.records == most || looked_at > now {
                break;
            }
            let is_over = self.slots.get(slot).is_none_or(|entry| entry.forget_at <= now);
            if is_over && let Some(entry) = self.remove(slot) {
                gone = gone + entry.held();
                left(&entry);
                continue;
            }
            self.expiry.remove(&(looked_at, slot));
            if let Some(entry) = self.slots.get_mut(slot) {
                entry.look_at_end(&mut self.expiry, slot);
            }
        }
        gone
    }
}

impl Entry {
    /// Creates the entry of a claim that begins now.
    pub(super) fn enter(claim: &Claim<'_>, bytes: usize, now: Instant) -> Self {
        let until = later(now, claim.lease);
        let forget_at = later(until, claim.retention);
        Self {
            id: *claim.id,
            fingerprint: claim.fingerprint,
            token: claim.token,
            phase: Phase::Running { until },
            took_over: false,
            scope: claim.scope,
            retention: claim.retention,
            forget_at,
            looked_at: forget_at,
            bytes,
        }
    }

    /// Returns whether a claim may have the key.
    pub(super) fn gives_way_to(&self, claim: &Claim<'_>, now: Instant) -> bool {
        let (is_running, is_unknown) = match self.phase {
            Phase::Running { until } => (true, until <= now),
            Phase::Unknown => (false, true),
            Phase::Done(_) => (false, false),
        };
        let holder = KeyHolder { token: self.token, fingerprint: self.fingerprint, is_running, is_unknown };
        holder.gives_way_to(claim.token, claim.fingerprint, claim.take_over)
    }

    /// Returns whether a claim that acquires this key takes over an operation that may have run.
    pub(super) fn is_taken_over_by(&self, claim: &Claim<'_>) -> bool {
        self.took_over || self.token != claim.token
    }

    /// Returns whether this claim is here and has ended.
    pub(super) fn has_ended(&self, token: ClaimToken, now: Instant) -> bool {
        self.token == token && self.forget_at > now && !matches!(self.phase, Phase::Running { .. })
    }

    pub(super) fn held(&self) -> Usage {
        Usage { records: 1, bytes: self.bytes }
    }

    /// Notes that the record expires at another time than before. Its place in `expiry` changes
    /// only if the new time is much earlier; otherwise the next check sees it. Most operations end
    /// soon, so a change of place for each would be most of the work.
    pub(super) fn keep_in(&mut self, expiry: &mut Expiry, slot: Slot) {
        let late = self.looked_at.saturating_duration_since(self.forget_at);
        if late > self.retention / 8 {
            expiry.remove(&(self.looked_at, slot));
            self.look_at_end(expiry, slot);
        }
    }

    /// Lists the record to be checked when it expires.
    fn look_at_end(&mut self, expiry: &mut Expiry, slot: Slot) {
        self.looked_at = self.forget_at;
        expiry.insert((self.forget_at, slot));
    }

    /// Ends the claim as unknown.
    pub(super) fn end_as_unknown(&mut self, now: Instant) {
        self.phase = Phase::Unknown;
        self.forget_at = later(now, self.retention);
    }

    pub(super) fn is_held_by(&self, token: ClaimToken, now: Instant) -> bool {
        self.token == token && self.forget_at > now && matches!(self.phase, Phase::Running { .. })
    }

    pub(super) fn known(&self, now: Instant) -> Known {
        Known::State(match &self.phase {
            Phase::Running { until } if *until > now => RecordState::in_progress(self.fingerprint, *until - now),
            Phase::Running { .. } | Phase::Unknown => RecordState::unknown(self.fingerprint),
            Phase::Done(packed) => return Known::Done(self.fingerprint, packed.clone()),
        })
    }
}
