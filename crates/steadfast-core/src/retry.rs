//! One operation. You pass in the class of each attempt, and it returns the next step.
//!
//! The questions are asked in the order of [`StopReason`], and the first "no" is the reason that
//! the caller reads. The budget is asked last, so that it is charged only for a retry that will be
//! made. A free repeat skips the questions about attempts and budget, and no other. So does the one
//! repeat with a fresh token, after a 401.

use std::fmt;
use std::time::{Duration, Instant};

use super::backoff::Waits;
use super::budget::{Pending, TokenBucket};
use super::class::{Class, Idempotency};
use super::decision::{Decision, StopReason};
use super::hint::Hint;
use super::settings::RetryPolicy;

/// One operation and its attempts so far.
///
/// A driver calls [`begin_attempt`](Self::begin_attempt), sends the request, calls
/// [`decide`](Self::decide), and waits or stops. If you drop the operation after a decision to
/// retry and before the attempt, it returns the tokens of that retry. [`Decision`] shows a whole
/// loop.
pub struct Operation<'a> {
    policy: &'a RetryPolicy,
    budget: &'a TokenBucket,
    idempotency: Idempotency,
    key_trusted: bool,
    body_replayable: bool,
    is_nested: bool,
    /// The last attempt was an upload that was too slow for a limit that each attempt has.
    upload_too_slow: bool,
    /// An attempt may have been carried out.
    at_risk: bool,
    misdirected: bool,
    deadline: Option<Instant>,
    /// From the time of the next decision.
    circuit_open_for: Duration,
    decided: u32,
    /// Free repeats among the attempts that were decided on.
    free: u8,
    /// The last decision is a free repeat.
    repeats_free: bool,
    /// A token was refused, and the request has gone again with a fresh one.
    took_fresh_token: bool,
    waits: Option<Waits>,
    pending: Pending,
    /// Tokens that the last retry cost.
    last_charge: Option<u64>,
    pause: Duration,
}

impl<'a> Operation<'a> {
    /// Starts an operation at `now`. Its key is trusted and its body can be sent again, unless
    /// [`set_key_trusted`](Self::set_key_trusted) and
    /// [`set_body_replayable`](Self::set_body_replayable) change that.
    #[must_use]
    pub fn start(policy: &'a RetryPolicy, budget: &'a TokenBucket, idempotency: Idempotency, now: Instant) -> Self {
        budget.deposit();
        Self {
            policy,
            budget,
            idempotency,
            key_trusted: true,
            body_replayable: true,
            is_nested: false,
            upload_too_slow: false,
            at_risk: false,
            misdirected: false,
            // A deadline beyond the clock's range is none.
            deadline: policy.deadline.duration().and_then(|time| now.checked_add(time)),
            circuit_open_for: Duration::ZERO,
            decided: 0,
            free: 0,
            repeats_free: false,
            took_fresh_token: false,
            waits: policy.backoff.waits(),
            pending: Pending::Nothing,
            last_charge: None,
            pause: Duration::ZERO,
        }
    }

    /// Sets whether the API is known to honour the key. It matters only for [`Idempotency::Keyed`].
    ///
    /// ```
    /// use std::time::Instant;
    /// use steadfast_core::{Class, Decision, Hint, Idempotency, Operation, RetryPolicy, StopReason, TokenBucket};
    ///
    /// let (policy, bucket, now) = (RetryPolicy::new(), TokenBucket::default(), Instant::now());
    /// let mut operation = Operation::start(&policy, &bucket, Idempotency::Keyed, now);
    /// operation.set_key_trusted(false);
    /// let decision = operation.decide(Class::Ambiguous, &Hint::default(), now, 0.5);
    /// assert_eq!(decision, Decision::Stop(StopReason::KeyNotTrusted));
    /// ```
    pub fn set_key_trusted(&mut self, trusted: bool) {
        self.key_trusted = trusted;
    }

    /// Records that an attempt outside of this operation may have been carried out: one of an
    /// earlier process, or the other one of a hedged pair. [`decide`](Self::decide) records an
    /// `Ambiguous` attempt itself.
    ///
    /// ```
    /// use std::time::Instant;
    /// use steadfast_core::{Idempotency, Operation, RetryPolicy, TokenBucket};
    ///
    /// let (policy, bucket) = (RetryPolicy::new(), TokenBucket::default());
    /// let mut resumed = Operation::start(&policy, &bucket, Idempotency::Keyed, Instant::now());
    /// resumed.set_at_risk(); // by the process that crashed
    /// resumed.set_key_trusted(false);
    /// assert!(resumed.needs_licence()); // so do not send it
    /// ```
    pub fn set_at_risk(&mut self) {
        self.at_risk = true;
    }

    /// Returns whether an attempt may have been carried out and there is no licence to repeat it.
    /// Ask again before each attempt, if the licence can be lost while the operation waits.
    #[must_use]
    pub fn needs_licence(&self) -> bool {
        self.at_risk && !self.is_licensed()
    }

    /// Limits the operation to one attempt, because it is itself an attempt of another operation. That
    /// one repeats it. Two loops of four attempts each would send a request sixteen times.
    ///
    /// ```
    /// use std::time::Instant;
    /// use steadfast_core::{Class, Decision, Hint, Idempotency, Operation, RetryPolicy, StopReason, TokenBucket};
    ///
    /// let (policy, bucket, now) = (RetryPolicy::new(), TokenBucket::default(), Instant::now());
    /// let mut inner = Operation::start(&policy, &bucket, Idempotency::Natural, now);
    /// inner.set_nested();
    /// let decision = inner.decide(Class::NotProcessed, &Hint::default(), now, 0.5);
    /// assert_eq!(decision, Decision::Stop(StopReason::Nested));
    /// ```
    pub fn set_nested(&mut self) {
        self.is_nested = true;
    }

    /// Returns whether an attempt may have been carried out.
    #[doc(hidden)]
    pub fn is_at_risk(&self) -> bool {
        self.at_risk
    }

    /// Sets the licence, if it changes on the way: a POST that was redirected to its result is
    /// repeated as the GET of that result.
    pub fn set_idempotency(&mut self, idempotency: Idempotency) {
        self.idempotency = idempotency;
    }

