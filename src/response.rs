//! The report of an operation, on its response.
//!
//! The response is reqwest's own type, so it fits everything that takes one. The report is in its
//! extensions.

use std::future::Future;
use std::time::Duration;

use http::StatusCode;

use super::attempt_result::AttemptResponse;
use super::origin::origin;
use super::response_body;
use super::{link, redirect};
use crate::error::{Answer, Error, ErrorKind, Result};
use crate::journal::{Attempt, NotFollowed, OperationReport};
use crate::key::IdempotencyKey;
use crate::policy::StopReason;
use crate::resume::SafeUrl;

/// The report of an operation, on its final response, and the links of that response.
///
/// The report is empty on a response of another client.
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

    /// Returns the response if its status is 2xx, otherwise an [`Error`]. The class of your
    /// [classifier](crate::ClientBuilder::classify) does not count here.
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
    /// # async fn example(client: Client) -> steadfast::Result<()> {
    /// let response = client.get("https://api.example.com/report").send().await?;
    /// let text = response.into_result().await?.text().await?;
    /// # drop(text);
    /// # Ok(())
    /// # }
    /// ```
    fn into_result(self) -> impl Future<Output = Result<Self>> + Send;

    /// Returns the URL in the `Location` of this response, or `None` if it has none.
    ///
    /// A relative URL is resolved against the URL of this response (RFC 9110 §10.2.2). User
    /// information in it is left out.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Redirect`], and the message names the target, if:
    ///
    /// * it is on another origin than your request (scheme, host or port), or this response is.
    ///   Whoever wrote the link would choose where your next request goes, with its credentials. If
    ///   that is fine, call [`location_to_any_origin`](Self::location_to_any_origin);
    /// * it is not an http or https URL.
    ///
    /// ```no_run
    /// use steadfast::{Client, ResponseExt};
    ///
    /// # async fn example(client: Client) -> steadfast::Result<()> {
    /// let response = client.post("https://api.example.com/exports").body("2026").send().await?;
    /// if let Some(export) = response.into_result().await?.location()? {
    ///     let state = client.get(export).fetch_text().await?;
    ///     # drop(state);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    fn location(&self) -> Result<Option<reqwest::Url>>;

    /// Returns the URL in the `Location` of this response, as [`location`](Self::location) does,
    /// also if it is on another origin.
    ///
    /// The client adds its own default headers to a request by the URL's origin. Do not add
    /// credentials to a request that goes elsewhere.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Redirect`] if it is not an http or https URL, or leads from https to http.
    fn location_to_any_origin(&self) -> Result<Option<reqwest::Url>>;

    /// Returns the URL of the first `Link` with this relation, such as `next`, or `None` if there is
    /// no such link (RFC 8288).
    ///
    /// The relation is compared without regard to case. A relative URL is resolved against the URL
    /// of this response. A link with an `anchor` of another resource is left out.
    ///
    /// # Errors
    ///
    /// Those of [`location`](Self::location). If another origin is fine, call
    /// [`link_to_any_origin`](Self::link_to_any_origin).
    ///
    /// ```no_run
    /// use serde_json::Value;
    /// use steadfast::{Client, ResponseExt};
    ///
    /// # async fn example(client: Client) -> steadfast::Result<()> {
    /// let mut items: Vec<Value> = Vec::new();
    /// let mut page = client.get("https://api.example.com/items").send().await?.into_result().await?;
    /// loop {
    ///     let next = page.link("next")?;
    ///     items.append(&mut page.json().await?);
    ///     let Some(next) = next else { break };
    ///     page = client.get(next).send().await?.into_result().await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    fn link(&self, relation: &str) -> Result<Option<reqwest::Url>>;

    /// Returns the URL of the first `Link` with this relation, as [`link`](Self::link) does, also
    /// if it is on another origin. See [`location_to_any_origin`](Self::location_to_any_origin) for
    /// credentials.
    ///
    /// # Errors
    ///
    /// Those of [`location_to_any_origin`](Self::location_to_any_origin).
    fn link_to_any_origin(&self, relation: &str) -> Result<Option<reqwest::Url>>;
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
            None => error.of_no_operation(None),
        })
    }

    fn location(&self) -> Result<Option<reqwest::Url>> {
        let Some(url) = self.location_to_any_origin()? else { return Ok(None) };
        on_own_origin(self, "the Location", "location_to_any_origin", url).map(Some)
    }

    fn location_to_any_origin(&self) -> Result<Option<reqwest::Url>> {
        match redirect::location(self.url(), self.headers()) {
            Err(NotFollowed::NoAddress) => Ok(None),
            target => resolved(self, "the Location", target).map(Some),
        }
    }

    fn link(&self, relation: &str) -> Result<Option<reqwest::Url>> {
        let Some(url) = self.link_to_any_origin(relation)? else { return Ok(None) };
        on_own_origin(self, &format!("the link `{relation}`"), "link_to_any_origin", url).map(Some)
    }

    fn link_to_any_origin(&self, relation: &str) -> Result<Option<reqwest::Url>> {
        let Some(target) = link::find(self.headers(), relation, self.url()) else { return Ok(None) };
        resolved(self, &format!("the link `{relation}`"), redirect::resolve(self.url(), target)).map(Some)
    }
}

/// Checks the resolved target of a link.
fn resolved(
    response: &reqwest::Response,
    what: &str,
    target: std::result::Result<reqwest::Url, NotFollowed>,
) -> Result<reqwest::Url> {
    let from = response.url();
    let Ok(url) = target else {
        return Err(link_error(response, format!("{what} is not an http or https URL")));
    };
    if from.scheme() == "https" && url.scheme() != "https" {
        return Err(link_error(response, format!("{what} leads from https to {}", SafeUrl(&url))));
    }
    Ok(url)
}

/// Returns the target of a link, if neither it nor the response that has it left the origin.
fn on_own_origin(response: &reqwest::Response, what: &str, other: &str, url: reqwest::Url) -> Result<reqwest::Url> {
    let is_elsewhere = report(response).is_some_and(|report| report.is_elsewhere);
    if !is_elsewhere && origin(&url) == origin(response.url()) {
        return Ok(url);
    }
    let who = if is_elsewhere { "comes from" } else { "leads to" };
    let what = format!("{what} {who} another origin: {}; if that is fine, call {other}", SafeUrl(&url));
    Err(link_error(response, what))
}

/// Returns the error of a link that is not used. The response itself is fine, and stays with the
/// caller.
fn link_error(response: &reqwest::Response, what: String) -> Error {
    let error = Error::new(ErrorKind::Redirect, what);
    match report(response) {
        Some(report) => {
            let method = report.method.clone();
            error.with_report(report.clone()).at(&method, SafeUrl(response.url()))
        }
        None => error.of_no_operation(Some(response.status())),
    }
}

/// Returns the error of a final response other than 2xx from `url`.
pub(super) fn status_error(answer: Answer, url: &reqwest::Url) -> Error {
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

fn report(response: &reqwest::Response) -> Option<&OperationReport> {
    response.extensions().get()
}

mod private {
    pub trait Sealed {}
    impl Sealed for reqwest::Response {}
}
