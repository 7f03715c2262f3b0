//! A store in memory: for tests, and for one process whose keys may be forgotten when it ends.
//!
//! It is bounded by records and by bytes, and reserves the room for an answer when the key is claimed, so that an operation that has
//! run can always be recorded. It evicts nothing that is alive; full, it says so. A restart forgets everything, running claims too:
//! behind it, a crash between the charge and the answer lets a repeat run again.

use std::cell::Cell;
use std::collections::hash_map::Entry as Place;
use std::collections::{BTreeSet, HashMap};
use std::ops::Add;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::apart::Apart;
use super::record::Record;
use super::store::{
    Claim, ClaimToken, Claimed, Completed, Completion, Fingerprint, RecordId, State, Store, StoreError,
};
use crate::clock;
use crate::key::KeyError;

/// Requests under different keys meet in one shard of so many: where two cores do, one of them sleeps, which takes longer than all else.
const SHARDS: usize = 256;
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
/// What has expired is removed on the way, a few records at each claim; [`Store::sweep`] removes more. It takes up room until then, and
/// for up to an eighth of its retention longer.
#[derive(Debug)]
pub struct MemoryStore {
    shards: Box<[Apart<Mutex<Shard>>]>,
    max_records: usize,
    max_bytes: usize,
    held: Apart<Total>,
}

/// What all shards hold.
#[derive(Debug, Default)]
struct Total {
    records: AtomicUsize,
    bytes: AtomicUsize,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<RecordId, Entry>,
    expiry: Expiry,
}

/// When each record is looked at, to be forgotten. An instant may be shared, so the record is part of the key.
type Expiry = BTreeSet<(Instant, RecordId)>;

#[derive(Debug)]
struct Entry {
    fingerprint: Fingerprint,
    token: ClaimToken,
    phase: Phase,
    retention: Duration,
    forget_at: Instant,
    /// Its place in `expiry`.
    looked_at: Instant,
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
            shards: (0..SHARDS).map(|_| Apart::default()).collect(),
            max_records: 100_000,
            max_bytes: 256 * 1024 * 1024,
            held: Apart::default(),
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
        self.held.0.records.load(Ordering::Relaxed)
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, id: &RecordId) -> MutexGuard<'_, Shard> {
        let [first, ..] = id.as_bytes();
        // All of them are there; nothing between lock and unlock panics, so poison means nothing.
        let shard = self.shards.get(usize::from(*first) % SHARDS).unwrap_or(&self.shards[0]);
        shard.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for what comes, some of it in the place of what has gone and of what it replaces; where there is no room, what has gone
    /// is room all the same, and what would have been replaced stays.
    ///
    /// Every claim of every core counts here, so that it touches as little as it can: one that sweeps as many records as it adds
    /// leaves their number alone.
    fn replace(&self, gone: Held, replaced: Held, comes: Held) -> Result<(), StoreError> {
        let room = gone + replaced;
        // Where there is no room for one more, none has gone and none is replaced.
        let Apart(total) = &self.held;
        trade(&total.records, room.records, comes.records, self.max_records)?;
        trade(&total.bytes, room.bytes, comes.bytes, self.max_bytes).inspect_err(|_| {
            self.give_back(Held { records: comes.records - replaced.records, bytes: gone.bytes });
        })
    }

    fn give_back(&self, held: Held) {
        let Apart(total) = &self.held;
        total.records.fetch_sub(held.records, Ordering::Relaxed);
        total.bytes.fetch_sub(held.bytes, Ordering::Relaxed);
    }

    /// Changes the entry of a claim that is still `token`'s: one that has ended is not ended again.
    fn fenced(&self, id: &RecordId, token: ClaimToken, change: impl FnOnce(&mut Entry, Instant)) -> Completed {
        let now = clock::now();
        let mut shard = self.shard(id);
        let Shard { entries, expiry } = &mut *shard;
        let Some(entry) = entries.get_mut(id).filter(|entry| entry.is_held_by(token, now)) else {
            return Completed::Lost;
        };
        let bytes = entry.bytes;
        change(entry, now);
        let now_bytes = entry.bytes;
        entry.keep_in(expiry, id);
        // An end is recorded whatever it takes: the room for an answer was reserved, and its headers are a little more.
        let _fits = trade(&self.held.0.bytes, bytes, now_bytes, usize::MAX);
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
        let gone = shard.sweep(now, SWEEP);
        let Shard { entries, expiry } = &mut *shard;
        let mut bytes = OVERHEAD.saturating_add(claim.reserve);
        // The room comes first: a record that is replaced must not be forgotten for want of it.
        match entries.entry(*claim.id) {
            Place::Vacant(place) => {
                self.replace(gone, Held::default(), Held { records: 1, bytes })?;
                place.insert(Entry::enter(claim, bytes, now, expiry));
            }
            Place::Occupied(mut place) => {
                let entry = place.get();
                if entry.forget_at > now {
                    if !entry.gives_way_to(claim, now) {
                        self.give_back(gone);
                        return Ok(Claimed::Known(entry.state(now)));
                    }
                    bytes = bytes.max(entry.bytes);
                }
                self.replace(gone, entry.held(), Held { records: 1, bytes })?;
                expiry.remove(&(entry.looked_at, *claim.id));
                place.insert(Entry::enter(claim, bytes, now, expiry));
            }
        }
        Ok(Claimed::Won(()))
    }
}

