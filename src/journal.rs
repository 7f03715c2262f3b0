//! The journal: the attempts of an operation.
//!
//! It tells an engineer on call what was sent, how far it got and why it was retried. Every
//! response and every error has one. A success at the first attempt keeps its single entry inline,
//! without an allocation.
//!
//! It has types of the public API. Of the other modules it imports only `policy`, `cause` and those
//! with such types (the list is in `lib.rs`).

use std::fmt;
use std::time::Duration;

use http::{Method, StatusCode};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::cause::{Cause, FailureAndCause};
use crate::key::IdempotencyKey;
use crate::policy::{Class, Failure, StopReason, milliseconds};
use crate::resume::ResumeToken;

/// How far an attempt got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reach {
    /// No part of the request can have reached the server's application.
    NotSent,
    /// The request, or a part of it, may have reached the server.
    Sent,
    /// The head of a response arrived.
    Answered,
}

impl Reach {
    fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not sent",
            Self::Sent => "sent",
            Self::Answered => "answered",
        }
    }
}

/// One attempt of an operation.
///
/// `Display` prints one line: `attempt 2: ambiguous, status 503, 12 ms; next in 340 ms`. It
/// serialises to the same facts, with durations in milliseconds.
///
/// ```
/// use steadfast::Reach;
///
/// /// The attempts that may have reached the server.
/// fn sent(error: &steadfast::Error) -> usize {
///     error.attempts().iter().filter(|attempt| attempt.reach() != Reach::NotSent).count()
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Attempt {
    pub(crate) number: u32,
    pub(crate) reach: Reach,
    pub(crate) class: Class,
    pub(crate) default_class: Class,
    pub(crate) status: Option<StatusCode>,
    pub(crate) failure: Option<Failure>,
    pub(crate) cause: Option<Cause>,
    pub(crate) elapsed: Duration,
    pub(crate) wait: Option<Duration>,
    pub(crate) free_repeat: bool,
    pub(crate) confirmation: Option<ConfirmationOutcome>,
}

/// What [your read](crate::ClientBuilder::confirm) said about an attempt with an unknown outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConfirmationOutcome {
    /// It was carried out.
    Applied,
    /// It was not carried out.
    NotApplied,
    /// Not known, also because the read failed.
    Unknown,
}

impl ConfirmationOutcome {
    /// Returns the outcome in a few words, as the attempt's line prints it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "confirmed as applied",
            Self::NotApplied => "confirmed as not applied",
            Self::Unknown => "not confirmed",
        }
    }
}

impl Attempt {
    /// Returns the attempt's number, from 1.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Returns how far the attempt got.
    #[must_use]
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Returns the class that the client decided by.
    #[must_use]
    pub fn class(&self) -> Class {
        self.class
    }

    /// Returns the class by the default table. It differs from [`class`](Self::class) if your
    /// [classifier](crate::ClientBuilder::classify) has changed it.
    #[must_use]
    pub fn default_class(&self) -> Class {
        self.default_class
    }

    /// Returns the status of the response, if its head arrived.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// Returns how the attempt failed, or `None` if it did not fail.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// Returns the duration of the attempt.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Returns the wait before the next attempt, or `None` for the last one.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        self.wait
    }

    /// Returns whether the next attempt was a [free
    /// repeat](crate::policy::RetryPolicy#free-repeats): sent at once, outside of the retry budget
    /// and of `max_attempts`.
    #[must_use]
    pub fn free_repeat(&self) -> bool {
        self.free_repeat
    }

    /// Returns what [your read](crate::ClientBuilder::confirm) said about this attempt. Returns
    /// `None` if it was not asked.
    #[must_use]
    pub fn confirmation(&self) -> Option<ConfirmationOutcome> {
        self.confirmation
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attempt {}: {}", self.number, self.class.as_str())?;
        if self.class != self.default_class {
            write!(f, " (by the classifier; the table says {})", self.default_class.as_str())?;
        }
        write!(f, ", {}, {}", StatusOrFailure::of(self), ShortDuration(self.elapsed))?;
        if let Some(outcome) = self.confirmation {
            write!(f, "; {}", outcome.as_str())?;
        }
        match self.wait {
            Some(_) if self.free_repeat && self.status == Some(StatusCode::UNAUTHORIZED) => {
                f.write_str("; repeated with a fresh token, free")
            }
            Some(_) if self.free_repeat => f.write_str("; repeated at once, free"),
            Some(wait) => write!(f, "; next in {}", ShortDuration(wait)),
            None => Ok(()),
        }
    }
}

