//! The server's wishes: when to come back, whether to come back at all, and the state of the key.
//!
//! These headers were never designed together. So each is read strictly, and a header that does not
//! parse is ignored. No byte sequence makes this file panic.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue};

use super::class::Class;
use super::date;
use super::settings::MAX_RETRY_AFTER;
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
}

/// Every header that [`Hint::from_headers`] looks for.
const SPOKEN: [&str; 10] = [
    "retry-after-ms",
    "x-ms-retry-after-ms",
    "retry-after",
    "ratelimit-reset",
    "ratelimit-remaining",
    "ratelimit",
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
    };

    /// Reads the headers of a response at the time `now`. A rate-limit reset beyond `cap` is
    /// ignored.
    ///
    /// | field | from |
    /// | --- | --- |
    /// | `after` | as [`parse_retry_hint`]; after a `Throttled` response a rate-limit reset counts even if something remains |
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
    /// let cap = Duration::from_secs(60);
    /// let hint = Hint::from_headers(&headers, Class::Ambiguous, SystemTime::now(), cap);
    /// assert_eq!(hint.after, Some(Duration::from_secs(3)));
    /// assert_eq!(hint.retry, Some(true));
    /// ```
    #[must_use]
    pub fn from_headers(headers: &HeaderMap, class: Class, now: SystemTime, cap: Duration) -> Self {
        Self::read(headers, class, || now, cap)
    }

    /// Reads the headers as [`from_headers`](Self::from_headers) does. Reads the clock only if a
    /// header needs it.
    #[doc(hidden)]
    pub fn read(headers: &HeaderMap, class: Class, now: impl FnOnce() -> SystemTime, cap: Duration) -> Self {
        if says_nothing(headers) {
            return Self::default();
        }
        let after = explicit(headers, now()).or_else(|| rate_limit_reset(headers, class == Class::Throttled, cap));
        let status = record_status(headers);
        let replayed = flag(headers, "idempotent-replayed") == Some(true)
            || status.is_some_and(|status| matches!(status.word, "stored" | "replayed"));
        let outcome_unknown = status.is_some_and(|status| status.word == "unknown");
        Self { after, retry: directive(headers), replayed, outcome_unknown, ..Self::default() }
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
/// 3. `RateLimit` or `RateLimit-Reset` (draft-ietf-httpapi-ratelimit-headers, current and earlier
///    forms). Many APIs send them on every response, so they count only if the same response says
///    that nothing remains, and only up to 60 s.
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
    explicit(headers, now).or_else(|| rate_limit_reset(headers, false, MAX_RETRY_AFTER))
}

fn explicit(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let milliseconds = |name| longest(headers, name, |text| rounded_up(text).map(Duration::from_millis));
    milliseconds("retry-after-ms")
        .or_else(|| milliseconds("x-ms-retry-after-ms"))
        .or_else(|| longest(headers, "retry-after", |text| retry_after(text, headers, now)))
}

fn longest(headers: &HeaderMap, name: &str, parse: impl Fn(&str) -> Option<Duration>) -> Option<Duration> {
    headers.get_all(name).iter().filter_map(|value| parse(text(value)?)).max()
}

fn retry_after(text: &str, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    if let Some(seconds) = rounded_up(text) {
        return Some(Duration::from_secs(seconds));
    }
    let ours = match now.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
    };
    let date = date::parse(text, ours)?;
    let theirs = time_of_answer(headers, ours).unwrap_or(ours);
    Some(Duration::from_secs(u64::try_from(date.saturating_sub(theirs)).unwrap_or(0)))
}

/// Returns the server's time of the response (RFC 9110 §6.6.1). A cache adds the time for which it
/// has kept the response (RFC 9111 §5.1).
fn time_of_answer(headers: &HeaderMap, now: i64) -> Option<i64> {
    let date = headers.get("date").and_then(text).and_then(|text| date::parse(text, now))?;
    let age = headers.get("age").and_then(text).and_then(digits).unwrap_or(0);
    Some(date.saturating_add(i64::try_from(age).unwrap_or(i64::MAX)))
}

/// Returns a field value as text, without the optional white space around it. `None` unless it is
/// visible ASCII.
fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().map(|text| text.trim_matches([' ', '\t']))
}

/// Parses a number of units to wait for, rounded up to whole ones, saturating.
fn rounded_up(text: &str) -> Option<u64> {
    let Some((whole, fraction)) = text.split_once('.') else { return digits(text) };
    let (whole, _) = (digits(whole)?, digits(fraction)?);
    let is_more = fraction.bytes().any(|digit| digit != b'0');
    Some(whole.saturating_add(u64::from(is_more)))
}

