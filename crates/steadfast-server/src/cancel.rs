//! Cancellation of claims under which nothing will run.
//!
//! If the reply to a claim never came, the claim may exist, or may still be on its way. Its caller
//! got a response that nothing was executed, so the claim must go: otherwise the operation looks as
//! if it may have run. The store is asked to cancel the claim by its token ([`End::Cancelled`]),
//! repeatedly until it has replied once.

use std::sync::Weak;
use std::time::Duration;

use steadfast_core::clock;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::cancel_queue::{MOST, Queued};
use super::rules;
use super::shared_store::{Background, Parts, SharedStore};
use super::store::{ClaimRef, End, Store};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl<S: Store> SharedStore<S> {
    /// Cancels a claim under which nothing will run, in the background.
    pub(super) fn cancel(&self, claim: ClaimRef) {
        let Ok(runtime) = Handle::try_current() else {
            tracing::warn!(target: "steadfast", id = ?claim.id, "the lease of an unused claim expires, because no runtime is available to cancel it");
            return;
        };
        match self.parts().cancels.push(claim) {
            Queued::First => _ = runtime.spawn(cancel_all(Serving::new(self))),
            Queued::Behind | Queued::Full { told: true } => {}
            Queued::Full { told: false } => {
                tracing::error!(target: "steadfast", "{MOST} claims wait to be cancelled; the leases of further ones expire instead");
            }
        }
    }
}

/// The task that empties the queue. If its runtime ends first, the next claim starts another.
struct Serving<S> {
    store: Weak<Parts<S>>,
    _drained: Background<S>,
    has_ended: bool,
}

impl<S: Store> Serving<S> {
    fn new(store: &SharedStore<S>) -> Self {
        Self { store: store.downgrade(), _drained: store.in_background(), has_ended: false }
    }
}

impl<S> Drop for Serving<S> {
    fn drop(&mut self) {
        if let (false, Some(parts)) = (self.has_ended, self.store.upgrade()) {
            parts.cancels.is_abandoned();
        }
    }
}

/// Empties the queue. Between two calls it holds no handle to the store. When the last handle is
/// dropped, the rest of the queue is given up.
async fn cancel_all<S: Store>(mut serving: Serving<S>) {
    let mut pause = FIRST_PAUSE;
    while let Some(store) = serving.store.upgrade().map(SharedStore::from_parts) {
        let claims = store.parts().cancels.take();
        if claims.is_empty() {
            serving.has_ended = true;
            return;
        }
        let unanswered = cancel_some(&store, claims).await;
        if unanswered.is_empty() {
            pause = FIRST_PAUSE;
            continue;
        }
        store.parts().cancels.put_back(unanswered);
        drop(store);
        clock::sleep(pause.mul_f64(0.5 + clock::unit() / 2.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Cancels these claims, and returns those to which the store has not replied.
async fn cancel_some<S: Store>(store: &SharedStore<S>, claims: Vec<ClaimRef>) -> Vec<ClaimRef> {
    let mut calls = JoinSet::new();
    for claim in claims {
        let store = store.clone();
        calls.spawn(async move {
            let reply = store.finish(claim, None, &End::Cancelled).await;
            if rules::is_cancelled(&reply) {
                return None;
            }
            tracing::debug!(target: "steadfast", id = ?claim.id, ?reply, "an unused claim is not cancelled yet; the call is repeated");
            Some(claim)
        });
    }
    let mut unanswered = Vec::new();
    while let Some(answer) = calls.join_next().await {
        // The panic hook has reported a call that panicked.
        unanswered.extend(answer.ok().flatten());
    }
    unanswered
}
