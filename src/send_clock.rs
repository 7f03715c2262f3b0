//! The time limit of an attempt while its body is sent.
//!
//! An upload that moves is healthy, however long it takes. So while the transport takes a body, the
//! attempt timeout counts from the last part that it has taken, and not from the start. It limits a
//! pause, and not the upload. Once the whole body has been taken, the same rule limits the wait for
//! the response. A rate of the user's takes the place of the pause.
//!
//! A request without a body, or with a short one, never gets here: its timer fires at the end of
//! the attempt.

use std::fmt;
use std::time::{Duration, Instant};

use super::send_probe::{SendProbe, Sent};
use crate::clock::{self, SharedTimer};
use crate::error::{Error, Result};
use crate::journal::ShortDuration;
use crate::policy::Failure;

/// The lowest rate of an upload: `bytes` in each `per`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UploadRate {
    pub(crate) bytes: u64,
    pub(crate) per: Duration,
}

impl UploadRate {
    pub(super) fn check(self) -> Result<()> {
        if self.bytes == 0 || self.per.is_zero() {
            return Err(Error::build("min_upload_rate", "zero bytes, or zero time, is no rate"));
        }
        Ok(())
    }
}

/// The limits of one attempt while its body is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendClock<'a> {
    pub(super) attempt_timeout: Option<Duration>,
    pub(super) rate: Option<&'a UploadRate>,
    /// The end of the operation.
    pub(super) deadline: Option<Instant>,
}

/// The time in which an upload must keep its rate.
#[derive(Debug)]
pub(super) struct Window {
    /// The end of an attempt whose body is not taken at all.
    until: Option<Instant>,
    since: Instant,
    /// Bytes that were taken before the window.
    before: u64,
}

/// Until when an attempt goes on, or why it ends.
type Until = std::result::Result<Option<Instant>, TooLate>;

/// Why an attempt ends without a response.
#[derive(Debug)]
pub(super) enum TooLate {
    /// No response arrived in time.
    NoResponse,
    /// The transport was still taking the body.
    Sending { failure: Failure, line: String },
}

impl SendClock<'_> {
    /// Starts the clock of a request. Returns its first window, if there is a rate to check.
    // Boxed, because every operation in flight has room for it.
    pub(super) fn start(&self, probe: Option<&SendProbe>, until: &mut SharedTimer<'_>) -> Option<Box<Window>> {
        let rate = self.rate.filter(|_| probe.is_some_and(SendProbe::is_long))?;
        let (end, now) = (until.at(), clock::now());
        until.set(clock::earlier(end, now.checked_add(rate.per)));
        Some(Box::new(Window { until: end, since: now, before: 0 }))
    }

    /// Returns until when to go on, after the timer has fired.
    ///
    /// # Errors
    ///
    /// The attempt is over.
    pub(super) fn go_on(&self, probe: Option<&SendProbe>, window: Option<&mut Window>) -> Until {
        self.go_on_at(probe.and_then(SendProbe::sent), window, clock::now())
    }

    /// Moves the end of the attempt once the head of the response has arrived.
    pub(super) fn answered(&self, probe: Option<&SendProbe>, window: Option<&Window>, until: &mut SharedTimer<'_>) {
        if let Some(sent) = probe.and_then(SendProbe::sent) {
            let since = if sent.is_whole { sent.last } else { clock::now() };
            let own = self.attempt_timeout.and_then(|timeout| since.checked_add(timeout));
            until.set(clock::earlier(own, self.deadline));
        } else if let Some(window) = window {
            until.set(window.until);
        }
    }

    fn go_on_at(&self, sent: Option<Sent>, window: Option<&mut Window>, now: Instant) -> Until {
        let Some(sent) = sent else { return self.wait_for_first_piece(window.as_deref(), now) };
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(too_late(sent, Failure::UploadTimeout, format_args!(" when the operation's time was up")));
        }
        let until = match (self.rate, sent.is_whole) {
            (Some(rate), false) => {
                // The body may end before the window does. From then on the attempt timeout counts.
                let look_again = self.attempt_timeout.and_then(|timeout| now.checked_add(timeout));
                clock::earlier(keep_rate(*rate, window, sent, now)?, look_again)
            }
            _ => self.attempt_timeout.and_then(|timeout| sent.last.checked_add(timeout)),
        };
        if until.is_some_and(|until| until <= now) {
            let pause = ShortDuration(now.saturating_duration_since(sent.last));
            return Err(too_late(sent, Failure::UploadTimeout, format_args!(": no byte was taken for {pause}")));
        }
        Ok(clock::earlier(until, self.deadline))
    }

    /// The transport has taken nothing: there is no connection, or the body is short.
    fn wait_for_first_piece(&self, window: Option<&Window>, now: Instant) -> Until {
        match (window, self.rate) {
            (Some(window), Some(rate)) if window.until.is_none_or(|until| now < until) => {
                Ok(clock::earlier(window.until, now.checked_add(rate.per)))
            }
            _ => Err(TooLate::NoResponse),
        }
    }
}