/// A number that nothing else in this process has been given. A thread takes a thousand at a time, so that threads seldom meet.
fn number() -> u64 {
    const BLOCK: u64 = 1000;
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    thread_local!(static NEXT: Cell<u64> = const { Cell::new(0) });
    NEXT.with(|next| {
        let begins = next.get() % BLOCK == 0;
        let number = if begins { TAKEN.fetch_add(BLOCK, Ordering::Relaxed) } else { next.get() };
        next.set(number + 1);
        number
    })
}

/// Records, and the bytes that are reserved or used for them.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    records: usize,
    bytes: usize,
}

impl Add for Held {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { records: self.records + other.records, bytes: self.bytes + other.bytes }
    }
}

impl Shard {
    /// Removes up to `most` records that have expired.
    fn sweep(&mut self, now: Instant, most: usize) -> Held {
        let mut gone = Held::default();
        while gone.records < most {
            let Some(&(looked_at, id)) = self.expiry.first() else { break };
            if looked_at > now {
                break;
            }
            self.expiry.pop_first();
            if let Place::Occupied(mut place) = self.entries.entry(id) {
                if place.get().forget_at > now {
                    place.get_mut().look_at_end(&mut self.expiry, &id);
                } else {
                    gone = gone + place.remove().held();
                }
            }
        }
        gone
    }

    fn remove(&mut self, id: &RecordId) -> Held {
        let Some(entry) = self.entries.remove(id) else { return Held::default() };
        self.expiry.remove(&(entry.looked_at, *id));
        entry.held()
    }
}

impl Entry {
    /// A claim that begins now, with its place in `expiry`.
    fn enter(claim: &Claim<'_>, bytes: usize, now: Instant, expiry: &mut Expiry) -> Self {
        let until = later(now, claim.lease);
        let forget_at = later(until, claim.retention);
        expiry.insert((forget_at, *claim.id));
        Self {
            fingerprint: claim.fingerprint,
            token: claim.token,
            phase: Phase::Running { until },
            retention: claim.retention,
            forget_at,
            looked_at: forget_at,
            bytes,
        }
    }

    /// The same claim once more, or one that takes over what is unknown.
    fn gives_way_to(&self, claim: &Claim<'_>, now: Instant) -> bool {
        let running = matches!(self.phase, Phase::Running { .. });
        let unknown = matches!(self.state(now), State::Unknown { .. });
        let takes_over = claim.take_over && unknown && self.fingerprint == claim.fingerprint;
        (self.token == claim.token && running) || takes_over
    }

    fn held(&self) -> Held {
        Held { records: 1, bytes: self.bytes }
    }

    /// It is to be forgotten at another time than was said before. Where that is later, and where it is hardly earlier, it is seen
    /// when it is looked at: most operations end soon, so that a change of place for each would be most of the work.
    fn keep_in(&mut self, expiry: &mut Expiry, id: &RecordId) {
        let late = self.looked_at.saturating_duration_since(self.forget_at);
        if late > self.retention / 8 {
            expiry.remove(&(self.looked_at, *id));
            self.look_at_end(expiry, id);
        }
    }

    /// It is looked at when it is to be forgotten.
    fn look_at_end(&mut self, expiry: &mut Expiry, id: &RecordId) {
        self.looked_at = self.forget_at;
        expiry.insert((self.forget_at, *id));
    }

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

/// `comes` in the place of `gone`, within `most`.
fn trade(counter: &AtomicUsize, gone: usize, comes: usize, most: usize) -> Result<(), StoreError> {
    let more = comes.saturating_sub(gone);
    if more > 0 {
        let add = |now: usize| now.checked_add(more).filter(|sum| *sum <= most);
        return counter
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .map(|_| ())
            .map_err(|_| StoreError::Full);
    }
    if gone > comes {
        counter.fetch_sub(gone - comes, Ordering::Relaxed);
    }
    Ok(())
}

impl Store for MemoryStore {
    type Session = ();