    /// Sets whether the request's body can be sent a second time. Default: `true`.
    ///
    /// ```
    /// use std::time::Instant;
    /// use steadfast_core::{Class, Decision, Hint, Idempotency, Operation, RetryPolicy, StopReason, TokenBucket};
    ///
    /// let (policy, bucket, now) = (RetryPolicy::new(), TokenBucket::default(), Instant::now());
    /// let mut upload = Operation::start(&policy, &bucket, Idempotency::Natural, now);
    /// upload.set_body_replayable(false); // a stream
    /// let decision = upload.decide(Class::NotProcessed, &Hint::default(), now, 0.5);
    /// assert_eq!(decision, Decision::Stop(StopReason::BodyNotReplayable));
    /// ```
    pub fn set_body_replayable(&mut self, replayable: bool) {
        self.body_replayable = replayable;
    }

    /// Ends the operation at `deadline`, unless its own deadline is earlier. Use it for the
    /// caller's deadline, or for the time at which the API forgets the key.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use steadfast_core::{Idempotency, Operation, RetryPolicy, TokenBucket};
    ///
    /// let (policy, bucket, now) = (RetryPolicy::new(), TokenBucket::default(), Instant::now());
    /// let mut operation = Operation::start(&policy, &bucket, Idempotency::Natural, now);
    /// assert_eq!(operation.deadline(), Some(now + Duration::from_secs(30))); // of the policy
    /// operation.end_by(now + Duration::from_secs(2));
    /// assert_eq!(operation.deadline(), Some(now + Duration::from_secs(2)));
    /// ```
    pub fn end_by(&mut self, deadline: Instant) {
        self.deadline = Some(self.deadline.map_or(deadline, |own| own.min(deadline)));
    }

    /// Sets how long the origin's circuit stays open, from the `now` of the next decision. Zero
    /// means that it is not open. A shorter wait ends the operation as
    /// [`CircuitOpen`](StopReason::CircuitOpen).
    ///
    /// ```
    /// use std::time::Instant;
    /// use steadfast_core::{Breaker, BreakerPolicy, Idempotency, Operation, RetryPolicy, TokenBucket};
    ///
    /// let (policy, bucket, now) = (RetryPolicy::new(), TokenBucket::default(), Instant::now());
    /// let breaker = Breaker::new(BreakerPolicy::new());
    /// let mut operation = Operation::start(&policy, &bucket, Idempotency::Natural, now);
    /// // Before each decision:
    /// operation.set_circuit_open_for(breaker.state(now).open_for());
    /// ```
    pub fn set_circuit_open_for(&mut self, time: Duration) {
        self.circuit_open_for = time;
    }

