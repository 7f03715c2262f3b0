//! What is tried: policies, budgets, and the runs that the tables and plots are made of.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use steadfast::policy::{Backoff, Jitter, RetryBudget, RetryPolicy};
use steadfast_sim::{Contention, Fleet, Report, Scenario, Server, Simulation, Trouble};

use crate::mechanisms::Mechanisms;

pub(crate) const JITTERS: [(&str, Jitter); 3] =
    [("no jitter", Jitter::None), ("equal jitter", Jitter::Equal), ("full jitter", Jitter::Full)];

pub(crate) const OUTAGES: [Trouble; 3] = [Trouble::Refusing, Trouble::Hanging, Trouble::Frozen];

/// How large the runs are.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    /// The clients of most runs.
    pub(crate) clients: u32,
    /// The clients of the runs in which a share of the requests fails.
    pub(crate) share_clients: u32,
    /// The runs of which a point of the contention plot is the mean.
    pub(crate) contention_runs: u64,
    /// How long the run of busy and quiet clients is watched after the trouble. Nothing shows it,
    /// but operations that began in the trouble end in it.
    mixed_watched_for: Duration,
}

impl Size {
    /// As the guide has it.
    pub(crate) const FULL: Self =
        Self { clients: 100, share_clients: 30, contention_runs: 20, mixed_watched_for: Duration::from_secs(60) };
    /// For a first look: seconds in a debug build. With fewer clients than this the server is so
    /// slow that chance alone fills its queue.
    pub(crate) const QUICK: Self =
        Self { clients: 50, share_clients: 3, contention_runs: 2, mixed_watched_for: Duration::ZERO };
}

/// The crowds of the contention plot.
pub(crate) const CROWDS: [u32; 10] = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100];

/// The failure shares of the load plot, in percent.
pub(crate) const SHARES: [u32; 11] = [0, 1, 5, 10, 15, 20, 30, 40, 60, 80, 100];

/// A budget with its name in tables and legends.
pub(crate) struct Budget {
    pub(crate) name: &'static str,
    make: fn() -> RetryBudget,
}

/// At ten operations a second for each client, which is what all of these runs have.
pub(crate) const BUDGETS: [Budget; 4] = [
    Budget { name: "no budget", make: RetryBudget::unlimited },
    Budget { name: "as reqwest has it (20 % + 10/s)", make: as_reqwest_has_it },
    Budget { name: "ratio(0.2)", make: || RetryBudget::ratio(0.2) },
    Budget { name: "standard()", make: RetryBudget::standard },
];

/// The budget of reqwest 0.13.5, `TpsBudget::new(10 s, 10, 0.2)`, in its own units: a retry takes
/// 5, a success puts 1 in (the 20 %), and there is a reserve of 500 for every ten seconds: at ten
/// operations a second, 5 for each.
fn as_reqwest_has_it() -> RetryBudget {
    RetryBudget::ratio(5.0).cost(5).throttle_cost(5).first_try_refund(1).capacity(600).initial(500)
}

/// One way to retry, for the plot of load against failure share.
pub(crate) struct Strategy {
    pub(crate) name: &'static str,
    jitter: Jitter,
    budget: fn() -> RetryBudget,
}

pub(crate) const STRATEGIES: [Strategy; 4] = [
    Strategy { name: "naive: no jitter, no budget", jitter: Jitter::None, budget: RetryBudget::unlimited },
    Strategy { name: "full jitter, no budget", jitter: Jitter::Full, budget: RetryBudget::unlimited },
    Strategy { name: "full jitter, standard()", jitter: Jitter::Full, budget: RetryBudget::standard },
    Strategy {
        name: "full jitter, 10 % bucket of 5",
        jitter: Jitter::Full,
        budget: || RetryBudget::ratio(0.1).capacity(5).initial(5),
    },
];

/// Everything that was found.
pub(crate) struct Findings {
    pub(crate) size: Size,
    /// A row for each of [`OUTAGES`], in it one report for each of [`BUDGETS`].
    pub(crate) outages: [Vec<Report>; 3],
    /// A row for each of [`STRATEGIES`], in it one report for each of [`SHARES`].
    pub(crate) shares: Vec<Vec<Report>>,
    /// A row for each of [`JITTERS`], in it the means for each of [`CROWDS`].
    pub(crate) contention: Vec<Vec<Mean>>,
    /// One for each of [`JITTERS`].
    pub(crate) herds: Vec<Report>,
    pub(crate) mixed: Report,
    /// One for each of [`BUDGETS`].
    pub(crate) overloads: Vec<Report>,
    /// Calls at the bottom of 1, 2 and 3 layers: without a budget, with the standard one.
    pub(crate) layers: Vec<(u32, f64, f64)>,
    pub(crate) mechanisms: Mechanisms,
}

pub(crate) struct Mean {
    pub(crate) calls: f64,
    pub(crate) seconds: f64,
}

/// Three retries.
fn policy() -> RetryPolicy {
    RetryPolicy::new().max_attempts(4)
}

