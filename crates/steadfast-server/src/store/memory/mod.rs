//! A store in memory: for tests, and for one process whose records may be lost when it ends.
//!
//! It is bounded by records and by bytes. It reserves the room for a response when the key is
//! claimed, so that the end of an operation can always be stored. It evicts nothing that is alive;
//! if it is full, it returns [`StoreError::Full`]. A restart forgets everything, running claims
//! too: after a crash between the charge and the response, a repeat runs again.

mod kept;
mod room;
mod shard;
mod tombstones;

use std::cell::Cell;
use std::collections::hash_map::Entry as Slot;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use steadfast_core::clock;
use steadfast_core::key::KeyError;

use self::kept::Kept;
use self::room::{Held, Room};
use self::shard::{Entry, Expiry, Known, Phase, Shard};
use super::{Claim, ClaimOutcome, ClaimRef, ClaimToken, End, FinishOutcome, RecordId, RecordState, Store, StoreError};
use crate::apart::Apart;

/// Number of shards. If two cores meet in one shard, one of them parks, which costs more than the
/// claim.
const SHARDS: usize = 256;
/// How many expired records a claim removes at most. It checks at most `LOOKS` records for that,
/// because records are checked too early if operations outlast their leases.
const SWEEP: usize = 4;
const LOOKS: usize = 4 * SWEEP;
/// The size of a record without its response, in bytes.
const OVERHEAD: usize = 256;

