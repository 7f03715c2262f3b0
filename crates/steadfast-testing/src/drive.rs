//! A policy, run without a clock.
//!
//! "How long does my policy go on in a total outage?" is a question about values. A test that waits
//! takes as long as the outage; this one takes no time.

use std::fmt;
use std::time::{Duration, Instant};

use steadfast_core::{Class, Decision, Hint, Idempotency, Operation, RetryPolicy, TokenBucket, clock};

/// One operation of a policy, run without a clock.
///
/// You give it the class of each attempt. It returns the decision of the policy and adds up the
/// time that would have passed.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::{Class, Decision, Idempotency, RetryBudget, RetryPolicy, StopReason, TokenBucket};
/// use steadfast_testing::PolicyDriver;
///
/// let (policy, budget) = (RetryPolicy::new().max_attempts(3), TokenBucket::new(RetryBudget::unlimited()));
/// let mut driver = PolicyDriver::start(&policy, &budget, Idempotency::Keyed)
///     .attempts_take(Duration::from_secs(2));
/// let retry_after = |millis| Decision::Retry { after: Duration::from_millis(millis) };
/// assert_eq!(driver.outcome(Class::Ambiguous), retry_after(100));
/// assert_eq!(driver.outcome(Class::Ambiguous), retry_after(200));
/// assert_eq!(driver.outcome(Class::Ambiguous), Decision::Stop(StopReason::AttemptsExhausted));
/// assert_eq!(driver.elapsed(), Duration::from_millis(6300));
/// assert_eq!(driver.to_string(), "retry after 100ms, retry after 200ms, stop: attempts exhausted");
/// ```
#[derive(Debug)]
pub struct PolicyDriver<'a> {
    operation: Operation<'a>,
    now: Instant,
    elapsed: Duration,
    attempt: Duration,
    unit: f64,
    decisions: Vec<Decision>,
}

impl<'a> PolicyDriver<'a> {
    /// Starts an operation. By default its attempts take no time, and every jittered wait is the
    /// longest one.
    #[must_use]
    pub fn start(policy: &'a RetryPolicy, budget: &'a TokenBucket, idempotency: Idempotency) -> Self {
        let now = clock::now();
        let operation = Operation::start(policy, budget, idempotency, now);
        Self { operation, now, elapsed: Duration::ZERO, attempt: Duration::ZERO, unit: 1.0, decisions: Vec::new() }
    }

    /// Sets the time that an attempt takes. Default: zero.
    #[must_use]
    pub fn attempts_take(mut self, time: Duration) -> Self {
        self.attempt = time;
        self
    }

    /// Sets the random number for jitter, from 0 (the shortest wait) to 1 (the longest). Default:
    /// 1.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_core::{Class, Decision, Idempotency, RetryBudget, RetryPolicy, TokenBucket};
    /// use steadfast_testing::PolicyDriver;
    ///
    /// // With full jitter the shortest wait is none.
    /// let (policy, budget) = (RetryPolicy::new(), TokenBucket::new(RetryBudget::unlimited()));
    /// let mut driver = PolicyDriver::start(&policy, &budget, Idempotency::Natural).unit(0.0);
    /// let decision = driver.outcome(Class::Ambiguous);
    /// assert_eq!(decision, Decision::Retry { after: Duration::ZERO });
    /// ```
    #[must_use]
    pub fn unit(mut self, unit: f64) -> Self {
        self.unit = unit;
        self
    }

    /// Sets whether the API is known to honour the key.
    ///
    /// ```
    /// use steadfast_core::{Class, Decision, Idempotency, RetryBudget, RetryPolicy, StopReason, TokenBucket};
    /// use steadfast_testing::PolicyDriver;
    ///
    /// // A key is no licence by itself.
    /// let (policy, budget) = (RetryPolicy::new(), TokenBucket::new(RetryBudget::unlimited()));
    /// let mut driver = PolicyDriver::start(&policy, &budget, Idempotency::Keyed).key_trusted(false);
    /// assert_eq!(driver.outcome(Class::Ambiguous), Decision::Stop(StopReason::KeyNotTrusted));
    /// ```
    #[must_use]
    pub fn key_trusted(mut self, trusted: bool) -> Self {
        self.operation.set_key_trusted(trusted);
        self
    }

