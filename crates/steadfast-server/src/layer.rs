//! The layer and its settings: which requests it covers, for how long it keeps records, and how it
//! treats unknown outcomes.

mod formats;
mod load;
mod sizes;
mod times;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::Method;

use super::body_fingerprint::BodyFingerprint;
use super::config::Config;
use super::event_id::EventId;
use super::layer_state::LayerState;
use super::metrics::Metrics;
use super::outcome::OnUnknown;
use super::pending_ends::PendingEnds;
use super::reconcile::{Reconcile, Reconciliation, UnknownOperation};
use super::scope::Scope;
use super::service::IdempotencyService;
use super::shared_store::SharedStore;
use super::status_terms::StatusTerms;
use super::store::Store;
use super::stored_headers::StoredHeaders;

/// A [tower](https://docs.rs/tower) layer that executes an operation once per key.
///
/// ```
/// use std::time::Duration;
/// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
///
/// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
///     // A POST without a key is refused with 400.
///     .required()
///     // Clients may repeat for two days, and get the stored response.
///     .retention(Duration::from_secs(2 * 24 * 3600))
///     // A handler that hangs is cancelled.
///     .max_handler_time(Duration::from_secs(20));
/// assert_eq!(layer.metrics().executed, 0);
/// ```
///
/// | setting | default |
/// | --- | --- |
/// | [`required`](Self::required) | no: a request without a key passes through |
/// | [`methods`](Self::methods) | POST, PUT, PATCH, DELETE; safe methods always pass through |
/// | [`host`](Self::host) | the host name of the request, in lower case and without its port |
/// | [`target`](Self::target) | path and query as this layer sees them; **a nested router sees a shorter path** |
/// | [`fingerprint_body`](Self::fingerprint_body) | every byte of the body |
/// | [`rejection_format`](Self::rejection_format) | problems (RFC 9457) |
/// | [`on_unknown`](Self::on_unknown) | [`OnUnknown::Reject`]; [`OnUnknown::Rerun`] with a [transactional](Store::TRANSACTIONAL) store |
/// | [`release_on`](Self::release_on) | no status: every unmarked response is stored |
/// | [`lease`](Self::lease) | 30 s, renewed while the handler runs |
/// | [`max_handler_time`](Self::max_handler_time) | no limit |
/// | [`end_wait`](Self::end_wait) | 1 s for the store to take the end; then the response is sent |
/// | [`pending_ends`](Self::pending_ends) | 10,000 ends and 64 MiB wait for an unavailable store, each for 10 min |
/// | [`retention`](Self::retention) | 24 h from the end of the operation |
/// | [`max_key`](Self::max_key) | 255 characters |
/// | [`max_body`](Self::max_body) | 1 MiB of a keyed request |
/// | [`max_response`](Self::max_response) | 1 MiB; a longer response is sent, and not kept |
/// | [`omit_headers`](Self::omit_headers), [`keep_headers`](Self::keep_headers) | headers in the list at `omit_headers` are not stored |
/// | [`codec`](Self::codec) | none: responses are stored unencrypted |
/// | [`max_concurrency`](Self::max_concurrency), [`concurrency_wait`](Self::concurrency_wait) | no limit of running handlers |
/// | [`max_reader_wait`](Self::max_reader_wait) | 30 s for a client that does not read a streamed response |
/// | [`max_wait`](Self::max_wait) | 30 s for `Prefer: wait=N` |
///
/// If some routes need other settings, give them a layer of their own over the same store:
/// [`IdempotencyLayer::with_shared_store`].
///
/// # Nested layers
///
/// A request may meet two layers that would claim the same record. The outer one then claims it and
/// applies its settings, and the inner one lets the request through. The same record means the same
/// key in the same [`Scope`] (or the same event of the same consumer) in the same store. Layers
/// have the same store if one is a clone of the other, or if both got it by
/// [`with_shared_store`](Self::with_shared_store).
///
/// Any other two layers both do their work: over different stores, in different scopes, or an
/// idempotency layer inside a [`WebhookLayer`](super::WebhookLayer). Two stores over one table are
/// different stores, and their layers conflict: the inner one responds 409, which is not stored.
/// Share the store instead.
pub struct IdempotencyLayer<S> {
    pub(super) state: LayerState<S>,
}

impl<S> Clone for IdempotencyLayer<S> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone() }
    }
}

