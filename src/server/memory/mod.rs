//! A store in memory: for tests, and for one process whose keys may be forgotten when it ends.
//!
//! It is bounded by records and by bytes, and reserves the room for an answer when the key is claimed, so that an operation that has
//! run can always be recorded. It evicts nothing that is alive; full, it says so. A restart forgets everything, running claims too:
//! behind it, a crash between the charge and the answer lets a repeat run again.

mod expiry;
mod room;

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::expiry::{Expiry, Place};
use self::room::{Held, Room};
use super::apart::{Apart, Stripe};
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
/// What has expired is removed on the way: a few records at each claim, and as many as it takes before one is refused. It takes up room
/// until then, and is seen to have expired up to an eighth of its retention late. [`Store::sweep`] removes more.
///
/// A thread forgets what it has claimed itself before it forgets what another has, since allocators take back best what the same thread
/// took from them.
#[derive(Debug)]
pub struct MemoryStore {
    shards: Box<[Apart<Mutex<Shard>>]>,
    expiry: Expiry,
    room: Room,
}

type Shard = HashMap<RecordId, Entry>;

#[derive(Debug)]
struct Entry {
    fingerprint: Fingerprint,
    token: ClaimToken,
    phase: Phase,
    retention: Duration,
    forget_at: Instant,
    /// Its place in `expiry`.
    place: Place,
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
            expiry: Expiry::default(),
            room: Room::new(100_000, 256 * 1024 * 1024),
        }
    }

    /// The most records, running claims included.
    #[must_use]
    pub fn max_records(mut self, records: usize) -> Self {
        self.room.max_records = records;
        self
    }

    /// The most bytes of stored and reserved answers.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.room.max_bytes = bytes;
        self
    }

    /// The records that it holds, expired ones included until they are swept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.room.taken().records
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

    /// Changes the entry of a claim that is still `token`'s: one that has ended is not ended again.
    fn fenced(&self, id: &RecordId, token: ClaimToken, change: impl FnOnce(&mut Entry, Instant)) -> Completed {
        let now = clock::now();
        let mut shard = self.shard(id);
        let Some(entry) = shard.get_mut(id).filter(|entry| entry.is_held_by(token, now)) else {
            return Completed::Lost;
        };
        let bytes = entry.bytes;
        change(entry, now);
        self.keep_in_place(entry, *id);
        // An end is recorded whatever it takes: the room for an answer was reserved, and its headers are a little more.
        self.room.resize(bytes, entry.bytes);
        Completed::Stored
    }

    /// It is to be forgotten at another time than was said before. Where that is later, and where it is hardly earlier, it is seen
    /// when it is looked at: most operations end soon, so that a change of place for each would be most of the work.
    fn keep_in_place(&self, entry: &mut Entry, id: RecordId) {
        let late = entry.place.looked_at.saturating_duration_since(entry.forget_at);
        if late > entry.retention / 8 {
            self.expiry.remove(entry.place, id);
            entry.place = self.expiry.add(id, entry.forget_at);
        }
    }

    /// The completion whose reply was lost, repeated.
    fn is_completed_by(&self, id: &RecordId, token: ClaimToken) -> bool {
        let done = |entry: &Entry| entry.token == token && matches!(entry.phase, Phase::Done(_));
        self.shard(id).get(id).is_some_and(done)
    }

    fn claim_now(&self, claim: &Claim<'_>) -> Result<Claimed<()>, StoreError> {
        let now = clock::now();
        let mut gone = self.sweep_on_the_way(claim.id, now);
        loop {
            let claimed = self.enter(claim, now, gone);
            if !matches!(claimed, Err(StoreError::Full)) {
                return claimed;
            }
            // Nothing is refused for want of room that nobody uses.
            gone = self.sweep_lists(Stripe::all(), now, SWEEP);
            if gone.records == 0 {
                return claimed;
            }
        }
    }

    /// Claims in the room of what has gone, if more is wanted than there is.
    fn enter(&self, claim: &Claim<'_>, now: Instant, gone: Held) -> Result<Claimed<()>, StoreError> {
        let mut shard = self.shard(claim.id);
        let mut bytes = OVERHEAD.saturating_add(claim.reserve);
        // The room comes first: a record that is replaced must not be forgotten for want of it.
        match shard.entry(*claim.id) {
            Slot::Vacant(slot) => {
                self.room.replace(gone, Held::default(), Held { records: 1, bytes })?;
                slot.insert(Entry::of(claim, bytes, now, &self.expiry));
            }
            Slot::Occupied(mut slot) => {
                let entry = slot.get();
                if entry.forget_at > now {
                    if !entry.gives_way_to(claim, now) {
                        self.room.give_back(gone);
                        return Ok(Claimed::Known(entry.state(now)));
                    }
                    bytes = bytes.max(entry.bytes);
                }
                self.room.replace(gone, entry.held(), Held { records: 1, bytes })?;
                self.expiry.remove(entry.place, *claim.id);
                slot.insert(Entry::of(claim, bytes, now, &self.expiry));
            }
        }
        Ok(Claimed::Won(()))
    }

    fn release_now(&self, id: &RecordId, token: ClaimToken) -> Completed {
        let now = clock::now();
        let mut shard = self.shard(id);
        let Slot::Occupied(slot) = shard.entry(*id) else { return Completed::Lost };
        if !slot.get().is_held_by(token, now) {
            return Completed::Lost;
        }
        let entry = slot.remove();
        self.expiry.remove(entry.place, *id);
        self.room.give_back(entry.held());
        Completed::Stored
    }

    /// Forgets a few records that have expired: this thread's, and then those of any other, which may have nothing more to do. Which one, a
    /// hash decides.
    fn sweep_on_the_way(&self, id: &RecordId, now: Instant) -> Held {
        let [_, other, ..] = id.as_bytes();
        let lists = [Stripe::of_this_thread(), Stripe::of(usize::from(*other))];
        self.sweep_lists(lists.into_iter(), now, SWEEP)
    }

    fn sweep_lists(&self, lists: impl Iterator<Item = Stripe>, now: Instant, most: usize) -> Held {
        let expired = lists.flat_map(|list| std::iter::from_fn(move || self.expiry.pop(list, now)));
        // Each is taken from its list before its shard is locked: whoever has a shard may lock a list.
        expired
            .map(|(id, place)| self.forget(id, place, now))
            .filter(|gone| gone.records > 0)
            .take(most)
            .fold(Held::default(), Held::add)
    }

    /// Forgets a record whose time has come, unless it was renewed, or claimed anew since it was taken from its list.
    fn forget(&self, id: RecordId, place: Place, now: Instant) -> Held {
        let mut shard = self.shard(&id);
        let Slot::Occupied(mut slot) = shard.entry(id) else { return Held::default() };
        let entry = slot.get_mut();
        if entry.place != place {
            return Held::default();
        }
        if entry.forget_at > now {
            entry.place = self.expiry.add(id, entry.forget_at);
            return Held::default();
        }
        let entry = slot.remove();
        drop(shard);
        entry.held()
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

impl Entry {
    /// A claim that begins now.
    fn of(claim: &Claim<'_>, bytes: usize, now: Instant, expiry: &Expiry) -> Self {
        let until = later(now, claim.lease);
        let forget_at = later(until, claim.retention);
        Self {
            fingerprint: claim.fingerprint,
            token: claim.token,
            phase: Phase::Running { until },
            retention: claim.retention,
            forget_at,
            place: expiry.add(*claim.id, forget_at),
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
        Ok(self.release_now(id, token))
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
        Ok(shard.get(id).filter(|entry| entry.forget_at > now).map(|entry| entry.state(now)))
    }

    async fn sweep(&self, most: usize) -> Result<usize, StoreError> {
        let gone = self.sweep_lists(Stripe::all(), clock::now(), most);
        self.room.give_back(gone);
        Ok(gone.records)
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
        let (store, now, id) = (MemoryStore::new(), clock::now(), RecordId::new("", "1"));
        let token = ClaimToken::new().unwrap();
        let claim = Claim::new(&id, token, Fingerprint::from_bytes([1; 32]), LEASE, retention);
        let mut entry = Entry::of(&claim, 7, now, &store.expiry);
        entry.forget_at = now + forget_at;
        store.keep_in_place(&mut entry, id);
        store.shard(&id).insert(id, entry);
        for (at, removed) in sweeps {
            let gone = store.sweep_lists(Stripe::all(), now + *at, 9);
            assert_eq!(gone.records, *removed, "{retention:?}, at {at:?}");
        }
        assert_eq!((store.shard(&id).len(), store.expiry.len()), (0, 0), "{retention:?}");
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

    fn win(store: &MemoryStore, key: u32, retention: Duration) -> (RecordId, ClaimToken) {
        let (id, token) = (RecordId::new("", &key.to_string()), ClaimToken::new().unwrap());
        let claim = Claim::new(&id, token, Fingerprint::from_bytes([1; 32]), LEASE, retention).taking_over(true);
        assert!(matches!(store.claim_now(&claim), Ok(Claimed::Won(()))), "{key}");
        (id, token)
    }

    fn abandon(store: &MemoryStore, (id, token): (RecordId, ClaimToken)) {
        store.fenced(&id, token, |entry, now| {
            entry.phase = Phase::Unknown;
            entry.forget_at = later(now, entry.retention);
        });
    }

    /// Whichever thread claimed it: one that does nothing more forgets nothing.
    #[test]
    fn no_claim_is_refused_while_what_has_expired_takes_up_the_room() {
        for key in 0..64 {
            let store = MemoryStore::new().max_records(3);
            let fill =
                || [1000, 1001, 1002].map(|key| win(&store, key, Duration::ZERO)).map(|won| abandon(&store, won));
            std::thread::scope(|scope| _ = scope.spawn(fill).join().unwrap());
            assert_eq!(store.len(), 3);
            win(&store, key, Duration::ZERO);
        }
    }

    #[test]
    fn what_is_taken_over_is_listed_once_and_what_is_released_is_not() {
        let store = MemoryStore::new();
        abandon(&store, win(&store, 1, 3600 * SECOND));
        let (id, token) = win(&store, 1, 3600 * SECOND);
        assert_eq!(store.expiry.len(), 1);
        assert_eq!(store.release_now(&id, token), Completed::Stored);
        assert_eq!((store.expiry.len(), store.len()), (0, 0));
    }

    /// Between the list and the shard nothing is locked.
    #[test]
    fn a_record_that_is_claimed_anew_while_it_is_swept_is_not_listed_twice() {
        let (store, later) = (MemoryStore::new(), clock::now() + 9 * LEASE);
        abandon(&store, win(&store, 1, SECOND));
        let (id, place) = store.expiry.pop(Stripe::of_this_thread(), later).unwrap();
        win(&store, 1, 3600 * SECOND);
        let gone = std::thread::scope(|scope| scope.spawn(|| store.forget(id, place, later)).join().unwrap());
        assert_eq!(gone, Held::default());
        assert_eq!((store.expiry.len(), store.len()), (1, 1));
    }

    /// What is counted and listed is what is there, whatever was refused, replaced, renewed, released or swept on the way, and by whom.
    #[test]
    fn the_books_balance() {
        let store = MemoryStore::new().max_records(40).max_bytes(20_000);
        let at_random = |seed| at_random(&store, seed);
        let won: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|seed| scope.spawn(move || at_random(seed))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        let mut there = Held::default();
        for shard in &store.shards {
            shard.0.lock().unwrap().values().for_each(|entry| there = there + entry.held());
        }
        assert_eq!(store.room.taken(), there);
        assert_eq!(store.expiry.len(), there.records, "each record is listed once");
        assert!(won > 4000, "{won}");
    }

    /// Thousands of calls for few keys; says how many claims were won.
    fn at_random(store: &MemoryStore, seed: u64) -> usize {
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut claims = Vec::new();
        for _ in 0..20_000 {
            let id = RecordId::new("", &chance.u8(..60).to_string());
            let (lease, retention) =
                (Duration::from_nanos(chance.u64(..40_000)), Duration::from_nanos(chance.u64(..90_000)));
            let token = ClaimToken::new().unwrap();
            let claim = Claim::new(&id, token, Fingerprint::from_bytes([1; 32]), lease, retention);
            let claim = claim.reserving(chance.usize(..2_000)).taking_over(chance.bool());
            if matches!(store.claim_now(&claim), Ok(Claimed::Won(()))) {
                claims.push((id, token));
            }
            let (id, token) = claims.get(chance.usize(..claims.len().max(1))).copied().unwrap_or((id, token));
            if chance.u8(..4) == 0 {
                store.release_now(&id, token);
                continue;
            }
            store.fenced(&id, token, |entry, now| {
                entry.bytes = OVERHEAD + chance.usize(..3_000);
                entry.phase = if chance.bool() { Phase::Unknown } else { Phase::Running { until: now } };
                entry.forget_at = later(now, retention);
            });
        }
        claims.len()
    }
}
