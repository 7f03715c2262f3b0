//! The run itself: clients start operations, requests reach the server, answers or timeouts come back, and the policy decides.
//!
//! Everything that decides is the crate's own: [`Operation`], with its policy, its schedule and the client's budget. The driver
//! here is the loop of the client with simulated time in the place of the clock.

use std::time::{Duration, Instant};

use super::chance::Chance;
use super::events::Events;
use super::fleet::{Arrivals, Fleet};
use super::scenario::{Scenario, Trouble};
use super::server::{Server, Station};
use super::tally::Tally;
use crate::policy::{Breaker, Class, Decision, Hint, Operation, Permit, RetryBudget};

/// Operations go on for this long after what is reported, so that the end of the run is not a relief for the server.
const TAIL: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Event {
    /// A client starts an operation.
    Start { client: usize },
    /// An operation, by its place, sends its next attempt.
    Send { place: usize },
    /// The request is at the server.
    Arrive { place: usize },
    /// The attempt has come to this, for the client.
    Settle { place: usize, class: Class },
}

/// One client, and the bucket of its own.
#[derive(Debug)]
struct Client {
    fleet: usize,
    budget: RetryBudget,
    breaker: Option<Breaker>,
}

/// An operation that has not ended.
#[derive(Debug)]
struct Live<'a> {
    fleet: usize,
    started: Duration,
    breaker: Option<&'a Breaker>,
    /// When this attempt was sent, and when the client stops waiting for it.
    sent: Duration,
    until: Duration,
    permit: Option<Permit<'a>>,
    operation: Operation<'a>,
}

pub(super) fn run(fleets: &[Fleet], server: Server, scenario: Scenario, seed: u64) -> Tally {
    let clients: Vec<_> = (fleets.iter().enumerate())
        .flat_map(|(fleet, settings)| (0..settings.clients).map(move |_| (fleet, settings)))
        .map(|(fleet, settings)| Client {
            fleet,
            budget: settings.budget.fresh(),
            breaker: settings.breaker.clone().map(Breaker::new),
        })
        .collect();
    let operations_per_second = fleets.iter().map(Fleet::operations_per_second).sum();
    let mut world = World {
        // Where an instant comes from; which one it is changes nothing, since the policy looks at differences.
        origin: crate::clock::now(),
        fleets,
        clients: &clients,
        scenario,
        station: Station::new(server, operations_per_second, scenario),
        chance: Chance::new(seed),
        events: Events::new(),
        live: Vec::new(),
        free: Vec::new(),
        tally: Tally::new(scenario, fleets.len()),
    };
    world.run();
    world.tally
}

struct World<'a> {
    origin: Instant,
    fleets: &'a [Fleet],
    clients: &'a [Client],
    scenario: Scenario,
    station: Station,
    chance: Chance,
    events: Events<Event>,
    /// The operations under way, by place; a place that is free is used again.
    live: Vec<Option<Live<'a>>>,
    free: Vec<usize>,
    tally: Tally,
}

impl<'a> World<'a> {
    fn run(&mut self) {
        for client in 0..self.clients.len() {
            self.first_start(client);
        }
        let end = self.scenario.end().saturating_add(TAIL);
        while let Some((now, event)) = self.events.next() {
            if now >= end {
                return;
            }
            match event {
                Event::Start { client } => self.start(client, now),
                Event::Send { place } => self.send(place, now),
                Event::Arrive { place } => self.arrive(place, now),
                Event::Settle { place, class } => self.settle(place, class, now),
            }
        }
    }

    fn first_start(&mut self, client: usize) {
        match self.fleets[self.clients[client].fleet].arrivals {
            Arrivals::Together => self.events.push(self.scenario.from(), Event::Start { client }),
            Arrivals::Rate(rate) => self.next_start(client, rate, Duration::ZERO),
        }
    }

    /// A Poisson process at the highest rate that there will be, of which [`start`](Self::start) leaves out what is too much.
    fn next_start(&mut self, client: usize, rate: f64, now: Duration) {
        let gap = self.chance.exponential((rate * self.surge()).recip());
        self.events.push(now.saturating_add(gap), Event::Start { client });
    }

