//! The server's wishes: when to come back, whether to come back at all, and the state of the key.
//!
//! These headers were never designed together. So each is read strictly, and a header that does not
//! parse is ignored. No byte sequence makes this file panic.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode};

use super::class::Class;
use super::date;
use super::field::{ClockOfAnswer, rounded_up, split_outside_quotes, text};
use super::quota::Quota;
use super::units::digits;

/// What a response says about repeating the request. `Hint::default()` says nothing.
///
/// ```
/// use std::time::{Duration, Instant};
/// use steadfast_core::{Class, Decision, Hint, Idempotency, Operation, RetryBudget, RetryPolicy, TokenBucket};
///
/// let (policy, bucket) = (RetryPolicy::new(), TokenBucket::new(RetryBudget::standard()));
/// let now = Instant::now();
/// let mut operation = Operation::start(&policy, &bucket, Idempotency::Natural, now);
///
/// // A wait and nothing else. The jittered wait is added to it.
/// let hint = Hint::from(Some(Duration::from_secs(2)));
/// let decision = operation.decide(Class::Throttled, &hint, now, 0.0);
/// assert_eq!(decision, Decision::Retry { after: Duration::from_secs(2) });
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hint {
    /// The shortest wait before a repeat.
    pub after: Option<Duration>,
    /// A directive: `Some(false)` ends the operation, and `Some(true)` turns the class `Permanent`
    /// into `Ambiguous`. Neither is a licence to act twice.
    pub retry: Option<bool>,
    /// The response is the stored end of the operation. A repeat brings the same response.
    pub replayed: bool,
    /// An earlier attempt under this key may have run, and the server does not know how it ended.
    pub outcome_unknown: bool,
    /// The request went to the wrong connection (421). It is repeated once, without a wait.
    pub misdirected: bool,
    /// The server refused the request before processing, because of the connection and not because
    /// of the request (HTTP/2 `REFUSED_STREAM`, `GOAWAY`). If the class is `NotProcessed`, the
    /// repeat is [free](crate::RetryPolicy#free-repeats). No header sets it.
    pub refused: bool,
    /// The attempt failed because this process lacks something, such as a file descriptor. If the
    /// class is `NotProcessed`, the repeat waits and counts as an attempt, and takes no tokens from
    /// the budget. No header sets it.
    pub local: bool,
    /// The upload was too slow for a limit that the next attempt has too, so it is not repeated. No
    /// header sets it.
    pub upload_too_slow: bool,
    /// The head of the response is over a limit of the client, which the next attempt has too, so it
    /// is not repeated. No header sets it.
    pub response_too_large: bool,
    /// The response refused a token of the client's (401), and the client can get a fresh one. If
    /// the class is `Permanent`, the request goes [again once](crate::RetryPolicy#fresh-tokens). No
    /// header sets it.
    pub token_refused: bool,
    /// The refusal is evidence that nothing was applied, by this attempt or by one before it. No
    /// header sets it.
    pub not_applied: bool,
}

/// Every header that [`Hint::from_headers`] looks for, whatever the class.
const SPOKEN: [&str; 7] = [
    "retry-after-ms",
    "x-ms-retry-after-ms",
    "retry-after",
    "x-should-retry",
    "stripe-should-retry",
    "idempotent-replayed",
    "idempotency-status",
];

/// Returns whether none of these headers is present, as in most responses. One pass over the
/// present names is cheaper than ten lookups.
fn says_nothing(headers: &HeaderMap) -> bool {
    !headers.keys().any(|name| SPOKEN.contains(&name.as_str()))
}

impl From<Option<Duration>> for Hint {
    fn from(after: Option<Duration>) -> Self {
        Self { after, ..Self::default() }
    }
}

impl Hint {
    /// No hint at all, as [`Default`] gives it.
    pub const NONE: Self = Self {
        after: None,
        retry: None,
        replayed: false,
        outcome_unknown: false,
        misdirected: false,
        refused: false,
        local: false,
        upload_too_slow: false,
        response_too_large: false,
        token_refused: false,
        not_applied: false,
    };

