//! The layer's own responses in the format of the API.
//!
//! A client library knows the errors of its API, and no others. stripe-node, for one, resolves with
//! the body of any response that has no member `error`: to it, a problem looks like a success.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body::Body;
use steadfast_core::protocol::IdempotencyStatus;

use super::rejection::Rejection;
use super::response_body::ResponseBody;
use super::stored_headers::is_never_stored;
use super::stripe_errors;

type Write = Box<dyn Fn(Rejection) -> Response<Bytes> + Send + Sync>;
type StatusHeader = Box<dyn Fn(IdempotencyStatus, StatusCode) -> Option<(HeaderName, HeaderValue)> + Send + Sync>;

/// The format of a layer's own responses, for
/// [`IdempotencyLayer::rejection_format`](crate::IdempotencyLayer::rejection_format). Without one
/// they are problems (RFC 9457).
///
/// ```
/// use axum::{Router, body::Body, http::Request, routing::post};
/// use http::Response;
/// use steadfast_server::{IdempotencyLayer, MemoryStore, Rejection, RejectionFormat, Scope};
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let format = RejectionFormat::from_fn(|rejection| {
///     let code = match rejection {
///         Rejection::KeyMissing => "NO_KEY",
///         Rejection::OtherRequest { .. } => "KEY_REUSED",
///         // Rejections of later versions too.
///         _ => "IDEMPOTENCY",
///     };
///     let mut response = Response::new(format!(r#"{{"code":"{code}"}}"#));
///     *response.status_mut() = rejection.status();
///     response
/// });
/// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
///     .required()
///     .rejection_format(format);
/// let app: Router = Router::new().route("/charges", post(async || "charged")).layer(layer);
/// let response = app.oneshot(Request::post("/charges").body(Body::empty())?).await?;
/// assert_eq!(response.status(), 400);
/// assert_eq!(response.headers()["cache-control"], "no-store");
/// let body = axum::body::to_bytes(response.into_body(), 100).await?;
/// assert_eq!(body, r#"{"code":"NO_KEY"}"#);
/// # Ok(())
/// # }
/// ```
// One pointer, since every layer and every request in flight has room for it.
#[derive(Clone)]
pub struct RejectionFormat(Arc<Format>);

struct Format {
    write: Write,
    response_header: Option<StatusHeader>,
}

impl RejectionFormat {
    /// Creates a format from a closure that writes status, headers and body.
    ///
    /// The layer keeps what clients rely on:
    ///
    /// * `Cache-Control: no-store`, `Retry-After` and `Idempotency-Status` are the layer's,
    ///   whatever the closure writes. So are the headers that a connection needs, such as
    ///   `Content-Length`.
    /// * A 400, 403, 410, 413 or 422 may become any other 4xx, except 408, 409, 421, 425 and 429.
    ///   Clients repeat a request after those. Every other status is fixed, because it says whether
    ///   a repeat helps. In place of another status the layer sends its own, and logs a warning.
    ///
    /// If the closure panics, the layer sends the problem, and logs an error.
    #[must_use]
    pub fn from_fn<T: Into<Bytes>>(write: impl Fn(&Rejection) -> Response<T> + Send + Sync + 'static) -> Self {
        let write: Write = Box::new(move |rejection| write(&rejection).map(Into::into));
        Self(Arc::new(Format { write, response_header: None }))
    }

    /// Creates the format of Stripe's errors, with which Stripe's own client libraries work.
    ///
    /// | [`Rejection`] | status | `type` | `code` |
    /// | --- | --- | --- | --- |
    /// | `KeyMissing`, `EventIdMissing` | 400 | `invalid_request_error` | `parameter_missing` |
    /// | `KeyMalformed`, `BodyBroken`, `BodyTooLarge` | 400 | `invalid_request_error` | – |
    /// | `NoCaller` | 403 | `invalid_request_error` | – |
    /// | `OtherRequest` | 400 | `idempotency_error` | – |
    /// | `InProgress` | 409 | `idempotency_error` | `idempotency_key_in_use` |
    /// | `OutcomeUnknown` | 409 | `api_error` | – |
    /// | `AnswerNotKept` | 410 | `api_error` | – |
    /// | `RecordUnreadable`, `HandlerFailed`, `HandlerTimedOut`, `TransactionLost` | 500 | `api_error` | – |
    /// | `StoreUnavailable`, `StoreFull`, `TooManyRunning`, `RolledBack`, `DeadlinePassed` | 503 | `api_error` | – |
    ///
    /// `message` is title and detail, and `doc_url` the problem type. An operation that may have
    /// been executed is never an `invalid_request_error`, which Stripe's users read as "nothing
    /// happened".
    ///
    /// The header `Stripe-Should-Retry` says whether a repeat under the same key helps. It
    /// overrides the libraries' own rules, which repeat after a 409 and every 5xx:
    ///
    /// | response | `Stripe-Should-Retry` |
    /// | --- | --- |
    /// | with `Retry-After`: in progress, store unavailable, rolled back | `true` |
    /// | every other rejection | `false` |
    /// | a 4xx or 5xx of the handler that is stored or replayed, or whose key has an unknown outcome | `false` |
    /// | a 4xx or 5xx whose key was released, and every success | as the handler set it |
    ///
    /// Sources: <https://docs.stripe.com/api/errors>, <https://docs.stripe.com/error-codes>,
    /// <https://docs.stripe.com/api/idempotent_requests>, and `_shouldRetry` in stripe-node and
    /// stripe-python. Tested with stripe-node 23.1 and stripe-python 16.1.
    ///
    /// ```
    /// use axum::{Router, body::Body, http::Request, routing::post};
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, RejectionFormat, Scope};
    /// use tower::ServiceExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .rejection_format(RejectionFormat::stripe());
    /// let app: Router = Router::new().route("/v1/charges", post(async || "{}")).layer(layer);
    /// let charge = |body: &'static str| {
    ///     let request = Request::post("/v1/charges").header("idempotency-key", "order-7");
    ///     request.body(Body::from(body))
    /// };
    /// app.clone().oneshot(charge("amount=10")?).await?;
    /// let other = app.oneshot(charge("amount=20")?).await?;
    /// assert_eq!(other.status(), 400);
    /// assert_eq!(other.headers()["stripe-should-retry"], "false");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stripe() -> Self {
        Self::from_fn(stripe_errors::response).response_header(stripe_errors::should_retry)
    }

    /// Adds a header to every response that has `Idempotency-Status`: the handler's, its replays
    /// and the layer's own. The closure gets that status and the one of HTTP. Default: none.
    ///
    /// Headers that the layer or a connection needs are left out, as in
    /// [`from_fn`](Self::from_fn). The header of a first response is not stored.
    ///
    /// ```
    /// use http::{HeaderName, HeaderValue, Response};
    /// use steadfast_server::{IdempotencyStatus, RejectionFormat};
    ///
    /// let format = RejectionFormat::from_fn(|rejection| Response::new(rejection.title()));
    /// let format = format.response_header(|status, _| {
    ///     let is_hit = status == IdempotencyStatus::Replayed;
    ///     is_hit.then_some((HeaderName::from_static("x-replay"), HeaderValue::from_static("hit")))
    /// });
    /// ```
    #[must_use]
    pub fn response_header(
        self,
        header: impl Fn(IdempotencyStatus, StatusCode) -> Option<(HeaderName, HeaderValue)> + Send + Sync + 'static,
    ) -> Self {
        let Self(format) = self;
        let write: Write = Box::new(move |rejection| (format.write)(rejection));
        Self(Arc::new(Format { write, response_header: Some(Box::new(header)) }))
    }

    /// Returns the formatted response. `None` if the closure panicked: the end of an operation must
    /// be written all the same.
    pub(super) fn write(&self, rejection: Rejection) -> Option<Response<Bytes>> {
        or_log(|| (self.0.write)(rejection))
    }

    /// Adds the header of a response that has `Idempotency-Status`.
    pub(super) fn add_header<B>(&self, status: IdempotencyStatus, response: &mut Response<B>) {
        let Some(make) = &self.0.response_header else { return };
        let header = or_log(|| make(status, response.status())).flatten();
        if let Some((name, value)) = header.filter(|(name, _)| !is_of_the_layer(name)) {
            response.headers_mut().insert(name, value);
        }
    }
}

