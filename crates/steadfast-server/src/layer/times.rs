//! The settings for time: how long a claim, a handler, a record and a wait last.

use std::time::Duration;

use super::IdempotencyLayer;
use crate::pending_ends::PendingEnds;
use crate::store::Store;

/// # Time
impl<S: Store> IdempotencyLayer<S> {
    /// Sets how long a claim holds without renewal, and so how long a crash can block a key.
    /// Default: 30 s. Minimum: 3 ms.
    ///
    /// The layer renews the lease when a third to a half of it is over. A handler cannot delay the
    /// renewal while one thread of its runtime is free. Put work that blocks its thread into
    /// [`spawn_blocking`](https://docs.rs/tokio/latest/tokio/task/fn.spawn_blocking.html).
    ///
    /// If no thread is free, the lease expires. This process still does not run the operation
    /// twice. Another process with the same store may, if its layer
    /// [reruns](crate::OnUnknown::Rerun).
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// // After a crash, a repeat waits at most ten seconds for the key.
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .lease(Duration::from_secs(10));
    /// ```
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.state.config.lease = lease.max(Duration::from_millis(3));
        self
    }

    /// Sets the time limit of a handler, including the body of its response. Default: no limit.
    ///
    /// At the limit the handler is cancelled at its next await. Nobody knows how far it came, so
    /// the outcome is unknown. The client gets a 500 of the type
    /// `outcome-unknown-handler-timed-out`, or a body that is cut. The timeout is logged at error
    /// level.
    #[must_use]
    pub fn max_handler_time(mut self, time: Duration) -> Self {
        self.state.config.max_handler_time = Some(time);
        self
    }

    /// Sets how long the handler's response waits for the store to take the end of the operation.
    /// Default: 1 s. Zero sends it without waiting.
    ///
    /// If the store is slower, the response is sent with `Idempotency-Status: unknown`. The layer
    /// writes the end again until the store takes it: see [`pending_ends`](Self::pending_ends).
    ///
    /// With a [transactional](Store::TRANSACTIONAL) store there is no response to send before the
    /// transaction has ended. The client then gets a 500 of the type `transaction-lost`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// // Our clients give up after two seconds, so the response must not wait for a slow store.
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .end_wait(Duration::from_millis(300));
    /// ```
    #[must_use]
    pub fn end_wait(mut self, wait: Duration) -> Self {
        self.state.config.end_wait = wait;
        self
    }

    /// Sets how many ends may wait for a store that does not take them, and for how long. Default:
    /// 10,000 ends and 64 MiB, each for 10 min.
    #[must_use]
    pub fn pending_ends(mut self, most: PendingEnds) -> Self {
        self.state.config.pending_ends = most;
        self
    }

    /// Sets how long a completed record is kept, counted from the end of the operation. Default: 24
    /// h.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// // Mobile clients may repeat an order after a weekend offline.
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .retention(Duration::from_secs(3 * 24 * 3600));
    /// ```
    #[must_use]
    pub fn retention(mut self, retention: Duration) -> Self {
        self.state.config.retention = retention;
        self.state.config.terms.keeping(retention);
        self
    }

    /// Sets the longest wait that a client may ask for with `Prefer: wait=N` (RFC 7240 §4.3).
    /// Default: 30 s.
    #[must_use]
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.state.config.max_wait = wait;
        self
    }
}
