//! The settings for an API of its own form: what of a body tells requests apart, and how rejections
//! are written.

use super::IdempotencyLayer;
use crate::body_fingerprint::BodyFingerprint;
use crate::rejection_format::RejectionFormat;
use crate::store::Store;

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
        self.state.config.body_fingerprint = Some(body);
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
