//! An operation that goes on when its caller is dropped.
//!
//! The only tasks that the client spawns are those of the requests that you detach.

use std::panic::resume_unwind;

use bytes::Bytes;
use tracing::Instrument as _;

use super::request::RequestBuilder;
use crate::deadline::{Task, in_task};
use crate::error::{BoxError, Error, ErrorKind, Result};

/// A request whose operation does not depend on its caller. [`RequestBuilder::detached`] makes one.
///
/// The first poll of one of its futures spawns a task, so it needs a tokio runtime. A panic inside
/// the task, such as one of your classifier, reaches the caller if that still waits.
#[derive(Debug)]
#[must_use = "a request does nothing until it is sent"]
pub struct DetachedRequest {
    request: RequestBuilder,
}

impl DetachedRequest {
    pub(super) fn new(request: RequestBuilder) -> Self {
        Self { request }
    }

    /// Sends the request: see [`RequestBuilder::send`].
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::send`], and an [`ErrorKind::Build`] if the operation has no deadline.
    pub fn send(self) -> impl Future<Output = Result<reqwest::Response>> {
        run(self.request, RequestBuilder::send)
    }

    /// Feature `json`. Sends the request and decodes the 2xx response from JSON: see
    /// [`RequestBuilder::fetch`].
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::fetch`], and an [`ErrorKind::Build`] if the operation has no deadline.
    #[cfg(feature = "json")]
    pub fn fetch<T>(self) -> impl Future<Output = Result<T>>
    where
        T: serde::de::DeserializeOwned + Send + 'static,
    {
        run(self.request, RequestBuilder::fetch)
    }

    /// Sends the request and returns the text of the 2xx response: see
    /// [`RequestBuilder::fetch_text`].
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::fetch_text`], and an [`ErrorKind::Build`] if the operation has no
    /// deadline.
    pub fn fetch_text(self) -> impl Future<Output = Result<String>> {
        run(self.request, RequestBuilder::fetch_text)
    }

    /// Sends the request and returns the body of the 2xx response: see
    /// [`RequestBuilder::fetch_bytes`].
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::fetch_bytes`], and an [`ErrorKind::Build`] if the operation has no
    /// deadline.
    pub fn fetch_bytes(self) -> impl Future<Output = Result<Bytes>> {
        run(self.request, RequestBuilder::fetch_bytes)
    }

    /// Sends the request and decodes the 2xx response by a closure of yours: see
    /// [`RequestBuilder::fetch_with`].
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::fetch_with`], and an [`ErrorKind::Build`] if the operation has no
    /// deadline.
    pub fn fetch_with<T, E>(
        self,
        decoder: impl FnOnce(&[u8]) -> std::result::Result<T, E> + Send + 'static,
    ) -> impl Future<Output = Result<T>>
    where
        T: Send + 'static,
        E: Into<BoxError> + 'static,
    {
        run(self.request, |request| request.fetch_with(decoder))
    }

    /// Sends the request and returns the 2xx response with its complete body: see
    /// [`RequestBuilder::fetch_response`].
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::fetch_response`], and an [`ErrorKind::Build`] if the operation has no
    /// deadline.
    pub fn fetch_response(self) -> impl Future<Output = Result<reqwest::Response>> {
        run(self.request, RequestBuilder::fetch_response)
    }
}

/// Runs the operation in a task, and waits for its result.
async fn run<T, F>(request: RequestBuilder, start: impl FnOnce(RequestBuilder) -> F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    request.check_deadline().map_err(|error| request.locate(error))?;
    let client = request.client().clone();
    let operation = in_task(Task::current(), start(request)).in_current_span();
    match client.inner()?.detached.spawn(operation).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // Nobody but the runtime aborts it.
            Err(_) => Err(Error::new(ErrorKind::Transport, "the runtime was shut down").of_no_operation(None)),
        },
    }
}