impl Serialize for Attempt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Attempt", 11)?;
        fields.serialize_field("number", &self.number)?;
        fields.serialize_field("reach", self.reach.as_str())?;
        fields.serialize_field("class", self.class.as_str())?;
        fields.serialize_field("default_class", self.default_class.as_str())?;
        fields.serialize_field("status", &self.status.map(|status| status.as_u16()))?;
        fields.serialize_field("failure", &self.failure.map(Failure::as_str))?;
        fields.serialize_field("cause", &self.cause.map(Cause::as_str))?;
        fields.serialize_field("elapsed_ms", &milliseconds(self.elapsed))?;
        fields.serialize_field("wait_ms", &self.wait.map(milliseconds))?;
        fields.serialize_field("free_repeat", &self.free_repeat)?;
        fields.serialize_field("confirmation", &self.confirmation.map(ConfirmationOutcome::as_str))?;
        fields.end()
    }
}

/// Displays how an attempt ended: `status 503`, or the failure with its cause, or both.
pub(crate) struct StatusOrFailure {
    pub(crate) status: Option<StatusCode>,
    pub(crate) failure: Option<Failure>,
    pub(crate) cause: Option<Cause>,
}

impl StatusOrFailure {
    pub(crate) fn of(attempt: &Attempt) -> Self {
        Self { status: attempt.status, failure: attempt.failure, cause: attempt.cause }
    }
}

impl fmt::Display for StatusOrFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failure = self.failure.map(|failure| FailureAndCause { failure, cause: self.cause });
        match (self.status, failure) {
            (Some(status), Some(failure)) => write!(f, "status {}, then {failure}", status.as_u16()),
            (Some(status), None) => write!(f, "status {}", status.as_u16()),
            (None, Some(failure)) => write!(f, "{failure}"),
            (None, None) => f.write_str("no response"),
        }
    }
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Displays a duration for people: `12 ms`, `1.8 s`, `3600 s`.
pub(crate) struct ShortDuration(pub(crate) Duration);

impl fmt::Display for ShortDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            time if time < Duration::from_millis(1) => f.write_str("under 1 ms"),
            time if time < Duration::from_secs(1) => write!(f, "{} ms", time.as_millis()),
            time if time < Duration::from_secs(100) => write!(f, "{:.1} s", time.as_secs_f64()),
            time if time < YEAR => write!(f, "{} s", time.as_secs()),
            _ => f.write_str("over a year"),
        }
    }
}

/// The attempts of one operation, in order.
#[derive(Clone, Debug, Default)]
pub(crate) enum Journal {
    #[default]
    Empty,
    One(Attempt),
    Many(Vec<Attempt>),
}

impl Journal {
    pub(crate) fn push(&mut self, attempt: Attempt) {
        *self = match std::mem::take(self) {
            Self::Empty => Self::One(attempt),
            Self::One(first) => Self::Many(vec![first, attempt]),
            Self::Many(mut attempts) => {
                attempts.push(attempt);
                Self::Many(attempts)
            }
        };
    }

    /// Returns the last attempt, to add what is known of it later.
    pub(crate) fn last_mut(&mut self) -> Option<&mut Attempt> {
        match self {
            Self::Empty => None,
            Self::One(attempt) => Some(attempt),
            Self::Many(attempts) => attempts.last_mut(),
        }
    }

    pub(crate) fn attempts(&self) -> &[Attempt] {
        match self {
            Self::Empty => &[],
            Self::One(attempt) => std::slice::from_ref(attempt),
            Self::Many(attempts) => attempts,
        }
    }
}

