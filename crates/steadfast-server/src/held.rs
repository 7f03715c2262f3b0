//! The claims that this process holds.
//!
//! A lease can expire in the store although its handler is alive: every thread of the runtime may
//! be blocked, or the store may have been unavailable. Other processes cannot see that, but this
//! one can. So it keeps a list of its own claims, and never takes over an operation on that list.
//! `keeper.rs` renews the listed claims.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use steadfast_core::clock;
use tokio::runtime;
use tokio::sync::Notify;

use super::apart::Apart;
use super::store::{ClaimRef, ClaimToken, RecordId};

const SHARDS: usize = 64;

/// The list, by record.
#[derive(Debug)]
pub(super) struct HeldClaims {
    shards: Box<[Apart<Mutex<ClaimShard>>]>,
}

#[derive(Debug, Default)]
struct ClaimShard {
    claims: HashMap<RecordId, HeldEntry>,
    /// Further claims of a listed record. After another process took a claim over, its handler may
    /// still run here when this process claims the key again.
    more: Vec<(RecordId, HeldEntry)>,
}

#[derive(Debug)]
struct HeldEntry {
    token: ClaimToken,
    charge: Charge,
    /// When the lease that the store last confirmed was requested.
    asked: Instant,
    /// The store's replies to the latest renewals.
    standing: Standing,
    /// Notified when the claim is lost or has ended. Created by the first waiter.
    gone: Option<Arc<Notify>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Standing {
    Held,
    /// A renewal was refused. The claim may have ended at this moment, so a second refusal decides.
    Refused,
    Lost,
    /// The end of the claim is being written. It may already be stored although no reply has come.
    Ending,
}

/// The news that a renewal brought.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum News {
    Nothing,
    /// The store has given the claim to another token.
    Lost,
    /// The lease expired before the store replied.
    RanOut,
}

/// Leases that are renewed together: those of one length whose handlers run in one runtime, because
/// their renewals run and end with that runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Charge {
    /// `None` outside a runtime, where nothing can be renewed.
    pub(super) runtime: Option<runtime::Id>,
    pub(super) lease: Duration,
}

impl HeldClaims {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Apart::default()).collect() }
    }

    fn shard(&self, id: &RecordId) -> MutexGuard<'_, ClaimShard> {
        let [first, ..] = id.as_bytes();
        let shard = self.shards.get(usize::from(*first) % SHARDS).unwrap_or(&self.shards[0]);
        lock(shard)
    }

    fn list(&self, claim: ClaimRef, charge: Charge, asked: Instant) {
        let entry = HeldEntry { token: claim.token, charge, asked, standing: Standing::Held, gone: None };
        let mut shard = self.shard(&claim.id);
        match shard.claims.entry(claim.id) {
            Slot::Vacant(slot) => _ = slot.insert(entry),
            Slot::Occupied(_) => shard.more.push((claim.id, entry)),
        }
    }

    /// Returns whether a handler of this record is alive, or its end is being written.
    pub(super) fn is_held(&self, id: &RecordId) -> bool {
        self.shard(id).claims.contains_key(id)
    }

    /// Returns whether there are claims of this charge.
    pub(super) fn has(&self, charge: Charge) -> bool {
        self.shards.iter().any(|shard| lock(shard).entries().any(|(_, entry)| entry.charge == charge))
    }

    /// Returns the claims of this charge that are due for a renewal.
    pub(super) fn due(&self, charge: Charge, now: Instant) -> Vec<ClaimRef> {
        let mut due = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            let ours = shard.entries().filter(|(_, entry)| entry.charge == charge && entry.is_due(now));
            due.extend(ours.map(|(id, entry)| ClaimRef::new(*id, entry.token)));
        }
        due
    }

    /// Notes that the store renewed the lease, which was requested at this instant.
    pub(super) fn renewed(&self, claim: ClaimRef, asked: Instant) {
        self.change(claim, |entry| {
            entry.asked = asked;
            if entry.standing == Standing::Refused {
                entry.standing = Standing::Held;
            }
        });
    }

    /// Notes that the store refused to renew the lease.
    pub(super) fn refused(&self, claim: ClaimRef) -> News {
        let news = self.change(claim, |entry| match entry.standing {
            Standing::Held => {
                entry.standing = Standing::Refused;
                News::Nothing
            }
            Standing::Refused => {
                entry.standing = Standing::Lost;
                entry.tell();
                News::Lost
            }
            Standing::Lost | Standing::Ending => News::Nothing,
        });
        news.unwrap_or(News::Nothing)
    }

    /// Notes that the store did not reply by this instant.
    pub(super) fn unanswered(&self, claim: ClaimRef, since: Instant, now: Instant) -> News {
        let news = self.change(claim, |entry| {
            let ran_out =
                passed(entry.asked, entry.charge.lease, now) && !passed(entry.asked, entry.charge.lease, since);
            if ran_out { News::RanOut } else { News::Nothing }
        });
        news.unwrap_or(News::Nothing)
    }

    /// Notes that the end of the claim is being written: from now on, a refused renewal proves
    /// nothing.
    pub(super) fn is_ending(&self, claim: ClaimRef) {
        self.change(claim, |entry| {
            if entry.standing != Standing::Lost {
                entry.standing = Standing::Ending;
            }
        });
    }

    fn change<T>(&self, claim: ClaimRef, change: impl FnOnce(&mut HeldEntry) -> T) -> Option<T> {
        let mut shard = self.shard(&claim.id);
        shard.entry(claim).map(change)
    }

    fn remove(&self, claim: ClaimRef) {
        let gone = self.shard(&claim.id).remove(claim);
        if let Some(gone) = gone {
            gone.tell();
        }
    }
}

