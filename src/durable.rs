//! The parts of a request that can be written down, for a crate that carries operations out after
//! this process is gone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method};

use super::before_send::{BeforeSend, BeforeSendHook};
use super::operation::OperationContext;
use super::prepared::PreparedRequest;
use super::request::RequestBuilder;
use super::wire_request::WireRequest;
use crate::Client;
use crate::earlier::Earlier;
use crate::error::{Error, Result};
use crate::key::IdempotencyKey;

/// What has to be written down of a request, to send it from another process.
///
/// It has the caller's headers, and not those of the client, which may be credentials.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "not public: the crates that use it have one version")]
pub struct DurableRequest {
    /// The method.
    pub method: Method,
    /// The URL, with its query.
    pub url: reqwest::Url,
    /// The headers, without the key.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The key, or `None` if the request has none.
    pub key: Option<IdempotencyKey>,
    /// How long the API remembers the key.
    pub retention: Duration,
    /// The caller's word on whether a repeat is harmless.
    pub idempotent: Option<bool>,
}

impl DurableRequest {
    /// Takes the parts of a prepared request.
    ///
    /// # Errors
    ///
    /// The body is a stream, a file or a form, or a setting of the request is lost with this
    /// process.
    pub fn from_prepared(prepared: PreparedRequest) -> Result<Self> {
        let (request, headers) = prepared.into_parts();
        request.durable_parts(headers)
    }

    pub(super) fn of(
        context: &OperationContext<'_>,
        wire_request: &WireRequest,
        (mut headers, idempotent): (HeaderMap, Option<bool>),
    ) -> Result<Self> {
        let request = wire_request.original();
        let Some(body) = wire_request.body.kept() else {
            return Err(Error::build("body", "a stream, a file or a form cannot be written down; send bytes"));
        };
        headers.remove(&context.client.keys.header);
        if let Some(content_type) = wire_request.content_type.value() {
            headers.entry(CONTENT_TYPE).or_insert(content_type);
        }
        Ok(Self {
            method: request.method().clone(),
            url: request.url().clone(),
            headers,
            body,
            key: context.key.clone(),
            retention: context.key_retention(wire_request),
            idempotent,
        })
    }

    /// Builds the request again. `earlier`: what became of it so far. `hook` is asked before each
    /// request leaves.
    ///
    /// # Errors
    ///
    /// The client was not built.
    pub fn build(self, client: &Client, earlier: Earlier, hook: Arc<dyn BeforeSend>) -> RequestBuilder {
        let mut request = reqwest::Request::new(self.method, self.url);
        *request.headers_mut() = self.headers;
        let built = RequestBuilder::from_parts(client.clone(), request).body(self.body).repeating(earlier);
        let built = built.hedge(None).asking(BeforeSendHook(hook));
        match self.idempotent {
            Some(idempotent) => built.idempotent(idempotent),
            None => built,
        }
    }
}
