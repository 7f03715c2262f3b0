//! Admits the attempts of one operation, and reports their ends to the mechanisms that protect the
//! origin.
//!
//! The decision is in `steadfast-core`, in `admission.rs`, which never waits. This file adds the
//! clock, the cooldown of the request's lane, and the latencies of the origin. Each mechanism is
//! off unless you build the client with it. Switched off, it costs one comparison.

use std::time::{Duration, Instant};

use super::assessment::Assessment;
use super::cooldown::{CooldownProbe, Lane};
use super::origin::Origin;
use crate::clock;
use crate::inner::Inner;
use crate::policy::{AdmissionStep, BreakerState, Class, Denied, HedgePolicy, Operation, Permit, cooldown_asked_for};
use steadfast_core::latency::Latencies;

/// Admits the attempts of one operation.
pub(super) struct Admission<'a> {
    origin: &'a Origin,
    /// The lane of the request, or `None` without cooldowns.
    lane: Option<Lane>,
}

/// Permission for one attempt. Dropped, it returns its permit and its probe.
pub(super) struct Admitted<'a> {
    pub(super) started: Instant,
    permit: Option<Permit<'a>>,
    /// Boxed: every attempt has room for it, and one in a cooldown has it.
    probe: Option<Box<CooldownProbe<'a>>>,
}

impl<'a> Admission<'a> {
    /// `request` is the request as it will be sent, by which its lane is known.
    pub(super) fn new(client: &Inner, origin: &'a Origin, request: impl FnOnce() -> reqwest::Request) -> Self {
        Self { origin, lane: client.overload.cooldown.as_ref().map(|lanes| lanes.of(request)) }
    }

