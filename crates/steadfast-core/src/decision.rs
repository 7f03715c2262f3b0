//! What to do after an attempt, and why an operation ends.

use std::time::Duration;

/// The step after an attempt.
///
/// ```
/// use std::time::{Duration, Instant};
/// use steadfast_core::{Class, Decision, Hint, Idempotency, Operation, RetryBudget, RetryPolicy, TokenBucket};
///
/// fn send() -> Class { Class::Success } // your transport
///
/// let (policy, bucket) = (RetryPolicy::new(), TokenBucket::new(RetryBudget::standard()));
/// let mut operation = Operation::start(&policy, &bucket, Idempotency::Natural, Instant::now());
/// let reason = loop {
///     operation.begin_attempt();
///     let class = send();
///     let jitter = 0.5; // a random number between 0 and 1
///     match operation.decide(class, &Hint::default(), Instant::now(), jitter) {
///         Decision::Retry { after } => std::thread::sleep(after),
///         Decision::Stop(reason) => break reason,
///     }
/// };
/// assert_eq!(reason.as_str(), "done");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a driver must handle both, and there is no third")]
pub enum Decision {
    /// Wait, then send the same request again.
    Retry {
        /// Wait from `now`. Zero means at once.
        after: Duration,
    },
    /// The operation has ended.
    Stop(StopReason),
}

/// Why an operation ended, in the order in which the questions are asked.
///
/// ```
/// use steadfast_core::StopReason;
///
/// /// Whether a retry later has a chance.
/// fn is_temporary(reason: StopReason) -> bool {
///     matches!(
///         reason,
///         StopReason::AttemptsExhausted | StopReason::CircuitOpen | StopReason::BudgetExhausted
///     )
/// }
/// assert!(is_temporary(StopReason::CircuitOpen));
/// assert_eq!(StopReason::CircuitOpen.as_str(), "circuit open");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StopReason {
    /// The response is a success.
    Done,
    /// The outcome of the last attempt was unknown, and the caller has found out that the server has
    /// carried it out.
    Confirmed,
    /// The response is an error that the server has stored under the key. A repeat would get the
    /// same response.
    Replayed,
    /// The server forbids a repeat (`x-should-retry: false`, `Stripe-Should-Retry: false`).
    ServerSaidStop,
    /// An earlier attempt under this key may have run, and the server does not know how it ended.
    OutcomeUnknown,
    /// The same request would fail again.
    Permanent,
    /// The server may have acted, and acting twice is not harmless: the request has no key, and its
    /// method is not idempotent.
    NotRepeatable,
    /// The server may have acted, and the API is not known to honour the key of the request.
    KeyNotTrusted,
    /// A repeat would be safe, but the body was a stream and is consumed.
    BodyNotReplayable,
    /// A repeat would be safe, but the upload moved too slowly for a limit that each attempt has.
    /// The next one would be cut by the same limit.
    UploadTooSlow,
    /// A repeat would be safe, but the head of the response is over a limit of this client. The next
    /// attempt would get the same.
    ResponseTooLarge,
    /// A repeat would be safe, but the operation is itself an attempt of another operation. The outer
    /// one decides about repeats.
    Nested,
    /// `max_attempts` is reached, or a custom schedule has ended.
    AttemptsExhausted,
    /// The server asks for a longer wait than `max_retry_after` or the deadline allows.
    RetryAfterTooLong,
    /// The next attempt would start after the deadline.
    DeadlineExceeded,
    /// This origin's [circuit](crate::Breaker) is open, and would be when the wait is over.
    CircuitOpen,
    /// This origin's retry budget is spent.
    BudgetExhausted,
}

impl StopReason {
    /// Returns the reason in a few words, as error lines print it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Confirmed => "confirmed",
            Self::Replayed => "the response is stored under its key",
            Self::ServerSaidStop => "the server said not to retry",
            Self::OutcomeUnknown => "the server does not know how an earlier attempt ended",
            Self::Permanent => "permanent",
            Self::NotRepeatable => "not repeatable",
            Self::KeyNotTrusted => "key not trusted",
            Self::BodyNotReplayable => "body not replayable",
            Self::UploadTooSlow => "upload too slow",
            Self::ResponseTooLarge => "response too large",
            Self::Nested => "nested: the outer loop decides about repeats",
            Self::AttemptsExhausted => "attempts exhausted",
            Self::RetryAfterTooLong => "retry-after too long",
            Self::DeadlineExceeded => "deadline exceeded",
            Self::CircuitOpen => "circuit open",
            Self::BudgetExhausted => "retry budget exhausted",
        }
    }

    /// Returns the reason as one word, for a label of a metric.
    ///
    /// ```
    /// use steadfast_core::StopReason;
    ///
    /// assert_eq!(StopReason::BudgetExhausted.label(), "budget_exhausted");
    /// ```
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Confirmed => "confirmed",
            Self::Replayed => "replayed",
            Self::ServerSaidStop => "server_said_stop",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Permanent => "permanent",
            Self::NotRepeatable => "not_repeatable",
            Self::KeyNotTrusted => "key_not_trusted",
            Self::BodyNotReplayable => "body_not_replayable",
            Self::UploadTooSlow => "upload_too_slow",
            Self::ResponseTooLarge => "response_too_large",
            Self::Nested => "nested",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::RetryAfterTooLong => "retry_after_too_long",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::CircuitOpen => "circuit_open",
            Self::BudgetExhausted => "budget_exhausted",
        }
    }
}
