//! How many ends may wait for a store that does not take them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

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
pub(super) struct Waiting<'a>(&'a Pending, usize);

impl Pending {
    /// `None` if there is no room for it.
    pub(super) fn enter(&self, bytes: usize, most: PendingEnds) -> Option<Waiting<'_>> {
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
