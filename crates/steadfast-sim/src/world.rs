//! The run itself: clients start operations, requests reach the server, responses or timeouts come
//! back, and the policy decides.
//!
//! All decisions are made by `steadfast-core`, as in the client: [`Operation`], with its policy, its
//! schedule and the client's budget, and the state machine that admits attempts
//! (`steadfast-core/src/admission.rs`). The driver here is the loop of the client with simulated
//! time in the place of the clock.

use std::time::{Duration, Instant};

use super::caller::{Admitted, Caller};
use super::chance::Chance;
use super::events::Events;
use super::fleet::{Arrivals, Fleet};
use super::flight::{Flight, Live, Request};
use super::scenario::{Scenario, Trouble};
use super::server::{Reply, Server, Station};
use super::tally::Tally;
use steadfast_core::protocol;
use steadfast_core::{AdmissionStep, Class, Decision, Operation, Spread};

/// Operations go on for this long after the reported time, so that the end of the run is no relief
/// for the server.
const TAIL: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Event {
    /// A client starts an operation.
    Start { client: usize },
    /// An operation, by its place, wants to send its next attempt.
    Send { place: usize },
    /// The attempt is late.
    Late { place: usize, flight: u64 },
    /// The request is at the server.
    Arrive { request: Request },
    /// The client has this reply to the request. `executed`: when the request had arrived, if the
    /// server did its work.
    Settle { request: Request, reply: Reply, executed: Option<Duration> },
}

pub(super) fn run(fleets: &[Fleet], server: Server, scenario: Scenario, seed: u64) -> Tally {
    let callers: Vec<_> = (fleets.iter().enumerate())
        .flat_map(|(fleet, settings)| (0..settings.clients).map(move |_| Caller::new(fleet, settings)))
        .collect();
    let operations_per_second = fleets.iter().map(Fleet::operations_per_second).sum();
    let mut world = World {
        // Any instant will do, since the policy looks at differences.
        origin: steadfast_core::clock::now(),
        waiters: vec![Vec::new(); callers.len()],
        callers: &callers,
        scenario,
        station: Station::new(server, operations_per_second, scenario),
        chance: Chance::new(seed),
        events: Events::new(),
        live: Vec::new(),
        free: Vec::new(),
        flights: 0,
        tally: Tally::new(scenario, fleets.len()),
    };
    world.run();
    world.tally
}

struct World<'a> {
    origin: Instant,
    callers: &'a [Caller<'a>],
    /// For each client, the operations that wait for its probe to end, by place, and how they are
    /// then spread.
    waiters: Vec<Vec<(usize, Spread)>>,
    scenario: Scenario,
    station: Station,
    chance: Chance,
    events: Events<Event>,
    /// The operations under way, by place. A free place is used again.
    live: Vec<Option<Live<'a>>>,
    free: Vec<usize>,
    /// How many flights there have been.
    flights: u64,
    tally: Tally,
}

