//! One refusal is enough: what an origin has said to one operation holds for all of them.
//!
//! A server that answers 429 with `Retry-After: 10` has told the client, and a hundred tasks that each find it out for themselves are a
//! hundred requests that it did not want. Here the first such answer makes every operation to that origin wait, or stop where its
//! deadline is nearer. When the time is over one goes first, as a probe; the others follow once it was not refused, spread out.
//!
//! No task of its own: whoever waits keeps the time, and a probe that is dropped wakes the next.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::clock;
use crate::policy::{Cooling, Leave, Operation, StopReason};

/// The most lanes of one origin that cool at a time. One more is not held back.
const LANES: usize = 256;

type By = Arc<dyn Fn(&reqwest::Request) -> String + Send + Sync>;

/// What shares a cooldown: the whole origin, or what a closure puts together.
#[derive(Clone, Default)]
pub(super) struct Lanes {
    by: Option<By>,
    /// A credential may name a lane, so only its digest is kept.
    digest: RandomState,
}

impl Lanes {
    pub(super) fn by(by: impl Fn(&reqwest::Request) -> String + Send + Sync + 'static) -> Self {
        Self { by: Some(Arc::new(by)), digest: RandomState::new() }
    }

    pub(super) fn of(&self, request: impl FnOnce() -> reqwest::Request) -> Lane {
        Lane(self.by.as_ref().map_or(0, |by| self.digest.hash_one(by(&request()))))
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes").finish_non_exhaustive()
    }
}

/// Which cooldown of its origin an operation is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lane(u64);

/// The attempt may not go out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) reason: StopReason,
    pub(super) retry_after: Option<Duration>,
}

/// The cooldowns of one origin.
#[derive(Debug, Default)]
pub(super) struct Cooldowns {
    /// Lets an origin that is at ease, the common case, be asked without the lock.
    any: AtomicBool,
    cooling: Mutex<HashMap<Lane, Arc<Cooldown>>>,
}

#[derive(Debug, Default)]
struct Cooldown {
    state: Mutex<Cooling>,
    /// Told when a probe has ended.
    probed: Notify,
}

impl Cooldowns {
    /// Holds back what follows in this lane.
    pub(super) fn begin(&self, lane: Lane, length: Duration, now: Instant) {
        let mut cooling = lock(&self.cooling);
        if cooling.len() >= LANES && !cooling.contains_key(&lane) {
            // Those whose time is over, and whom nobody has come to probe.
            cooling.retain(|_, cooldown| lock(&cooldown.state).lasts(now));
            if cooling.len() >= LANES {
                return;
            }
        }
        lock(&cooling.entry(lane).or_default().state).begin(length, now);
        self.any.store(true, Ordering::Release);
    }

    /// Waits until an attempt in this lane may go out. What it returns is kept until the attempt has ended.
    pub(super) async fn leave(&self, lane: Lane, operation: &mut Operation<'_>) -> Result<Option<Probe<'_>>, Held> {
        let deadline = operation.deadline();
        while let Some(cooldown) = self.find(lane) {
            // From here on: a probe that ends between the question and the wait must not be missed.
            let probed = cooldown.probed.notified();
            let now = clock::now();
            let asked = lock(&cooldown.state).ask(now);
            match asked {
                Leave::Go => break,
                Leave::GoFirst => {
                    let cooldown = cooldown.clone();
                    return Ok(Some(Probe { cooldowns: self, lane, cooldown, refused: true }));
                }
                Leave::Wait(wait) => {
                    let held = |reason| Held { reason, retry_after: Some(wait) };
                    operation.hold(wait, now).map_err(held)?;
                    clock::sleep(wait).await;
                }
                Leave::WaitForProbe(spread) => {
                    if clock::until(deadline, probed).await.is_err() {
                        return Err(Held { reason: StopReason::DeadlineExceeded, retry_after: None });
                    }
                    // Of what is left by now: the probe has taken its time.
                    let now = clock::now();
                    let time_left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
                    clock::sleep(spread.min(time_left).mul_f64(clock::unit())).await;
                }
            }
        }
        Ok(None)
    }

    /// Whether nothing holds this lane back.
    pub(super) fn are_over(&self, lane: Lane) -> bool {
        self.find(lane).is_none()
    }

    fn find(&self, lane: Lane) -> Option<Arc<Cooldown>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.cooling).get(&lane).cloned()
    }
}

/// Nothing between lock and unlock panics, so poisoning cannot leave anything half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one that goes first. Dropped before its answer, it leaves that to the next.
#[derive(Debug)]
pub(super) struct Probe<'a> {
    cooldowns: &'a Cooldowns,
    lane: Lane,
    cooldown: Arc<Cooldown>,
    refused: bool,
}

impl Probe<'_> {
    /// It was not refused with a hint.
    pub(super) fn passed(mut self) {
        self.refused = false;
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        let mut cooling = lock(&self.cooldowns.cooling);
        if lock(&self.cooldown.state).probed(self.refused, clock::now()) {
            // What stands there now may have begun since.
            if cooling.get(&self.lane).is_some_and(|found| Arc::ptr_eq(found, &self.cooldown)) {
                cooling.remove(&self.lane);
            }
            self.cooldowns.any.store(!cooling.is_empty(), Ordering::Release);
        }
        drop(cooling);
        self.cooldown.probed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Idempotency, RetryBudget, RetryPolicy};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn lanes_are_bounded_and_those_that_are_over_make_room() {
        let (cooldowns, now) = (Cooldowns::default(), clock::now());
        let lanes = |number: usize| Lane(u64::try_from(number).unwrap());
        assert!(cooldowns.find(lanes(0)).is_none());
        for number in 0..=LANES {
            cooldowns.begin(lanes(number), SECOND, now);
        }
        assert!(cooldowns.find(lanes(LANES - 1)).is_some() && cooldowns.find(lanes(LANES)).is_none());
        cooldowns.begin(lanes(LANES), SECOND, now + SECOND);
        assert_eq!(lock(&cooldowns.cooling).len(), 1);
    }

    #[tokio::test]
    async fn a_lane_that_is_at_ease_again_leaves_nothing_behind() {
        let (cooldowns, lane) = (Cooldowns::default(), Lane(7));
        cooldowns.begin(lane, Duration::from_nanos(1), clock::now());
        let (policy, budget) = (RetryPolicy::never(), RetryBudget::standard());
        let mut operation = Operation::start(&policy, &budget, Idempotency::Absent, clock::now());
        let probe = cooldowns.leave(lane, &mut operation).await.unwrap().expect("the first goes as a probe");
        probe.passed();
        assert!(cooldowns.leave(lane, &mut operation).await.unwrap().is_none());
        assert!(lock(&cooldowns.cooling).is_empty() && !cooldowns.any.load(Ordering::Relaxed));
    }

    #[test]
    fn a_closure_puts_requests_into_lanes() {
        let request = |url: &str| reqwest::Request::new(http::Method::GET, url.parse().unwrap());
        let lanes = Lanes::by(|request| request.url().path().to_owned());
        let [one, again, other] =
            ["http://a.x/1?q", "http://a.x/1", "http://a.x/2"].map(|url| lanes.of(|| request(url)));
        assert!(one == again && one != other);
        assert_eq!(Lanes::default().of(|| request("http://a.x/1")), Lanes::default().of(|| request("http://a.x/2")));
    }
}
