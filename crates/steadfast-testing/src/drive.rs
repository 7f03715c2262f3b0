//! A policy, driven without a clock.
//!
//! "How long does my policy go on in a total outage?" is a question about values. Waiting for the answer takes as long as the
//! outage; this takes no time.

use std::fmt;
use std::time::{Duration, Instant};

use steadfast_core::clock;
use steadfast_core::{Class, Decision, Hint, Idempotency, Operation, RetryPolicy, TokenBucket};

/// One operation of a policy: told what each attempt came to, it says what the policy decides, and how much time has passed.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::{Class, Decision, Idempotency, RetryBudget, RetryPolicy, StopReason, TokenBucket};
/// use steadfast_testing::PolicyDriver;
///
/// let (policy, budget) = (RetryPolicy::new().max_attempts(3), TokenBucket::new(RetryBudget::unlimited()));
/// let mut drive = PolicyDriver::start(&policy, &budget, Idempotency::Keyed).attempts_take(Duration::from_secs(2));
/// assert_eq!(drive.outcome(Class::Ambiguous), Decision::Retry { after: Duration::from_millis(100) });
/// assert_eq!(drive.outcome(Class::Ambiguous), Decision::Retry { after: Duration::from_millis(200) });
/// assert_eq!(drive.outcome(Class::Ambiguous), Decision::Stop(StopReason::AttemptsExhausted));
/// assert_eq!(drive.elapsed(), Duration::from_millis(6300));
/// assert_eq!(drive.to_string(), "retry after 100ms, retry after 200ms, stop: attempts exhausted");
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
    /// An operation that has begun. Its attempts take no time, and of every jittered wait it takes the longest.
    #[must_use]
    pub fn start(policy: &'a RetryPolicy, budget: &'a TokenBucket, idempotency: Idempotency) -> Self {
        let now = clock::now();
        let operation = Operation::start(policy, budget, idempotency, now);
        Self { operation, now, elapsed: Duration::ZERO, attempt: Duration::ZERO, unit: 1.0, decisions: Vec::new() }
    }

    /// How long an attempt takes.
    #[must_use]
    pub fn attempts_take(mut self, time: Duration) -> Self {
        self.attempt = time;
        self
    }

    /// The number that jitter is made of, from 0 (the shortest wait) to 1 (the longest, and the default).
    #[must_use]
    pub fn unit(mut self, unit: f64) -> Self {
        self.unit = unit;
        self
    }

    /// Whether the API is known to honour the key.
    #[must_use]
    pub fn key_trusted(mut self, trusted: bool) -> Self {
        self.operation.set_key_trusted(trusted);
        self
    }

    /// Whether the request's body can be sent a second time.
    #[must_use]
    pub fn body_replayable(mut self, replayable: bool) -> Self {
        self.operation.set_body_replayable(replayable);
        self
    }

    /// Makes one attempt that comes to `class`, and waits if that is the decision.
    pub fn outcome(&mut self, class: Class) -> Decision {
        self.outcome_with(class, &Hint::default())
    }

    /// The same, with what the server asked for.
    ///
    /// # Panics
    ///
    /// If the operation has ended.
    pub fn outcome_with(&mut self, class: Class, hint: &Hint) -> Decision {
        let ended = matches!(self.decisions.last(), Some(Decision::Stop(_)));
        assert!(!ended, "the operation has ended ({self}): there is no attempt that could come to {class:?}");
        self.operation.begin_attempt();
        self.pass(self.attempt);
        let decision = self.operation.decide(class, hint, self.now, self.unit);
        if let Decision::Retry { after } = decision {
            self.pass(after);
        }
        self.decisions.push(decision);
        decision
    }

    /// Makes attempts that all come to `class` until the operation ends; returns its last decision.
    ///
    /// # Panics
    ///
    /// If it goes on for 10,000 attempts.
    pub fn to_the_end(&mut self, class: Class) -> Decision {
        for _ in 0..10_000 {
            if let end @ Decision::Stop(_) = self.outcome(class) {
                return end;
            }
        }
        panic!("10,000 attempts, and no end: a policy of this kind needs a deadline or a budget")
    }

    /// The time that has passed, waits included.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// The attempts that were made.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.operation.attempts()
    }

    /// Every decision so far.
    #[must_use]
    pub fn decisions(&self) -> &[Decision] {
        &self.decisions
    }

    fn pass(&mut self, time: Duration) {
        self.elapsed = self.elapsed.saturating_add(time);
        // At the end of the clock's range it stands still.
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
