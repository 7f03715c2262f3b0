//! Where nobody knows how an operation ended, perhaps somebody can find out.
//!
//! The record says only that a claim lapsed. The books may say more: the charge is there, with the operation's number on it, or it is
//! not. A hook that looks there turns "unknown" into an end, or into a run that is safe.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, Uri};

use super::child_key::OperationKey;

/// An operation whose outcome is unknown, and the request that asks for it again.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UnknownOperation {
    /// The operation, from which the keys of its handler's calls follow.
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

/// What was found out about it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reconciliation {
    /// It was carried out, and this is its answer: stored, and replayed from now on.
    Applied(Response<Bytes>),
    /// It was not carried out: it runs now.
    NotApplied,
    /// It cannot be told. The client is refused, as by [`OnUnknown::Reject`](super::OnUnknown::Reject).
    Unknown,
}

type Found = Pin<Box<dyn Future<Output = Reconciliation> + Send>>;

/// The hook, as the layer keeps it.
#[derive(Clone)]
pub(super) struct Reconcile(Arc<dyn Fn(UnknownOperation) -> Found + Send + Sync>);

impl Reconcile {
    pub(super) fn new<F>(find: impl Fn(UnknownOperation) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reconciliation> + Send + 'static,
    {
        Self(Arc::new(move |lapse| Box::pin(find(lapse))))
    }

    pub(super) fn find(&self, lapse: UnknownOperation) -> Found {
        (self.0)(lapse)
    }
}

impl fmt::Debug for Reconcile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reconcile(…)")
    }
}
