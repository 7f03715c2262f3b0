//! The settings for an API of its own form: what tells requests apart, and how rejections are
//! written.

use std::sync::Arc;

use http::request::Parts;

use super::IdempotencyLayer;
use crate::body_fingerprint::BodyFingerprint;
use crate::rejection_format::RejectionFormat;
use crate::store::Store;

/// # Address of a request
impl<S: Store> IdempotencyLayer<S> {
    /// Sets the host name that is part of the fingerprint. `None` leaves the host out.
    ///
    /// Default: the host of `:authority` (HTTP/2), of an absolute target, or of the `Host` header,
    /// in lower case, without its port and without a final dot. The layer compares your closure's
    /// value as it is.
    ///
    /// Set it behind a proxy that writes its own `Host`, because all hosts behind it look alike.
    /// Take the client's host from the header in which *your* proxy sends it. `Forwarded` and
    /// `X-Forwarded-Host` are not trusted by default, since any client can send them.
    ///
    /// Set it also if clients call one service by several names: return the service's name, or
    /// `None`. Otherwise a client that repeats a request to another address is refused with 422.
    ///
    /// ```
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     // Our own proxy writes this header, and removes any that the client has sent.
    ///     .host(|parts| {
    ///         let host = parts.headers.get("x-forwarded-host")?.to_str().ok()?;
    ///         Some(host.to_ascii_lowercase())
    ///     });
    /// ```
    #[must_use]
    pub fn host(mut self, host: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.state.config.host = Some(Arc::new(host));
        self
    }

    /// Sets the target that is part of the fingerprint: path and query as the client sent them.
    /// Default: those of the request as this layer sees it.
    ///
    /// **A nested router sees a shorter path.** Inside `nest("/accounts/{id}", …)`,
    /// `/accounts/1/close` and `/accounts/2/close` are both `/close`. Under one key the second
    /// would get the first one's response. Put the layer on the outermost router, or return the
    /// whole path here. In axum:
    ///
    /// ```
    /// use axum::extract::OriginalUri;
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
    /// let layer = layer.target(|parts| {
    ///     let original = parts.extensions.get::<OriginalUri>();
    ///     let whole = original.map_or(&parts.uri, |original| &original.0);
    ///     whole.path_and_query().map_or_else(String::new, ToString::to_string)
    /// });
    /// ```
    #[must_use]
    pub fn target(mut self, target: impl Fn(&Parts) -> String + Send + Sync + 'static) -> Self {
        self.state.config.target = Some(Arc::new(target));
        self
    }
}

/// # Fingerprint of the body
impl<S: Store> IdempotencyLayer<S> {
    /// Sets what of the body tells a repeat from another request under its key. Default:
    /// [`BodyFingerprint::exact`], every byte.
    ///
    /// Method, host and target stay part of the fingerprint: see [`host`](Self::host) and
    /// [`target`](Self::target).
    ///
    /// ```
    /// use steadfast_server::{BodyFingerprint, IdempotencyLayer, MemoryStore, Scope};
    ///
    /// // Some of our clients sort the members of an object, and some do not.
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .fingerprint_body(BodyFingerprint::canonical_json());
    /// ```
    #[must_use]
    pub fn fingerprint_body(mut self, body: BodyFingerprint) -> Self {
        self.state.config.body_fingerprint = body;
        self
    }
}

/// # Format of rejections
impl<S: Store> IdempotencyLayer<S> {
    /// Sets the format of the layer's own responses. Default: problems (RFC 9457).
    ///
    /// A client library that knows only the errors of your API then understands the layer's.
    /// [`RejectionFormat::stripe`] is ready made; [`RejectionFormat::from_fn`] takes a closure.
    ///
    /// ```
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, RejectionFormat, Scope};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .rejection_format(RejectionFormat::stripe());
    /// ```
    #[must_use]
    pub fn rejection_format(mut self, format: RejectionFormat) -> Self {
        self.state.config.rejection_format = Some(format);
        self
    }
}
