//! The laboratory reproduces what others have published, and the claims of this crate's own documentation.
//!
//! Runs are deterministic by their seed. Where the published number is a mean of many runs, so is ours; where ours differs for
//! a reason that is known, the reason stands at the assertion.

use std::time::Duration;

use steadfast::policy::{Backoff, BreakerPolicy, Class, Idempotency, Jitter, RetryBudget, RetryPolicy};
use steadfast::testing::lab::{self, Fleet, Lab, Numbers, Report, Scenario, Server, Trouble};

/// Three retries: what most of the published simulations have.
fn three_retries() -> RetryPolicy {
    RetryPolicy::new().max_attempts(4)
}

#[track_caller]
fn assert_near(what: &str, found: f64, published: f64, tolerance: f64) {
    let off = (found / published - 1.0).abs();
    assert!(off <= tolerance, "{what}: {found}, published {published}, {:.1} % off", off * 100.0);
}

// ---- AWS: "Exponential Backoff And Jitter" ----------------------------------------------------------------------------

/// The mean number of calls, and the mean time in seconds, of 100 runs with 100 clients. The published simulator has a base of
/// 5 ms and counts attempts from 1 (`min(cap, base * 2^n)`), so its first wait is 10 ms; ours is called the base.
fn contention(jitter: Jitter) -> (f64, f64) {
    let backoff = Backoff::exponential(Duration::from_millis(10), Duration::from_secs(2)).jitter(jitter);
    let policy = RetryPolicy::new().max_attempts(u32::MAX).deadline(None).backoff(backoff);
    let runs: Vec<_> = (0..100).map(|seed| lab::contention(&policy, 100, seed)).collect();
    assert!(runs.iter().all(|run| run.won == 100), "each client gets through");
    let calls = runs.iter().map(|run| run.calls).sum::<u64>();
    let time = runs.iter().map(|run| run.time).sum::<Duration>();
    (f64::from(u32::try_from(calls).unwrap()) / 100.0, time.as_secs_f64() / 100.0)
}

#[test]
fn the_jitter_study_of_aws() {
    let (calls, time) = contention(Jitter::None);
    assert_near("calls without jitter", calls, 1862.0, 0.05);
    assert_near("seconds without jitter", time, 63.7, 0.05);
    let (calls, time) = contention(Jitter::Full);
    assert_near("calls with full jitter", calls, 795.0, 0.05);
    assert_near("seconds with full jitter", time, 4.84, 0.05);
    let (equal_calls, equal_time) = contention(Jitter::Equal);
    assert!(equal_calls > calls && equal_time > time, "full jitter needs the fewest calls, and the least time");
}

// ---- Brooker: "Fixing retries with token buckets and circuit breakers" ------------------------------------------------

/// 100 clients, ten operations a second each, three retries at once, a minute, a server that no load can hurt.
fn failing(share: f64, budget: RetryBudget) -> Numbers {
    let policy = three_retries().backoff(Backoff::fixed(Duration::ZERO));
    let minute = Scenario::new(Trouble::Failing(share)).after_calm_of(Duration::ZERO).watched_for(Duration::ZERO);
    let scenario = minute.lasting(Duration::from_secs(60));
    Lab::new(scenario, Fleet::new(&policy).budget(budget)).server(Server::unlimited()).run().during().clone()
}

/// The bucket of the published simulator (`AdaptiveRetryFactory(0.1, 5)`): a tenth of a token for each call, five at most and
/// at the start.
fn ten_percent() -> RetryBudget {
    RetryBudget::ratio(0.1).capacity(5).initial(5)
}