/// Returns the end of the window in which an upload must keep its rate.
fn keep_rate(rate: UploadRate, window: Option<&mut Window>, sent: Sent, now: Instant) -> Until {
    let Some(window) = window else { return Ok(now.checked_add(rate.per)) };
    // The first window begins with the upload, and not with the search for a connection.
    window.since = window.since.max(sent.began);
    let Some(end) = window.since.checked_add(rate.per) else { return Ok(None) };
    if now < end {
        return Ok(Some(end));
    }
    let moved = sent.bytes.saturating_sub(window.before);
    if moved >= rate.bytes {
        (window.since, window.before) = (now, sent.bytes);
        return Ok(now.checked_add(rate.per));
    }
    let time = ShortDuration(now.saturating_duration_since(window.since));
    Err(match moved {
        0 => too_late(sent, Failure::UploadTimeout, format_args!(": no byte was taken for {time}")),
        _ => {
            let (moved, least, per) = (Size(moved), Size(rate.bytes), ShortDuration(rate.per));
            let rate = format_args!(": {moved} in {time}, under the min_upload_rate of {least} in {per}");
            too_late(sent, Failure::UploadTooSlow, rate)
        }
    })
}

/// Returns what a timer of reqwest's has cut, or `None` if the body was not on its
/// way. An upload that was moving would meet the same limit again.
pub(super) fn cut_by_transport(probe: Option<&SendProbe>) -> Option<TooLate> {
    let sent = probe.and_then(SendProbe::sent).filter(|sent| !sent.is_whole)?;
    let now = clock::now();
    let (pause, time) = (now.saturating_duration_since(sent.last), now.saturating_duration_since(sent.began));
    let failure = if pause < time / 4 { Failure::UploadTooSlow } else { Failure::UploadTimeout };
    Some(too_late(sent, failure, format_args!(" when a time limit of the HTTP client ended it")))
}

fn too_late(sent: Sent, failure: Failure, why: fmt::Arguments<'_>) -> TooLate {
    if sent.is_whole {
        return TooLate::NoResponse;
    }
    let taken = Size(sent.bytes);
    let line = match sent.total {
        Some(total) => format!("still sending, {taken} of {}{why}", Size(total)),
        None => format!("still sending, {taken}{why}"),
    };
    TooLate::Sending { failure, line }
}

/// Displays a number of bytes for people: `512 bytes`, `13.1 MB`.
struct Size(u64);

impl fmt::Display for Size {
    #[allow(clippy::cast_precision_loss, reason = "one decimal is shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..1_000 => write!(f, "{} bytes", self.0),
            1_000..1_000_000 => write!(f, "{:.1} kB", bytes / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.1} MB", bytes / 1e6),
            _ => write!(f, "{:.1} GB", bytes / 1e9),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TOTAL: u64 = 20_000_000;

