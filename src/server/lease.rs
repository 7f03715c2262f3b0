//! A claim that is held for as long as its work takes.
//!
//! The lease is short, so that a crash does not block a key for long; work may be long. So the lease is renewed while the work runs,
//! and no longer.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::store::{ClaimToken, RecordId, Store};
use crate::clock;

/// `work`, with the claim's lease renewed at every third of it.
pub(super) async fn renewing<S: Store, F: Future>(
    store: &Arc<S>,
    id: RecordId,
    token: ClaimToken,
    lease: Duration,
    work: F,
) -> F::Output {
    let mut work = pin!(work);
    // Most work is done before the first renewal, and costs no second task.
    if let Ok(output) = clock::until(clock::now().checked_add(lease / 3), work.as_mut()).await {
        return output;
    }
    let store = store.clone();
    let renewal = tokio::spawn(async move {
        loop {
            // One that fails is tried again at the next third; if the lease lapses meanwhile, the fence holds.
            if matches!(store.renew(&id, token, lease).await, Ok(false)) {
                return;
            }
            clock::sleep(lease / 3).await;
        }
    });
    let _stop = AbortOnDrop(renewal.abort_handle());
    work.await
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
