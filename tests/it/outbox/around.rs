//! A store with something before and after each of its writes.

use std::time::Duration;

use steadfast_outbox::rules::NewEntry;
use steadfast_outbox::{Applied, Change, Entry, OperationId, OutboxStore, OutboxStoreError, Submitted, Terms, Usage};

/// What happens around the writes.
pub(super) trait Writes: Send + Sync + 'static {
    fn before(&self) {}

    fn after(&self) -> impl Future<Output = ()> + Send;
}

/// A store, and what happens around its writes.
pub(super) struct Around<S, W> {
    pub(super) store: S,
    pub(super) writes: W,
}

impl<S: OutboxStore, W: Writes> Around<S, W> {
    async fn write<T>(&self, write: impl Future<Output = T>) -> T {
        self.writes.before();
        let written = write.await;
        self.writes.after().await;
        written
    }
}

impl<S: OutboxStore, W: Writes> OutboxStore for Around<S, W> {
    const IS_SHARED: bool = S::IS_SHARED;

    async fn submit(&self, new: NewEntry, terms: Option<Terms>) -> Result<Submitted, OutboxStoreError> {
        self.write(self.store.submit(new, terms)).await
    }

    async fn apply(&self, id: OperationId, change: Change) -> Result<Applied, OutboxStoreError> {
        self.write(self.store.apply(id, change)).await
    }

    async fn claim_due(&self, terms: Terms, limit: usize, except: Vec<String>) -> Result<Vec<Entry>, OutboxStoreError> {
        // Without something that is due it writes nothing.
        if self.store.next_due(except.clone()).await? != Some(Duration::ZERO) {
            return Ok(Vec::new());
        }
        self.write(self.store.claim_due(terms, limit, except)).await
    }

    async fn next_due(&self, except: Vec<String>) -> Result<Option<Duration>, OutboxStoreError> {
        self.store.next_due(except).await
    }

    async fn get(&self, id: OperationId) -> Result<Option<Entry>, OutboxStoreError> {
        self.store.get(id).await
    }

    async fn find(&self, name: &str) -> Result<Option<Entry>, OutboxStoreError> {
        self.store.find(name).await
    }

    async fn list(&self, after: Option<OperationId>, limit: usize) -> Result<Vec<Entry>, OutboxStoreError> {
        self.store.list(after, limit).await
    }

    async fn usage(&self) -> Result<Usage, OutboxStoreError> {
        self.store.usage().await
    }

    async fn sweep(&self, limit: usize) -> Result<usize, OutboxStoreError> {
        self.store.sweep(limit).await
    }
}