    /// Returns the instant after which no attempt starts and no wait ends.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Returns the number of attempts that were decided on so far, free repeats included.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.decided
    }

    /// Returns whether the last retry is a [free repeat](RetryPolicy#free-repeats).
    #[must_use]
    pub fn repeats_free(&self) -> bool {
        self.repeats_free
    }

    /// Returns whether a repeat after such an attempt would be [free](RetryPolicy#free-repeats), if
    /// it is allowed at all.
    #[must_use]
    pub fn has_free_repeat(&self, class: Class, hint: &Hint) -> bool {
        let was_refused = hint.refused && class == Class::NotProcessed;
        // If the server names a time, a repeat before it is not free.
        was_refused && hint.after.is_none() && self.free < self.policy.free_repeats
    }

    /// Returns the attempts that count towards `max_attempts`.
    fn counted(&self) -> u32 {
        self.decided.saturating_sub(u32::from(self.free)).saturating_sub(u32::from(self.took_fresh_token))
    }

    /// Returns how long to wait before you report the end. It is zero, unless the budget ended an
    /// operation with [`pause_when_budget_empty`](RetryPolicy::pause_when_budget_empty).
    #[must_use]
    pub fn pause_before_the_end(&self) -> Duration {
        self.pause
    }

    /// Begins an attempt, just before you send it. From here on the tokens of its retry are spent.
    pub fn begin_attempt(&mut self) {
        if let Some(charge) = self.pending.take().charge() {
            self.last_charge = Some(charge);
        }
    }

    /// Returns whether acting twice is harmless: by the method, or by a key that is trusted.
    #[must_use]
    pub fn is_licensed(&self) -> bool {
        match self.idempotency {
            Idempotency::Natural => true,
            Idempotency::Keyed => self.key_trusted,
            Idempotency::Absent => false,
        }
    }

    /// Lets the operation wait for `wait`, because the origin has refused another operation and
    /// named a time.
    ///
    /// A wait costs as much as a retry after throttling, as if the operation had been refused
    /// itself. The wait of a retry that was decided on is paid for already; each further one costs
    /// again. If waits were free, all operations would come back together, at a server that has
    /// just recovered.
    ///
    /// # Errors
    ///
    /// [`RetryAfterTooLong`](StopReason::RetryAfterTooLong) if the deadline is nearer, and
    /// [`BudgetExhausted`](StopReason::BudgetExhausted) if there are not enough tokens.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use steadfast_core::{Idempotency, Operation, RetryPolicy, StopReason, TokenBucket};
    ///
    /// let (policy, bucket, now) = (RetryPolicy::new(), TokenBucket::default(), Instant::now());
    /// let mut operation = Operation::start(&policy, &bucket, Idempotency::Natural, now);
    /// assert_eq!(operation.hold(Duration::from_secs(5), now), Ok(()));
    /// let hour = Duration::from_secs(3600);
    /// assert_eq!(operation.hold(hour, now), Err(StopReason::RetryAfterTooLong));
    /// ```
    pub fn hold(&mut self, wait: Duration, now: Instant) -> Result<(), StopReason> {
        if matches!(self.pending, Pending::Wait(_)) {
            // The operation has waited, so it is spent.
            self.last_charge = self.pending.take().charge();
        }
        if wait >= self.time_left(now) {
            return Err(StopReason::RetryAfterTooLong);
        }
        let charge = match self.pending.take().charge() {
            Some(charge) => charge,
            None => self.budget.charge(Class::Throttled).ok_or(StopReason::BudgetExhausted)?,
        };
        self.pending = Pending::Wait(charge);
        Ok(())
    }

    /// Returns whether a second request may go out beside the current attempt, and pays for it.
    ///
    /// It may if an attempt is left, the body can be sent again, acting twice is harmless, and the
    /// budget has the price of a retry. The outcome of the first request is not known, so the
    /// licence is that of an ambiguous attempt. The hedge counts as an attempt. A success does not
    /// return its price: an unnecessary hedge was load too.
    ///
    /// ```
    /// use std::time::Instant;
    /// use steadfast_core::{Idempotency, Operation, RetryPolicy, TokenBucket};
    ///
    /// let (policy, bucket, now) = (RetryPolicy::new(), TokenBucket::default(), Instant::now());
    /// let mut get = Operation::start(&policy, &bucket, Idempotency::Natural, now);
    /// get.begin_attempt();
    /// assert!(get.hedge()); // the response is late
    /// assert_eq!(bucket.tokens(), 486);
    ///
    /// let mut post = Operation::start(&policy, &bucket, Idempotency::Absent, now);
    /// post.begin_attempt();
    /// assert!(!post.hedge()); // acting twice is not harmless
    /// ```
    pub fn hedge(&mut self) -> bool {
        let attempt_is_left = self.counted().saturating_add(2) <= self.policy.max_attempts;
        let may = self.is_licensed()
            && !self.is_nested
            && self.body_replayable
            && attempt_is_left
            && self.budget.charge(Class::Ambiguous).is_some();
        self.decided = self.decided.saturating_add(u32::from(may));
        may
    }

    /// Decides what to do after an attempt of class `class`, at the time `now`. `unit` is a random
    /// number between 0 and 1 for the jitter. It is clamped, and a NaN counts as 0.
    ///
    /// The server's hint is a floor. The jittered wait is added to it, so that clients with the
    /// same hint do not come back together.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use steadfast_core::{Class, Decision, Hint, Idempotency, Operation, RetryPolicy, StopReason, TokenBucket};
    ///
    /// let (policy, bucket, now) = (RetryPolicy::new(), TokenBucket::default(), Instant::now());
    /// let mut operation = Operation::start(&policy, &bucket, Idempotency::Natural, now);
    /// let decision = operation.decide(Class::Ambiguous, &Hint::default(), now, 0.5);
    /// assert_eq!(decision, Decision::Retry { after: Duration::from_millis(50) });
    /// let decision = operation.decide(Class::Permanent, &Hint::default(), now, 0.5);
    /// assert_eq!(decision, Decision::Stop(StopReason::Permanent));
    /// ```
    pub fn decide(&mut self, class: Class, hint: &Hint, now: Instant, unit: f64) -> Decision {
        // If the driver forgot this call, the attempt was sent all the same.
        self.begin_attempt();
        self.decided = self.decided.saturating_add(1);
        self.repeats_free = false;
        if class == Class::Success {
            self.budget.succeeded(self.last_charge);
            return Decision::Stop(StopReason::Done);
        }
        let takes_fresh_token = self.may_take_fresh_token(class, hint);
        let allowed = self.may_repeat(class, hint, takes_fresh_token);
        let repeated = allowed.and_then(|()| match takes_fresh_token {
            true => self.repeat_with_fresh_token(now),
            false => self.repeat(class, hint, now, unit),
        });
        match repeated {
            Ok(after) => Decision::Retry { after },
            Err(reason) => Decision::Stop(reason),
        }
    }

    /// Returns whether a request whose token was refused may go again with a fresh one, as far as
    /// the server is concerned.
    ///
    /// With a licence it always may. Without one, nothing can have been applied, by this attempt or
    /// by one before it (RFC 9110 §15.5.2).
    fn may_take_fresh_token(&self, class: Class, hint: &Hint) -> bool {
        let is_refused = class == Class::Permanent && hint.token_refused;
        // `never()` promises one request. If the server names a time, a repeat before it is not free.
        let is_free = self.policy.free_repeats > 0 && hint.after.is_none_or(|after| after.is_zero());
        let nothing_applied = hint.not_applied && !self.policy.unauthorized_is_ambiguous && !self.at_risk;
        is_refused && is_free && !self.took_fresh_token && (self.is_licensed() || nothing_applied)
    }

    /// The one rule: repeat only if the server cannot have acted, or if acting twice is harmless.
    fn may_repeat(&mut self, class: Class, hint: &Hint, takes_fresh_token: bool) -> Result<(), StopReason> {
        let class = match class {
            // What is not proven to be unapplied goes again on its licence alone, which can be lost
            // before it does.
            Class::Permanent if takes_fresh_token => match hint.not_applied && !self.policy.unauthorized_is_ambiguous {
                true => Class::NotProcessed,
                false => Class::Ambiguous,
            },
            Class::Permanent if hint.retry == Some(true) => Class::Ambiguous,
            Class::Throttled if self.policy.throttled_is_ambiguous => Class::Ambiguous,
            other => other,
        };
        let second_misdirection = hint.misdirected && std::mem::replace(&mut self.misdirected, true);
        // An earlier attempt may have been carried out too, and its licence may have been lost
        // since.
        self.at_risk |= class == Class::Ambiguous;
        self.upload_too_slow = hint.upload_too_slow;
        first_no(&[
            (hint.replayed, StopReason::Replayed),
            (hint.retry == Some(false), StopReason::ServerSaidStop),
            (hint.outcome_unknown, StopReason::OutcomeUnknown),
            (class == Class::Permanent || second_misdirection, StopReason::Permanent),
            (self.at_risk && self.idempotency == Idempotency::Absent, StopReason::NotRepeatable),
            (self.needs_licence(), StopReason::KeyNotTrusted),
            (!self.body_replayable, StopReason::BodyNotReplayable),
            (hint.upload_too_slow, StopReason::UploadTooSlow),
            (hint.response_too_large, StopReason::ResponseTooLarge),
            (self.is_nested, StopReason::Nested),
        ])
    }

    /// Decides about a repeat after the caller has found out, after a [`decide`](Self::decide), that
    /// the server has carried out none of the attempts, and will not. That is the licence, whatever
    /// the method. The repeat takes an attempt and the price of a retry. `asked` is the rest of the
    /// wait that the last response has asked for. Otherwise there is none: to find out took time
    /// enough.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use steadfast_core::{Class, Decision, Hint, Idempotency, Operation, RetryPolicy, StopReason, TokenBucket};
    ///
    /// let (policy, bucket, now) = (RetryPolicy::new(), TokenBucket::default(), Instant::now());
    /// let mut charge = Operation::start(&policy, &bucket, Idempotency::Absent, now);
    /// let decision = charge.decide(Class::Ambiguous, &Hint::default(), now, 0.5);
    /// assert_eq!(decision, Decision::Stop(StopReason::NotRepeatable));
    /// // The caller has looked for the charge, and there is none.
    /// assert_eq!(charge.repeat_unapplied(None, now), Decision::Retry { after: Duration::ZERO });
    /// ```
    pub fn repeat_unapplied(&mut self, asked: Option<Duration>, now: Instant) -> Decision {
        self.at_risk = false;
        self.repeats_free = false;
        let after = asked.unwrap_or(Duration::ZERO);
        let allowed = first_no(&[
            (!self.body_replayable, StopReason::BodyNotReplayable),
            (self.upload_too_slow, StopReason::UploadTooSlow),
            (self.is_nested, StopReason::Nested),
            (self.counted() >= self.policy.max_attempts, StopReason::AttemptsExhausted),
            (self.is_too_long(asked, now), StopReason::RetryAfterTooLong),
        ]);
        let in_time = allowed.and_then(|()| self.in_time(after, now));
        match in_time.and_then(|()| self.charge(Class::Ambiguous, after)) {
            Ok(after) => Decision::Retry { after },
            Err(reason) => Decision::Stop(reason),
        }
    }

    /// Returns whether the request has gone again with a fresh token.
    #[doc(hidden)]
    #[must_use]
    pub fn has_taken_fresh_token(&self) -> bool {
        self.took_fresh_token
    }

    /// Returns the wait before the repeat with a fresh token, which is none: to get the token takes
    /// time enough.
    fn repeat_with_fresh_token(&mut self, now: Instant) -> Result<Duration, StopReason> {
        self.in_time(Duration::ZERO, now)?;
        self.took_fresh_token = true;
        self.repeats_free = true;
        Ok(Duration::ZERO)
    }

    /// Returns when to repeat a request that may be repeated. A free repeat is made at once. Any
    /// other needs an attempt and its tokens, and waits.
    fn repeat(&mut self, class: Class, hint: &Hint, now: Instant, unit: f64) -> Result<Duration, StopReason> {
        if self.has_free_repeat(class, hint) {
            self.in_time(Duration::ZERO, now)?;
            self.free = self.free.saturating_add(1);
            self.repeats_free = true;
            return Ok(Duration::ZERO);
        }
        if self.counted() >= self.policy.max_attempts {
            return Err(StopReason::AttemptsExhausted);
        }
        let after = self.wait(class, hint, now, unit)?;
        // The budget protects the origin, which has seen nothing of this attempt.
        let is_local = hint.local && class == Class::NotProcessed;
        if is_local { Ok(after) } else { self.charge(class, after) }
    }

    /// Returns how long to wait, if the deadline allows it.
    fn wait(&mut self, class: Class, hint: &Hint, now: Instant, unit: f64) -> Result<Duration, StopReason> {
        let unit = if unit > 0.0 { unit.min(1.0) } else { 0.0 };
        let throttled = class == Class::Throttled;
        let counted = self.counted();
        let jittered = self.policy.backoff.wait(&mut self.waits, counted, throttled, unit);
        let jittered = jittered.ok_or(StopReason::AttemptsExhausted)?;
        let floor = hint.after.unwrap_or(Duration::ZERO);
        if self.is_too_long(hint.after, now) {
            return Err(StopReason::RetryAfterTooLong);
        }
        let after = if hint.misdirected { Duration::ZERO } else { floor.saturating_add(jittered) };
        self.in_time(after, now)?;
        Ok(after)
    }

    /// Returns whether a response asks for a longer wait than the policy or the deadline allows.
    fn is_too_long(&self, asked: Option<Duration>, now: Instant) -> bool {
        asked.is_some_and(|asked| asked > self.policy.max_retry_after || asked >= self.time_left(now))
    }

    /// Checks that a repeat after this wait would start before the deadline and after the circuit
    /// has opened for probes.
    fn in_time(&self, after: Duration, now: Instant) -> Result<(), StopReason> {
        first_no(&[
            (after >= self.time_left(now), StopReason::DeadlineExceeded),
            (after < self.circuit_open_for, StopReason::CircuitOpen),
        ])
    }

    fn time_left(&self, now: Instant) -> Duration {
        self.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now))
    }

    fn charge(&mut self, class: Class, after: Duration) -> Result<Duration, StopReason> {
        if let Some(charge) = self.budget.charge(class) {
            self.pending = Pending::Retry(charge);
            return Ok(after);
        }
        if self.policy.pause_when_budget_empty {
            self.pause = after;
        }
        Err(StopReason::BudgetExhausted)
    }
}

