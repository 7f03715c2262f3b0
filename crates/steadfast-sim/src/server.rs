//! The server: its capacity and its queue, and what a trouble does to them.

use std::time::Duration;

use http::StatusCode;
use steadfast_core::{Class, Hint};

use super::chance::Chance;
use super::line::Line;
use super::scenario::{Scenario, Trouble};

/// A server: how much work it can do, and how much it lets wait.
///
/// ```
/// use std::time::Duration;
/// use steadfast_sim::Server;
///
/// // 5 % more than the clients' operations need, and up to 3 s of work may wait: the default.
/// let server = Server::with_headroom(1.05).queue(Duration::from_secs(3));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub(super) capacity: Capacity,
    pub(super) queue: Duration,
    pub(super) shed_as: Class,
    pub(super) hint: Option<Duration>,
    /// With this much time left, or less, a request is refused.
    pub(super) heeds: Option<Duration>,
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
    /// Creates a server with a capacity of `factor` times the operations that all fleets together
    /// start per second, and a queue of 3 s. A fleet whose clients start
    /// [together](super::Fleet::together) has no rate and does not count: use
    /// [`per_second`](Self::per_second).
    #[must_use]
    pub fn with_headroom(factor: f64) -> Self {
        Self::of(Capacity::Headroom(factor))
    }

    /// Creates a server with a capacity of this many requests per second, and a queue of 3 s. A
    /// number below zero, or a NaN, is no limit.
    #[must_use]
    pub fn per_second(requests: f64) -> Self {
        Self::of(Capacity::PerSecond(requests))
    }

    /// Creates a server on which requests take no time: nothing waits, and load does no harm.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::of(Capacity::Unlimited)
    }

    /// Sets how much work may wait, as the time that it takes. Default: 3 s. A request that finds
    /// more is answered with a 503 at once.
    #[must_use]
    pub fn queue(mut self, queue: Duration) -> Self {
        self.queue = queue;
        self
    }

    /// Sets the class of the response to a request that finds the queue full. Default:
    /// [`Class::Ambiguous`], the 503. [`Class::Throttled`] is the 429, after which clients wait
    /// longer and pay less.
    #[must_use]
    pub fn sheds_as(mut self, class: Class) -> Self {
        self.shed_as = class;
        self
    }

    /// Adds this `Retry-After` to the response to a request that finds the queue full. Default:
    /// none.
    #[must_use]
    pub fn hints(mut self, retry_after: Duration) -> Self {
        self.hint = Some(retry_after);
        self
    }

    /// Makes the server read the deadlines that it is told
    /// ([`Fleet::tells_deadline`](super::Fleet::tells_deadline)). Default: off.
    ///
    /// A request that has `at_least` or less left when its turn comes is refused as not processed,
    /// and costs no time, as by one `server::DeadlineLayer` in front of the queue and one behind
    /// it. Until its turn it takes room in the queue.
    ///
    /// `at_least` is the time that the work and the way back take. With zero, a server that is
    /// behind works for clients that will have left when the response arrives.
    #[must_use]
    pub fn heeds_deadlines(mut self, at_least: Duration) -> Self {
        self.heeds = Some(at_least);
        self
    }

    fn of(capacity: Capacity) -> Self {
        Self { capacity, queue: Duration::from_secs(3), shed_as: Class::Ambiguous, hint: None, heeds: None }
    }

    /// Returns the requests per second, for clients that start `operations_per_second`. `None`: no
    /// limit.
    pub(super) fn requests_per_second(&self, operations_per_second: f64) -> Option<f64> {
        match self.capacity {
            Capacity::Headroom(factor) => Some(factor * operations_per_second),
            Capacity::PerSecond(requests) => Some(requests),
            Capacity::Unlimited => None,
        }
    }
}

/// What a client learns of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reply {
    pub(super) class: Class,
    /// `None`: there was no answer.
    pub(super) status: Option<StatusCode>,
    pub(super) hint: Hint,
}

impl Reply {
    pub(super) const TIMEOUT: Self = Self::failed(Class::Ambiguous);
    const REFUSED_CONNECTION: Self = Self::failed(Class::NotProcessed);

    const fn failed(class: Class) -> Self {
        Self { class, status: None, hint: Hint::NONE }
    }

    const fn answer(class: Class, status: StatusCode) -> Self {
        Self { class, status: Some(status), hint: Hint::NONE }
    }

    /// Refused because of load, or because nobody is there to do the work.
    fn unavailable(class: Class, retry_after: Option<Duration>) -> Self {
        let throttled = class == Class::Throttled;
        let status = if throttled { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::SERVICE_UNAVAILABLE };
        Self { hint: Hint::from(retry_after), ..Self::answer(class, status) }
    }
}

/// What becomes of one request.
#[derive(Debug, PartialEq)]
pub(super) struct Fate {
    /// When the answer leaves the server, and what it says; `None`: there will be none.
    pub(super) answer: Option<(Duration, Reply)>,
    /// The server did the work.
    pub(super) executed: bool,
}

