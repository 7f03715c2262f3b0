//! The end of an operation, written until it is there.
//!
//! A handler has answered, this process lives, and the store does not take the end: it was
//! restarted, or a reply was lost. If nobody tried again, the outcome would be unknown for a day
//! although it is known here. So the write is repeated, while the claim goes on being renewed.
//!
//! Where the store holds the effects, nothing can be written again: the transaction has ended, one
//! way or the other. There the key is claimed once more under the same token, which tells what came
//! of the transaction once nothing of it is under way.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use steadfast_core::clock;

use super::rules::{self, AfterFinish, LookedUp, Written};
use super::shared_store::SharedStore;
use super::store::{Claim, ClaimRef, Completion, End, Fingerprint, FinishOutcome, Store, StoreError};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How many ends may wait for a store that does not take them, and for how long.
///
/// An end that meets a bound is given up: it is logged, its claim lapses, and the operation is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PendingEnds {
    /// The most ends that wait, over all layers that share the store. Default: 10,000.
    pub max_count: usize,
    /// The most bytes of answers that wait, over all layers that share the store. Default: 64 MiB.
    pub max_bytes: usize,
    /// How long one end waits. Default: 10 min.
    pub max_time: Duration,
}

impl Default for PendingEnds {
    fn default() -> Self {
        Self { max_count: 10_000, max_bytes: 64 * 1024 * 1024, max_time: Duration::from_secs(600) }
    }
}

impl PendingEnds {
    /// Sets the most ends that wait. `0` gives every end up at once.
    #[must_use]
    pub fn max_count(mut self, ends: usize) -> Self {
        self.max_count = ends;
        self
    }

    /// Sets the most bytes of answers that wait.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets how long one end waits.
    #[must_use]
    pub fn max_time(mut self, time: Duration) -> Self {
        self.max_time = time;
        self
    }
}

/// The ends that wait.
#[derive(Debug, Default)]
pub(super) struct Pending {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

/// An end that waits, counted until it is dropped.
struct Waiting<'a>(&'a Pending, usize);

impl Pending {
    /// `None` if there is no room for it.
    fn enter(&self, bytes: usize, most: PendingEnds) -> Option<Waiting<'_>> {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let sum = self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let waiting = Waiting(self, bytes);
        (count <= most.max_count && sum <= most.max_bytes).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.bytes.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// A claim that was won, with all that it takes to ask for it again.
#[derive(Clone, Copy, Debug)]
pub(super) struct WonClaim {
    pub(super) claim: ClaimRef,
    pub(super) fingerprint: Fingerprint,
    pub(super) lease: Duration,
    pub(super) retention: Duration,
    pub(super) take_over: bool,
}

impl WonClaim {
    pub(super) fn of(claim: &Claim<'_>) -> Self {
        let &Claim { fingerprint, lease, retention, take_over, .. } = claim;
        Self { claim: claim.reference(), fingerprint, lease, retention, take_over }
    }

    fn again(&self) -> Claim<'_> {
        let Self { claim, fingerprint, lease, retention, take_over } = self;
        Claim::new(&claim.id, claim.token, *fingerprint, *lease, *retention).allow_takeover(*take_over)
    }
}

/// Writes the end of a claim, which the caller holds meanwhile.
pub(super) struct Ending<'a, S> {
    pub(super) store: &'a SharedStore<S>,
    pub(super) won: WonClaim,
    pub(super) most: PendingEnds,
}

