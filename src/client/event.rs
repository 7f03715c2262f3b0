//! What the client tells whoever watches: one event per turn of an operation.
//!
//! The same events go to a closure ([`ClientBuilder::on_event`](crate::ClientBuilder::on_event)) and to `tracing` (target
//! `steadfast`, level DEBUG; WARN for an end that may have been processed without an answer, and for a circuit that opens). Watching cannot change anything.

use std::fmt;
use std::time::Duration;

use http::Method;

use crate::journal::{Attempt, StatusOrFailure};
use crate::key::IdempotencyKey;
use crate::policy::{BreakerState, Class, StopReason};
use crate::resume::SafeUrl;

/// One turn of an operation.
///
/// ```
/// use steadfast::{Client, EventKind};
///
/// let client = Client::builder().on_event(|event| {
///     if let EventKind::RetryScheduled { after, because, .. } = event.kind() {
///         println!("{} {}: again in {after:?}, {because:?}", event.method(), event.url());
///     }
/// });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    pub(super) method: &'a Method,
    pub(super) url: SafeUrl<'a>,
    pub(super) key: Option<&'a IdempotencyKey>,
    pub(super) kind: EventKind<'a>,
}

/// What an [`Event`] is about.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum EventKind<'a> {
    /// The operation has started.
    #[non_exhaustive]
    OperationStarted {
        /// How long it may take; `None` for no limit.
        deadline: Option<Duration>,
    },
    /// An attempt is about to be sent.
    #[non_exhaustive]
    AttemptStarted {
        /// Its number, from 1.
        number: u32,
    },
    /// The attempt under way is late, and another is about to be sent beside it.
    #[non_exhaustive]
    HedgeStarted {
        /// Its number.
        number: u32,
    },
    /// An attempt has ended.
    #[non_exhaustive]
    AttemptEnded {
        /// Its class, status or failure, and time.
        attempt: &'a Attempt,
    },
    /// The operation will be tried again.
    #[non_exhaustive]
    RetryScheduled {
        /// The number of the next attempt.
        number: u32,
        /// The wait before it.
        after: Duration,
        /// The class of the attempt that made it necessary.
        because: Class,
        /// Whether it is a [free repeat](crate::policy::RetryPolicy#free-repeats).
        free: bool,
    },
    /// The [breaker](crate::ClientBuilder::breaker) of the operation's origin has changed its state, because of this operation.
    #[non_exhaustive]
    BreakerChanged {
        /// What it lets through from now on.
        state: BreakerState,
    },
    /// The operation has ended.
    #[non_exhaustive]
    OperationEnded {
        /// Why.
        reason: StopReason,
        /// How many attempts it took.
        attempts: u32,
        /// From its start to its end.
        elapsed: Duration,
        /// Whether the server may have carried it out.
        may_have_been_processed: bool,
    },
}

impl<'a> Event<'a> {
    /// The operation's method.
    #[must_use]
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// The operation's URL without user information, query and fragment.
    #[must_use]
    pub fn url(&self) -> impl fmt::Display + fmt::Debug + use<'a> {
        self.url
    }

    /// The operation's key. It prints its beginning only.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&'a IdempotencyKey> {
        self.key
    }

    /// What happened.
    #[must_use]
    pub fn kind(&self) -> EventKind<'a> {
        self.kind
    }

    pub(super) fn trace(&self) {
        if !tracing::enabled!(target: "steadfast", tracing::Level::WARN) {
            return;
        }
        let Self { method, url, key, kind } = self;
        let key = key.map(tracing::field::display);
        match kind {
            EventKind::OperationStarted { deadline } => {
                tracing::debug!(target: "steadfast", %method, %url, key, ?deadline, "operation started");
            }
            EventKind::AttemptStarted { number } => {
                tracing::debug!(target: "steadfast", %method, %url, key, attempt = number, "attempt started");
            }
            EventKind::HedgeStarted { number } => {
                tracing::debug!(target: "steadfast", %method, %url, key, attempt = number, "hedge started");
            }
            EventKind::AttemptEnded { attempt } => {
                let what = StatusOrFailure { status: attempt.status(), failure: attempt.failure() };
                let (number, class, elapsed) = (attempt.number(), attempt.class().as_str(), attempt.elapsed());
                tracing::debug!(target: "steadfast", %method, %url, key, attempt = number, class, %what, ?elapsed, "attempt ended");
            }
            EventKind::RetryScheduled { number, after, because, free } => {
                let because = because.as_str();
                tracing::debug!(target: "steadfast", %method, %url, key, attempt = number, ?after, because, free, "retry scheduled");
            }
            EventKind::BreakerChanged { state: BreakerState::Open { retry_after } } => {
                tracing::warn!(target: "steadfast", %method, %url, key, ?retry_after, "circuit opened");
            }
            EventKind::BreakerChanged { state } => {
                tracing::debug!(target: "steadfast", %method, %url, key, state = state.as_str(), "circuit changed");
            }
            EventKind::OperationEnded { reason, attempts, elapsed, may_have_been_processed } => {
                let ended = reason.as_str();
                if *may_have_been_processed && *reason != StopReason::Done {
                    tracing::warn!(target: "steadfast", %method, %url, key, reason = ended, attempts, ?elapsed, may_have_been_processed, "operation ended without an answer to rely on");
                } else {
                    tracing::debug!(target: "steadfast", %method, %url, key, reason = ended, attempts, ?elapsed, may_have_been_processed, "operation ended");
                }
            }
        }
    }
}
