//! Events: a report on an operation while it runs.
//!
//! Each event goes to a closure ([`ClientBuilder::on_event`](crate::ClientBuilder::on_event)) and
//! to `tracing`, with the target `steadfast`. The level is DEBUG. Three events are WARN, because
//! somebody must act: a circuit opens, or an operation with effects may have been processed and
//! ends, or is dropped, without a response to rely on. An event cannot change the operation.

use std::fmt;
use std::time::Duration;

use http::{Method, StatusCode, Version};

use super::spans;
use crate::journal::{Attempt, ConfirmationOutcome, Journal, StatusOrFailure};
use crate::key::IdempotencyKey;
use crate::policy::{BreakerState, Class, Failure, Idempotency, StopReason, TokenBucket, is_safe};
use crate::resume::{ResumeToken, SafeUrl};

/// One event in the life of an operation.
///
/// ```
/// use steadfast::{Client, EventKind};
///
/// let client = Client::builder().on_event(|event| {
///     if let EventKind::RetryScheduled { after, because, .. } = event.kind() {
///         println!("{} {}: retry in {after:?}, {because:?}", event.method(), event.url());
///     }
/// });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    pub(super) method: &'a Method,
    pub(super) url: SafeUrl<'a>,
    pub(super) key: Option<&'a IdempotencyKey>,
    pub(super) idempotency: Idempotency,
    pub(super) template: Option<&'a str>,
    pub(super) budget: &'a TokenBucket,
    pub(super) journal: &'a Journal,
    pub(super) kind: EventKind<'a>,
}

/// What an [`Event`] is about.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum EventKind<'a> {
    /// The operation has started.
    #[non_exhaustive]
    OperationStarted {
        /// Time limit of the operation, or `None` if there is none.
        deadline: Option<Duration>,
    },
    /// An attempt is about to be sent.
    #[non_exhaustive]
    AttemptStarted {
        /// Number of the attempt, from 1.
        number: u32,
    },
    /// The current attempt is late, and a second one is about to be sent beside it.
    #[non_exhaustive]
    HedgeStarted {
        /// Number of the second attempt.
        number: u32,
    },
    /// A request was sent, and the head of its response has arrived, or will not arrive.
    ///
    /// An attempt has one such event for each hop of its redirects, and one if it is cancelled. This
    /// event does not go to `tracing`, which has a span for each request.
    #[non_exhaustive]
    ExchangeEnded {
        /// The request, and the head of its response.
        exchange: Exchange<'a>,
    },
    /// An attempt has ended.
    #[non_exhaustive]
    AttemptEnded {
        /// The attempt, with its class, its status or failure, and its duration.
        attempt: &'a Attempt,
    },
    /// The client will retry the operation.
    #[non_exhaustive]
    RetryScheduled {
        /// Number of the next attempt.
        number: u32,
        /// Wait before it.
        after: Duration,
        /// Class of the attempt that caused it.
        because: Class,
        /// Whether it is a [free repeat](crate::policy::RetryPolicy#free-repeats).
        free: bool,
    },
    /// [Your read](crate::ClientBuilder::confirm) has said whether an attempt was carried out.
    #[non_exhaustive]
    Confirmed {
        /// Number of the attempt.
        number: u32,
        /// What it said.
        outcome: ConfirmationOutcome,
    },
    /// This operation has changed the state of its origin's
    /// [breaker](crate::ClientBuilder::breaker).
    #[non_exhaustive]
    BreakerChanged {
        /// The new state.
        state: BreakerState,
    },
    /// The operation has ended.
    #[non_exhaustive]
    OperationEnded {
        /// Why it ended.
        reason: StopReason,
        /// Number of attempts.
        attempts: u32,
        /// Time from its start to its end.
        elapsed: Duration,
        /// Whether the server may have carried out the operation.
        may_have_been_processed: bool,
    },
    /// The future of the operation was dropped before its end: by `select!`, by a timeout around it,
    /// or by a server whose own client has disconnected. Nothing follows this event.
    ///
    /// The closure runs inside the drop, so keep it short. A panic of it goes no further.
    #[non_exhaustive]
    OperationDropped {
        /// Number of attempts, with one that was under way.
        attempts: u32,
        /// Time from its start to the drop.
        elapsed: Duration,
        /// Whether the server may have carried out the operation. An attempt that was under way may
        /// have been.
        may_have_been_processed: bool,
        /// The token with which you can [resume](crate::RequestBuilder::resume) the operation.
        /// `None` if it has no key.
        resume_token: Option<&'a ResumeToken>,
    },
}

