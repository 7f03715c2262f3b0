//! Small readings and conversions that client, server and stores share.

use std::time::Duration;

/// The longest time that is added to a clock. `Instant` and the timers of tokio and reqwest panic
/// where a sum overflows, and nobody waits for a century.
#[doc(hidden)]
pub const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Returns the whole milliseconds of `time`; what does not fit is the largest number.
#[inline]
#[doc(hidden)]
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Parses ASCII digits and nothing else: `str::parse` would take a sign. A number that does not fit
/// is the largest (RFC 9111 §1.2.2).
#[doc(hidden)]
pub fn digits(text: &str) -> Option<u64> {
    let all_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digits_are_a_number_and_saturate() {
        assert_eq!((digits("0"), digits("007"), digits("42")), (Some(0), Some(7), Some(42)));
        assert_eq!(digits("18446744073709551616"), Some(u64::MAX));
        for text in ["", "+1", "-1", " 1", "1 ", "1.0", "1e3", "\u{661}"] {
            assert_eq!(digits(text), None, "{text:?}");
        }
    }

    #[test]
    fn milliseconds_are_whole_and_saturate() {
        assert_eq!(milliseconds(Duration::from_micros(1999)), 1);
        assert_eq!(milliseconds(Duration::MAX), u64::MAX);
    }
}
