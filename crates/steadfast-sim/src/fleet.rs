//! A fleet: clients with one policy, each with a budget of its own.

use std::time::Duration;

use steadfast_core::{BreakerPolicy, HedgePolicy, Idempotency, InvalidPolicy, RetryBudget, RetryPolicy};

/// A number of clients that are alike.
///
/// | setting | default |
/// | --- | --- |
/// | [`clients`](Self::clients) | 100 |
/// | [`rate`](Self::rate) | 10 operations a second for each client |
/// | [`budget`](Self::budget) | [`RetryBudget::standard`], one bucket for each client |
/// | [`attempt_timeout`](Self::attempt_timeout) | 1 s |
/// | [`breaker`](Self::breaker) | none |
/// | [`cooldown`](Self::cooldown) | none |
/// | [`tells_deadline`](Self::tells_deadline) | no |
/// | [`hedge`](Self::hedge) | none |
/// | [`idempotency`](Self::idempotency) | [`Idempotency::Natural`]: whatever fails may be repeated |
#[derive(Debug)]
pub struct Fleet {
    pub(super) policy: RetryPolicy,
    pub(super) budget: RetryBudget,
    pub(super) breaker: Option<BreakerPolicy>,
    pub(super) cooldown: bool,
    pub(super) tells_deadline: bool,
    pub(super) hedge: Option<HedgePolicy>,
    pub(super) clients: u32,
    pub(super) arrivals: Arrivals,
    pub(super) attempt_timeout: Duration,
    pub(super) idempotency: Idempotency,
}

/// When a client starts its operations.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arrivals {
    /// A Poisson process of this many a second.
    Rate(f64),
    /// One operation, in the moment in which the trouble begins.
    Together,
}

impl Fleet {
    /// Creates clients that follow this policy, with the defaults of the table above.
    #[must_use]
    pub fn new(policy: &RetryPolicy) -> Self {
        Self {
            policy: policy.clone(),
            budget: RetryBudget::standard(),
            breaker: None,
            cooldown: false,
            tells_deadline: false,
            hedge: None,
            clients: 100,
            arrivals: Arrivals::Rate(10.0),
            attempt_timeout: Duration::from_secs(1),
            idempotency: Idempotency::Natural,
        }
    }

    /// Sets the budget. Each client gets a bucket of its own.
    #[must_use]
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.budget = budget;
        self
    }

    /// Gives each client a breaker
    /// ([`ClientBuilder::breaker`](https://docs.rs/steadfast/latest/steadfast/struct.ClientBuilder.html#method.breaker)).
    #[must_use]
    pub fn breaker(mut self, policy: BreakerPolicy) -> Self {
        self.breaker = Some(policy);
        self
    }

    /// Applies one `Retry-After` to every operation of the client that got it
    /// ([`ClientBuilder::cooldown`](https://docs.rs/steadfast/latest/steadfast/struct.ClientBuilder.html#method.cooldown)).
    #[must_use]
    pub fn cooldown(mut self) -> Self {
        self.cooldown = true;
        self
    }

    /// Tells the server with each request how long the client waits
    /// ([`ClientBuilder::deadline_header`](https://docs.rs/steadfast/latest/steadfast/struct.ClientBuilder.html#method.deadline_header)).
    /// It does nothing unless the server [heeds it](super::Server::heeds_deadlines).
    #[must_use]
    pub fn tells_deadline(mut self) -> Self {
        self.tells_deadline = true;
        self
    }

    /// Sends a second request beside a first that is late
    /// ([`ClientBuilder::hedge`](https://docs.rs/steadfast/latest/steadfast/struct.ClientBuilder.html#method.hedge)),
    /// if the operations are [`Idempotency::Natural`], which stands for a safe method here.
    #[must_use]
    pub fn hedge(mut self, policy: HedgePolicy) -> Self {
        self.hedge = Some(policy);
        self
    }

    /// Sets how many clients there are. Default: 100.
    #[must_use]
    pub fn clients(mut self, clients: u32) -> Self {
        self.clients = clients;
        self
    }

    /// Sets how many operations each client starts per second, at random times (a Poisson process);
    /// at most a million. Default: 10. A number that is not positive is none.
    #[must_use]
    pub fn rate(mut self, per_second: f64) -> Self {
        let rate = if per_second > 0.0 { per_second.min(1_000_000.0) } else { 0.0 };
        self.arrivals = Arrivals::Rate(rate);
        self
    }

    /// Makes each client start one operation only, all in the moment in which the trouble begins: a
    /// crowd whose connections broke together, or whose timers are set to the full minute.
    #[must_use]
    pub fn together(mut self) -> Self {
        self.arrivals = Arrivals::Together;
        self
    }

    /// Sets how long a client waits for the response to one attempt. Default: 1 s; the client's own
    /// is 10 s. An overloaded server is hurt when it is shorter than the server's queue.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = timeout;
        self
    }

    /// Sets why acting twice is harmless, if it is. With [`Idempotency::Absent`] a timeout is not
    /// repeated.
    #[must_use]
    pub fn idempotency(mut self, idempotency: Idempotency) -> Self {
        self.idempotency = idempotency;
        self
    }

    /// Checks the policies, as a client checks its own.
    pub(super) fn validate(&self) -> Result<(), InvalidPolicy> {
        steadfast_core::check(&self.policy, &self.budget, self.breaker.as_ref(), self.hedge.as_ref())
    }

    /// Returns the operations per second of the whole fleet.
    pub(super) fn operations_per_second(&self) -> f64 {
        match self.arrivals {
            Arrivals::Rate(rate) => rate * f64::from(self.clients),
            Arrivals::Together => 0.0,
        }
    }
}
