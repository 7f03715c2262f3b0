//! A response whose body was read inside the attempt.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};

use super::attempt_result::AttemptResponse;
use super::ending;
use super::operation::OperationContext;
use super::response::status_error;
use super::response_body::ReadMode;
use super::wire_request::WireRequest;
#[cfg(feature = "json")]
use crate::decode::DecodeError;
use crate::error::{Answer, Error, ErrorKind, Result};
use crate::journal::OperationReport;
use crate::policy::StopReason;
#[cfg(feature = "json")]
use crate::problem;
use crate::resume::SafeUrl;

/// A 2xx response with its whole body.
pub(super) struct WholeResponse {
    status: StatusCode,
    headers: HeaderMap,
    pub(super) body: Bytes,
}

impl WholeResponse {
    /// Returns the response as one of reqwest, with the header that tells how to read the body.
    pub(super) fn into_response(self) -> reqwest::Response {
        let mut response = http::Response::new(self.body);
        if let Some(content_type) = self.headers.get(CONTENT_TYPE) {
            response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
        }
        response.into()
    }

    /// Returns the response as one of reqwest from this URL, with all its headers and the report.
    pub(super) fn into_response_from(self, url: &reqwest::Url, report: OperationReport) -> reqwest::Response {
        let (mut parts, ()) = http::Response::new(()).into_parts();
        (parts.status, parts.headers) = (self.status, self.headers);
        parts.extensions.insert(report);
        ending::with_url(url.clone(), parts, self.body)
    }

    /// Returns the error of a body that is not what was asked for.
    pub(super) fn not_decoded(self, what: impl Into<Cow<'static, str>>) -> Error {
        Error::new(ErrorKind::Decode, what).with_answer(self.into_answer())
    }

    fn into_answer(self) -> Answer {
        let Self { status, headers, body } = self;
        Answer { status, headers, body: body.slice(..body.len().min(64 * 1024)) }
    }
}

/// Returns a 2xx response from `url` that was read inside the attempt. `stop` is why there was no
/// further attempt.
pub(super) fn success(
    response: AttemptResponse,
    read: ReadMode,
    stop: StopReason,
    url: &reqwest::Url,
) -> Result<WholeResponse> {
    let (AttemptResponse::Whole { status, headers, body, over_limit }, ReadMode::Whole { limit }) = (response, read)
    else {
        return Err(Error::new(ErrorKind::Transport, "the response body was not read"));
    };
    if !status.is_success() {
        return Err(status_error(Answer { status, headers, body }, url));
    }
    let response = WholeResponse { status, headers, body };
    // By the table a 2xx is done. If it is not, the user's classifier has called it a failure.
    if !matches!(stop, StopReason::Done | StopReason::Confirmed) {
        let what = format!("status {}, a failure by the classifier", status.as_u16());
        return Err(Error::new(ErrorKind::Status, what).with_answer(response.into_answer()));
    }
    if over_limit {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("the response body is over the body_limit of {limit} bytes"),
        ));
    }
    Ok(response)
}

/// Decodes the body of a 2xx response from JSON. An empty one is `null`.
#[cfg(feature = "json")]
pub(super) fn decode_json<T: serde::de::DeserializeOwned>(response: WholeResponse) -> Result<T> {
    let json = problem::without_mark(&response.body);
    let decoded = serde_json::from_slice(if json.is_empty() { b"null" } else { json });
    decoded.map_err(|error| {
        response.not_decoded(format!("the response is not the expected JSON ({})", DecodeError::new(&error)))
    })
}

/// Adds the report to the error of a response from `last_url` that was read inside the attempt.
pub(super) fn with_report(
    error: Error,
    mut report: OperationReport,
    context: &OperationContext<'_>,
    wire_request: &WireRequest,
    last_url: &reqwest::Url,
) -> Error {
    if matches!(error.kind(), ErrorKind::Decode | ErrorKind::TooLarge) {
        // It was processed, and the response is lost on this side. Under its key the server sends
        // it again.
        report.resume = context.resume_token(wire_request, true);
    }
    let asked = wire_request.original().url();
    error.with_report(report).at(&context.method, SafeUrl(asked)).at_hop(asked, last_url)
}
