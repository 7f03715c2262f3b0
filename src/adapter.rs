//! For the companion crates that bring an HTTP client of another type, or write requests down before
//! they are sent. Not part of the stable API.

use std::future::Future;
use std::time::Duration;

use crate::Client;
pub use crate::before_send::BeforeSend;
pub use crate::durable::DurableRequest;
pub use crate::earlier::Earlier;
use crate::error::{Error, Result};
use crate::request::RequestBuilder;
use crate::resume::SafeUrl;
pub use crate::resume::usable;
use crate::transport::{self, TransportError};
pub use crate::transport_view::TransportView;

/// Sends a request through a transport of which `view` is known, as one operation.
///
/// # Errors
///
/// As [`RequestBuilder::send`].
pub async fn send_through<F, R>(request: RequestBuilder, view: &TransportView, send: F) -> Result<reqwest::Response>
where
    F: Fn(reqwest::Request) -> R,
    R: Future<Output = std::result::Result<reqwest::Response, TransportError>>,
{
    request.send_as_seen(view, send).await
}

/// Makes a request the repeat of an earlier one: the same operation, under its key. If that may have
/// been processed, nothing is sent without the licence to repeat it.
pub fn repeat(request: RequestBuilder, earlier: Earlier) -> RequestBuilder {
    request.repeating(earlier)
}

/// Returns the client's time limit of one attempt.
#[must_use]
pub fn attempt_timeout(client: &Client) -> Option<Duration> {
    client.inner().ok().and_then(|inner| inner.attempt_timeout)
}

/// Returns whether an error is about a request with this method and this URL.
#[must_use]
pub fn is_about(error: &Error, method: &http::Method, url: &reqwest::Url) -> bool {
    transport::is_about(error, method, &SafeUrl(url).to_string())
}