fn first_no(questions: &[(bool, StopReason)]) -> Result<(), StopReason> {
    questions.iter().find(|(no, _)| *no).map_or(Ok(()), |(_, reason)| Err(*reason))
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        if let Some(charge) = self.pending.take().charge() {
            self.budget.give_back(charge);
        }
    }
}

impl fmt::Debug for Operation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation")
            .field("idempotency", &self.idempotency)
            .field("attempts", &self.decided)
            .field("deadline", &self.deadline)
            .field("budget", self.budget)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::backoff::{Backoff, Jitter};
    use super::super::budget::RetryBudget;
    use super::super::now_in_a_test;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What an operation under the default policy without jitter decides after these classes, as
    /// words.
    fn check(idempotency: Idempotency, classes: &[Class]) -> String {
        check_with(&policy(), idempotency, &classes.iter().map(|class| (*class, Hint::default())).collect::<Vec<_>>())
    }

    fn policy() -> RetryPolicy {
        RetryPolicy::new().backoff(Backoff::default().jitter(Jitter::None))
    }

    fn check_with(policy: &RetryPolicy, idempotency: Idempotency, outcomes: &[(Class, Hint)]) -> String {
        let (budget, now) = (TokenBucket::new(RetryBudget::standard()), now_in_a_test());
        let mut operation = Operation::start(policy, &budget, idempotency, now);
        let words = outcomes.iter().map(|(class, hint)| {
            operation.begin_attempt();
            word(operation.decide(*class, hint, now, 1.0))
        });
        words.collect::<Vec<_>>().join(", ")
    }

    fn word(decision: Decision) -> String {
        match decision {
            Decision::Retry { after } => format!("retry {}", after.as_millis()),
            Decision::Stop(reason) => format!("stop {reason:?}"),
        }
    }

    #[test]
    fn class_and_licence_decide_retry() {
        use Class::{Ambiguous, NotProcessed, Permanent, Success, Throttled};
        use Idempotency::{Absent, Keyed, Natural};
        assert_eq!(check(Absent, &[Success]), "stop Done");
        assert_eq!(
            check(Absent, &[NotProcessed, NotProcessed, NotProcessed]),
            "retry 100, retry 200, stop AttemptsExhausted"
        );
        assert_eq!(check(Absent, &[Throttled, Success]), "retry 1000, stop Done");
        assert_eq!(check(Absent, &[Ambiguous]), "stop NotRepeatable");
        assert_eq!(check(Absent, &[NotProcessed, Ambiguous]), "retry 100, stop NotRepeatable");
        assert_eq!(check(Keyed, &[Ambiguous, Success]), "retry 100, stop Done");
        assert_eq!(check(Natural, &[Ambiguous, Ambiguous, Ambiguous]), "retry 100, retry 200, stop AttemptsExhausted");
        for idempotency in [Absent, Keyed, Natural] {
            assert_eq!(check(idempotency, &[Permanent]), "stop Permanent");
        }
    }

    #[test]
    fn reasons_are_asked_in_order() {
        use Class::Ambiguous;
        let never = RetryPolicy::never().max_retry_after(SECOND);
        let far = Some(Duration::from_secs(3));
        let replayed =
            Hint { replayed: true, retry: Some(false), outcome_unknown: true, after: far, ..Hint::default() };
        let check = |hint| check_with(&never, Idempotency::Absent, &[(Ambiguous, hint)]);
        assert_eq!(check(replayed), "stop Replayed");
        let said_stop = Hint { replayed: false, ..replayed };
        assert_eq!(check(said_stop), "stop ServerSaidStop");
        let unknown = Hint { retry: None, ..said_stop };
        assert_eq!(check(unknown), "stop OutcomeUnknown");
        let plain = Hint { outcome_unknown: false, ..unknown };
        assert_eq!(check(plain), "stop NotRepeatable");
        assert_eq!(check_with(&never, Idempotency::Natural, &[(Ambiguous, plain)]), "stop AttemptsExhausted");
        let twice = RetryPolicy::new().max_retry_after(SECOND);
        assert_eq!(check_with(&twice, Idempotency::Natural, &[(Ambiguous, plain)]), "stop RetryAfterTooLong");
        let ended = twice.backoff(Backoff::schedule(|| []));
        assert_eq!(check_with(&ended, Idempotency::Natural, &[(Ambiguous, plain)]), "stop AttemptsExhausted");
    }

    #[test]
    fn trust_and_replayability_precede_attempts() {
        let (policy, budget, now) = (RetryPolicy::never(), TokenBucket::new(RetryBudget::standard()), now_in_a_test());
        let mut operation = Operation::start(&policy, &budget, Idempotency::Keyed, now);
        operation.set_body_replayable(false);
        operation.set_key_trusted(false);
        let decision = operation.decide(Class::Ambiguous, &Hint::default(), now, 1.0);
        assert_eq!(word(decision), "stop KeyNotTrusted");
        let mut operation = Operation::start(&policy, &budget, Idempotency::Keyed, now);
        operation.set_body_replayable(false);
        let decision = operation.decide(Class::NotProcessed, &Hint::default(), now, 1.0);
        assert_eq!(word(decision), "stop BodyNotReplayable");
    }

    #[test]
    fn upload_too_slow_is_not_repeated() {
        let slow = Hint { upload_too_slow: true, ..Hint::default() };
        let check = |idempotency| check_with(&policy(), idempotency, &[(Class::Ambiguous, slow)]);
        assert_eq!(check(Idempotency::Natural), "stop UploadTooSlow");
        assert_eq!(check(Idempotency::Absent), "stop NotRepeatable");
    }

    /// An attempt may have been carried out, and was repeated under a licence. Once that is gone,
    /// "this one was not processed" is no leave to send another.
    #[test]
    fn lost_licence_stops_an_operation_at_risk() {
        use Class::{Ambiguous, NotProcessed, Throttled};
        let (policy, budget, now) = (policy(), TokenBucket::new(RetryBudget::standard()), now_in_a_test());
        for second in [NotProcessed, Throttled, Ambiguous] {
            let mut operation = Operation::start(&policy, &budget, Idempotency::Keyed, now);
            assert_eq!(word(operation.decide(Ambiguous, &Hint::default(), now, 1.0)), "retry 100");
            assert!(!operation.needs_licence());
            operation.set_key_trusted(false);
            assert!(operation.needs_licence());
            assert_eq!(word(operation.decide(second, &Hint::default(), now, 1.0)), "stop KeyNotTrusted", "{second:?}");

            let mut operation = Operation::start(&policy, &budget, Idempotency::Absent, now);
            operation.set_at_risk();
            assert_eq!(word(operation.decide(second, &Hint::default(), now, 1.0)), "stop NotRepeatable", "{second:?}");
        }
    }

    #[test]
    fn hedge_needs_licence_attempt_and_tokens() {
        use Idempotency::{Absent, Keyed, Natural};
        let now = now_in_a_test();
        let hedges = |policy: &RetryPolicy, idempotency, tokens, set: fn(&mut Operation<'_>)| {
            let budget = TokenBucket::new(RetryBudget::standard().capacity(tokens));
            let mut operation = Operation::start(policy, &budget, idempotency, now);
            set(&mut operation);
            let hedged = operation.hedge();
            let _decision = operation.decide(Class::Success, &Hint::default(), now, 0.0);
            (hedged, operation.attempts(), budget.tokens())
        };
        let nothing: fn(&mut Operation<'_>) = |_| {};
        assert_eq!(hedges(&policy(), Natural, 500, nothing), (true, 2, 487), "14 paid, and 1 for a success");
        assert_eq!(hedges(&policy(), Keyed, 500, nothing), (true, 2, 487));
        let refused = (false, 1, 500);
        assert_eq!(hedges(&policy(), Absent, 500, nothing), refused);
        assert_eq!(hedges(&policy(), Keyed, 500, |operation| operation.set_key_trusted(false)), refused);
        assert_eq!(hedges(&policy(), Natural, 500, |operation| operation.set_body_replayable(false)), refused);
        assert_eq!(hedges(&RetryPolicy::never(), Natural, 500, nothing), refused);
        assert_eq!(hedges(&policy(), Natural, 13, nothing), (false, 1, 13), "the bucket is what it was");
    }

    #[test]
    fn cooldown_wait_costs_a_throttled_retry() {
        let (policy, now) = (policy(), now_in_a_test());
        let budget = TokenBucket::new(RetryBudget::standard().capacity(16));
        let mut operation = Operation::start(&policy, &budget, Idempotency::Absent, now);
        assert_eq!(operation.hold(30 * SECOND, now), Err(StopReason::RetryAfterTooLong));
        let tokens: Vec<_> = (0..3).map(|_| operation.hold(SECOND, now).map(|()| budget.tokens())).collect();
        assert_eq!(tokens, [Ok(11), Ok(6), Ok(1)], "each time anew, although nothing was sent");
        assert_eq!(operation.hold(SECOND, now), Err(StopReason::BudgetExhausted));
        assert_eq!(operation.attempts(), 0);
        drop(operation);
        assert_eq!(budget.tokens(), 1, "what was waited for is spent");

        let budget = TokenBucket::new(RetryBudget::standard().capacity(16));
        let mut operation = Operation::start(&policy, &budget, Idempotency::Absent, now);
        let waits = [SECOND, 30 * SECOND].map(|wait| operation.hold(wait, now));
        assert_eq!(waits, [Ok(()), Err(StopReason::RetryAfterTooLong)]);
        drop(operation);
        assert_eq!(budget.tokens(), 11, "so it is where the next would be too long");

        let budget = TokenBucket::new(RetryBudget::standard().capacity(16));
        let mut operation = Operation::start(&policy, &budget, Idempotency::Absent, now);
        assert_eq!((operation.hold(SECOND, now), budget.tokens()), (Ok(()), 11));
        let _done = operation.decide(Class::Success, &Hint::default(), now, 0.0);
        assert_eq!(budget.tokens(), 16, "a success returns it");

        let mut operation = Operation::start(&policy, &budget, Idempotency::Absent, now);
        let _retry = operation.decide(Class::Throttled, &Hint::default(), now, 0.0);
        assert_eq!((operation.hold(SECOND, now), budget.tokens()), (Ok(()), 11), "a wait that was decided on is paid");
        assert_eq!((operation.hold(SECOND, now), budget.tokens()), (Ok(()), 6), "and another is another");
        drop(operation);
        assert_eq!(budget.tokens(), 11, "dropped while it waited");
    }

    #[test]
    fn directives_are_not_classes() {
        let hint = |retry| Hint { retry: Some(retry), ..Hint::default() };
        let check = |idempotency, class, retry| check_with(&policy(), idempotency, &[(class, hint(retry))]);
        assert_eq!(check(Idempotency::Keyed, Class::Permanent, true), "retry 100");
        assert_eq!(check(Idempotency::Absent, Class::Permanent, true), "stop NotRepeatable", "never a licence");
        assert_eq!(check(Idempotency::Absent, Class::Ambiguous, true), "stop NotRepeatable", "never a licence");
        assert_eq!(check(Idempotency::Natural, Class::NotProcessed, false), "stop ServerSaidStop");
    }

    #[test]
    fn hint_is_a_floor_with_jitter_on_top() {
        let hint = |seconds| Hint::from(Some(Duration::from_secs(seconds)));
        let check = |hint| check_with(&policy(), Idempotency::Natural, &[(Class::Ambiguous, hint)]);
        assert_eq!(check(hint(2)), "retry 2100");
        assert_eq!(check(hint(0)), "retry 100");
        assert_eq!(check(hint(30)), "stop RetryAfterTooLong", "the deadline is at 30 s");
        assert_eq!(check(Hint::from(Some(Duration::from_millis(29_950)))), "stop DeadlineExceeded");
        let patient = policy().deadline(None);
        assert_eq!(check_with(&patient, Idempotency::Natural, &[(Class::Ambiguous, hint(60))]), "retry 60100");
        assert_eq!(
            check_with(&patient, Idempotency::Natural, &[(Class::Ambiguous, hint(61))]),
            "stop RetryAfterTooLong"
        );
        assert_eq!(check(Hint::from(Some(Duration::MAX))), "stop RetryAfterTooLong");
    }

    #[test]
    fn misdirected_request_is_repeated_once() {
        let hint = Hint { misdirected: true, ..Hint::default() };
        let outcomes = [(Class::NotProcessed, hint), (Class::NotProcessed, hint)];
        assert_eq!(check_with(&policy(), Idempotency::Absent, &outcomes), "retry 0, stop Permanent");
    }

    const REFUSED: Hint = Hint {
        refused: true,
        after: None,
        retry: None,
        replayed: false,
        outcome_unknown: false,
        misdirected: false,
        local: false,
        upload_too_slow: false,
        response_too_large: false,
        token_refused: false,
        not_applied: false,
    };

    /// A 401 with a challenge, in response to a token of the client's.
    const UNAUTHORIZED: Hint = Hint { token_refused: true, not_applied: true, ..Hint::NONE };
    const WITHOUT_CHALLENGE: Hint = Hint { not_applied: false, ..UNAUTHORIZED };

    #[test]
    fn refused_token_is_replaced_once_for_free() {
        let unauthorized = (Class::Permanent, UNAUTHORIZED);
        for policy in [policy(), policy().max_attempts(1)] {
            let twice = check_with(&policy, Idempotency::Absent, &[unauthorized; 2]);
            assert_eq!(twice, "retry 0, stop Permanent", "once, even if the second token is refused too");
        }
        let never = check_with(&RetryPolicy::never(), Idempotency::Natural, &[unauthorized]);
        assert_eq!(never, "stop Permanent", "never means never");
        let lost = (Class::Ambiguous, Hint::NONE);
        let all = check_with(&policy(), Idempotency::Natural, &[unauthorized, lost, lost, lost]);
        assert_eq!(all, "retry 0, retry 100, retry 200, stop AttemptsExhausted", "it is no attempt");
        let stream = (Class::NotProcessed, REFUSED);
        let both = check_with(&policy(), Idempotency::Absent, &[stream, unauthorized, stream, stream]);
        assert_eq!(both, "retry 0, retry 0, retry 0, retry 100", "beside the two free repeats");

        let (policy, now) = (policy(), now_in_a_test());
        let budget = TokenBucket::new(RetryBudget::standard().initial(0));
        let mut operation = Operation::start(&policy, &budget, Idempotency::Absent, now);
        assert_eq!(word(operation.decide(Class::Permanent, &UNAUTHORIZED, now, 1.0)), "retry 0", "without tokens");
        assert!(operation.repeats_free());
    }

    #[test]
    fn fresh_token_needs_licence_or_evidence() {
        use Class::{Ambiguous, NotProcessed, Permanent};
        use Idempotency::{Absent, Keyed, Natural};
        let (default, now) = (policy(), now_in_a_test());
        let check = |policy: &RetryPolicy, idempotency, hint: Hint, set: fn(&mut Operation<'_>)| {
            let budget = TokenBucket::new(RetryBudget::standard());
            let mut operation = Operation::start(policy, &budget, idempotency, now);
            set(&mut operation);
            word(operation.decide(Permanent, &hint, now, 1.0))
        };
        let as_is: fn(&mut Operation<'_>) = |_| {};
        let at_risk: fn(&mut Operation<'_>) = |operation| operation.set_at_risk();
        let distrusted: fn(&mut Operation<'_>) = |operation| operation.set_key_trusted(false);
        let says_ambiguous = policy().unauthorized_is_ambiguous(true);
        for licensed in [Natural, Keyed] {
            for policy in [&default, &says_ambiguous] {
                for hint in [UNAUTHORIZED, WITHOUT_CHALLENGE] {
                    assert_eq!(check(policy, licensed, hint, as_is), "retry 0");
                    assert_eq!(check(policy, licensed, hint, at_risk), "retry 0");
                }
            }
        }
        for (unlicensed, set) in [(Absent, as_is), (Keyed, distrusted)] {
            assert_eq!(check(&default, unlicensed, UNAUTHORIZED, set), "retry 0");
            assert_eq!(check(&default, unlicensed, WITHOUT_CHALLENGE, set), "stop Permanent");
            assert_eq!(check(&says_ambiguous, unlicensed, UNAUTHORIZED, set), "stop Permanent");
        }
        assert_eq!(check(&default, Absent, UNAUTHORIZED, at_risk), "stop Permanent");

        let (stored, unknown) =
            (Hint { replayed: true, ..UNAUTHORIZED }, Hint { outcome_unknown: true, ..UNAUTHORIZED });
        assert_eq!(check(&default, Natural, stored, as_is), "stop Replayed");
        assert_eq!(check(&default, Natural, unknown, as_is), "stop OutcomeUnknown");
        let told = |retry| Hint { retry: Some(retry), ..UNAUTHORIZED };
        assert_eq!(check(&default, Natural, told(false), as_is), "stop ServerSaidStop");
        assert_eq!(check(&default, Absent, told(true), as_is), "retry 0", "which is no reason against it");
        let later = Hint { after: Some(SECOND), ..UNAUTHORIZED };
        assert_eq!(check(&default, Natural, later, as_is), "stop Permanent", "it never waits");
        let stream: fn(&mut Operation<'_>) = |operation| operation.set_body_replayable(false);
        assert_eq!(check(&default, Natural, UNAUTHORIZED, stream), "stop BodyNotReplayable");
        let open: fn(&mut Operation<'_>) = |operation| operation.set_circuit_open_for(SECOND);
        assert_eq!(check(&default, Natural, UNAUTHORIZED, open), "stop CircuitOpen");
        let late: fn(&mut Operation<'_>) = |operation| operation.end_by(operation.deadline().unwrap() - 30 * SECOND);
        assert_eq!(check(&default, Natural, UNAUTHORIZED, late), "stop DeadlineExceeded");

        for class in [Ambiguous, NotProcessed] {
            let (by_user, by_table) = ([(class, UNAUTHORIZED)], [(class, Hint::NONE)]);
            let both = [by_user, by_table].map(|outcome| check_with(&default, Natural, &outcome));
            assert_eq!(both[0], both[1], "the user's classifier has the last word");
        }
    }

    /// Without proof that nothing was applied, the repeat goes out on its licence. That can be lost
    /// while the token is fetched.
    #[test]
    fn licence_lost_during_refresh_stops_repeat() {
        let (default, says_ambiguous) = (policy(), policy().unauthorized_is_ambiguous(true));
        let (budget, now) = (TokenBucket::new(RetryBudget::standard()), now_in_a_test());
        for (policy, hint, needs) in [
            (&default, UNAUTHORIZED, false),
            (&default, WITHOUT_CHALLENGE, true),
            (&says_ambiguous, UNAUTHORIZED, true),
        ] {
            let mut operation = Operation::start(policy, &budget, Idempotency::Keyed, now);
            assert_eq!(word(operation.decide(Class::Permanent, &hint, now, 1.0)), "retry 0");
            assert!(!operation.needs_licence());
            operation.set_key_trusted(false);
            assert_eq!(operation.needs_licence(), needs, "{hint:?}");
        }
    }

    #[test]
    fn refused_requests_repeat_twice_for_free() {
        let refused = [(Class::NotProcessed, REFUSED); 5];
        let check = |policy: &RetryPolicy| check_with(policy, Idempotency::Absent, &refused);
        assert_eq!(check(&policy()), "retry 0, retry 0, retry 100, retry 200, stop AttemptsExhausted");
        let once = check_with(&policy().max_attempts(1), Idempotency::Absent, &refused[..3]);
        assert_eq!(once, "retry 0, retry 0, stop AttemptsExhausted");
        let never = check_with(&RetryPolicy::never(), Idempotency::Absent, &refused[..1]);
        assert_eq!(never, "stop AttemptsExhausted", "never means never");
        let scheduled = policy().backoff(Backoff::schedule(|| [SECOND]));
        assert_eq!(
            check_with(&scheduled, Idempotency::Absent, &refused[..4]),
            "retry 0, retry 0, retry 1000, stop AttemptsExhausted",
            "a free repeat uses up no wait"
        );
    }

    #[test]
    fn free_repeats_take_no_tokens() {
        let (policy, now) = (policy(), now_in_a_test());
        let budget = TokenBucket::new(RetryBudget::standard().capacity(14));
        let mut operation = Operation::start(&policy, &budget, Idempotency::Absent, now);
        let turns: Vec<_> = (0..3)
            .map(|_| {
                let decision = operation.decide(Class::NotProcessed, &REFUSED, now, 1.0);
                (word(decision), operation.repeats_free(), operation.attempts(), budget.tokens())
            })
            .collect();
        let free = |attempts| ("retry 0".to_owned(), true, attempts, 14);
        assert_eq!(turns, [free(1), free(2), ("retry 100".to_owned(), false, 3, 0)]);

        let budget = TokenBucket::new(RetryBudget::standard().initial(0));
        let mut operation = Operation::start(&policy, &budget, Idempotency::Absent, now);
        assert_eq!(word(operation.decide(Class::NotProcessed, &REFUSED, now, 1.0)), "retry 0");
        assert_eq!(operation.decide(Class::Success, &Hint::default(), now, 0.0), Decision::Stop(StopReason::Done));
        assert_eq!(budget.tokens(), 1, "a success on the first try, as far as the budget knows");
    }

    #[test]
    fn free_repeats_need_all_but_tokens_and_attempts() {
        let (policy, budget, now) = (policy(), TokenBucket::new(RetryBudget::standard()), now_in_a_test());
        let check = |class, hint: Hint, set: fn(&mut Operation<'_>, Instant)| {
            let mut operation = Operation::start(&policy, &budget, Idempotency::Keyed, now);
            set(&mut operation, now);
            word(operation.decide(class, &hint, now, 1.0))
        };
        let refused = |hint, set| check(Class::NotProcessed, hint, set);
        let as_is: fn(&mut Operation<'_>, Instant) = |_, _| {};
        assert_eq!(refused(REFUSED, as_is), "retry 0");
        assert_eq!(check(Class::Ambiguous, REFUSED, as_is), "retry 100", "free only where nothing was processed");
        assert_eq!(refused(Hint { after: Some(SECOND), ..REFUSED }, as_is), "retry 1100", "the server named a time");
        assert_eq!(refused(Hint { retry: Some(false), ..REFUSED }, as_is), "stop ServerSaidStop");
        let lost_trust = |operation: &mut Operation<'_>, _| {
            operation.set_at_risk();
            operation.set_key_trusted(false);
        };
        assert_eq!(refused(REFUSED, lost_trust), "stop KeyNotTrusted");
        assert_eq!(refused(REFUSED, |operation, _| operation.set_body_replayable(false)), "stop BodyNotReplayable");
        assert_eq!(refused(REFUSED, |operation, now| operation.end_by(now)), "stop DeadlineExceeded");
        assert_eq!(refused(REFUSED, |operation, _| operation.set_circuit_open_for(SECOND)), "stop CircuitOpen");
    }

    #[test]
    fn local_failures_take_attempts_and_no_tokens() {
        let (policy, budget, now) = (policy(), TokenBucket::new(RetryBudget::standard().initial(0)), now_in_a_test());
        let local = Hint { local: true, ..Hint::default() };
        let mut operation = Operation::start(&policy, &budget, Idempotency::Absent, now);
        let words = [1, 2, 3].map(|_| word(operation.decide(Class::NotProcessed, &local, now, 1.0)));
        assert_eq!(words, ["retry 100", "retry 200", "stop AttemptsExhausted"]);
        let mut operation = Operation::start(&policy, &budget, Idempotency::Natural, now);
        let decision = operation.decide(Class::Ambiguous, &local, now, 1.0);
        assert_eq!(word(decision), "stop BudgetExhausted", "free only where nothing was sent");
    }

    #[test]
    fn hedge_ignores_free_repeats() {
        let (policy, budget, now) =
            (policy().max_attempts(2), TokenBucket::new(RetryBudget::standard()), now_in_a_test());
        let mut operation = Operation::start(&policy, &budget, Idempotency::Natural, now);
        assert_eq!(word(operation.decide(Class::NotProcessed, &REFUSED, now, 1.0)), "retry 0");
        assert!(operation.hedge(), "one attempt is under way, and one is left");
        assert!(!operation.hedge());
    }

    #[test]
    fn throttled_can_be_ambiguous() {
        let policy = policy().throttled_is_ambiguous(true);
        let outcomes = [(Class::Throttled, Hint::default())];
        assert_eq!(check_with(&policy, Idempotency::Absent, &outcomes), "stop NotRepeatable");
        assert_eq!(check_with(&policy, Idempotency::Keyed, &outcomes), "retry 1000", "still from the longer base");
    }

    #[test]
    fn unsent_retry_returns_its_tokens() {
        let (policy, budget, now) = (policy(), TokenBucket::new(RetryBudget::standard()), now_in_a_test());
        let mut operation = Operation::start(&policy, &budget, Idempotency::Natural, now);
        operation.begin_attempt();
        assert_eq!(word(operation.decide(Class::Ambiguous, &Hint::default(), now, 1.0)), "retry 100");
        assert_eq!(budget.tokens(), 486);
        drop(operation);
        assert_eq!(budget.tokens(), 500, "dropped while it waited");

        let mut operation = Operation::start(&policy, &budget, Idempotency::Natural, now);
        let _retry = operation.decide(Class::Ambiguous, &Hint::default(), now, 1.0);
        operation.begin_attempt();
        drop(operation);
        assert_eq!(budget.tokens(), 486, "dropped after it was sent");
    }

    #[test]
    fn polling_loop_pauses_on_an_empty_budget() {
        let (budget, now) = (TokenBucket::new(RetryBudget::standard().initial(0)), now_in_a_test());
        let pause = |policy: &RetryPolicy, class| {
            let mut operation = Operation::start(policy, &budget, Idempotency::Natural, now);
            assert_eq!(word(operation.decide(class, &Hint::default(), now, 1.0)), "stop BudgetExhausted");
            operation.pause_before_the_end().as_millis()
        };
        assert_eq!(pause(&policy(), Class::Ambiguous), 0);
        assert_eq!(pause(&policy().pause_when_budget_empty(true), Class::Ambiguous), 100);
        assert_eq!(pause(&policy().pause_when_budget_empty(true), Class::Throttled), 1000);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let policy = RetryPolicy::new()
            .max_attempts(u32::MAX)
            .deadline(Duration::MAX)
            .max_retry_after(Duration::MAX)
            .backoff(Backoff::exponential(Duration::MAX, Duration::MAX));
        let (budget, now) = (TokenBucket::new(RetryBudget::unlimited()), now_in_a_test());
        let mut operation = Operation::start(&policy, &budget, Idempotency::Natural, now);
        assert_eq!(operation.deadline(), None);
        operation.decided = 4_000_000_000;
        for unit in [f64::NAN, f64::NEG_INFINITY, -1.0, 0.5, 2.0, f64::INFINITY] {
            let hint = Hint::from(Some(Duration::from_secs(1)));
            let decision = operation.decide(Class::Ambiguous, &hint, now, unit);
            assert!(matches!(decision, Decision::Retry { .. } | Decision::Stop(StopReason::DeadlineExceeded)));
        }
        operation.decided = u32::MAX;
        let decision = operation.decide(Class::Ambiguous, &Hint::default(), now, 0.0);
        assert_eq!(decision, Decision::Stop(StopReason::AttemptsExhausted));
    }
}