/// Returns the wait until a rate limit opens again, if nothing remains. `throttled`: by its status,
/// nothing remains.
fn rate_limit_reset(headers: &HeaderMap, throttled: bool, cap: Duration) -> Option<Duration> {
    let number = |name: &str| headers.get(name).and_then(text).and_then(digits);
    let reset = headers.get("ratelimit-reset").and_then(text).and_then(rounded_up);
    let separate = reset.filter(|_| throttled || number("ratelimit-remaining") == Some(0));
    let seconds =
        headers.get_all("ratelimit").iter().filter_map(|value| limits(text(value)?, throttled)).max().or(separate)?;
    Some(Duration::from_secs(seconds)).filter(|wait| *wait <= cap)
}

/// Returns the longest reset among the spent limits of one `RateLimit` value. If `throttled` and no
/// limit is spent, it is the longest of all.
///
/// Two forms are in use: `"burst";r=0;t=30, "day";r=9;t=3600` (since draft 08) and `limit=10,
/// remaining=0, reset=30`.
fn limits(value: &str, throttled: bool) -> Option<u64> {
    let (mut spent, mut any) = (None, None);
    let (mut remaining, mut reset) = (None, None);
    let mut flush = |remaining: &mut Option<u64>, reset: &mut Option<u64>| {
        let wait = reset.take();
        any = any.max(wait);
        if remaining.take() == Some(0) {
            spent = spent.max(wait);
        }
    };
    for part in split_outside_quotes(value) {
        match part.split_once('=') {
            Some(("r" | "remaining", number)) => remaining = digits(number),
            Some(("t" | "reset", number)) => reset = rounded_up(number),
            Some(_) => {}
            // A bare name opens the next limit.
            None => flush(&mut remaining, &mut reset),
        }
    }
    flush(&mut remaining, &mut reset);
    spent.or(any.filter(|_| throttled))
}

fn split_outside_quotes(value: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let separator = move |c: char| {
        quoted ^= c == '"';
        !quoted && matches!(c, ',' | ';')
    };
    value.split(separator).map(|part| part.trim_matches([' ', '\t']))
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
        assert_eq!(Hint::from_headers(&headers, Class::Ambiguous, now, MAX_RETRY_AFTER).after, after);
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
    fn rate_limit_counts_only_if_nothing_remains() {
        assert_eq!(check(&[("ratelimit", "\"default\";r=0;t=30")]), Some(30_000));
        assert_eq!(check(&[("ratelimit", "\"default\";r=1;t=30")]), None);
        assert_eq!(check(&[("ratelimit", "\"burst\";r=0;t=3, \"day,;\";r=9;t=40")]), Some(3000));
        assert_eq!(check(&[("ratelimit", "limit=10, remaining=0, reset=7")]), Some(7000));
        assert_eq!(check(&[("ratelimit-remaining", "0"), ("ratelimit-reset", "9")]), Some(9000));
        assert_eq!(check(&[("ratelimit-remaining", "2"), ("ratelimit-reset", "9")]), None);
        assert_eq!(check(&[("ratelimit-remaining", "0"), ("ratelimit-reset", "1795478403")]), None, "past the cap");
    }

    #[test]
    fn throttled_response_needs_no_remaining() {
        let lines = headers(&[("ratelimit", "\"a\";r=2;t=9, \"b\";r=0;t=4")]);
        let hint = |class| Hint::from_headers(&lines, class, UNIX_EPOCH, MAX_RETRY_AFTER).after;
        assert_eq!(hint(Class::Throttled), Some(Duration::from_secs(4)), "the one that is used up");
        let lines = headers(&[("ratelimit-reset", "9")]);
        let hint = |class| Hint::from_headers(&lines, class, UNIX_EPOCH, MAX_RETRY_AFTER).after;
        assert_eq!(hint(Class::Throttled), Some(Duration::from_secs(9)));
        assert_eq!(hint(Class::Ambiguous), None);
    }

    #[test]
    fn directives_and_records_are_read() {
        let hint = |lines: &[_]| Hint::from_headers(&headers(lines), Class::Ambiguous, UNIX_EPOCH, MAX_RETRY_AFTER);
        assert_eq!(hint(&[("x-should-retry", "true")]).retry, Some(true));
        assert_eq!(hint(&[("x-should-retry", "true"), ("stripe-should-retry", "false")]).retry, Some(false));
        let hint_of_lines = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-should-retry", HeaderValue::from_static(line));
            }
            Hint::from_headers(&headers, Class::Ambiguous, UNIX_EPOCH, MAX_RETRY_AFTER).retry
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
