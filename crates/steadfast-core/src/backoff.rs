//! The wait before the next attempt.
//!
//! Clients that fail together retry together, unless chance drives them apart. The default is
//! exponential backoff with *full* jitter. It needs the fewest calls to get a crowd of contending
//! clients through (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015). The cap applies
//! before the jitter, so no wait exceeds it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The waits that one operation has left in a custom schedule.
pub(super) type Waits = Box<dyn Iterator<Item = Duration> + Send>;

type MakeWaits = Arc<dyn Fn() -> Waits + Send + Sync>;

/// How much of each wait is random.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::{Backoff, Jitter};
///
/// // Waits of 50 to 100 ms, 100 to 200 ms, and so on.
/// let backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(5));
/// let backoff = backoff.jitter(Jitter::Equal);
/// assert_eq!(backoff.jitter, Jitter::Equal);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Jitter {
    /// Anywhere between zero and the wait.
    #[default]
    Full,
    /// Half of the wait is fixed, and half is random.
    Equal,
    /// No part: for tests, and where exactly one client exists.
    None,
}

impl Jitter {
    /// Applies this jitter to `wait`; `unit` is a random number, 0..=1. Never longer than `wait`.
    fn apply(self, wait: Duration, unit: f64) -> Duration {
        match self {
            Self::Full => scale(wait, unit),
            Self::Equal => wait - wait / 2 + scale(wait / 2, unit),
            Self::None => wait,
        }
    }
}

/// Multiplies, rounded to a nanosecond and never above `duration`. `Duration::mul_f64` would panic
/// for `Duration::MAX` and for a NaN.
fn scale(duration: Duration, unit: f64) -> Duration {
    if unit >= 1.0 {
        return duration;
    }
    Duration::try_from_secs_f64(duration.as_secs_f64() * unit).map_or(Duration::ZERO, |scaled| scaled.min(duration))
}

/// How the waits of one operation grow, before jitter.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Schedule {
    /// Doubled after every attempt.
    #[non_exhaustive]
    Exponential {
        /// The first wait.
        base: Duration,
        /// The longest wait.
        cap: Duration,
    },
    /// Made by a closure ([`Backoff::schedule`]).
    Custom(CustomSchedule),
}

/// A closure that makes the waits of one operation.
#[derive(Clone)]
pub struct CustomSchedule(MakeWaits);

impl fmt::Debug for CustomSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomSchedule")
    }
}

/// The waits between attempts.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::{Backoff, Jitter};
///
/// // 0..100 ms, 0..200 ms, 0..400 ms, … never above 5 s: the default.
/// let backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(5));
/// // The same with half of each wait fixed.
/// let backoff = backoff.jitter(Jitter::Equal);
/// // Any schedule of yours, one iterator per operation. When it ends, so do the attempts.
/// let backoff = Backoff::schedule(|| [1, 5, 25].map(Duration::from_secs));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Backoff {
    /// How the waits grow.
    pub schedule: Schedule,
    /// How much of each wait is random.
    pub jitter: Jitter,
    /// The base after a throttled attempt, if it is longer than the schedule's.
    pub throttle_base: Duration,
}

impl Default for Backoff {
    /// [`Backoff::exponential`] with a base of 100 ms and a cap of 5 s.
    fn default() -> Self {
        Self::exponential(Duration::from_millis(100), Duration::from_secs(5))
    }
}

impl Backoff {
    /// Creates waits of `base`, doubled after every attempt, at most `cap`, with full jitter.
    ///
    /// After a `Throttled` attempt the base is 1 s or `base`, whichever is longer
    /// ([`Backoff::throttle_base`]).
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_core::{Backoff, RetryPolicy};
    ///
    /// let backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_secs(2));
    /// let policy = RetryPolicy::new().backoff(backoff);
    /// ```
    #[must_use]
    pub fn exponential(base: Duration, cap: Duration) -> Self {
        let schedule = Schedule::Exponential { base, cap };
        Self { schedule, jitter: Jitter::Full, throttle_base: Duration::from_secs(1) }
    }

    /// Creates equal waits without jitter.
    ///
    /// `fixed(Duration::ZERO)` repeats at once. Use that in tests only: a server in trouble needs
    /// the waits most.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_core::{Backoff, RetryPolicy};
    ///
    /// let in_tests = RetryPolicy::new().backoff(Backoff::fixed(Duration::ZERO));
    /// ```
    #[must_use]
    pub fn fixed(wait: Duration) -> Self {
        let schedule = Schedule::Exponential { base: wait, cap: wait };
        Self { schedule, jitter: Jitter::None, throttle_base: wait }
    }

