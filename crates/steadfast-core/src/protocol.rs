//! The vocabulary of client and server: header names, the values of `Idempotency-Status`, the
//! problem types, and the header for a deadline.
//!
//! Both halves read it here, so neither can use a word that the other does not know. Sources:
//! draft-ietf-httpapi-idempotency-key-header-07, RFC 7240 (`Prefer`), RFC 9457 (problem types).

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::units::{digits, milliseconds};

/// The header that carries the key (draft-07 §2).
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The header with the state of the key.
pub const IDEMPOTENCY_STATUS: HeaderName = HeaderName::from_static("idempotency-status");
/// The header that marks a stored response, as Stripe sends it.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// The header that asks the server to wait for the first request's response (RFC 7240 §4.3).
pub const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The state of a key: the first word of `Idempotency-Status`.
///
/// ```
/// use steadfast_core::protocol::IdempotencyStatus;
///
/// assert_eq!(IdempotencyStatus::from_word("replayed"), Some(IdempotencyStatus::Replayed));
/// assert_eq!(IdempotencyStatus::InProgress.word(), "in-progress");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IdempotencyStatus {
    /// The request was executed, and its response is stored.
    Stored,
    /// The response is that of an earlier request under the key.
    Replayed,
    /// An earlier request under the key is still running.
    InProgress,
    /// The key is free again.
    Released,
    /// An earlier request may have been executed, and the server does not know how it ended.
    Unknown,
    /// The server does not honour the key here.
    Ignored,
}

impl IdempotencyStatus {
    const ALL: [Self; 6] =
        [Self::Stored, Self::Replayed, Self::InProgress, Self::Released, Self::Unknown, Self::Ignored];

    /// Returns the word on the wire.
    #[inline]
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Replayed => "replayed",
            Self::InProgress => "in-progress",
            Self::Released => "released",
            Self::Unknown => "unknown",
            Self::Ignored => "ignored",
        }
    }

    /// Parses a word. Returns `None` for an unknown one.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.word() == word)
    }
}

/// Returns the time left as the value of a deadline header: whole milliseconds in digits, at least
/// 1.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::protocol::{deadline_from_header, deadline_to_header};
///
/// let value = deadline_to_header(Duration::from_secs(2));
/// assert_eq!(value, "2000");
/// assert_eq!(deadline_from_header(&value), Some(Duration::from_secs(2)));
/// ```
#[must_use]
pub fn deadline_to_header(time_left: Duration) -> HeaderValue {
    HeaderValue::from(milliseconds(time_left).max(1))
}

/// Parses the value that [`deadline_to_header`] writes. Returns `None` for anything but digits.
#[must_use]
pub fn deadline_from_header(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok().and_then(digits).map(Duration::from_millis)
}

/// The `type` members of the problems that the server layer sends (RFC 9457 §3.1.1). Each is a URL.
pub mod problem_type {
    macro_rules! problem_types {
        ($($(#[$doc:meta])* $name:ident = $word:literal;)*) => {
            /// Every type.
            #[doc(hidden)]
            pub const ALL: &[&str] = &[$($name),*];

            $($(#[$doc])* pub const $name: &str = concat!("https://docs.rs/steadfast/latest/steadfast/guide/problems/#", $word);)*
        };
    }

    problem_types! {
        /// 400: this route requires a key.
        KEY_MISSING = "key-missing";
        /// 400: the key is malformed, or there are two.
        KEY_MALFORMED = "key-malformed";
        /// 400: the webhook has no event id.
        EVENT_ID_MISSING = "event-id-missing";
        /// 400: the body ended before its length.
        BODY_BROKEN = "body-broken";
        /// 403: the caller, and so the scope, is not known.
        NO_CALLER = "no-caller";
        /// 409: the first request under this key is still running; repeat it later.
        IN_PROGRESS = "in-progress";
        /// 409: a request under this key may have been executed, and its end is not known.
        OUTCOME_UNKNOWN = "outcome-unknown";
        /// 410: the request was executed, and its response was not kept.
        ANSWER_NOT_KEPT = "answer-not-kept";
        /// 413: the body is longer than the limit.
        BODY_TOO_LARGE = "body-too-large";
        /// 422: the key belongs to another request.
        OTHER_REQUEST = "key-of-another-request";
        /// 500: the stored record cannot be read.
        RECORD_UNREADABLE = "record-unreadable";
        /// 500: the handler panicked or returned an error.
        HANDLER_FAILED = "outcome-unknown-handler-failed";
        /// 500: the handler took longer than it may.
        HANDLER_TIMED_OUT = "outcome-unknown-handler-timed-out";
        /// 500: the handler's transaction was lost.
        TRANSACTION_LOST = "transaction-lost";
        /// 503: the store cannot be reached or is full; nothing was executed.
        STORE_UNAVAILABLE = "store-unavailable";
        /// 503: as many operations are running as may run at a time; nothing was executed.
        TOO_MANY_RUNNING = "too-many-running";
        /// 503: the database rolled the handler's transaction back.
        ROLLED_BACK = "rolled-back";
        /// 503: the caller waits for less than the work takes; nothing was executed.
        DEADLINE_PASSED = "deadline-passed";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_word_is_read_back() {
        for status in IdempotencyStatus::ALL {
            assert_eq!(IdempotencyStatus::from_word(status.word()), Some(status));
        }
        assert_eq!(IdempotencyStatus::from_word("unsupported"), None);
    }

    #[test]
    fn deadline_header_is_read_back() {
        for (time, milliseconds) in [(Duration::from_micros(2900), 2), (Duration::ZERO, 1), (Duration::MAX, u64::MAX)] {
            let read = deadline_from_header(&deadline_to_header(time));
            assert_eq!(read, Some(Duration::from_millis(milliseconds)), "{time:?}");
        }
        for text in ["", "-1", "+1", "1.5", "1s", " 1"] {
            assert_eq!(deadline_from_header(&HeaderValue::from_static(text)), None, "{text}");
        }
    }
}
