//! A question before each request of an operation leaves. It is for companion crates that write down
//! what is sent before it is sent.
//!
//! The credentials of the request are there by then, so that little time passes between the answer
//! and the first byte.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use super::attempt_result::{AttemptError, AttemptProgress};
use crate::clock::{self, SharedTimer};
use crate::error::BoxError;
use crate::policy::Failure;

/// Decides whether a request may leave.
pub trait BeforeSend: Send + Sync {
    /// Returns when the attempt must have ended. `number`: the attempt, from 1. The redirects of an
    /// attempt ask again, under its number.
    ///
    /// # Errors
    ///
    /// The request may not be sent. The operation ends with an
    /// [`ErrorKind::AttemptHook`](crate::ErrorKind::AttemptHook).
    fn before_send(&self, number: u32) -> Pin<Box<dyn Future<Output = Result<Instant, BoxError>> + Send + '_>>;
}

/// Whom an operation asks.
#[derive(Clone)]
pub(crate) struct BeforeSendHook(pub(crate) Arc<dyn BeforeSend>);

impl BeforeSendHook {
    /// Asks whether the next request may leave. The wait is added to the time of the attempt, which
    /// ends when the answer says so at the latest.
    pub(super) async fn ask(
        &self,
        progress: &mut AttemptProgress,
        until: &mut SharedTimer<'_>,
    ) -> Result<(), AttemptError> {
        let started = clock::now();
        let end = self.0.before_send(progress.number).await.map_err(|source| AttemptError {
            failure: Failure::AttemptHook,
            timed_out: false,
            head: None,
            body_was_taken: Some(false),
            source: Some(source),
        })?;
        let waited = clock::now().saturating_duration_since(started);
        progress.limits.deadline = clock::earlier(progress.limits.deadline, Some(end));
        let later = until.at().and_then(|at| at.checked_add(waited));
        until.set(clock::earlier(later, progress.limits.deadline));
        Ok(())
    }
}

impl fmt::Debug for BeforeSendHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BeforeSendHook")
    }
}