    /// Creates a schedule of your own. `make` is called once per operation, and its iterator
    /// returns the waits in turn. When it ends, so do the attempts. No jitter is added unless you
    /// set it with [`Backoff::jitter`].
    ///
    /// You can use the schedule of another crate:
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use steadfast_core::Backoff;
    /// # struct Theirs;
    /// # impl Theirs { fn next_backoff(&mut self) -> Option<Duration> { None } }
    /// # fn make() -> Theirs { Theirs }
    /// let backoff = Backoff::schedule(|| {
    ///     let mut theirs = make();
    ///     std::iter::from_fn(move || theirs.next_backoff())
    /// });
    /// ```
    #[must_use]
    pub fn schedule<I>(make: impl Fn() -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item = Duration>,
        I::IntoIter: Send + 'static,
    {
        let make: MakeWaits = Arc::new(move || Box::new(make().into_iter()));
        Self { schedule: Schedule::Custom(CustomSchedule(make)), jitter: Jitter::None, throttle_base: Duration::ZERO }
    }

    /// Sets how much of each wait is random. Default: all of it.
    #[must_use]
    pub fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// Sets the base after a `Throttled` attempt, if it is longer than the schedule's. Default: 1
    /// s.
    ///
    /// The cap still applies. So this changes neither a [`fixed`](Self::fixed) wait, whose cap is
    /// the wait, nor a [`schedule`](Self::schedule) of yours.
    #[must_use]
    pub fn throttle_base(mut self, base: Duration) -> Self {
        self.throttle_base = base;
        self
    }

    /// Returns the waits of one operation, if the schedule is a custom one.
    pub(super) fn waits(&self) -> Option<Waits> {
        match &self.schedule {
            Schedule::Custom(CustomSchedule(make)) => Some(make()),
            Schedule::Exponential { .. } => None,
        }
    }

    /// Returns the wait after attempt number `attempt` (from 1), or `None` when a custom schedule
    /// has ended.
    pub(super) fn wait(&self, waits: &mut Option<Waits>, attempt: u32, throttled: bool, unit: f64) -> Option<Duration> {
        let whole = match (&self.schedule, waits) {
            (Schedule::Custom(_), Some(waits)) => waits.next()?,
            (Schedule::Custom(_), None) => return None,
            (Schedule::Exponential { base, cap }, _) => {
                let base = if throttled { (*base).max(self.throttle_base) } else { *base };
                doubled(base, attempt.saturating_sub(1), *cap)
            }
        };
        Some(self.jitter.apply(whole, unit))
    }
}

/// `Duration::from_nanos_u128` is newer than the oldest compiler that this crate takes.
fn from_nanos(nanos: u128) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    let seconds = u64::try_from(nanos / SECOND).unwrap_or(u64::MAX);
    Duration::new(seconds, u32::try_from(nanos % SECOND).unwrap_or_default())
}

/// Returns `base * 2^doublings`, at most `cap`: exact to the nanosecond, without overflow.
fn doubled(base: Duration, doublings: u32, cap: Duration) -> Duration {
    let factor = 1_u128.checked_shl(doublings).unwrap_or(u128::MAX);
    match base.as_nanos().checked_mul(factor) {
        Some(nanos) if nanos < cap.as_nanos() => from_nanos(nanos),
        _ if base.is_zero() => Duration::ZERO,
        _ => cap,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(backoff: &Backoff, throttled: bool, unit: f64) -> String {
        let mut waits = backoff.waits();
        let line = (1..=5).map_while(|attempt| backoff.wait(&mut waits, attempt, throttled, unit));
        line.map(|wait| wait.as_millis().to_string()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn waits_double_up_to_the_cap() {
        let backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_millis(700));
        assert_eq!(check(&backoff, false, 1.0), "100 200 400 700 700");
        assert_eq!(check(&backoff, false, 0.5), "50 100 200 350 350");
        assert_eq!(check(&backoff, false, 0.0), "0 0 0 0 0");
        assert_eq!(check(&backoff.clone().jitter(Jitter::Equal), false, 0.0), "50 100 200 350 350");
        assert_eq!(check(&backoff.jitter(Jitter::None), false, 0.0), "100 200 400 700 700");
    }

    #[test]
    fn throttled_attempts_use_longer_base() {
        assert_eq!(check(&Backoff::default(), true, 1.0), "1000 2000 4000 5000 5000");
        let slow = Backoff::exponential(Duration::from_secs(3), Duration::from_secs(5));
        assert_eq!(check(&slow, true, 1.0), "3000 5000 5000 5000 5000");
        assert_eq!(check(&Backoff::fixed(Duration::from_millis(7)), true, 0.3), "7 7 7 7 7");
    }

    #[test]
    fn custom_schedule_ends_the_attempts() {
        let backoff = Backoff::schedule(|| [1, 5, 25].map(Duration::from_millis));
        assert_eq!(check(&backoff, false, 0.0), "1 5 25");
        assert_eq!(check(&backoff, false, 0.0), "1 5 25", "each operation has its own iterator");
    }

    #[test]
    fn no_input_overflows() {
        for base in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            for cap in [Duration::ZERO, Duration::from_secs(5), Duration::MAX] {
                for attempt in [0, 1, 2, 64, 127, 128, 129, 4_000_000_000, u32::MAX] {
                    for unit in [0.0, 0.5, 0.999_999_999, 1.0] {
                        for jitter in [Jitter::Full, Jitter::Equal, Jitter::None] {
                            let backoff = Backoff::exponential(base, cap).jitter(jitter).throttle_base(Duration::MAX);
                            for throttled in [false, true] {
                                assert!(backoff.wait(&mut None, attempt, throttled, unit).unwrap() <= cap);
                            }
                        }
                    }
                }
            }
        }
    }
}
