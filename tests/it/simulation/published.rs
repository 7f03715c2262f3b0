//! Results published by others, reproduced.

use std::time::Duration;

use steadfast::policy::{Backoff, Jitter, RetryBudget, RetryPolicy};
use steadfast_sim::{Fleet, Numbers, Scenario, Server, Simulation, Trouble};

use super::{assert_near, three_retries};

// ---- AWS: "Exponential Backoff And Jitter" ------------------------------------------------------

/// Returns the mean number of calls and the mean time in seconds, of 100 runs with 100 clients. The
/// published simulator has a base of 5 ms and counts attempts from 1 (`min(cap, base * 2^n)`). Its
/// first wait is thus 10 ms, which steadfast calls the base.
fn contention(jitter: Jitter) -> (f64, f64) {
    let backoff = Backoff::exponential(Duration::from_millis(10), Duration::from_secs(2)).jitter(jitter);
    let policy = RetryPolicy::new().max_attempts(u32::MAX).deadline(None).backoff(backoff);
    let runs: Vec<_> = (0..100).map(|seed| steadfast_sim::contention(&policy, 100, seed)).collect();
    assert!(runs.iter().all(|run| run.won == 100), "each client gets through");
    let calls = runs.iter().map(|run| run.calls).sum::<u64>();
    let time = runs.iter().map(|run| run.time).sum::<Duration>();
    (f64::from(u32::try_from(calls).unwrap()) / 100.0, time.as_secs_f64() / 100.0)
}

#[test]
fn aws_jitter_study_is_reproduced() {
    let (calls, time) = contention(Jitter::None);
    assert_near("calls without jitter", calls, 1862.0, 0.05);
    assert_near("seconds without jitter", time, 63.7, 0.05);
    let (calls, time) = contention(Jitter::Full);
    assert_near("calls with full jitter", calls, 795.0, 0.05);
    assert_near("seconds with full jitter", time, 4.84, 0.05);
    let (equal_calls, equal_time) = contention(Jitter::Equal);
    assert!(equal_calls > calls && equal_time > time, "full jitter needs the fewest calls, and the least time");
}

// ---- Brooker: "Fixing retries with token buckets and circuit breakers" --------------------------

/// Simulates a minute with 100 clients, ten operations a second each, three retries without a wait,
/// and a server of unlimited capacity.
fn failing(share: f64, budget: RetryBudget) -> Numbers {
    let policy = three_retries().backoff(Backoff::fixed(Duration::ZERO));
    let minute = Scenario::new(Trouble::Failing(share)).after_calm_of(Duration::ZERO).watched_for(Duration::ZERO);
    let scenario = minute.lasting(Duration::from_secs(60));
    Simulation::new(scenario, Fleet::new(&policy).budget(budget)).server(Server::unlimited()).run().during().clone()
}

/// The bucket of the published simulator (`AdaptiveRetryFactory(0.1, 5)`): a tenth of a token for
/// each call, five at most and at the start.
fn ten_percent() -> RetryBudget {
    RetryBudget::ratio(0.1).capacity(5).initial(5)
}

#[test]
fn brookers_retry_bucket_is_reproduced() {
    // Share of failures, load without a budget (1 + f + f² + f³), load with the bucket, success
    // with the bucket.
    let table = [
        (0.01, 1.010, 1.010, 1.000),
        (0.10, 1.111, 1.095, 0.985),
        (0.20, 1.248, 1.106, 0.882),
        (0.50, 1.875, 1.107, 0.552),
        (1.00, 4.000, 1.107, 0.000),
    ];
    for (share, without, with, success) in table {
        let found = failing(share, RetryBudget::unlimited());
        assert_near(&format!("load at {share}, no budget"), found.attempts_per_operation(), without, 0.01);
        let found = failing(share, ten_percent());
        assert_near(&format!("load at {share}, bucket"), found.attempts_per_operation(), with, 0.005);
        assert!((found.success() - success).abs() < 0.005, "success at {share}: {}", found.success());
    }
}

#[test]
fn three_retries_in_three_layers_make_64_calls() {
    let without = |layers| steadfast_sim::amplification(&three_retries(), &RetryBudget::unlimited(), layers);
    assert_eq!([0, 1, 2, 3].map(without), [1.0, 4.0, 16.0, 64.0]);
    let with = steadfast_sim::amplification(&three_retries(), &RetryBudget::standard(), 3);
    assert!(with < 1.5, "{with}");
}