// Nothing between lock and unlock panics, so poison means nothing.
fn lock(shard: &Apart<Mutex<ClaimShard>>) -> MutexGuard<'_, ClaimShard> {
    shard.0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether `time` after `start` is over. An instant beyond the clock's range is never
/// reached.
fn passed(start: Instant, time: Duration, now: Instant) -> bool {
    start.checked_add(time).is_some_and(|end| end <= now)
}

impl ClaimShard {
    fn remove(&mut self, claim: ClaimRef) -> Option<HeldEntry> {
        let Self { claims, more } = self;
        let Slot::Occupied(mut first) = claims.entry(claim.id) else { return None };
        if first.get().token != claim.token {
            let at = more.iter().position(|(id, entry)| claim == ClaimRef::new(*id, entry.token))?;
            return Some(more.swap_remove(at).1);
        }
        let Some(next) = more.iter().position(|(id, _)| *id == claim.id) else { return Some(first.remove()) };
        Some(first.insert(more.swap_remove(next).1))
    }

    fn entries(&self) -> impl Iterator<Item = (&RecordId, &HeldEntry)> {
        self.claims.iter().chain(self.more.iter().map(|(id, entry)| (id, entry)))
    }

    fn entry(&mut self, claim: ClaimRef) -> Option<&mut HeldEntry> {
        if self.claims.get(&claim.id)?.token == claim.token {
            return self.claims.get_mut(&claim.id);
        }
        self.more.iter_mut().find(|(id, entry)| claim == ClaimRef::new(*id, entry.token)).map(|(_, entry)| entry)
    }
}

impl HeldEntry {
    fn is_due(&self, now: Instant) -> bool {
        self.standing != Standing::Lost && passed(self.asked, self.charge.lease / 3, now)
    }

    fn tell(&self) {
        if let Some(gone) = &self.gone {
            gone.notify_waiters();
        }
    }
}

/// A claim on the list. Dropping it removes the claim, whatever ended the handler: a response, a
/// panic, an abort.
#[derive(Debug)]
pub(super) struct HeldGuard<C: Deref<Target = HeldClaims>> {
    claims: C,
    claim: ClaimRef,
}

impl<C: Deref<Target = HeldClaims>> HeldGuard<C> {
    /// Lists a claim whose lease was requested at this instant.
    pub(super) fn new(claims: C, claim: ClaimRef, charge: Charge, asked: Instant) -> Self {
        claims.list(claim, charge, asked);
        Self { claims, claim }
    }
}

impl<C: Deref<Target = HeldClaims>> Drop for HeldGuard<C> {
    fn drop(&mut self) {
        self.claims.remove(self.claim);
    }
}