/// A store that keeps records in memory.
///
/// Use it for tests, and for one process whose records may be lost when it ends. After a restart a
/// repeat runs again.
///
/// | bound | default |
/// | --- | --- |
/// | [`max_records`](Self::max_records) | 100,000, running claims included |
/// | [`max_bytes`](Self::max_bytes) | 256 MiB of responses and reservations |
///
/// Expired records are removed during other calls: a few at each claim, and as many as needed
/// before a claim is refused. An expired record is never replayed. It takes up room until it is
/// removed: up to an eighth of its retention, and longer if no claim comes.
/// [`Store::purge_expired`] removes all expired records.
///
/// ```
/// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
///
/// // Beyond the bounds a new key gets 503, and nothing is executed.
/// let store = MemoryStore::new().max_records(10_000).max_bytes(64 * 1024 * 1024);
/// assert!(store.is_empty());
/// let layer = IdempotencyLayer::new(store, Scope::single_caller());
/// ```
#[derive(Debug)]
pub struct MemoryStore {
    shards: Box<[Apart<Mutex<Shard>>]>,
    room: Room,
    /// Locked by the one claim that makes room, before it locks a shard.
    looking: Mutex<()>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// Creates a store with the default bounds.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Apart::default()).collect(),
            room: Room::new(100_000, 256 * 1024 * 1024),
            looking: Mutex::new(()),
        }
    }

    /// Sets the maximum number of records, running claims included. Default: 100,000.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{Claim, Fingerprint, MemoryStore, RecordId, Store, StoreError};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new().max_records(1);
    /// let (lease, retention) = (Duration::from_secs(30), Duration::from_secs(3600));
    /// let ids = ["1", "2"].map(|key| RecordId::new("", key));
    /// let [first, second] = &ids;
    /// let request = Fingerprint::of("pay");
    /// store.claim(&Claim::new(first, store.token()?, request, lease, retention)).await?;
    /// // Nothing live is evicted: the second key is refused instead.
    /// let claim = Claim::new(second, store.token()?, request, lease, retention);
    /// assert!(matches!(store.claim(&claim).await, Err(StoreError::Full)));
    /// assert_eq!(store.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn max_records(mut self, records: usize) -> Self {
        self.room.max_records = records;
        self
    }

    /// Sets the maximum bytes of stored and reserved responses. Default: 256 MiB.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.room.max_bytes = bytes;
        self
    }

    /// Returns the number of records, including expired ones that are not removed yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.room.taken().records
    }

    /// Returns whether the store has no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, id: &RecordId) -> MutexGuard<'_, Shard> {
        let [first, ..] = id.as_bytes();
        // Every index exists. Nothing between lock and unlock panics, so a poisoned lock is
        // harmless.
        let shard = self.shards.get(usize::from(*first) % SHARDS).unwrap_or(&self.shards[0]);
        shard.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the entry of a claim that is held. A claim that has ended is not ended again;
    /// `repeats` returns whether this call repeats its end.
    fn fenced(
        &self,
        claim: ClaimRef,
        repeats: impl FnOnce(&Phase) -> bool,
        change: impl FnOnce(&mut Entry, Instant),
    ) -> FinishOutcome {
        let now = clock::now();
        let mut shard = self.shard(&claim.id);
        let Shard { entries, expiry, .. } = &mut *shard;
        let Some(entry) = entries.get_mut(&claim.id) else { return FinishOutcome::Fenced };
        if entry.has_ended(claim.token, now) && repeats(&entry.phase) {
            return FinishOutcome::Stored;
        }
        if !entry.is_held_by(claim.token, now) {
            return FinishOutcome::Fenced;
        }
        let bytes = entry.bytes;
        change(entry, now);
        self.keep(entry, bytes, expiry, &claim.id);
        FinishOutcome::Stored
    }

    /// Counts and lists an entry that has changed. It took `bytes` before.
    fn keep(&self, entry: &mut Entry, bytes: usize, expiry: &mut Expiry, id: &RecordId) {
        entry.keep_in(expiry, id);
        // An end is stored whatever its size: the room for its response was reserved, and its
        // headers take a little more.
        self.room.resize(bytes, entry.bytes);
    }

    fn claim_now(&self, claim: &Claim<'_>) -> Result<ClaimOutcome<()>, StoreError> {
        let bytes = OVERHEAD.saturating_add(claim.reserve);
        let claimed = match self.enter(claim, bytes, clock::now()) {
            Err(StoreError::Full) => self.make_room(claim, bytes),
            claimed => claimed,
        };
        match claimed? {
            Entered::Won => Ok(ClaimOutcome::Acquired(())),
            Entered::Cancelled => Ok(ClaimOutcome::Cancelled),
            Entered::Known(known) => known.state().map(ClaimOutcome::Existing),
        }
    }

    /// Makes room from expired records, so that no claim is refused because of them. One claim at a
    /// time does so, or the others would take the room that it has made. Claims that find room at
    /// once may still take it, so this gives up only after two sweeps in vain.
    fn make_room(&self, claim: &Claim<'_>, bytes: usize) -> Result<Entered, StoreError> {
        if bytes > self.room.max_bytes {
            return Err(StoreError::Full);
        }
        let _alone = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut in_vain = 0;
        loop {
            // Read again each time, because more records may have expired since.
            let now = clock::now();
            let gone = self.sweep_all(now, SWEEP);
            in_vain = if gone == Held::default() { in_vain + 1 } else { 0 };
            match self.enter(claim, bytes, now) {
                Err(StoreError::Full) if in_vain < 2 => {}
                claimed => return claimed,
            }
        }
    }

    /// Claims the key, or returns its state.
    fn enter(&self, claim: &Claim<'_>, mut bytes: usize, now: Instant) -> Result<Entered, StoreError> {
        let mut shard = self.shard(claim.id);
        self.sweep_one(&mut shard, now, SWEEP, LOOKS);
        if shard.tombstones.contains(claim.id, claim.token, now) {
            return Ok(Entered::Cancelled);
        }
        let Shard { entries, expiry, .. } = &mut *shard;
        // The room comes first: a replaced record must not be forgotten if there is none.
        match entries.entry(*claim.id) {
            Slot::Vacant(slot) => {
                self.room.replace(Held::default(), bytes)?;
                slot.insert(Entry::enter(claim, bytes, now, expiry));
            }
            Slot::Occupied(mut slot) => {
                let entry = slot.get();
                let lives = entry.forget_at > now;
                if lives {
                    if !entry.gives_way_to(claim, now) {
                        return Ok(Entered::Known(entry.known(now)));
                    }
                    bytes = bytes.max(entry.bytes);
                }
                self.room.replace(entry.held(), bytes)?;
                let took_over = lives && entry.is_taken_over_by(claim);
                expiry.remove(&(entry.looked_at, *claim.id));
                let mut entry = Entry::enter(claim, bytes, now, expiry);
                entry.took_over = took_over;
                slot.insert(entry);
            }
        }
        Ok(Entered::Won)
    }

    fn release(&self, claim: ClaimRef) -> FinishOutcome {
        let now = clock::now();
        let mut shard = self.shard(&claim.id);
        if shard.tombstones.contains(&claim.id, claim.token, now) {
            return FinishOutcome::Stored;
        }
        let Some(gone) = shard.remove_held(claim, now) else { return FinishOutcome::Fenced };
        self.room.give_back(gone);
        self.room.overrun(shard.tombstones.bury(claim, now));
        FinishOutcome::Stored
    }

    fn cancel(&self, claim: ClaimRef) -> FinishOutcome {
        let now = clock::now();
        let mut shard = self.shard(&claim.id);
        if shard.tombstones.contains(&claim.id, claim.token, now) {
            return FinishOutcome::Stored;
        }
        let Shard { entries, expiry, .. } = &mut *shard;
        match entries.get_mut(&claim.id) {
            Some(entry) if entry.has_ended(claim.token, now) => return FinishOutcome::Fenced,
            // The operation that it took over may have run: its outcome is unknown again.
            Some(entry) if entry.took_over && entry.is_held_by(claim.token, now) => {
                let bytes = entry.bytes;
                entry.end_as_unknown(now, OVERHEAD);
                self.keep(entry, bytes, expiry, &claim.id);
            }
            _ => self.room.give_back(shard.remove_held(claim, now).unwrap_or_default()),
        }
        self.room.overrun(shard.tombstones.bury(claim, now));
        FinishOutcome::Stored
    }

    fn end_as_unknown(&self, claim: ClaimRef) -> FinishOutcome {
        let repeats = |phase: &Phase| matches!(phase, Phase::Unknown);
        self.fenced(claim, repeats, |entry, now| entry.end_as_unknown(now, OVERHEAD))
    }

    /// Removes expired records. Their room is free before the shard is unlocked.
    fn sweep_one(&self, shard: &mut Shard, now: Instant, most: usize, looks: usize) -> Held {
        let gone = shard.sweep(now, most, looks) + shard.tombstones.sweep(now);
        if gone != Held::default() {
            self.room.give_back(gone);
        }
        gone
    }

    fn sweep_all(&self, now: Instant, most: usize) -> Held {
        let mut gone = Held::default();
        for shard in &self.shards {
            let mut shard = shard.0.lock().unwrap_or_else(PoisonError::into_inner);
            gone = gone + self.sweep_one(&mut shard, now, most - gone.records, usize::MAX);
            if gone.records == most {
                break;
            }
        }
        gone
    }
}

