//! Settings of the stored response: whether it is stored, with which headers, and who can read it.

use std::sync::Arc;

use http::{HeaderName, StatusCode};

use super::layer::IdempotencyLayer;
use super::store::{RecordCodec, Store};

/// # Stored responses
impl<S: Store> IdempotencyLayer<S> {
    /// Releases the key after an unmarked response with one of these statuses, so that the client
    /// can send a corrected request under it. Default: none.
    ///
    /// By listing a status you declare that nothing was executed when a route behind this layer
    /// returns it. **If that is untrue, the repeat acts a second time.** It is untrue if
    ///
    /// * a handler returns the status after it has acted: 404 for the second of two things, 409 or
    ///   422 from a constraint after the mail was sent;
    /// * a handler passes on another service's response: a 502, 503 or 504 may come from a server
    ///   that has acted;
    /// * a layer between this one and the handler responds in its place: the 408 of a timeout comes
    ///   after the handler has started.
    ///
    /// An [`ExecutionOutcome::NotExecuted`](crate::ExecutionOutcome) on the response itself is
    /// better evidence. The crate `steadfast-axum` adds it to rejections, 404 and 405.
    ///
    /// The handler's own [`ExecutionOutcome`](crate::ExecutionOutcome) overrides this list. A 2xx
    /// or 3xx is stored even if it is listed, because it says that the operation was carried out.
    /// With a [transactional](Store::TRANSACTIONAL) store, a listed status also rolls back the
    /// handler's rows.
    ///
    /// ```
    /// use http::StatusCode;
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    // These routes validate before they write anything.
    ///     .release_on(&[StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY]);
    /// ```
    #[must_use]
    pub fn release_on(mut self, statuses: &[StatusCode]) -> Self {
        self.state.config.release_on = statuses.to_vec();
        self
    }

    /// Leaves these response headers out of stored responses. The first response has them; its
    /// replays do not.
    ///
    /// These are left out by default, because they belong to one exchange and not to the
    /// operation's result:
    ///
    /// * `Set-Cookie`, `WWW-Authenticate`, `Authentication-Info`
    /// * `Age`, `Server-Timing`, `Traceparent`, `Tracestate`, `Traceresponse`, `X-Request-Id`
    /// * `RateLimit`, and all that begin with `RateLimit-`, `X-RateLimit-` or `X-Rate-Limit-`
    ///
    /// These are never stored:
    ///
    /// * `Date`, and `Content-Length` (a replay has its own)
    /// * the headers of a connection, and those that `Connection` names (RFC 9110 §7.6.1)
    /// * all that begin with `Proxy-`
    /// * the headers that this layer sets
    ///
    /// A stored 401 is replayed without its challenge: place authentication outside this layer.
    ///
    /// `Retry-After` is stored: it may be the interval at which to poll for the result of a 202.
    ///
    /// ```
    /// use http::HeaderName;
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     // It names the machine that handled the first request.
    ///     .omit_headers([HeaderName::from_static("x-served-by")]);
    /// ```
    #[must_use]
    pub fn omit_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.state.config.stored_headers.omit(names);
        self
    }

    /// Stores these response headers although they are [left out by default](Self::omit_headers),
    /// and sends them with every replay. Headers that are never stored stay out.
    ///
    /// Keep `Set-Cookie` only if every caller in the same [`Scope`](super::Scope) may get the
    /// session.
    ///
    /// ```
    /// use http::HeaderName;
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// // Support looks up the first request by this id, so a replay should have it too.
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .keep_headers([HeaderName::from_static("x-request-id")]);
    /// ```
    #[must_use]
    pub fn keep_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.state.config.stored_headers.keep(names);
        self
    }

    /// Encrypts responses before they are stored, and decrypts them before they are replayed.
    /// Default: none, and **responses are stored unencrypted**, tokens and personal data included.
    ///
    /// Every layer over one store needs the same codec. [`RecordCodec`] has an example. If a record
    /// cannot be opened, the layer responds 500, and nothing runs again.
    #[must_use]
    pub fn codec(mut self, codec: impl RecordCodec) -> Self {
        self.state.config.codec = Some(Arc::new(codec));
        self
    }
}