impl<'a> World<'a> {
    fn run(&mut self) {
        for client in 0..self.callers.len() {
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
                Event::Late { place, flight } => self.late(place, flight, now),
                Event::Arrive { request } => self.arrive(request, now),
                Event::Settle { request, reply, executed } => self.settle(request, &reply, executed, now),
            }
        }
    }

    fn first_start(&mut self, client: usize) {
        match self.callers[client].settings.arrivals {
            Arrivals::Together => self.events.push(self.scenario.from(), Event::Start { client }),
            Arrivals::Rate(rate) => self.next_start(client, rate, Duration::ZERO),
        }
    }

    /// Schedules the next start: a Poisson process at the highest rate that there will be, which
    /// [`start`](Self::start) thins out.
    fn next_start(&mut self, client: usize, rate: f64, now: Duration) {
        let gap = self.chance.exponential((rate * self.surge()).recip());
        self.events.push(now.saturating_add(gap), Event::Start { client });
    }

    /// Returns the highest rate, as a multiple of the usual one.
    fn surge(&self) -> f64 {
        match self.scenario.trouble {
            Trouble::Surge(factor) => factor.clamp(1.0, 1000.0),
            _ => 1.0,
        }
    }

    fn start(&mut self, client: usize, now: Duration) {
        let caller = &self.callers[client];
        let settings = caller.settings;
        if let Arrivals::Rate(rate) = settings.arrivals {
            self.next_start(client, rate, now);
            if !self.scenario.in_trouble(now) && self.chance.unit() * self.surge() >= 1.0 {
                return;
            }
        }
        self.tally.started(caller.fleet, now);
        let operation = Operation::start(&settings.policy, &caller.bucket, settings.idempotency, self.instant(now));
        let place = self.admit(Live { caller: client, started: now, operation, flight: None });
        self.send(place, now);
    }

    /// Sends the next attempt of an operation, once it is admitted.
    fn send(&mut self, place: usize, now: Duration) {
        let (callers, instant) = (self.callers, self.instant(now));
        let Some(live) = &mut self.live[place] else { return };
        let client = live.caller;
        match callers[client].enter(&mut live.operation, instant) {
            AdmissionStep::Admit { permit, goes_first } => {
                self.take_off(place, Admitted::new(permit, goes_first), now);
            }
            AdmissionStep::Wait(time) => self.events.push(now.saturating_add(time), Event::Send { place }),
            AdmissionStep::WaitForProbe(spread) => self.waiters[client].push((place, spread)),
            AdmissionStep::Deny(_) => self.end(place),
        }
    }

    fn take_off(&mut self, place: usize, admitted: Admitted<'a>, now: Duration) {
        let (origin, instant) = (self.origin, self.instant(now));
        let Some(live) = &mut self.live[place] else { return };
        let caller = &self.callers[live.caller];
        let deadline = live.operation.deadline().map_or(Duration::MAX, |at| at.saturating_duration_since(origin));
        let until = now.saturating_add(caller.settings.attempt_timeout).min(deadline);
        live.operation.begin_attempt();
        self.flights += 1;
        let late = caller.late_after(admitted.is_probe, live.operation.attempts() == 0, instant);
        let late = late.map(|after| now.saturating_add(after)).filter(|late| *late < until);
        let flight = Flight::new(self.flights, admitted, now, until);
        live.flight = Some(flight);
        self.request(place, false, now);
        if let Some(late) = late {
            self.events.push(late, Event::Late { place, flight: self.flights });
        }
    }

    fn late(&mut self, place: usize, flight: u64, now: Duration) {
        let instant = self.instant(now);
        let Some(live) = &mut self.live[place] else { return };
        let Some(flying) = live.flight.as_mut().filter(|flying| flying.number == flight) else { return };
        if self.callers[live.caller].admits_hedge(&mut live.operation, instant) {
            flying.hedged();
            self.request(place, true, now);
        }
    }

    /// Sends a request of the flight in this place.
    fn request(&mut self, place: usize, is_hedge: bool, now: Duration) {
        let Some(live) = &self.live[place] else { return };
        let Some(flight) = &live.flight else { return };
        let caller = &self.callers[live.caller];
        let (fleet, until) = (caller.fleet, flight.until);
        let told = caller.settings.tells_deadline.then(|| protocol::deadline_to_header(until.saturating_sub(now)));
        let told = told.as_ref().and_then(protocol::deadline_from_header);
        let request = Request { place, flight: flight.number, is_hedge, fleet, until, told };
        self.tally.sent(fleet, live.started, now);
        let delay = self.chance.network();
        self.events.push(now.saturating_add(delay), Event::Arrive { request });
    }

    fn arrive(&mut self, request: Request, now: Duration) {
        let fate = self.station.receive(now, request.told, &mut self.chance);
        let answer = fate.answer.map(|(at, reply)| (at.saturating_add(self.chance.network()), reply));
        let in_time = answer.filter(|(at, _)| *at <= request.until);
        let executed = fate.executed.then_some(now);
        if fate.executed {
            self.tally.executed(request.fleet, now);
            if in_time.is_none() {
                self.tally.wasted(request.fleet, now);
            }
        }
        // A client that gave up while the request was on its way has done so by now.
        let (at, reply) = in_time.unwrap_or((request.until.max(now), Reply::TIMEOUT));
        let executed = executed.filter(|_| in_time.is_some());
        self.events.push(at, Event::Settle { request, reply, executed });
    }

    fn settle(&mut self, request: Request, reply: &Reply, executed: Option<Duration>, now: Duration) {
        let Request { place, flight, is_hedge, fleet, .. } = request;
        let in_flight = self.live[place].as_mut().and_then(|live| live.flight.as_mut());
        let Some(flying) = in_flight.filter(|flying| flying.number == flight) else {
            // The loser of a hedged pair: it was dropped, and the server has not noticed.
            return executed.into_iter().for_each(|arrived| self.tally.wasted(fleet, arrived));
        };
        if flying.lands(is_hedge, reply) {
            self.decide(place, reply, now);
        }
    }

    /// Decides what follows an attempt that has ended.
    fn decide(&mut self, place: usize, reply: &Reply, now: Duration) {
        let (instant, unit) = (self.instant(now), self.chance.unit());
        let Some(live) = &mut self.live[place] else { return };
        let Some(flight) = live.flight.take() else { return };
        let (client, caller) = (live.caller, &self.callers[live.caller]);
        let (was_probe, latency) = (flight.admitted.is_probe, flight.latency(now));
        let took = now.saturating_sub(flight.sent);
        caller.settle(flight.admitted, reply, (took, latency), instant, || self.chance.unit());
        live.operation.set_circuit_open_for(caller.circuit_open_for(instant));
        match live.operation.decide(reply.class, &reply.hint, instant, unit) {
            Decision::Retry { after } => self.events.push(now.saturating_add(after), Event::Send { place }),
            Decision::Stop(_) => {
                if reply.class == Class::Success {
                    self.tally.succeeded(caller.fleet, live.started, now);
                }
                self.end(place);
            }
        }
        if was_probe {
            self.wake(client, now);
        }
    }

    /// Lets those who waited for this client's probe ask again, spread out.
    fn wake(&mut self, client: usize, now: Duration) {
        for (place, spread) in std::mem::take(&mut self.waiters[client]) {
            let deadline = self.live[place].as_ref().and_then(|live| live.operation.deadline());
            let instant = self.instant(now);
            match spread.wait(deadline, instant, || self.chance.unit()) {
                Ok(wait) => self.events.push(now.saturating_add(wait), Event::Send { place }),
                // It has left.
                Err(_late) => self.end(place),
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

    /// Converts a time of the run into the instant that the policy is told.
    fn instant(&self, now: Duration) -> Instant {
        self.origin.checked_add(now).unwrap_or(self.origin)
    }
}
