//! One client, as far as it is the same for all of its operations: its budget, what it knows of the server, and the gate that
//! its attempts go through.
//!
//! This is `client/gate.rs` in simulated time: the same questions to the same parts in the same order. Only the waiting is the
//! world's.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use super::fleet::Fleet;
use super::server::Reply;
use crate::client::latency::Latencies;
use crate::policy::{
    Breaker, BreakerState, Class, Cooling, HedgeAllowance, HedgeAt, Idempotency, Leave, Operation, Permit, TokenBucket,
    cooldown_asked_for,
};

#[derive(Debug)]
pub(super) struct Caller<'a> {
    pub(super) fleet: usize,
    pub(super) settings: &'a Fleet,
    pub(super) budget: TokenBucket,
    breaker: Option<Breaker>,
    cooling: Option<RefCell<Cooling>>,
    /// Kept if something asks how long the server takes.
    latencies: Option<Latencies>,
    hedges: HedgeAllowance,
}

/// What the gate says to an attempt.
#[derive(Debug)]
pub(super) enum Entry<'a> {
    Go(Pass<'a>),
    /// Ask again after this time.
    Wait(Duration),
    /// Ask again within this time, once the probe has ended.
    WaitForProbe(Duration),
    /// The operation ends here. If it was to be the probe, another may go first.
    Held {
        was_probe: bool,
    },
}

/// Leave for one attempt.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    permit: Option<Permit<'a>>,
    pub(super) is_probe: bool,
}

impl<'a> Caller<'a> {
    pub(super) fn new(fleet: usize, settings: &'a Fleet) -> Self {
        let by_quantile = settings.hedge.is_some_and(|policy| matches!(policy.at, HedgeAt::Quantile(_)));
        Self {
            fleet,
            settings,
            budget: TokenBucket::new(settings.budget),
            breaker: settings.breaker.clone().map(Breaker::new),
            cooling: settings.cooldown.then(RefCell::default),
            latencies: by_quantile.then(Latencies::new).flatten(),
            hedges: HedgeAllowance::default(),
        }
    }