    /// Sets whether the request's body can be sent a second time.
    ///
    /// ```
    /// use steadfast_core::{Class, Decision, Idempotency, RetryBudget, RetryPolicy, TokenBucket};
    /// use steadfast_testing::PolicyDriver;
    ///
    /// // Does a stream as a body rule out the retry of a GET?
    /// let (policy, budget) = (RetryPolicy::new(), TokenBucket::new(RetryBudget::unlimited()));
    /// let mut driver = PolicyDriver::start(&policy, &budget, Idempotency::Natural)
    ///     .body_replayable(false);
    /// assert!(matches!(driver.outcome(Class::Ambiguous), Decision::Stop(_)));
    /// ```
    #[must_use]
    pub fn body_replayable(mut self, replayable: bool) -> Self {
        self.operation.set_body_replayable(replayable);
        self
    }

    /// Makes one attempt that ends in `class`, and returns the decision. If that is a retry, its
    /// wait passes too.
    pub fn outcome(&mut self, class: Class) -> Decision {
        self.outcome_with(class, &Hint::default())
    }

    /// Makes one attempt that ends in `class`, with the server's wish about a retry.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_core::{Class, Decision, Hint, Idempotency, RetryBudget, RetryPolicy, TokenBucket};
    /// use steadfast_testing::PolicyDriver;
    ///
    /// // `Retry-After: 20` is a lower bound for the wait.
    /// let (policy, budget) = (RetryPolicy::new(), TokenBucket::new(RetryBudget::unlimited()));
    /// let mut driver = PolicyDriver::start(&policy, &budget, Idempotency::Absent);
    /// let mut hint = Hint::default();
    /// hint.after = Some(Duration::from_secs(20));
    /// let decision = driver.outcome_with(Class::Throttled, &hint);
    /// assert!(matches!(decision, Decision::Retry { after } if after >= Duration::from_secs(20)));
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if the operation has ended.
    pub fn outcome_with(&mut self, class: Class, hint: &Hint) -> Decision {
        let ended = matches!(self.decisions.last(), Some(Decision::Stop(_)));
        assert!(!ended, "the operation has ended ({self}): there is no further attempt that could end in {class:?}");
        self.operation.begin_attempt();
        self.pass(self.attempt);
        let decision = self.operation.decide(class, hint, self.now, self.unit);
        if let Decision::Retry { after } = decision {
            self.pass(after);
        }
        self.decisions.push(decision);
        decision
    }

    /// Makes attempts that all end in `class` until the operation ends. Returns the last decision.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_core::{Class, Decision, Idempotency, RetryBudget, RetryPolicy, StopReason, TokenBucket};
    /// use steadfast_testing::PolicyDriver;
    ///
    /// // How long does the default policy wait in a total outage?
    /// let (policy, budget) = (RetryPolicy::new(), TokenBucket::new(RetryBudget::unlimited()));
    /// let mut driver = PolicyDriver::start(&policy, &budget, Idempotency::Natural);
    /// let end = driver.to_the_end(Class::NotProcessed);
    /// assert_eq!(end, Decision::Stop(StopReason::AttemptsExhausted));
    /// assert!(driver.elapsed() < Duration::from_secs(10));
    /// ```
    ///
    /// # Panics
    ///
    /// Panics after 10,000 attempts without an end.
    pub fn to_the_end(&mut self, class: Class) -> Decision {
        for _ in 0..10_000 {
            if let end @ Decision::Stop(_) = self.outcome(class) {
                return end;
            }
        }
        panic!("no end after 10,000 attempts: the policy needs a deadline or a budget")
    }

    /// Returns the time that has passed, waits included.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Returns the number of attempts.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.operation.attempts()
    }

    /// Returns every decision so far.
    #[must_use]
    pub fn decisions(&self) -> &[Decision] {
        &self.decisions
    }

    fn pass(&mut self, time: Duration) {
        self.elapsed = self.elapsed.saturating_add(time);
        // At the end of the clock's range the time stands still.
        self.now = self.now.checked_add(time).unwrap_or(self.now);
    }
}

impl fmt::Display for PolicyDriver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, decision) in self.decisions.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            match decision {
                Decision::Retry { after } => write!(f, "retry after {after:?}")?,
                Decision::Stop(reason) => write!(f, "stop: {}", reason.as_str())?,
            }
        }
        Ok(())
    }
}