impl Fate {
    const LOST: Self = Self { answer: None, executed: false };

    fn refused(at: Duration, reply: Reply) -> Self {
        Self { answer: Some((at, reply)), executed: false }
    }
}

/// The server at work. One request at a time, in the order of arrival: since the trouble's times
/// are known beforehand, the end of each request is known when it arrives.
#[derive(Debug)]
pub(super) struct Station {
    server: Server,
    /// Seconds; zero where the capacity has no limit.
    mean_service: f64,
    scenario: Scenario,
    /// When all the work that was accepted will be done.
    busy_until: Duration,
    /// Those who wait, for a server that may drop some of them.
    line: Line,
}

impl Station {
    pub(super) fn new(server: Server, operations_per_second: f64, scenario: Scenario) -> Self {
        let mean_service = server.requests_per_second(operations_per_second).map_or(0.0, f64::recip);
        Self { server, mean_service, scenario, busy_until: Duration::ZERO, line: Line::default() }
    }

    /// A request arrives, and says for how long it is waited for.
    pub(super) fn receive(&mut self, now: Duration, told: Option<Duration>, chance: &mut Chance) -> Fate {
        if let Some(fate) = self.without_the_server(now) {
            return fate;
        }
        if self.work_waiting(now) > self.server.queue {
            return Fate::refused(now, Reply::unavailable(self.server.shed_as, self.server.hint));
        }
        let service = if self.mean_service > 0.0 { chance.exponential(self.mean_service) } else { Duration::ZERO };
        let start = now.max(self.busy_until);
        let Some(end) = self.work(start, service) else {
            // What comes after it is not served before it.
            self.busy_until = self.busy_until.max(self.scenario.from());
            return Fate::LOST;
        };
        let turn = self.turn(start);
        if self.is_late(turn, now, told) {
            self.line.joins(service, turn);
            self.busy_until = turn;
            return Fate::refused(turn, Reply::answer(Class::NotProcessed, StatusCode::SERVICE_UNAVAILABLE));
        }
        self.line.joins(service, end);
        self.busy_until = end;
        let (delay, reply) = self.outcome(now, chance);
        Fate { answer: Some((end.saturating_add(delay), reply)), executed: true }
    }

    /// What the trouble makes of a request before it reaches the queue.
    fn without_the_server(&self, now: Duration) -> Option<Fate> {
        match self.scenario.trouble {
            _ if !self.scenario.in_trouble(now) => None,
            Trouble::Refusing => Some(Fate::refused(now, Reply::REFUSED_CONNECTION)),
            Trouble::Unavailable { retry_after } => {
                Some(Fate::refused(now, Reply::unavailable(Class::Ambiguous, retry_after)))
            }
            Trouble::Hanging => Some(Fate::LOST),
            _ => None,
        }
    }

    /// How much later the answer leaves, and what it is.
    fn outcome(&self, arrived: Duration, chance: &mut Chance) -> (Duration, Reply) {
        let success = Reply::answer(Class::Success, StatusCode::OK);
        match self.scenario.trouble {
            _ if !self.scenario.in_trouble(arrived) => (Duration::ZERO, success),
            Trouble::Failing(share) if chance.unit() < share => {
                (Duration::ZERO, Reply::answer(Class::Ambiguous, StatusCode::INTERNAL_SERVER_ERROR))
            }
            Trouble::Slow { share, by } if chance.unit() < share => (by, success),
            _ => (Duration::ZERO, success),
        }
    }

    /// When the server takes up what could begin at `start`.
    fn turn(&self, start: Duration) -> Duration {
        let frozen = self.scenario.trouble == Trouble::Frozen && self.scenario.in_trouble(start);
        if frozen { self.scenario.to() } else { start }
    }

    /// Whether a request that arrived at `now` is refused when its turn comes.
    fn is_late(&self, turn: Duration, now: Duration, told: Option<Duration>) -> bool {
        let left = told.map(|told| now.saturating_add(told).saturating_sub(turn));
        self.server.heeds.zip(left).is_some_and(|(least, left)| left <= least)
    }

    /// When work that could begin at `start` is done; `None` if the server dies before that.
    fn work(&self, start: Duration, service: Duration) -> Option<Duration> {
        let (from, to) = (self.scenario.from(), self.scenario.to());
        let end = start.saturating_add(service);
        let interrupted = start < to && end > from;
        match self.scenario.trouble {
            Trouble::Refusing | Trouble::Unavailable { .. } | Trouble::Hanging if interrupted => None,
            Trouble::Frozen if interrupted => {
                let done_before = from.saturating_sub(start);
                Some(to.saturating_add(service.saturating_sub(done_before)))
            }
            _ => Some(end),
        }
    }

