//! Header values: the parsers that several headers share.
//!
//! Each is strict, and returns `None` for text outside its grammar. No byte sequence makes this
//! file panic.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue};

use super::date;
use super::units::digits;

/// Returns a field value as text, without the optional white space around it. `None` unless it is
/// visible ASCII.
pub(super) fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().map(|text| text.trim_matches([' ', '\t']))
}

/// Parses a number of units to wait for, rounded up to whole ones, saturating.
pub(super) fn rounded_up(text: &str) -> Option<u64> {
    let Some((whole, fraction)) = text.split_once('.') else { return digits(text) };
    let (whole, _) = (digits(whole)?, digits(fraction)?);
    let is_more = fraction.bytes().any(|digit| digit != b'0');
    Some(whole.saturating_add(u64::from(is_more)))
}

/// Splits a list with parameters at its commas and semicolons.
pub(super) fn split_outside_quotes(value: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let separator = move |c: char| {
        quoted ^= c == '"';
        !quoted && matches!(c, ',' | ';')
    };
    value.split(separator).map(|part| part.trim_matches([' ', '\t']))
}

/// The clock by which a response names a time: its own `Date`, so that the clocks of client and
/// server need not agree. Without a `Date` it is that of the client.
#[derive(Clone, Copy)]
pub(super) struct ClockOfAnswer<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) now: SystemTime,
}

impl ClockOfAnswer<'_> {
    /// Returns the client's time, in seconds since 1970.
    pub(super) fn ours(&self) -> i64 {
        match self.now.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
        }
    }

    /// Returns the wait until a time in seconds since 1970. It is zero if that is over.
    pub(super) fn until(&self, time: i64) -> Duration {
        let ours = self.ours();
        let theirs = time_of_answer(self.headers, ours).unwrap_or(ours);
        Duration::from_secs(u64::try_from(time.saturating_sub(theirs)).unwrap_or(0))
    }
}

/// Returns the server's time of the response (RFC 9110 §6.6.1). A cache adds the time for which it
/// has kept the response (RFC 9111 §5.1).
fn time_of_answer(headers: &HeaderMap, now: i64) -> Option<i64> {
    let date = headers.get("date").and_then(text).and_then(|text| date::parse(text, now))?;
    let age = headers.get("age").and_then(text).and_then(digits).unwrap_or(0);
    Some(date.saturating_add(i64::try_from(age).unwrap_or(i64::MAX)))
}
