//! Quotas: how long a rate limit stays closed, in the dialects of the APIs.
//!
//! APIs send these headers on most responses, also where plenty remains. So a quota never makes a
//! class of its own, with one exception (`Class::of_response`). It is the wait of a response that
//! was refused already, and only if nothing remains. The cases with their sources are in
//! `tests/cases/quota.json`.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::field::{ClockOfAnswer, rounded_up, split_outside_quotes, text};
use super::units::digits;

/// What remains, and when it is reset.
const PAIRS: [(&str, &str); 5] = [
    ("ratelimit-remaining", "ratelimit-reset"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("x-rate-limit-remaining", "x-rate-limit-reset"),
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
];

/// From this number on a reset is a time, in seconds since 1970: September 2001. As a wait it would
/// be 31 years.
const FIRST_TIME: u64 = 1_000_000_000;
/// From this number on it is a time in milliseconds: March 1973. In seconds it would be the year
/// 5138.
const FIRST_TIME_IN_MS: u64 = 100_000_000_000;
/// A longer wait is a number that was misread: no API counts a quota by more than a year.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// The quotas of one response.
#[derive(Debug, Default)]
pub(super) struct Quota {
    /// The longest wait for a quota of which nothing remains.
    spent: Option<Duration>,
    /// The longest wait for a quota that does not say what remains.
    silent: Option<Duration>,
}

impl Quota {
    /// Reads the headers of a response at the time `now`.
    pub(super) fn read(headers: &HeaderMap, now: SystemTime) -> Self {
        let (mut quota, clock) = (Self::default(), ClockOfAnswer { headers, now });
        for value in headers.get_all("ratelimit").iter().filter_map(text) {
            quota.add_list(value, clock);
        }
        for (remaining, reset) in PAIRS {
            let field = |name: &str| headers.get(name).and_then(text);
            quota.add(field(remaining).and_then(remains), field(reset).and_then(|reset| wait(reset, clock)));
        }
        quota
    }

    /// Returns the wait until the quotas are reset of which nothing remains.
    pub(super) fn spent_for(&self) -> Option<Duration> {
        self.spent
    }

    /// Returns the wait until the quotas are reset that have refused a response. If none is spent,
    /// it may be one that does not say what remains.
    pub(super) fn closed_for(&self) -> Option<Duration> {
        self.spent.or(self.silent)
    }

    fn add(&mut self, remaining: Option<u64>, wait: Option<Duration>) {
        match remaining {
            Some(0) => self.spent = self.spent.max(wait),
            Some(_) => {}
            None => self.silent = self.silent.max(wait),
        }
    }

    /// Adds the quotas of a `RateLimit` value. Two forms are in use: `"burst";r=0;t=30,
    /// "day";r=9;t=3600` (since draft 08) and `limit=10, remaining=0, reset=30`.
    fn add_list(&mut self, value: &str, clock: ClockOfAnswer<'_>) {
        let (mut remaining, mut reset) = (None, None);
        for part in split_outside_quotes(value) {
            match part.split_once('=') {
                Some(("r" | "remaining", number)) => remaining = digits(number),
                Some(("t" | "reset", time)) => reset = wait(time, clock),
                Some(_) => {}
                // A bare name opens the next quota.
                None => self.add(remaining.take(), reset.take()),
            }
        }
        self.add(remaining, reset);
    }
}

/// Parses what remains: a number, perhaps with the parameters of its window (`76;w=21600`).
fn remains(text: &str) -> Option<u64> {
    digits(text.split(';').next()?.trim_end())
}

/// Parses a reset: seconds, a time, or a duration with units.
fn wait(text: &str, clock: ClockOfAnswer<'_>) -> Option<Duration> {
    let until = |seconds| i64::try_from(seconds).ok().map(|time| clock.until(time));
    let wait = match rounded_up(text) {
        None => with_units(text)?,
        Some(seconds) if seconds < FIRST_TIME => Duration::from_secs(seconds),
        Some(time) if time < FIRST_TIME_IN_MS => until(time)?,
        Some(time) => until(time.div_ceil(1000))?,
    };
    (!wait.is_zero() && wait <= LONGEST).then_some(wait)
}

/// Parses a duration as Go writes it: `6m0s`, `1h2m3.5s`, `20ms`.
fn with_units(text: &str) -> Option<Duration> {
    let (mut rest, mut sum) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| c.is_ascii_alphabetic())?);
        let (unit, after) = after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
        sum = sum.checked_add(amount(number, nanoseconds(unit)?)?)?;
        rest = after;
    }
    Some(sum)
}

