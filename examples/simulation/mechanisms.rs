//! The mechanisms of overload protection, each alone and all together, in outages and in brownouts.

use std::time::Duration;

use steadfast::policy::{BreakerPolicy, HedgePolicy, RetryPolicy};
use steadfast_sim::{Fleet, Report, Scenario, Server, Simulation, Trouble};

use crate::experiments::Size;

/// A mechanism with its name in tables: what it makes of the clients, and of the server if it has a
/// part in it.
pub(crate) struct Mechanism {
    pub(crate) name: &'static str,
    clients: fn(Fleet) -> Fleet,
    server: fn(Server) -> Server,
}

pub(crate) const MECHANISMS: [Mechanism; 6] = [
    Mechanism { name: "none", clients: |fleet| fleet, server: |server| server },
    Mechanism { name: "breaker", clients: |fleet| fleet.breaker(BreakerPolicy::new()), server: |server| server },
    Mechanism { name: "cooldown", clients: Fleet::cooldown, server: |server| server },
    Mechanism { name: "deadline header", clients: Fleet::tells_deadline, server: heeding },
    Mechanism { name: "hedge", clients: |fleet| fleet.hedge(hedge()), server: |server| server },
    Mechanism {
        name: "all",
        clients: |fleet| fleet.breaker(BreakerPolicy::new()).cooldown().tells_deadline().hedge(hedge()),
        server: heeding,
    },
];

/// A way through the network, and a little.
fn heeding(server: Server) -> Server {
    server.heeds_deadlines(Duration::from_millis(30))
}

fn hedge() -> HedgePolicy {
    HedgePolicy::quantile(0.98).max_extra_load(0.03)
}

/// A trouble of 30 s, with its name in tables, and how much more the server can do than it is asked
/// for.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    trouble: Trouble,
    headroom: f64,
}

const HINT: Option<Duration> = Some(Duration::from_secs(5));
const LATE: Trouble = Trouble::Slow { share: 0.01, by: Duration::from_millis(500) };

pub(crate) const OUTAGES: [Case; 4] = [
    Case { name: "refusing", trouble: Trouble::Refusing, headroom: 1.05 },
    Case { name: "hung, then empty", trouble: Trouble::Hanging, headroom: 1.05 },
    Case { name: "frozen, then goes on", trouble: Trouble::Frozen, headroom: 1.05 },
    Case { name: "503, Retry-After: 5", trouble: Trouble::Unavailable { retry_after: HINT }, headroom: 1.05 },
];

pub(crate) const BROWNOUTS: [Case; 5] = [
    Case { name: "10 % fail, 5 % to spare", trouble: Trouble::Failing(0.1), headroom: 1.05 },
    Case { name: "60 % fail, twice the room", trouble: Trouble::Failing(0.6), headroom: 2.0 },
    Case { name: "twice the operations", trouble: Trouble::Surge(2.0), headroom: 1.05 },
    Case { name: "1 % late, 5 % to spare", trouble: LATE, headroom: 1.05 },
    Case { name: "1 % late, twice the room", trouble: LATE, headroom: 2.0 },
];

/// What was found.
pub(crate) struct Mechanisms {
    /// A row for each of [`MECHANISMS`], in it one report for each of [`OUTAGES`].
    pub(crate) outages: Vec<Vec<Report>>,
    /// The same for [`BROWNOUTS`].
    pub(crate) brownouts: Vec<Vec<Report>>,
}

impl Mechanisms {
    /// What is to be run, in the order in which [`of`](Self::of) takes the reports.
    pub(crate) fn simulations(size: Size) -> impl Iterator<Item = Simulation> {
        let policy = || RetryPolicy::new().max_attempts(4);
        let row = move |cases: &'static [Case], mechanism: &'static Mechanism| {
            cases.iter().map(move |case| simulation(case, mechanism, &policy(), size))
        };
        let rows = move |cases: &'static [Case]| MECHANISMS.iter().flat_map(move |mechanism| row(cases, mechanism));
        rows(&OUTAGES).chain(rows(&BROWNOUTS))
    }

    pub(crate) fn of(mut row: impl FnMut(usize) -> Vec<Report>) -> Self {
        let mut rows = |columns: usize| MECHANISMS.iter().map(|_| row(columns)).collect::<Vec<_>>();
        Self { outages: rows(OUTAGES.len()), brownouts: rows(BROWNOUTS.len()) }
    }
}

fn simulation(case: &Case, mechanism: &Mechanism, policy: &RetryPolicy, size: Size) -> Simulation {
    let server = Server::with_headroom(case.headroom);
    let fleet = (mechanism.clients)(Fleet::new(policy).clients(size.clients));
    Simulation::new(Scenario::new(case.trouble), fleet).server((mechanism.server)(server))
}
