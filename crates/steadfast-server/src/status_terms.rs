//! The parameters of `Idempotency-Status`.

use std::time::Duration;

use http::{HeaderValue, Response};
use steadfast_core::protocol::{IDEMPOTENCY_STATUS, IdempotencyStatus};

/// The parameters, which are the same for every status: how long a record is kept, and which paths
/// the layer covers. Formatted once per layer.
#[derive(Clone)]
pub(super) struct StatusTerms {
    retention: String,
    scope: String,
}

impl StatusTerms {
    pub(super) fn new(retention: Duration) -> Self {
        Self { retention: format!(";retention={}", retention.as_secs()), scope: String::new() }
    }

    pub(super) fn covering(&mut self, prefix: &str) {
        self.scope = format!(";scope=\"{prefix}\"");
    }

    pub(super) fn keeping(&mut self, retention: Duration) {
        self.retention = Self::new(retention).retention;
    }

    /// Sets the header on a response: `stored;retention=86400;scope="/v1"`.
    pub(super) fn put<B>(&self, status: IdempotencyStatus, response: &mut Response<B>) {
        // A path prefix that is not a valid header value is left out.
        let value = HeaderValue::try_from([status.word(), &self.retention, &self.scope].concat());
        response.headers_mut().insert(IDEMPOTENCY_STATUS, value.unwrap_or(HeaderValue::from_static(status.word())));
    }
}
