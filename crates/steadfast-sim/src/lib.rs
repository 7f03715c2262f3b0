//! Simulation: what a retry policy does to a server in trouble, before it does it to yours.
//!
//! Retry settings are chosen by guesswork, because their effect shows only in an outage. Here the
//! outage is simulated, and the decisions are made by the client's own code: the
//! [`Operation`](steadfast_core::Operation), the schedule, the budget, and the state machine of its
//! [overload protection](https://docs.rs/steadfast/latest/steadfast/guide/overload/) (breaker,
//! cooldown, deadlines, hedging). A run of a hundred clients and two minutes takes a second or so.
//! The same seed gives the same numbers.
//!
//! ```
//! use steadfast_core::RetryPolicy;
//!
//! let my_policy = RetryPolicy::new().max_attempts(4);
//! let report = steadfast_sim::outage(&my_policy);
//! println!("{report}");
//! assert!(report.during().attempts_per_operation() < 1.15);
//! ```
//!
//! [`outage`], [`overload`], [`brownout`], [`herd`] and [`mixed`] stage the common troubles, with the
//! settings that their pages name. [`Simulation`] takes any settings. [`contention()`] is a crowd
//! that wants to change one row, and [`amplification`] a tower of services that all retry. [The
//! guide](https://docs.rs/steadfast/latest/steadfast/guide/simulation/) shows the results.
//!
//! # The model
//!
//! It is as simple as it can be and still fall over as real servers do.
//!
//! * **Clients** start operations at random times (a Poisson process), even while earlier ones are
//!   under way: load does not wait for the server. Each has a retry budget of its own, as each
//!   process has. Each attempt ends at the attempt timeout or at the operation's deadline, as in
//!   the client `steadfast`.
//! * **Overload protection** is off until a [`Fleet`] turns it on. It then works in the client's
//!   order: cooldown, time left, breaker, attempt or hedged pair. Each client has its own breaker,
//!   cooldown, latencies and allowance of hedges, as each process has.
//! * **The network** takes N(10, 2) ms each way and loses nothing.
//! * **The server** serves one request at a time, in the order of arrival, in an exponentially
//!   distributed time whose mean is 1 / capacity. (One fast worker in the place of many slow ones:
//!   queues behave alike, and service times are shorter.) The queue is measured in the time that
//!   its work takes. A request that finds it full is refused at once.
//! * **The server does not notice that a client has given up.** It executes requests that nobody
//!   waits for. That is the wasted work, and the reason why an overload outlives its cause. Servers
//!   that cancel abandoned requests fare better, and so does one that is told its deadlines
//!   ([`Fleet::tells_deadline`], [`Server::heeds_deadlines`]).
//! * **The troubles** are listed at [`Trouble`]. A *hung* server is either a process that is
//!   restarted in the end and comes back empty ([`Trouble::Hanging`]), or one that goes on with a
//!   queue of requests that are long abandoned ([`Trouble::Frozen`]).
//! * **Attempts are classed** as the client classes them. A refused connection is not processed,
//!   and so is a 503 that says that the deadline has passed. A timeout, a 500 and any other 503 are
//!   ambiguous. A wait that a response asks for ([`Server::hints`], [`Trouble::Unavailable`]) is
//!   heeded with or without a cooldown.
//!
//! Not modelled: connection set-up, several servers, the cost of a refusal for the server, and load
//! that comes back because a user reloads the page.

mod caller;
mod chance;
mod contention;
mod events;
mod fleet;
mod flight;
mod layers;
mod line;
mod report;
mod scenario;
mod server;
mod tally;
mod world;

use std::time::Duration;

pub use contention::{Contention, contention};
pub use fleet::Fleet;
pub use layers::amplification;
pub use report::Report;
pub use scenario::{Scenario, Trouble};
pub use server::Server;
pub use tally::{Numbers, Slice};

use steadfast_core::{InvalidPolicy, RetryPolicy};

/// One experiment: a scenario, fleets of clients, and the server that they call.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::{RetryBudget, RetryPolicy};
/// use steadfast_sim::{Fleet, Simulation, Scenario, Server, Trouble};
///
/// let policy = RetryPolicy::new().max_attempts(4);
/// let fleet = Fleet::new(&policy).budget(RetryBudget::unlimited()).clients(20).rate(5.0);
/// let scenario = Scenario::new(Trouble::Hanging).lasting(Duration::from_secs(10)).watched_for(Duration::from_secs(20));
/// let report = Simulation::new(scenario, fleet).server(Server::with_headroom(1.05)).seed(7).run();
///
/// assert_eq!(report.time_to_recover(), None, "the retries keep the server down after its repair");
/// assert!(report.after().wasted_work() > 0.9);
/// ```
///
/// Overload protection is set on the fleet, and the server has its part in some of it:
///
/// ```
/// # use std::time::Duration;
/// # use steadfast_core::RetryPolicy;
/// # use steadfast_sim::{Fleet, Simulation, Scenario, Server, Trouble};
/// // A server that froze goes on with its queue. Told that nobody waits any more, it drops it.
/// let frozen = Scenario::new(Trouble::Frozen).lasting(Duration::from_secs(10));
/// let fleet = || Fleet::new(&RetryPolicy::new()).clients(30);
/// let server = Server::default().heeds_deadlines(Duration::from_millis(30));
/// let usual = Simulation::new(frozen, fleet()).run();
/// let told = Simulation::new(frozen, fleet().tells_deadline()).server(server).run();
/// assert!(usual.time_to_recover() > Some(Duration::from_secs(10)));
/// assert!(told.time_to_recover() < Some(Duration::from_secs(1)));
/// ```
#[derive(Debug)]
pub struct Simulation {
    scenario: Scenario,
    fleets: Vec<Fleet>,
    server: Server,
    seed: u64,
}

