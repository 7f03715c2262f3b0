//! The knobs of one operation: how often, how long, with which waits.

use std::fmt;
use std::time::Duration;

use super::backoff::Backoff;

/// A server that asks for a longer wait than this is not waited for.
pub(super) const HINT_CAP: Duration = Duration::from_secs(60);

/// Free repeats of one operation. Two, as in reqwest's own default: the first may meet a second
/// connection that is being retired, and a server that refuses everything must not be asked without
/// end.
const FREE_REPEATS: u8 = 2;

/// When to repeat and when to give up.
///
/// | knob | default |
/// | --- | --- |
/// | [`max_attempts`](Self::max_attempts) | 3, the first included |
/// | [`backoff`](Self::backoff) | 100 ms, doubled, at most 5 s, full jitter; from 1 s after throttling |
/// | [`deadline`](Self::deadline) | 30 s for the whole operation |
/// | [`max_retry_after`](Self::max_retry_after) | 60 s |
/// | [`throttled_is_ambiguous`](Self::throttled_is_ambiguous) | no |
/// | [`pause_when_budget_empty`](Self::pause_when_budget_empty) | no |
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
/// A policy is a value: build it once, clone it freely.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    pub(super) max_attempts: u32,
    pub(super) free_repeats: u8,
    pub(super) backoff: Backoff,
    pub(super) deadline: Option<Duration>,
    deadline_was_set: bool,
    pub(super) max_retry_after: Duration,
    pub(super) throttled_is_ambiguous: bool,
    pub(super) pause_when_budget_empty: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl RetryPolicy {
    /// The defaults of the table above.
    #[must_use]
    pub fn new() -> Self {
        Self {
            max_attempts: 3,
            free_repeats: FREE_REPEATS,
            backoff: Backoff::default(),
            deadline: Some(Duration::from_secs(30)),
            deadline_was_set: false,
            max_retry_after: HINT_CAP,
            throttled_is_ambiguous: false,
            pause_when_budget_empty: false,
        }
    }

    /// Sends every request exactly once: one attempt, and no [free repeat](Self#free-repeats)
    /// either. The deadline stays.
    ///
    /// `RetryPolicy::new().max_attempts(1)` differs in one thing: it keeps the free repeats.
    #[must_use]
    pub fn never() -> Self {
        Self { free_repeats: 0, ..Self::new() }.max_attempts(1)
    }

    /// The most attempts of one operation, the first included. 0 is an error when the client is built or the request is sent.
    /// [Free repeats](Self#free-repeats) do not count.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// The waits between attempts.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// How long the whole operation may take, waits included; `None` for no limit. No attempt starts and no wait ends after
    /// it. [`ClientBuilder::timeout`](https://docs.rs/steadfast/latest/steadfast/struct.ClientBuilder.html#method.timeout) is the same knob. Zero is an error.
    #[must_use]
    pub fn deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.deadline = deadline.into();
        self.deadline_was_set = true;
        self
    }

    /// The longest wait that a server may ask for. A server that asks for more ends the operation at once, with the wait on
    /// the error, so that a worker is not parked for an hour.
    #[must_use]
    pub fn max_retry_after(mut self, cap: Duration) -> Self {
        self.max_retry_after = cap;
        self
    }

    /// Treat a throttled answer (429) as one after which the server may have acted: for APIs that count, bill or queue the
    /// request that they refuse. Then it is repeated only with a licence, like any ambiguous one.
    #[must_use]
    pub fn throttled_is_ambiguous(mut self, yes: bool) -> Self {
        self.throttled_is_ambiguous = yes;
        self
    }

    /// For a request that is sent again and again in a loop of the caller's: when the retry budget is spent, wait as long as the
    /// retry would have waited before the end is reported, so that the loop does not spin on a server that fails fast.
    #[must_use]
    pub fn pause_when_budget_empty(mut self, yes: bool) -> Self {
        self.pause_when_budget_empty = yes;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// Names the first setting that makes no sense, and why.
    pub fn validate(&self) -> Result<(), InvalidPolicy> {
        if self.max_attempts == 0 {
            return Err(InvalidPolicy {
                setting: "max_attempts",
                reason: "it counts the first attempt, so it is at least 1",
            });
        }
        if self.deadline.is_some_and(|deadline| deadline.is_zero()) {
            return Err(InvalidPolicy { setting: "deadline", reason: "zero leaves no time for an attempt" });
        }
        Ok(())
    }

    /// What is in force for [`max_attempts`](Self::max_attempts).
    #[must_use]
    pub fn attempts_allowed(&self) -> u32 {
        self.max_attempts
    }

    /// What is in force for [`deadline`](Self::deadline).
    #[must_use]
    pub fn time_allowed(&self) -> Option<Duration> {
        self.deadline
    }

    #[doc(hidden)]
    pub fn has_a_deadline_of_its_own(&self) -> bool {
        self.deadline_was_set
    }

    #[doc(hidden)]
    pub fn hint_cap_in_force(&self) -> Duration {
        self.max_retry_after
    }

    /// As it holds for a client that may follow redirects unseen: what is throttled may be the GET behind one, after the request
    /// was carried out.
    #[doc(hidden)]
    pub fn fit_for(self, opaque: bool) -> Self {
        let throttled_is_ambiguous = self.throttled_is_ambiguous || opaque;
        Self { throttled_is_ambiguous, ..self }
    }

    #[doc(hidden)]
    pub fn throttling_is_ambiguous(&self) -> bool {
        self.throttled_is_ambiguous
    }
}

/// A setting that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidPolicy {
    pub(super) setting: &'static str,
    pub(super) reason: &'static str,
}

impl InvalidPolicy {
    /// The method that was given the value.
    #[must_use]
    pub fn setting(&self) -> &'static str {
        self.setting
    }
}

impl fmt::Display for InvalidPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.reason)
    }
}

impl std::error::Error for InvalidPolicy {}