fn nanoseconds(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        "us" => 1000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// Multiplies a number, which may have a fraction, by a unit in nanoseconds.
fn amount(number: &str, unit: u64) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    // Nine digits are as exact as a `Duration` is.
    let fraction = fraction.get(..9).unwrap_or(fraction);
    let scale = u128::from(10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?);
    let part = u128::from(digits(fraction)?) * u128::from(unit);
    let sum = (u128::from(digits(whole)?) * u128::from(unit)).checked_add(part.div_ceil(scale))?;
    Some(Duration::from_nanos(u64::try_from(sum).ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use http::HeaderValue;

    use super::*;

    fn check(text: &str) -> Option<u128> {
        let headers = HeaderMap::new();
        let clock = ClockOfAnswer { headers: &headers, now: UNIX_EPOCH + Duration::from_secs(1_800_000_000) };
        wait(text, clock).map(|wait| wait.as_millis())
    }

    #[test]
    fn reset_is_seconds_time_or_duration() {
        for (text, milliseconds) in [
            ("30", 30_000),
            ("0.25", 1000),
            ("999999", 999_999_000),
            ("1800000030", 30_000),
            ("1800000029.5", 30_000),
            ("1800000030000", 30_000),
            ("1800000029001", 30_000),
            ("1s", 1000),
            ("6m0s", 360_000),
            ("7.66s", 7660),
            ("1h2m3.5s", 3_723_500),
            ("12ms", 12),
            ("2m59.56s", 179_560),
            ("0h0m2s", 2000),
            ("1.0000000000000000000000000001s", 1000),
        ] {
            assert_eq!(check(text), Some(milliseconds), "{text}");
        }
    }

    #[test]
    fn text_outside_the_dialects_is_no_reset() {
        for text in [
            "",
            " ",
            "0",
            "0s",
            "-1",
            "+1",
            "1e3",
            "inf",
            "nan",
            "NaN",
            "infinity",
            "1.5.2",
            ".5",
            "5.",
            "s",
            "1 s",
            "1s ",
            "1S",
            "1d",
            "6m 0s",
            "1s2",
            "-1s",
            "+1s",
            "1.s",
            ".5s",
            "m5",
            "1ss",
            "ms",
            "1e3s",
            "infs",
            "1799999999",
            "1799999999000",
            "1900000000",
            "31622401",
            "18446744073709551616",
            "99999999999999999999s",
            "99999999999999999999999999999999999999999999h",
            "Sat, 01 Jan 2028 00:00:00 GMT",
            "2028-01-01T00:00:00Z",
        ] {
            assert_eq!(check(text), None, "{text:?}");
        }
    }

    #[test]
    fn any_quota_is_read_without_panic() {
        let parts =
            ["0", "1", "-", "+", ".", "9999999999999999999", "e", "inf", "nan", "h", "ms", "s", "=", ";", "\"", ","];
        let clocks = [UNIX_EPOCH, UNIX_EPOCH - Duration::from_secs(u32::MAX.into())];
        for first in parts {
            for second in parts {
                for third in parts {
                    let text = format!("{first}{second}{third}");
                    let list = format!("\"a\";r=0;t={text}");
                    let mut headers = HeaderMap::new();
                    for (name, text) in
                        [("x-ratelimit-remaining", &text), ("x-ratelimit-reset", &text), ("ratelimit", &list)]
                    {
                        headers.insert(name, HeaderValue::from_str(text).unwrap());
                    }
                    for now in clocks {
                        let quota = Quota::read(&headers, now);
                        assert!(quota.spent_for().is_none_or(|wait| !wait.is_zero() && wait <= LONGEST), "{text}");
                        assert!(quota.closed_for().is_none_or(|wait| !wait.is_zero() && wait <= LONGEST), "{text}");
                    }
                }
            }
        }
    }
}
