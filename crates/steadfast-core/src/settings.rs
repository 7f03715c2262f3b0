//! The settings of one operation: the number of attempts, the time limit, and the waits.

use std::time::Duration;

use super::backoff::Backoff;

/// Default of [`RetryPolicy::max_retry_after`].
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Default of [`RetryPolicy::deadline`].
const DEADLINE: Duration = Duration::from_secs(30);

/// Two, as in reqwest's default. The first repeat may meet a second connection that is being
/// retired, and a server that refuses everything must not get requests without end.
const FREE_REPEATS: u8 = 2;

/// When to repeat a request and when to give up.
///
/// | setting | default |
/// | --- | --- |
/// | [`max_attempts`](Self::max_attempts) | 3, the first included |
/// | [`free_repeats`](Self::free_repeats) | 2 |
/// | [`backoff`](Self::backoff) | 100 ms, doubled, at most 5 s, full jitter; from 1 s after throttling |
/// | [`deadline`](Self::deadline) | 30 s for the whole operation |
/// | [`max_retry_after`](Self::max_retry_after) | 60 s |
/// | [`throttled_is_ambiguous`](Self::throttled_is_ambiguous) | `false` |
/// | [`unauthorized_is_ambiguous`](Self::unauthorized_is_ambiguous) | `false` |
/// | [`pause_when_budget_empty`](Self::pause_when_budget_empty) | `false` |
///
/// A policy is a value: read and set its fields, or chain the methods of the same names. It is
/// checked by [`validate`](Self::validate) when the client is built or the request is sent.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::RetryPolicy;
///
/// let mut policy = RetryPolicy::new().max_attempts(4).deadline(Duration::from_secs(10));
/// policy.max_retry_after = policy.max_retry_after.min(Duration::from_secs(5));
/// assert_eq!(policy.max_attempts, 4);
/// ```
///
/// # Free repeats
///
/// A request that was refused before processing is repeated at once: at most twice per operation,
/// outside of `max_attempts` and of the retry budget. That holds for a stream that the server
/// refused (HTTP/2 `REFUSED_STREAM`), and for one above the last that its `GOAWAY` names (RFC 9113
/// §8.7). Both are ordinary: a proxy sends `GOAWAY` when it reloads, and after every 1,000 requests
/// by nginx's default. So a server that refuses every request sees up to `max_attempts` + 2 of
/// them. Everything else must still allow the repeat: licence, directive, body, deadline and
/// circuit. [`never`](Self::never) has no free repeats.
///
/// # Fresh tokens
///
/// If the server refuses a token (401), and the client can get a fresh one, the same request goes
/// again once, with that. This repeat is free too, beside the two above: it takes no attempt and no
/// token of the budget, and it never waits. With a licence it is always allowed. Without one, the
/// 401 must be evidence that nothing was applied (RFC 9110 §15.5.2): it carries `WWW-Authenticate`,
/// and nothing before it may have been processed. [`never`](Self::never) and
/// [`free_repeats(0)`](Self::free_repeats) turn it off.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// The most attempts of one operation, the first included. At least 1.
    pub max_attempts: u32,
    /// The most [free repeats](Self#free-repeats) of one operation.
    pub free_repeats: u8,
    /// The waits between attempts.
    pub backoff: Backoff,
    /// The time limit of the whole operation, waits included.
    pub deadline: TimeLimit,
    /// The longest wait that a server may ask for.
    pub max_retry_after: Duration,
    /// Whether the server may have acted on a request that it throttled.
    pub throttled_is_ambiguous: bool,
    /// Whether the server may have acted on a request that it called unauthorized (401).
    pub unauthorized_is_ambiguous: bool,
    /// Whether an operation that ends because the budget is empty waits before it reports that.
    pub pause_when_budget_empty: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl RetryPolicy {
    /// Creates a policy with the defaults of the table above.
    #[must_use]
    pub fn new() -> Self {
        Self {
            max_attempts: 3,
            free_repeats: FREE_REPEATS,
            backoff: Backoff::default(),
            deadline: TimeLimit::Unset,
            max_retry_after: MAX_RETRY_AFTER,
            throttled_is_ambiguous: false,
            unauthorized_is_ambiguous: false,
            pause_when_budget_empty: false,
        }
    }

    /// Creates a policy that sends every request exactly once: one attempt, and no [free
    /// repeat](Self#free-repeats). The deadline stays.
    ///
    /// `RetryPolicy::new().max_attempts(1)` differs in one thing: it keeps the free repeats.
    ///
    /// ```
    /// use steadfast_core::RetryPolicy;
    ///
    /// let policy = RetryPolicy::never();
    /// assert_eq!((policy.max_attempts, policy.free_repeats), (1, 0));
    /// ```
    #[must_use]
    pub fn never() -> Self {
        Self { max_attempts: 1, free_repeats: 0, ..Self::new() }
    }

    /// Sets the most attempts of one operation, the first included. Default: 3. [Free
    /// repeats](Self#free-repeats) do not count.
    ///
    /// 0 is an error when you build the client or send the request.
    ///
    /// ```
    /// use steadfast_core::RetryPolicy;
    ///
    /// assert!(RetryPolicy::new().max_attempts(5).validate().is_ok());
    /// assert!(RetryPolicy::new().max_attempts(0).validate().is_err());
    /// ```
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Sets the most [free repeats](Self#free-repeats) of one operation. Default: 2. Zero also turns
    /// off the repeat with a [fresh token](Self#fresh-tokens).
    ///
    /// ```
    /// use steadfast_core::RetryPolicy;
    ///
    /// // Three requests at most, even if the server refuses streams.
    /// let policy = RetryPolicy::new().free_repeats(0);
    /// ```
    #[must_use]
    pub fn free_repeats(mut self, repeats: u8) -> Self {
        self.free_repeats = repeats;
        self
    }

    /// Sets the waits between attempts. Default: 100 ms, doubled, at most 5 s, full jitter.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_core::{Backoff, RetryPolicy};
    ///
    /// let backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_secs(2));
    /// let policy = RetryPolicy::new().backoff(backoff);
    /// ```
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets the time limit of the whole operation, waits included. `None` disables it. Default: 30
    /// s.
    ///
    /// No attempt starts and no wait ends after it.
    /// [`ClientBuilder::timeout`](https://docs.rs/steadfast/latest/steadfast/struct.ClientBuilder.html#method.timeout)
    /// is the same setting. Zero is an error when you build the client or send the request.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_core::RetryPolicy;
    ///
    /// let policy = RetryPolicy::new().deadline(Duration::from_secs(10));
    /// assert_eq!(policy.deadline.duration(), Some(Duration::from_secs(10)));
    /// ```
    #[must_use]
    pub fn deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.deadline = deadline.into().into();
        self
    }

    /// Sets the longest wait that a server may ask for, by `Retry-After` or a spent
    /// [quota](crate::parse_retry_hint). Default: 60 s.
    ///
    /// A longer one ends the operation at once, and the error has the wait. So the client does not
    /// park your task for an hour.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_core::RetryPolicy;
    ///
    /// // A job at night can wait longer than a page view.
    /// let policy = RetryPolicy::new().max_retry_after(Duration::from_secs(600)).deadline(None);
    /// ```
    #[must_use]
    pub fn max_retry_after(mut self, longest: Duration) -> Self {
        self.max_retry_after = longest;
        self
    }

    /// Sets whether the server may have acted on a request that it throttled (429). Default:
    /// `false`.
    ///
    /// Turn it on for an API that counts, bills or queues the requests that it refuses. They are
    /// then repeated only with a licence, as after any ambiguous attempt.
    ///
    /// ```
    /// use std::time::Instant;
    /// use steadfast_core::{Class, Decision, Hint, Idempotency, Operation, RetryPolicy, StopReason, TokenBucket};
    ///
    /// let policy = RetryPolicy::new().throttled_is_ambiguous(true);
    /// let (bucket, now) = (TokenBucket::default(), Instant::now());
    /// let mut post = Operation::start(&policy, &bucket, Idempotency::Absent, now);
    /// let decision = post.decide(Class::Throttled, &Hint::default(), now, 0.5);
    /// assert_eq!(decision, Decision::Stop(StopReason::NotRepeatable));
    /// ```
    #[must_use]
    pub fn throttled_is_ambiguous(mut self, yes: bool) -> Self {
        self.throttled_is_ambiguous = yes;
        self
    }

    /// Sets whether the server may have acted on a request that it called unauthorized (401).
    /// Default: `false`.
    ///
    /// A 401 means that the request has not been applied (RFC 9110 §15.5.2). A gateway that passes
    /// on the 401 of a server behind it does not keep to that. With this setting a 401 is never
    /// evidence: the operation may have been processed, and goes again with a [fresh
    /// token](Self#fresh-tokens) only with a licence.
    ///
    /// ```
    /// use steadfast_core::RetryPolicy;
    ///
    /// let policy = RetryPolicy::new().unauthorized_is_ambiguous(true);
    /// ```
    #[must_use]
    pub fn unauthorized_is_ambiguous(mut self, yes: bool) -> Self {
        self.unauthorized_is_ambiguous = yes;
        self
    }

    /// Sets whether an operation that ends because the budget is empty first waits for as long as
    /// its retry would have waited. Default: `false`.
    ///
    /// Turn it on for a request that you repeat in a loop of your own. The loop then does not spin
    /// on a server that fails fast.
    #[must_use]
    pub fn pause_when_budget_empty(mut self, yes: bool) -> Self {
        self.pause_when_budget_empty = yes;
        self
    }
}

/// The time limit of an operation in a [`RetryPolicy`].
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::{RetryPolicy, TimeLimit};
///
/// assert_eq!(RetryPolicy::new().deadline.duration(), Some(Duration::from_secs(30)));
/// assert_eq!(RetryPolicy::new().deadline(None).deadline, TimeLimit::Unlimited);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "a limit is set to a time, set to none, or not set")]
pub enum TimeLimit {
    /// Not set. In the policy of one request it means the client's limit, elsewhere 30 s.
    #[default]
    Unset,
    /// No limit.
    Unlimited,
    /// At most this long. Zero is an error.
    AtMost(Duration),
}

impl TimeLimit {
    /// Returns the limit, or `None` if there is none. `Unset` is 30 s.
    #[must_use]
    #[inline]
    pub fn duration(self) -> Option<Duration> {
        match self {
            Self::Unset => Some(DEADLINE),
            Self::Unlimited => None,
            Self::AtMost(limit) => Some(limit),
        }
    }
}

impl From<Option<Duration>> for TimeLimit {
    fn from(limit: Option<Duration>) -> Self {
        limit.map_or(Self::Unlimited, Self::AtMost)
    }
}
