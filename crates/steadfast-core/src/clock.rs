//! Time and randomness, in one place.
//!
//! The policy takes the time and a random number as arguments. Only this file reads them. It reads
//! tokio's clock, so a test that pauses or advances time moves the client and the server layer with
//! it.
//!
//! Of the crate it imports `units` alone.

use std::future::Future;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::SystemTime;
use std::time::{Duration, Instant};

use crate::units::milliseconds;
use tokio::{task::coop::unconstrained, time::Sleep};

/// Returns the time by the steady clock.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Returns the time by the wall clock: for HTTP dates and for the age of a key, never for a wait.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Returns a random number between 0 and 1, for jitter.
///
/// It comes from the operating system. `fork` would clone a generator inside the process, and its
/// clones would all come back at the same moment. It is drawn only before a wait, and takes less
/// than a microsecond. If the system has no randomness it is 1, which is the whole wait.
#[allow(clippy::disallowed_methods, clippy::cast_precision_loss, reason = "the one place; 53 bits are exact")]
pub fn unit() -> f64 {
    const STEPS: f64 = (1_u64 << 53) as f64;
    getrandom::u64().map_or(1.0, |random| (random >> 11) as f64 / STEPS)
}

/// Waits for `duration`. Zero does not touch the timer, whose shortest sleep takes a millisecond.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub async fn sleep(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

/// The error of a wait whose deadline has passed.
#[derive(Debug)]
#[allow(clippy::exhaustive_structs, reason = "not public: the crates that use it have one version")]
pub struct TimedOut;

/// Runs `future` until `deadline` at the latest. `None` disables the limit.
pub async fn until<F: Future>(deadline: Option<Instant>, future: F) -> Result<F::Output, TimedOut> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), future).await.map_err(|_| TimedOut),
        None => Ok(future.await),
    }
}

/// The timer of a [`SharedTimer`].
pub type Timer = Sleep;

/// Creates the timer of a [`SharedTimer`]. It is registered only at the first wait.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub fn timer(deadline: Option<Instant>) -> Option<Timer> {
    deadline.map(|deadline| tokio::time::sleep_until(deadline.into()))
}

/// A deadline of several waits, which share one timer. For a single wait, see [`until`].
#[derive(Debug)]
pub struct SharedTimer<'a> {
    at: Option<Instant>,
    timer: Pin<&'a mut Option<Sleep>>,
}

impl<'a> SharedTimer<'a> {
    /// Creates a deadline. `timer` must be the timer of the same instant.
    pub fn new(at: Option<Instant>, timer: Pin<&'a mut Option<Sleep>>) -> Self {
        Self { at, timer }
    }

    /// Returns the instant, or `None` if there is no limit.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Moves the deadline. The timer follows at the next wait.
    pub fn set(&mut self, at: Option<Instant>) {
        self.at = at;
    }

    /// Runs `future` until the deadline at the latest.
    pub async fn bound<F: Future>(&mut self, future: F) -> Result<F::Output, TimedOut> {
        let mut future = pin!(future);
        // `move` keeps the future small: one pointer to `self`, instead of one to each field.
        poll_fn(move |cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            if self.timer.as_ref().as_pin_ref().map(|timer| timer.deadline().into_std()) != self.at {
                self.timer.set(timer(self.at));
            }
            let Some(timer) = self.timer.as_mut().as_pin_mut() else { return Poll::Pending };
            // A body that never pauses uses up the budget that tokio gives a task, and the timer
            // must fire nevertheless.
            pin!(unconstrained(timer)).poll(cx).map(|()| Err(TimedOut))
        })
        .await
    }
}

/// Returns the earlier of two deadlines.
pub fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// A clock for times that are written down and read by a later process: milliseconds since the Unix
/// epoch.
///
/// It reads the wall clock once, so it does not follow the wall clock's jumps while this process
/// runs.
#[derive(Clone, Copy, Debug)]
pub struct Steady {
    wall_ms: u64,
    started: Instant,
}

impl Steady {
    /// Reads the wall clock, and starts to count from there.
    pub fn start() -> Self {
        let since_epoch = wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { wall_ms: milliseconds(since_epoch), started: now() }
    }

    /// Returns the milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.wall_ms.saturating_add(milliseconds(now().saturating_duration_since(self.started)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_are_spread_evenly() {
        let mut tenths = [0; 10];
        for _ in 0..10_000 {
            let unit = unit();
            assert!((0.0..1.0).contains(&unit), "{unit}");
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 9")]
            let tenth = (unit * 10.0) as usize;
            tenths[tenth] += 1;
        }
        // 1,000 each, give or take 30: this is eight times as much.
        assert!(tenths.iter().all(|count| (760..1240).contains(count)), "{tenths:?}");
    }

    /// A runtime without a timer panics when it is asked for one.
    fn without_a_timer<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn zero_wait_does_not_touch_the_timer() {
        without_a_timer(sleep(Duration::ZERO));
        let timed = std::panic::catch_unwind(|| without_a_timer(sleep(Duration::from_nanos(1))));
        assert!(timed.is_err(), "this runtime has no timer");
    }

    #[tokio::test]
    async fn deadline_ends_a_busy_future_and_can_be_moved() {
        // Uses up the task's budget, again and again.
        let greedy = || async {
            loop {
                tokio::task::consume_budget().await;
            }
        };
        let at = now().checked_add(Duration::from_millis(20));
        let timer = pin!(timer(at));
        let mut deadline = SharedTimer::new(at, timer);
        assert!(deadline.bound(async { 1 }).await.is_ok_and(|one| one == 1));
        assert!(deadline.bound(greedy()).await.is_err());
        assert!(deadline.bound(std::future::pending::<()>()).await.is_err(), "it stays over");
        deadline.set(None);
        assert!(deadline.bound(tokio::task::yield_now()).await.is_ok());
        deadline.set(now().checked_add(Duration::from_millis(20)));
        assert!(deadline.bound(std::future::pending::<()>()).await.is_err(), "moved again");
    }
}