    /// Reads the headers of a response of this class at the time `now`.
    ///
    /// | field | from |
    /// | --- | --- |
    /// | `after` | the headers that [`parse_retry_hint`] lists. A quota counts only after a `Throttled` response, and not if it says that something remains |
    /// | `retry` | `x-should-retry`, `Stripe-Should-Retry`: `true` or `false`; a `false` wins |
    /// | `replayed` | `Idempotent-Replayed: true`, `Idempotency-Status: stored` or `replayed` |
    /// | `outcome_unknown` | `Idempotency-Status: unknown` |
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use http::{HeaderMap, HeaderValue};
    /// use steadfast_core::{Class, Hint};
    ///
    /// let mut headers = HeaderMap::new();
    /// headers.insert("retry-after", HeaderValue::from_static("3"));
    /// headers.insert("x-should-retry", HeaderValue::from_static("true"));
    /// let hint = Hint::from_headers(&headers, Class::Ambiguous, SystemTime::now());
    /// assert_eq!(hint.after, Some(Duration::from_secs(3)));
    /// assert_eq!(hint.retry, Some(true));
    /// ```
    #[must_use]
    pub fn from_headers(headers: &HeaderMap, class: Class, now: SystemTime) -> Self {
        Self::read(headers, class, || now)
    }

    /// Reads the headers as [`from_headers`](Self::from_headers) does. Reads the clock only if a
    /// header needs it.
    #[doc(hidden)]
    pub fn read(headers: &HeaderMap, class: Class, now: impl FnOnce() -> SystemTime) -> Self {
        let is_throttled = class == Class::Throttled;
        // Quotas are on most responses of an API. Only a refusal is worth the search for them.
        if !is_throttled && says_nothing(headers) {
            return Self::default();
        }
        let now = now();
        let closed = || if is_throttled { Quota::read(headers, now).closed_for() } else { None };
        let after = explicit(headers, now).or_else(closed);
        let status = record_status(headers);
        let replayed = flag(headers, "idempotent-replayed") == Some(true)
            || status.is_some_and(|status| matches!(status.word, "stored" | "replayed"));
        let outcome_unknown = status.is_some_and(|status| status.word == "unknown");
        Self { after, retry: directive(headers), replayed, outcome_unknown, ..Self::default() }
    }
}