impl<S: Store> Ending<'_, S> {
    pub(super) async fn write(&self, session: Option<S::Session>, end: &End) -> Written {
        match self.written(self.store.finish(self.won.claim, session, end).await) {
            Ok(written) => written,
            // Boxed, as what is rare is: every operation in flight has room for what is awaited here.
            Err(error) => Box::pin(self.write_again(end, error)).await,
        }
    }

    /// Goes on where an earlier call was cut off, whose session is gone.
    pub(super) async fn write_on(&self, end: &End) -> Written {
        self.write_again(end, StoreError::Unavailable("no answer in time".into())).await
    }

    /// What became of the end; or the error after which nobody knows yet.
    fn written(&self, reply: Result<FinishOutcome, StoreError>) -> Result<Written, StoreError> {
        let id = self.won.claim.id;
        match rules::after_finish(reply) {
            AfterFinish::Stored => Ok(Written::Stored),
            AfterFinish::Lost => {
                tracing::warn!(target: "steadfast", ?id, "the claim was no longer ours at its end");
                Ok(Written::Lost)
            }
            AfterFinish::RolledBack(error) => {
                tracing::warn!(target: "steadfast", ?id, %error, "an operation was rolled back");
                Ok(Written::RolledBack)
            }
            AfterFinish::Again(error) => Err(error),
        }
    }

    /// The store has not taken the end, or has not said that it has.
    async fn write_again(&self, end: &End, mut error: StoreError) -> Written {
        self.store.parts().claims.is_ending(self.won.claim);
        let id = self.won.claim.id;
        let Some(_waiting) = self.store.parts().pending.enter(size(end), self.most) else {
            return self.give_up("too many ends wait for the store", &error).await;
        };
        tracing::warn!(target: "steadfast", ?id, %error, "the end of an operation is not stored yet; it is tried again");
        let until = clock::now().checked_add(self.most.max_time);
        let mut pause = FIRST_PAUSE;
        while rules::may_pass(&error) {
            clock::sleep(pause.mul_f64(0.5 + clock::unit() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            match self.once_more(end).await {
                Ok(Some(written)) => return written,
                // The transaction may still be under way.
                Ok(None) => {}
                Err(again) => error = again,
            }
            if is_over(until) {
                return self.give_up("the store does not take it", &error).await;
            }
        }
        self.give_up("the store cannot take it", &error).await
    }

    async fn once_more(&self, end: &End) -> Result<Option<Written>, StoreError> {
        if S::TRANSACTIONAL {
            return self.look_up(end).await;
        }
        self.written(self.store.finish(self.won.claim, None, end).await).map(Some)
    }

    /// Asks what came of the transaction, by claiming its key under its token. `None`: it may still be under way.
    async fn look_up(&self, end: &End) -> Result<Option<Written>, StoreError> {
        match rules::looked_up(self.store.claim(&self.won.again()).await?, end) {
            LookedUp::NotYet => Ok(None),
            LookedUp::Written(written) => Ok(Some(written)),
            LookedUp::WriteUnknown(session) => {
                self.written(self.store.finish(self.won.claim, Some(session), end).await).map(Some)
            }
        }
    }

    async fn give_up(&self, why: &'static str, error: &StoreError) -> Written {
        let id = self.won.claim.id;
        tracing::error!(target: "steadfast", ?id, why, %error, "the end of an operation could not be stored: its outcome is unknown");
        if let Some(end) = rules::last_word(S::TRANSACTIONAL)
            && let Err(error) = self.store.finish(self.won.claim, None, &end).await
        {
            tracing::debug!(target: "steadfast", ?id, %error, "a claim is left to lapse");
        }
        Written::GivenUp
    }
}

/// Bytes that an end keeps in memory.
fn size(end: &End) -> usize {
    match end {
        End::Completed(Completion { record, .. }) => record.size(),
        _ => 0,
    }
}

fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(|until| until <= clock::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_counts_what_waits_and_no_more() {
        let pending = Pending::default();
        let most = PendingEnds::default().max_count(2).max_bytes(10);
        let first = pending.enter(6, most);
        assert!(first.is_some() && pending.enter(6, most).is_none(), "too many bytes");
        let second = pending.enter(4, most);
        assert!(second.is_some() && pending.enter(0, most).is_none(), "too many ends");
        drop((first, second));
        assert!(pending.enter(10, most).is_some());
        assert_eq!((pending.count.into_inner(), pending.bytes.into_inner()), (0, 0));
    }
}
