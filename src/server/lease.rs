//! A claim that is held for as long as its work takes.
//!
//! The lease is short, so that a crash does not block a key for long; work may be long. So the lease is renewed while the work runs,
//! and no longer.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::store::{Claim, ClaimToken, Claimed, Fingerprint, RecordId, Store};
use crate::clock;

/// A claim that is held.
#[derive(Clone, Copy)]
pub(super) struct Lease {
    pub(super) id: RecordId,
    pub(super) token: ClaimToken,
    time: Duration,
    /// A third of it, from when it was asked for: what was done between then and the work is part of it.
    renew_at: Option<Instant>,
}

impl Lease {
    /// That of a claim which was asked for at this instant.
    pub(super) fn of(claim: &Claim<'_>, asked: Instant) -> Self {
        let &Claim { id, token, lease, .. } = claim;
        Self { id: *id, token, time: lease, renew_at: asked.checked_add(lease / 3) }
    }
}

/// `work`, with the claim's lease renewed at every third of it. It is pinned by the caller: an async function that pins its argument
/// has room for it twice.
pub(super) async fn renewing<S: Store, F: Future>(store: &Arc<S>, lease: &Lease, mut work: Pin<&mut F>) -> F::Output {
    // Most work is done before the first renewal, and costs no second task.
    if let Ok(output) = clock::until(lease.renew_at, work.as_mut()).await {
        return output;
    }
    let (store, Lease { id, token, time, .. }) = (store.clone(), *lease);
    let renewal = tokio::spawn(async move {
        loop {
            // One that fails is tried again at the next third; if the lease lapses meanwhile, the fence holds.
            if matches!(store.renew(&id, token, time).await, Ok(false)) {
                return;
            }
            clock::sleep(time / 3).await;
        }
    });
    let _stop = AbortOnDrop(renewal.abort_handle());
    work.await
}

/// Waits before each try to undo a claim whose reply never came: about half a minute in all.
const TRIES: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
];
/// As long does a claim hold that is made only to be given back.
const MOMENT: Duration = Duration::from_secs(10);

/// Undoes a claim of which nobody knows whether it was made, and under which nothing was run. Its token makes that safe: if it was
/// made it is won again, and if another has the key by now, that one keeps it. One that may have taken over what was unknown is
/// unknown afterwards.
pub(super) async fn give_back<S: Store>(store: Arc<S>, claim: Lost) {
    for wait in TRIES {
        clock::sleep(wait).await;
        let again = Claim::new(&claim.id, claim.token, claim.fingerprint, MOMENT, claim.retention);
        let ended = match store.claim(&again).await {
            Ok(Claimed::Won(session)) if claim.took_over => store.abandon(&claim.id, claim.token, Some(session)).await,
            Ok(Claimed::Won(session)) => store.release(&claim.id, claim.token, session).await,
            Ok(Claimed::Known(_)) => return,
            Err(error) => Err(error),
        };
        match ended {
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(target: "steadfast", id = ?claim.id, %error, "a lost claim is not undone yet")
            }
        }
    }
    tracing::warn!(target: "steadfast", id = ?claim.id, "a claim whose reply was lost is left to lapse");
}

/// A claim whose reply never came.
pub(super) struct Lost {
    id: RecordId,
    token: ClaimToken,
    fingerprint: Fingerprint,
    retention: Duration,
    took_over: bool,
}

impl Lost {
    pub(super) fn of(claim: &Claim<'_>) -> Self {
        let &Claim { id, token, fingerprint, retention, take_over, .. } = claim;
        Self { id: *id, token, fingerprint, retention, took_over: take_over }
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
