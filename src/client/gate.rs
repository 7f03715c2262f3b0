//! What stands before an attempt, and what it is told afterwards: the mechanisms that protect a server in trouble.
//!
//! Each is off unless the client was built with it, and then costs one look. Nothing here sends, repeats or decides; the loop asks.

use std::time::{Duration, Instant};

use super::Inner;
use super::assessment::Assessment;
pub(super) use super::cooldown::Held;
use super::cooldown::{Lane, Probe};
use super::latency::Latencies;
use super::upstream::Upstream;
use crate::clock;
use crate::policy::{
    BreakerState, CircuitOpen, Class, HedgeAt, HedgePolicy, Operation, Permit, StopReason, cooldown_asked_for,
};

/// The gate that the attempts of one operation go through.
pub(super) struct Gate<'a> {
    client: &'a Inner,
    upstream: &'a Upstream,
    lane: Option<Lane>,
}

/// Leave for one attempt.
pub(super) struct Pass<'a> {
    pub(super) started: Instant,
    permit: Option<Permit<'a>>,
    /// Boxed: every attempt has room for it, and one in a cooldown has it.
    probe: Option<Box<Probe<'a>>>,
}

impl<'a> Gate<'a> {
    /// `request` is what is sent.
    pub(super) fn new(client: &'a Inner, upstream: &'a Upstream, request: impl FnOnce() -> reqwest::Request) -> Self {
        Self { client, upstream, lane: client.overload.cooldown.as_ref().map(|lanes| lanes.of(request)) }
    }

    /// Waits until the origin's cooldown is over, and asks whether there is time for an attempt and whether the circuit is closed.
    pub(super) async fn enter(&self, operation: &mut Operation<'_>, now: Instant) -> Result<Pass<'a>, Held> {
        let (probe, started) = match self.lane {
            Some(lane) => {
                let probe = Box::pin(self.upstream.cooldowns.leave(lane, operation)).await?;
                (probe.map(Box::new), clock::now())
            }
            None => (None, now),
        };
        let deadline = operation.deadline();
        // A wait was to end before the deadline, but a busy machine may have woken us late.
        if deadline.is_some_and(|deadline| deadline <= started.checked_add(self.least_time(started)).unwrap_or(started))
        {
            return Err(Held { reason: StopReason::DeadlineExceeded, retry_after: None });
        }
        let permit = self.upstream.breaker.as_ref().map(|breaker| breaker.acquire(started)).transpose();
        let open = |open: CircuitOpen| Held { reason: StopReason::CircuitOpen, retry_after: Some(open.retry_after) };
        Ok(Pass { started, permit: permit.map_err(open)?, probe })
    }

    /// With less than this left an attempt is hopeless.
    fn least_time(&self, now: Instant) -> Duration {
        let fastest = self.client.overload.skip_hopeless.then(|| self.latencies()?.fastest(now)).flatten();
        fastest.unwrap_or(Duration::ZERO)
    }

    /// After how long an attempt that starts now is late; `None` if it is not hedged.
    pub(super) fn late_after(&self, policy: Option<&HedgePolicy>, pass: &Pass<'_>) -> Option<Duration> {
        let policy = policy.filter(|_| pass.probe.is_none())?;
        self.upstream.hedges.earn(policy.limit());
        match policy.at() {
            HedgeAt::After(time) => Some(time),
            HedgeAt::Quantile(share) => self.latencies()?.quantile(share, pass.started),
        }
    }

    /// Whether a hedge may go out now. If it may, it is paid for.
    pub(super) fn lets_hedge(&self, operation: &mut Operation<'_>) -> bool {
        let now = clock::now();
        let closed = self.upstream.breaker.as_ref().is_none_or(|breaker| breaker.state(now) == BreakerState::Closed);
        let at_ease = self.lane.is_none_or(|lane| self.upstream.cooldowns.are_over(lane));
        if !closed || !at_ease || !self.upstream.hedges.spend() {
            return false;
        }
        let paid = operation.hedge();
        if !paid {
            self.upstream.hedges.give_back();
        }
        paid
    }

    fn latencies(&self) -> Option<&Latencies> {
        self.upstream.latencies.get_or_init(Latencies::new).as_ref()
    }

    /// Tells what came of the attempt to those who let it through. Returns the breaker's new state,
    /// if it has changed. `assessment` is `None` if the attempt says nothing about this origin.
    pub(super) fn settle(
        &self,
        pass: Pass<'_>,
        assessment: Option<&Assessment>,
        latency: Option<Duration>,
        max_retry_after: Duration,
        now: Instant,
    ) -> Option<BreakerState> {
        let Some(assessment) = assessment else {
            pass.probe.into_iter().for_each(|probe| probe.passed());
            return None;
        };
        let answered = matches!(assessment.class, Class::Success | Class::Permanent) && assessment.failure.is_none();
        if let (Some(Some(latencies)), Some(latency)) = (self.upstream.latencies.get(), latency.filter(|_| answered)) {
            latencies.record(latency, now);
        }
        let answered_with = assessment.status.filter(|_| assessment.failure.is_none());
        let cooldown = answered_with.and_then(|status| cooldown_asked_for(status, &assessment.hint, max_retry_after));
        match (self.lane, cooldown) {
            // Before the probe is dropped, so that nobody goes in between.
            (Some(lane), Some(length)) => self.upstream.cooldowns.begin(lane, length, now),
            _ => pass.probe.into_iter().for_each(|probe| probe.passed()),
        }
        // A certificate or a body of the caller's that failed says nothing about how the origin bears its load.
        let ours = assessment.class == Class::Permanent && assessment.failure.is_some();
        pass.permit.filter(|_| !ours)?.record(assessment.class, now.saturating_duration_since(pass.started), now)
    }

    /// For how long from `now` nothing will be let through.
    pub(super) fn circuit_open_for(&self, now: Instant) -> Duration {
        self.upstream.breaker.as_ref().map_or(Duration::ZERO, |breaker| breaker.state(now).open_for())
    }
}

impl Pass<'_> {
    /// The circuit was open, and this is its first probe.
    pub(super) fn half_opened(&self) -> bool {
        self.permit.as_ref().is_some_and(Permit::half_opened)
    }
}