    /// Counted: nobody else claims here, a copy of the process has a copy of the store, and to draw a name takes as long as all the rest of
    /// a claim.
    fn token(&self) -> Result<ClaimToken, KeyError> {
        // Marked, so that whoever counts as well does not count the same.
        Ok(ClaimToken::from_bytes((u128::from(u64::MAX) << 64 | u128::from(number())).to_be_bytes()))
    }

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
        self.give_back(shard.remove(id));
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
            let gone = shard.sweep(now, most - swept);
            self.give_back(gone);
            swept += gone.records;
        }
        Ok(swept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LEASE: Duration = Duration::from_secs(30);

    #[test]
    fn no_thread_gives_a_number_that_another_has_given() {
        let of_one = || (0..2500).map(|_| number()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(of_one)).collect();
        let mut numbers: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 4 * 2500);
    }

    /// A record that is to be forgotten at `forget_at` instead of a lease and its retention later, and how many records a sweep removes
    /// at each of some instants, all of them after the claim.
    fn check(retention: Duration, forget_at: Duration, sweeps: &[(Duration, usize)]) {
        let (mut shard, now, id) = (Shard::default(), clock::now(), RecordId::new("", "1"));
        let token = ClaimToken::new().unwrap();
        let claim = Claim::new(&id, token, Fingerprint::from_bytes([1; 32]), LEASE, retention);
        let Shard { entries, expiry } = &mut shard;
        let entry = entries.entry(id).or_insert(Entry::enter(&claim, 7, now, expiry));
        entry.forget_at = now + forget_at;
        entry.keep_in(expiry, &id);
        for (at, removed) in sweeps {
            assert_eq!(shard.sweep(now + *at, 9).records, *removed, "{retention:?}, at {at:?}");
        }
        assert!(shard.entries.is_empty() && shard.expiry.is_empty(), "{retention:?}");
    }

    /// A record's place in the order of expiry is not changed at each end, so it may be looked at late; and early, where it was renewed.
    #[test]
    fn what_has_expired_is_swept_within_an_eighth_of_its_retention() {
        for retention in [Duration::ZERO, SECOND, 60 * SECOND, 3600 * SECOND] {
            let ended_at_once = retention;
            let latest = retention + retention / 8;
            check(retention, ended_at_once, &[(latest, 1)]);
            if !retention.is_zero() {
                check(retention, ended_at_once, &[(retention - SECOND / 10, 0), (latest, 1), (latest, 0)]);
            }
            let renewed = 4 * LEASE + retention;
            check(retention, renewed, &[(LEASE + retention, 0), (renewed - SECOND, 0), (renewed, 1)]);
        }
    }

    /// What is counted is what is there, whatever was refused, replaced or swept on the way.
    #[test]
    fn the_books_balance() {
        let store = MemoryStore::new().max_records(40).max_bytes(20_000);
        let mut chance = fastrand::Rng::with_seed(1);
        let mut claims = Vec::new();
        for _ in 0..20_000 {
            let id = RecordId::new("", &chance.u8(..60).to_string());
            let (lease, retention) =
                (Duration::from_nanos(chance.u64(..40_000)), Duration::from_nanos(chance.u64(..90_000)));
            let token = ClaimToken::new().unwrap();
            let claim = Claim::new(&id, token, Fingerprint::from_bytes([1; 32]), lease, retention);
            if store.claim_now(&claim.reserving(chance.usize(..2_000)).taking_over(chance.bool())).is_ok() {
                claims.push((id, token));
            }
            let (id, token) = claims.get(chance.usize(..claims.len().max(1))).copied().unwrap_or((id, token));
            store.fenced(&id, token, |entry, now| {
                entry.bytes = OVERHEAD + chance.usize(..3_000);
                entry.phase = if chance.bool() { Phase::Unknown } else { Phase::Running { until: now } };
                entry.forget_at = later(now, retention);
            });
        }
        let mut there = Held::default();
        for shard in &store.shards {
            shard.0.lock().unwrap().entries.values().for_each(|entry| there = there + entry.held());
        }
        assert_eq!((store.len(), store.held.0.bytes.load(Ordering::Relaxed)), (there.records, there.bytes));
        assert!(claims.len() > 1000, "{}", claims.len());
    }
}