    /// An upload that began at the first second and has taken `bytes` by the second `last`.
    fn sent(start: Instant, bytes: u64, last: u32) -> Option<Sent> {
        let is_whole = bytes == TOTAL;
        Some(Sent { bytes, total: Some(TOTAL), began: start + SECOND, last: start + SECOND * last, is_whole })
    }

    fn show(start: Instant, until: Until) -> String {
        match until {
            Ok(Some(until)) => format!("until {}", (until - start).as_secs()),
            Ok(None) => "without end".to_owned(),
            Err(TooLate::NoResponse) => "no response".to_owned(),
            Err(TooLate::Sending { failure, line }) => format!("{failure:?}: {line}"),
        }
    }

    #[test]
    fn pause_and_not_length_ends_an_upload() {
        let start = clock::now();
        let ten = Some(SECOND * 10);
        let clock = SendClock { attempt_timeout: ten, rate: None, deadline: Some(start + SECOND * 60) };
        let check = |sent, now| show(start, clock.go_on_at(sent, None, start + SECOND * now));
        assert_eq!(check(None, 10), "no response");
        assert_eq!(check(sent(start, 5_000_000, 9), 10), "until 19");
        assert_eq!(check(sent(start, 9_000_000, 19), 19), "until 29");
        let stalled = "UploadTimeout: still sending, 9.0 MB of 20.0 MB: no byte was taken for 10.0 s";
        assert_eq!(check(sent(start, 9_000_000, 19), 29), stalled);
        assert_eq!(check(sent(start, TOTAL, 25), 29), "until 35", "the wait for the response");
        assert_eq!(check(sent(start, TOTAL, 25), 35), "no response");
        assert_eq!(check(sent(start, 9_000_000, 55), 56), "until 60", "the operation's time");
        let over = "UploadTimeout: still sending, 9.0 MB of 20.0 MB when the operation's time was up";
        assert_eq!(check(sent(start, 9_000_000, 59), 60), over);
        let patient = SendClock { attempt_timeout: None, rate: None, deadline: None };
        let until = patient.go_on_at(sent(start, 9_000_000, 1), None, start + SECOND * 99);
        assert_eq!(show(start, until), "without end");
    }

    #[test]
    fn rate_ends_a_slow_upload() {
        let start = clock::now();
        let (ten, rate) = (Some(SECOND * 10), UploadRate { bytes: 1_000_000, per: SECOND * 5 });
        let clock = SendClock { attempt_timeout: ten, rate: Some(&rate), deadline: None };
        let mut window = Window { until: Some(start + SECOND * 10), since: start, before: 0 };
        let mut check = |sent, now| show(start, clock.go_on_at(sent, Some(&mut window), start + SECOND * now));
        assert_eq!(check(None, 5), "until 10", "there is no connection yet");
        assert_eq!(check(sent(start, 100, 1), 5), "until 6", "the window begins with the upload");
        assert_eq!(check(sent(start, 1_000_000, 2), 6), "until 11");
        assert_eq!(check(sent(start, 2_000_000, 8), 11), "until 16");
        let slow = "UploadTooSlow: still sending, 2.9 MB of 20.0 MB: \
                    900.0 kB in 5.0 s, under the min_upload_rate of 1.0 MB in 5.0 s";
        assert_eq!(check(sent(start, 2_900_000, 15), 16), slow);
        let stalled = "UploadTimeout: still sending, 2.0 MB of 20.0 MB: no byte was taken for 5.0 s";
        assert_eq!(check(sent(start, 2_000_000, 8), 16), stalled);
        assert_eq!(check(sent(start, TOTAL, 8), 16), "until 18", "the response has no rate");
    }

    #[test]
    fn sizes_are_displayed_readably() {
        let shown = [0, 999, 1_000, 13_140_000, 2_500_000_000].map(|bytes| Size(bytes).to_string());
        assert_eq!(shown, ["0 bytes", "999 bytes", "1.0 kB", "13.1 MB", "2.5 GB"]);
    }
}
