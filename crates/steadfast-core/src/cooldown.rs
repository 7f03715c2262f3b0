//! One cooldown: whether an attempt may go out after a `Retry-After`, and which one goes first when
//! the time is over.

use std::time::{Duration, Instant};

use http::StatusCode;

use super::class::Class;
use super::hint::Hint;

/// The operations that waited for the probe follow it within this time, or within the server's own
/// wait if that is shorter.
const SPREAD: Duration = Duration::from_secs(1);

/// Returns the cooldown that a response imposes on all operations: the wait of a 429, a 503 or
/// another throttled response with a hint, at most `longest`. A 413 concerns its own request alone.
#[doc(hidden)]
pub fn cooldown_asked_for(status: StatusCode, class: Class, hint: &Hint, longest: Duration) -> Option<Duration> {
    let asks = match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => true,
        StatusCode::PAYLOAD_TOO_LARGE => false,
        _ => class == Class::Throttled,
    };
    hint.after.filter(|after| asks && !after.is_zero()).map(|after| after.min(longest))
}

/// The state of one cooldown. By default it holds nothing back.
#[derive(Debug, Default)]
#[doc(hidden)]
pub struct CooldownState {
    /// End of the cooldown. `None`: it holds nothing back.
    until: Option<Instant>,
    length: Duration,
    probe_is_out: bool,
}

/// What the next attempt may do.
#[derive(Debug, PartialEq)]
pub(super) enum Turn {
    /// Go: there is no cooldown.
    Go,
    /// Go first, as the probe.
    GoFirst,
    /// Ask again after this time.
    Wait(Duration),
    /// Ask again within this time, once the probe has ended.
    WaitForProbe(Duration),
}

impl CooldownState {
    /// Returns what the next attempt may do. The attempt that gets `GoFirst` is the probe.
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

    /// Begins a cooldown. Of two that overlap, the later end counts.
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
    /// If the probe's response imposes a cooldown, begin that before this call, so that no attempt
    /// goes in between.
    #[doc(hidden)]
    pub fn probe_ended(&mut self, refused: bool, now: Instant) -> bool {
        self.probe_is_out = false;
        // Another response may have asked for more time meanwhile.
        if !refused && self.until.is_none_or(|until| until <= now) {
            self.until = None;
        }
        self.until.is_none()
    }

    /// Returns whether its time is not over yet.
    #[doc(hidden)]
    pub fn lasts(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }

    /// Returns whether it holds nothing back. Until a probe has ended, it does.
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
    fn refusals_of_load_ask_for_cooldown() {
        let asked = |status: u16, class| {
            let status = StatusCode::from_u16(status).unwrap();
            cooldown_asked_for(status, class, &Hint::from(Some(3 * SECOND)), 2 * SECOND)
        };
        for (status, class) in [(429, Class::Throttled), (503, Class::Ambiguous), (403, Class::Throttled)] {
            assert_eq!(asked(status, class), Some(2 * SECOND), "{status}");
        }
        for (status, class) in [(403, Class::Permanent), (413, Class::Throttled), (500, Class::Ambiguous)] {
            assert_eq!(asked(status, class), None, "{status}");
        }
    }

    #[test]
    fn one_attempt_goes_first_and_the_others_follow() {
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
    fn refused_probe_begins_another_cooldown() {
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
