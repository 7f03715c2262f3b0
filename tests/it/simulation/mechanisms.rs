//! The effect and the cost of each mechanism of overload protection, in an outage and in a
//! brownout.
//!
//! A mechanism that does not concern a trouble must leave the run unchanged, to the last random
//! draw. The reports are then equal.

use std::time::Duration;

use steadfast::policy::{BreakerPolicy, Class, HedgePolicy, Idempotency, RetryBudget};
use steadfast_sim::{Fleet, Report, Scenario, Server, Simulation, Trouble};

use super::three_retries;

const OUTAGES: [Trouble; 3] = [Trouble::Refusing, Trouble::Hanging, Trouble::Frozen];
const HINTED: Trouble = Trouble::Unavailable { retry_after: Some(Duration::from_secs(5)) };
/// One response in a hundred is half a second late.
const LATE: Trouble = Trouble::Slow { share: 0.01, by: Duration::from_millis(500) };
const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

fn fleet() -> Fleet {
    Fleet::new(&three_retries())
}

fn hedging(fleet: Fleet) -> Fleet {
    fleet.hedge(HedgePolicy::quantile(0.98).max_extra_load(0.03))
}

/// A margin slightly above the delay of one direction through the network.
fn heeding(server: Server) -> Server {
    server.heeds_deadlines(Duration::from_millis(30))
}

fn everything(fleet: Fleet) -> Fleet {
    hedging(fleet.breaker(BreakerPolicy::new()).cooldown().tells_deadline())
}

/// Runs 30 s of trouble, with 5 % of spare capacity.
fn run(trouble: Trouble, fleet: Fleet) -> Report {
    run_on(Server::default(), trouble, fleet)
}

fn run_on(server: Server, trouble: Trouble, fleet: Fleet) -> Report {
    Simulation::new(Scenario::new(trouble), fleet).server(server).run()
}

fn seconds(time: Option<Duration>) -> f64 {
    time.map_or(f64::INFINITY, |time| time.as_secs_f64())
}

fn sent(report: &Report) -> f64 {
    report.during().load_multiplier()
}

#[track_caller]
fn assert_same(what: &str, report: &Report, usual: &Report) {
    assert_eq!(report.to_string(), usual.to_string(), "{what}");
}

// ---- the breaker --------------------------------------------------------------------------------

/// The purpose of a breaker: in an outage the first attempts continue, whatever the budget is. With
/// a breaker hardly anything is sent, and callers get an error at once instead of a timeout.
#[test]
fn breaker_in_outage_sends_almost_nothing() {
    for trouble in [Trouble::Hanging, Trouble::Frozen] {
        let with = |fleet: Fleet| run(trouble, fleet.breaker(BreakerPolicy::new()));
        let without = run(trouble, fleet());
        let report = with(fleet());
        let (sent, usual) = (report.during().attempts_per_operation(), without.during().attempts_per_operation());
        assert!(usual > 1.1 && sent < 0.35, "{trouble}: {sent} attempts for each operation, {usual} without");
        assert!(report.after().success() > 0.9, "{trouble}: {}", report.after().success());
        assert!(report.time_to_recover().is_some(), "{trouble}");
        // Even if nothing else limits the retries.
        let report = with(fleet().budget(RetryBudget::unlimited()));
        assert!(report.during().attempts_per_operation() < 0.35, "{trouble}");
        assert!(report.time_to_recover().is_some(), "{trouble}: without a breaker it stays down");
    }
}

/// The cost of a breaker: if under half of the requests fail, it has no effect. If more fail, it
/// refuses operations that retries would have completed.
#[test]
fn breaker_in_brownout_is_idle_or_harmful() {
    let minute = |share| {
        let scenario = Scenario::new(Trouble::Failing(share)).after_calm_of(Duration::ZERO).watched_for(Duration::ZERO);
        let run = |fleet| {
            let simulation =
                Simulation::new(scenario.lasting(Duration::from_secs(60)), fleet).server(Server::unlimited()).run();
            (simulation.during().success(), simulation.during().attempts_per_operation())
        };
        (run(fleet()), run(fleet().breaker(BreakerPolicy::new())))
    };
    let (without, with) = minute(0.1);
    assert_eq!(without, with, "a tenth fails, and no circuit opens");
    let (without, with) = minute(0.6);
    assert!(with.0 < without.0 / 2.0 && with.1 < without.1 / 2.0, "{without:?} without a breaker, {with:?} with it");
}