/// One request that was sent, and the head of its response.
///
/// Its attributes are those of OpenTelemetry's conventions for HTTP clients.
///
/// ```
/// use steadfast::{Client, EventKind};
///
/// let client = Client::builder().on_event(|event| {
///     if let EventKind::ExchangeEnded { exchange, .. } = event.kind() {
///         println!("{} {}: {:?}", exchange.method(), exchange.server_address(), exchange.elapsed());
///     }
/// });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    pub(super) method: &'a Method,
    pub(super) url: SafeUrl<'a>,
    pub(super) head: Option<(StatusCode, Version)>,
    pub(super) failure: Option<Failure>,
    pub(super) elapsed: Duration,
}

impl<'a> Exchange<'a> {
    /// A request that the client cancelled before the head of its response arrived.
    pub(super) fn cancelled(request: &'a reqwest::Request, elapsed: Duration) -> Self {
        Self { method: request.method(), url: SafeUrl(request.url()), head: None, failure: None, elapsed }
    }

    /// Returns the method. Behind a 303 it is GET.
    #[must_use]
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// Returns the method as a label of metrics: `_OTHER` if OpenTelemetry's conventions do not know
    /// it.
    #[must_use]
    pub fn method_label(&self) -> &'a str {
        spans::known(self.method)
    }

    /// Returns the URL, without user information, query and fragment. Behind a redirect it is that
    /// of the hop.
    #[must_use]
    pub fn url(&self) -> impl fmt::Display + fmt::Debug + use<'a> {
        self.url
    }

    /// Returns the host of the URL, without the brackets of an IPv6 address.
    #[must_use]
    pub fn server_address(&self) -> &'a str {
        spans::server_address(self.url.0)
    }

    /// Returns the port of the URL, or that of its scheme.
    #[must_use]
    pub fn server_port(&self) -> Option<u16> {
        spans::server_port(self.url.0)
    }

    /// Returns the status of the response, if its head arrived.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        self.head.map(|(status, _)| status)
    }

    /// Returns the version of HTTP, if the head of a response arrived: `1.1` or `2`.
    #[must_use]
    pub fn protocol_version(&self) -> Option<&'static str> {
        self.head.map(|(_, version)| spans::protocol_version(version))
    }

    /// Returns how the request failed. Returns `None` if a response arrived, and if the client
    /// cancelled the request: you have dropped the operation, or the other one of a hedged pair was
    /// faster.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// Returns the `error.type`: a status from 400 on, or the [label](Failure::label) of the
    /// failure.
    #[must_use]
    pub fn error_type(&self) -> Option<&str> {
        match &self.head {
            Some((status, _)) => spans::status_error(status),
            None => self.failure.map(Failure::label),
        }
    }

    /// Returns the time from the start of the request to the head of its response, or to its
    /// failure.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }
}