impl fmt::Debug for RejectionFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RejectionFormat(…)")
    }
}

/// Calls the user's code. Returns `None` if it panicked.
fn or_log<T>(call: impl FnOnce() -> T) -> Option<T> {
    let called = catch_unwind(AssertUnwindSafe(call));
    if called.is_err() {
        tracing::error!(target: "steadfast", "a rejection format panicked");
    }
    called.ok()
}

fn is_of_the_layer(name: &HeaderName) -> bool {
    is_never_stored(name.as_str()) || [http::header::CACHE_CONTROL, http::header::RETRY_AFTER].contains(name)
}

impl Rejection {
    /// Returns whether a format may respond with this status. A client that repeats a request by
    /// its status must do the same after any format.
    fn may_have(self, status: StatusCode) -> bool {
        let own = self.status();
        // RFC 9110 §15.5.9, §15.5.10 and §15.5.20, RFC 8470 §5.2, RFC 6585 §4: clients repeat after
        // these.
        let is_repeated = matches!(status.as_u16(), 408 | 409 | 421 | 425 | 429);
        status == own
            || own != StatusCode::CONFLICT && own.is_client_error() && status.is_client_error() && !is_repeated
    }

    /// Returns the response: in this format, or as a problem.
    pub(super) fn response<B: Body>(self, format: Option<&RejectionFormat>) -> Response<ResponseBody<B>> {
        let mut response = match format.and_then(|format| format.write(self)) {
            Some(formatted) => self.checked(formatted),
            None => self.problem(),
        };
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self.retry_after() {
            Some(wait) => headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs())),
            None => headers.remove(RETRY_AFTER),
        };
        if let Some(outcome) = self.outcome() {
            response.extensions_mut().insert(outcome);
        }
        response.map(ResponseBody::whole)
    }

    /// Takes the parts of a formatted response that are the format's to choose.
    fn checked(self, formatted: Response<Bytes>) -> Response<Bytes> {
        let (parts, body) = formatted.into_parts();
        let mut response = Response::new(body);
        *response.status_mut() = parts.status;
        if !self.may_have(parts.status) {
            let (own, refused) = (self.status(), parts.status);
            tracing::warn!(target: "steadfast", rejection = ?self, %own, %refused, "a rejection format chose a status with another meaning; the layer's own is sent");
            *response.status_mut() = own;
        }
        let allowed = parts.headers.iter().filter(|(name, _)| !is_never_stored(name.as_str()));
        response.headers_mut().extend(allowed.map(|(name, value)| (name.clone(), value.clone())));
        response
    }
}

