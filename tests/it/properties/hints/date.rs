//! HTTP-dates (RFC 9110 §5.6.7) as text. They are made, broken, and read by a parser that takes
//! fields at fixed places and writes them out again.

use proptest::prelude::*;
use proptest::sample::Index;

use crate::support::clock;

const SHORT_DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const LONG_DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// 9999-12-31T23:59:59Z.
pub(super) const LAST_SECOND: i64 = 253_402_300_799;

/// Returns all three forms of the date, of which `imf` is the first: `Sun, 06 Nov 1994 08:49:37
/// GMT`.
pub(super) fn forms(imf: &str) -> [String; 3] {
    let (weekday, day, month, year, time) = (&imf[..3], &imf[5..7], &imf[8..11], &imf[12..16], &imf[17..25]);
    let long = LONG_DAYS.iter().find(|long| long.starts_with(weekday)).expect("a day of the week");
    let padded = day.strip_prefix('0').map_or(day.to_owned(), |digit| format!(" {digit}"));
    [
        imf.to_owned(),
        format!("{long}, {day}-{month}-{} {time} GMT", &year[2..]),
        format!("{weekday} {month} {padded} {time} {year}"),
    ]
}

/// Strategy for a date in one of the forms, valid or with one error, and a time at which to read
/// it.
pub(super) fn texts() -> impl Strategy<Value = (String, i64)> {
    // Near the fifty years at which two-digit years change their century, and anywhere.
    let years = prop_oneof![49_i64..=51, -51_i64..=-49, -120_i64..120];
    let now = 0_i64..6_000_000_000;
    let anywhere = (now, years, -200_i64 * 86_400..200 * 86_400).prop_map(|(now, years, seconds)| {
        let second = now + years * 31_556_952 + seconds;
        (httpdate::fmt_http_date(clock::wall(second.clamp(0, LAST_SECOND))), now)
    });
    let fields = proptest::option::weighted(0.4, fields());
    (anywhere, fields, 0_usize..3, damage()).prop_map(|((imf, now), fields, form, damage)| {
        let imf = fields.map_or(imf, |fields| format!("Sun, {fields} GMT"));
        let mut text = forms(&imf)[form].clone();
        match damage {
            Damage::None => {}
            Damage::Replace(at, removed, put) => {
                let at = at.index(text.len() + 1);
                text.replace_range(at..(at + removed).min(text.len()), &put);
            }
            Damage::Truncate(at) => text.truncate(at.index(text.len())),
            Damage::End(removed, put) => text.replace_range(text.len() - removed.., put),
        }
        (text, now)
    })
}

#[derive(Clone, Debug)]
enum Damage {
    None,
    /// Position, number of characters removed, replacement.
    Replace(Index, usize, String),
    Truncate(Index),
    /// Number of characters removed at the end, replacement.
    End(usize, &'static str),
}

fn damage() -> impl Strategy<Value = Damage> {
    let endings = [(0, " "), (0, " GMT"), (0, " x"), (0, "0"), (3, "UTC"), (3, "gmt"), (3, "+00"), (4, "")];
    prop_oneof![
        3 => Just(Damage::None),
        4 => (any::<Index>(), 0_usize..3, "[0-9A-Za-z :,+-]?[0-9 ]?").prop_map(|(at, n, put)| Damage::Replace(at, n, put)),
        1 => any::<Index>().prop_map(Damage::Truncate),
        1 => prop::sample::select(endings.to_vec()).prop_map(|(removed, put)| Damage::End(removed, put)),
    ]
}

/// Strategy for `06 Nov 1994 08:49:37` with fields at and beyond their limits.
fn fields() -> impl Strategy<Value = String> {
    let day = prop_oneof![27_u32..=32, Just(0), 1_u32..=31];
    let date = (day, prop::sample::select(&MONTHS[..]), prop_oneof![1890_u32..2110, 0_u32..=9999]);
    // Three of these years have a 29th of February.
    let leap_day = (28_u32..=30, Just("Feb"), prop::sample::select(vec![1900, 2000, 2023, 2024, 2096, 2100]));
    let time = (20_u32..=25, 57_u32..=61, 57_u32..=61);
    (prop_oneof![3 => date, 1 => leap_day], time).prop_map(|((day, month, year), (hour, minute, second))| {
        format!("{day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02}")
    })
}

/// Returns the second that `text` names when it is read at `now`. Returns `None` unless its fields,
/// written out again, give `text`.
pub(super) fn parse(text: &str, now: i64) -> Option<i64> {
    let (weekday, rest) = text.split_once(' ')?;
    let fields = match (weekday.strip_suffix(','), rest.is_ascii()) {
        (Some(day), true) if SHORT_DAYS.contains(&day) && rest.len() == 24 => Fields::imf(rest)?,
        (Some(day), true) if LONG_DAYS.contains(&day) && rest.len() == 22 => Fields::rfc850(rest, now)?,
        (None, true) if SHORT_DAYS.contains(&weekday) && rest.len() == 20 => Fields::asctime(rest)?,
        _ => return None,
    };
    let valid = (1..=clock::days_in_month(fields.year, fields.month)).contains(&fields.day);
    valid.then(|| fields.seconds(fields.year))
}

struct Fields {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Fields {
    /// `06 Nov 1994 08:49:37 GMT`
    fn imf(text: &str) -> Option<Self> {
        let fields = Self::at(number(&text[7..11])?, &text[3..6], &text[..2], &text[12..20])?;
        (format!("{:02} {} {:04} {} GMT", fields.day, fields.name(), fields.year, fields.time()) == text)
            .then_some(fields)
    }

    /// `06-Nov-94 08:49:37 GMT`: the latest year with these digits that is at most fifty years
    /// ahead.
    fn rfc850(text: &str, now: i64) -> Option<Self> {
        let mut fields = Self::at(number(&text[7..9])?, &text[3..6], &text[..2], &text[10..18])?;
        if format!("{:02}-{}-{:02} {} GMT", fields.day, fields.name(), fields.year, fields.time()) != text {
            return None;
        }
        let not_too_far = |year: &i64| fields.seconds(year - 50) <= now;
        fields.year = (1800..2400).rev().filter(|year| year % 100 == fields.year).find(not_too_far)?;
        Some(fields)
    }

    /// `Nov  6 08:49:37 1994`; a day below ten may have a zero in front.
    fn asctime(text: &str) -> Option<Self> {
        let fields = Self::at(number(&text[16..])?, &text[..3], text[4..6].trim_start(), &text[7..15])?;
        let (name, day, time, year) = (fields.name(), fields.day, fields.time(), fields.year);
        let written = [format!("{name} {day:2} {time} {year:04}"), format!("{name} {day:02} {time} {year:04}")];
        written.iter().any(|written| written == text).then_some(fields)
    }

    fn at(year: i64, month: &str, day: &str, time: &str) -> Option<Self> {
        let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
        let (hour, minute, second) = (number(&time[..2])?, number(&time[3..5])?, number(&time[6..])?);
        let valid = hour < 24 && minute < 60 && second <= 60;
        valid.then_some(Self { year, month, day: number(day)?, hour, minute, second })
    }

    fn name(&self) -> &'static str {
        MONTHS[self.month as usize - 1]
    }

    fn time(&self) -> String {
        format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second)
    }

    /// Returns the seconds with another year. A leap second is the next second.
    fn seconds(&self, year: i64) -> i64 {
        clock::seconds(year, self.month, self.day, self.hour * 3600 + self.minute * 60 + self.second)
    }
}

/// Parses digits only; a sign is no digit.
fn number(text: &str) -> Option<i64> {
    text.parse::<u32>().ok().map(i64::from)
}