    pub(super) fn enter(&self, operation: &mut Operation<'_>, now: Instant) -> Entry<'_> {
        let deadline = operation.deadline();
        let time_left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
        let is_probe = match self.cooling.as_ref().map_or(Leave::Go, |cooling| cooling.borrow_mut().ask(now)) {
            Leave::Go => false,
            Leave::GoFirst => true,
            Leave::Wait(wait) => {
                let held = operation.hold(wait, now);
                return if held.is_ok() { Entry::Wait(wait) } else { Entry::Held { was_probe: false } };
            }
            Leave::WaitForProbe(spread) => return Entry::WaitForProbe(spread.min(time_left)),
        };
        if time_left.is_zero() {
            return Entry::Held { was_probe: is_probe };
        }
        match self.breaker.as_ref().map(|breaker| breaker.acquire(now)).transpose() {
            Ok(permit) => Entry::Go(Pass { permit, is_probe }),
            Err(_open) => Entry::Held { was_probe: is_probe },
        }
    }

    /// After how long this attempt is late; `None` if it is not hedged. Beside a retry there is no hedge.
    pub(super) fn late_after(&self, pass: &Pass<'_>, is_first: bool, now: Instant) -> Option<Duration> {
        let is_safe = self.settings.idempotency == Idempotency::Natural;
        let policy = self.settings.hedge.filter(|_| is_first && is_safe && !pass.is_probe)?;
        self.hedges.earn(policy.max_extra_load);
        match policy.at {
            HedgeAt::After(time) => Some(time),
            HedgeAt::Quantile(share) => self.latencies.as_ref()?.quantile(share, now),
        }
    }

    /// Whether a hedge may go out now. If it may, it is paid for.
    pub(super) fn lets_hedge(&self, operation: &mut Operation<'_>, now: Instant) -> bool {
        let closed = self.breaker.as_ref().is_none_or(|breaker| breaker.state(now) == BreakerState::Closed);
        // A cooldown whose time is over holds back until a probe has passed.
        let at_ease = self.cooling.as_ref().is_none_or(|cooling| cooling.borrow().is_over());
        if !closed || !at_ease || !self.hedges.spend() {
            return false;
        }
        let paid = operation.hedge();
        if !paid {
            self.hedges.give_back();
        }
        paid
    }

    /// Tells what came of an attempt that took this long to those who let it through. `latency` is that of the server.
    pub(super) fn settle(
        &self,
        pass: Pass<'_>,
        reply: &Reply,
        took: Duration,
        latency: Option<Duration>,
        now: Instant,
    ) {
        let answered = matches!(reply.class, Class::Success | Class::Permanent);
        if let (Some(latencies), Some(latency)) = (&self.latencies, latency.filter(|_| answered)) {
            latencies.record(latency, now);
        }
        if let Some(cooling) = &self.cooling {
            let mut cooling = cooling.borrow_mut();
            let asked = self.asked_for(reply);
            asked.into_iter().for_each(|length| cooling.begin(length, now));
            if pass.is_probe {
                cooling.probed(asked.is_some(), now);
            }
        }
        if let Some(permit) = pass.permit {
            permit.record(reply.class, took, now);
        }
    }

    fn asked_for(&self, reply: &Reply) -> Option<Duration> {
        cooldown_asked_for(reply.status?, &reply.hint, self.settings.policy.max_retry_after)
    }

    /// A probe was not sent in the end: another may go first.
    pub(super) fn probe_was_held(&self, now: Instant) {
        if let Some(cooling) = &self.cooling {
            cooling.borrow_mut().probed(true, now);
        }
    }

    /// For how long from `now` nothing will be let through.
    pub(super) fn circuit_open_for(&self, now: Instant) -> Duration {
        self.breaker.as_ref().map_or(Duration::ZERO, |breaker| breaker.state(now).open_for())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{BreakerPolicy, HedgePolicy, Hint, RetryPolicy};
    use http::StatusCode;

    const SECOND: Duration = Duration::from_secs(1);

    fn refusal() -> Reply {
        let hint = Hint::from(Some(SECOND));
        Reply { class: Class::Ambiguous, status: Some(StatusCode::SERVICE_UNAVAILABLE), hint }
    }

    fn operation<'a>(caller: &'a Caller<'_>, now: Instant) -> Operation<'a> {
        Operation::start(&caller.settings.policy, &caller.budget, Idempotency::Natural, now)
    }

    fn pass<'a>(caller: &'a Caller<'_>, now: Instant) -> Pass<'a> {
        match caller.enter(&mut operation(caller, now), now) {
            Entry::Go(pass) => pass,
            entry => panic!("{entry:?}"),
        }
    }

    /// What the gate says, in a word.
    fn ask(caller: &Caller<'_>, deadline: Option<Instant>, now: Instant) -> &'static str {
        let mut operation = operation(caller, now);
        deadline.into_iter().for_each(|deadline| operation.end_by(deadline));
        match caller.enter(&mut operation, now) {
            Entry::Go(pass) if pass.is_probe => "probe",
            Entry::Go(_) => "go",
            Entry::Wait(_) => "wait",
            Entry::WaitForProbe(_) => "wait for the probe",
            Entry::Held { was_probe: true } => "held, and was the probe",
            Entry::Held { was_probe: false } => "held",
        }
    }

    #[test]
    fn a_cooldown_is_asked_first_and_a_probe_that_is_held_leaves_it_to_the_next() {
        // The breaker's lock is loom's in these tests.
        loom::model(|| {
            let fleet = Fleet::new(&RetryPolicy::new()).cooldown().breaker(BreakerPolicy::new().min_calls(1));
            let (caller, now) = (Caller::new(0, &fleet), crate::clock::now());
            caller.settle(pass(&caller, now), &refusal(), SECOND, None, now);
            assert_eq!(ask(&caller, None, now), "wait", "although the circuit is open");
            assert_eq!(ask(&caller, Some(now + SECOND), now), "held");
            let over = now + SECOND;
            assert_eq!(ask(&caller, None, over), "held, and was the probe", "the circuit is open for 5 s");
            assert_eq!(ask(&caller, None, over), "wait for the probe");
            caller.probe_was_held(over);
            assert_eq!(ask(&caller, None, now + 5 * SECOND), "probe");
        });
    }

    #[test]
    fn a_hedge_is_beside_a_first_attempt_that_is_no_probe_and_while_all_is_well() {
        // The breaker's lock is loom's in these tests.
        loom::model(|| {
            let hedge = HedgePolicy::after(SECOND).max_extra_load(1.0);
            let fleet =
                Fleet::new(&RetryPolicy::new()).cooldown().breaker(BreakerPolicy::new().min_calls(2)).hedge(hedge);
            let (caller, now) = (Caller::new(0, &fleet), crate::clock::now());
            let start = || Operation::start(&fleet.policy, &caller.budget, Idempotency::Natural, now);
            let first = pass(&caller, now);
            assert_eq!(caller.late_after(&first, true, now), Some(SECOND));
            assert_eq!(caller.late_after(&first, false, now), None, "beside a retry");
            assert!(caller.lets_hedge(&mut start(), now));
            caller.settle(first, &refusal(), SECOND, None, now);
            assert!(!caller.lets_hedge(&mut start(), now), "while it cools down");
            let probe = pass(&caller, now + SECOND);
            assert!(probe.is_probe && caller.late_after(&probe, true, now).is_none());
            assert!(!caller.lets_hedge(&mut start(), now + SECOND), "until the probe has passed");
            caller.settle(probe, &Reply::TIMEOUT, SECOND, None, now + SECOND);
            assert!(!caller.lets_hedge(&mut start(), now + SECOND), "the circuit is open");
        });
    }
}
