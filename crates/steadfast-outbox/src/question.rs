//! The hook that finds out how an operation ended: the user's read of the server's books.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use steadfast::Client;

use crate::end::Answer;
use crate::entry::Entry;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Asked = Pin<Box<dyn Future<Output = Result<Reconciliation, BoxError>> + Send>>;

/// An operation whose outcome is unknown. It is the argument of the hook in
/// [`OutboxBuilder::reconcile`](crate::OutboxBuilder::reconcile).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UnknownOperation {
    /// The operation: its name, its request and what became of it so far.
    pub entry: Entry,
    /// The client that sends it, for your read.
    pub client: Client,
}

/// What your hook has found out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reconciliation {
    /// The server has carried the operation out. This is its answer.
    Applied(Answer),
    /// The server has not carried the operation out. It is sent as if for the first time.
    NotApplied,
    /// It cannot be told. The operation ends as [`End::Unknown`](crate::End::Unknown).
    Unknown,
}

/// The hook, as the outbox keeps it.
#[derive(Clone)]
pub(crate) struct Reconcile(Arc<dyn Fn(UnknownOperation) -> Asked + Send + Sync>);

impl Reconcile {
    pub(crate) fn new<F, R, E>(ask: F) -> Self
    where
        F: Fn(UnknownOperation) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Reconciliation, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self(Arc::new(move |operation| {
            let asked = ask(operation);
            Box::pin(async move { asked.await.map_err(Into::into) })
        }))
    }

    /// Asks. A hook that panics has failed.
    ///
    /// # Errors
    ///
    /// The hook has failed, and can be asked again later.
    pub(crate) async fn ask(&self, operation: UnknownOperation) -> Result<Reconciliation, BoxError> {
        let panicked = || BoxError::from("the reconcile hook panicked");
        let mut asked = catch_unwind(AssertUnwindSafe(|| (self.0)(operation))).map_err(|_| panicked())?;
        std::future::poll_fn(move |cx| match catch_unwind(AssertUnwindSafe(|| asked.as_mut().poll(cx))) {
            Ok(polled) => polled,
            Err(_) => Poll::Ready(Err(panicked())),
        })
        .await
    }
}

impl fmt::Debug for Reconcile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reconcile")
    }
}
