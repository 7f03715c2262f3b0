//! A store in memory: for tests, and for one process whose records may be lost when it ends.
//!
//! It is bounded by records and by bytes. A claim needs the room for its response to be free, and
//! reserves a little of it: most responses are small, and thousands of operations run at a time. It
//! evicts nothing that is alive; if it is full, it returns [`StoreError::Full`]. A restart forgets
//! everything, running claims too: after a crash between the charge and the response, a repeat runs
//! again.

mod room;
mod settings;
mod shard;
mod slots;
mod tombstones;

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use steadfast_core::clock;
use steadfast_core::key::KeyError;

use self::room::{Need, Room, Usage};
use self::shard::{Entry, Known, Phase, Shard};
use super::{
    Claim, ClaimOutcome, ClaimRef, ClaimToken, Completion, End, FinishOutcome, Record, RecordId, RecordState, Store,
    StoreError, StoreLimit,
};
use crate::apart::Apart;

/// Number of shards. If two cores meet in one shard, one of them parks, which costs more than the
/// claim.
const SHARDS: usize = 256;
/// How many expired records a claim removes at most. It checks at most `LOOKS` records for that,
/// because records are checked too early if operations outlast their leases.
const SWEEP: usize = 4;
const LOOKS: usize = 4 * SWEEP;
/// The size of a record without its response, in bytes: 184 for the entry, and its places in the
/// table and in the order of expiry.
const OVERHEAD: usize = 192;

