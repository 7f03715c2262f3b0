//! The requests that are under way, for [`IdempotencyLayer::drain`].

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::layer::IdempotencyLayer;

/// A request that is under way.
pub(super) struct OneRunning<S>(Arc<IdempotencyLayer<S>>);

impl<S> OneRunning<S> {
    pub(super) fn of(layer: Arc<IdempotencyLayer<S>>) -> Self {
        layer.shared.counters.running.fetch_add(1, Ordering::SeqCst);
        Self(layer)
    }
}

impl<S> Deref for OneRunning<S> {
    type Target = IdempotencyLayer<S>;

    fn deref(&self) -> &IdempotencyLayer<S> {
        &self.0
    }
}

impl<S> Drop for OneRunning<S> {
    fn drop(&mut self) {
        let shared = &self.0.shared;
        if shared.counters.running.fetch_sub(1, Ordering::SeqCst) == 1 && shared.draining.load(Ordering::SeqCst) > 0 {
            shared.at_rest.notify_waiters();
        }
    }
}
