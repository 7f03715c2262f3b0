//! Whether an operation may go on while its origin cools down, and who goes first when the time is over.
//!
//! The waiting is the driver's: it asks, waits as it is told, and asks again.

use std::time::{Duration, Instant};

use http::StatusCode;

use super::hint::Hint;

/// Those who waited for the probe follow it within this time, or within the time that the server had asked for if that is shorter.
const SPREAD: Duration = Duration::from_secs(1);

/// For how long an answer holds everybody back: 429 or 503 with a hint, and no longer than the cap.
#[doc(hidden)]
pub fn asked_for(status: StatusCode, hint: &Hint, cap: Duration) -> Option<Duration> {
    let asks = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status);
    hint.after.filter(|after| asks && !after.is_zero()).map(|after| after.min(cap))
}

/// One cooldown. By default there is none.
#[derive(Debug, Default)]
#[doc(hidden)]
pub struct Cooling {
    /// `None`: it is over.
    until: Option<Instant>,
    length: Duration,
    probe_is_out: bool,
}

/// Whether an attempt may go out.
#[derive(Debug, PartialEq)]
#[doc(hidden)]
pub enum Leave {
    Go,
    GoFirst,
    Wait(Duration),
    /// Until the probe has ended; then within this time.
    WaitForProbe(Duration),
}

impl Cooling {
    #[doc(hidden)]
    pub fn ask(&mut self, now: Instant) -> Leave {
        let Some(until) = self.until else { return Leave::Go };
        match until.saturating_duration_since(now) {
            Duration::ZERO if self.probe_is_out => Leave::WaitForProbe(self.length.min(SPREAD)),
            Duration::ZERO => {
                self.probe_is_out = true;
                Leave::GoFirst
            }
            wait => Leave::Wait(wait),
        }
    }

    #[doc(hidden)]
    pub fn begin(&mut self, length: Duration, now: Instant) {
        let until = now.checked_add(length);
        if until > self.until {
            (self.until, self.length) = (until, length);
        }
    }

    /// A probe has ended. Whether it is over.
    #[doc(hidden)]
    pub fn probed(&mut self, refused: bool, now: Instant) -> bool {
        self.probe_is_out = false;
        // Another answer may have asked for more time meanwhile.
        if !refused && self.until.is_none_or(|until| until <= now) {
            self.until = None;
        }
        self.until.is_none()
    }

    /// Whether its time is not over.
    #[doc(hidden)]
    pub fn lasts(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }

    /// Whether it holds nobody back, not even until a probe has gone first.
    #[doc(hidden)]
    pub fn is_over(&self) -> bool {
        self.until.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::super::now_in_a_test;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_goes_first_and_the_others_follow_it() {
        let (mut state, now) = (Cooling::default(), now_in_a_test());
        assert_eq!(state.ask(now), Leave::Go);
        state.begin(3 * SECOND, now);
        state.begin(SECOND, now);
        assert_eq!(state.ask(now + SECOND), Leave::Wait(2 * SECOND), "the longer one holds");
        let over = now + 3 * SECOND;
        assert_eq!(state.ask(over), Leave::GoFirst);
        assert_eq!(state.ask(over), Leave::WaitForProbe(SECOND));
        assert!(!state.probed(true, over), "it was dropped");
        assert_eq!(state.ask(over), Leave::GoFirst, "so the next goes first");
        assert!(state.probed(false, over));
        assert_eq!(state.ask(over), Leave::Go);
    }

    #[test]
    fn a_probe_that_is_refused_begins_it_anew() {
        let (mut state, now) = (Cooling::default(), now_in_a_test());
        state.begin(SECOND, now);
        let over = now + SECOND;
        assert_eq!(state.ask(over), Leave::GoFirst);
        state.begin(Duration::from_millis(300), over);
        assert!(!state.probed(true, over));
        assert_eq!(state.ask(over), Leave::Wait(Duration::from_millis(300)));
        // A straggler's refusal outlives a probe that passed.
        assert_eq!(state.ask(over + SECOND), Leave::GoFirst);
        state.begin(SECOND, over + SECOND);
        assert!(!state.probed(false, over + SECOND));
        assert_eq!(state.ask(over + SECOND), Leave::Wait(SECOND));
    }
}