#[cfg(test)]
mod tests {
    use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
    use http_body_util::BodyExt;
    use http_body_util::Empty;

    use super::*;
    use crate::outcome::ExecutionOutcome;

    type Written = Response<crate::ResponseBody<Empty<Bytes>>>;

    fn every_rejection() -> Vec<Rejection> {
        use Rejection as R;
        vec![
            R::KeyMissing,
            R::KeyMalformed { reason: "there are two keys" },
            R::EventIdMissing,
            R::BodyBroken,
            R::NoCaller,
            R::InProgress,
            R::OutcomeUnknown,
            R::AnswerNotKept { status: StatusCode::CREATED },
            R::BodyTooLarge { limit: 7 },
            R::OtherRequest { stored_4xx: None },
            R::OtherRequest { stored_4xx: Some(StatusCode::BAD_REQUEST) },
            R::RecordUnreadable,
            R::HandlerFailed,
            R::HandlerTimedOut,
            R::TransactionLost,
            R::StoreUnavailable,
            R::StoreFull { limit: crate::StoreLimit::new("max_bytes", "raise it") },
            R::TooManyRunning { limit: 2 },
            R::RolledBack,
            R::DeadlinePassed,
        ]
    }

    /// A format that writes every header that it must not.
    fn greedy(status: u16) -> RejectionFormat {
        RejectionFormat::from_fn(move |_| {
            let response = Response::builder().status(status).header(CONTENT_TYPE, "text/plain");
            let response = response.header(CACHE_CONTROL, "public").header(RETRY_AFTER, "3600");
            response.header(CONTENT_LENGTH, "1").header("idempotency-status", "stored").body("mine").unwrap()
        })
    }

