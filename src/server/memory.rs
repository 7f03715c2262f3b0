//! A store in memory: for tests, and for one process whose keys may be forgotten when it ends.
//!
//! It is bounded by records and by bytes, and reserves the room for an answer when the key is claimed, so that an operation that has
//! run can always be recorded. It evicts nothing that is alive; full, it says so. A restart forgets everything, running claims too:
//! behind it, a crash between the charge and the answer lets a repeat run again.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::record::Record;
use super::store::{
    Claim, ClaimToken, Claimed, Completed, Completion, Fingerprint, RecordId, State, Store, StoreError,
};
use crate::clock;

/// Requests under different keys meet in one shard of so many.
const SHARDS: usize = 32;
/// A claim sweeps so many expired records on its way.
const SWEEP: usize = 4;
/// What a record costs beside its answer.
const OVERHEAD: usize = 256;

/// Records in memory.
///
/// | bound | default |
/// | --- | --- |
/// | [`max_records`](Self::max_records) | 100,000, running ones included |
/// | [`max_bytes`](Self::max_bytes) | 256 MiB of answers and reservations |
///
/// What has expired is removed on the way, a few records at each claim; [`Store::sweep`] removes more.
#[derive(Debug)]
pub struct MemoryStore {
    shards: [Apart; SHARDS],
    max_records: usize,
    max_bytes: usize,
    records: AtomicUsize,
    bytes: AtomicUsize,
}

/// On cache lines of its own, so that two cores at two shards do not wait for one line.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Apart(Mutex<Shard>);

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<RecordId, Entry>,
    /// When each is forgotten. An instant may be shared, so the record is part of the key.
    expiry: BTreeMap<(Instant, RecordId), ()>,
}

#[derive(Debug)]
struct Entry {
    fingerprint: Fingerprint,
    token: ClaimToken,
    phase: Phase,
    retention: Duration,
    forget_at: Instant,
    /// Bytes reserved or used.
    bytes: usize,
}

#[derive(Debug)]
enum Phase {
    Running { until: Instant },
    Done(Record),
    Unknown,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// A store with the default bounds.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Apart::default()),
            max_records: 100_000,
            max_bytes: 256 * 1024 * 1024,
            records: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        }
    }

    /// The most records, running claims included.
    #[must_use]
    pub fn max_records(mut self, records: usize) -> Self {
        self.max_records = records;
        self
    }

    /// The most bytes of stored and reserved answers.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// The records that it holds, expired ones included until they are swept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.load(Ordering::Relaxed)
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, id: &RecordId) -> MutexGuard<'_, Shard> {
        let [first, ..] = id.as_bytes();
        // `from_fn` made all of them; nothing between lock and unlock panics, so poison means nothing.
        let shard = self.shards.get(usize::from(*first) % SHARDS).unwrap_or(&self.shards[0]);
        shard.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reserve(&self, bytes: usize) -> Result<(), StoreError> {
        take(&self.records, 1, self.max_records)?;
        take(&self.bytes, bytes, self.max_bytes).inspect_err(|_| {
            self.records.fetch_sub(1, Ordering::Relaxed);
        })
    }

    fn sweep_shard(&self, shard: &mut Shard, now: Instant, most: usize) -> usize {
        let mut swept = 0;
        while swept < most {
            let Some((&(forget_at, id), ())) = shard.expiry.first_key_value() else { break };
            if forget_at > now {
                break;
            }
            self.remove(shard, &id);
            swept += 1;
        }
        swept
    }

    fn remove(&self, shard: &mut Shard, id: &RecordId) {
        if let Some(entry) = shard.entries.remove(id) {
            shard.expiry.remove(&(entry.forget_at, *id));
            self.records.fetch_sub(1, Ordering::Relaxed);
            self.bytes.fetch_sub(entry.bytes, Ordering::Relaxed);
        }
    }

    /// Changes the entry of a claim that is still `token`'s: one that has ended is not ended again.
    fn fenced(&self, id: &RecordId, token: ClaimToken, change: impl FnOnce(&mut Entry, Instant)) -> Completed {
        let now = clock::now();
        let mut shard = self.shard(id);
        let Some(entry) = shard.entries.get_mut(id).filter(|entry| entry.is_held_by(token, now)) else {
            return Completed::Lost;
        };
        let (was, bytes) = (entry.forget_at, entry.bytes);
        change(entry, now);
        let (is, now_bytes) = (entry.forget_at, entry.bytes);
        shard.expiry.remove(&(was, *id));
        shard.expiry.insert((is, *id), ());
        // What was reserved is never less than what is used.
        self.bytes.fetch_add(now_bytes, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Completed::Stored
    }

    /// The completion whose reply was lost, repeated.
    fn is_completed_by(&self, id: &RecordId, token: ClaimToken) -> bool {
        let done = |entry: &Entry| entry.token == token && matches!(entry.phase, Phase::Done(_));
        self.shard(id).entries.get(id).is_some_and(done)
    }

    fn claim_now(&self, claim: &Claim<'_>) -> Result<Claimed<()>, StoreError> {
        let now = clock::now();
        let mut shard = self.shard(claim.id);
        self.sweep_shard(&mut shard, now, SWEEP);
        if shard.entries.get(claim.id).is_some_and(|entry| entry.forget_at <= now) {
            self.remove(&mut shard, claim.id);
        }
        if let Some(entry) = shard.entries.get(claim.id) {
            let same_claim = entry.token == claim.token && matches!(entry.phase, Phase::Running { .. });
            let state = entry.state(now);
            let unknown = matches!(state, State::Unknown { .. });
            let takes_over = claim.take_over && unknown && entry.fingerprint == claim.fingerprint;
            if !same_claim && !takes_over {
                return Ok(Claimed::Known(state));
            }
            // The room comes first: a record that is replaced must not be forgotten for want of it.
            let (had, wants) = (entry.bytes, OVERHEAD.saturating_add(claim.reserve));
            take(&self.bytes, wants.saturating_sub(had), self.max_bytes)?;
            self.remove(&mut shard, claim.id);
            self.records.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(had, Ordering::Relaxed);
            Self::put(&mut shard, claim, had.max(wants), now);
            return Ok(Claimed::Won(()));
        }
        let bytes = OVERHEAD.saturating_add(claim.reserve);
        self.reserve(bytes)?;
        Self::put(&mut shard, claim, bytes, now);
        Ok(Claimed::Won(()))
    }

    fn put(shard: &mut Shard, claim: &Claim<'_>, bytes: usize, now: Instant) {
        let until = later(now, claim.lease);
        let entry = Entry {
            fingerprint: claim.fingerprint,
            token: claim.token,
            phase: Phase::Running { until },
            retention: claim.retention,
            forget_at: later(until, claim.retention),
            bytes,
        };
        shard.expiry.insert((entry.forget_at, *claim.id), ());
        shard.entries.insert(*claim.id, entry);
    }
}

