//! A crowd that contends for one thing: AWS's jitter study.
//!
//! Each client reads the version of one row and writes under the condition that it is unchanged
//! (optimistic concurrency). Of those that read the same version one wins, and the others begin
//! again after a wait. When all wait for the same time, they meet again.
//!
//! Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015, and its
//! simulator (`aws-samples/aws-arch-backoff-simulator`), which takes 100 clients through a network
//! of N(10, 2) ms.

use std::time::{Duration, Instant};

use super::chance::Chance;
use super::events::Events;
use steadfast_core::{Class, Decision, Hint, Idempotency, Operation, RetryBudget, RetryPolicy, TokenBucket};

/// What a crowd of clients needed until all of them were through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Contention {
    /// The writes that were tried, all clients together.
    pub calls: u64,
    /// The clients whose write was accepted in the end.
    pub won: u64,
    /// The time until the last client had its response.
    pub time: Duration,
}

/// Lets `clients` change one row, all from the same moment on, under this policy and without a
/// budget.
///
/// A write that lost is [`Class::NotProcessed`]: the server has not acted. A client that is out of
/// attempts or of time leaves.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::{Backoff, Jitter, RetryPolicy};
///
/// let backoff = Backoff::exponential(Duration::from_millis(10), Duration::from_secs(2));
/// let policy = RetryPolicy::new().max_attempts(u32::MAX).deadline(None);
/// let full = steadfast_sim::contention(&policy.clone().backoff(backoff.clone()), 100, 1);
/// let none = steadfast_sim::contention(&policy.backoff(backoff.jitter(Jitter::None)), 100, 1);
/// assert!(full.calls * 2 < none.calls && full.time * 5 < none.time);
/// ```
#[must_use]
pub fn contention(policy: &RetryPolicy, clients: u32, seed: u64) -> Contention {
    let budget = TokenBucket::new(RetryBudget::unlimited());
    let origin = steadfast_core::clock::now();
    let start = |_| Operation::start(policy, &budget, Idempotency::Natural, origin);
    let mut row = Row {
        origin,
        version: 0,
        operations: (0..clients).map(start).collect(),
        chance: Chance::new(seed),
        events: Events::new(),
        so_far: Contention { calls: 0, won: 0, time: Duration::ZERO },
    };
    row.run();
    row.so_far
}

#[derive(Debug)]
enum Step {
    /// The request for the version is at the server.
    Read,
    /// The version is at the client.
    Version(u64),
    /// The write, under the condition of this version, is at the server.
    Write(u64),
    /// The response to the write is at the client.
    Written(Class),
}

struct Row<'a> {
    origin: Instant,
    version: u64,
    operations: Vec<Operation<'a>>,
    chance: Chance,
    events: Events<(usize, Step)>,
    so_far: Contention,
}

impl Row<'_> {
    fn run(&mut self) {
        for client in 0..self.operations.len() {
            self.after_the_network(Duration::ZERO, client, Step::Read);
        }
        while let Some((now, (client, step))) = self.events.next() {
            self.so_far.time = now;
            match step {
                Step::Read => self.after_the_network(now, client, Step::Version(self.version)),
                Step::Version(version) => self.after_the_network(now, client, Step::Write(version)),
                Step::Write(version) => self.write(now, client, version),
                Step::Written(class) => self.written(now, client, class),
            }
        }
    }

    fn write(&mut self, now: Duration, client: usize, version: u64) {
        self.so_far.calls += 1;
        let won = version == self.version;
        self.version += u64::from(won);
        self.so_far.won += u64::from(won);
        let class = if won { Class::Success } else { Class::NotProcessed };
        self.after_the_network(now, client, Step::Written(class));
    }

    fn written(&mut self, now: Duration, client: usize, class: Class) {
        let (unit, instant) = (self.chance.unit(), self.origin.checked_add(now).unwrap_or(self.origin));
        let decision = self.operations[client].decide(class, &Hint::default(), instant, unit);
        if let Decision::Retry { after } = decision {
            self.after_the_network(now.saturating_add(after), client, Step::Read);
        }
    }

    fn after_the_network(&mut self, now: Duration, client: usize, step: Step) {
        let delay = self.chance.network();
        self.events.push(now.saturating_add(delay), (client, step));
    }
}