pub(crate) fn run(size: Size, seed: u64, progress: impl Fn(u64, u64) + Sync) -> Findings {
    let mut simulations = Vec::new();
    simulations.extend(OUTAGES.iter().flat_map(|trouble| BUDGETS.iter().map(|budget| outage(size, *trouble, budget))));
    simulations
        .extend(STRATEGIES.iter().flat_map(|strategy| SHARES.iter().map(|share| brownout(size, strategy, *share))));
    simulations.extend(BUDGETS.iter().map(|budget| overload(size, budget)));
    simulations.extend(JITTERS.map(|(_, jitter)| herd(jitter)));
    simulations.extend(Mechanisms::simulations(size));
    let simulations: Vec<Simulation> = simulations.into_iter().map(|simulation| simulation.seed(seed)).collect();

    let mut reports = in_parallel(&simulations, Simulation::run, progress).into_iter();
    let mut row = |columns: usize| -> Vec<Report> { reports.by_ref().take(columns).collect() };
    let outages = OUTAGES.map(|_| row(BUDGETS.len()));
    let shares = STRATEGIES.iter().map(|_| row(SHARES.len())).collect();
    let (overloads, herds) = (row(BUDGETS.len()), row(JITTERS.len()));
    let mechanisms = Mechanisms::of(row);
    let layers = [1, 2, 3].map(|layers| {
        let calls = |budget| steadfast_sim::amplification(&policy(), &budget, layers);
        (layers, calls(RetryBudget::unlimited()), calls(RetryBudget::standard()))
    });
    Findings {
        size,
        outages,
        shares,
        contention: JITTERS.iter().map(|(_, jitter)| contention(size, *jitter, seed)).collect(),
        herds,
        mixed: mixed(size).seed(seed).run(),
        overloads,
        layers: layers.to_vec(),
        mechanisms,
    }
}

fn outage(size: Size, trouble: Trouble, budget: &Budget) -> Simulation {
    Simulation::new(Scenario::new(trouble), fleet(size, budget))
}

/// [`steadfast_sim::overload`], with other budgets.
fn overload(size: Size, budget: &Budget) -> Simulation {
    let scenario =
        Scenario::new(Trouble::Surge(2.0)).lasting(Duration::from_secs(10)).watched_for(Duration::from_secs(60));
    Simulation::new(scenario, fleet(size, budget))
}

fn fleet(size: Size, budget: &Budget) -> Fleet {
    Fleet::new(&policy()).budget((budget.make)()).clients(size.clients)
}

/// [`steadfast_sim::mixed`], watched for as long as it needs to be.
fn mixed(size: Size) -> Simulation {
    let fleet = |clients, rate| Fleet::new(&policy()).clients(clients).rate(rate);
    let scenario = Scenario::new(Trouble::Refusing).watched_for(size.mixed_watched_for);
    Simulation::new(scenario, fleet(1, 300.0)).and(fleet(30, 10.0)).and(fleet(300, 1.0))
}

/// A minute, against a server that no load can hurt: only the share counts.
fn brownout(size: Size, strategy: &Strategy, percent: u32) -> Simulation {
    let trouble = Trouble::Failing(f64::from(percent) / 100.0);
    let minute = Scenario::new(trouble).after_calm_of(Duration::ZERO).watched_for(Duration::ZERO);
    let policy = policy().backoff(Backoff::default().jitter(strategy.jitter));
    let fleet = Fleet::new(&policy).budget((strategy.budget)()).clients(size.share_clients);
    Simulation::new(minute.lasting(Duration::from_secs(60)), fleet).server(Server::unlimited())
}

/// [`steadfast_sim::herd`], with a second of calm before it.
fn herd(jitter: Jitter) -> Simulation {
    let policy = RetryPolicy::new().max_attempts(8).backoff(Backoff::default().jitter(jitter));
    let scenario = Scenario::new(Trouble::Refusing).after_calm_of(Duration::from_secs(1));
    let scenario = scenario.lasting(Duration::from_millis(500)).watched_for(Duration::from_secs(8));
    Simulation::new(scenario, Fleet::new(&policy).clients(1000).together()).server(Server::per_second(1000.0))
}

fn contention(size: Size, jitter: Jitter, seed: u64) -> Vec<Mean> {
    let backoff = Backoff::exponential(Duration::from_millis(10), Duration::from_secs(2)).jitter(jitter);
    let policy = RetryPolicy::new().max_attempts(u32::MAX).deadline(None).backoff(backoff);
    let crowd = |clients: u32| {
        let runs =
            (0..size.contention_runs).map(|run| steadfast_sim::contention(&policy, clients, seed.wrapping_add(run)));
        mean(&runs.collect::<Vec<_>>())
    };
    CROWDS.map(crowd).into()
}

#[allow(clippy::cast_precision_loss, reason = "thousands")]
fn mean(runs: &[Contention]) -> Mean {
    let calls = runs.iter().map(|run| run.calls as f64).sum::<f64>();
    let seconds = runs.iter().map(|run| run.time.as_secs_f64()).sum::<f64>();
    Mean { calls: calls / runs.len() as f64, seconds: seconds / runs.len() as f64 }
}

/// What `run` makes of each of `jobs`, in their order, on all the cores.
fn in_parallel<J: Sync, R: Send>(
    jobs: &[J],
    run: impl Fn(&J) -> R + Sync,
    progress: impl Fn(u64, u64) + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(jobs.len()));
    let work = || {
        while let Some((place, job)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, jobs.get(at)?)))
        {
            let result = run(job);
            let mut done = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            done.push((place, result));
            progress(done.len() as u64, jobs.len() as u64);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}