    /// Waits until no cooldown holds the attempt back, and then admits it if there is time for it
    /// and the circuit is closed.
    pub(super) async fn enter(&self, operation: &mut Operation<'_>, now: Instant) -> Result<Admitted<'a>, Denied> {
        match self.lane.filter(|lane| !self.origin.cooldowns.are_over(*lane)) {
            // Boxed, so that an operation without a cooldown has no room for the wait.
            Some(lane) => Box::pin(self.wait(lane, operation)).await,
            None => self.admit(operation, now),
        }
    }

    #[inline]
    fn admit(&self, operation: &Operation<'_>, now: Instant) -> Result<Admitted<'a>, Denied> {
        let permit = self.origin.admission.admit(operation.deadline(), now)?;
        Ok(Admitted { started: now, permit, probe: None })
    }

    async fn wait(&self, lane: Lane, operation: &mut Operation<'_>) -> Result<Admitted<'a>, Denied> {
        let cooldowns = &self.origin.cooldowns;
        while let Some(cooldown) = cooldowns.find(lane) {
            // Registered before the question, so that the end of a probe in between is not missed.
            let probe_ended = cooldown.probe_ended();
            let now = clock::now();
            let step = self.origin.admission.enter(&mut cooldown.state(), operation, now);
            match step {
                AdmissionStep::Admit { permit, goes_first } => {
                    let probe = goes_first.then(|| Box::new(cooldowns.probe(lane, cooldown.clone())));
                    return Ok(Admitted { started: now, permit, probe });
                }
                AdmissionStep::Deny(denied) => return Err(denied),
                AdmissionStep::Wait(wait) => clock::sleep(wait).await,
                AdmissionStep::WaitForProbe(spread) => {
                    let deadline = operation.deadline();
                    // If the deadline comes first, `Spread::wait` returns that error.
                    let _ended_or_late = clock::until(deadline, probe_ended).await;
                    clock::sleep(spread.wait(deadline, clock::now(), clock::unit)?).await;
                }
            }
        }
        self.admit(operation, clock::now())
    }

    /// Returns after how long an attempt that starts now is late, or `None` if it is not hedged.
    pub(super) fn late_after(&self, policy: Option<&HedgePolicy>, admitted: &Admitted<'_>) -> Option<Duration> {
        let quantile = |share| self.latencies()?.quantile(share, admitted.started);
        self.origin.admission.late_after(policy, admitted.probe.is_some(), quantile)
    }

    /// Returns whether a hedge may go out now, and pays for it.
    pub(super) fn lets_hedge(&self, operation: &mut Operation<'_>) -> bool {
        let cools = self.lane.is_some_and(|lane| !self.origin.cooldowns.are_over(lane));
        self.origin.admission.admit_hedge(cools, operation, clock::now())
    }

    fn latencies(&self) -> Option<&Latencies> {
        self.origin.latencies.get_or_init(Latencies::new).as_ref()
    }

    /// Records how an attempt ended with what admitted it. Returns the breaker's new state, if it
    /// has changed. `assessment` is `None` if the attempt says nothing about this origin.
    pub(super) fn settle(
        &self,
        admitted: Admitted<'_>,
        assessment: Option<&Assessment>,
        latency: Option<Duration>,
        max_retry_after: Duration,
        now: Instant,
    ) -> Option<BreakerState> {
        // A failed certificate or request body tells nothing about the load of the origin.
        let assessment = assessment.filter(|ended| ended.class != Class::Permanent || ended.failure.is_none());
        if let Some(lane) = self.lane {
            let response = assessment.filter(|ended| ended.failure.is_none());
            let asked =
                response.and_then(|ended| cooldown_asked_for(ended.status?, ended.class, &ended.hint, max_retry_after));
            self.origin.cooldowns.settle(lane, admitted.probe, asked, now);
        }
        let Assessment { class, failure, .. } = assessment?;
        let is_answered = matches!(class, Class::Success | Class::Permanent) && failure.is_none();
        if let (Some(Some(latencies)), Some(latency)) = (self.origin.latencies.get(), latency.filter(|_| is_answered)) {
            latencies.record(latency, now);
        }
        let took = now.saturating_duration_since(admitted.started);
        admitted.permit?.record_with_jitter(*class, took, now, clock::unit)
    }

    /// Returns for how long from `now` the circuit lets no call through.
    pub(super) fn circuit_open_for(&self, now: Instant) -> Duration {
        self.origin.admission.circuit_open_for(now)
    }
}

impl Admitted<'_> {
    /// Returns whether the circuit was open, and this is its first probe.
    pub(super) fn half_opened(&self) -> bool {
        self.permit.as_ref().is_some_and(Permit::half_opened)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use reqwest::Url;

    use super::*;
    use crate::Client;
    use crate::attempt_result::AttemptProgress;
    use crate::origin::{OriginMap, OriginSettings};
    use crate::policy::{Hint, Idempotency, RetryBudget, RetryPolicy, StopReason, TokenBucket};
    use crate::redirect::RedirectState;

    const LONGEST: Duration = Duration::from_secs(60);

    fn url() -> Url {
        "http://api.test/".parse().unwrap()
    }

    fn admission<'a>(client: &Client, origin: &'a Origin) -> Admission<'a> {
        Admission::new(client.inner().unwrap(), origin, || reqwest::Request::new(http::Method::GET, url()))
    }

    fn refusal(after: Duration) -> Assessment {
        let mut refusal = Assessment::of_cancelled(&AttemptProgress::new(1, false, RedirectState::default()));
        (refusal.status, refusal.failure) = (Some(http::StatusCode::SERVICE_UNAVAILABLE), None);
        refusal.hint = Hint::from(Some(after));
        refusal
    }

    #[tokio::test]
    async fn ended_cooldown_leaves_nothing_behind() {
        let origin = OriginMap::new(OriginSettings::default(), None).get(&url());
        let client = Client::builder().cooldown().build().unwrap();
        let admission = admission(&client, &origin);
        let (policy, bucket) = (RetryPolicy::never(), TokenBucket::new(RetryBudget::standard()));
        let mut operation = Operation::start(&policy, &bucket, Idempotency::Absent, clock::now());
        let first = admission.enter(&mut operation, clock::now()).await.ok().unwrap();
        assert!(first.probe.is_none());
        let shortest = Duration::from_nanos(1);
        assert!(admission.settle(first, Some(&refusal(shortest)), None, LONGEST, clock::now()).is_none());
        let probe = admission.enter(&mut operation, clock::now()).await.ok().unwrap();
        assert!(probe.probe.is_some() && !admission.lets_hedge(&mut operation), "the first goes as a probe");
        drop(probe);
        let probe = admission.enter(&mut operation, clock::now()).await.ok().unwrap();
        assert!(probe.probe.is_some(), "one that is dropped leaves it to the next");
        admission.settle(probe, None, None, LONGEST, clock::now());
        let next = admission.enter(&mut operation, clock::now()).await.ok().unwrap();
        assert!(next.probe.is_none() && origin.cooldowns.are_empty());
    }

    /// It is dropped, and the one after it is denied: neither keeps the place of the probe.
    #[tokio::test(start_paused = true)]
    async fn end_of_probe_wakes_waiting_operations() {
        let origin = OriginMap::new(OriginSettings::default(), None).get(&url());
        let client = Client::builder().cooldown().build().unwrap();
        let admission = admission(&client, &origin);
        let (policy, bucket) = (RetryPolicy::never(), TokenBucket::new(RetryBudget::standard()));
        let start = || Operation::start(&policy, &bucket, Idempotency::Absent, clock::now());
        let first = admission.enter(&mut start(), clock::now()).await.ok().unwrap();
        admission.settle(first, Some(&refusal(Duration::from_secs(1))), None, LONGEST, clock::now());
        tokio::time::advance(Duration::from_secs(1)).await;
        let (mut one, mut other) = (start(), start());
        let probe = admission.enter(&mut one, clock::now()).await.ok().unwrap();
        let mut waits = std::pin::pin!(admission.enter(&mut other, clock::now()));
        let is_pending = std::future::poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_pending())).await;
        assert!(is_pending, "until the probe has ended");
        drop(probe);
        let mut late = start();
        late.end_by(clock::now());
        let denied = admission.enter(&mut late, clock::now()).await.err();
        assert_eq!(denied.map(|denied| denied.reason), Some(StopReason::DeadlineExceeded));
        let probe = waits.await.ok().unwrap();
        assert!(probe.probe.is_some(), "the place of the one that was denied is free");
    }
}