#[test]
fn the_retry_bucket_of_brooker() {
    // Fail share, load without a budget (1 + f + f² + f³), load with the bucket, success with the bucket.
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
fn three_layers_of_three_retries_are_64_calls() {
    let without = |layers| lab::amplification(&three_retries(), &RetryBudget::unlimited(), layers);
    assert_eq!([0, 1, 2, 3].map(without), [1.0, 4.0, 16.0, 64.0]);
    let with = lab::amplification(&three_retries(), &RetryBudget::standard(), 3);
    assert!(with < 1.5, "{with}");
}

// ---- what this crate says of itself ------------------------------------------------------------------------------------

/// Ten seconds of calm, 30 s of trouble, a minute of watching. The server can do 1.05 times what its 100 clients ask for.
fn outage(trouble: Trouble, budget: RetryBudget) -> Report {
    Lab::new(Scenario::new(trouble), Fleet::new(&three_retries()).budget(budget)).run()
}

/// What reqwest's own retry budget comes to at ten operations a second. reqwest 0.13.5 makes `TpsBudget::new(10 s, 10, 0.2)` of
/// its "20 % extra": a retry takes 5, a success puts 1 in, and there is a reserve of 500 for every ten seconds, which is 5 for
/// each operation: ten retries a second are free for each client.
fn as_reqwest_has_it() -> RetryBudget {
    RetryBudget::ratio(5.0).cost(5).throttle_cost(5).first_try_refund(1).capacity(600).initial(500)
}

#[test]
fn without_a_budget_a_server_that_hung_stays_down_after_its_repair() {
    for trouble in [Trouble::Hanging, Trouble::Frozen] {
        let report = outage(trouble, RetryBudget::unlimited());
        assert!(report.before().success() > 0.99, "{trouble}");
        assert_eq!(report.time_to_recover(), None, "{trouble}");
        assert!(report.after().wasted_work() > 0.95, "the server works for nobody: {trouble}");
        let last = &report.timeline()[report.timeline().len() - 100..];
        let (started, succeeded) =
            last.iter().fold((0, 0), |(a, b), slice| (a + slice.operations, b + slice.succeeded));
        assert!(succeeded * 50 < started, "nor is it any better at the end: {trouble}, {succeeded} of {started}");
    }
}

/// In the outage it lets 2.0 requests through for each operation. A server that has kept its queue stays down. One that comes
/// back empty is on the edge: until the last attempts of the outage have timed out, a second later, its queue grows to nearly
/// the second that clients wait. In 14 of 20 runs that is too much, here in 4 of 5.
#[test]
fn the_budget_of_reqwest_lets_too_much_through() {
    assert_eq!(outage(Trouble::Frozen, as_reqwest_has_it()).time_to_recover(), None);
    let scenario = Scenario::new(Trouble::Hanging).watched_for(Duration::from_secs(15));
    let fleet = || Fleet::new(&three_retries()).budget(as_reqwest_has_it());
    let stays_down = |seed: &u64| Lab::new(scenario, fleet()).seed(*seed).run().time_to_recover().is_none();
    let down = (1..=5).filter(stays_down).count();
    assert!(down >= 3, "{down} of 5");
}

#[test]
fn with_the_standard_budget_it_is_back_within_a_second() {
    for trouble in [Trouble::Hanging, Trouble::Refusing] {
        let report = outage(trouble, RetryBudget::standard());
        assert!(report.time_to_recover() < Some(Duration::from_secs(1)), "{trouble}: {:?}", report.time_to_recover());
        assert!(report.time_to_recover().is_some(), "{trouble}");
        let attempts = report.during().attempts_per_operation();
        assert!(attempts <= 1.15, "{trouble}: {attempts} attempts per operation");
    }
}

/// A plain 20 % is enough for a server that comes back empty, and not for one that has kept its queue: 1.2 is more than the
/// 1.05 that it can do, so the queue stays full of requests that are given up before it is their turn. Nor is 10 %. A budget
/// that is empty in the end leaves the clients' own 1.0, and the queue is drained by what is left of the capacity: of its 3 s
/// the 2 s that are more than the clients wait for, at 0.05 a second, in about 42 s.
#[test]
fn a_share_of_retries_keeps_a_full_queue_full() {
    for ratio in [0.1, 0.2] {
        assert!(outage(Trouble::Hanging, RetryBudget::ratio(ratio)).time_to_recover() < Some(Duration::from_secs(1)));
        let report = outage(Trouble::Frozen, RetryBudget::ratio(ratio));
        assert_eq!(report.time_to_recover(), None, "{ratio}");
    }
    assert_eq!(outage(Trouble::Frozen, RetryBudget::unlimited()).time_to_recover(), None);
    let standard = outage(Trouble::Frozen, RetryBudget::standard()).time_to_recover().unwrap();
    assert!((35.0..50.0).contains(&standard.as_secs_f64()), "{standard:?}");
}

/// The client is patient enough, or the queue short enough, and the same freeze is over when it is over.
#[test]
fn a_queue_that_is_shorter_than_the_clients_patience_does_no_harm() {
    let fleet = || Fleet::new(&three_retries()).budget(RetryBudget::unlimited());
    let frozen = Scenario::new(Trouble::Frozen);
    let short = Lab::new(frozen, fleet()).server(Server::default().queue(Duration::from_millis(500))).run();
    let patient = Lab::new(frozen, fleet().attempt_timeout(Duration::from_secs(10))).run();
    for report in [short, patient] {
        assert!(report.time_to_recover().is_some(), "{report}");
    }
}

#[test]
fn ten_percent_of_failures_are_hidden_from_the_caller() {
    for seed in 1..=3 {
        let minute = Scenario::new(Trouble::Failing(0.1)).after_calm_of(Duration::ZERO).watched_for(Duration::ZERO);
        let lab = Lab::new(minute.lasting(Duration::from_secs(60)), Fleet::new(&three_retries())).seed(seed);
        let success = lab.server(Server::unlimited()).run().during().success();
        assert!(success >= 0.999, "seed {seed}: {success}");
    }
}

/// 500 tokens are 35 retries: 30 s of outage are 300 operations of a busy client and 30 of a quiet one. The smaller bucket that
/// the guide advises, 1.4 tokens for each operation of the outage, costs the quiet one little when a few requests fail.
#[test]
fn a_quiet_client_needs_a_smaller_budget() {
    let run = |trouble, rate, budget| {
        let fleet = Fleet::new(&three_retries()).rate(rate).budget(budget);
        Lab::new(Scenario::new(trouble), fleet).server(Server::unlimited()).run().during().clone()
    };
    let attempts = |rate, budget| run(Trouble::Refusing, rate, budget).attempts_per_operation();
    assert_near("10 operations/s", attempts(10.0, RetryBudget::standard()), 1.12, 0.01);
    assert_near("1 operation/s", attempts(1.0, RetryBudget::standard()), 2.17, 0.02);
    let small = || RetryBudget::standard().capacity(42);
    assert_near("1 operation/s, 42 tokens", attempts(1.0, small()), 1.1, 0.01);
    for (percent, at_least) in [(1.0, 0.9999), (5.0, 0.999), (10.0, 0.98)] {
        let success = run(Trouble::Failing(percent / 100.0), 1.0, small()).success();
        assert!(success >= at_least, "{percent} %: {success}");
    }
}

// ---- the instrument itself ---------------------------------------------------------------------------------------------

#[test]
fn the_seed_is_all_there_is_to_chance() {
    let run = |seed| {
        let scenario =
            Scenario::new(Trouble::Hanging).lasting(Duration::from_secs(3)).watched_for(Duration::from_secs(3));
        Lab::new(scenario, Fleet::new(&three_retries()).clients(20)).seed(seed).run().to_string()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

/// Arrivals, queue and latencies are those of the textbook: with one server, Poisson arrivals and exponential service the
/// time in the system is exponential, with the mean 1 / (capacity - load).
#[test]
fn a_calm_server_is_the_textbooks_queue() {
    let calm = Scenario::new(Trouble::Surge(1.0)).after_calm_of(Duration::ZERO).lasting(Duration::from_secs(200));
    let fleet = Fleet::new(&RetryPolicy::never()).clients(10).rate(10.0);
    let report = Lab::new(calm.watched_for(Duration::ZERO), fleet).server(Server::per_second(125.0)).run();
    let numbers = report.during();
    assert_near("operations", f64::from(u32::try_from(numbers.operations()).unwrap()), 20_000.0, 0.02);
    // Both ways through the network take 20 ms; the median of the rest is ln 2 / (125 - 100).
    let median = numbers.latency(0.5).unwrap().as_secs_f64();
    assert_near("median", median, 0.020 + 2_f64.ln() / 25.0, 0.1);
}

#[test]
fn a_timeout_is_repeated_only_with_a_licence() {
    let attempts = |trouble, idempotency| {
        let fleet = Fleet::new(&three_retries()).budget(RetryBudget::unlimited()).idempotency(idempotency);
        Lab::new(Scenario::new(trouble), fleet.clients(10)).run().during().attempts_per_operation()
    };
    assert!(attempts(Trouble::Hanging, Idempotency::Keyed) > 3.8);
    assert!((attempts(Trouble::Hanging, Idempotency::Absent) - 1.0).abs() < 1e-9);
    assert!(attempts(Trouble::Refusing, Idempotency::Absent) > 3.8, "it cannot have acted");
}

#[test]
fn a_surge_is_as_large_as_it_says_and_a_429_slows_the_clients_down() {
    let scenario =
        Scenario::new(Trouble::Surge(3.0)).lasting(Duration::from_secs(30)).watched_for(Duration::from_secs(1));
    let run = |class| {
        let fleet = Fleet::new(&three_retries()).budget(RetryBudget::unlimited()).clients(30);
        Lab::new(scenario, fleet).server(Server::default().sheds_as(class)).run()
    };
    let (unavailable, throttled) = (run(Class::Ambiguous), run(Class::Throttled));
    for report in [&unavailable, &throttled] {
        let operations = f64::from(u32::try_from(report.during().operations()).unwrap());
        assert_near("operations", operations, 27_000.0, 0.02);
    }
    let peak = |report: &Report| report.timeline()[100..400].iter().map(|slice| slice.requests).max();
    assert!(peak(&throttled) < peak(&unavailable));
}

/// Without jitter all are back in the same tenth of a second.
#[test]
fn jitter_spreads_the_herd() {
    let peak = |jitter| {
        let backoff = Backoff::default().jitter(jitter);
        lab::herd(&RetryPolicy::new().max_attempts(8).backoff(backoff)).peak()
    };
    assert_eq!(peak(Jitter::None), 1000);
    assert!(peak(Jitter::Full) < 500, "{}", peak(Jitter::Full));
}

#[test]
fn nonsense_ends_too() {
    let forever = RetryPolicy::new()
        .max_attempts(u32::MAX)
        .deadline(None)
        .backoff(Backoff::exponential(Duration::MAX / 2, Duration::MAX / 2).jitter(Jitter::None));
    assert!(lab::amplification(&forever.clone().max_attempts(3), &RetryBudget::unlimited(), 2) > 8.9);
    let always_failing =
        Scenario::new(Trouble::Failing(1.0)).lasting(Duration::from_secs(1)).watched_for(Duration::ZERO);
    for factor in [f64::NAN, f64::NEG_INFINITY, f64::INFINITY] {
        let surge = Scenario::new(Trouble::Surge(factor)).lasting(Duration::from_millis(10));
        let report = Lab::new(surge.after_calm_of(Duration::ZERO), Fleet::new(&RetryPolicy::never()).clients(1)).run();
        assert!(report.during().operations() < 200, "{factor}");
    }
    for rate in [f64::NAN, -1.0, 0.0, 2.0] {
        for capacity in [f64::NAN, -1.0, 0.0, f64::INFINITY] {
            let fleet = Fleet::new(&forever).budget(RetryBudget::unlimited()).clients(3).rate(rate);
            let report = Lab::new(always_failing, fleet).server(Server::per_second(capacity)).run();
            assert_eq!(report.during().latency(f64::NAN), None);
            assert!(report.to_string().contains("3 clients"), "{report}");
        }
    }
}

// ---- the breaker ---------------------------------------------------------------------------------------------------------

/// What a breaker is for: in an outage the first attempts go on too, whatever the budget says. With it hardly anything is sent, and
/// callers are told at once instead of after a timeout.
#[test]
fn in_an_outage_a_breaker_sends_next_to_nothing() {
    for trouble in [Trouble::Hanging, Trouble::Frozen] {
        let with = |fleet: Fleet| Lab::new(Scenario::new(trouble), fleet.breaker(BreakerPolicy::new())).run();
        let without = outage(trouble, RetryBudget::standard());
        let report = with(Fleet::new(&three_retries()));
        let (sent, usual) = (report.during().attempts_per_operation(), without.during().attempts_per_operation());
        assert!(usual > 1.1 && sent < 0.35, "{trouble}: {sent} attempts for each operation, {usual} without");
        assert!(report.after().success() > 0.9, "{trouble}: {}", report.after().success());
        assert!(report.time_to_recover().is_some(), "{trouble}");
        // Even where nothing else holds the retries back.
        let report = with(Fleet::new(&three_retries()).budget(RetryBudget::unlimited()));
        assert!(report.during().attempts_per_operation() < 0.35, "{trouble}");
        assert!(report.time_to_recover().is_some(), "{trouble}: without a breaker it stays down");
    }
}

/// And what it costs: in a brownout of under half of the requests it is not there, and in one of more it refuses what retries would
/// have got through.
#[test]
fn in_a_brownout_a_breaker_is_silent_or_in_the_way() {
    let minute = |share| {
        let scenario = Scenario::new(Trouble::Failing(share)).after_calm_of(Duration::ZERO).watched_for(Duration::ZERO);
        let fleet = || Fleet::new(&three_retries());
        let run = |fleet| {
            let lab = Lab::new(scenario.lasting(Duration::from_secs(60)), fleet).server(Server::unlimited()).run();
            (lab.during().success(), lab.during().attempts_per_operation())
        };
        (run(fleet()), run(fleet().breaker(BreakerPolicy::new())))
    };
    let (without, with) = minute(0.1);
    assert_eq!(without, with, "a tenth fails, and no circuit opens");
    let (without, with) = minute(0.6);
    assert!(with.0 < without.0 / 2.0 && with.1 < without.1 / 2.0, "{without:?} without a breaker, {with:?} with it");
}
