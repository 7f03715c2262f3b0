//! The layer and its settings: which requests it covers, for how long it keeps records, and how it
//! treats unknown outcomes.

mod formats;
mod load;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::request::Parts;

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
            body_fingerprint: None,
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

    /// Sets the host name that is part of the fingerprint. `None` leaves the host out.
    ///
    /// Default: the host of `:authority` (HTTP/2), of an absolute target, or of the `Host` header,
    /// in lower case, without its port and without a final dot. The layer compares your closure's
    /// value as it is.
    ///
    /// Set it behind a proxy that writes its own `Host`, because all hosts behind it look alike.
    /// Take the client's host from the header in which *your* proxy sends it. `Forwarded` and
    /// `X-Forwarded-Host` are not trusted by default, since any client can send them.
    ///
    /// Set it also if clients call one service by several names: return the service's name, or
    /// `None`. Otherwise a client that repeats a request to another address is refused with 422.
    ///
    /// ```
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     // Our own proxy writes this header, and removes any that the client has sent.
    ///     .host(|parts| {
    ///         let host = parts.headers.get("x-forwarded-host")?.to_str().ok()?;
    ///         Some(host.to_ascii_lowercase())
    ///     });
    /// ```
    #[must_use]
    pub fn host(mut self, host: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.state.config.host = Some(Arc::new(host));
        self
    }

    /// Sets the target that is part of the fingerprint: path and query as the client sent them.
    /// Default: those of the request as this layer sees it.
    ///
    /// **A nested router sees a shorter path.** Inside `nest("/accounts/{id}", …)`,
    /// `/accounts/1/close` and `/accounts/2/close` are both `/close`. Under one key the second
    /// would get the first one's response. Put the layer on the outermost router, or return the
    /// whole path here. In axum:
    ///
    /// ```
    /// use axum::extract::OriginalUri;
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
    /// let layer = layer.target(|parts| {
    ///     let original = parts.extensions.get::<OriginalUri>();
    ///     let whole = original.map_or(&parts.uri, |original| &original.0);
    ///     whole.path_and_query().map_or_else(String::new, ToString::to_string)
    /// });
    /// ```
    #[must_use]
    pub fn target(mut self, target: impl Fn(&Parts) -> String + Send + Sync + 'static) -> Self {
        self.state.config.target = Some(Arc::new(target));
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

    /// Sets how long a claim holds without renewal, and so how long a crash can block a key.
    /// Default: 30 s. Minimum: 3 ms.
    ///
    /// The layer renews the lease when a third to a half of it is over. A handler cannot delay the
    /// renewal while one thread of its runtime is free. Put work that blocks its thread into
    /// [`spawn_blocking`](https://docs.rs/tokio/latest/tokio/task/fn.spawn_blocking.html).
    ///
    /// If no thread is free, the lease expires. This process still does not run the operation
    /// twice. Another process with the same store may, if its layer [reruns](OnUnknown::Rerun).
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

    /// Sets the maximum length of a key, in characters. Default: 255. A longer key is refused with
    /// 400.
    #[must_use]
    pub fn max_key(mut self, characters: usize) -> Self {
        self.state.config.max_key = characters;
        self
    }

    /// Sets the maximum body of a keyed request, in bytes. Default: 1 MiB. A longer body is refused
    /// with 413.
    ///
    /// The body is read before the key is claimed, because it is part of the fingerprint.
    ///
    /// ```
    /// use axum::{Router, body::Body, http::Request, routing::post};
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    /// use tower::ServiceExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .max_body(4);
    /// let app: Router = Router::new().route("/notes", post(async || "noted")).layer(layer);
    /// let request = Request::post("/notes").header("idempotency-key", "1");
    /// let response = app.oneshot(request.body(Body::from("12345"))?).await?;
    /// assert_eq!(response.status(), 413);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.state.config.max_body = bytes;
        self
    }

    /// Sets the maximum length of a response that is kept, in bytes. Default: 1 MiB.
    ///
    /// A longer response, or one of unknown length, is streamed to the client and not kept. A
    /// repeat then gets 410.
    ///
    /// ```
    /// use axum::{Router, body::Body, http::Request, routing::post};
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    /// use tower::ServiceExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .max_response(4);
    /// let app: Router =
    ///     Router::new().route("/reports", post(async || "a long report")).layer(layer);
    /// let request =
    ///     || Request::post("/reports").header("idempotency-key", "1").body(Body::empty());
    /// let first = app.clone().oneshot(request()?).await?;
    /// assert_eq!(first.status(), 200);
    /// let report = axum::body::to_bytes(first.into_body(), 100).await?;
    /// assert_eq!(report, "a long report");
    /// // The operation has completed, and does not run again.
    /// assert_eq!(app.oneshot(request()?).await?.status(), 410);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn max_response(mut self, bytes: usize) -> Self {
        self.state.config.max_response = bytes;
        self
    }

    /// Sets the longest wait that a client may ask for with `Prefer: wait=N` (RFC 7240 §4.3).
    /// Default: 30 s.
    #[must_use]
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.state.config.max_wait = wait;
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