impl Class {
    /// Returns the class of a response by its status and its headers, read at the time `now`. It is
    /// that of [`of_status`](Self::of_status), with two exceptions:
    ///
    /// | response | class | source |
    /// | --- | --- | --- |
    /// | 413 with a valid `Retry-After` | `Throttled` | the condition is temporary (RFC 9110 §15.5.14) |
    /// | 403 whose [quota](parse_retry_hint) says that nothing remains, and names a reset in the future | `Throttled` | [GitHub](https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#exceeding-the-rate-limit) sends it as the refusal of a rate limit |
    ///
    /// Every other status keeps its class, whatever a quota says. A 503 with nothing remaining may
    /// come from a handler that has acted.
    ///
    /// ```
    /// use std::time::SystemTime;
    /// use http::{HeaderMap, HeaderValue, StatusCode};
    /// use steadfast_core::Class;
    ///
    /// let mut headers = HeaderMap::new();
    /// headers.insert("x-ratelimit-remaining", HeaderValue::from_static("0"));
    /// headers.insert("x-ratelimit-reset", HeaderValue::from_static("30"));
    /// let class = |status| Class::of_response(status, &headers, SystemTime::now());
    /// assert_eq!(class(StatusCode::FORBIDDEN), Class::Throttled);
    /// assert_eq!(class(StatusCode::UNAUTHORIZED), Class::Permanent);
    /// assert_eq!(class(StatusCode::SERVICE_UNAVAILABLE), Class::Ambiguous);
    /// ```
    #[must_use]
    pub fn of_response(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Self {
        Self::read(status, headers, || now)
    }

    /// Reads a response as [`of_response`](Self::of_response) does. Reads the clock only if the
    /// class depends on it.
    #[inline]
    #[doc(hidden)]
    pub fn read(status: StatusCode, headers: &HeaderMap, now: impl FnOnce() -> SystemTime) -> Self {
        let is_load = match status {
            StatusCode::FORBIDDEN => Quota::read(headers, now()).spent_for().is_some(),
            StatusCode::PAYLOAD_TOO_LARGE => standard(headers, now()).is_some(),
            _ => false,
        };
        if is_load { Self::Throttled } else { Self::of_status(status) }
    }
}

/// Returns how long a response asks the client to wait, read at the time `now`. Returns `None` if
/// it asks for no wait, or in no form that can be trusted.
///
/// In this order, the first that parses wins:
///
/// 1. `retry-after-ms`, `x-ms-retry-after-ms`: milliseconds (Azure, OpenAI and others).
/// 2. `Retry-After`: seconds, or an HTTP-date in any of its three forms (RFC 9110 §10.2.3, §5.6.7).
///    Of two values the longer counts. A date in the past is zero. A date is compared with the
///    response's own `Date` and `Age`, so that the clocks of client and server need not agree.
///    Without a `Date` it is compared with `now`.
/// 3. A quota: `RateLimit`, `RateLimit-Reset` (draft-ietf-httpapi-ratelimit-headers, current and
///    earlier forms), `X-RateLimit-Reset`, `X-Rate-Limit-Reset`, and OpenAI's
///    `x-ratelimit-reset-requests` and `x-ratelimit-reset-tokens`. Many APIs send them on every
///    response, so they count only if the same response says that nothing remains. Of several
///    spent quotas the longest wait counts.
///
/// A reset is a number of seconds, a time in seconds or milliseconds since 1970, or a duration such
/// as `6m0s`. A number from 1,000,000,000 on is a time. It is compared with the response's `Date`
/// and `Age`, as a date is. A reset in the past, or more than 366 days ahead, is ignored.
///
/// Numbers are digits, with or without a fraction. A fraction is rounded up: `299.997` is 300,
/// because nobody should come back too early. `+1`, `.5`, `1e3` and `120s` do not parse. A number
/// too large for the type is the largest (RFC 9111 §1.2.2), so the caller's cap decides.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use http::{HeaderMap, HeaderValue, header::RETRY_AFTER};
/// use steadfast_core::parse_retry_hint;
///
/// let mut headers = HeaderMap::new();
/// headers.insert(RETRY_AFTER, HeaderValue::from_static("120"));
/// assert_eq!(parse_retry_hint(&headers, SystemTime::now()), Some(Duration::from_secs(120)));
/// ```
#[must_use]
pub fn parse_retry_hint(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    explicit(headers, now).or_else(|| Quota::read(headers, now).spent_for())
}

fn explicit(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let milliseconds = |name| longest(headers, name, |text| rounded_up(text).map(Duration::from_millis));
    milliseconds("retry-after-ms").or_else(|| milliseconds("x-ms-retry-after-ms")).or_else(|| standard(headers, now))
}

/// Returns the wait of `Retry-After`.
fn standard(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    longest(headers, "retry-after", |text| retry_after(text, &ClockOfAnswer { headers, now }))
}

fn longest(headers: &HeaderMap, name: &str, parse: impl Fn(&str) -> Option<Duration>) -> Option<Duration> {
    headers.get_all(name).iter().filter_map(|value| parse(text(value)?)).max()
}

fn retry_after(text: &str, clock: &ClockOfAnswer<'_>) -> Option<Duration> {
    if let Some(seconds) = rounded_up(text) {
        return Some(Duration::from_secs(seconds));
    }
    Some(clock.until(date::parse(text, clock.ours())?))
}

fn directive(headers: &HeaderMap) -> Option<bool> {
    let lines = ["x-should-retry", "stripe-should-retry"].into_iter().flat_map(|name| headers.get_all(name));
    // Directives can disagree, in two headers or in two lines of one. The one that asks for less
    // load counts.
    lines.filter_map(truth).min()
}

fn flag(headers: &HeaderMap, name: &str) -> Option<bool> {
    headers.get(name).and_then(truth)
}

/// Parses `true` or `false`, in upper or lower case.
fn truth(value: &HeaderValue) -> Option<bool> {
    let word = text(value)?;
    if word.eq_ignore_ascii_case("true") { Some(true) } else { word.eq_ignore_ascii_case("false").then_some(false) }
}

/// The value of an `Idempotency-Status` header: a word (`stored`, `replayed`, `in-progress`,
/// `released`, `unknown` or `ignored`), the path prefix for which it holds, and the retention of
/// the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
#[allow(clippy::exhaustive_structs, reason = "not public: the crates that use it have one version")]
pub struct RecordStatus<'a> {
    pub word: &'a str,
    pub scope: Option<&'a str>,
    pub retention: Option<Duration>,
}

