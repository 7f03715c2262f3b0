//! Header values: arbitrary bytes, and valid and broken HTTP-dates.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use proptest::collection::vec;
use proptest::prelude::*;
use steadfast::policy::{Class, Hint, parse_retry_hint};

use super::cases;
use super::scenario::{classes, durations};
use crate::support::clock;

mod date;

/// Every header that the client reads.
const NAMES: [&str; 16] = [
    "retry-after",
    "retry-after-ms",
    "x-ms-retry-after-ms",
    "ratelimit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "date",
    "age",
    "x-should-retry",
    "stripe-should-retry",
    "idempotent-replayed",
    "idempotency-status",
];

/// Bytes that a header can carry, from noise to almost valid.
fn values() -> impl Strategy<Value = HeaderValue> {
    let bytes = prop_oneof![
        2 => vec(any::<u8>(), 0..40),
        2 => "[ \t]?[0-9]{0,30}[ \t]?".prop_map(String::into_bytes),
        1 => "[+-]?[0-9]{1,3}[.e_s,]?[0-9]{0,3}".prop_map(String::into_bytes),
        1 => "(0|inf|nan|[0-9]{10}|[0-9]{13}|([0-9]{1,20}(\\.[0-9]{0,12})?(h|m|s|ms|us|ns|d)){1,4})".prop_map(String::into_bytes),
        1 => "(TRUE|true|False|false|maybe)".prop_map(String::into_bytes),
        1 => "(stored|replayed|unknown|in-progress)(;retention=[0-9]{1,3})?(;scope=\"/[a-z\";]{0,4}\")?".prop_map(String::into_bytes),
        1 => "(\"[a-z;,=\\\\]{0,3}\"(;r=[0-9]?)?(;t=[0-9]{0,2})?(, )?){0,3}".prop_map(String::into_bytes),
        1 => date::texts().prop_map(|(text, _)| text.into_bytes()),
    ];
    bytes.prop_filter_map("not a header value", |bytes| HeaderValue::from_bytes(&bytes).ok())
}

fn headers() -> impl Strategy<Value = HeaderMap> {
    let line = (prop::sample::select(&NAMES[..]), values());
    vec(line, 0..6).prop_map(|lines| {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), value);
        }
        headers
    })
}

/// Any time that a clock can show, including times before 1970 and the ends of its range.
fn clocks() -> impl Strategy<Value = SystemTime> {
    let since = prop_oneof![
        (0_u64..6_000_000_000).prop_map(Duration::from_secs),
        durations(),
        Just(i64::MAX as u64).prop_map(Duration::from_secs)
    ];
    (since, any::<bool>()).prop_map(|(since, past)| {
        let moved = if past { UNIX_EPOCH.checked_sub(since) } else { UNIX_EPOCH.checked_add(since) };
        moved.unwrap_or(UNIX_EPOCH)
    })
}

/// Returns the wait that a `Retry-After` value asks for, by the grammar. Digits saturate, and a
/// fraction is rounded up; a date is also valid.
fn asked_for(value: &HeaderValue, now: i64) -> Option<Duration> {
    let text = std::str::from_utf8(value.as_bytes()).ok()?.trim_matches([' ', '\t']);
    let is_number = |text: &str| !text.is_empty() && !text.contains(|c: char| !c.is_ascii_digit());
    let parts: Vec<_> = text.split('.').collect();
    if parts.len() > 2 || !parts.iter().all(|part| is_number(part)) {
        let date = date::parse(text, now)?;
        return Some(Duration::from_secs(u64::try_from(date - now).unwrap_or(0)));
    }
    let digit = |number: u64, digit: u8| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    let whole = parts[0].bytes().fold(0, digit);
    let has_more = parts.get(1).is_some_and(|fraction| fraction.contains(|c: char| c != '0'));
    Some(Duration::from_secs(if has_more { whole.saturating_add(1) } else { whole }))
}

fn words<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(|text| text.trim_matches([' ', '\t']))
}

