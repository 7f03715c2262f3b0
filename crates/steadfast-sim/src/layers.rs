//! Services that call services, each with retries of its own.

use std::time::{Duration, Instant};

use steadfast_core::{Class, Decision, Hint, Idempotency, Operation, RetryBudget, RetryPolicy, TokenBucket};

/// Returns how many calls reach the bottom for one operation at the top, when `layers` services
/// call each other under the same policy and the bottom is down. Without a budget that is
/// `attempts^layers`.
///
/// It is the mean of 300 operations, ten a second for 30 s. Each layer has one bucket. Every call
/// fails at once, and each retry waits as the policy says.
///
/// ```
/// use steadfast_core::{RetryBudget, RetryPolicy};
///
/// let policy = RetryPolicy::new().max_attempts(4);
/// assert_eq!(steadfast_sim::amplification(&policy, &RetryBudget::unlimited(), 3), 64.0);
/// assert!(steadfast_sim::amplification(&policy, &RetryBudget::standard(), 3) < 2.0);
/// ```
#[must_use]
pub fn amplification(policy: &RetryPolicy, budget: &RetryBudget, layers: u32) -> f64 {
    const OPERATIONS: u32 = 300;
    let buckets: Vec<_> = (0..layers).map(|_| TokenBucket::new(*budget)).collect();
    let origin = steadfast_core::clock::now();
    let calls = (0..OPERATIONS).map(|number| {
        let mut now = later(origin, Duration::from_millis(100) * number);
        call(policy, &buckets, &mut now)
    });
    #[allow(clippy::cast_precision_loss, reason = "nobody waits for 2^52 calls")]
    let calls = calls.sum::<u64>() as f64;
    calls / f64::from(OPERATIONS)
}

/// Calls the first of the layers that are left. Returns how many calls reached the bottom.
fn call(policy: &RetryPolicy, buckets: &[TokenBucket], now: &mut Instant) -> u64 {
    let Some((bucket, below)) = buckets.split_first() else { return 1 };
    let mut operation = Operation::start(policy, bucket, Idempotency::Natural, *now);
    let mut calls = 0;
    loop {
        operation.begin_attempt();
        calls += call(policy, below, now);
        // The longest waits: a deadline is not forgotten.
        match operation.decide(Class::Ambiguous, &Hint::default(), *now, 1.0) {
            Decision::Retry { after } => *now = later(*now, after),
            Decision::Stop(_) => return calls,
        }
    }
}

/// Adds a time; one that no clock can hold adds nothing.
fn later(now: Instant, after: Duration) -> Instant {
    now.checked_add(after).unwrap_or(now)
}
