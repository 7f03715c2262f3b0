//! The layer: what is covered, for how long, and what happens where nobody knows how an operation ended.

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

/// A [tower](https://docs.rs/tower) layer that runs an operation once per key.
///
/// | setting | default |
/// | --- | --- |
/// | [`required`](Self::required) | no: a request without a key passes by |
/// | [`methods`](Self::methods) | POST, PUT, PATCH, DELETE; safe methods always pass by |
/// | [`host`](Self::host) | the host name that the request was sent to, in lower case and without its port |
/// | [`target`](Self::target) | path and query as this layer sees them; **a nested router sees a shorter path** |
/// | [`on_unknown`](Self::on_unknown) | [`OnUnknown::Reject`]; [`OnUnknown::Rerun`] where the store [holds the effects](Store::TRANSACTIONAL) |
/// | [`release_on`](Self::release_on) | nothing: every unmarked answer is stored |
/// | [`lease`](Self::lease) | 30 s, renewed while the handler runs |
/// | [`max_handler_time`](Self::max_handler_time) | none |
/// | [`end_wait`](Self::end_wait) | 1 s for the store to take the end, after which the answer leaves |
/// | [`pending_ends`](Self::pending_ends) | 10,000 ends and 64 MiB wait for a store that is away, each for 10 min |
/// | [`retention`](Self::retention) | 24 h from the end of the operation |
/// | [`max_key`](Self::max_key) | 255 characters |
/// | [`max_body`](Self::max_body) | 1 MiB of a keyed request |
/// | [`max_response`](Self::max_response) | 1 MiB; a larger answer is sent, and not kept |
/// | [`omit_headers`](Self::omit_headers), [`keep_headers`](Self::keep_headers) | the list at `omit_headers` is not stored |
/// | [`codec`](Self::codec) | none: answers are stored unencrypted |
/// | [`max_wait`](Self::max_wait) | 30 s for `Prefer: wait=N` |
///
/// Routes with policies of their own get layers of their own over one store: [`IdempotencyLayer::with_shared_store`].
///
/// # A layer inside of another
///
/// Where a request meets two layers that would claim the same record, the outer one claims it, its
/// policy holds, and the inner one lets the request pass. The same record is the same key in the
/// same [`Scope`] (or the same event of the same consumer) in the same store: the one that clones
/// of a layer have in common, or that was given to both by [`with_shared_store`](Self::with_shared_store).
///
/// Any other two layers both do their work: over different stores, in different scopes, or an
/// idempotency layer inside of a [`WebhookLayer`](super::WebhookLayer). Two stores over one table
/// are different stores, whose layers get in each other's way: the inner one answers 409, which is
/// not stored. Share the store instead.
pub struct IdempotencyLayer<S> {
    pub(super) state: LayerState<S>,
}

impl<S> Clone for IdempotencyLayer<S> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone() }
    }
}

impl<S: Store> IdempotencyLayer<S> {
    /// Creates a layer over this store. `scope` says whose keys they are.
    #[must_use]
    pub fn new(store: S, scope: Scope) -> Self {
        Self::with_shared_store(SharedStore::new(store), scope)
    }

    /// Creates a layer over a store that other layers or inboxes use too. `scope` says whose keys they are.
    #[must_use]
    pub fn with_shared_store(store: SharedStore<S>, scope: Scope) -> Self {
        let retention = Duration::from_secs(24 * 3600);
        let config = Config {
            required: false,
            methods: vec![Method::POST, Method::PUT, Method::PATCH, Method::DELETE],
            scope,
            host: None,
            target: None,
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
            terms: StatusTerms::new(retention),
            stored_headers: StoredHeaders::default(),
            codec: None,
            reconcile: None,
            event: None,
            failures_run_again: false,
            release_on: Vec::new(),
        };
        Self { state: LayerState::new(config, store) }
    }

    /// A covered request without a key is a 400.
    #[must_use]
    pub fn required(mut self) -> Self {
        self.state.config.required = true;
        self
    }

