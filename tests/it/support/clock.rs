//! Time for tests: instants for the pure core, and a calendar that counts day by day.
//!
//! The calendar is slow and simple on purpose. It shares no formula with the library's, so each can
//! check the other.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Returns an instant to count from. The policy gets the time as an argument, so its tests need
/// only an origin.
#[allow(clippy::disallowed_methods, reason = "the one place where tests of the policy read the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Returns the seconds from 1970-01-01T00:00:00Z to a moment of the Gregorian calendar. A day past
/// the end of its month continues into the next month.
pub(crate) fn seconds(year: i64, month: i64, day: i64, second_of_day: i64) -> i64 {
    let years: i64 =
        if year >= 1970 { (1970..year).map(days_in_year).sum() } else { -(year..1970).map(days_in_year).sum::<i64>() };
    let months: i64 = (1..month).map(|month| days_in_month(year, month)).sum();
    (years + months + day - 1) * 86_400 + second_of_day
}

pub(crate) fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 => days_in_year(year) - 337,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn days_in_year(year: i64) -> i64 {
    if (year % 4 == 0 && year % 100 != 0) || year % 400 == 0 { 366 } else { 365 }
}

/// Returns the time `seconds` after 1970-01-01T00:00:00Z, or before it if negative.
pub(crate) fn wall(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

/// Parses `1994-11-06T08:49:07Z`, the only form in the tables.
pub(crate) fn utc(text: &str) -> SystemTime {
    let numbers: Vec<i64> =
        text.trim_end_matches('Z').split(['-', 'T', ':']).map(|part| part.parse().unwrap()).collect();
    let [year, month, day, hour, minute, second] = numbers[..] else { panic!("not a UTC time: {text}") };
    wall(seconds(year, month, day, hour * 3600 + minute * 60 + second))
}