/// The report of a finished operation, in the extensions of its response.
///
/// [`ResponseExt`](crate::ResponseExt) reads it from reqwest's response, and
/// [`Error`](crate::Error) has the same facts. Behind a
/// [`ClientService`](crate::ClientService) there is an `http::Response`: ask its extensions.
///
/// ```
/// use steadfast::{OperationReport, http::Response};
///
/// fn log<B>(response: &Response<B>) {
///     let Some(report) = response.extensions().get::<OperationReport>() else { return };
///     for attempt in report.attempts() {
///         println!("{attempt}"); // attempt 1: ambiguous, status 503, 12 ms; next in 340 ms
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct OperationReport {
    pub(crate) method: Method,
    pub(crate) key: Option<IdempotencyKey>,
    pub(crate) journal: Journal,
    pub(crate) stop: StopReason,
    pub(crate) elapsed: Duration,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) may_have_been_processed: bool,
    /// Present if the operation has a key and did not succeed.
    pub(crate) resume: Option<Box<ResumeToken>>,
    /// Present if the response is a redirect that was not followed.
    pub(crate) not_followed: Option<NotFollowed>,
    /// The response is another origin's.
    pub(crate) is_elsewhere: bool,
    /// Present if the operation ran out of time.
    pub(crate) out_of_time: Option<OutOfTime>,
    /// Credentials that a 401 or 403 may be about.
    pub(crate) withheld: Withheld,
}

impl OperationReport {
    /// Returns every attempt, in order. The last one brought the response.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        self.journal.attempts()
    }

    /// Returns the key that the request carried, if it had one.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&IdempotencyKey> {
        self.key.as_ref()
    }

    /// Returns the time from the start of the operation to the head of the response, waits
    /// included.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Returns why there was no further attempt.
    #[must_use]
    pub fn stop_reason(&self) -> StopReason {
        self.stop
    }

    /// Returns how long the response asks you to wait, if it does.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Returns whether the server may have carried out the operation. See
    /// [`Error::may_have_been_processed`](crate::Error::may_have_been_processed).
    #[must_use]
    pub fn may_have_been_processed(&self) -> bool {
        self.may_have_been_processed
    }
}

/// Whose time ran out, or would before the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutOfTime {
    /// The operation's own timeout.
    Operation,
    /// The deadline of the task that ran the operation.
    Task,
    /// The time for which the API remembers the key.
    Key,
    /// The longest wait that the client takes from a server.
    MaxRetryAfter,
}

impl OutOfTime {
    /// Returns the limit, and the setting behind it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Operation => "the operation's timeout",
            Self::Task => "the task's deadline, set by with_deadline",
            Self::Key => "the time for which the API remembers the key (KeyPolicy::retention)",
            Self::MaxRetryAfter => "max_retry_after",
        }
    }
}

/// Credentials that stayed behind, because a request went to another origin than theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Withheld {
    /// `Authorization`, a cookie, an API key or the idempotency key, on a redirect.
    pub(crate) by_redirect: bool,
    /// A default header of the client, which belongs to the base URL's origin.
    pub(crate) by_base_url: bool,
}

impl Withheld {
    /// Returns the advice for the error line.
    pub(crate) fn as_str(self) -> Option<&'static str> {
        match self {
            Self { by_redirect: true, .. } => {
                Some("a redirect led to another origin, where the request's credentials are not sent")
            }
            Self { by_base_url: true, .. } => {
                Some("the client's default credentials are sent to the origin of base_url alone")
            }
            Self { .. } => None,
        }
    }
}

/// Why the redirect that ended an operation was not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotFollowed {
    /// A 301 or 302 to a request with effects.
    HasEffects,
    /// There is no `Location`.
    NoAddress,
    /// The `Location` is no URL.
    BadAddress,
    /// The `Location` is a URL, and neither http nor https.
    NotHttp,
    /// The user has turned off redirects.
    TurnedOff,
    /// From https to http.
    Downgrade,
    /// Anything but a GET or HEAD without a body, to another origin.
    LeavesOrigin,
    /// The user's own transport may add credentials to a request that goes to another origin.
    MayAddCredentials,
    /// The user has turned off redirects to another origin.
    CrossOriginOff,
    /// The body was a stream that is gone.
    BodyGone,
    /// An earlier attempt may have been processed, and the API is not known to honour keys at the
    /// new address.
    KeyNotTrusted,
}

