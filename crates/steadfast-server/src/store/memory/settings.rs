//! The settings of a store in memory: its bounds.

use super::MemoryStore;
use super::room::Shares;

/// # Bounds
impl MemoryStore {
    /// Sets the maximum number of records, running claims included. Default: 1,000,000.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{Claim, Fingerprint, MemoryStore, RecordId, Store, StoreError};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new().max_records(1);
    /// let (lease, retention) = (Duration::from_secs(30), Duration::from_secs(3600));
    /// let ids = ["1", "2"].map(|key| RecordId::new("", key));
    /// let [first, second] = &ids;
    /// let request = Fingerprint::of("pay");
    /// store.claim(&Claim::new(first, store.token()?, request, lease, retention)).await?;
    /// // Nothing live is evicted: the second key is refused instead.
    /// let claim = Claim::new(second, store.token()?, request, lease, retention);
    /// assert!(matches!(store.claim(&claim).await, Err(StoreError::Full(_))));
    /// assert_eq!(store.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn max_records(mut self, records: usize) -> Self {
        self.room.max_records = records;
        self
    }

    /// Sets the maximum bytes of records, stored responses and reservations. Default: 256 MiB.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.room.max_bytes = bytes;
        self
    }

    /// Sets how many bytes are reserved for the response of a running operation, at most. Default:
    /// 1 KiB.
    ///
    /// A claim is refused if the whole response that it announces
    /// ([`IdempotencyLayer::max_response`](crate::IdempotencyLayer::max_response), 1 MiB by
    /// default) would not fit now. It takes only this much of the room until the operation ends. If
    /// many long responses end at once in a store that is almost full, one may find no room. Its
    /// end is then stored without the response, which is logged: the operation does not run again,
    /// and a repeat gets 410.
    ///
    /// With `usize::MAX` each claim reserves the whole, and every response within it is kept, with
    /// its headers. The default
    /// bounds then have room for 256 running operations.
    ///
    /// ```
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// // Every response is kept: 500 operations of 64 KiB at a time.
    /// let store = MemoryStore::new().max_reserved(usize::MAX).max_bytes(500 * 65 * 1024);
    /// let layer =
    ///     IdempotencyLayer::new(store, Scope::single_caller()).max_response(64 * 1024);
    /// ```
    #[must_use]
    pub fn max_reserved(mut self, bytes: usize) -> Self {
        self.max_reserved = bytes;
        self
    }

    /// Sets the share of records and of bytes that one [scope](crate::Scope) may hold, between 0
    /// and 1. Default: off. One tenant can then fill the store for all.
    ///
    /// A scope that has its share gets 503 for new keys. The others are not affected.
    ///
    /// The layers and inboxes name the scope of each claim. A claim of your own counts only if it
    /// names one ([`Claim::in_scope`](crate::Claim::in_scope)). The scope of a
    /// [`WebhookLayer`](crate::WebhookLayer) and an [`Inbox`](crate::Inbox) is the consumer.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{Claim, Fingerprint, MemoryStore, RecordId, ScopeId, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new().max_records(10).max_share_per_scope(0.1);
    /// let (lease, retention) = (Duration::from_secs(30), Duration::from_secs(3600));
    /// let mut refused = Vec::new();
    /// for (tenant, key) in [("a", "1"), ("a", "2"), ("b", "1")] {
    ///     let id = RecordId::new(tenant, key);
    ///     let claim = Claim::new(&id, store.token()?, Fingerprint::of("pay"), lease, retention);
    ///     if store.claim(&claim.in_scope(ScopeId::of(tenant))).await.is_err() {
    ///         refused.push((tenant, key));
    ///     }
    /// }
    /// assert_eq!(refused, [("a", "2")]);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn max_share_per_scope(mut self, share: f64) -> Self {
        self.room.shares = Some(Shares::new(share));
        self
    }
}