impl<S: Store> IdempotencyLayer<S> {
    /// Creates a layer over this store. `scope` tells the callers apart.
    ///
    /// ```
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// /// The account, as authentication has verified it.
    /// #[derive(Clone)]
    /// struct Account(String);
    ///
    /// let scope = Scope::from_extension(|account: &Account| account.0.clone());
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), scope);
    /// ```
    #[must_use]
    pub fn new(store: S, scope: Scope) -> Self {
        Self::with_shared_store(SharedStore::new(store), scope)
    }

    /// Creates a layer over a store that other layers or inboxes also use. `scope` tells the
    /// callers apart.
    ///
    /// ```
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, OnUnknown, Scope, SharedStore};
    ///
    /// let store = SharedStore::new(MemoryStore::new());
    /// let charges =
    ///     IdempotencyLayer::with_shared_store(store.clone(), Scope::single_caller()).required();
    /// // Writing a profile twice is harmless, so these routes rerun.
    /// let profiles = IdempotencyLayer::with_shared_store(store, Scope::single_caller())
    ///     .on_unknown(OnUnknown::Rerun);
    /// ```
    #[must_use]
    pub fn with_shared_store(store: SharedStore<S>, scope: Scope) -> Self {
        let retention = Duration::from_secs(24 * 3600);
        let config = Config {
            required: false,
            methods: vec![Method::POST, Method::PUT, Method::PATCH, Method::DELETE],
            scope,
            host: None,
            target: None,
            body_fingerprint: BodyFingerprint::exact(),
            on_unknown: if S::TRANSACTIONAL { OnUnknown::Rerun } else { OnUnknown::Reject },
            lease: Duration::from_secs(30),
            max_handler_time: None,
            end_wait: Duration::from_secs(1),
            pending_ends: PendingEnds::default(),
            retention,
            max_key: 255,
            max_body: 1024 * 1024,
            max_response: 1024 * 1024,
            max_wait: Duration::from_secs(30),
            concurrency: None,
            concurrency_wait: Duration::ZERO,
            max_reader_wait: Duration::from_secs(30),
            terms: StatusTerms::new(retention),
            rejection_format: None,
            stored_headers: StoredHeaders::default(),
            codec: None,
            reconcile: None,
            event: None,
            failures_run_again: false,
            release_on: Vec::new(),
        };
        Self { state: LayerState::new(config, store) }
    }

    /// Refuses a covered request without a key with 400. Default: such a request passes through.
    ///
    /// ```
    /// use axum::{Router, body::Body, http::Request, routing::post};
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    /// use tower::ServiceExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).required();
    /// let app: Router = Router::new().route("/charges", post(async || "charged")).layer(layer);
    /// let without_key = Request::post("/charges").body(Body::empty())?;
    /// assert_eq!(app.oneshot(without_key).await?.status(), 400);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn required(mut self) -> Self {
        self.state.config.required = true;
        self
    }

    /// Sets the methods that the layer covers. Default: POST, PUT, PATCH and DELETE. Safe methods
    /// (RFC 9110 §9.2.1) always pass through.
    ///
    /// ```
    /// use http::Method;
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// // PUT and DELETE are idempotent on these routes, and need no record.
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .methods([Method::POST, Method::PATCH]);
    /// ```
    #[must_use]
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.state.config.methods = methods.into_iter().collect();
        self
    }

    /// Sets how the layer treats a repeat of an operation whose outcome is unknown.
    ///
    /// Default: [`OnUnknown::Reject`]; [`OnUnknown::Rerun`] with a
    /// [transactional](Store::TRANSACTIONAL) store.
    ///
    /// ```
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, OnUnknown, Scope};
    ///
    /// // The handler is idempotent itself, so running it again after a crash is harmless.
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .on_unknown(OnUnknown::Rerun);
    /// ```
    #[must_use]
    pub fn on_unknown(mut self, on_unknown: OnUnknown) -> Self {
        self.state.config.on_unknown = on_unknown;
        self
    }

    /// Sets a hook that finds out the outcome of an operation if it is unknown. Overrides
    /// [`on_unknown`](Self::on_unknown).
    ///
    /// The hook runs under the claim of the key, one call at a time. The lease is renewed
    /// meanwhile.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::{Response, StatusCode};
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Reconciliation, Scope};
    /// use steadfast_server::UnknownOperation;
    ///
    /// # async fn find(_: &UnknownOperation) -> Result<Option<String>, std::io::Error> { Ok(None) }
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
    /// let layer = layer.reconcile(|unknown| async move {
    ///     // Look into the books for a charge with this operation's number.
    ///     match find(&unknown).await {
    ///         Ok(Some(charge)) => Reconciliation::Applied(Response::new(Bytes::from(charge))),
    ///         Ok(None) => Reconciliation::NotApplied,
    ///         Err(_) => Reconciliation::Unknown,
    ///     }
    /// });
    /// ```
    ///
    /// Return `NotApplied` only if that is certain: it runs the handler.
    #[must_use]
    pub fn reconcile<F>(mut self, find: impl Fn(UnknownOperation) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reconciliation> + Send + 'static,
    {
        self.state.config.reconcile = Some(Reconcile::new(find));
        self
    }

    /// Turns this layer into one for events: see [`WebhookLayer`](super::WebhookLayer).
    pub(super) fn of_events(mut self, id: EventId) -> Self {
        self.state.config.body_fingerprint = id.stable_body();
        self.state.config.event = Some(id);
        self.state.config.failures_run_again = true;
        self
    }

    /// Advertises this path prefix to clients in `Idempotency-Status`, so that they know for which
    /// paths they may trust their keys. Default: not advertised; a client learns path by path.
    ///
    /// ```
    /// use axum::{Router, body::Body, http::Request, routing::post};
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    /// use tower::ServiceExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .advertise_scope("/v1");
    /// let app: Router = Router::new().route("/v1/notes", post(async || "noted")).layer(layer);
    /// let request = Request::post("/v1/notes").header("idempotency-key", "1");
    /// let response = app.oneshot(request.body(Body::empty())?).await?;
    /// let status = &response.headers()["idempotency-status"];
    /// assert_eq!(status, r#"stored;retention=86400;scope="/v1""#);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn advertise_scope(mut self, path_prefix: impl Into<String>) -> Self {
        self.state.config.terms.covering(&path_prefix.into());
        self
    }

    /// Returns the counts since the layer was made, over all its clones.
    ///
    /// ```
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
    /// // Keep a clone, and export its counts. Mismatches point to a client that reuses its keys.
    /// let counts = layer.clone().metrics();
    /// assert_eq!((counts.executed, counts.replayed, counts.mismatched), (0, 0, 0));
    /// ```
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.state.shared.counters.snapshot()
    }

    /// Waits until no request under a key is in progress, no repeat waits for another request, and
    /// no end is left to write. Call it at shutdown, after the server has stopped accepting.
    ///
    /// Otherwise a runtime that shuts down drops the handlers of disconnected clients, and the
    /// outcome of their operations is unknown.
    ///
    /// The layer repeats its calls to an unreachable store until it replies. Bound the wait if the
    /// process must end:
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
    /// // Serve `app.layer(layer.clone())` until the process is asked to stop, and then:
    /// let drained = tokio::time::timeout(Duration::from_secs(20), layer.drain()).await;
    /// assert!(drained.is_ok());
    /// # }
    /// ```
    pub async fn drain(&self) {
        // A closed tracker still counts requests that come later, so `drain` can be called again.
        self.state.shared.running.close();
        self.state.shared.running.wait().await;
        self.state.shared.store.drain().await;
    }

    /// Returns the layer's handle to its store, for tools that look up or release records.
    ///
    /// ```
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, OperationKey, Scope, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
    /// // A client asks what became of its order.
    /// let operation = OperationKey::new("", "order-1042");
    /// assert_eq!(layer.store().get(operation.record_id()).await?, None);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn store(&self) -> &SharedStore<S> {
        &self.state.shared.store
    }
}

impl<S, Inner> tower_layer::Layer<Inner> for IdempotencyLayer<S> {
    type Service = IdempotencyService<Inner, S>;

    fn layer(&self, inner: Inner) -> Self::Service {
        IdempotencyService { inner, layer: Arc::new(self.state.clone()) }
    }
}

impl<S> fmt::Debug for IdempotencyLayer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayer")
            .field("required", &self.state.config.required)
            .field("on_unknown", &self.state.config.on_unknown)
            .field("lease", &self.state.config.lease)
            .field("retention", &self.state.config.retention)
            .field("metrics", &self.state.shared.counters.snapshot())
            .finish_non_exhaustive()
    }
}
