//! The counts of a run.

use std::time::Duration;

use super::scenario::Scenario;

/// The width of one [`Slice`] of the timeline.
pub(super) const SLICE: Duration = Duration::from_millis(100);

/// The counts of the operations that started in one phase of a run: before, during or after the
/// trouble. Their retries may fall into the next phase.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    pub(super) operations: u64,
    pub(super) succeeded: u64,
    pub(super) attempts: u64,
    pub(super) requests: u64,
    pub(super) executed: u64,
    pub(super) wasted: u64,
    /// How long each success took, the shortest first.
    pub(super) latencies: Vec<Duration>,
}

impl Numbers {
    /// Returns the operations that started.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Returns the share of them that succeeded, 0 to 1. An operation that has not ended 10 s after the
    /// end of the run has failed.
    #[must_use]
    pub fn success(&self) -> f64 {
        share(self.succeeded, self.operations)
    }

    /// Returns how many attempts each of them made, in this phase or later.
    #[must_use]
    pub fn attempts_per_operation(&self) -> f64 {
        share(self.attempts, self.operations)
    }

    /// Returns how many requests were sent in this phase, by any operation, for each operation that
    /// started in it. It is 1 for clients that never retry.
    #[must_use]
    pub fn load_multiplier(&self) -> f64 {
        share(self.requests, self.operations)
    }

    /// Returns the share of this phase's requests that the server executed although nobody waited for
    /// the response any more.
    #[must_use]
    pub fn wasted_work(&self) -> f64 {
        share(self.wasted, self.executed)
    }

    /// Returns how long the successes took: `latency(0.99)` is the time within which 99 % of them had
    /// ended (the nearest rank). `None` if there was no success.
    #[must_use]
    pub fn latency(&self, quantile: f64) -> Option<Duration> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float cast saturates; NaN is 0")]
        #[allow(clippy::cast_precision_loss, reason = "nobody simulates 2^52 operations")]
        let rank = (self.latencies.len() as f64 * quantile).ceil() as usize;
        let last = self.latencies.len().checked_sub(1)?;
        self.latencies.get(rank.saturating_sub(1).min(last)).copied()
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.succeeded += other.succeeded;
        self.attempts += other.attempts;
        self.requests += other.requests;
        self.executed += other.executed;
        self.wasted += other.wasted;
        self.latencies.extend_from_slice(&other.latencies);
        self.latencies.sort_unstable();
    }
}

/// Divides; zero by zero is zero.
#[allow(clippy::cast_precision_loss, reason = "nobody simulates 2^52 operations")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A tenth of a second of a run.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Slice {
    /// The operations that started in it.
    pub operations: u64,
    /// Those of them that succeeded, in this slice or later.
    pub succeeded: u64,
    /// The requests that were sent in it.
    pub requests: u64,
    /// The operations that ended in it with success: the goodput.
    pub answered: u64,
}

/// The numbers of one fleet: before, during and after the trouble.
pub(super) type Phases = [Numbers; 3];

/// Counts while the run goes on.
#[derive(Debug)]
pub(super) struct Tally {
    scenario: Scenario,
    pub(super) fleets: Vec<Phases>,
    pub(super) timeline: Vec<Slice>,
}

impl Tally {
    pub(super) fn new(scenario: Scenario, fleets: usize) -> Self {
        let slices = scenario.end().as_millis().div_ceil(SLICE.as_millis());
        let slices = usize::try_from(slices).unwrap_or(usize::MAX);
        Self { scenario, fleets: vec![Phases::default(); fleets], timeline: vec![Slice::default(); slices] }
    }

    pub(super) fn started(&mut self, fleet: usize, now: Duration) {
        self.count(fleet, now, |numbers| numbers.operations += 1, |slice| slice.operations += 1);
    }

    pub(super) fn sent(&mut self, fleet: usize, operation_started: Duration, now: Duration) {
        self.count(fleet, operation_started, |numbers| numbers.attempts += 1, |_| {});
        self.count(fleet, now, |numbers| numbers.requests += 1, |slice| slice.requests += 1);
    }

    pub(super) fn executed(&mut self, fleet: usize, arrived: Duration) {
        self.count(fleet, arrived, |numbers| numbers.executed += 1, |_| {});
    }

    /// Counts a request that was executed, and that nobody waits for any more.
    pub(super) fn wasted(&mut self, fleet: usize, arrived: Duration) {
        self.count(fleet, arrived, |numbers| numbers.wasted += 1, |_| {});
    }

    pub(super) fn succeeded(&mut self, fleet: usize, operation_started: Duration, now: Duration) {
        let count = |numbers: &mut Numbers| {
            numbers.succeeded += 1;
            numbers.latencies.push(now.saturating_sub(operation_started));
        };
        self.count(fleet, operation_started, count, |slice| slice.succeeded += 1);
        self.count(fleet, now, |_| {}, |slice| slice.answered += 1);
    }

    /// Sorts the latencies, so that quantiles can be read.
    pub(super) fn sorted(mut self) -> Self {
        self.fleets.iter_mut().flatten().for_each(|numbers| numbers.latencies.sort_unstable());
        self
    }

    /// Counts something that belongs to the time `at`, unless that is past the end.
    fn count(
        &mut self,
        fleet: usize,
        at: Duration,
        numbers: impl FnOnce(&mut Numbers),
        slice: impl FnOnce(&mut Slice),
    ) {
        if at >= self.scenario.end() {
            return;
        }
        let phase = usize::from(at >= self.scenario.from()) + usize::from(at >= self.scenario.to());
        if let Some(found) = self.fleets.get_mut(fleet).and_then(|phases| phases.get_mut(phase)) {
            numbers(found);
        }
        let index = usize::try_from(at.as_millis() / SLICE.as_millis()).unwrap_or(usize::MAX);
        if let Some(found) = self.timeline.get_mut(index) {
            slice(found);
        }
    }
}
