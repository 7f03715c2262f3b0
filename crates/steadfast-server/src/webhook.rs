//! Webhooks: a sender repeats the delivery of an event until it gets a success, so an event may
//! arrive twice.
//!
//! The key is the event's id, in the delivery itself. The layer marks an event as handled *after*
//! the handler has succeeded. A response that is no success means "not handled", and the next
//! delivery runs. Some deduplicators mark first, and so lose an event whose handler failed.

use std::fmt;
use std::time::Duration;

use http::Method;
use http::request::Parts;

use super::body_fingerprint::BodyFingerprint;
use super::event_id::EventId;
use super::layer::IdempotencyLayer;
use super::metrics::Metrics;
use super::outcome::OnUnknown;
use super::rejection_format::RejectionFormat;
use super::scope::Scope;
use super::service::IdempotencyService;
use super::shared_store::SharedStore;
use super::store::{RecordCodec, Store};

/// A [tower](https://docs.rs/tower) layer for webhook endpoints: it handles each event once,
/// however often it is delivered.
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
/// // A layer that verifies the sender's signature belongs outside this one: see below.
/// let app: Router = Router::new().route("/webhooks/stripe", post(paid)).layer(layer);
/// ```
///
/// | delivery | response |
/// | --- | --- |
/// | the first | the handler's. A 2xx or 3xx marks the event as handled; after any other status the next delivery runs |
/// | of a handled event | the stored response, with `Idempotent-Replayed: true` |
/// | of an event that is being handled | 409 with `Retry-After` |
/// | with another payload under the same id | 422, and a warning in the log: see [`fingerprint_body`](Self::fingerprint_body) |
/// | of an event whose handler died | the handler runs again; 409 with [`OnUnknown::Reject`] |
/// | without an id | 400 |
///
/// With a [transactional](Store::TRANSACTIONAL) store, mark and effect are one transaction, so each
/// event has exactly one effect, whichever process dies.
///
/// With any other store, a process that dies after the effect and before the mark handles the event
/// once more. That is the price of never losing one. If an operator looks at such events, choose
/// [`OnUnknown::Reject`].
///
/// | setting | default |
/// | --- | --- |
/// | [`retention`](Self::retention) | 7 days: longer than a sender repeats a delivery |
/// | [`lease`](Self::lease) | 30 s, renewed while the handler runs |
/// | [`max_body`](Self::max_body) | 1 MiB |
/// | [`fingerprint_body`](Self::fingerprint_body) | every byte; for [`EventId::stripe`] all but `pending_webhooks` |
/// | [`rejection_format`](Self::rejection_format) | problems (RFC 9457) |
/// | [`on_unknown`](Self::on_unknown) | [`OnUnknown::Rerun`] |
/// | [`codec`](Self::codec) | none: responses are stored unencrypted |
///
/// # Signatures
///
/// This layer does not verify who sends an event. Without that, anybody can have an id marked as
/// handled, and the sender's own event is then ignored. So verify the signature outside of this
/// layer, over the raw body, and compare in constant time. With axum and
/// [`aws-lc-rs`](https://docs.rs/aws-lc-rs), for
/// [GitHub](https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries):
///
/// ```
/// use std::sync::Arc;
/// use aws_lc_rs::hmac;
/// use axum::body::{Body, to_bytes};
/// use axum::extract::{Request, State};
/// use axum::http::{HeaderName, StatusCode};
/// use axum::middleware::{Next, from_fn_with_state};
/// use axum::response::Response;
/// use axum::{Router, routing::post};
/// use steadfast_server::{EventId, MemoryStore, WebhookLayer};
/// use tower::ServiceExt;
///
/// async fn verify(
///     State(key): State<Arc<hmac::Key>>,
///     request: Request,
///     next: Next,
/// ) -> Result<Response, StatusCode> {
///     let (parts, body) = request.into_parts();
///     // The raw bytes: JSON that was parsed and written again has another signature.
///     let body = to_bytes(body, 1024 * 1024).await.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
///     let header = parts.headers.get("x-hub-signature-256").and_then(|value| value.to_str().ok());
///     let signature = header.and_then(|value| from_hex(value.strip_prefix("sha256=")?));
///     // `verify` compares in constant time.
///     hmac::verify(&key, &body, &signature.ok_or(StatusCode::UNAUTHORIZED)?)
///         .map_err(|_| StatusCode::UNAUTHORIZED)?;
///     Ok(next.run(Request::from_parts(parts, Body::from(body))).await)
/// }
///
/// fn from_hex(text: &str) -> Option<Vec<u8>> {
///     let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
///     digits?.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair.get(1)?).ok()).collect()
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let secret = b"It's a Secret to Everybody";
/// let key = Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret));
/// let id = EventId::header(HeaderName::from_static("x-github-delivery"));
/// let layer = WebhookLayer::new(MemoryStore::new(), "ci", id);
/// let app: Router = Router::new()
///     .route("/hook", post(async || StatusCode::NO_CONTENT))
///     .layer(layer.clone())
///     // Added last, so it runs first.
///     .layer(from_fn_with_state(key, verify));
///
/// let deliver = |signature: &str| {
///     Request::post("/hook")
///         .header("x-github-delivery", "1")
///         .header("x-hub-signature-256", signature)
///         .body(Body::from("Hello, World!"))
/// };
/// let forged = app.clone().oneshot(deliver("sha256=00")?).await?;
/// assert_eq!((forged.status(), layer.metrics().executed), (StatusCode::UNAUTHORIZED, 0));
/// // The example of GitHub's page.
/// let signed = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
/// let handled = app.oneshot(deliver(signed)?).await?;
/// assert_eq!((handled.status(), layer.metrics().executed), (StatusCode::NO_CONTENT, 1));
/// # Ok(())
/// # }
/// ```
///
/// Stripe signs the time together with the body. Also refuse a signature that is older than a few
/// minutes there
/// ([its page](https://docs.stripe.com/webhooks#verify-manually)).
pub struct WebhookLayer<S>(IdempotencyLayer<S>);