proptest! {
    #![proptest_config(cases(1024))]

    #[test]
    fn no_header_panics_and_fields_have_sources(
        headers in headers(), class in classes(), now in clocks(), status in 200_u16..600,
    ) {
        let hint = Hint::from_headers(&headers, class, now);
        let has = |names: &[&str]| names.iter().any(|name| headers.contains_key(*name));
        let may_wait = has(&NAMES[..3]) || (class == Class::Throttled && has(&NAMES[3..10]));
        prop_assert!(may_wait || hint.after.is_none(), "{hint:?}");
        // Headers change the class of two statuses alone, and to nothing but throttled.
        let status = StatusCode::from_u16(status).unwrap();
        let (by_status, by_headers) = (Class::of_status(status), Class::of_response(status, &headers, now));
        let may_change = matches!(status.as_u16(), 403 | 413) && by_headers == Class::Throttled;
        prop_assert!(by_headers == by_status || may_change, "{status}: {by_headers:?}");
        let said = |word: &str| {
            NAMES[12..14].iter().flat_map(|name| words(&headers, name)).any(|said| said.eq_ignore_ascii_case(word))
        };
        let expected = if said("false") { Some(false) } else { said("true").then_some(true) };
        prop_assert_eq!(hint.retry, expected);
        let recorded = |word: &str| words(&headers, "idempotency-status").any(|said| said.starts_with(word));
        let replayed = words(&headers, "idempotent-replayed").any(|said| said.eq_ignore_ascii_case("true"));
        prop_assert!(!hint.replayed || replayed || recorded("stored") || recorded("replayed"));
        prop_assert!(!hint.outcome_unknown || recorded("unknown"));
        prop_assert!(!hint.misdirected, "no header says so");
        // Both readers agree, except that one knows the class.
        let after = |class| Hint::from_headers(&headers, class, now).after;
        let parsed = parse_retry_hint(&headers, now);
        prop_assert!(after(Class::Ambiguous).is_none_or(|wait| parsed == Some(wait)));
        prop_assert!(parsed.is_none_or(|wait| after(Class::Throttled) == Some(wait)));
    }

    #[test]
    fn invalid_retry_after_gives_no_hint(values in vec(values(), 1..3), now in -1_i64..6_000_000_000) {
        let mut headers = HeaderMap::new();
        for value in &values {
            headers.append("retry-after", value.clone());
        }
        let expected = values.iter().filter_map(|value| asked_for(value, now)).max();
        prop_assert_eq!(parse_retry_hint(&headers, clock::wall(now)), expected, "{:?}", headers);
    }

    #[test]
    fn date_parser_agrees_with_grammar((text, now) in date::texts()) {
        let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, HeaderValue::try_from(&text).unwrap())]);
        let expected = asked_for(&headers["retry-after"], now);
        prop_assert_eq!(parse_retry_hint(&headers, clock::wall(now)), expected, "{:?} at {}", text, now);
    }

    /// The difference of the two clocks does not matter: the wait counts from the response's own
    /// `Date`.
    #[test]
    fn wait_until_date_ignores_clock_difference(
        ours in clocks(), theirs in 0_i64..=date::LAST_SECOND, later in 0_i64..1 << 32, age in 0_i64..1 << 32, form in 0_usize..3,
    ) {
        let until = (theirs + later).min(date::LAST_SECOND);
        let write = |second| httpdate::fmt_http_date(clock::wall(second));
        // A two-digit year is read by the client's clock, which may be in another century.
        let form = if form == 1 { 0 } else { form };
        let lines = [
            ("date", write(theirs)),
            ("age", age.to_string()),
            ("retry-after", date::forms(&write(until))[form].clone()),
        ];
        let line = |(name, value): (&'static str, String)| (HeaderName::from_static(name), value.try_into().unwrap());
        let headers: HeaderMap = lines.into_iter().map(line).collect();
        let expected = u64::try_from(until - theirs - age).unwrap_or(0);
        prop_assert_eq!(parse_retry_hint(&headers, ours), Some(Duration::from_secs(expected)));
    }

    #[test]
    fn every_second_round_trips_in_three_forms(second in 0_i64..=date::LAST_SECOND, before in 0_i64..1 << 40) {
        let imf = httpdate::fmt_http_date(clock::wall(second));
        let [_, rfc850, asctime] = date::forms(&imf);
        // A third parser agrees with the other two on these texts.
        prop_assert_eq!(httpdate::parse_http_date(&imf).unwrap(), clock::wall(second));
        prop_assert_eq!(httpdate::parse_http_date(&asctime).unwrap(), clock::wall(second));
        let wait = |text: &str, now: i64| {
            let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, HeaderValue::try_from(text).unwrap())]);
            parse_retry_hint(&headers, clock::wall(now)).map(|wait| wait.as_secs() as i64)
        };
        for text in [&imf, &asctime] {
            prop_assert_eq!(wait(text, second - before), Some(before), "{}", text);
            prop_assert_eq!(wait(text, second + before), Some(0), "{}: the past", text);
        }
        // A two-digit year is right if it is read less than 50 years before.
        let near = before % (49 * 365 * 86_400);
        prop_assert_eq!(wait(&rfc850, second - near), Some(near), "{}", rfc850);
        prop_assert_eq!(wait(&rfc850, second + near), Some(0), "{}: the past", rfc850);
    }
}
