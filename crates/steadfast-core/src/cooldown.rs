//! One cooldown: whether anybody may go out while an origin asks to be left alone, and who goes
//! first when the time is over.

use std::time::{Duration, Instant};

use http::StatusCode;

use super::hint::Hint;

/// Those who waited for the probe follow it within this time, or within the time that the server
/// asked for if that is shorter.
const SPREAD: Duration = Duration::from_secs(1);

/// Returns for how long a response holds everybody back: a 429 or 503 with a hint, for as long as
/// that asks for, and at most for `longest`.
#[doc(hidden)]
pub fn cooldown_asked_for(status: StatusCode, hint: &Hint, longest: Duration) -> Option<Duration> {
    let asks = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status);
    hint.after.filter(|after| asks && !after.is_zero()).map(|after| after.min(longest))
}

/// The state of one cooldown. By default it holds nobody back.
#[derive(Debug, Default)]
#[doc(hidden)]
pub struct CooldownState {
    /// When its time is over. `None`: it holds nobody back.
    until: Option<Instant>,
    length: Duration,
    probe_is_out: bool,
}

/// Whose turn it is.
#[derive(Debug, PartialEq)]
pub(super) enum Turn {
    /// Go: nothing cools.
    Go,
    /// Go first, as the probe.
    GoFirst,
    /// Ask again after this time.
    Wait(Duration),
    /// Ask again within this time, once the probe has ended.
    WaitForProbe(Duration),
}

impl CooldownState {
    /// Returns whose turn it is. Who is told to go first is the probe.
    pub(super) fn ask(&mut self, now: Instant) -> Turn {
        let Some(until) = self.until else { return Turn::Go };
        match until.saturating_duration_since(now) {
            Duration::ZERO if self.probe_is_out => Turn::WaitForProbe(self.length.min(SPREAD)),
            Duration::ZERO => {
                self.probe_is_out = true;
                Turn::GoFirst
            }
            wait => Turn::Wait(wait),
        }
    }

    /// Begins it. Of two that overlap the one that ends later holds.
    #[doc(hidden)]
    pub fn begin(&mut self, length: Duration, now: Instant) {
        let until = now.checked_add(length);
        if until > self.until {
            (self.until, self.length) = (until, length);
        }
    }

    /// Ends the probe. `refused`: it was refused, or never sent, so another one goes first. Returns
    /// whether the cooldown is over.
    ///
    /// Begin the cooldown that a probe's response asks for before this, so that nobody goes in
    /// between.
    #[doc(hidden)]
    pub fn probe_ended(&mut self, refused: bool, now: Instant) -> bool {
        self.probe_is_out = false;
        // Another response may have asked for more time meanwhile.
        if !refused && self.until.is_none_or(|until| until <= now) {
            self.until = None;
        }
        self.until.is_none()
    }

    /// Returns whether its time is not over.
    #[doc(hidden)]
    pub fn lasts(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }

    /// Returns whether it holds nobody back, not even until a probe has ended.
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
    fn one_probe_goes_first_and_others_follow() {
        let (mut state, now) = (CooldownState::default(), now_in_a_test());
        assert_eq!(state.ask(now), Turn::Go);
        state.begin(3 * SECOND, now);
        state.begin(SECOND, now);
        assert_eq!(state.ask(now + SECOND), Turn::Wait(2 * SECOND), "the longer one holds");
        let over = now + 3 * SECOND;
        assert_eq!(state.ask(over), Turn::GoFirst);
        assert_eq!(state.ask(over), Turn::WaitForProbe(SECOND));
        assert!(!state.probe_ended(true, over), "it was dropped");
        assert_eq!(state.ask(over), Turn::GoFirst, "so the next goes first");
        assert!(state.probe_ended(false, over));
        assert_eq!(state.ask(over), Turn::Go);
    }

    #[test]
    fn refused_probe_restarts_cooldown() {
        let (mut state, now) = (CooldownState::default(), now_in_a_test());
        state.begin(SECOND, now);
        let over = now + SECOND;
        assert_eq!(state.ask(over), Turn::GoFirst);
        state.begin(Duration::from_millis(300), over);
        assert!(!state.probe_ended(true, over));
        assert_eq!(state.ask(over), Turn::Wait(Duration::from_millis(300)));
        // A straggler's refusal outlives a probe that passed.
        assert_eq!(state.ask(over + SECOND), Turn::GoFirst);
        state.begin(SECOND, over + SECOND);
        assert!(!state.probe_ended(false, over + SECOND));
        assert_eq!(state.ask(over + SECOND), Turn::Wait(SECOND));
    }
}
