//! A hook that finds out how an operation ended.
//!
//! The record only shows that a lease expired. The books may show more: a charge with the
//! operation's number exists, or it does not. A hook that looks there turns "unknown" into a
//! response, or into a safe run.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, Uri};

use super::child_key::OperationKey;

/// An operation whose outcome is unknown, with the request that repeats it. It is the argument of
/// the hook in [`IdempotencyLayer::reconcile`](super::IdempotencyLayer::reconcile).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UnknownOperation {
    /// The operation. The keys of its handler's calls derive from it.
    pub operation: OperationKey,
    /// The request's method.
    pub method: Method,
    /// The request's target.
    pub uri: Uri,
    /// The request's headers.
    pub headers: HeaderMap,
    /// The request's body.
    pub body: Bytes,
}

/// The result of a reconciliation hook.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reconciliation {
    /// The operation was carried out. This response is stored, and replayed from now on.
    Applied(Response<Bytes>),
    /// The operation was not carried out, so it runs now.
    NotApplied,
    /// The outcome is still unknown. The request is refused, as by
    /// [`OnUnknown::Reject`](super::OnUnknown::Reject).
    Unknown,
}

type Found = Pin<Box<dyn Future<Output = Reconciliation> + Send>>;

/// The hook, in the layer's configuration.
#[derive(Clone)]
pub(super) struct Reconcile(Arc<dyn Fn(UnknownOperation) -> Found + Send + Sync>);

impl Reconcile {
    pub(super) fn new<F>(find: impl Fn(UnknownOperation) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reconciliation> + Send + 'static,
    {
        Self(Arc::new(move |unknown| Box::pin(find(unknown))))
    }

    pub(super) fn find(&self, unknown: UnknownOperation) -> Found {
        (self.0)(unknown)
    }
}

impl fmt::Debug for Reconcile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reconcile(…)")
    }
}