    /// The methods that are covered. Safe methods (RFC 9110 §9.2.1) pass by whatever is said here.
    #[must_use]
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.state.config.methods = methods.into_iter().collect();
        self
    }

    /// Sets the host name that is part of what tells one request from another. `None` leaves it
    /// out.
    ///
    /// By default it is the host of `:authority` (HTTP/2), of an absolute target, or of the `Host`
    /// header, in lower case, without its port and without a final dot. What this closure returns
    /// is compared as it is.
    ///
    /// Behind a proxy that writes a `Host` of its own, every host that it serves looks alike; take
    /// the client's from the header in which *your* proxy sends it. `Forwarded` and
    /// `X-Forwarded-Host` are not trusted by default, since any client can send them. Where one
    /// service is called by several names, say the name of the service instead, or `None`: else a
    /// client that repeats a request to another address is refused with 422.
    ///
    /// ```
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     // Written by our own proxy, which removes what the client has sent under this name.
    ///     .host(|parts| Some(parts.headers.get("x-forwarded-host")?.to_str().ok()?.to_ascii_lowercase()));
    /// ```
    #[must_use]
    pub fn host(mut self, host: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.state.config.host = Some(Arc::new(host));
        self
    }

    /// What is asked for, as the client asked for it: path and query, which are part of what tells one request from another. By default
    /// those of the request as this layer sees it.
    ///
    /// **A router that is nested in another sees a shorter path**: `/accounts/1/close` and `/accounts/2/close` are both `/close` to a
    /// layer inside of `nest("/accounts/{id}", …)`, and under one key the second would be answered with the first. Put the layer on the
    /// outermost router, or say here where the whole path is. In axum:
    ///
    /// ```
    /// use axum::extract::OriginalUri;
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).target(|parts| {
    ///     let whole = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |original| &original.0);
    ///     whole.path_and_query().map_or_else(String::new, ToString::to_string)
    /// });
    /// ```
    #[must_use]
    pub fn target(mut self, target: impl Fn(&Parts) -> String + Send + Sync + 'static) -> Self {
        self.state.config.target = Some(Arc::new(target));
        self
    }

    /// What a repeat meets where nobody knows how an earlier attempt ended.
    #[must_use]
    pub fn on_unknown(mut self, on_unknown: OnUnknown) -> Self {
        self.state.config.on_unknown = on_unknown;
        self
    }

    /// Asks this where nobody knows how an earlier attempt ended, instead of what
    /// [`on_unknown`](Self::on_unknown) says. One asks at a time, under the claim of the key, which
    /// is renewed meanwhile.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::{Response, StatusCode};
    /// use steadfast_server::{IdempotencyLayer, UnknownOperation, MemoryStore, Reconciliation, Scope};
    ///
    /// # async fn find(_: &UnknownOperation) -> Result<Option<String>, std::io::Error> { Ok(None) }
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).reconcile(|lapse| async move {
    ///     // The books: is there a charge with this operation's number on it?
    ///     match find(&lapse).await {
    ///         Ok(Some(charge)) => Reconciliation::Applied(Response::new(Bytes::from(charge))),
    ///         Ok(None) => Reconciliation::NotApplied,
    ///         Err(_) => Reconciliation::Unknown,
    ///     }
    /// });
    /// ```
    ///
    /// `NotApplied` must be true: it runs the handler.
    #[must_use]
    pub fn reconcile<F>(mut self, find: impl Fn(UnknownOperation) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reconciliation> + Send + 'static,
    {
        self.state.config.reconcile = Some(Reconcile::new(find));
        self
    }

    /// The layer of events: see [`WebhookLayer`](super::WebhookLayer).
    pub(super) fn of_events(mut self, id: EventId) -> Self {
        self.state.config.event = Some(id);
        self.state.config.failures_run_again = true;
        self
    }

    /// Sets how long a claim holds without renewal, and so how long a key can stay blocked after a
    /// crash. Default: 30 s. At least 3 ms.
    ///
    /// The lease is renewed when a third to a half of it is over, by a task that a handler cannot
    /// hold up as long as one thread of its runtime is free. Work that blocks its thread still
    /// belongs in
    /// [`spawn_blocking`](https://docs.rs/tokio/latest/tokio/task/fn.spawn_blocking.html). If no thread is free, the lease runs
    /// out; this process does not run the operation twice even then, but another one that shares the store may, if it
    /// [reruns](OnUnknown::Rerun).
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.state.config.lease = lease.max(Duration::from_millis(3));
        self
    }

    /// Sets how long a handler may take, its answer's body included. Default: no limit.
    ///
    /// A handler that takes longer is cancelled where it next waits. Nobody knows how far it came,
    /// so the operation ends as unknown: the client gets a 500 of the type
    /// `…/outcome-unknown-handler-timed-out`, or a body that is cut. It is logged at error level.
    #[must_use]
    pub fn max_handler_time(mut self, time: Duration) -> Self {
        self.state.config.max_handler_time = Some(time);
        self
    }

    /// Sets how long the handler's answer waits for the store to take the end of the operation.
    /// Default: 1 s. Zero: it does not wait.
    ///
    /// If the store is slower, the answer leaves with `Idempotency-Status: unknown`, and the end is
    /// written again until the store takes it: see [`pending_ends`](Self::pending_ends). A store
    /// that [holds the effects](Store::TRANSACTIONAL) has no answer to send before the transaction
    /// has ended: the client is told 500 then, of the type `…/transaction-lost`.
    #[must_use]
    pub fn end_wait(mut self, wait: Duration) -> Self {
        self.state.config.end_wait = wait;
        self
    }

    /// Sets how many ends may wait for a store that does not take them, and for how long.
    #[must_use]
    pub fn pending_ends(mut self, most: PendingEnds) -> Self {
        self.state.config.pending_ends = most;
        self
    }

    /// How long the end of an operation is remembered.
    #[must_use]
    pub fn retention(mut self, retention: Duration) -> Self {
        self.state.config.retention = retention;
        self.state.config.terms.keeping(retention);
        self
    }

    /// The longest key, in characters.
    #[must_use]
    pub fn max_key(mut self, characters: usize) -> Self {
        self.state.config.max_key = characters;
        self
    }

    /// The largest body of a keyed request, in bytes: it is read before the key is claimed, to tell a repeat from another request.
    #[must_use]
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.state.config.max_body = bytes;
        self
    }

    /// The largest answer that is kept, in bytes. A larger one, and one of unknown length, is passed on as it comes; a repeat is
    /// then told 410 instead of the answer.
    #[must_use]
    pub fn max_response(mut self, bytes: usize) -> Self {
        self.state.config.max_response = bytes;
        self
    }

    /// The longest wait that a client may ask for with `Prefer: wait=N` (RFC 7240 §4.3).
    #[must_use]
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.state.config.max_wait = wait;
        self
    }

    /// The path prefix that this layer covers, told to clients in `Idempotency-Status`, so that they know for which paths they may
    /// rely on it. Not told by default: a client then learns path by path.
    #[must_use]
    pub fn advertise_scope(mut self, path_prefix: impl Into<String>) -> Self {
        self.state.config.terms.covering(&path_prefix.into());
        self
    }

    /// Counts since the layer was made, over all its clones.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.state.shared.counters.snapshot()
    }

    /// Waits until no request under a key is in progress, those included that wait for another, and
    /// until nothing is left to tell the store. Call it at shutdown, after the server has stopped
    /// accepting. Without it a runtime that shuts down drops the handlers of clients that have
    /// disconnected, and their operations end as unknown.
    ///
    /// A store that cannot be reached is asked again until it answers, so bound the wait if the process must end.
    pub async fn drain(&self) {
        // A closed tracker still counts the requests that come later, so that this can be called again.
        self.state.shared.running.close();
        self.state.shared.running.wait().await;
        self.state.shared.store.drain().await;
    }

    /// Returns the store's handle.
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
