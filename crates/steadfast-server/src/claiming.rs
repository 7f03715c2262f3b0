//! Claims of a key, repeated until it is known whether the key is ours.
//!
//! A call whose reply is lost may have made the claim. Its token makes it safe to repeat the call.
//! If the claim is not used in the end, it is cancelled.

use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use steadfast_core::clock;

use super::poll::poll_once;
use super::rules::{self, AfterClaim, UnknownHere};
use super::shared_store::SharedStore;
use super::store::{Claim, RecordState, Store, StoreError};

/// A claim under one token. It is cancelled if it is dropped before the result of its calls is
/// known, or before a handler runs under the key.
pub(super) struct Claiming<'a, S: Store> {
    store: &'a SharedStore<S>,
    claim: Claim<'a>,
    /// The key may be ours, and no handler runs under it yet.
    is_open: bool,
}

/// An acquired key, and when it was requested.
pub(super) struct Won<T> {
    pub(super) session: T,
    pub(super) asked: Instant,
}

pub(super) enum Answer<T> {
    Won(Won<T>),
    Known(RecordState),
}

impl<'a, S: Store> Claiming<'a, S> {
    pub(super) fn new(store: &'a SharedStore<S>, claim: Claim<'a>) -> Self {
        Self { store, claim, is_open: false }
    }

    /// Notes that a handler runs under the key, and will end the claim.
    pub(super) fn begins(&mut self) {
        self.is_open = false;
    }

    /// Claims the key. An operation that runs in this process is in progress, even if its lease has
    /// expired in the store.
    pub(super) async fn ask(&mut self, take_over: bool) -> Result<Answer<S::Session>, StoreError> {
        let id = *self.claim.id;
        loop {
            let ran_here = take_over && self.store.parts().claims.is_held(&id);
            self.claim.take_over = rules::takes_over(take_over, ran_here);
            let fingerprint = match self.win().await? {
                Answer::Known(RecordState::Unknown { fingerprint }) => fingerprint,
                // The claim stays open, so it is cancelled.
                Answer::Won(_) if rules::gives_way(self.claim.take_over, || self.store.parts().claims.is_held(&id)) => {
                    return Ok(Answer::Known(RecordState::in_progress(self.claim.fingerprint, self.claim.lease)));
                }
                answer => return Ok(answer),
            };
            match rules::unknown_here(ran_here, self.store.parts().claims.is_held(&id)) {
                UnknownHere::InProgress => {
                    return Ok(Answer::Known(RecordState::in_progress(fingerprint, self.claim.lease)));
                }
                UnknownHere::Unknown => return Ok(Answer::Known(RecordState::unknown(fingerprint))),
                UnknownHere::ClaimAgain => {}
            }
        }
    }

    /// Claims the key, with enough of its lease left to run under it.
    async fn win(&mut self) -> Result<Answer<S::Session>, StoreError> {
        for _ in 0..rules::MAX_LATE_CLAIMS {
            let asked = clock::now();
            let was_open = std::mem::replace(&mut self.is_open, true);
            let mut call = pin!(self.store.claim(&self.claim));
            // Most in-process stores reply at once, and need no second reading of the clock.
            let (mut reply, is_instant) = match poll_once(call.as_mut()).await {
                Poll::Ready(reply) => (reply, true),
                Poll::Pending => (call.await, false),
            };
            self.is_open = rules::may_be_ours(was_open, &reply);
            if rules::is_lost(&reply) {
                // The claim stays open whatever the second reply is: the first call may still be on
                // its way.
                reply = self.store.claim(&self.claim).await;
            }
            let half = self.claim.lease / 2;
            let too_late = || !S::TRANSACTIONAL && !is_instant && clock::now().saturating_duration_since(asked) >= half;
            match rules::after_claim(reply, too_late) {
                AfterClaim::Run(session) => return Ok(Answer::Won(Won { session, asked })),
                AfterClaim::ClaimAgain => {}
                AfterClaim::Tell(state) => return Ok(Answer::Known(state)),
                AfterClaim::Refuse(error) => return Err(error),
            }
        }
        Err(StoreError::Unavailable(
            format!("a claim takes more than half of its lease, {:?}", self.claim.lease).into(),
        ))
    }
}

impl<S: Store> Drop for Claiming<'_, S> {
    fn drop(&mut self) {
        if self.is_open {
            self.store.cancel(self.claim.reference());
        }
    }
}
