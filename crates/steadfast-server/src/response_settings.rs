//! What becomes of an answer: stored, with which headers and readable by whom, or no reason to keep
//! the key.

use std::sync::Arc;

use http::{HeaderName, StatusCode};

use super::layer::IdempotencyLayer;
use super::store::{RecordCodec, Store};

/// # What becomes of an answer
impl<S: Store> IdempotencyLayer<S> {
    /// Gives the key back after an unmarked answer with one of these statuses, so that a corrected
    /// request can use it. Default: none.
    ///
    /// This is your word, for the routes behind this layer, that such an answer means that nothing
    /// was executed. **Where that is untrue, the repeat acts a second time.** It is untrue where
    ///
    /// * a handler answers so after it has acted: 404 for the second of two things, 409 or 422 from
    ///   a constraint after the mail was sent;
    /// * a handler passes on what another service answered: a 502, 503 or 504 may come from a
    ///   server that has acted;
    /// * something between this layer and the handler answers in its place: the 408 of a timeout
    ///   comes after the handler has started.
    ///
    /// Better evidence is a [`ExecutionOutcome::NotExecuted`](crate::ExecutionOutcome) on the very response. With the
    /// crate `steadfast-axum` puts it there for rejections, 404 and 405.
    ///
    /// A verdict of the handler comes first. A 2xx or 3xx is stored whatever is said here: it says
    /// that the operation was carried out. In a store that [holds the
    /// effects](Store::TRANSACTIONAL) the handler's rows are rolled back.
    ///
    /// ```
    /// use http::StatusCode;
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     // On these routes both are answered before anything is written.
    ///     .release_on(&[StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY]);
    /// ```
    #[must_use]
    pub fn release_on(mut self, statuses: &[StatusCode]) -> Self {
        self.state.config.release_on = statuses.to_vec();
        self
    }

    /// Leaves these response headers out of stored answers. The first answer has them, and its
    /// replays do not.
    ///
    /// These are left out already, because they tell of the exchange and not of the operation's
    /// result:
    ///
    /// * `Set-Cookie`, `WWW-Authenticate`, `Authentication-Info`
    /// * `Age`, `Server-Timing`, `Traceparent`, `Tracestate`, `Traceresponse`, `X-Request-Id`
    /// * `RateLimit`, and all that begin with `RateLimit-`, `X-RateLimit-` or `X-Rate-Limit-`
    ///
    /// And these can never be stored: `Date`, the headers of a connection and those that
    /// `Connection` names (RFC 9110 §7.6.1), all that begin with `Proxy-`, `Content-Length` (a
    /// replay has its own), and what this layer itself says.
    ///
    /// A stored 401 is replayed without its challenge: authentication belongs outside of this
    /// layer.
    ///
    /// `Retry-After` is stored: it may be the pace at which the result of a 202 is to be asked for.
    #[must_use]
    pub fn omit_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.state.config.stored_headers.omit(names);
        self
    }

    /// Stores these response headers, which are [left out by default](Self::omit_headers), and
    /// hands them out with every replay. Those that can never be stored stay out.
    ///
    /// Keep `Set-Cookie` only if a session may be handed to whoever repeats the request in the same
    /// [`Scope`](super::Scope).
    #[must_use]
    pub fn keep_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.state.config.stored_headers.keep(names);
        self
    }

    /// Seals answers before they are stored, and opens them before they are replayed. Default:
    /// none, and **answers are stored unencrypted**, tokens and personal data included.
    ///
    /// Every layer over one store needs the same codec. [`RecordCodec`] has an example. A record
    /// that cannot be opened is answered with 500, and nothing runs again.
    #[must_use]
    pub fn codec(mut self, codec: impl RecordCodec) -> Self {
        self.state.config.codec = Some(Arc::new(codec));
        self
    }
}
