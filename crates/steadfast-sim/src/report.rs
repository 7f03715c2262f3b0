//! The result of a run, as numbers and as a table.

use std::fmt;
use std::time::Duration;

use super::fleet::{Arrivals, Fleet};
use super::scenario::Scenario;
use super::server::{Capacity, Server};
use super::tally::{Numbers, Phases, SLICE, Slice, Tally};
use steadfast_core::InvalidPolicy;

/// All is well in a moment if at least this share of the operations that started in it succeeded.
const WELL: f64 = 0.99;

/// The result of a run. `Display` prints it as a table.
#[derive(Clone, Debug)]
pub struct Report {
    title: String,
    invalid: Option<InvalidPolicy>,
    scenario: Scenario,
    whole: Phases,
    fleets: Vec<(String, Phases)>,
    timeline: Vec<Slice>,
}

impl Report {
    pub(super) fn new(fleets: &[Fleet], server: Server, scenario: Scenario, seed: u64, tally: Tally) -> Self {
        let tally = tally.sorted();
        let mut whole = Phases::default();
        for phases in &tally.fleets {
            for (sum, part) in whole.iter_mut().zip(phases) {
                sum.add(part);
            }
        }
        Self {
            title: format!("{}; {}; seed {seed}", headline(&scenario), describe(server)),
            invalid: fleets.iter().find_map(|fleet| fleet.validate().err()),
            scenario,
            whole,
            fleets: fleets.iter().map(label).zip(tally.fleets).collect(),
            timeline: tally.timeline,
        }
    }

    /// Returns the numbers of the calm before the trouble.
    #[must_use]
    pub fn before(&self) -> &Numbers {
        &self.whole[0]
    }

    /// Returns the numbers of the trouble.
    #[must_use]
    pub fn during(&self) -> &Numbers {
        &self.whole[1]
    }

    /// Returns the numbers of the time after the trouble.
    #[must_use]
    pub fn after(&self) -> &Numbers {
        &self.whole[2]
    }

    /// Returns the numbers of one fleet, before, during and after the trouble. Fleets are numbered in
    /// the order in which they were given. `None` if there is no such fleet.
    #[must_use]
    pub fn fleet(&self, index: usize) -> Option<&[Numbers; 3]> {
        self.fleets.get(index).map(|(_, phases)| phases)
    }

    /// Returns the time from the repair to the end of the last tenth of a second in which fewer than
    /// 99 % of the operations that started succeeded; zero if there is none.
    ///
    /// `None` if the run ends in such a tenth, or if no operation started after the repair.
    #[must_use]
    pub fn time_to_recover(&self) -> Option<Duration> {
        let mut recovered = self.scenario.to();
        let mut end = Duration::ZERO;
        for slice in &self.timeline {
            end += SLICE;
            if end > recovered && !is_well(slice) {
                recovered = end;
            }
        }
        (recovered < end && self.after().operations() > 0).then(|| recovered - self.scenario.to())
    }

    /// Returns the most requests that were sent in a tenth of a second after the repair, which the
    /// server meets when it is just back. Zero if there is no repair.
    #[must_use]
    pub fn peak(&self) -> u64 {
        let from = self.scenario.to().as_millis() / SLICE.as_millis();
        let slices = self.timeline.iter().skip(usize::try_from(from).unwrap_or(usize::MAX));
        slices.map(|slice| slice.requests).max().unwrap_or(0)
    }

    /// Returns the run in tenths of a second.
    #[must_use]
    pub fn timeline(&self) -> &[Slice] {
        &self.timeline
    }
}

#[allow(clippy::cast_precision_loss, reason = "nobody simulates 2^52 operations in a tenth of a second")]
fn is_well(slice: &Slice) -> bool {
    slice.succeeded as f64 >= WELL * slice.operations as f64
}

fn headline(scenario: &Scenario) -> String {
    format!("{}, for {}", scenario.trouble, in_seconds(scenario.lasting))
}

fn describe(server: Server) -> String {
    let capacity = match server.capacity {
        Capacity::Headroom(factor) => format!("capacity {factor}x"),
        Capacity::PerSecond(requests) => format!("capacity {requests}/s"),
        Capacity::Unlimited => return "capacity without limit".to_owned(),
    };
    format!("{capacity}, queue {}", in_seconds(server.queue))
}

fn label(fleet: &Fleet) -> String {
    let arrivals = match fleet.arrivals {
        Arrivals::Rate(rate) => format!("{rate}/s each"),
        Arrivals::Together => "together".to_owned(),
    };
    let (attempts, timeout) = (fleet.policy.max_attempts, in_seconds(fleet.attempt_timeout));
    let clients = if fleet.clients == 1 { "client" } else { "clients" };
    format!("{} {clients}, {arrivals}, {attempts} attempts of {timeout}", fleet.clients)
}

fn in_seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        if let Some(invalid) = &self.invalid {
            writeln!(f, "no client is built with these policies: {invalid}")?;
        }
        for (label, phases) in &self.fleets {
            writeln!(f, "{label}")?;
            header(f)?;
            for (name, numbers) in ["before", "during", "after"].iter().zip(phases) {
                if numbers.operations() > 0 {
                    row(f, name, numbers)?;
                }
            }
        }
        if !self.scenario.after.is_zero() {
            writeln!(f, "after the repair at most {} requests in a tenth of a second", self.peak())?;
        }
        if self.after().operations() == 0 {
            return Ok(());
        }
        match self.time_to_recover() {
            Some(Duration::ZERO) => writeln!(f, "recovered at once"),
            Some(time) => writeln!(f, "recovered {:.1} s after the repair", time.as_secs_f64()),
            None => writeln!(f, "NOT RECOVERED {} after the repair", in_seconds(self.scenario.after)),
        }
    }
}

fn header(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let columns = ["", "operations", "success", "attempts/op", "load", "wasted", "p50", "p95", "p99", "p99.9"];
    let [name, operations, success, attempts, load, wasted, p50, p95, p99, p999] = columns;
    write!(f, "  {name:<7} {operations:>10} {success:>8} {attempts:>12} {load:>7} {wasted:>7}")?;
    writeln!(f, " {p50:>8} {p95:>8} {p99:>8} {p999:>8}")
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, numbers: &Numbers) -> fmt::Result {
    write!(f, "  {name:<7} {:>10} {:>6.2} %", numbers.operations(), numbers.success() * 100.0)?;
    write!(f, " {:>12.3} {:>6.2}x", numbers.attempts_per_operation(), numbers.load_multiplier())?;
    write!(f, " {:>5.1} %", numbers.wasted_work() * 100.0)?;
    for quantile in [0.5, 0.95, 0.99, 0.999] {
        let time = numbers.latency(quantile).map_or_else(|| "-".to_owned(), |time| format!("{} ms", time.as_millis()));
        write!(f, " {time:>8}")?;
    }
    writeln!(f)
}