/// The claim under which a handler runs. It is in the extensions of every request that the layer
/// runs under a key.
///
/// The layer renews the lease while the handler runs, so a handler seldom needs this. It matters if
/// a handler works for long, step by step: the store may be unavailable for longer than a lease,
/// and then another process may run the operation again.
///
/// ```
/// use axum::{Extension, http::StatusCode};
/// use steadfast_server::HeldClaim;
///
/// async fn pay_out(Extension(claim): Extension<HeldClaim>) -> StatusCode {
///     for _batch in 0..10 {
///         if !claim.is_held() {
///             // Another process may be paying out already: stop.
///             return StatusCode::SERVICE_UNAVAILABLE;
///         }
///         // Pay out one batch.
///     }
///     StatusCode::NO_CONTENT
/// }
/// ```
///
/// The lease can still expire between the check and the effect. Put effects that must not happen
/// twice into one transaction with the record
/// ([`Store::TRANSACTIONAL`](super::Store::TRANSACTIONAL)).
#[derive(Clone)]
pub struct HeldClaim {
    claims: Arc<HeldClaims>,
    claim: ClaimRef,
}

impl HeldClaim {
    pub(super) fn new(claims: Arc<HeldClaims>, claim: ClaimRef) -> Self {
        Self { claims, claim }
    }

    /// Returns the claim's token: an identity that you can pass on and compare. It has no order, so
    /// it is no fencing *number* that shows another system which of two claims is newer.
    #[must_use]
    pub fn token(&self) -> ClaimToken {
        self.claim.token
    }

    /// Returns whether this handler certainly still holds the claim: the lease that the store last
    /// confirmed has not expired, and the operation has not ended.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let now = clock::now();
        let held =
            |entry: &mut HeldEntry| entry.standing != Standing::Lost && !passed(entry.asked, entry.charge.lease, now);
        self.claims.change(self.claim, held).unwrap_or(false)
    }

    /// Completes when the store has given the claim to another token, or when the operation has
    /// ended.
    ///
    /// An expired lease does not complete it if the store was unavailable, because the store may
    /// still confirm the claim. [`is_held`](Self::is_held) is `false` meanwhile.
    ///
    /// ```
    /// use std::time::Duration;
    /// use axum::{Extension, http::StatusCode};
    /// use steadfast_server::HeldClaim;
    ///
    /// async fn report(Extension(claim): Extension<HeldClaim>) -> StatusCode {
    ///     let work = tokio::time::sleep(Duration::from_secs(60));
    ///     tokio::select! {
    ///         () = work => StatusCode::CREATED,
    ///         // Another process has the operation: its response is the one that counts.
    ///         () = claim.lost() => StatusCode::SERVICE_UNAVAILABLE,
    ///     }
    /// }
    /// ```
    pub async fn lost(&self) {
        loop {
            let gone = {
                let watch = |entry: &mut HeldEntry| {
                    (entry.standing != Standing::Lost).then(|| entry.gone.get_or_insert_default().clone())
                };
                let Some(gone) = self.claims.change(self.claim, watch).flatten() else { return };
                gone
            };
            let told = gone.notified();
            // The same lock orders this check and the notifier: either the change is visible here,
            // or this waiter is notified of it.
            let still = |entry: &mut HeldEntry| entry.standing != Standing::Lost;
            if !self.claims.change(self.claim, still).unwrap_or(false) {
                return;
            }
            told.await;
        }
    }
}

