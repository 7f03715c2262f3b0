//! One client: the state that all of its operations share.
//!
//! Its retry tokens, its latencies, and the state machine that admits its attempts. All of them are
//! the client's own (`steadfast-core/src/admission.rs`); only the waiting is left to the simulated
//! world.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use super::fleet::Fleet;
use super::server::Reply;
use steadfast_core::latency::Latencies;
use steadfast_core::{
    AdmissionState, AdmissionStep, Class, CooldownState, HedgeAt, Idempotency, Operation, Permit, TokenBucket,
    cooldown_asked_for,
};

#[derive(Debug)]
pub(super) struct Caller<'a> {
    pub(super) fleet: usize,
    pub(super) settings: &'a Fleet,
    pub(super) bucket: TokenBucket,
    admission: AdmissionState,
    /// `None` without a cooldown.
    cooldown: Option<RefCell<CooldownState>>,
    /// Kept if hedges go by a quantile.
    latencies: Option<Latencies>,
}

/// Permission for one attempt.
#[derive(Debug)]
pub(super) struct Admitted<'a> {
    permit: Option<Permit<'a>>,
    pub(super) is_probe: bool,
}

impl<'a> Admitted<'a> {
    pub(super) fn new(permit: Option<Permit<'a>>, is_probe: bool) -> Self {
        Self { permit, is_probe }
    }
}

impl<'a> Caller<'a> {
    pub(super) fn new(fleet: usize, settings: &'a Fleet) -> Self {
        let by_quantile = settings.hedge.is_some_and(|policy| matches!(policy.at, HedgeAt::Quantile(_)));
        Self {
            fleet,
            settings,
            bucket: TokenBucket::new(settings.budget),
            admission: AdmissionState::new(settings.breaker.clone()),
            cooldown: settings.cooldown.then(RefCell::default),
            latencies: by_quantile.then(Latencies::new).flatten(),
        }
    }

    /// Returns the next step of an attempt that is to go out.
    pub(super) fn enter(&self, operation: &mut Operation<'_>, now: Instant) -> AdmissionStep<'_> {
        match &self.cooldown {
            Some(cooldown) => self.admission.enter(&mut cooldown.borrow_mut(), operation, now),
            None => match self.admission.admit(operation.deadline(), now) {
                Ok(permit) => AdmissionStep::Admit { permit, goes_first: false },
                Err(denied) => AdmissionStep::Deny(denied),
            },
        }
    }

    /// Returns after how long this attempt is late, or `None` if it is not hedged. Beside a retry
    /// there is no hedge.
    pub(super) fn late_after(&self, is_probe: bool, is_first: bool, now: Instant) -> Option<Duration> {
        let is_safe = self.settings.idempotency == Idempotency::Natural;
        let policy = self.settings.hedge.as_ref().filter(|_| is_first && is_safe);
        self.admission.late_after(policy, is_probe, |share| self.latencies.as_ref()?.quantile(share, now))
    }

    /// Returns whether a hedge may go out now, and pays for it.
    pub(super) fn admits_hedge(&self, operation: &mut Operation<'_>, now: Instant) -> bool {
        let cools = self.cooldown.as_ref().is_some_and(|cooldown| !cooldown.borrow().is_over());
        self.admission.admit_hedge(cools, operation, now)
    }

    /// Records how an attempt ended that took this long. `latency` is that of the server. `unit`
    /// draws a number if the circuit opens.
    pub(super) fn settle(
        &self,
        admitted: Admitted<'_>,
        reply: &Reply,
        (took, latency): (Duration, Option<Duration>),
        now: Instant,
        unit: impl FnOnce() -> f64,
    ) {
        let is_answered = matches!(reply.class, Class::Success | Class::Permanent);
        if let (Some(latencies), Some(latency)) = (&self.latencies, latency.filter(|_| is_answered)) {
            latencies.record(latency, now);
        }
        if let Some(cooldown) = &self.cooldown {
            let mut cooldown = cooldown.borrow_mut();
            let asked = self.asked_for(reply);
            asked.into_iter().for_each(|length| cooldown.begin(length, now));
            if admitted.is_probe {
                cooldown.probe_ended(asked.is_some(), now);
            }
        }
        if let Some(permit) = admitted.permit {
            permit.record_with_jitter(reply.class, took, now, unit);
        }
    }

    fn asked_for(&self, reply: &Reply) -> Option<Duration> {
        cooldown_asked_for(reply.status?, reply.class, &reply.hint, self.settings.policy.max_retry_after)
    }

    /// Returns for how long from `now` nothing will be let through.
    pub(super) fn circuit_open_for(&self, now: Instant) -> Duration {
        self.admission.circuit_open_for(now)
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use steadfast_core::{BreakerPolicy, HedgePolicy, Hint, RetryPolicy};

    const SECOND: Duration = Duration::from_secs(1);

    fn refusal() -> Reply {
        let hint = Hint::from(Some(SECOND));
        Reply { class: Class::Ambiguous, status: Some(StatusCode::SERVICE_UNAVAILABLE), hint }
    }

    fn admitted<'a>(caller: &'a Caller<'_>, now: Instant) -> Admitted<'a> {
        let mut operation = Operation::start(&caller.settings.policy, &caller.bucket, Idempotency::Natural, now);
        match caller.enter(&mut operation, now) {
            AdmissionStep::Admit { permit, goes_first } => Admitted::new(permit, goes_first),
            step => panic!("{step:?}"),
        }
    }

    #[test]
    fn hedge_needs_plain_first_attempt_and_calm_origin() {
        let hedge = HedgePolicy::after(SECOND).max_extra_load(1.0);
        let fleet = Fleet::new(&RetryPolicy::new()).cooldown().breaker(BreakerPolicy::new().min_calls(2)).hedge(hedge);
        let (caller, now) = (Caller::new(0, &fleet), steadfast_core::clock::now());
        let start = || Operation::start(&fleet.policy, &caller.bucket, Idempotency::Natural, now);
        let first = admitted(&caller, now);
        assert_eq!(caller.late_after(first.is_probe, true, now), Some(SECOND));
        assert_eq!(caller.late_after(first.is_probe, false, now), None, "beside a retry");
        assert!(caller.admits_hedge(&mut start(), now));
        caller.settle(first, &refusal(), (SECOND, None), now, || 1.0);
        assert!(!caller.admits_hedge(&mut start(), now), "while it cools down");
        let probe = admitted(&caller, now + SECOND);
        assert!(probe.is_probe && caller.late_after(probe.is_probe, true, now).is_none());
        assert!(!caller.admits_hedge(&mut start(), now + SECOND), "until the probe has passed");
        caller.settle(probe, &Reply::TIMEOUT, (SECOND, None), now + SECOND, || 1.0);
        assert!(!caller.admits_hedge(&mut start(), now + SECOND), "the circuit is open");
    }
}