impl<S> Clone for WebhookLayer<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Store> WebhookLayer<S> {
    /// Creates a layer over this store, for one consumer. An event that another consumer has
    /// handled is new to this one.
    ///
    /// ```
    /// use axum::{Router, body::Body, http::{Request, StatusCode}, routing::post};
    /// use steadfast_server::{EventId, MemoryStore, WebhookLayer};
    /// use tower::ServiceExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let layer = WebhookLayer::new(MemoryStore::new(), "billing", EventId::stripe());
    /// let fails = async || StatusCode::INTERNAL_SERVER_ERROR;
    /// let app: Router = Router::new().route("/events", post(fails)).layer(layer.clone());
    /// let deliver = || Request::post("/events").body(Body::from(r#"{"id":"evt_1"}"#));
    /// app.clone().oneshot(deliver()?).await?;
    /// app.oneshot(deliver()?).await?;
    /// // A failed handler marks nothing, so the second delivery runs it again.
    /// assert_eq!(layer.metrics().executed, 2);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(store: S, consumer: impl Into<String>, id: EventId) -> Self {
        Self::with_shared_store(SharedStore::new(store), consumer, id)
    }

    /// Creates a layer over a store that other layers or inboxes also use.
    ///
    /// Give each a consumer name of its own. If an [`Inbox`](crate::Inbox) uses the same name, it
    /// takes each event that this layer has recorded as handled, and its handler never runs.
    #[must_use]
    pub fn with_shared_store(store: SharedStore<S>, consumer: impl Into<String>, id: EventId) -> Self {
        let layer = IdempotencyLayer::with_shared_store(store, Scope::fixed(consumer.into()))
            .of_events(id)
            .methods([Method::POST, Method::PUT])
            .on_unknown(OnUnknown::Rerun)
            .retention(super::inbox::RETENTION);
        Self(layer)
    }

    /// Sets the consumer by the request, if one layer serves several. `None` or an empty name
    /// refuses the delivery with 403.
    ///
    /// The consumer is the [`Scope`] of this layer, so the same rule holds: use a stable name,
    /// never a credential.
    ///
    /// ```
    /// use steadfast_server::{EventId, MemoryStore, WebhookLayer};
    ///
    /// // "/webhooks/billing" and "/webhooks/mail" each handle every event once.
    /// let layer = WebhookLayer::new(MemoryStore::new(), "billing", EventId::stripe())
    ///     .consumer(|parts| Some(parts.uri.path().strip_prefix("/webhooks/")?.to_owned()));
    /// ```
    #[must_use]
    pub fn consumer(mut self, consumer: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.0.state.config.scope = Scope::from_fn(consumer);
        self
    }

    /// Sets what of the payload must be the same in each delivery of an event. Default: every byte;
    /// for [`EventId::stripe`], JSON without `pending_webhooks`.
    ///
    /// Some senders change the payload with each delivery: they count the attempts, or send the
    /// time of the delivery. By default the second delivery of such an event gets 422, again and
    /// again, until the sender gives up or disables the endpoint. Leave the changing fields out:
    ///
    /// ```
    /// use steadfast_server::{BodyFingerprint, EventId, MemoryStore, WebhookLayer};
    ///
    /// let layer = WebhookLayer::new(MemoryStore::new(), "video", EventId::json("/id"))
    ///     .fingerprint_body(BodyFingerprint::ignore_fields(["attempt", "/meta/sent_at"]));
    /// ```
    ///
    /// [`BodyFingerprint::ignore_body`] compares the id alone.
    #[must_use]
    pub fn fingerprint_body(self, body: BodyFingerprint) -> Self {
        Self(self.0.fingerprint_body(body))
    }

    /// Sets the format of the layer's own responses, as [`IdempotencyLayer::rejection_format`]
    /// does. Default: problems.
    #[must_use]
    pub fn rejection_format(self, format: RejectionFormat) -> Self {
        Self(self.0.rejection_format(format))
    }

    /// Sets how long a mark is kept. Default: 7 days. Choose longer than the sender repeats a
    /// delivery.
    #[must_use]
    pub fn retention(self, retention: Duration) -> Self {
        Self(self.0.retention(retention))
    }

    /// Sets how long a claim holds without renewal, and so how long an event waits after a crash.
    /// Default: 30 s. Minimum: 3 ms.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        Self(self.0.lease(lease))
    }

    /// Sets the time limit of a handler: see [`IdempotencyLayer::max_handler_time`]. Default: no
    /// limit.
    #[must_use]
    pub fn max_handler_time(self, time: Duration) -> Self {
        Self(self.0.max_handler_time(time))
    }

    /// Sets how long the response waits for the store to take the mark: see
    /// [`IdempotencyLayer::end_wait`]. Default: 1 s.
    #[must_use]
    pub fn end_wait(self, wait: Duration) -> Self {
        Self(self.0.end_wait(wait))
    }

    /// Sets how many handlers may run at the same time: see [`IdempotencyLayer::max_concurrency`].
    /// Default: no limit.
    #[must_use]
    pub fn max_concurrency(self, handlers: usize) -> Self {
        Self(self.0.max_concurrency(handlers))
    }

    /// Sets how long a delivery waits for a place: see [`IdempotencyLayer::concurrency_wait`].
    /// Default: zero.
    #[must_use]
    pub fn concurrency_wait(self, wait: Duration) -> Self {
        Self(self.0.concurrency_wait(wait))
    }

    /// Sets how long a streamed response waits for a sender that does not read: see
    /// [`IdempotencyLayer::max_reader_wait`]. Default: 30 s.
    #[must_use]
    pub fn max_reader_wait(self, wait: Duration) -> Self {
        Self(self.0.max_reader_wait(wait))
    }

    /// Sets the maximum body of a delivery, in bytes. Default: 1 MiB.
    #[must_use]
    pub fn max_body(self, bytes: usize) -> Self {
        Self(self.0.max_body(bytes))
    }

    /// Sets how the layer treats a delivery if an earlier handler may have acted. Default:
    /// [`OnUnknown::Rerun`].
    ///
    /// ```
    /// use steadfast_server::{EventId, MemoryStore, OnUnknown, WebhookLayer};
    ///
    /// // A payout must not happen twice: an operator looks at events whose handler died.
    /// let layer = WebhookLayer::new(MemoryStore::new(), "payouts", EventId::stripe())
    ///     .on_unknown(OnUnknown::Reject);
    /// ```
    #[must_use]
    pub fn on_unknown(self, on_unknown: OnUnknown) -> Self {
        Self(self.0.on_unknown(on_unknown))
    }

    /// Encrypts the handlers' responses before they are stored, as [`IdempotencyLayer::codec`]
    /// does. Default: none.
    #[must_use]
    pub fn codec(self, codec: impl RecordCodec) -> Self {
        Self(self.0.codec(codec))
    }

    /// Returns the counts since the layer was made, over all its clones.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.0.metrics()
    }

    /// Waits until no delivery is in progress. Call it at shutdown, after the server has stopped
    /// accepting. See [`IdempotencyLayer::drain`].
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
