//! The end of an operation, written until the store has it.
//!
//! Suppose that a handler has responded and this process lives, but the store does not take the
//! end: it was restarted, or a reply was lost. Without a second try the outcome would be unknown
//! for a day, although it is known here. So the write is repeated, and the claim is renewed
//! meanwhile.
//!
//! With a transactional store no end can be written again, because the transaction has ended in one
//! way or the other. There the key is claimed again under the same token. The reply shows what
//! became of the transaction, once nothing of it is in progress.

use std::time::{Duration, Instant};

use steadfast_core::clock;

use super::pending_ends::PendingEnds;
use super::rules::{self, AfterFinish, LookedUp, Written};
use super::shared_store::SharedStore;
use super::store::{Claim, ClaimRef, Completion, End, Fingerprint, FinishOutcome, Store, StoreError};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// An acquired claim, with all fields that a repeated claim needs.
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

/// Writes the end of a claim. The caller holds the claim meanwhile.
pub(super) struct Ending<'a, S> {
    pub(super) store: &'a SharedStore<S>,
    pub(super) won: WonClaim,
    pub(super) most: PendingEnds,
}

impl<S: Store> Ending<'_, S> {
    pub(super) async fn write(&self, session: Option<S::Session>, end: &End) -> Written {
        match self.written(self.store.finish(self.won.claim, session, end).await) {
            Ok(written) => written,
            // Boxed, because it is rare: every operation in flight would carry the room for it.
            Err(error) => Box::pin(self.write_again(end, error)).await,
        }
    }

    /// Continues after an earlier call was cut off. The session of that call is gone.
    pub(super) async fn write_on(&self, end: &End) -> Written {
        self.write_again(end, StoreError::Unavailable("no reply in time".into())).await
    }

    /// Returns what became of the end, or the error after which it is not known yet.
    fn written(&self, reply: Result<FinishOutcome, StoreError>) -> Result<Written, StoreError> {
        let id = self.won.claim.id;
        match rules::after_finish(reply) {
            AfterFinish::Stored => Ok(Written::Stored),
            AfterFinish::Lost => {
                tracing::warn!(target: "steadfast", ?id, "the claim was no longer held when its operation ended");
                Ok(Written::Lost)
            }
            AfterFinish::RolledBack(error) => {
                tracing::warn!(target: "steadfast", ?id, %error, "an operation was rolled back");
                Ok(Written::RolledBack)
            }
            AfterFinish::Again(error) => Err(error),
        }
    }

    /// Repeats the write, because the store has not taken the end or its reply was lost.
    async fn write_again(&self, end: &End, mut error: StoreError) -> Written {
        self.store.parts().claims.is_ending(self.won.claim);
        let id = self.won.claim.id;
        let Some(_waiting) = self.store.parts().pending.enter(size(end), self.most) else {
            return self.give_up("too many ends wait for the store", &error).await;
        };
        tracing::warn!(target: "steadfast", ?id, %error, "the end of an operation is not stored yet; the write is repeated");
        let until = clock::now().checked_add(self.most.max_time);
        let mut pause = FIRST_PAUSE;
        while rules::may_pass(&error) {
            clock::sleep(pause.mul_f64(0.5 + clock::unit() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            match self.once_more(end).await {
                Ok(Some(written)) => return written,
                // The transaction may still be in progress.
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

    /// Finds out what became of the transaction, by claiming its key under its token. `None` if it
    /// may still be in progress.
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
        tracing::error!(target: "steadfast", ?id, why, %error, "the end of an operation could not be stored; its outcome is unknown");
        if let Some(end) = rules::last_word(S::TRANSACTIONAL)
            && let Err(error) = self.store.finish(self.won.claim, None, &end).await
        {
            tracing::debug!(target: "steadfast", ?id, %error, "the lease of a claim expires, because its end could not be written");
        }
        Written::GivenUp
    }
}

/// Returns how many bytes an end keeps in memory.
fn size(end: &End) -> usize {
    match end {
        End::Completed(Completion { record, .. }) => record.size(),
        _ => 0,
    }
}

fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(|until| until <= clock::now())
}
