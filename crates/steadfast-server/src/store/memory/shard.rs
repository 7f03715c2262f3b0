//! A part of the store's table: the records of its keys, and when each is checked for expiry. Plain
//! values; the callers hold the lock.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::kept::Kept;
use super::later;
use super::room::Held;
use super::tombstones::Tombstones;
use crate::store::{Claim, ClaimRef, ClaimToken, Fingerprint, KeyHolder, RecordId, RecordState, StoreError};

#[derive(Debug, Default)]
pub(super) struct Shard {
    pub(super) entries: HashMap<RecordId, Entry>,
    pub(super) expiry: Expiry,
    pub(super) tombstones: Tombstones,
}

/// When each record is checked for expiry. Two records may share an instant, so the record is part
/// of the key.
pub(super) type Expiry = BTreeSet<(Instant, RecordId)>;

#[derive(Debug)]
pub(super) struct Entry {
    fingerprint: Fingerprint,
    pub(super) token: ClaimToken,
    pub(super) phase: Phase,
    /// Whether the operation may have run before this claim began.
    pub(super) took_over: bool,
    pub(super) retention: Duration,
    pub(super) forget_at: Instant,
    /// Its place in `expiry`.
    pub(super) looked_at: Instant,
    /// Bytes reserved or used.
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) enum Phase {
    Running { until: Instant },
    Done(Kept),
    Unknown,
}

/// The state of a key, as read under the lock. A record is unpacked outside the lock.
pub(super) enum Known {
    State(RecordState),
    Done(Fingerprint, Kept),
}

impl Known {
    pub(super) fn state(self) -> Result<RecordState, StoreError> {
        match self {
            Self::State(state) => Ok(state),
            Self::Done(fingerprint, kept) => {
                Ok(RecordState::completed(fingerprint, kept.into_record().map_err(StoreError::Unreadable)?))
            }
        }
    }
}

impl Shard {
    /// Removes the entry of a claim that is held. Returns the room that it took; `None` if it is
    /// not held.
    pub(super) fn remove_held(&mut self, claim: ClaimRef, now: Instant) -> Option<Held> {
        let Slot::Occupied(slot) = self.entries.entry(claim.id) else { return None };
        if !slot.get().is_held_by(claim.token, now) {
            return None;
        }
        let entry = slot.remove();
        self.expiry.remove(&(entry.looked_at, claim.id));
        Some(entry.held())
    }

    /// Checks up to `looks` due records, and removes up to `most` that have expired.
    pub(super) fn sweep(&mut self, now: Instant, most: usize, looks: usize) -> Held {
        let mut gone = Held::default();
        for _ in 0..looks {
            if gone.records == most || self.expiry.first().is_none_or(|(looked_at, _)| *looked_at > now) {
                break;
            }
            let Some((_, id)) = self.expiry.pop_first() else { break };
            let Slot::Occupied(mut slot) = self.entries.entry(id) else { continue };
            if slot.get().forget_at > now {
                slot.get_mut().look_at_end(&mut self.expiry, &id);
            } else {
                gone = gone + slot.remove().held();
            }
        }
        gone
    }
}

impl Entry {
    /// Creates the entry of a claim that begins now, with its place in `expiry`.
    pub(super) fn enter(claim: &Claim<'_>, bytes: usize, now: Instant, expiry: &mut Expiry) -> Self {
        let until = later(now, claim.lease);
        let forget_at = later(until, claim.retention);
        expiry.insert((forget_at, *claim.id));
        Self {
            fingerprint: claim.fingerprint,
            token: claim.token,
            phase: Phase::Running { until },
            took_over: false,
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

    pub(super) fn held(&self) -> Held {
        Held { records: 1, bytes: self.bytes }
    }

    /// Notes that the record expires at another time than before. Its place in `expiry` changes
    /// only if the new time is much earlier; otherwise the next check sees it. Most operations end
    /// soon, so a change of place for each would be most of the work.
    pub(super) fn keep_in(&mut self, expiry: &mut Expiry, id: &RecordId) {
        let late = self.looked_at.saturating_duration_since(self.forget_at);
        if late > self.retention / 8 {
            expiry.remove(&(self.looked_at, *id));
            self.look_at_end(expiry, id);
        }
    }

    /// Lists the record to be checked when it expires.
    fn look_at_end(&mut self, expiry: &mut Expiry, id: &RecordId) {
        self.looked_at = self.forget_at;
        expiry.insert((self.forget_at, *id));
    }

    /// Ends the claim as unknown. The record takes `bytes` from then on.
    pub(super) fn end_as_unknown(&mut self, now: Instant, bytes: usize) {
        self.bytes = bytes;
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
            Phase::Done(kept) => return Known::Done(self.fingerprint, kept.clone()),
        })
    }
}