/// After recovery the breaker still refuses calls for a time. If retries themselves overload the
/// server, only the breaker limits them.
#[test]
fn breaker_closes_late_but_shields_full_server() {
    for trouble in [Trouble::Refusing, Trouble::Hanging] {
        assert!(seconds(run(trouble, fleet()).time_to_recover()) < 1.0, "{trouble}");
        let recovered = seconds(run(trouble, fleet().breaker(BreakerPolicy::new())).time_to_recover());
        assert!((3.0..8.0).contains(&recovered), "{trouble}: {recovered} s");
    }
    let (without, with) =
        (run(Trouble::Failing(0.2), fleet()), run(Trouble::Failing(0.2), fleet().breaker(BreakerPolicy::new())));
    let success = (without.during().success(), with.during().success());
    assert!(success.0 < 0.3 && success.1 > 0.45, "{success:?}");
    assert!(seconds(with.time_to_recover()) < 8.0 && seconds(without.time_to_recover()) > 15.0);
}

// ---- the cooldown -------------------------------------------------------------------------------

/// In an outage of 30 s with a hint of 5 s, each of the 100 clients sees six hints. The first comes
/// to all operations under way, and the others to one probe each. Nothing else is sent.
#[test]
fn cooldown_sends_one_probe_per_hint_and_client() {
    let (without, with) = (run(HINTED, fleet()), run(HINTED, fleet().cooldown()));
    assert!(sent(&without) > 1.1, "{}", sent(&without));
    let requests: u64 = with.timeline()[100..400].iter().map(|slice| slice.requests).sum();
    assert!((550..=650).contains(&requests), "{requests}");
    for later in [150, 210, 270, 330] {
        let between: u64 = with.timeline()[later..later + 40].iter().map(|slice| slice.requests).sum();
        assert!(between <= 100, "{between} after {later} tenths of a second");
    }
}

/// Delayed operations return within a second, and the budget limits their number, so a recovered
/// server sees almost no extra load. Without a budget it is half a minute of operations, which
/// causes an outage of its own. A server that drops late requests ends that within seconds.
#[test]
fn cooldown_holds_only_what_budget_pays_for() {
    let (without, with) = (run(HINTED, fleet()), run(HINTED, fleet().cooldown()));
    assert_eq!(without.time_to_recover(), AT_ONCE);
    assert!(seconds(with.time_to_recover()) < 2.0, "{:?}", with.time_to_recover());
    assert!(without.peak() < 200 && with.peak() < 200, "{} and {}", without.peak(), with.peak());

    let unpaid = || fleet().budget(RetryBudget::unlimited()).cooldown();
    let report = run(HINTED, unpaid());
    assert!(report.peak() > 2000 && seconds(report.time_to_recover()) > 30.0, "{report}");
    let dropping = run_on(heeding(Server::default()), HINTED, unpaid().tells_deadline());
    assert!(dropping.peak() > 1000 && seconds(dropping.time_to_recover()) < 12.0, "{dropping}");

    let hurried = Fleet::new(&three_retries().deadline(Duration::from_secs(2))).cooldown();
    let report = run(HINTED, hurried);
    assert!(report.peak() < 200 && seconds(report.time_to_recover()) < 2.0, "{report}");
}

/// A frozen server refuses, with a hint, what does not fit into its queue. Its clients let it
/// recover, with a sixth of the requests. Waits without a budget keep it down.
#[test]
fn cooldown_drains_full_queue() {
    let on = |fleet| run_on(Server::default().hints(Duration::from_secs(1)), Trouble::Frozen, fleet);
    let (without, with) = (on(fleet()), on(fleet().cooldown()));
    for report in [&without, &with] {
        assert!(seconds(report.time_to_recover()) < 55.0, "{report}");
    }
    assert!(sent(&with) < sent(&without) / 4.0, "{} and {}", sent(&with), sent(&without));
    let unpaid = on(fleet().budget(RetryBudget::unlimited()).cooldown());
    assert!(unpaid.time_to_recover().is_none() && unpaid.after().success() < 0.01, "{unpaid}");
}

// ---- deadlines ----------------------------------------------------------------------------------