impl Simulation {
    /// Creates an experiment with the default server and seed 1.
    #[must_use]
    pub fn new(scenario: Scenario, fleet: Fleet) -> Self {
        Self { scenario, fleets: vec![fleet], server: Server::default(), seed: 1 }
    }

    /// Adds a fleet, which calls the same server.
    #[must_use]
    pub fn and(mut self, fleet: Fleet) -> Self {
        self.fleets.push(fleet);
        self
    }

    /// Sets the server that is called. Default: [`Server::default`].
    #[must_use]
    pub fn server(mut self, server: Server) -> Self {
        self.server = server;
        self
    }

    /// Sets the seed of all random numbers. Default: 1.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Checks the policies of every fleet, as
    /// [`ClientBuilder::build`](https://docs.rs/steadfast/latest/steadfast/struct.ClientBuilder.html#method.build)
    /// checks those of a client.
    ///
    /// [`run`](Self::run) takes any policy. Its report says if no client would be built with it.
    ///
    /// # Errors
    ///
    /// Returns the first setting that is out of its limits.
    pub fn validate(&self) -> Result<(), InvalidPolicy> {
        self.fleets.iter().try_for_each(Fleet::validate)
    }

    /// Runs the experiment. It ends with any policy: operations that have not ended 10 s after the
    /// scenario count as failed.
    #[must_use]
    pub fn run(&self) -> Report {
        let tally = world::run(&self.fleets, self.server, self.scenario, self.seed);
        Report::new(&self.fleets, self.server, self.scenario, self.seed, tally)
    }
}

/// Runs an outage: a server that hangs for 30 s and is restarted ([`Trouble::Hanging`]), with every
/// default of [`Scenario`], [`Fleet`] and [`Server`]. For another budget or load use
/// [`Simulation`].
#[must_use]
pub fn outage(policy: &RetryPolicy) -> Report {
    Simulation::new(Scenario::new(Trouble::Hanging), Fleet::new(policy)).run()
}

/// Runs an overload: twice the usual operations for 10 s, against a server with a deep queue (3 s
/// of work, while clients wait for 1 s).
///
/// ```
/// # use steadfast_core::RetryPolicy;
/// let report = steadfast_sim::overload(&RetryPolicy::new());
/// // The queue is full of abandoned requests. It takes a while to drain.
/// assert!(report.time_to_recover().is_some());
/// ```
#[must_use]
pub fn overload(policy: &RetryPolicy) -> Report {
    let scenario =
        Scenario::new(Trouble::Surge(2.0)).lasting(Duration::from_secs(10)).watched_for(Duration::from_secs(90));
    Simulation::new(scenario, Fleet::new(policy)).run()
}

/// Runs a brownout: a share of all requests fails, for 60 s. The server's capacity has no limit
/// here, so that the share is what you say.
///
/// ```
/// # use steadfast_core::RetryPolicy;
/// let report = steadfast_sim::brownout(&RetryPolicy::new().max_attempts(4), 0.1);
/// assert!(report.during().success() > 0.999);
/// ```
#[must_use]
pub fn brownout(policy: &RetryPolicy, share: f64) -> Report {
    let whole = Scenario::new(Trouble::Failing(share)).after_calm_of(Duration::ZERO).watched_for(Duration::ZERO);
    let scenario = whole.lasting(Duration::from_secs(60));
    Simulation::new(scenario, Fleet::new(policy)).server(Server::unlimited()).run()
}

/// Runs a thundering herd: a thousand clients whose connections break together, while a server of
/// 1,000 requests per second is down for half a second. [`Report::peak`] is what it meets when it
/// is back.
///
/// ```
/// # use steadfast_core::{Backoff, Jitter, RetryPolicy};
/// let jittered = steadfast_sim::herd(&RetryPolicy::new().max_attempts(5));
/// let in_step = steadfast_sim::herd(&RetryPolicy::new().max_attempts(5).backoff(Backoff::default().jitter(Jitter::None)));
/// assert!(in_step.during().latency(0.95) > jittered.during().latency(0.95));
/// ```
#[must_use]
pub fn herd(policy: &RetryPolicy) -> Report {
    let scenario =
        Scenario::new(Trouble::Refusing).lasting(Duration::from_millis(500)).watched_for(Duration::from_secs(30));
    Simulation::new(scenario, Fleet::new(policy).clients(1000).together()).server(Server::per_second(1000.0)).run()
}

/// Runs the same load from few busy clients and from many quiet ones, while the server refuses
/// connections for 30 s: one that starts 300 operations per second, 30 that start 10, and 300 that
/// start 1. A bucket of the same size binds the first at once, and the last hardly.
///
/// ```
/// # use steadfast_core::RetryPolicy;
/// let report = steadfast_sim::mixed(&RetryPolicy::new());
/// let attempts = |fleet| report.fleet(fleet).map(|[_, during, _]| during.attempts_per_operation());
/// assert!(attempts(0) < Some(1.02) && attempts(1) < Some(1.15) && attempts(2) > Some(2.0));
/// ```
#[must_use]
pub fn mixed(policy: &RetryPolicy) -> Report {
    let fleet = |clients, rate| Fleet::new(policy).clients(clients).rate(rate);
    Simulation::new(Scenario::new(Trouble::Refusing), fleet(1, 300.0)).and(fleet(30, 10.0)).and(fleet(300, 1.0)).run()
}