/// A store that keeps records in memory.
///
/// Use it for tests, and for one process whose records may be lost when it ends. After a restart a
/// repeat runs again.
///
/// | bound | default |
/// | --- | --- |
/// | [`max_records`](Self::max_records) | 1,000,000, running claims included |
/// | [`max_bytes`](Self::max_bytes) | 256 MiB of records, responses and reservations |
/// | [`max_reserved`](Self::max_reserved) | 1 KiB for the response of each running operation |
/// | [`max_share_per_scope`](Self::max_share_per_scope) | off: one scope may take all of it |
///
/// The defaults have room for 10,000 running operations and 1,000,000 records with small responses
/// (60 bytes with their headers). A record takes 192 bytes and its response. Responses are copied,
/// so a small part of a large buffer does not keep the buffer. The process needs at most 1.5 times
/// the [counted bytes](Self::bytes).
///
/// Beyond a bound, a new key gets 503, and nothing is executed. The error, the log and the
/// `detail` of the response name the limit.
///
/// Expired records are removed during other calls: a few at each claim, and as many as needed
/// before a claim is refused. An expired record is never replayed. It takes up room until it is
/// removed: up to an eighth of its retention, and longer if no claim comes.
/// [`Store::purge_expired`] removes all expired records.
///
/// ```
/// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
///
/// let store = MemoryStore::new()
///     .max_records(10_000)
///     .max_bytes(64 * 1024 * 1024)
///     // One tenant fills a tenth of it at most.
///     .max_share_per_scope(0.1);
/// assert!(store.is_empty());
/// let layer = IdempotencyLayer::new(store, Scope::single_caller());
/// ```
#[derive(Debug)]
pub struct MemoryStore {
    shards: Box<[Apart<Mutex<Shard>>]>,
    room: Room,
    max_reserved: usize,
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
            room: Room::new(1_000_000, 256 * 1024 * 1024),
            max_reserved: 1024,
            looking: Mutex::new(()),
        }
    }

    /// Returns the number of records, including expired ones that are not removed yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.room.taken().records
    }

    /// Returns the bytes that are taken by records, responses, reservations and
    /// [tombstones](super::TOMBSTONE).
    ///
    /// ```
    /// use steadfast_server::MemoryStore;
    ///
    /// let store = MemoryStore::new();
    /// // Export it beside the limit, to see how full the store is.
    /// assert_eq!(store.bytes(), 0);
    /// ```
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.room.taken().bytes
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
        let Some((slot, entry, expiry)) = shard.entry_mut(&claim.id) else { return FinishOutcome::Fenced };
        if entry.has_ended(claim.token, now) && repeats(&entry.phase) {
            return FinishOutcome::Stored;
        }
        if !entry.is_held_by(claim.token, now) {
            return FinishOutcome::Fenced;
        }
        change(entry, now);
        entry.keep_in(expiry, slot);
        FinishOutcome::Stored
    }

    /// Changes the size of an entry, within the bounds or not.
    fn resize(&self, entry: &mut Entry, bytes: usize) {
        self.room.resize(entry.scope, entry.bytes, bytes);
        entry.bytes = bytes;
    }

    fn claim_now(&self, claim: &Claim<'_>) -> Result<ClaimOutcome<()>, StoreError> {
        let reserved = claim.reserve.min(self.max_reserved);
        let need = Need { bytes: OVERHEAD.saturating_add(reserved), spare: claim.reserve - reserved };
        let entered = match self.enter(claim, need, clock::now()) {
            Err(_) => self.make_room(claim, need),
            entered => entered,
        };
        match entered.map_err(StoreError::Full)? {
            Entered::Won => Ok(ClaimOutcome::Acquired(())),
            Entered::Cancelled => Ok(ClaimOutcome::Cancelled),
            Entered::Known(known) => known.state().map(ClaimOutcome::Existing),
        }
    }

    /// Makes room from expired records, so that no claim is refused because of them. One claim at a
    /// time does so, or the others would take the room that it has made. Claims that find room at
    /// once may still take it, so this gives up only after two sweeps in vain.
    fn make_room(&self, claim: &Claim<'_>, need: Need) -> Result<Entered, StoreLimit> {
        if need.bytes.saturating_add(need.spare) > self.room.max_bytes {
            return Err(self.room.bytes_limit());
        }
        let _alone = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut in_vain, mut from) = (0, 0);
        loop {
            // Read again each time, because more records may have expired since.
            let now = clock::now();
            let (gone, at) = self.sweep_all(from, now, SWEEP);
            // Not from the first shard again, or a claim would pass all empty ones for each record.
            (in_vain, from) = if gone == Usage::default() { (in_vain + 1, 0) } else { (0, at) };
            match self.enter(claim, need, now) {
                Err(_) if in_vain < 2 => {}
                entered => return entered,
            }
        }
    }

    /// Claims the key, or returns its state.
    fn enter(&self, claim: &Claim<'_>, mut need: Need, now: Instant) -> Result<Entered, StoreLimit> {
        let mut shard = self.shard(claim.id);
        self.sweep_one(&mut shard, now, SWEEP, LOOKS);
        if shard.tombstones.contains(claim.id, claim.token, now) {
            return Ok(Entered::Cancelled);
        }
        let hash = shard.hash(claim.id);
        let found = shard.find(hash, claim.id).and_then(|slot| Some((slot, shard.slots.get(slot)?)));
        // The room comes first: a replaced record must not be forgotten if there is none.
        let Some((slot, entry)) = found else {
            self.room.replace(claim.scope, (None, Usage::default()), need)?;
            shard.insert(hash, Entry::enter(claim, need.bytes, now));
            return Ok(Entered::Won);
        };
        let lives = entry.forget_at > now;
        if lives {
            if !entry.gives_way_to(claim, now) {
                return Ok(Entered::Known(entry.known(now)));
            }
            need.bytes = need.bytes.max(entry.bytes);
        }
        self.room.replace(claim.scope, (entry.scope, entry.held()), need)?;
        let took_over = lives && entry.is_taken_over_by(claim);
        let mut entry = Entry::enter(claim, need.bytes, now);
        entry.took_over = took_over;
        shard.replace(slot, entry);
        Ok(Entered::Won)
    }

    /// Ends a claim with its response. The end is stored in any case, and the response if there is
    /// room.
    fn complete(&self, claim: ClaimRef, completion: &Completion) -> FinishOutcome {
        // Packed before the shard is locked, and one copy: a body may be a part of a larger buffer.
        let packed = completion.record.pack();
        let mut no_room = None;
        let ended = self.fenced(
            claim,
            |phase| matches!(phase, Phase::Done(_)),
            |entry, now| {
                let bytes = OVERHEAD + packed.len();
                entry.phase = match self.room.fits(entry.scope, entry.bytes, bytes) {
                    Ok(()) => {
                        entry.bytes = bytes;
                        Phase::Done(packed)
                    }
                    Err(limit) => {
                        no_room = Some(limit);
                        let packed = Record::not_kept(completion.record.status()).pack();
                        self.resize(entry, OVERHEAD + packed.len());
                        Phase::Done(packed)
                    }
                };
                entry.forget_at = later(now, completion.retention);
            },
        );
        if let Some(limit) = no_room {
            tracing::warn!(target: "steadfast", id = ?claim.id, %limit, "the store is full, and a response was not kept; repeats get 410");
        }
        ended
    }

    fn release(&self, claim: ClaimRef) -> FinishOutcome {
        let now = clock::now();
        let mut shard = self.shard(&claim.id);
        if shard.tombstones.contains(&claim.id, claim.token, now) {
            return FinishOutcome::Stored;
        }
        let Some(gone) = shard.remove_held(claim, now) else { return FinishOutcome::Fenced };
        self.room.give_back(gone.scope, gone.held());
        self.room.overrun(shard.tombstones.bury(claim, now));
        FinishOutcome::Stored
    }

    fn cancel(&self, claim: ClaimRef) -> FinishOutcome {
        let now = clock::now();
        let mut shard = self.shard(&claim.id);
        if shard.tombstones.contains(&claim.id, claim.token, now) {
            return FinishOutcome::Stored;
        }
        match shard.entry_mut(&claim.id) {
            Some((_, entry, _)) if entry.has_ended(claim.token, now) => return FinishOutcome::Fenced,
            // The operation that it took over may have run: its outcome is unknown again.
            Some((slot, entry, expiry)) if entry.took_over && entry.is_held_by(claim.token, now) => {
                self.resize(entry, OVERHEAD);
                entry.end_as_unknown(now);
                entry.keep_in(expiry, slot);
            }
            _ => {
                if let Some(gone) = shard.remove_held(claim, now) {
                    self.room.give_back(gone.scope, gone.held());
                }
            }
        }
        self.room.overrun(shard.tombstones.bury(claim, now));
        FinishOutcome::Stored
    }

    fn end_as_unknown(&self, claim: ClaimRef) -> FinishOutcome {
        let repeats = |phase: &Phase| matches!(phase, Phase::Unknown);
        self.fenced(claim, repeats, |entry, now| {
            self.resize(entry, OVERHEAD);
            entry.end_as_unknown(now);
        })
    }

    /// Removes expired records. Their room is free before the shard is unlocked.
    fn sweep_one(&self, shard: &mut Shard, now: Instant, most: usize, looks: usize) -> Usage {
        let left = |entry: &Entry| self.room.give_back_to(entry.scope, entry.held());
        let gone = shard.sweep(now, most, looks, left) + shard.tombstones.sweep(now);
        if gone != Usage::default() {
            self.room.give_back_to_all(gone);
        }
        gone
    }

    /// Sweeps the shards from this one on. Also returns the shard where it has stopped.
    fn sweep_all(&self, from: usize, now: Instant, most: usize) -> (Usage, usize) {
        let mut gone = Usage::default();
        for (at, shard) in self.shards.iter().enumerate().skip(from) {
            let mut shard = shard.0.lock().unwrap_or_else(PoisonError::into_inner);
            gone = gone + self.sweep_one(&mut shard, now, most - gone.records, usize::MAX);
            if gone.records == most {
                return (gone, at);
            }
        }
        (gone, 0)
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

    fn limits_scopes(&self) -> bool {
        self.room.shares.is_some()
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
            End::Completed(completion) => self.complete(claim, completion),
            End::Released => self.release(claim),
            End::Unknown => self.end_as_unknown(claim),
            End::Cancelled => self.cancel(claim),
        })
    }

    async fn get(&self, id: &RecordId) -> Result<Option<RecordState>, StoreError> {
        let now = clock::now();
        let known = {
            let shard = self.shard(id);
            shard.entry(id).filter(|entry| entry.forget_at > now).map(|entry| entry.known(now))
        };
        known.map(Known::state).transpose()
    }

    async fn purge_expired(&self, most: usize) -> Result<usize, StoreError> {
        Ok(self.sweep_all(0, clock::now(), most).0.records)
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
    use crate::store::{Fingerprint, ScopeId};

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
        shard.insert(shard.hash(&id), Entry::enter(&claim, 7, now));
        let (slot, entry, expiry) = shard.entry_mut(&id).unwrap();
        entry.forget_at = now + forget_at;
        entry.keep_in(expiry, slot);
        for (at, removed) in sweeps {
            assert_eq!(shard.sweep(now + *at, 9, 9, |_| ()).records, *removed, "{retention:?}, at {at:?}");
        }
        assert!(shard.slots.iter().next().is_none() && shard.expiry.is_empty(), "{retention:?}");
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
        assert!(matches!(claim("2"), Err(StoreError::Full(_))));
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
        for key in 0..100 {
            let (id, token) = (RecordId::new("", &key.to_string()), ClaimToken::new().unwrap());
            let claim = Claim::new(&id, token, Fingerprint::from_bytes([1; 32]), LEASE, SECOND);
            shard.insert(shard.hash(&id), Entry::enter(&claim, 7, now));
            shard.entry_mut(&id).unwrap().1.forget_at = now + 9 * LEASE;
        }
        let due = |shard: &Shard| shard.expiry.iter().filter(|(at, _)| *at <= now + 2 * LEASE).count();
        assert_eq!(due(&shard), 100);
        assert_eq!(shard.sweep(now + 2 * LEASE, SWEEP, LOOKS, |_| ()).records, 0);
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
        let store = store.max_share_per_scope(0.4);
        let at_random = |seed| at_random(&store, seed);
        let won: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|seed| scope.spawn(move || at_random(seed))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        let (mut there, mut listed, mut in_scopes) = (Usage::default(), 0, Usage::default());
        for shard in &store.shards {
            let shard = shard.0.lock().unwrap();
            shard.slots.iter().for_each(|entry| there = there + entry.held());
            shard
                .slots
                .iter()
                .filter(|entry| entry.scope.is_some())
                .for_each(|entry| in_scopes = in_scopes + entry.held());
            there = there + shard.tombstones.held();
            listed += shard.expiry.len();
        }
        assert_eq!(store.room.taken(), there);
        assert_eq!(store.room.shares.as_ref().unwrap().taken(), in_scopes, "of each scope");
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
            let claim = claim.in_scope([None, Some("a"), Some("b")][chance.usize(..3)].map(ScopeId::of));
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
                store.resize(entry, OVERHEAD + chance.usize(..3_000));
                entry.phase = if chance.bool() { Phase::Unknown } else { Phase::Running { until: now } };
                entry.forget_at = later(now, retention);
            };
            store.fenced(ClaimRef::new(id, token), |_| false, change);
        }
        claims.len()
    }

    #[test]
    fn long_headers_stay_within_the_bound() {
        let store = MemoryStore::new().max_bytes(100_000);
        let claims: Vec<_> = (0..50).map(|key| win(&store, key, LEASE)).collect();
        let long = http::HeaderValue::from_str(&"x".repeat(60_000)).unwrap();
        let headers = std::iter::once((http::header::LINK, long)).collect();
        for (id, token) in claims {
            let record = Record::new(http::StatusCode::OK, &headers, "".into());
            store.complete(ClaimRef::new(id, token), &Completion::new(record, LEASE));
        }
        assert!((60_000..=100_000).contains(&store.bytes()), "{} bytes", store.bytes());
    }
}