/// No client can shorten the 42 s in which the queue of dead requests drains. A server that knows
/// the deadlines can.
#[test]
fn server_heeding_deadlines_recovers_at_once() {
    let budgets = [RetryBudget::standard, RetryBudget::unlimited, || RetryBudget::ratio(0.2)];
    for (number, budget) in budgets.into_iter().enumerate() {
        let without = run(Trouble::Frozen, fleet().budget(budget()));
        assert!(seconds(without.time_to_recover()) > 30.0, "budget {number}: {:?}", without.time_to_recover());
        let with = run_on(heeding(Server::default()), Trouble::Frozen, fleet().budget(budget()).tells_deadline());
        assert!(seconds(with.time_to_recover()) <= 1.0, "budget {number}: {:?}", with.time_to_recover());
        assert!(with.during().wasted_work() < 0.001 && with.after().wasted_work() < 0.001, "budget {number}");
    }
}

/// In an overload the server must also know how long its response travels. Otherwise it works on
/// requests with just enough time to see the work begin, and almost none succeeds. With that
/// knowledge it serves up to its capacity.
#[test]
fn ignoring_network_time_makes_every_response_late() {
    let overload = |least| {
        let server = Server::default().heeds_deadlines(Duration::from_millis(least));
        run_on(server, Trouble::Surge(2.0), fleet().tells_deadline()).during().clone()
    };
    let (without, forgetful, mindful) = (run(Trouble::Surge(2.0), fleet()).during().clone(), overload(0), overload(30));
    assert!(without.success() < 0.06 && without.wasted_work() > 0.9, "{without:?}");
    assert!(forgetful.success() < 0.06 && forgetful.wasted_work() > 0.9, "{}", forgetful.success());
    // Its capacity is 1.05 of a load of 2.
    assert!(mindful.success() > 0.51 && mindful.wasted_work() < 0.01, "{}", mindful.success());
}

#[test]
fn deadlines_keep_brownout_from_overload() {
    let without = run(Trouble::Failing(0.1), fleet());
    let with = run_on(heeding(Server::default()), Trouble::Failing(0.1), fleet().tells_deadline());
    let success = (without.during().success(), with.during().success());
    assert!(success.0 < 0.8 && success.1 > 0.97, "{success:?}");
}

/// Without a queue there is nothing to drop. Without a reader the deadline is only a header.
#[test]
fn deadlines_need_a_queue_and_a_reader() {
    for trouble in [Trouble::Refusing, Trouble::Hanging, HINTED] {
        let (usual, told) =
            (run(trouble, fleet()), run_on(heeding(Server::default()), trouble, fleet().tells_deadline()));
        assert_eq!(told.time_to_recover(), usual.time_to_recover(), "{trouble}");
        assert!((sent(&told) - sent(&usual)).abs() < 0.01, "{trouble}");
    }
    assert_same("not read", &run(Trouble::Frozen, fleet().tells_deadline()), &run(Trouble::Frozen, fleet()));
}

/// In operations of 60 ms some retries begin with too little time for any response. A server that
/// heeds deadlines wastes no work, and refuses a few requests that would have succeeded.
#[test]
fn short_deadlines_waste_no_work() {
    let hurried = || Fleet::new(&three_retries().deadline(Duration::from_millis(60)));
    let roomy = || Server::with_headroom(2.0);
    let during = |server, fleet| run_on(server, Trouble::Failing(0.3), fleet).during().clone();
    let without = during(roomy(), hurried());
    let told = during(heeding(roomy()), hurried().tells_deadline());
    assert!(without.wasted_work() > 0.05, "{}", without.wasted_work());
    assert!(told.wasted_work() < 0.001 && told.success() < without.success() - 0.01, "{}", told.success());
}

// ---- hedging ------------------------------------------------------------------------------------

#[test]
fn hedge_with_headroom_cuts_tail() {
    let p999 = |fleet| run_on(Server::with_headroom(2.0), LATE, fleet).during().latency(0.999);
    assert!(p999(fleet()) > Some(Duration::from_millis(500)));
    assert!(p999(hedging(fleet())) < Some(Duration::from_millis(100)));
    let report = run_on(Server::with_headroom(2.0), LATE, hedging(fleet()));
    let (sent, wasted) = (sent(&report), report.during().wasted_work());
    assert!((1.015..1.031).contains(&sent), "{sent}");
    assert!((wasted - (sent - 1.0)).abs() < 0.002, "of each two that race one is work for nobody: {wasted}");
    // If one response in five is late, 3 % more requests cannot help.
    let many = Trouble::Slow { share: 0.2, by: Duration::from_millis(500) };
    let report = run_on(Server::with_headroom(2.0), many, hedging(fleet()));
    assert!(report.during().latency(0.999) > Some(Duration::from_millis(500)));
    assert!(report.during().load_multiplier() < 1.04, "{}", report.during().load_multiplier());
}