impl fmt::Debug for HeldClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldClaim").field("id", &self.claim.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn claim(key: &str, token: u8) -> ClaimRef {
        ClaimRef::new(RecordId::new("", key), ClaimToken::from_bytes([token; 16]))
    }

    fn hold(claims: &HeldClaims, claim: ClaimRef, lease: Duration, asked: Instant) -> HeldGuard<&HeldClaims> {
        HeldGuard::new(claims, claim, charge(lease), asked)
    }

    fn charge(lease: Duration) -> Charge {
        Charge { runtime: None, lease }
    }

    #[test]
    fn record_is_held_until_its_last_guard_drops() {
        let (claims, now) = (HeldClaims::new(), clock::now());
        let (first, second, third) = (claim("k", 1), claim("k", 2), claim("k", 3));
        let one = hold(&claims, first, LEASE, now);
        let two = hold(&claims, second, LEASE, now);
        let three = hold(&claims, third, LEASE, now);
        let other = hold(&claims, claim("other", 1), LEASE, now);
        drop(one);
        assert!(claims.is_held(&first.id));
        for token in [second, third] {
            assert!(claims.change(token, |_| ()).is_some(), "{token:?}");
        }
        drop(three);
        assert!(claims.is_held(&first.id));
        drop(two);
        assert!(!claims.is_held(&first.id) && claims.is_held(&claim("other", 1).id));
        drop(other);
        assert!(claims.shards.iter().all(|shard| lock(shard).claims.is_empty() && lock(shard).more.is_empty()));
    }

    #[test]
    fn panic_drops_the_guard() {
        let claims = HeldClaims::new();
        let id = claim("k", 1).id;
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = hold(&claims, claim("k", 1), LEASE, clock::now());
            assert!(claims.is_held(&id));
            panic!("on purpose")
        }));
        assert!(panicked.is_err() && !claims.is_held(&id));
    }

    #[test]
    fn second_refusal_loses_the_claim() {
        let (claims, claim) = (HeldClaims::new(), claim("k", 1));
        let _held = hold(&claims, claim, LEASE, clock::now());
        assert_eq!(claims.refused(claim), News::Nothing, "it may have ended in this moment");
        claims.renewed(claim, clock::now());
        assert_eq!(claims.refused(claim), News::Nothing, "and was confirmed since");
        assert_eq!(claims.refused(claim), News::Lost);
        assert_eq!(claims.refused(claim), News::Nothing, "told once");
    }

    #[test]
    fn refusal_while_ending_is_no_loss() {
        let (claims, claim) = (HeldClaims::new(), claim("k", 1));
        let _held = hold(&claims, claim, LEASE, clock::now());
        claims.is_ending(claim);
        assert_eq!([claims.refused(claim), claims.refused(claim)], [News::Nothing; 2]);
    }

    #[test]
    fn expired_lease_is_reported_once() {
        let (claims, claim, now) = (HeldClaims::new(), claim("k", 1), clock::now());
        let _held = hold(&claims, claim, LEASE, now);
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(claims.unanswered(claim, at(10), at(29)), News::Nothing);
        assert_eq!(claims.unanswered(claim, at(29), at(31)), News::RanOut);
        assert_eq!(claims.unanswered(claim, at(31), at(36)), News::Nothing);
    }

    #[test]
    fn claims_are_due_after_a_third_of_their_lease() {
        let (claims, now) = (HeldClaims::new(), clock::now());
        assert!(!claims.has(charge(LEASE)));
        let first = hold(&claims, claim("k", 1), LEASE, now);
        let _later = hold(&claims, claim("l", 2), LEASE, now + LEASE);
        assert!(claims.has(charge(LEASE)) && !claims.has(charge(2 * LEASE)));
        assert_eq!(claims.due(charge(LEASE), now), []);
        assert_eq!(claims.due(charge(LEASE), now + LEASE / 3), [claim("k", 1)]);
        assert_eq!(claims.due(charge(2 * LEASE), now + LEASE), [], "those are another's charge");
        claims.renewed(claim("k", 1), now + LEASE / 3);
        assert_eq!(claims.due(charge(LEASE), now + LEASE / 2), []);
        drop(first);
        assert_eq!(claims.due(charge(LEASE), now + LEASE), []);
    }

    #[tokio::test]
    async fn waiter_learns_of_a_loss_and_of_an_end() {
        for lost in [true, false] {
            let (claims, claim) = (Arc::new(HeldClaims::new()), claim("k", 1));
            let held = hold(&claims, claim, LEASE, clock::now());
            let handle = HeldClaim::new(claims.clone(), claim);
            assert!(handle.is_held());
            let mut waiting = std::pin::pin!(handle.lost());
            let pending = std::future::poll_fn(|cx| std::task::Poll::Ready(waiting.as_mut().poll(cx).is_pending()));
            assert!(pending.await);
            if lost {
                claims.refused(claim);
                claims.refused(claim);
            } else {
                drop(held);
            }
            waiting.await;
            assert!(!handle.is_held());
            handle.lost().await;
        }
    }
}
