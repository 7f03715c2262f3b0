//! Webhooks: a sender that delivers an event until it is told that it has arrived, and so sometimes twice.
//!
//! The key is not in the sender's hands but in the event: its id. What is remembered is that it was handled, after it was; an answer
//! that is no success means "not handled", and the next delivery runs. Marking first, as some deduplicators do, loses the event
//! whose handler failed.

use std::fmt;
use std::time::Duration;

use http::Method;
use http::request::Parts;

use super::event_id::EventId;
use super::layer::IdempotencyLayer;
use super::metrics::Metrics;
use super::outcome::OnUnknown;
use super::scope::Scope;
use super::service::IdempotencyService;
use super::shared_store::SharedStore;
use super::store::{RecordCodec, Store};

/// A [tower](https://docs.rs/tower) layer for endpoints to which events are delivered, perhaps more than once: each is handled once.
///
/// ```
/// use axum::{Router, http::StatusCode, routing::post};
/// use steadfast_server::{EventId, MemoryStore, WebhookLayer};
///
/// async fn paid() -> StatusCode {
///     StatusCode::NO_CONTENT
/// }
///
/// let layer = WebhookLayer::new(MemoryStore::new(), "billing", EventId::stripe());
/// // Outside of it: whatever checks the sender's signature.
/// let app: Router = Router::new().route("/webhooks/stripe", post(paid)).layer(layer);
/// ```
///
/// | delivery | answer |
/// | --- | --- |
/// | the first | the handler's. A 2xx or 3xx marks the event as handled; any other status does not, and the next delivery runs |
/// | of an event that was handled | the handler's answer from the record, with `Idempotent-Replayed: true` |
/// | of one that is being handled | 409 with `Retry-After` |
/// | with another payload under the same id | 422, and a warning in the log |
/// | of one whose handler died | run again, or 409 with [`OnUnknown::Reject`] |
/// | without an id | 400 |
///
/// With a store that [holds the effects](Store::TRANSACTIONAL) mark and effect are one transaction,
/// and each event has one effect whatever dies. With any other, a process that dies after the
/// effect and before the mark handles the event once more: the price of never losing one. Tell it
/// to refuse instead, if somebody looks.
///
/// | setting | default |
/// | --- | --- |
/// | [`retention`](Self::retention) | 7 days: longer than a sender goes on trying |
/// | [`lease`](Self::lease) | 30 s, renewed while the handler runs |
/// | [`max_body`](Self::max_body) | 1 MiB |
/// | [`on_unknown`](Self::on_unknown) | [`OnUnknown::Rerun`] |
/// | [`codec`](Self::codec) | none: answers are stored unencrypted |
pub struct WebhookLayer<S>(IdempotencyLayer<S>);

impl<S> Clone for WebhookLayer<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Store> WebhookLayer<S> {
    /// A layer over this store, for one consumer: what another consumer has handled is new to it.
    #[must_use]
    pub fn new(store: S, consumer: impl Into<String>, id: EventId) -> Self {
        Self::with_shared_store(SharedStore::new(store), consumer, id)
    }

    /// Creates a layer over a store that other layers or inboxes use too.
    #[must_use]
    pub fn with_shared_store(store: SharedStore<S>, consumer: impl Into<String>, id: EventId) -> Self {
        let layer = IdempotencyLayer::with_shared_store(store, Scope::fixed(consumer.into()))
            .of_events(id)
            .methods([Method::POST, Method::PUT])
            .on_unknown(OnUnknown::Rerun)
            .retention(super::inbox::RETENTION);
        Self(layer)
    }

    /// Names the consumer by the request, where one layer serves several: by the path, for example.
    /// `None` or an empty name refuses the delivery with 403.
    ///
    /// This is the [`Scope`] of the layer, and what is said there holds here: a stable name, never
    /// a credential.
    #[must_use]
    pub fn consumer(mut self, consumer: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.0.state.config.scope = Scope::from_fn(consumer);
        self
    }

    /// How long it is remembered that an event was handled.
    #[must_use]
    pub fn retention(self, retention: Duration) -> Self {
        Self(self.0.retention(retention))
    }

    /// How long a claim holds without being renewed, and so how long an event waits after a crash. At least 3 ms.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        Self(self.0.lease(lease))
    }

    /// Sets how long a handler may take: see [`IdempotencyLayer::max_handler_time`]. Default: no limit.
    #[must_use]
    pub fn max_handler_time(self, time: Duration) -> Self {
        Self(self.0.max_handler_time(time))
    }

    /// Sets how long the answer waits for the store to take the mark: see [`IdempotencyLayer::end_wait`]. Default: 1 s.
    #[must_use]
    pub fn end_wait(self, wait: Duration) -> Self {
        Self(self.0.end_wait(wait))
    }

    /// The largest delivery, in bytes.
    #[must_use]
    pub fn max_body(self, bytes: usize) -> Self {
        Self(self.0.max_body(bytes))
    }

    /// What a delivery meets where an earlier handler may have acted and nobody knows.
    #[must_use]
    pub fn on_unknown(self, on_unknown: OnUnknown) -> Self {
        Self(self.0.on_unknown(on_unknown))
    }

    /// Seals the handlers' answers before they are stored, as [`IdempotencyLayer::codec`] does.
    /// Default: none.
    #[must_use]
    pub fn codec(self, codec: impl RecordCodec) -> Self {
        Self(self.0.codec(codec))
    }

    /// Counts since the layer was made, over all its clones.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.0.metrics()
    }

    /// Waits until no delivery is in progress. Call it at shutdown, after the server has stopped accepting.
    pub async fn drain(&self) {
        self.0.drain().await;
    }
}

impl<S, Inner> tower_layer::Layer<Inner> for WebhookLayer<S> {
    type Service = IdempotencyService<Inner, S>;

    fn layer(&self, inner: Inner) -> Self::Service {
        self.0.layer(inner)
    }
}

impl<S> fmt::Debug for WebhookLayer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WebhookLayer").field(&self.0).finish()
    }
}