impl NotFollowed {
    /// Returns the reason, as error lines print it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::HasEffects => {
                "a 301 or 302 does not say whether the request was carried out: check before you send it to the new address"
            }
            Self::NoAddress => "it has no Location",
            Self::BadAddress => "its Location is not a URL",
            Self::NotHttp => "its Location is neither http nor https",
            Self::TurnedOff => "redirects are turned off: max_redirects is 0",
            Self::Downgrade => "https never leads to http",
            Self::LeavesOrigin => "only a GET or HEAD without a body goes to another origin",
            Self::MayAddCredentials => {
                "the HTTP client is yours and may add credentials; if it adds none, say so: .cross_origin_redirects(true)"
            }
            Self::CrossOriginOff => "redirects to another origin are turned off: cross_origin_redirects(false)",
            Self::BodyGone => "the body was a stream, which cannot be sent again: body_factory opens it anew",
            Self::KeyNotTrusted => {
                "an earlier attempt may have been processed, and the API has not shown that it honours keys at the new address"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(number: u32) -> Attempt {
        Attempt {
            number,
            reach: Reach::Answered,
            class: Class::Ambiguous,
            default_class: Class::Ambiguous,
            status: Some(StatusCode::SERVICE_UNAVAILABLE),
            failure: None,
            cause: None,
            elapsed: Duration::from_millis(12),
            wait: Some(Duration::from_millis(1340)),
            free_repeat: false,
            confirmation: None,
        }
    }

    #[test]
    fn attempt_is_displayed_as_one_line() {
        assert_eq!(attempt(2).to_string(), "attempt 2: ambiguous, status 503, 12 ms; next in 1.3 s");
        let judged = Attempt { class: Class::NotProcessed, wait: None, ..attempt(1) };
        let line = "attempt 1: not processed (by the classifier; the table says ambiguous), status 503, 12 ms";
        assert_eq!(judged.to_string(), line);
        let cut = Attempt { failure: Some(Failure::BodyCut), status: Some(StatusCode::OK), wait: None, ..attempt(1) };
        let line = "attempt 1: ambiguous, status 200, then the response body was cut short, 12 ms";
        assert_eq!(cut.to_string(), line);
        let refused =
            Attempt { class: Class::NotProcessed, default_class: Class::NotProcessed, status: None, ..attempt(1) };
        let refused = Attempt { failure: Some(Failure::Refused), free_repeat: true, ..refused };
        let line = "attempt 1: not processed, refused by the server before processing, 12 ms; repeated at once, free";
        assert_eq!(refused.to_string(), line);
    }

    #[test]
    fn attempt_serialises_to_the_same_facts() {
        let json = serde_json::to_value(attempt(1)).unwrap();
        let expected = serde_json::json!({
            "number": 1, "reach": "answered", "class": "ambiguous", "default_class": "ambiguous",
            "status": 503, "failure": null, "cause": null, "elapsed_ms": 12, "wait_ms": 1340,
            "free_repeat": false, "confirmation": null,
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn durations_are_displayed_readably() {
        let shown =
            [Duration::from_micros(3), Duration::from_millis(999), Duration::from_millis(1840)].map(ShortDuration);
        assert_eq!(shown.map(|short| short.to_string()), ["under 1 ms", "999 ms", "1.8 s"]);
        let shown = [Duration::from_secs(3600), Duration::MAX].map(ShortDuration);
        assert_eq!(shown.map(|short| short.to_string()), ["3600 s", "over a year"]);
    }

    #[test]
    fn first_attempt_is_recorded_without_an_allocation() {
        let mut journal = Journal::default();
        let first = attempt(1);
        let recorded = allocation_counter::measure(|| {
            journal.push(first);
            assert_eq!(journal.attempts().len(), 1);
        });
        assert_eq!(recorded.count_total, 0);
        let report = OperationReport {
            method: Method::GET,
            key: None,
            journal,
            stop: StopReason::Done,
            elapsed: Duration::ZERO,
            retry_after: None,
            may_have_been_processed: true,
            resume: None,
            not_followed: None,
            is_elsewhere: false,
            out_of_time: None,
            withheld: Withheld::default(),
        };
        // A response of the transport's has an extension already.
        let mut extensions = http::Extensions::new();
        extensions.insert(0_u8);
        let carried = allocation_counter::measure(|| drop(extensions.insert(report)));
        assert_eq!(carried.count_total, 1);
    }

    #[test]
    fn journal_keeps_the_order() {
        let mut journal = Journal::default();
        assert!(journal.attempts().is_empty());
        for number in 1..=4 {
            journal.push(attempt(number));
            let numbers: Vec<u32> = journal.attempts().iter().map(Attempt::number).collect();
            assert_eq!(numbers, (1..=number).collect::<Vec<_>>());
        }
    }
}
