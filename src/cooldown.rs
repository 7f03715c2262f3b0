//! The cooldowns of an origin: one `Retry-After` makes all of its operations wait.
//!
//! A server that answers 429 with `Retry-After: 10` has told the client. A hundred tasks that each
//! find it out for themselves are a hundred requests that it did not want. Here the first such
//! response makes every operation to that origin wait, or stop where its deadline is nearer. When
//! the time is over one operation goes first, as a probe. The others follow once it was not refused,
//! spread out.
//!
//! There is no task: each operation that waits keeps the time itself, and a probe that is dropped
//! wakes the next.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::clock;
use crate::policy::CooldownState;

/// The most lanes of one origin that cool at a time. The next one is not held back.
const LANES: usize = 256;

type By = Arc<dyn Fn(&reqwest::Request) -> String + Send + Sync>;

/// Which requests share a cooldown: all of an origin's, or those that a closure puts together.
#[derive(Clone, Default)]
pub(super) struct Lanes {
    by: Option<By>,
    /// A credential may name a lane, so only a digest is kept.
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

/// The requests to an origin that cool down together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lane(u64);

/// The cooldowns of one origin.
#[derive(Debug, Default)]
pub(super) struct Cooldowns {
    /// Whether any lane cools. Most of the time none does, and this saves the lock.
    any: AtomicBool,
    cooling: Mutex<HashMap<Lane, Arc<Cooldown>>>,
}

/// The cooldown of one lane.
#[derive(Debug, Default)]
pub(super) struct Cooldown {
    state: Mutex<CooldownState>,
    probe_ended: Notify,
}

impl Cooldowns {
    /// Holds back everything in this lane for `length`.
    fn begin(&self, lane: Lane, length: Duration, now: Instant) {
        let mut cooling = lock(&self.cooling);
        if cooling.len() >= LANES && !cooling.contains_key(&lane) {
            // Makes room: lanes whose time is over, and which nobody has come to probe.
            cooling.retain(|_, cooldown| lock(&cooldown.state).lasts(now));
            if cooling.len() >= LANES {
                return;
            }
        }
        lock(&cooling.entry(lane).or_default().state).begin(length, now);
        self.any.store(true, Ordering::Release);
    }

    /// Makes the probe of a lane: the attempt that goes first.
    pub(super) fn probe(&self, lane: Lane, cooldown: Arc<Cooldown>) -> CooldownProbe<'_> {
        CooldownProbe { cooldowns: self, lane, cooldown, refused: true }
    }

    /// Records how an attempt in this lane ended. `asked`: for how long its response holds everybody
    /// back.
    pub(super) fn settle(
        &self,
        lane: Lane,
        probe: Option<Box<CooldownProbe<'_>>>,
        asked: Option<Duration>,
        now: Instant,
    ) {
        match asked {
            // Before the probe is dropped, so that nobody goes in between.
            Some(length) => self.begin(lane, length, now),
            None => probe.into_iter().for_each(|probe| probe.passed()),
        }
    }

    /// Returns whether nothing holds this lane back.
    pub(super) fn are_over(&self, lane: Lane) -> bool {
        self.find(lane).is_none()
    }

    #[cfg(test)]
    pub(super) fn are_empty(&self) -> bool {
        lock(&self.cooling).is_empty() && !self.any.load(Ordering::Relaxed)
    }

    pub(super) fn find(&self, lane: Lane) -> Option<Arc<Cooldown>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.cooling).get(&lane).cloned()
    }
}

impl Cooldown {
    pub(super) fn state(&self) -> MutexGuard<'_, CooldownState> {
        lock(&self.state)
    }

    /// Waits until a probe ends, from the call on.
    pub(super) fn probe_ended(&self) -> Notified<'_> {
        self.probe_ended.notified()
    }
}

/// Locks. Nothing between lock and unlock panics, so poisoning cannot leave anything half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The attempt that goes first after a cooldown. Dropped before its response, it leaves that to the
/// next.
#[derive(Debug)]
pub(super) struct CooldownProbe<'a> {
    cooldowns: &'a Cooldowns,
    lane: Lane,
    cooldown: Arc<Cooldown>,
    refused: bool,
}

impl CooldownProbe<'_> {
    /// Ends it without a refusal.
    fn passed(mut self) {
        self.refused = false;
    }
}

impl Drop for CooldownProbe<'_> {
    fn drop(&mut self) {
        let mut cooling = lock(&self.cooldowns.cooling);
        if lock(&self.cooldown.state).probe_ended(self.refused, clock::now()) {
            // Another cooldown may have begun in this lane since.
            if cooling.get(&self.lane).is_some_and(|found| Arc::ptr_eq(found, &self.cooldown)) {
                cooling.remove(&self.lane);
            }
            self.cooldowns.any.store(!cooling.is_empty(), Ordering::Release);
        }
        drop(cooling);
        self.cooldown.probe_ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn lanes_are_bounded_and_ended_ones_make_room() {
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

    #[test]
    fn closure_assigns_requests_to_lanes() {
        let request = |url: &str| reqwest::Request::new(http::Method::GET, url.parse().unwrap());
        let lanes = Lanes::by(|request| request.url().path().to_owned());
        let [one, again, other] =
            ["http://a.x/1?q", "http://a.x/1", "http://a.x/2"].map(|url| lanes.of(|| request(url)));
        assert!(one == again && one != other);
        assert_eq!(Lanes::default().of(|| request("http://a.x/1")), Lanes::default().of(|| request("http://a.x/2")));
    }
}
