//! Bounds on the ends that wait for an unavailable store.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Bounds on the ends of operations that wait for an unavailable store: how many, how large, how
/// long.
///
/// An end beyond a bound is given up: it is logged, and the outcome of its operation is unknown.
///
/// ```
/// use std::time::Duration;
/// use steadfast_server::{IdempotencyLayer, MemoryStore, PendingEnds, Scope};
///
/// // The store's failover takes up to 20 minutes.
/// let pending = PendingEnds::default().max_time(Duration::from_secs(20 * 60));
/// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
///     .pending_ends(pending);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PendingEnds {
    /// The maximum number of ends that wait, over all layers that share the store. Default: 10,000.
    pub max_count: usize,
    /// The maximum bytes of responses that wait, over all layers that share the store. Default: 64
    /// MiB.
    pub max_bytes: usize,
    /// How long an end waits. Default: 10 min.
    pub max_time: Duration,
}

impl Default for PendingEnds {
    fn default() -> Self {
        Self { max_count: 10_000, max_bytes: 64 * 1024 * 1024, max_time: Duration::from_secs(600) }
    }
}

impl PendingEnds {
    /// Sets the maximum number of ends that wait. `0` gives up every end at once. Default: 10,000.
    #[must_use]
    pub fn max_count(mut self, ends: usize) -> Self {
        self.max_count = ends;
        self
    }

    /// Sets the maximum bytes of responses that wait. Default: 64 MiB.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets how long an end waits. Default: 10 min.
    #[must_use]
    pub fn max_time(mut self, time: Duration) -> Self {
        self.max_time = time;
        self
    }
}

/// The waiting ends.
#[derive(Debug, Default)]
pub(super) struct Pending {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

/// A waiting end, counted until it is dropped.
pub(super) struct WaitingEnd<'a>(&'a Pending, usize);

impl Pending {
    /// Counts an end. Returns `None` if there is no room for it.
    pub(super) fn enter(&self, bytes: usize, most: PendingEnds) -> Option<WaitingEnd<'_>> {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let sum = self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let waiting = WaitingEnd(self, bytes);
        (count <= most.max_count && sum <= most.max_bytes).then_some(waiting)
    }
}

impl Drop for WaitingEnd<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.bytes.fetch_sub(self.1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_count_only_waiting_ends() {
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
