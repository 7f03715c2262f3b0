//! Who is called: one server with a capacity and a queue, and what a trouble makes of it.

use std::time::Duration;

use super::chance::Chance;
use super::scenario::{Scenario, Trouble};
use crate::policy::Class;

/// A server: how much it can do, and how much work it lets wait.
///
/// ```
/// use std::time::Duration;
/// use steadfast::testing::lab::Server;
///
/// // 5 % more than the clients' operations need, and up to 3 s of work may wait: the default.
/// let server = Server::with_headroom(1.05).queue(Duration::from_secs(3));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub(super) capacity: Capacity,
    pub(super) queue: Duration,
    pub(super) shed_as: Class,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Capacity {
    /// This many times the operations that all fleets together start per second.
    Headroom(f64),
    PerSecond(f64),
    Unlimited,
}

impl Default for Server {
    fn default() -> Self {
        Self::with_headroom(1.05)
    }
}

impl Server {
    /// A capacity of `factor` times the operations that all fleets together start per second, and a queue of 3 s. A fleet whose
    /// clients start [together](super::Fleet::together) has no rate and does not count: use [`per_second`](Self::per_second).
    #[must_use]
    pub fn with_headroom(factor: f64) -> Self {
        Self::of(Capacity::Headroom(factor))
    }

    /// A capacity of this many requests per second, and a queue of 3 s. What is less than zero, or no number, is no limit.
    #[must_use]
    pub fn per_second(requests: f64) -> Self {
        Self::of(Capacity::PerSecond(requests))
    }

    /// Requests take no time: nothing waits, and load does no harm.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::of(Capacity::Unlimited)
    }

    /// How much work may wait, as the time that it takes. A request that finds more is answered with a 503 at once.
    #[must_use]
    pub fn queue(mut self, queue: Duration) -> Self {
        self.queue = queue;
        self
    }

    /// The class of the answer to a request that finds the queue full. Default [`Class::Ambiguous`], the 503;
    /// [`Class::Throttled`] is the 429, after which clients wait longer and pay less.
    #[must_use]
    pub fn sheds_as(mut self, class: Class) -> Self {
        self.shed_as = class;
        self
    }

    fn of(capacity: Capacity) -> Self {
        Self { capacity, queue: Duration::from_secs(3), shed_as: Class::Ambiguous }
    }

    /// Requests per second, for clients that start `operations_per_second`; `None` is without limit.
    pub(super) fn requests_per_second(&self, operations_per_second: f64) -> Option<f64> {
        match self.capacity {
            Capacity::Headroom(factor) => Some(factor * operations_per_second),
            Capacity::PerSecond(requests) => Some(requests),
            Capacity::Unlimited => None,
        }
    }
}

/// What becomes of one request.
#[derive(Debug, PartialEq)]
pub(super) struct Fate {
    /// When the answer leaves the server, and what it comes to; `None`: there will be none.
    pub(super) answer: Option<(Duration, Class)>,
    /// The server did the work.
    pub(super) executed: bool,
}

impl Fate {
    const LOST: Self = Self { answer: None, executed: false };

    fn refused(now: Duration, class: Class) -> Self {
        Self { answer: Some((now, class)), executed: false }
    }
}

/// The server at work. One request at a time, in the order of arrival: since the trouble's times are known beforehand, the end
/// of each request is known when it arrives.
#[derive(Debug)]
pub(super) struct Station {
    server: Server,
    /// Seconds; zero where the capacity has no limit.
    mean_service: f64,
    scenario: Scenario,
    /// When all the work that was accepted will be done.
    busy_until: Duration,
}

impl Station {
    pub(super) fn new(server: Server, operations_per_second: f64, scenario: Scenario) -> Self {
        let mean_service = server.requests_per_second(operations_per_second).map_or(0.0, f64::recip);
        Self { server, mean_service, scenario, busy_until: Duration::ZERO }
    }

