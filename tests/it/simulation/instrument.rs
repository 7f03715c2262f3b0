//! The simulator itself.

use std::time::Duration;

use steadfast::policy::{Backoff, Class, HedgePolicy, Idempotency, Jitter, RetryBudget, RetryPolicy};
use steadfast_sim::{Fleet, Report, Scenario, Server, Simulation, Trouble};

use super::{assert_near, three_retries};

#[test]
fn same_seed_gives_same_report() {
    let run = |seed| {
        let scenario =
            Scenario::new(Trouble::Hanging).lasting(Duration::from_secs(3)).watched_for(Duration::from_secs(3));
        Simulation::new(scenario, Fleet::new(&three_retries()).clients(20)).seed(seed).run().to_string()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

/// Arrivals, queue and latencies match queueing theory. With one server, Poisson arrivals and
/// exponential service, the time in the system is exponential, with the mean 1 / (capacity - load).
#[test]
fn calm_server_matches_queueing_theory() {
    let calm = Scenario::new(Trouble::Surge(1.0)).after_calm_of(Duration::ZERO).lasting(Duration::from_secs(200));
    let fleet = Fleet::new(&RetryPolicy::never()).clients(10).rate(10.0);
    let report = Simulation::new(calm.watched_for(Duration::ZERO), fleet).server(Server::per_second(125.0)).run();
    let numbers = report.during();
    assert_near("operations", f64::from(u32::try_from(numbers.operations()).unwrap()), 20_000.0, 0.02);
    // Both directions through the network take 20 ms; the median of the rest is ln 2 / (125 - 100).
    let median = numbers.latency(0.5).unwrap().as_secs_f64();
    assert_near("median", median, 0.020 + 2_f64.ln() / 25.0, 0.1);
}

#[test]
fn timeout_is_repeated_only_with_licence() {
    let attempts = |trouble, idempotency| {
        let fleet = Fleet::new(&three_retries()).budget(RetryBudget::unlimited()).idempotency(idempotency);
        Simulation::new(Scenario::new(trouble), fleet.clients(10)).run().during().attempts_per_operation()
    };
    assert!(attempts(Trouble::Hanging, Idempotency::Keyed) > 3.8);
    assert!((attempts(Trouble::Hanging, Idempotency::Absent) - 1.0).abs() < 1e-9);
    assert!(attempts(Trouble::Refusing, Idempotency::Absent) > 3.8, "it cannot have acted");
}

#[test]
fn surge_has_its_size_and_429_lowers_the_peak() {
    let scenario =
        Scenario::new(Trouble::Surge(3.0)).lasting(Duration::from_secs(30)).watched_for(Duration::from_secs(1));
    let run = |class| {
        let fleet = Fleet::new(&three_retries()).budget(RetryBudget::unlimited()).clients(30);
        Simulation::new(scenario, fleet).server(Server::default().sheds_as(class)).run()
    };
    let (unavailable, throttled) = (run(Class::Ambiguous), run(Class::Throttled));
    for report in [&unavailable, &throttled] {
        let operations = f64::from(u32::try_from(report.during().operations()).unwrap());
        assert_near("operations", operations, 27_000.0, 0.02);
    }
    let peak = |report: &Report| report.timeline()[100..400].iter().map(|slice| slice.requests).max();
    assert!(peak(&throttled) < peak(&unavailable));
}

/// Without jitter all clients return in the same tenth of a second.
#[test]
fn jitter_spreads_retries() {
    let peak = |jitter| {
        let backoff = Backoff::default().jitter(jitter);
        steadfast_sim::herd(&RetryPolicy::new().max_attempts(8).backoff(backoff)).peak()
    };
    assert_eq!(peak(Jitter::None), 1000);
    assert!(peak(Jitter::Full) < 500, "{}", peak(Jitter::Full));
}

/// The simulator makes the same check as the client, so no impossible policy is simulated.
#[test]
fn report_names_invalid_policy() {
    let scenario = Scenario::new(Trouble::Refusing).lasting(Duration::from_secs(1)).watched_for(Duration::ZERO);
    let run = |policy: &RetryPolicy| {
        let simulation = Simulation::new(scenario, Fleet::new(policy).clients(1));
        let invalid = simulation.validate().err().map(|invalid| invalid.to_string());
        (invalid, simulation.run().to_string())
    };
    let (invalid, report) = run(&three_retries());
    assert!(invalid.is_none() && !report.contains("no client"), "{report}");
    let (invalid, report) = run(&RetryPolicy::new().max_attempts(0));
    let text = "max_attempts: 0, but must be at least 1: it counts the first attempt";
    assert_eq!(invalid.as_deref(), Some(text));
    assert!(report.contains(&format!("no client is built with these policies: {text}\n")), "{report}");
}

#[test]
fn extreme_settings_terminate() {
    let forever = RetryPolicy::new()
        .max_attempts(u32::MAX)
        .deadline(None)
        .backoff(Backoff::exponential(Duration::MAX / 2, Duration::MAX / 2).jitter(Jitter::None));
    assert!(steadfast_sim::amplification(&forever.clone().max_attempts(3), &RetryBudget::unlimited(), 2) > 8.9);
    let always_failing =
        Scenario::new(Trouble::Failing(1.0)).lasting(Duration::from_secs(1)).watched_for(Duration::ZERO);
    for factor in [f64::NAN, f64::NEG_INFINITY, f64::INFINITY] {
        let surge = Scenario::new(Trouble::Surge(factor)).lasting(Duration::from_millis(10));
        let report =
            Simulation::new(surge.after_calm_of(Duration::ZERO), Fleet::new(&RetryPolicy::never()).clients(1)).run();
        assert!(report.during().operations() < 200, "{factor}");
    }
    for rate in [f64::NAN, -1.0, 0.0, 2.0] {
        for capacity in [f64::NAN, -1.0, 0.0, f64::INFINITY] {
            let fleet = Fleet::new(&forever).budget(RetryBudget::unlimited()).clients(3).rate(rate);
            let report = Simulation::new(always_failing, fleet).server(Server::per_second(capacity)).run();
            assert_eq!(report.during().latency(f64::NAN), None);
            assert!(report.to_string().contains("3 clients"), "{report}");
        }
    }
    let times = [Duration::ZERO, Duration::from_nanos(1), Duration::MAX];
    let shares = [f64::NAN, -1.0, 0.5, f64::INFINITY];
    for (time, share) in times.into_iter().flat_map(|time| shares.map(|share| (time, share))) {
        let fleet =
            || Fleet::new(&forever.clone().max_retry_after(Duration::MAX)).clients(3).cooldown().tells_deadline();
        for hedge in [HedgePolicy::after(time), HedgePolicy::quantile(share).max_extra_load(share)] {
            for trouble in [Trouble::Slow { share, by: time }, Trouble::Unavailable { retry_after: Some(time) }] {
                let scenario = Scenario::new(trouble).lasting(Duration::from_secs(3)).watched_for(Duration::ZERO);
                let server = Server::default().heeds_deadlines(time).hints(time).queue(time);
                let fleet = fleet().hedge(hedge).attempt_timeout(time.saturating_mul(2));
                assert!(
                    Simulation::new(scenario, fleet).server(server).run().during().operations() > 0,
                    "{time:?}, {share}"
                );
            }
        }
    }
}
