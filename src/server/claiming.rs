//! Asking a store for a key, until it is known whether the key is ours.
//!
//! A call whose reply is lost may have made the claim. Its token makes it safe to ask once more. A claim that is given up after
//! all, whatever the way, is cancelled.

use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use super::poll::poll_once;
use super::shared_store::SharedStore;
use super::store::{Claim, Claimed, State, Store, StoreError};
use crate::clock;

/// How often a store may take half a lease to say that the key is ours.
const LATE: usize = 3;

/// A claim under one token. If it is dropped before it is known what came of its calls, or before somebody runs under the key, it is
/// cancelled.
pub(super) struct Claiming<'a, S: Store> {
    store: &'a SharedStore<S>,
    claim: Claim<'a>,
    /// The key may be ours, and nobody runs under it yet.
    is_open: bool,
}

/// A key that was won, and when it was asked for.
pub(super) struct Won<T> {
    pub(super) session: T,
    pub(super) asked: Instant,
}

pub(super) enum Answer<T> {
    Won(Won<T>),
    Known(State),
}

impl<'a, S: Store> Claiming<'a, S> {
    pub(super) fn new(store: &'a SharedStore<S>, claim: Claim<'a>) -> Self {
        Self { store, claim, is_open: false }
    }

    /// Somebody runs under the key that was won, and will end the claim.
    pub(super) fn begins(&mut self) {
        self.is_open = false;
    }

    /// Claims the key. An operation that runs in this process is running, whatever the store makes of its lease.
    pub(super) async fn ask(&mut self, take_over: bool) -> Result<Answer<S::Session>, StoreError> {
        let id = *self.claim.id;
        loop {
            let held = take_over && self.store.parts().claims.is_held(&id);
            self.claim.take_over = take_over && !held;
            match self.win().await? {
                Answer::Known(State::Unknown { fingerprint }) => {
                    if self.store.parts().claims.is_held(&id) {
                        return Ok(Answer::Known(State::running(fingerprint, self.claim.lease)));
                    }
                    // It was running here a moment ago. Now it may be taken over, if it is still unknown.
                    if !held {
                        return Ok(Answer::Known(State::unknown(fingerprint)));
                    }
                }
                answer => return Ok(answer),
            }
        }
    }

    /// Claims the key, in time to run under it.
    async fn win(&mut self) -> Result<Answer<S::Session>, StoreError> {
        for _ in 0..LATE {
            let asked = clock::now();
            let was_open = std::mem::replace(&mut self.is_open, true);
            let mut call = pin!(self.store.claim(&self.claim));
            // Most stores in this process answer at once, and need no second look at the clock.
            let (answer, is_instant) = match poll_once(call.as_mut()).await {
                Poll::Ready(answer) => (answer, true),
                Poll::Pending => (call.await, false),
            };
            let claimed = match answer {
                Err(StoreError::Unavailable(_)) => self.store.claim(&self.claim).await?,
                answer => {
                    // A key that is ours is open until somebody runs under it.
                    self.is_open = was_open || matches!(answer, Ok(Claimed::Won(_)));
                    answer?
                }
            };
            let is_late = || !is_instant && clock::now().saturating_duration_since(asked) >= self.claim.lease / 2;
            match claimed {
                // A lease that is half over may be over before its handler begins. The same claim, repeated, starts it anew.
                Claimed::Won(session) if !S::HOLDS_EFFECTS && is_late() => drop(session),
                Claimed::Won(session) => return Ok(Answer::Won(Won { session, asked })),
                Claimed::Known(state) => return Ok(Answer::Known(state)),
                Claimed::Cancelled => return Err(StoreError::Unavailable("the claim was cancelled".into())),
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