    /// The highest rate, as a multiple of the usual one.
    fn surge(&self) -> f64 {
        match self.scenario.trouble {
            Trouble::Surge(factor) => factor.clamp(1.0, 1000.0),
            _ => 1.0,
        }
    }

    fn start(&mut self, client: usize, now: Duration) {
        let Client { fleet, budget, breaker } = &self.clients[client];
        let settings = &self.fleets[*fleet];
        if let Arrivals::Rate(rate) = settings.arrivals {
            self.next_start(client, rate, now);
            if !self.scenario.in_trouble(now) && self.chance.unit() * self.surge() >= 1.0 {
                return;
            }
        }
        self.tally.started(*fleet, now);
        let operation = Operation::start(&settings.policy, budget, settings.idempotency, self.instant(now));
        let breaker = breaker.as_ref();
        let live = Live { fleet: *fleet, started: now, breaker, sent: now, until: now, permit: None, operation };
        let place = self.admit(live);
        self.send(place, now);
    }

    fn send(&mut self, place: usize, now: Duration) {
        let origin = self.origin;
        let Some(live) = &mut self.live[place] else { return };
        let acquired = live.breaker.map(|breaker| breaker.acquire(origin.checked_add(now).unwrap_or(origin)));
        match acquired.transpose() {
            Ok(permit) => live.permit = permit,
            Err(_held_back) => return self.end(place),
        }
        live.sent = now;
        let deadline = live.operation.deadline().map_or(Duration::MAX, |at| at.saturating_duration_since(origin));
        live.until = now.saturating_add(self.fleets[live.fleet].attempt_timeout).min(deadline);
        live.operation.begin_attempt();
        self.tally.sent(live.fleet, live.started, now);
        let delay = self.chance.network();
        self.events.push(now.saturating_add(delay), Event::Arrive { place });
    }

    fn arrive(&mut self, place: usize, now: Duration) {
        let Some(live) = &self.live[place] else { return };
        let fate = self.station.receive(now, &mut self.chance);
        let answer = fate.answer.map(|(at, class)| (at.saturating_add(self.chance.network()), class));
        let in_time = answer.filter(|(at, _)| *at <= live.until);
        if fate.executed {
            self.tally.executed(live.fleet, now, in_time.is_none());
        }
        // A client that gave up while the request was on its way has done so by now.
        let (at, class) = in_time.unwrap_or((live.until.max(now), Class::Ambiguous));
        self.events.push(at, Event::Settle { place, class });
    }

    fn settle(&mut self, place: usize, class: Class, now: Duration) {
        let (instant, unit) = (self.instant(now), self.chance.unit());
        let Some(live) = &mut self.live[place] else { return };
        if let Some(permit) = live.permit.take() {
            permit.record(class, now.saturating_sub(live.sent), instant);
        }
        let open_for = live.breaker.map_or(Duration::ZERO, |breaker| breaker.state(instant).open_for());
        live.operation.set_circuit_open_for(open_for);
        match live.operation.decide(class, &Hint::default(), instant, unit) {
            Decision::Retry { after } => self.events.push(now.saturating_add(after), Event::Send { place }),
            Decision::Stop(_) => {
                if class == Class::Success {
                    self.tally.succeeded(live.fleet, live.started, now);
                }
                self.end(place);
            }
        }
    }

    fn end(&mut self, place: usize) {
        self.live[place] = None;
        self.free.push(place);
    }

    fn admit(&mut self, live: Live<'a>) -> usize {
        if let Some(place) = self.free.pop() {
            self.live[place] = Some(live);
            return place;
        }
        self.live.push(Some(live));
        self.live.len() - 1
    }

    /// A time of the run as the policy wants to be told it.
    fn instant(&self, now: Duration) -> Instant {
        self.origin.checked_add(now).unwrap_or(self.origin)
    }
}
