//! Admission: whether an attempt may go out now. It asks the cooldown, the time left and the
//! circuit breaker, in this order. It also decides whether a hedge may go out beside an attempt.
//!
//! It is a state machine that never waits. The time and a random number are arguments, and it
//! returns the next step. The client and the simulation both drive it: they ask, wait and ask
//! again. Its promises are in `guide/overload.md` of `steadfast`.

use std::time::{Duration, Instant};

use super::breaker::{Breaker, BreakerPolicy, BreakerState, Permit};
use super::cooldown::{CooldownState, Turn};
use super::decision::StopReason;
use super::hedge::{HedgeAllowance, HedgeAt, HedgePolicy};
use super::retry::Operation;

/// The state of one origin that decides about its attempts. Cooldowns are kept apart, because there
/// is one for each lane.
#[derive(Debug, Default)]
#[doc(hidden)]
pub struct AdmissionState {
    pub breaker: Option<Breaker>,
    hedges: HedgeAllowance,
}

/// The next step of an attempt that is to go out.
#[derive(Debug)]
#[doc(hidden)]
#[allow(clippy::exhaustive_enums, reason = "not public: the crates that use it have one version")]
pub enum AdmissionStep<'a> {
    /// Send it. If it `goes_first`, it is the cooldown's probe: report its end to the cooldown.
    Admit { permit: Option<Permit<'a>>, goes_first: bool },
    /// End the operation.
    Deny(Denied),
    /// Ask again after this time.
    Wait(Duration),
    /// Wait until the cooldown's probe has ended, then for [`Spread::wait`], and ask again.
    WaitForProbe(Spread),
}

/// The reason why an attempt may not go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
#[allow(clippy::exhaustive_structs, reason = "not public: the crates that use it have one version")]
pub struct Denied {
    pub reason: StopReason,
    /// When to try again, if that is known.
    pub retry_after: Option<Duration>,
}

impl Denied {
    /// Denies an attempt for a reason that no wait can remove.
    #[doc(hidden)]
    pub fn for_good(reason: StopReason) -> Self {
        Self { reason, retry_after: None }
    }
}

/// The time within which the waiting operations follow a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub struct Spread(Duration);

impl Spread {
    /// Returns how long to wait once the probe has ended: a random part of the spread, or of the
    /// time that is left if that is shorter.
    ///
    /// Fails if the deadline has passed meanwhile.
    #[doc(hidden)]
    pub fn wait(self, deadline: Option<Instant>, now: Instant, unit: impl FnOnce() -> f64) -> Result<Duration, Denied> {
        let time_left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
        if time_left.is_zero() {
            return Err(Denied::for_good(StopReason::DeadlineExceeded));
        }
        Ok(self.0.min(time_left).mul_f64(unit().clamp(0.0, 1.0)))
    }
}

impl AdmissionState {
    #[doc(hidden)]
    pub fn new(breaker: Option<BreakerPolicy>) -> Self {
        Self { breaker: breaker.map(Breaker::new), hedges: HedgeAllowance::default() }
    }