/// Parses `Idempotency-Status: stored;retention=86400;scope="/v1"`.
#[doc(hidden)]
pub fn record_status(headers: &HeaderMap) -> Option<RecordStatus<'_>> {
    let value = headers.get("idempotency-status").and_then(text)?;
    let mut parts = split_outside_quotes(value);
    let word = parts.next()?;
    let (mut scope, mut retention) = (None, None);
    for part in parts {
        match part.split_once('=') {
            Some(("scope", path)) => scope = Some(path.trim_matches('"')).filter(|path| path.starts_with('/')),
            Some(("retention", seconds)) => retention = digits(seconds).map(Duration::from_secs),
            _ => {}
        }
    }
    Some(RecordStatus { word, scope, retention })
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &str)| {
            (http::HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        lines.iter().map(line).collect()
    }

    fn check(lines: &[(&'static str, &str)]) -> Option<u128> {
        let (headers, now) = (headers(lines), UNIX_EPOCH + Duration::from_secs(784_111_747));
        let after = parse_retry_hint(&headers, now);
        let hint = |class| Hint::from_headers(&headers, class, now).after;
        // A quota is a wait for those alone that it refuses.
        assert!(hint(Class::Ambiguous).is_none_or(|wait| after == Some(wait)));
        assert!(after.is_none_or(|wait| hint(Class::Throttled) == Some(wait)));
        after.map(|wait| wait.as_millis())
    }

    #[test]
    fn headers_are_read_in_order() {
        let all = [("retry-after", "5"), ("x-ms-retry-after-ms", "700"), ("retry-after-ms", "250")];
        assert_eq!(check(&all), Some(250));
        assert_eq!(check(&all[..2]), Some(700));
        assert_eq!(check(&all[..1]), Some(5000));
        assert_eq!(check(&[("retry-after-ms", "abc"), ("retry-after", "5")]), Some(5000));
        assert_eq!(check(&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")]), Some(30_000));
        assert_eq!(check(&[]), None);
    }

    #[test]
    fn fractions_are_rounded_up() {
        assert_eq!(check(&[("retry-after", "299.997")]), Some(300_000));
        assert_eq!(check(&[("retry-after", "0.5")]), Some(1000));
        assert_eq!(check(&[("retry-after", "2.000")]), Some(2000));
        assert_eq!(check(&[("retry-after-ms", "12.5")]), Some(13));
        assert_eq!(check(&[("ratelimit-remaining", "0"), ("ratelimit-reset", "8.1")]), Some(9000));
        assert_eq!(check(&[("ratelimit", "\"default\";r=0;t=29.5")]), Some(30_000));
        assert_eq!(check(&[("ratelimit", "\"default\";r=0.5;t=30")]), None, "half a request is none that remains");
        for text in [".5", "5.", "1.2.3", "1,5", "-0.5", "1.5e3", "."] {
            assert_eq!(check(&[("retry-after", text)]), None, "{text}");
        }
        assert_eq!(check(&[("retry-after", "18446744073709551615.5")]), Some(u128::from(u64::MAX) * 1000));
    }

    #[test]
    fn date_is_compared_with_the_response_date() {
        // Our clock says 08:49:07; theirs is five minutes behind, and then five minutes ahead.
        for (theirs, until) in [("08:44:07", "08:44:09"), ("08:54:07", "08:54:09")] {
            let date = |time: &str| format!("Sun, 06 Nov 1994 {time} GMT");
            let (theirs, until) = (date(theirs), date(until));
            assert_eq!(check(&[("date", &theirs), ("retry-after", &until)]), Some(2000), "{theirs}");
            let kept = [("date", theirs.as_str()), ("age", "1"), ("retry-after", &until)];
            assert_eq!(check(&kept), Some(1000), "kept for a second by a cache");
            let kept = [("date", theirs.as_str()), ("age", "3600"), ("retry-after", &until)];
            assert_eq!(check(&kept), Some(0), "the time is over");
        }
        let until = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(check(&[("date", "yesterday"), ("retry-after", until)]), Some(30_000), "then our clock has to do");
        assert_eq!(check(&[("date", "Sun, 06 Nov 1994 08:00:00 GMT"), ("retry-after", "5")]), Some(5000));
    }

    #[test]
    fn quota_counts_only_if_nothing_remains() {
        assert_eq!(check(&[("ratelimit", "\"default\";r=0;t=30")]), Some(30_000));
        assert_eq!(check(&[("ratelimit", "\"default\";r=1;t=30")]), None);
        assert_eq!(check(&[("ratelimit", "\"burst\";r=0;t=3, \"day,;\";r=9;t=40")]), Some(3000));
        assert_eq!(check(&[("ratelimit", "limit=10, remaining=0, reset=7")]), Some(7000));
        assert_eq!(check(&[("ratelimit-remaining", "0"), ("ratelimit-reset", "9")]), Some(9000));
        assert_eq!(check(&[("ratelimit-remaining", "2"), ("ratelimit-reset", "9")]), None);
        assert_eq!(check(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "784111777")]), None, "25 years");
        let spent = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "9"), ("retry-after", "2")];
        assert_eq!(check(&spent), Some(2000), "Retry-After wins");
    }

    #[test]
    fn only_throttled_response_waits_for_quota() {
        let after = |lines: &[_], class| Hint::from_headers(&headers(lines), class, UNIX_EPOCH).after;
        let spent = [("ratelimit", "\"a\";r=2;t=9, \"b\";r=0;t=4")];
        assert_eq!(after(&spent, Class::Throttled), Some(Duration::from_secs(4)), "the one that is used up");
        for class in [Class::Success, Class::Ambiguous, Class::NotProcessed, Class::Permanent] {
            assert_eq!(after(&spent, class), None, "{class:?}");
        }
        let silent = [("ratelimit-reset", "9")];
        assert_eq!(after(&silent, Class::Throttled), Some(Duration::from_secs(9)), "the status says the rest");
        let plenty = [("ratelimit-remaining", "4999"), ("ratelimit-reset", "9")];
        assert_eq!(after(&plenty, Class::Throttled), None, "another limit refuses");
    }

    #[test]
    fn headers_turn_403_and_413_into_throttled() {
        let class = |status: u16, lines: &[_]| {
            let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
            Class::of_response(StatusCode::from_u16(status).unwrap(), &headers(lines), now)
        };
        let spent = |reset| [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", reset)];
        assert_eq!(class(403, &spent("1800000030")), Class::Throttled);
        assert_eq!(class(403, &spent("30")), Class::Throttled);
        assert_eq!(class(403, &spent("1799999990")), Class::Permanent, "it was reset already");
        assert_eq!(class(403, &spent("0")), Class::Permanent);
        assert_eq!(class(403, &[("x-ratelimit-remaining", "7"), ("x-ratelimit-reset", "30")]), Class::Permanent);
        assert_eq!(class(403, &[("x-ratelimit-reset", "30")]), Class::Permanent, "it does not say what remains");
        assert_eq!(class(403, &[("retry-after", "30")]), Class::Permanent);
        assert_eq!(class(413, &[("retry-after", "30")]), Class::Throttled);
        assert_eq!(class(413, &[("retry-after", "soon")]), Class::Permanent);
        assert_eq!(class(413, &spent("30")), Class::Permanent);
        for status in [400, 401, 404, 429, 500, 503, 200] {
            let by_status = Class::of_status(StatusCode::from_u16(status).unwrap());
            assert_eq!(class(status, &spent("30")), by_status, "{status}");
        }
    }

    #[test]
    fn directives_and_records_are_read() {
        let hint = |lines: &[_]| Hint::from_headers(&headers(lines), Class::Ambiguous, UNIX_EPOCH);
        assert_eq!(hint(&[("x-should-retry", "true")]).retry, Some(true));
        assert_eq!(hint(&[("x-should-retry", "true"), ("stripe-should-retry", "false")]).retry, Some(false));
        let hint_of_lines = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-should-retry", HeaderValue::from_static(line));
            }
            Hint::from_headers(&headers, Class::Ambiguous, UNIX_EPOCH).retry
        };
        assert_eq!(hint_of_lines(&["true", "false"]), Some(false), "a gateway may have added a line");
        assert_eq!(hint_of_lines(&["", "true"]), Some(true));
        assert_eq!(hint(&[("stripe-should-retry", "maybe")]).retry, None);
        assert!(hint(&[("idempotent-replayed", "true")]).replayed);
        assert!(!hint(&[("idempotent-replayed", "false")]).replayed);
        assert!(hint(&[("idempotency-status", "stored;retention=86400")]).replayed);
        assert!(!hint(&[("idempotency-status", "in-progress")]).replayed);
        assert!(hint(&[("idempotency-status", "unknown")]).outcome_unknown);
    }

    #[test]
    fn record_status_has_its_scope() {
        let lines = headers(&[("idempotency-status", "replayed; retention=60; scope=\"/v1/charges\"")]);
        let retention = Some(Duration::from_secs(60));
        let expected = RecordStatus { word: "replayed", scope: Some("/v1/charges"), retention };
        assert_eq!(record_status(&lines), Some(expected));
        let lines = headers(&[("idempotency-status", "replayed;scope=\"v1\"")]);
        assert_eq!(record_status(&lines).and_then(|status| status.scope), None, "a prefix that is no path");
    }
}
