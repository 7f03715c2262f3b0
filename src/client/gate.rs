//! What stands before an attempt, and what it is told afterwards: the manners that protect a server in trouble.
//!
//! Each is off unless the client was built with it, and then costs one look. Nothing here sends, repeats or decides; the loop asks.

use std::time::{Duration, Instant};

use super::cooldown::{Lane, Probe};
use super::upstream::Upstream;
use super::verdict::Verdict;
use crate::policy::{BreakerState, Class, Permit, StopReason};

/// The attempt may not go out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) reason: StopReason,
    pub(super) retry_after: Option<Duration>,
}

impl Upstream {
    /// Waits until the origin's cooldown is over; no lane is under none.
    pub(super) async fn cooled(
        &self,
        lane: Option<Lane>,
        deadline: Option<Instant>,
    ) -> Result<Option<Probe<'_>>, Held> {
        match lane {
            Some(lane) => self.cooldowns.leave(lane, deadline).await,
            None => Ok(None),
        }
    }

    /// Takes note of what an answer asked of everybody, and of what that says about the probe that it answered.
    pub(super) fn cool(&self, lane: Option<Lane>, probe: Option<Probe<'_>>, asked: Option<Duration>, now: Instant) {
        match (lane, asked) {
            (Some(lane), Some(length)) => self.cooldowns.begin(lane, length, now),
            _ => probe.into_iter().for_each(Probe::passed),
        }
    }

    /// Leave for an attempt; `None` if there is no breaker to ask.
    pub(super) fn acquire(&self, now: Instant) -> Result<Option<Permit<'_>>, Held> {
        let permit = self.breaker.as_ref().map(|breaker| breaker.acquire(now)).transpose();
        permit.map_err(|open| Held { reason: StopReason::CircuitOpen, retry_after: Some(open.retry_after) })
    }

    /// For how long from `now` nothing will be let through.
    pub(super) fn circuit_open_for(&self, now: Instant) -> Duration {
        self.breaker.as_ref().map_or(Duration::ZERO, |breaker| breaker.state(now).open_for())
    }
}

/// Tells the breaker what came of the attempt that it let through. Returns the state that it has changed to, if it has.
pub(super) fn settle(
    permit: Option<Permit<'_>>,
    verdict: &Verdict,
    took: Duration,
    now: Instant,
) -> Option<BreakerState> {
    // A certificate or a body of the caller's that failed says nothing about how the origin bears its load.
    let ours = verdict.class == Class::Permanent && verdict.failure.is_some();
    permit.filter(|_| !ours)?.record(verdict.class, took, now)
}
