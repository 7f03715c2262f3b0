//! An operation that is fixed and not sent yet: its key exists, and so does the token for the case
//! that this process does not survive it.

use bytes::Bytes;
use http::HeaderMap;

use super::detached::DetachedRequest;
use super::request::RequestBuilder;
use crate::error::{BoxError, Result};
use crate::resume::ResumeToken;

/// A request with a fixed key, ready to be sent. [`RequestBuilder::prepare`] makes one.
///
/// Its body and its terms cannot change any more, because the token belongs to them.
#[derive(Debug)]
#[must_use = "a request does nothing until it is sent"]
pub struct PreparedRequest {
    request: RequestBuilder,
    token: Option<ResumeToken>,
    /// The caller's headers, without those of the client.
    headers: HeaderMap,
}

impl PreparedRequest {
    pub(super) fn new(request: RequestBuilder, token: Option<ResumeToken>, headers: HeaderMap) -> Self {
        Self { request, token, headers }
    }

    /// Returns the token with which you can [resume](RequestBuilder::resume) the operation, or
    /// `None` if it has no key.
    ///
    /// The token says that the operation may have been processed, because nobody knows what happens
    /// after you have stored it. So you can resume it only if the API is known to honour keys. The
    /// age of the key counts from the call of `prepare`.
    #[must_use]
    pub fn resume_token(&self) -> Option<&ResumeToken> {
        self.token.as_ref()
    }

    /// Returns the request with its fixed key, and the headers that its caller has set.
    pub(super) fn into_parts(self) -> (RequestBuilder, HeaderMap) {
        (self.request, self.headers)
    }

    /// Makes the operation independent of its caller: see [`RequestBuilder::detached`].
    pub fn detached(self) -> DetachedRequest {
        self.request.detached()
    }

    /// Sends the request: see [`RequestBuilder::send`].
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::send`].
    pub fn send(self) -> impl Future<Output = Result<reqwest::Response>> {
        self.request.send()
    }

    /// Feature `json`. Sends the request and decodes the 2xx response from JSON: see
    /// [`RequestBuilder::fetch`].
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::fetch`].
    #[cfg(feature = "json")]
    pub fn fetch<T: serde::de::DeserializeOwned>(self) -> impl Future<Output = Result<T>> {
        self.request.fetch()
    }

    /// Sends the request and returns the text of the 2xx response: see
    /// [`RequestBuilder::fetch_text`].
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::fetch_text`].
    pub fn fetch_text(self) -> impl Future<Output = Result<String>> {
        self.request.fetch_text()
    }

    /// Sends the request and returns the body of the 2xx response: see
    /// [`RequestBuilder::fetch_bytes`].
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::fetch_bytes`].
    pub fn fetch_bytes(self) -> impl Future<Output = Result<Bytes>> {
        self.request.fetch_bytes()
    }

    /// Sends the request and decodes the 2xx response by a closure of yours: see
    /// [`RequestBuilder::fetch_with`].
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::fetch_with`].
    pub fn fetch_with<T, E: Into<BoxError>>(
        self,
        decoder: impl FnOnce(&[u8]) -> std::result::Result<T, E>,
    ) -> impl Future<Output = Result<T>> {
        self.request.fetch_with(decoder)
    }

    /// Sends the request and returns the 2xx response with its complete body: see
    /// [`RequestBuilder::fetch_response`].
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::fetch_response`].
    pub fn fetch_response(self) -> impl Future<Output = Result<reqwest::Response>> {
        self.request.fetch_response()
    }
}