    /// Returns the next step of an attempt whose lane has a cooldown.
    #[doc(hidden)]
    pub fn enter<'a>(
        &'a self,
        cooldown: &mut CooldownState,
        operation: &mut Operation<'_>,
        now: Instant,
    ) -> AdmissionStep<'a> {
        let goes_first = match cooldown.ask(now) {
            Turn::Go => false,
            Turn::GoFirst => true,
            Turn::Wait(wait) => {
                let deny = |reason| Denied { reason, retry_after: Some(wait) };
                return match operation.hold(wait, now).map_err(deny) {
                    Ok(()) => AdmissionStep::Wait(wait),
                    Err(denied) => AdmissionStep::Deny(denied),
                };
            }
            Turn::WaitForProbe(spread) => return AdmissionStep::WaitForProbe(Spread(spread)),
        };
        match self.admit(operation.deadline(), now) {
            Ok(permit) => AdmissionStep::Admit { permit, goes_first },
            Err(denied) => {
                if goes_first {
                    // It is not sent, so the next attempt goes first. No other one waits for this
                    // probe, which ended at once.
                    cooldown.probe_ended(true, now);
                }
                AdmissionStep::Deny(denied)
            }
        }
    }

    /// Admits an attempt that no cooldown holds back, if there is time for it and the circuit lets
    /// it through.
    // The ordinary path.
    #[inline]
    #[doc(hidden)]
    pub fn admit(&self, deadline: Option<Instant>, now: Instant) -> Result<Option<Permit<'_>>, Denied> {
        // A wait was to end before the deadline, but a busy machine may have woken us late.
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Denied::for_good(StopReason::DeadlineExceeded));
        }
        let Some(breaker) = &self.breaker else { return Ok(None) };
        match breaker.acquire(now) {
            Ok(permit) => Ok(Some(permit)),
            Err(open) => Err(Denied { reason: StopReason::CircuitOpen, retry_after: Some(open.retry_after) }),
        }
    }

    /// Returns after how long an attempt counts as late, so that a hedge may go out beside it.
    /// `None`: no hedge. `quantile` returns a quantile of the origin's latencies.
    ///
    /// A cooldown's probe is not hedged, because it must be the only request.
    #[inline]
    #[doc(hidden)]
    pub fn late_after(
        &self,
        policy: Option<&HedgePolicy>,
        goes_first: bool,
        quantile: impl FnOnce(f64) -> Option<Duration>,
    ) -> Option<Duration> {
        let policy = policy.filter(|_| !goes_first)?;
        self.hedges.earn(policy.max_extra_load);
        match policy.at {
            HedgeAt::After(time) => Some(time),
            HedgeAt::Quantile(share) => quantile(share),
        }
    }

    /// Returns whether a hedge may go out now, and pays for it. `cools`: a cooldown holds the lane
    /// back, even if only until a probe has ended.
    #[doc(hidden)]
    pub fn admit_hedge(&self, cools: bool, operation: &mut Operation<'_>, now: Instant) -> bool {
        let is_closed = self.breaker.as_ref().is_none_or(|breaker| breaker.state(now) == BreakerState::Closed);
        if cools || !is_closed || !self.hedges.spend() {
            return false;
        }
        let is_paid = operation.hedge();
        if !is_paid {
            self.hedges.give_back();
        }
        is_paid
    }

    /// Returns for how long from `now` the circuit lets no call through.
    #[inline]
    #[doc(hidden)]
    pub fn circuit_open_for(&self, now: Instant) -> Duration {
        self.breaker.as_ref().map_or(Duration::ZERO, |breaker| breaker.state(now).open_for())
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::budget::{RetryBudget, TokenBucket};
    use super::super::class::{Class, Idempotency};
    use super::super::cooldown::cooldown_asked_for;
    use super::super::hint::Hint;
    use super::super::now_in_a_test;
    use super::super::settings::RetryPolicy;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// One origin with all that it needs, and one lane.
    struct Origin {
        policy: RetryPolicy,
        bucket: TokenBucket,
        admission: AdmissionState,
        cooldown: CooldownState,
    }

    impl Origin {
        fn new(breaker: Option<BreakerPolicy>) -> Self {
            Self {
                policy: RetryPolicy::new(),
                bucket: TokenBucket::new(RetryBudget::standard()),
                admission: AdmissionState::new(breaker),
                cooldown: CooldownState::default(),
            }
        }

        /// The next step of an operation that starts now, in a word.
        fn ask(&mut self, deadline: Option<Instant>, now: Instant) -> &'static str {
            let mut operation = Operation::start(&self.policy, &self.bucket, Idempotency::Natural, now);
            deadline.into_iter().for_each(|deadline| operation.end_by(deadline));
            match self.admission.enter(&mut self.cooldown, &mut operation, now) {
                AdmissionStep::Admit { goes_first: true, .. } => "probe",
                AdmissionStep::Admit { .. } => "go",
                AdmissionStep::Wait(_) => "wait",
                AdmissionStep::WaitForProbe(_) => "wait for the probe",
                AdmissionStep::Deny(_) => "denied",
            }
        }

        fn fail(&self, now: Instant) {
            let permit = self.admission.admit(None, now).unwrap();
            permit.map(|permit| permit.record(Class::Ambiguous, SECOND, now));
        }
    }

    #[test]
    fn cooldown_comes_before_time_and_circuit() {
        let (mut origin, now) = (Origin::new(Some(BreakerPolicy::new().min_calls(1))), now_in_a_test());
        assert_eq!(origin.ask(None, now), "go");
        assert_eq!(origin.ask(Some(now), now), "denied", "no time is left");
        origin.fail(now);
        assert_eq!(origin.ask(None, now), "denied", "the circuit is open");
        origin.cooldown.begin(SECOND, now);
        assert_eq!(origin.ask(None, now), "wait", "although the circuit is open");
        assert_eq!(origin.ask(Some(now + SECOND), now), "denied", "the deadline is no later than the cooldown's end");
    }

    #[test]
    fn denied_probe_leaves_its_place_to_the_next() {
        let (mut origin, now) = (Origin::new(Some(BreakerPolicy::new().min_calls(1))), now_in_a_test());
        origin.fail(now);
        origin.cooldown.begin(SECOND, now);
        let over = now + SECOND;
        assert_eq!(origin.ask(None, over), "denied", "the circuit is open for 5 s");
        assert_eq!(origin.ask(Some(over), over), "denied", "no time is left");
        assert_eq!(origin.ask(None, now + 5 * SECOND), "probe");
        assert_eq!(origin.ask(None, now + 5 * SECOND), "wait for the probe");
    }

    #[test]
    fn waiting_attempts_follow_the_probe_spread_out() {
        let (spread, now) = (Spread(SECOND), now_in_a_test());
        let wait = |deadline, unit| spread.wait(deadline, now, || unit).map(|wait| wait.as_millis());
        assert_eq!([0.0, 0.5, 1.0, 7.0].map(|unit| wait(None, unit)), [0, 500, 1000, 1000].map(Ok));
        assert_eq!(wait(Some(now + SECOND / 2), 0.5), Ok(250), "of the time that is left");
        let late = Denied::for_good(StopReason::DeadlineExceeded);
        assert_eq!(spread.wait(Some(now), now, || unreachable!("no chance is needed")), Err(late));
    }

    #[test]
    fn hedge_needs_a_closed_circuit_and_no_cooldown() {
        let (origin, now) = (Origin::new(Some(BreakerPolicy::new().min_calls(1))), now_in_a_test());
        let hedge = HedgePolicy::after(SECOND).max_extra_load(1.0);
        let late_after = |policy, goes_first| origin.admission.late_after(policy, goes_first, |_| None);
        assert_eq!(late_after(None, false), None);
        assert_eq!(late_after(Some(&hedge), true), None, "a probe is alone");
        assert_eq!(late_after(Some(&hedge), false), Some(SECOND));
        let quantile = HedgePolicy::quantile(0.98);
        assert_eq!(
            origin.admission.late_after(Some(&quantile), false, |share| Some(SECOND.mul_f64(share))),
            Some(SECOND * 98 / 100)
        );
        let admits = |cools, policy: &RetryPolicy| {
            let mut operation = Operation::start(policy, &origin.bucket, Idempotency::Natural, now);
            origin.admission.admit_hedge(cools, &mut operation, now)
        };
        assert!(!admits(true, &origin.policy), "while it cools down");
        assert!(!admits(false, &RetryPolicy::never()), "no attempt is left");
        assert!(admits(false, &origin.policy), "the one that was not sent is still there");
        late_after(Some(&hedge), false);
        origin.fail(now);
        assert!(!admits(false, &origin.policy), "the circuit is open");
    }

    #[derive(Clone, Copy, Debug)]
    enum Act {
        Pass(u64),
        /// An operation with so much time left asks, under way or not.
        Ask {
            left: Option<u64>,
        },
        /// An attempt under way ends.
        End {
            which: usize,
            status: u16,
            after: u64,
        },
        /// One is dropped.
        Drop {
            which: usize,
        },
        Hedge,
    }

    fn act() -> impl Strategy<Value = Act> {
        let left = prop_oneof![2 => Just(None), 1 => (0..8_000_u64).prop_map(Some)];
        let status = prop::sample::select(vec![200_u16, 404, 429, 500, 503]);
        let after = prop_oneof![Just(0_u64), 1..3_000_u64, Just(90_000_u64)];
        prop_oneof![
            3 => prop_oneof![0..50_u64, 0..6_000_u64, Just(60_000_u64)].prop_map(Act::Pass),
            6 => left.prop_map(|left| Act::Ask { left }),
            4 => (0..8_usize, status, after).prop_map(|(which, status, after)| Act::End { which, status, after }),
            1 => (0..8_usize).prop_map(|which| Act::Drop { which }),
            1 => Just(Act::Hedge),
        ]
    }

    /// The longest that a server may hold everybody back here.
    const LONGEST: Duration = Duration::from_secs(60);

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        /// What `guide/overload.md` promises, held against every answer of the machine.
        #[test]
        fn promises_hold_in_every_order_of_events(acts in vec(act(), 1..120), min_calls in 1..6_u32) {
            let policy = RetryPolicy::new().deadline(None);
            let bucket = TokenBucket::new(RetryBudget::standard().capacity(40));
            let breaker = BreakerPolicy::new().min_calls(min_calls).probes(2);
            let open_for = breaker.open_for;
            let (admission, mut cooldown) = (AdmissionState::new(Some(breaker)), CooldownState::default());
            let hedge = HedgePolicy::after(SECOND).max_extra_load(0.5);
            let mut now = now_in_a_test();
            // Until when the origin has asked to be left alone, and whether a probe has passed
            // since.
            let (mut quiet_until, mut is_at_ease) = (now, true);
            let mut under_way: Vec<(Option<Permit<'_>>, bool)> = Vec::new();
            let (mut eligible, mut hedged) = (0.0, 0.0);
            for act in acts {
                match act {
                    Act::Pass(time) => now += Duration::from_millis(time),
                    Act::Ask { left } => {
                        let deadline = left.map(|left| now + Duration::from_millis(left));
                        let mut operation = Operation::start(&policy, &bucket, Idempotency::Natural, now);
                        deadline.into_iter().for_each(|deadline| operation.end_by(deadline));
                        let (tokens, quiet) = (bucket.tokens(), quiet_until.saturating_duration_since(now));
                        let state = admission.breaker.as_ref().unwrap().state(now);
                        let probe_is_out = under_way.iter().any(|(_, goes_first)| *goes_first);
                        match admission.enter(&mut cooldown, &mut operation, now) {
                            AdmissionStep::Admit { permit, goes_first } => {
                                prop_assert!(quiet.is_zero(), "the origin asked to be left alone");
                                prop_assert!(deadline.is_none_or(|deadline| now < deadline));
                                let is_open = matches!(state, BreakerState::Open { .. });
                                prop_assert!(!is_open);
                                prop_assert_eq!(goes_first, !is_at_ease, "one goes first, and alone");
                                prop_assert!(!(goes_first && probe_is_out));
                                prop_assert_eq!(bucket.tokens(), tokens, "nothing is paid for");
                                let late = admission.late_after(Some(&hedge), goes_first, |_| None);
                                prop_assert_eq!(late, (!goes_first).then_some(SECOND), "a probe is not hedged");
                                eligible += f64::from(u8::from(!goes_first));
                                under_way.push((permit, goes_first));
                            }
                            AdmissionStep::Wait(wait) => {
                                prop_assert_eq!(wait, quiet, "as long as it was asked for, and no longer");
                                prop_assert!(!wait.is_zero() && wait <= LONGEST);
                                prop_assert!(deadline.is_none_or(|deadline| now + wait < deadline));
                                prop_assert_eq!(bucket.tokens() + 5, tokens, "the price of a throttled retry");
                            }
                            AdmissionStep::WaitForProbe(spread) => {
                                prop_assert!(quiet.is_zero() && probe_is_out);
                                let wait = spread.wait(deadline, now, || 1.0);
                                prop_assert!(wait.is_ok_and(|wait| wait <= SECOND) || deadline == Some(now));
                            }
                            AdmissionStep::Deny(denied) => {
                                let Denied { reason, retry_after } = denied;
                                match reason {
                                    StopReason::RetryAfterTooLong => {
                                        prop_assert!(deadline.is_some_and(|deadline| deadline <= quiet_until));
                                        prop_assert_eq!(retry_after, Some(quiet));
                                    }
                                    StopReason::BudgetExhausted => {
                                        prop_assert!(tokens < 5);
                                        prop_assert_eq!(retry_after, Some(quiet));
                                    }
                                    StopReason::DeadlineExceeded => {
                                        prop_assert!(quiet.is_zero() && deadline.is_some_and(|at| at <= now));
                                    }
                                    StopReason::CircuitOpen => {
                                        prop_assert!(quiet.is_zero() && state != BreakerState::Closed);
                                        prop_assert!(retry_after.is_some_and(|after| after <= open_for));
                                    }
                                    reason => prop_assert!(false, "{:?}", reason),
                                }
                                prop_assert_eq!(bucket.tokens(), tokens, "nothing is paid for");
                            }
                        }
                    }
                    Act::End { which, .. } | Act::Drop { which } if !under_way.is_empty() => {
                        let (permit, goes_first) = under_way.swap_remove(which % under_way.len());
                        let mut is_refused = true;
                        if let Act::End { status, after, .. } = act {
                            let status = StatusCode::from_u16(status).unwrap();
                            let hint = Hint::from(Some(Duration::from_millis(after)));
                            let asked = cooldown_asked_for(status, Class::of_status(status), &hint, LONGEST);
                            let is_asked = matches!(status.as_u16(), 429 | 503) && after > 0;
                            prop_assert_eq!(asked.is_some(), is_asked, "only 429 and 503 with a hint");
                            is_refused = is_asked;
                            if let Some(length) = asked {
                                cooldown.begin(length, now);
                                (quiet_until, is_at_ease) = (quiet_until.max(now + length), false);
                            }
                            permit.map(|permit| permit.record(Class::of_status(status), SECOND / 10, now));
                        }
                        if goes_first {
                            cooldown.probe_ended(is_refused, now);
                            is_at_ease |= !is_refused && quiet_until <= now;
                        }
                        prop_assert_eq!(cooldown.is_over(), is_at_ease);
                    }
                    Act::End { .. } | Act::Drop { .. } => {}
                    Act::Hedge => {
                        let mut operation = Operation::start(&policy, &bucket, Idempotency::Natural, now);
                        let (tokens, state) = (bucket.tokens(), admission.breaker.as_ref().unwrap().state(now));
                        let is_admitted = admission.admit_hedge(!cooldown.is_over(), &mut operation, now);
                        if is_admitted {
                            prop_assert!(is_at_ease && state == BreakerState::Closed);
                            prop_assert_eq!(bucket.tokens() + 14, tokens, "the price of a retry");
                            hedged += 1.0;
                            prop_assert!(hedged <= 1.0 + eligible * hedge.max_extra_load, "the load limit");
                        } else {
                            prop_assert_eq!(bucket.tokens(), tokens);
                        }
                    }
                }
            }
        }
    }
}
