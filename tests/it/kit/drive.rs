//! A policy without a clock makes the same decisions as the client.

use std::time::Duration;

use steadfast::policy::{
    Backoff, Class, Decision, Hint, Idempotency, RetryBudget, RetryPolicy, StopReason, TokenBucket,
};
use steadfast_testing::{PolicyDriver, fast_retries};

#[test]
fn attempts_and_waits_advance_time() {
    let policy = RetryPolicy::new().max_attempts(10).backoff(Backoff::fixed(Duration::from_secs(2)));
    let policy = policy.deadline(Duration::from_secs(10));
    let budget = TokenBucket::new(RetryBudget::unlimited());
    let mut drive = PolicyDriver::start(&policy, &budget, Idempotency::Natural).attempts_take(Duration::from_secs(1));
    assert_eq!(drive.to_the_end(Class::Ambiguous), Decision::Stop(StopReason::DeadlineExceeded));
    // The attempts end at 1, 4, 7 and 10 seconds; the deadline is at 10 seconds.
    assert_eq!((drive.attempts(), drive.elapsed()), (4, Duration::from_secs(10)));
    assert_eq!(drive.to_string(), "retry after 2s, retry after 2s, retry after 2s, stop: deadline exceeded");
}

#[test]
fn hints_and_request_settings_count() {
    let (policy, budget) = (RetryPolicy::new(), TokenBucket::new(RetryBudget::unlimited()));
    let asked = Hint::from(Some(Duration::from_secs(7)));
    let mut drive = PolicyDriver::start(&policy, &budget, Idempotency::Absent).unit(0.0);
    assert_eq!(drive.outcome_with(Class::Throttled, &asked), Decision::Retry { after: Duration::from_secs(7) });
    let mut drive = PolicyDriver::start(&policy, &budget, Idempotency::Keyed).key_trusted(false);
    assert_eq!(drive.outcome(Class::Ambiguous), Decision::Stop(StopReason::KeyNotTrusted));
    let mut drive = PolicyDriver::start(&policy, &budget, Idempotency::Keyed).body_replayable(false);
    assert_eq!(drive.outcome(Class::Ambiguous), Decision::Stop(StopReason::BodyNotReplayable));
}

#[test]
fn fast_retries_wait_for_nothing() {
    let (policy, budget) = (fast_retries(), TokenBucket::new(RetryBudget::unlimited()));
    for class in [Class::Ambiguous, Class::NotProcessed, Class::Throttled] {
        let mut drive = PolicyDriver::start(&policy, &budget, Idempotency::Natural);
        drive.to_the_end(class);
        assert_eq!((drive.attempts(), drive.elapsed()), (3, Duration::ZERO), "{class:?}");
    }
}

#[test]
#[should_panic(expected = "the operation has ended (stop: done)")]
fn ended_operation_is_not_driven_on() {
    let (policy, budget) = (RetryPolicy::new(), TokenBucket::new(RetryBudget::unlimited()));
    let mut drive = PolicyDriver::start(&policy, &budget, Idempotency::Natural);
    drive.outcome(Class::Success);
    drive.outcome(Class::Success);
}
