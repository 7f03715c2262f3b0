//! Stripe's error object, and the header that tells Stripe's client libraries whether to repeat.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use steadfast_core::protocol::IdempotencyStatus;

use super::rejection::Rejection;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("stripe-should-retry");

const API: &str = "api_error";
const IDEMPOTENCY: &str = "idempotency_error";
const INVALID_REQUEST: &str = "invalid_request_error";

/// Returns the status, the `type` and the `code` of a rejection.
///
/// stripe-node and stripe-python choose the class of an error by its status. For a 400 the type
/// counts as well: with `idempotency_error` it is an `IdempotencyError`.
#[rustfmt::skip]
fn row(rejection: Rejection) -> (StatusCode, &'static str, Option<&'static str>) {
    use Rejection as R;

    let own = rejection.status();
    match rejection {
        R::KeyMissing | R::EventIdMissing => (own, INVALID_REQUEST, Some("parameter_missing")),
        R::KeyMalformed { .. } | R::BodyBroken | R::BodyTooLarge { .. } => (StatusCode::BAD_REQUEST, INVALID_REQUEST, None),
        R::NoCaller => (own, INVALID_REQUEST, None),
        R::OtherRequest { .. } => (StatusCode::BAD_REQUEST, IDEMPOTENCY, None),
        R::InProgress => (own, IDEMPOTENCY, Some("idempotency_key_in_use")),
        R::OutcomeUnknown | R::AnswerNotKept { .. } => (own, API, None),
        R::RecordUnreadable | R::HandlerFailed | R::HandlerTimedOut | R::TransactionLost => (own, API, None),
        R::StoreUnavailable | R::StoreFull { .. } | R::TooManyRunning { .. } | R::RolledBack | R::DeadlinePassed => (own, API, None),
    }
}

/// Returns a rejection as Stripe's error object (<https://docs.stripe.com/api/errors>).
pub(super) fn response(rejection: &Rejection) -> Response<Bytes> {
    let (status, kind, code) = row(*rejection);
    let message = match rejection.detail() {
        Some(detail) => format!("{}: {detail}", rejection.title()),
        None => rejection.title().to_owned(),
    };
    let mut error = serde_json::json!({ "type": kind, "message": message, "doc_url": rejection.problem_type() });
    if let (Some(code), Some(members)) = (code, error.as_object_mut()) {
        members.insert("code".to_owned(), code.into());
    }
    let mut response = Response::new(Bytes::from(serde_json::json!({ "error": error }).to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // After these, `Idempotency-Status` says whether a repeat runs the handler.
    let depends =
        matches!(rejection, Rejection::HandlerFailed | Rejection::HandlerTimedOut | Rejection::TransactionLost);
    if !depends {
        let retry = if rejection.retry_after().is_some() { "true" } else { "false" };
        headers.insert(SHOULD_RETRY, HeaderValue::from_static(retry));
    }
    response
}

/// Returns the header of a response that a repeat would get again. Stripe sends it with most 500s,
/// for the same reason (a comment in stripe-node's and stripe-python's `_shouldRetry`).
pub(super) fn should_retry(status: IdempotencyStatus, http: StatusCode) -> Option<(HeaderName, HeaderValue)> {
    let stays = matches!(status, IdempotencyStatus::Stored | IdempotencyStatus::Replayed | IdempotencyStatus::Unknown);
    let is_error = http.is_client_error() || http.is_server_error();
    (stays && is_error).then_some((SHOULD_RETRY, HeaderValue::from_static("false")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_stay_are_not_repeated() {
        use IdempotencyStatus as I;

        for (status, http, header) in [
            (I::Stored, 500, Some("false")),
            (I::Replayed, 500, Some("false")),
            (I::Replayed, 402, Some("false")),
            (I::Replayed, 409, Some("false")),
            (I::Unknown, 500, Some("false")),
            (I::Unknown, 409, Some("false")),
            (I::Stored, 200, None),
            (I::Replayed, 303, None),
            (I::Released, 503, None),
            (I::Released, 500, None),
            (I::InProgress, 409, None),
        ] {
            let sent = should_retry(status, StatusCode::from_u16(http).unwrap());
            let expected = header.map(|value| (SHOULD_RETRY, HeaderValue::from_static(value)));
            assert_eq!(sent, expected, "{status:?} {http}");
        }
    }
}