/// A queue delays all operations at once, and the saved allowances are spent together. With 5 % of
/// spare capacity that lengthens the tail in each run, and in some the server does not recover.
#[test]
fn hedge_without_headroom_causes_overload() {
    let runs = |fleet: fn() -> Fleet| -> Vec<_> {
        (1..=4).map(|seed| Simulation::new(Scenario::new(LATE), fleet()).seed(seed).run()).collect()
    };
    let (without, with) = (runs(fleet), runs(|| hedging(fleet())));
    for (usual, hedged) in without.iter().zip(&with) {
        assert_eq!(usual.time_to_recover(), AT_ONCE);
        assert!(hedged.during().latency(0.999) > usual.during().latency(0.999), "{hedged}");
        assert!(hedged.peak() > 200 && usual.peak() < 160, "{} and {}", hedged.peak(), usual.peak());
    }
    let down = with.iter().filter(|report| report.time_to_recover().is_none()).count();
    assert!((1..=3).contains(&down), "{down} of 4");
}

/// Hedges take tokens from the budget of retries, which an outage empties.
#[test]
fn hedge_in_outage_adds_no_load() {
    for trouble in OUTAGES.into_iter().chain([HINTED]) {
        let (usual, hedged) = (run(trouble, fleet()), run(trouble, hedging(fleet())));
        assert!((sent(&hedged) - sent(&usual)).abs() < 0.01, "{trouble}: {} and {}", sent(&hedged), sent(&usual));
    }
    // Without a budget the hedge's own limit holds.
    let unlimited = || fleet().budget(RetryBudget::unlimited());
    let (usual, hedged) = (run(Trouble::Hanging, unlimited()), run(Trouble::Hanging, hedging(unlimited())));
    assert!(sent(&hedged) < sent(&usual) + 0.04, "{} and {}", sent(&hedged), sent(&usual));
}

#[test]
fn only_safe_method_is_hedged() {
    for idempotency in [Idempotency::Keyed, Idempotency::Absent] {
        let keyed = || fleet().idempotency(idempotency);
        let by_time = |fleet: Fleet| fleet.hedge(HedgePolicy::after(Duration::from_millis(100)));
        assert_same("not safe", &run(LATE, by_time(keyed())), &run(LATE, keyed()));
    }
}

// ---- together -----------------------------------------------------------------------------------

/// Each outage is as quiet as with the breaker alone, or with the cooldown alone if that is
/// quieter. Each is over in seconds.
#[test]
fn all_mechanisms_together_recover_in_seconds() {
    for (trouble, most) in OUTAGES.map(|trouble| (trouble, 0.35)).into_iter().chain([(HINTED, 0.03)]) {
        let report = run_on(heeding(Server::default()), trouble, everything(fleet()));
        assert!(sent(&report) < most, "{trouble}: {}", sent(&report));
        assert!(seconds(report.time_to_recover()) < 10.0, "{trouble}: {:?}", report.time_to_recover());
        assert!(report.after().success() > 0.88, "{trouble}: {}", report.after().success());
    }
    let report = run_on(heeding(Server::with_headroom(2.0)), LATE, everything(fleet()));
    assert!(report.during().success() > 0.9999 && report.during().latency(0.999) < Some(Duration::from_millis(100)));
}

/// Nothing triggers a cooldown here, so it must change nothing; neither must a breaker that does
/// not open.
#[test]
fn unneeded_mechanism_changes_nothing() {
    for trouble in OUTAGES.into_iter().chain([Trouble::Unavailable { retry_after: None }, Trouble::Failing(0.3)]) {
        assert_same(&trouble.to_string(), &run(trouble, fleet().cooldown()), &run(trouble, fleet()));
    }
    assert_same("late", &run(LATE, fleet().breaker(BreakerPolicy::new())), &run(LATE, fleet()));
}

/// Every random draw comes from the seed, including those of a woken waiter and of a hedge.
#[test]
fn same_seed_gives_same_report_with_all_mechanisms() {
    let whole = Scenario::new(HINTED).lasting(Duration::from_secs(12)).watched_for(Duration::from_secs(10));
    let run = |seed| {
        let server = heeding(Server::with_headroom(1.5).hints(Duration::from_secs(1)).sheds_as(Class::Throttled));
        Simulation::new(whole, everything(fleet().clients(20))).server(server).seed(seed).run().to_string()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