/// The result of a claim, as found under the lock.
enum Entered {
    Won,
    Known(Known),
    Cancelled,
}

/// Returns a number that is unique in this process. A thread takes a thousand at a time, so that
/// threads seldom contend.
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

impl Store for MemoryStore {
    type Session = ();

    // Counted instead of random: no other process claims here, and a copy of the process has a copy
    // of the store. Drawing a random token takes as long as the rest of a claim.
    fn token(&self) -> Result<ClaimToken, KeyError> {
        // Marked, so that a store which wraps this one and counts too gives other tokens.
        Ok(ClaimToken::from_bytes((u128::from(u64::MAX) << 64 | u128::from(number())).to_be_bytes()))
    }

    async fn claim(&self, claim: &Claim<'_>) -> Result<ClaimOutcome<()>, StoreError> {
        self.claim_now(claim)
    }

    async fn renew(&self, claim: ClaimRef, lease: Duration) -> Result<bool, StoreError> {
        let held = self.fenced(
            claim,
            |_| false,
            |entry, now| {
                let until = later(now, lease);
                entry.phase = Phase::Running { until };
                entry.forget_at = later(until, entry.retention);
            },
        );
        Ok(held == FinishOutcome::Stored)
    }

    async fn finish(&self, claim: ClaimRef, _: Option<()>, end: &End) -> Result<FinishOutcome, StoreError> {
        Ok(match end {
            End::Completed(completion) => {
                // Packed before the shard is locked.
                let kept = Kept::of(&completion.record);
                self.fenced(
                    claim,
                    |phase| matches!(phase, Phase::Done(_)),
                    |entry, now| {
                        entry.bytes = OVERHEAD + kept.size();
                        entry.phase = Phase::Done(kept);
                        entry.forget_at = later(now, completion.retention);
                    },
                )
            }
            End::Released => self.release(claim),
            End::Unknown => self.end_as_unknown(claim),
            End::Cancelled => self.cancel(claim),
        })
    }

    async fn get(&self, id: &RecordId) -> Result<Option<RecordState>, StoreError> {
        let now = clock::now();
        let known = {
            let shard = self.shard(id);
            shard.entries.get(id).filter(|entry| entry.forget_at > now).map(|entry| entry.known(now))
        };
        known.map(Known::state).transpose()
    }

