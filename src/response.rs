//! The report of an operation, on its response.
//!
//! The response is reqwest's own type, so it fits everything that takes one. The report is in its
//! extensions.

use std::future::Future;
use std::time::Duration;

use http::StatusCode;

use super::attempt_result::AttemptResponse;
#[cfg(feature = "json")]
use super::{operation::OperationContext, wire_request::WireRequest};
use super::{redirect, response_body};
#[cfg(feature = "json")]
use crate::decode::DecodeError;
use crate::error::{Answer, Error, ErrorKind, Result};
use crate::journal::{Attempt, OperationReport};
use crate::key::IdempotencyKey;
use crate::policy::StopReason;
use crate::resume::SafeUrl;

/// The report of an operation, on its final response.
///
/// It is empty on a response of another client.
///
/// ```no_run
/// use steadfast::{Client, ResponseExt};
///
/// # async fn example(client: Client) -> steadfast::Result<()> {
/// let response = client.get("https://api.example.com/report").send().await?;
/// if response.attempts().len() > 1 {
///     println!("retried, and done in {:?}", response.elapsed());
///     response.attempts().iter().for_each(|attempt| println!("  {attempt}"));
/// }
/// # Ok(())
/// # }
/// ```
pub trait ResponseExt: Sized + private::Sealed {
    /// Returns every attempt, in order. The last one brought this response.
    fn attempts(&self) -> &[Attempt];

    /// Returns the key that the request carried, if it had one.
    fn idempotency_key(&self) -> Option<&IdempotencyKey>;

    /// Returns the time from the start of the operation to the head of this response, waits
    /// included.
    fn elapsed(&self) -> Duration;

    /// Returns why there was no further attempt.
    fn stop_reason(&self) -> Option<StopReason>;

    /// Returns how long this response asks you to wait, if it does.
    ///
    /// ```no_run
    /// use steadfast::{Client, ResponseExt};
    ///
    /// # async fn example(client: Client) -> steadfast::Result<()> {
    /// let response = client.get("https://api.example.com/export").send().await?;
    /// if response.status() == 202
    ///     && let Some(wait) = response.retry_after()
    /// {
    ///     tokio::time::sleep(wait).await;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    fn retry_after(&self) -> Option<Duration>;

    /// Returns whether the server may have carried out the operation. See
    /// [`Error::may_have_been_processed`](crate::Error::may_have_been_processed).
    fn may_have_been_processed(&self) -> bool;

    /// Returns the response if its status is 2xx, otherwise an [`Error`].
    ///
    /// The error has the report and the first 64 KiB of the body. reqwest's `error_for_status`
    /// would lose both.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Redirect`] for a 3xx, [`ErrorKind::Status`] for every other status but 2xx.
    ///
    /// ```no_run
    /// use steadfast::{Client, ResponseExt};
    ///
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let response = client.get("https://api.example.com/report").send().await?;
    /// let text = response.into_result().await?.text().await?;
    /// # drop(text);
    /// # Ok(())
    /// # }
    /// ```
    fn into_result(self) -> impl Future<Output = Result<Self>> + Send;
}

impl ResponseExt for reqwest::Response {
    fn attempts(&self) -> &[Attempt] {
        report(self).map_or(&[], |report| report.journal.attempts())
    }

    fn idempotency_key(&self) -> Option<&IdempotencyKey> {
        report(self).and_then(|report| report.key.as_ref())
    }

    fn elapsed(&self) -> Duration {
        report(self).map_or(Duration::ZERO, |report| report.elapsed)
    }

    fn stop_reason(&self) -> Option<StopReason> {
        report(self).map(|report| report.stop)
    }

    fn retry_after(&self) -> Option<Duration> {
        report(self).and_then(|report| report.retry_after)
    }

    fn may_have_been_processed(&self) -> bool {
        report(self).is_some_and(|report| report.may_have_been_processed)
    }

    async fn into_result(mut self) -> Result<Self> {
        if self.status().is_success() {
            return Ok(self);
        }
        let report = self.extensions_mut().remove::<OperationReport>();
        let url = self.url().clone();
        let AttemptResponse::Whole { status, headers, body, .. } = response_body::read_error_of(self, None).await
        else {
            return Err(Error::new(ErrorKind::Transport, "the response had no body to read"));
        };
        let error = status_error(Answer { status, headers, body }, &url);
        Err(match report {
            Some(report) => {
                let method = report.method.clone();
                error.with_report(report).at(&method, SafeUrl(&url))
            }
            None => error,
        })
    }
}

/// Returns the error of a final response other than 2xx from `url`.
fn status_error(answer: Answer, url: &reqwest::Url) -> Error {
    let status = answer.status.as_u16();
    if !answer.status.is_redirection() {
        return Error::new(ErrorKind::Status, format!("status {status}")).with_answer(answer);
    }
    let what = match redirect::location(url, &answer.headers) {
        Ok(location) => format!("status {status}, a redirect to {} that is not followed", SafeUrl(&location)),
        Err(_) if answer.status == StatusCode::NOT_MODIFIED => format!("status {status}, not modified"),
        Err(_) => format!("status {status}, a redirect that is not followed"),
    };
    Error::new(ErrorKind::Redirect, what).with_answer(answer)
}

/// Decodes the body of a 2xx response from `url`.
#[cfg(feature = "json")]
pub(super) fn decode<T: serde::de::DeserializeOwned>(
    answer: AttemptResponse,
    read: response_body::ReadMode,
    url: &reqwest::Url,
) -> Result<T> {
    let (AttemptResponse::Whole { status, headers, body, over_limit }, response_body::ReadMode::Whole { limit }) =
        (answer, read)
    else {
        return Err(Error::new(ErrorKind::Transport, "the response body was not read"));
    };
    if !status.is_success() {
        return Err(status_error(Answer { status, headers, body }, url));
    }
    if over_limit {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("the response body is over the body_limit of {limit} bytes"),
        ));
    }
    serde_json::from_slice(if body.is_empty() { b"null" } else { &body }).map_err(|error| {
        let what = format!("the response is not the expected JSON ({})", DecodeError::new(&error));
        Error::new(ErrorKind::Decode, what).with_answer(Answer { status, headers, body: first_64_kib(body) })
    })
}

/// Adds the report to the error of a response that cannot be decoded.
#[cfg(feature = "json")]
pub(super) fn with_report(
    error: Error,
    mut report: OperationReport,
    context: &OperationContext<'_>,
    wire_request: &WireRequest,
) -> Error {
    if matches!(error.kind(), ErrorKind::Decode | ErrorKind::TooLarge) {
        // It was processed, and the response is lost on this side. Under its key the server sends
        // it again.
        report.resume = context.resume_token(wire_request, true);
    }
    error.with_report(report).at(&context.method, SafeUrl(wire_request.original().url()))
}

#[cfg(feature = "json")]
fn first_64_kib(body: bytes::Bytes) -> bytes::Bytes {
    body.slice(..body.len().min(64 * 1024))
}

fn report(response: &reqwest::Response) -> Option<&OperationReport> {
    response.extensions().get()
}

mod private {
    pub trait Sealed {}
    impl Sealed for reqwest::Response {}
}