impl<'a> Event<'a> {
    /// Returns the operation's method.
    #[must_use]
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// Returns the method as a label of metrics: `_OTHER` if OpenTelemetry's conventions do not know
    /// it.
    #[must_use]
    pub fn method_label(&self) -> &'a str {
        spans::known(self.method)
    }

    /// Returns the operation's URL, without user information, query and fragment.
    #[must_use]
    pub fn url(&self) -> impl fmt::Display + fmt::Debug + use<'a> {
        self.url
    }

    /// Returns the host of the URL, without the brackets of an IPv6 address.
    #[must_use]
    pub fn server_address(&self) -> &'a str {
        spans::server_address(self.url.0)
    }

    /// Returns the port of the URL, or that of its scheme. Returns `None` only if the scheme is
    /// neither http nor https.
    #[must_use]
    pub fn server_port(&self) -> Option<u16> {
        spans::server_port(self.url.0)
    }

    /// Returns the [template](crate::RequestBuilder::template) of the path, if the request names it.
    #[must_use]
    pub fn template(&self) -> Option<&'a str> {
        self.template
    }

    /// Returns how many tokens are left in the [budget](crate::ClientBuilder::budget) of the
    /// operation's origin, or [`u64::MAX`] if it is unlimited.
    #[must_use]
    pub fn budget_tokens(&self) -> u64 {
        self.budget.tokens()
    }

    /// Returns the operation's key, if it has one. `Display` prints its first characters only.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&'a IdempotencyKey> {
        self.key
    }

    /// Returns the kind of the event, with its details.
    ///
    /// ```
    /// use steadfast::{Client, EventKind};
    ///
    /// // A log line for each operation that took more than one attempt.
    /// let client = Client::builder().on_event(|event| match event.kind() {
    ///     EventKind::OperationEnded { attempts, reason, .. } if attempts > 1 => {
    ///         println!("{} {}: {attempts} attempts, {}", event.method(), event.url(), reason.as_str());
    ///     }
    ///     _ => {}
    /// });
    /// ```
    #[must_use]
    pub fn kind(&self) -> EventKind<'a> {
        self.kind
    }

    /// Returns whether the operation only reads. A failed read has changed nothing, whatever the
    /// server has done. A GET has effects if the caller declares it.
    fn is_read(&self) -> bool {
        is_safe(self.method) && self.idempotency == Idempotency::Natural
    }

    pub(super) fn trace(&self) {
        if !tracing::enabled!(target: "steadfast", tracing::Level::WARN) {
            return;
        }
        let Self { method, url, key, journal, kind, .. } = self;
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
            EventKind::ExchangeEnded { .. } => {}
            EventKind::AttemptEnded { attempt } => {
                let what = StatusOrFailure::of(attempt);
                let (number, class, elapsed) = (attempt.number(), attempt.class().as_str(), attempt.elapsed());
                tracing::debug!(target: "steadfast", %method, %url, key, attempt = number, class, %what, ?elapsed, "attempt ended");
            }
            EventKind::RetryScheduled { number, after, because, free } => {
                let because = because.as_str();
                tracing::debug!(target: "steadfast", %method, %url, key, attempt = number, ?after, because, free, "retry scheduled");
            }
            EventKind::Confirmed { number, outcome } => {
                let outcome = outcome.as_str();
                tracing::debug!(target: "steadfast", %method, %url, key, attempt = number, outcome, "attempt asked about");
            }
            EventKind::BreakerChanged { state: BreakerState::Open { retry_after, .. } } => {
                tracing::warn!(target: "steadfast", %method, %url, key, ?retry_after, "circuit opened");
            }
            EventKind::BreakerChanged { state } => {
                tracing::debug!(target: "steadfast", %method, %url, key, state = state.as_str(), "circuit changed");
            }
            EventKind::OperationDropped { attempts, may_have_been_processed, .. } => {
                if *may_have_been_processed && !self.is_read() {
                    tracing::warn!(target: "steadfast", %method, %url, key, attempts, may_have_been_processed, "operation dropped without a response to rely on");
                } else {
                    tracing::debug!(target: "steadfast", %method, %url, key, attempts, may_have_been_processed, "operation dropped");
                }
            }
            EventKind::OperationEnded { reason, attempts, elapsed, may_have_been_processed } => {
                let ended = reason.as_str();
                if *may_have_been_processed
                    && !matches!(reason, StopReason::Done | StopReason::Confirmed)
                    && !self.is_read()
                {
                    let last = journal.attempts().last().map(StatusOrFailure::of).map(tracing::field::display);
                    tracing::warn!(target: "steadfast", %method, %url, key, last, reason = ended, attempts, ?elapsed, may_have_been_processed, "operation ended without a response to rely on");
                } else {
                    tracing::debug!(target: "steadfast", %method, %url, key, reason = ended, attempts, ?elapsed, may_have_been_processed, "operation ended");
                }
            }
        }
    }
}