    async fn purge_expired(&self, most: usize) -> Result<usize, StoreError> {
        Ok(self.sweep_all(clock::now(), most).records)
    }
}

/// Returns `instant + time`, capped at about a century, or `instant` beyond the clock's range.
fn later(instant: Instant, time: Duration) -> Instant {
    let century = Duration::from_secs(100 * 365 * 24 * 3600);
    instant.checked_add(time.min(century)).unwrap_or(instant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Fingerprint;

    const SECOND: Duration = Duration::from_secs(1);
    const LEASE: Duration = Duration::from_secs(30);

    #[test]
    fn threads_give_distinct_numbers() {
        let of_one = || (0..2500).map(|_| number()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(of_one)).collect();
        let mut numbers: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 4 * 2500);
    }

    /// Checks how many records a sweep removes at some instants after the claim. The record expires
    /// at `forget_at`, instead of a lease and its retention later.
    fn check(retention: Duration, forget_at: Duration, sweeps: &[(Duration, usize)]) {
        let (mut shard, now, id) = (Shard::default(), clock::now(), RecordId::new("", "1"));
        let token = ClaimToken::new().unwrap();
        let claim = Claim::new(&id, token, Fingerprint::from_bytes([1; 32]), LEASE, retention);
        let Shard { entries, expiry, .. } = &mut shard;
        let entry = entries.entry(id).or_insert(Entry::enter(&claim, 7, now, expiry));
        entry.forget_at = now + forget_at;
        entry.keep_in(expiry, &id);
        for (at, removed) in sweeps {
            assert_eq!(shard.sweep(now + *at, 9, 9).records, *removed, "{retention:?}, at {at:?}");
        }
        assert!(shard.entries.is_empty() && shard.expiry.is_empty(), "{retention:?}");
    }

    /// A record's place in the order of expiry does not change at each end. So it may be checked
    /// late, and after a renewal early.
    #[test]
    fn expired_record_is_swept_within_an_eighth() {
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
        let claim = Claim::new(&id, token, Fingerprint::from_bytes([1; 32]), LEASE, retention).allow_takeover(true);
        assert!(matches!(store.claim_now(&claim), Ok(ClaimOutcome::Acquired(()))), "{key}");
        (id, token)
    }

    fn abandon(store: &MemoryStore, (id, token): (RecordId, ClaimToken)) {
        assert_eq!(store.end_as_unknown(ClaimRef::new(id, token)), FinishOutcome::Stored);
    }

    /// In every shard, and with any number of expired records.
    #[test]
    fn expired_records_never_refuse_a_claim() {
        let small = OVERHEAD + 10;
        for key in 0..64 {
            let store = MemoryStore::new().max_records(3);
            (1000..1003).for_each(|key| abandon(&store, win(&store, key, Duration::ZERO)));
            assert_eq!(store.len(), 3);
            win(&store, key, Duration::ZERO);

            let store = MemoryStore::new().max_bytes(40 * small);
            (1000..1040).for_each(|key| abandon(&store, win(&store, key, Duration::ZERO)));
            let (id, token) = (RecordId::new("", &key.to_string()), ClaimToken::new().unwrap());
            let claim = Claim::new(&id, token, Fingerprint::from_bytes([1; 32]), LEASE, LEASE);
            let claim = claim.reserve(40 * small - OVERHEAD);
            assert!(matches!(store.claim_now(&claim), Ok(ClaimOutcome::Acquired(()))), "all of them had to go");
        }
    }

    /// Each thread has one live record, so half of the room is for expired ones and the threads
    /// that remove them.
    #[test]
    fn concurrent_sweeps_never_refuse_a_claim() {
        let store = MemoryStore::new().max_records(8);
        let claims = |thread: u32| {
            for number in 0..5_000 {
                abandon(&store, win(&store, thread * 1_000_000 + number, Duration::ZERO));
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|thread| _ = scope.spawn(move || claims(thread))));
        assert!(store.len() <= 8);
    }

    #[test]
    fn claim_that_cannot_fit_is_refused_at_once() {
        let store = MemoryStore::new().max_bytes(OVERHEAD + 10);
        abandon(&store, win(&store, 1, LEASE));
        let claim = |key: &str| {
            let (id, token) = (RecordId::new("", key), ClaimToken::new().unwrap());
            let claim = Claim::new(&id, token, Fingerprint::from_bytes([1; 32]), LEASE, LEASE).reserve(11);
            store.claim_now(&claim)
        };
        assert!(matches!(claim("2"), Err(StoreError::Full)));
        assert!(
            matches!(claim("1"), Ok(ClaimOutcome::Existing(RecordState::Unknown { .. }))),
            "what is known is told all the same"
        );
        assert_eq!(store.len(), 1);
    }

    /// Operations that outlast their leases are all checked too early.
    #[test]
    fn claim_checks_only_a_few_records() {
        let (mut shard, now) = (Shard::default(), clock::now());
        let Shard { entries, expiry, .. } = &mut shard;
        for key in 0..100 {
            let (id, token) = (RecordId::new("", &key.to_string()), ClaimToken::new().unwrap());
            let claim = Claim::new(&id, token, Fingerprint::from_bytes([1; 32]), LEASE, SECOND);
            let entry = entries.entry(id).or_insert(Entry::enter(&claim, 7, now, expiry));
            entry.forget_at = now + 9 * LEASE;
        }
        let due = |shard: &Shard| shard.expiry.iter().filter(|(at, _)| *at <= now + 2 * LEASE).count();
        assert_eq!(due(&shard), 100);
        assert_eq!(shard.sweep(now + 2 * LEASE, SWEEP, LOOKS).records, 0);
        assert_eq!((due(&shard), shard.expiry.len()), (100 - LOOKS, 100));
    }

    #[test]
    fn taken_over_key_is_listed_once_until_released() {
        let store = MemoryStore::new();
        abandon(&store, win(&store, 1, 3600 * SECOND));
        let (id, token) = win(&store, 1, 3600 * SECOND);
        let listed = || store.shards.iter().map(|shard| shard.0.lock().unwrap().expiry.len()).sum::<usize>();
        assert_eq!(listed(), 1);
        assert_eq!(store.release(ClaimRef::new(id, token)), FinishOutcome::Stored);
        assert_eq!((listed(), store.len()), (0, 0));
    }

    /// The counts match the records, whatever was refused, replaced, renewed, released or swept,
    /// and by which thread.
    #[test]
    fn counts_match_records_after_random_calls() {
        // Tombstones outlive the test, and the bound on bytes is met once there are enough of them.
        let store = MemoryStore::new().max_records(40).max_bytes(20_000 + 10_000 * tombstones::SIZE);
        let at_random = |seed| at_random(&store, seed);
        let won: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|seed| scope.spawn(move || at_random(seed))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        let (mut there, mut listed) = (Held::default(), 0);
        for shard in &store.shards {
            let shard = shard.0.lock().unwrap();
            shard.entries.values().for_each(|entry| there = there + entry.held());
            there = there + shard.tombstones.held();
            listed += shard.expiry.len();
        }
        assert_eq!(store.room.taken(), there);
        assert_eq!(listed, there.records, "each record is listed once");
        assert!(won > 4000, "{won}");
    }

    /// Makes thousands of calls for few keys. Returns how many claims were acquired.
    fn at_random(store: &MemoryStore, seed: u64) -> usize {
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut claims = Vec::new();
        for _ in 0..20_000 {
            let id = RecordId::new("", &chance.u8(..60).to_string());
            let (lease, retention) =
                (Duration::from_nanos(chance.u64(..40_000)), Duration::from_nanos(chance.u64(..90_000)));
            let token = ClaimToken::new().unwrap();
            let claim = Claim::new(&id, token, Fingerprint::from_bytes([1; 32]), lease, retention);
            let claim = claim.reserve(chance.usize(..2_000)).allow_takeover(chance.bool());
            if matches!(store.claim_now(&claim), Ok(ClaimOutcome::Acquired(()))) {
                claims.push((id, token));
            }
            let (id, token) = claims.get(chance.usize(..claims.len().max(1))).copied().unwrap_or((id, token));
            if chance.u8(..4) == 0 {
                store.release(ClaimRef::new(id, token));
                continue;
            }
            if chance.u8(..8) == 0 {
                store.cancel(ClaimRef::new(id, token));
                continue;
            }
            let change = |entry: &mut Entry, now| {
                entry.bytes = OVERHEAD + chance.usize(..3_000);
                entry.phase = if chance.bool() { Phase::Unknown } else { Phase::Running { until: now } };
                entry.forget_at = later(now, retention);
            };
            store.fenced(ClaimRef::new(id, token), |_| false, change);
        }
        claims.len()
    }
}