    #[test]
    fn layers_headers_and_outcome_survive_a_format() {
        for rejection in every_rejection() {
            let plain: Written = rejection.response(None);
            let own: Written = rejection.response(Some(&greedy(rejection.status().as_u16())));
            assert_eq!(own.status(), plain.status(), "{rejection:?}");
            assert_eq!(own.headers()[CACHE_CONTROL], "no-store");
            assert_eq!(own.headers().get(RETRY_AFTER), plain.headers().get(RETRY_AFTER), "{rejection:?}");
            assert_eq!(own.headers()[CONTENT_TYPE], "text/plain");
            assert_eq!((own.headers().get(CONTENT_LENGTH), own.headers().get("idempotency-status")), (None, None));
            let outcome = |response: &Written| response.extensions().get::<ExecutionOutcome>().copied();
            assert_eq!(outcome(&own), outcome(&plain), "{rejection:?}");
        }
    }

    #[test]
    fn status_changes_only_among_final_4xx() {
        for rejection in every_rejection() {
            let own = rejection.status().as_u16();
            let is_final = matches!(own, 400 | 403 | 410 | 413 | 422);
            for wanted in [200, 307, 400, 402, 404, 408, 409, 421, 422, 425, 429, 500, 503] {
                let sent: Written = rejection.response(Some(&greedy(wanted)));
                let changes = is_final && matches!(wanted, 400 | 402 | 404 | 422);
                assert_eq!(sent.status().as_u16(), if changes { wanted } else { own }, "{rejection:?} as {wanted}");
            }
        }
    }

    #[tokio::test]
    async fn panic_of_a_format_leaves_the_problem() {
        let format = RejectionFormat::from_fn(|_| -> Response<Bytes> { panic!("on purpose") });
        let sent: Written = Rejection::HandlerFailed.response(Some(&format));
        assert_eq!(sent.headers()[CONTENT_TYPE], "application/problem+json");
        assert!(!sent.into_body().collect().await.unwrap().to_bytes().is_empty());
        let mut response = Response::new(());
        format.response_header(|_, _| panic!("on purpose")).add_header(IdempotencyStatus::Stored, &mut response);
        assert!(response.headers().is_empty());
    }

    #[test]
    fn added_header_cannot_be_one_of_the_layer() {
        for name in ["idempotency-status", "idempotent-replayed", "cache-control", "retry-after", "content-length"] {
            let format = greedy(400)
                .response_header(move |_, _| Some((HeaderName::from_static(name), HeaderValue::from_static("1"))));
            let mut response = Response::new(());
            format.add_header(IdempotencyStatus::Stored, &mut response);
            assert!(response.headers().is_empty(), "{name}");
        }
    }

    #[tokio::test]
    async fn every_stripe_error_is_one_its_libraries_know() {
        let types = ["api_error", "idempotency_error", "invalid_request_error"];
        for rejection in every_rejection() {
            let sent: Written = rejection.response(Some(&RejectionFormat::stripe()));
            assert_eq!(sent.headers()[CONTENT_TYPE], "application/json");
            let (status, retry) = (sent.status(), sent.headers().get("stripe-should-retry").cloned());
            let body = sent.into_body().collect().await.unwrap().to_bytes();
            let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let error = &error["error"];
            assert!(types.contains(&error["type"].as_str().unwrap()), "{error}");
            assert!(!error["message"].as_str().unwrap().is_empty());
            assert_eq!(error["doc_url"], rejection.problem_type());
            // What may have been executed is no mistake of the request.
            let may_have_run = status.is_server_error()
                || matches!(rejection, Rejection::OutcomeUnknown | Rejection::AnswerNotKept { .. });
            assert_eq!(may_have_run, error["type"] == "api_error", "{rejection:?}");
            match retry {
                // `Idempotency-Status` decides: see `should_retry`.
                None => {
                    assert_eq!((status, error["type"].as_str()), (StatusCode::INTERNAL_SERVER_ERROR, Some("api_error")))
                }
                Some(retry) => assert_eq!(retry == "true", rejection.retry_after().is_some(), "{rejection:?}"),
            }
        }
    }
}
