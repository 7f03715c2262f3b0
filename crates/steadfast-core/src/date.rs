//! HTTP-date in its three forms (RFC 9110 §5.6.7), strictly.
//!
//! Servers still send all three in `Retry-After`. Other parsers reject the leap second that the
//! grammar allows, accept the 31st of February, or read a two-digit year with a fixed pivot. The RFC
//! says to read it as the past if it would lie more than 50 years ahead.

use super::units;

/// Parses an HTTP-date, read at the time `now`. Both are seconds since 1970-01-01T00:00:00Z.
pub(super) fn parse(text: &str, now: i64) -> Option<i64> {
    imf_fixdate(text).or_else(|| rfc850(text, now)).or_else(|| asctime(text))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(text: &str) -> Option<i64> {
    let (day_name, rest) = text.split_once(", ")?;
    is_one_of(day_name, &SHORT_DAYS)?;
    let mut parts = rest.split(' ');
    let day = digits(parts.next()?, 2)?;
    let month = month(parts.next()?)?;
    let year = digits(parts.next()?, 4)?;
    let second_of_day = time_of_day(parts.next()?)?;
    gmt(parts)?;
    seconds(year, month, day, second_of_day)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850(text: &str, now: i64) -> Option<i64> {
    let (day_name, rest) = text.split_once(", ")?;
    is_one_of(day_name, &LONG_DAYS)?;
    let mut parts = rest.split(' ');
    let mut date = parts.next()?.split('-');
    let day = digits(date.next()?, 2)?;
    let month = month(date.next()?)?;
    let short_year = digits(date.next()?, 2)?;
    if date.next().is_some() {
        return None;
    }
    let second_of_day = time_of_day(parts.next()?)?;
    gmt(parts)?;
    // "a timestamp that appears to be more than 50 years in the future" is the past with the same last
    // two digits: the latest year with these digits that is not. In whole days, which no clock overflows.
    let at_most_50_years_ahead = |year: &i64| {
        let fifty_years_before = (days_from_epoch(*year - 50, month, day), second_of_day);
        fifty_years_before <= (now.div_euclid(86_400), now.rem_euclid(86_400))
    };
    let this_century = year_of(now).div_euclid(100) * 100;
    let years = [this_century + 100, this_century, this_century - 100].map(|century| century + short_year);
    seconds(years.into_iter().find(at_most_50_years_ahead)?, month, day, second_of_day)
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(text: &str) -> Option<i64> {
    let (day_name, rest) = text.split_once(' ')?;
    is_one_of(day_name, &SHORT_DAYS)?;
    let (month_name, rest) = rest.split_once(' ')?;
    let month = month(month_name)?;
    // The day is two digits, or a space and one digit.
    let (day, rest) = rest.split_at_checked(2)?;
    let day = match day.strip_prefix(' ') {
        Some(one) => digits(one, 1)?,
        None => digits(day, 2)?,
    };
    let (time, year) = rest.strip_prefix(' ')?.split_once(' ')?;
    seconds(digits(year, 4)?, month, day, time_of_day(time)?)
}

const SHORT_DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const LONG_DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

fn is_one_of(name: &str, names: &[&str]) -> Option<()> {
    names.contains(&name).then_some(())
}

fn month(name: &str) -> Option<i64> {
    (1..).zip(MONTHS).find_map(|(number, month)| (month == name).then_some(number))
}

/// Parses exactly `length` ASCII digits.
fn digits(text: &str, length: usize) -> Option<i64> {
    units::digits(text).filter(|_| text.len() == length).and_then(|number| i64::try_from(number).ok())
}

/// `08:49:37`; the second may be 60 (a leap second).
fn time_of_day(text: &str) -> Option<i64> {
    let mut parts = text.split(':');
    let (hour, minute, second) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let valid = parts.next().is_none() && hour < 24 && minute < 60 && second <= 60;
    valid.then_some(hour * 3600 + minute * 60 + second)
}

fn gmt<'a>(mut parts: impl Iterator<Item = &'a str>) -> Option<()> {
    (parts.next()? == "GMT" && parts.next().is_none()).then_some(())
}

fn seconds(year: i64, month: i64, day: i64, second_of_day: i64) -> Option<i64> {
    let days = (1..=days_in(year, month)).contains(&day).then(|| days_from_epoch(year, month, day))?;
    days.checked_mul(86_400)?.checked_add(second_of_day)
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Returns the days from 1970-01-01 in the proleptic Gregorian calendar. Years are counted from March,
/// so that the leap day is the last of its year and the days before a month are a straight line.
fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    year * 365 + leap_days + day_of_year - 719_468
}

/// Returns the year of `now`, to within a day at its turn, which is enough to find the century.
fn year_of(now: i64) -> i64 {
    let days_per_400_years = 146_097;
    1970 + (now.div_euclid(86_400) * 400).div_euclid(days_per_400_years)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_2026: i64 = 1_795_478_400; // 2026-11-24T00:00:00Z

    fn check(text: &str) -> Option<i64> {
        parse(text, IN_2026)
    }

    #[test]
    fn three_date_forms_name_same_second() {
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(check(text), Some(784_111_777), "{text}");
        }
    }

    #[test]
    fn known_instants_are_parsed() {
        assert_eq!(check("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(check("Wed, 31 Dec 1969 23:59:59 GMT"), Some(-1));
        assert_eq!(check("Thu, 29 Feb 2024 12:00:00 GMT"), Some(1_709_208_000));
        assert_eq!(check("Sat, 31 Dec 2016 23:59:60 GMT"), Some(1_483_228_800), "a leap second is the next second");
        assert_eq!(check("Fri, 31 Dec 9999 23:59:59 GMT"), Some(253_402_300_799));
    }

    #[test]
    fn two_digit_years_turn_at_fifty_years() {
        let year = |short: &str| check(&format!("Monday, 01-Jun-{short} 00:00:00 GMT")).map(year_of);
        assert_eq!(year("94"), Some(1994));
        assert_eq!(year("70"), Some(2070));
        assert_eq!(year("76"), Some(2076));
        assert_eq!(year("77"), Some(1977));
        // The turn is a moment, not a year: fifty years to the second from now.
        let year = |day: &str| check(&format!("Monday, {day}-76 00:00:00 GMT")).map(year_of);
        assert_eq!(year("24-Nov"), Some(2076));
        assert_eq!(year("25-Nov"), Some(1976));
    }

    #[test]
    fn extreme_clocks_do_not_overflow() {
        for now in [i64::MIN, i64::MIN + 1, -1, i64::MAX - 1, i64::MAX] {
            for year in 0..100 {
                let _read_without_panic = parse(&format!("Sunday, 06-Nov-{year:02} 08:49:37 GMT"), now);
            }
        }
    }

    #[test]
    fn text_outside_grammar_is_refused() {
        for text in [
            "",
            "Sun, 31 Feb 2021 00:00:00 GMT",
            "Sun, 29 Feb 2023 00:00:00 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Zun, 06 Nov 1994 08:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:49:61 GMT",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 GMT ",
            "Sun, 06 nov 1994 08:49:37 GMT",
            "Sun, +6 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 100000 08:49:37 GMT",
            "Sun Nov 06 1994 08:49:37 GMT",
            "Sun Nov é 08:49:37 1994",
        ] {
            assert_eq!(check(text), None, "{text:?}");
        }
    }
}