    pub(super) fn receive(&mut self, now: Duration, chance: &mut Chance) -> Fate {
        let in_trouble = self.scenario.in_trouble(now);
        match self.scenario.trouble {
            Trouble::Refusing if in_trouble => return Fate::refused(now, Class::NotProcessed),
            Trouble::Hanging if in_trouble => return Fate::LOST,
            _ => {}
        }
        if self.work_waiting(now) > self.server.queue {
            return Fate::refused(now, self.server.shed_as);
        }
        let service = if self.mean_service > 0.0 { chance.exponential(self.mean_service) } else { Duration::ZERO };
        let Some(end) = self.work(now.max(self.busy_until), service) else {
            // What comes after it is not served before it.
            self.busy_until = self.busy_until.max(self.scenario.from());
            return Fate::LOST;
        };
        self.busy_until = end;
        let class = match self.scenario.trouble {
            Trouble::Failing(share) if in_trouble && chance.unit() < share => Class::Ambiguous,
            _ => Class::Success,
        };
        Fate { answer: Some((end, class)), executed: true }
    }

    /// When work that could begin at `start` is done; `None` if the server dies before that.
    fn work(&self, start: Duration, service: Duration) -> Option<Duration> {
        let (from, to) = (self.scenario.from(), self.scenario.to());
        let end = start.saturating_add(service);
        let interrupted = start < to && end > from;
        match self.scenario.trouble {
            Trouble::Refusing | Trouble::Hanging if interrupted => None,
            Trouble::Frozen if interrupted => {
                let done_before = from.saturating_sub(start);
                Some(to.saturating_add(service.saturating_sub(done_before)))
            }
            _ => Some(end),
        }
    }

    /// The work in the queue, in time that the server spends working.
    fn work_waiting(&self, now: Duration) -> Duration {
        let until_done = self.busy_until.saturating_sub(now);
        let frozen = self.scenario.trouble == Trouble::Frozen && self.busy_until > self.scenario.to();
        let standing_still = self.scenario.to().saturating_sub(now.max(self.scenario.from()));
        if frozen { until_done.saturating_sub(standing_still) } else { until_done }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A server of about 1,000 requests a second, whose trouble lasts from second 10 to second 40, holding `work` in its queue
    /// at the time `at`.
    fn station(trouble: Trouble, at: u32, work: Duration) -> Station {
        let mut station = Station::new(Server::per_second(1000.0), 0.0, Scenario::new(trouble));
        station.busy_until = SECOND * at + work;
        station
    }

    /// When a request that arrives at second `at` is answered, in whole seconds, and the class of the answer.
    fn check(station: &mut Station, at: u32) -> Option<(u64, Class)> {
        let fate = station.receive(SECOND * at, &mut Chance::new(1));
        assert_eq!(fate.executed, matches!(fate.answer, Some((_, Class::Success))));
        fate.answer.map(|(at, class)| (at.as_secs(), class))
    }

    #[test]
    fn requests_wait_in_line_and_a_full_queue_refuses() {
        assert_eq!(check(&mut station(Trouble::Hanging, 1, Duration::ZERO), 1), Some((1, Class::Success)));
        assert_eq!(check(&mut station(Trouble::Hanging, 1, SECOND * 3), 1), Some((4, Class::Success)));
        assert_eq!(check(&mut station(Trouble::Hanging, 1, SECOND * 4), 1), Some((1, Class::Ambiguous)));
    }

    #[test]
    fn what_a_dying_server_held_is_lost() {
        for (trouble, during) in [(Trouble::Refusing, Some((20, Class::NotProcessed))), (Trouble::Hanging, None)] {
            let mut station = station(trouble, 9, SECOND * 2);
            assert_eq!(check(&mut station, 9), None, "it would have been done at second 11");
            assert_eq!(check(&mut station, 20), during);
            assert_eq!(check(&mut station, 40), Some((40, Class::Success)), "the queue is empty");
        }
    }

    #[test]
    fn what_a_frozen_server_held_is_done_later() {
        let mut station = station(Trouble::Frozen, 9, SECOND / 2);
        assert_eq!(check(&mut station, 9), Some((9, Class::Success)));
        station.busy_until = SECOND * 10;
        assert_eq!(check(&mut station, 9), Some((40, Class::Success)));
        assert_eq!(check(&mut station, 20), Some((40, Class::Success)), "the time of the freeze is not work");
        station.busy_until = SECOND * 44;
        assert_eq!(check(&mut station, 20), Some((20, Class::Ambiguous)), "4 s of work are too much");
    }
}