    /// The work in the queue, in time that the server spends working.
    fn work_waiting(&mut self, now: Duration) -> Duration {
        if self.server.heeds.is_some() {
            return self.line.work(now);
        }
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

    /// A server of about 1,000 requests a second, whose trouble lasts from second 10 to second 40,
    /// holding `work` in its queue at the time `at`.
    fn station(trouble: Trouble, at: u32, work: Duration) -> Station {
        let mut station = Station::new(Server::per_second(1000.0), 0.0, Scenario::new(trouble));
        station.busy_until = SECOND * at + work;
        station
    }

    /// When a request that arrives at second `at` is answered, in whole seconds, and the class of
    /// the answer.
    fn check(station: &mut Station, at: u32) -> Option<(u64, Class)> {
        let fate = station.receive(SECOND * at, None, &mut Chance::new(1));
        let answer = fate.answer.map(|(at, reply)| (at.as_secs(), reply.class));
        assert_eq!(fate.executed, matches!(answer, Some((_, Class::Success))));
        answer
    }

    #[test]
    fn full_queue_refuses_requests() {
        assert_eq!(check(&mut station(Trouble::Hanging, 1, Duration::ZERO), 1), Some((1, Class::Success)));
        assert_eq!(check(&mut station(Trouble::Hanging, 1, SECOND * 3), 1), Some((4, Class::Success)));
        assert_eq!(check(&mut station(Trouble::Hanging, 1, SECOND * 4), 1), Some((1, Class::Ambiguous)));
    }

    #[test]
    fn dying_server_loses_its_queue() {
        for (trouble, during) in [(Trouble::Refusing, Some((20, Class::NotProcessed))), (Trouble::Hanging, None)] {
            let mut station = station(trouble, 9, SECOND * 2);
            assert_eq!(check(&mut station, 9), None, "it would have been done at second 11");
            assert_eq!(check(&mut station, 20), during);
            assert_eq!(check(&mut station, 40), Some((40, Class::Success)), "the queue is empty");
        }
    }

    #[test]
    fn frozen_server_serves_its_queue_later() {
        let mut station = station(Trouble::Frozen, 9, SECOND / 2);
        assert_eq!(check(&mut station, 9), Some((9, Class::Success)));
        station.busy_until = SECOND * 10;
        assert_eq!(check(&mut station, 9), Some((40, Class::Success)));
        assert_eq!(check(&mut station, 20), Some((40, Class::Success)), "the time of the freeze is not work");
        station.busy_until = SECOND * 44;
        assert_eq!(check(&mut station, 20), Some((20, Class::Ambiguous)), "4 s of work are too much");
    }

    /// What a request is answered that arrives at second `at` and is waited for this long: when, in
    /// seconds, its class, the hint in seconds.
    fn told(station: &mut Station, at: u32, wait: Duration) -> (u64, Class, Option<u64>) {
        let fate = station.receive(SECOND * at, Some(wait), &mut Chance::new(1));
        let (at, reply) = fate.answer.unwrap();
        (at.as_secs(), reply.class, reply.hint.after.map(|after| after.as_secs()))
    }

    /// The queue of a frozen server holds what was accepted in its first moments, until it works
    /// again: only then is it seen to be late.
    #[test]
    fn late_request_takes_room_until_dropped() {
        let server = Server::per_second(1.0).heeds_deadlines(SECOND).queue(SECOND / 100).hints(SECOND * 7);
        let mut station = Station::new(server, 0.0, Scenario::new(Trouble::Frozen));
        assert_eq!(told(&mut station, 20, SECOND * 5), (40, Class::NotProcessed, None));
        assert_eq!(told(&mut station, 21, SECOND * 5), (21, Class::Ambiguous, Some(7)), "there is no room");
        assert_eq!(
            told(&mut station, 40, SECOND),
            (40, Class::NotProcessed, None),
            "a second is no more than the least"
        );
        assert_eq!(told(&mut station, 40, SECOND * 2).1, Class::Success, "and nothing is before it");
    }

    #[test]
    fn front_of_dead_server_sends_hint() {
        let retry_after = Some(SECOND * 5);
        let mut station = station(Trouble::Unavailable { retry_after }, 9, SECOND * 2);
        assert_eq!(check(&mut station, 9), None, "it dies before it is done");
        let fate = station.receive(SECOND * 20, None, &mut Chance::new(1));
        let (at, reply) = fate.answer.unwrap();
        assert_eq!(
            (at, reply.status, reply.hint.after),
            (SECOND * 20, Some(StatusCode::SERVICE_UNAVAILABLE), retry_after)
        );
        assert_eq!(check(&mut station, 40), Some((40, Class::Success)));
    }

    #[test]
    fn late_response_delays_no_other() {
        let mut station = station(Trouble::Slow { share: 1.0, by: SECOND * 2 }, 0, Duration::ZERO);
        assert_eq!(check(&mut station, 20), Some((22, Class::Success)));
        assert!(station.busy_until < SECOND * 21);
        assert_eq!(check(&mut station, 40), Some((40, Class::Success)), "the trouble is over");
    }
}