impl Entry {
    fn is_held_by(&self, token: ClaimToken, now: Instant) -> bool {
        self.token == token && self.forget_at > now && matches!(self.phase, Phase::Running { .. })
    }

    fn state(&self, now: Instant) -> State {
        match &self.phase {
            Phase::Running { until } if *until > now => State::running(self.fingerprint, *until - now),
            Phase::Running { .. } | Phase::Unknown => State::unknown(self.fingerprint),
            Phase::Done(record) => State::done(self.fingerprint, record.clone()),
        }
    }
}

/// `instant + time`, or the farthest that the clock can name: about a century.
fn later(instant: Instant, time: Duration) -> Instant {
    let century = Duration::from_secs(100 * 365 * 24 * 3600);
    instant.checked_add(time.min(century)).unwrap_or(instant)
}

fn take(counter: &AtomicUsize, amount: usize, most: usize) -> Result<(), StoreError> {
    let add = |now: usize| now.checked_add(amount).filter(|sum| *sum <= most);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).map(|_| ()).map_err(|_| StoreError::Full)
}

impl Store for MemoryStore {
    type Session = ();

    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed<()>, StoreError> {
        self.claim_now(claim)
    }

    async fn renew(&self, id: &RecordId, token: ClaimToken, lease: Duration) -> Result<bool, StoreError> {
        let held = self.fenced(id, token, |entry, now| {
            let until = later(now, lease);
            entry.phase = Phase::Running { until };
            entry.forget_at = later(until, entry.retention);
        });
        Ok(held == Completed::Stored)
    }

    async fn complete(
        &self,
        id: &RecordId,
        token: ClaimToken,
        (): (),
        completion: Completion,
    ) -> Result<Completed, StoreError> {
        let completed = self.fenced(id, token, |entry, now| {
            entry.bytes = OVERHEAD + completion.record.size();
            entry.phase = Phase::Done(completion.record);
            entry.forget_at = later(now, completion.retention);
        });
        let stored = completed == Completed::Stored || self.is_completed_by(id, token);
        Ok(if stored { Completed::Stored } else { completed })
    }

    async fn release(&self, id: &RecordId, token: ClaimToken, (): ()) -> Result<Completed, StoreError> {
        let now = clock::now();
        let mut shard = self.shard(id);
        if !shard.entries.get(id).is_some_and(|entry| entry.is_held_by(token, now)) {
            return Ok(Completed::Lost);
        }
        self.remove(&mut shard, id);
        Ok(Completed::Stored)
    }

    async fn abandon(&self, id: &RecordId, token: ClaimToken, _: Option<()>) -> Result<Completed, StoreError> {
        Ok(self.fenced(id, token, |entry, now| {
            entry.bytes = OVERHEAD;
            entry.phase = Phase::Unknown;
            entry.forget_at = later(now, entry.retention);
        }))
    }

    async fn look(&self, id: &RecordId) -> Result<Option<State>, StoreError> {
        let now = clock::now();
        let shard = self.shard(id);
        Ok(shard.entries.get(id).filter(|entry| entry.forget_at > now).map(|entry| entry.state(now)))
    }

    async fn sweep(&self, most: usize) -> Result<usize, StoreError> {
        let now = clock::now();
        let mut swept = 0;
        for shard in &self.shards {
            let mut shard = shard.0.lock().unwrap_or_else(PoisonError::into_inner);
            swept += self.sweep_shard(&mut shard, now, most - swept);
        }
        Ok(swept)
    }
}
