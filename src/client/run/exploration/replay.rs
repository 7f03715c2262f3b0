//! A history, replayed through the code of the client.
//!
//! Everything but the transport is the client's own: the terms are settled, the gate is asked, the
//! licence is asked again, redirects are followed, the outcome is judged, the decision is made and
//! the error is written by the functions that a real operation calls. Only time passes as the
//! history says, and what comes back is what the [`Server`] of the exploration answers.

use std::pin::{Pin, pin};
use std::task::{Context as Poller, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::StatusCode;
use http_body::Body as _;
use reqwest::ResponseBuilderExt as _;

use super::scenario::{Api, Ask, SECOND, Scenario, own_key};
use super::seen::{Decided, End, Phase, Seen};
use super::server::{ASKED, Fate, MOVED, Server};
use super::{Design, Model, Step};
use crate::client::assessment::AttemptContext;
use crate::client::gate::{Gate, Held, Pass};
use crate::client::hedge::Raced;
use crate::client::operation::OperationContext;
use crate::client::redirect::Trail;
use crate::client::response_body::{AttemptError, AttemptResponse};
use crate::client::run::{Recorder, begin, still_licensed};
use crate::client::send_probe::SendProbe;
use crate::client::wire_request::WireRequest;
use crate::client::{Inner, attempt, response, transport_error};
use crate::clock;
use crate::error::{Error, Result};
use crate::journal::OperationReport;
use crate::key_policy::Trust;
use crate::policy::{BreakerState, Class, Decision, Failure, Operation, StopReason};

/// Replays `history` and returns what was seen.
pub(super) fn replay(model: &Model, scenario: Scenario, history: &[Step]) -> Seen {
    let mut request = scenario.request().redirect_post_as_get(model.design == Design::MovedPostIsGet);
    let (client, mut plan, wire_request) = match request.prepare(true) {
        Ok(prepared) => prepared,
        Err(error) => return refused(scenario, &error),
    };
    plan.upstream = scenario.upstream();
    if model.design == Design::KeyIsLicence {
        plan.trust = Trust::Declared;
    }
    let gate = Gate::new(client, &plan.upstream, || wire_request.whole(client, &plan));
    let terms = Terms { design: model.design, scenario, client, plan: &plan };
    let mut course = Course::start(terms, wire_request, &gate);
    for step in history {
        course.take(*step);
    }
    course.seen()
}

/// The terms themselves do not allow the operation.
fn refused(scenario: Scenario, error: &Error) -> Seen {
    let executions = Course::server(scenario, clock::now()).executions;
    let end = Some(End::of(&Err(error)));
    Seen { phase: Phase::Ended, executions, end, decided: Decided::Refused, ..Seen::default() }
}

/// What does not change while the operation runs.
#[derive(Clone, Copy)]
struct Terms<'a> {
    design: Design,
    scenario: Scenario,
    client: &'a Inner,
    plan: &'a OperationContext,
}

/// One operation on its way.
struct Course<'a> {
    terms: Terms<'a>,
    wire_request: &'a mut WireRequest,
    gate: &'a Gate<'a>,
    context: AttemptContext<'a>,
    operation: Operation<'a>,
    recorder: Option<Recorder<'a>>,
    started: Instant,
    now: Instant,
    attempt: Option<Attempt<'a>>,
    server: Server,
    /// The key of the first attempt.
    key: Option<String>,
    not_before: Instant,
    last: Option<Fate>,
    seen: Seen,
}

/// The attempt that is under way.
struct Attempt<'a> {
    pass: Pass<'a>,
    number: u32,
    until: Option<Instant>,
    trail: Trail,
}

impl<'a> Course<'a> {
    fn start(terms: Terms<'a>, wire_request: &'a mut WireRequest, gate: &'a Gate<'a>) -> Self {
        let Terms { scenario, client, plan, .. } = terms;
        let context = AttemptContext::at_first(client, plan);
        let recorder = Recorder::start(client, plan, wire_request);
        let started = recorder.started;
        let operation = begin(plan, context.policy, wire_request, started);
        Self {
            terms,
            wire_request,
            gate,
            context,
            operation,
            recorder: Some(recorder),
            started,
            now: started,
            attempt: None,
            server: Self::server(scenario, started),
            key: None,
            not_before: started,
            last: None,
            seen: Seen::default(),
        }
    }

    /// The server as it is when the operation starts.
    fn server(scenario: Scenario, now: Instant) -> Server {
        let mut server = Server::new(scenario.api);
        if scenario.ask == (Ask::PostResumed { acted: true }) {
            server.act(Some(own_key().as_str()), ASKED, now);
        }
        server
    }

    fn take(&mut self, step: Step) {
        self.seen.decided = Decided::Nothing;
        match step {
            Step::ApiShows => self.observe(self.server.api),
            Step::ApiStops => self.stop_honouring(),
            Step::OthersFail => self.open_circuit(),
            Step::Begin => self.begin_attempt(),
            Step::BeginLate => {
                self.now = self.now.max(self.started + self.terms.scenario.deadline());
                self.begin_attempt();
            }
            Step::Sent { fate, acts, stops_meanwhile } => self.send(fate, acts, stops_meanwhile),
        }
    }

    /// The answer to another call, which the same client has made.
    fn observe(&self, api: Api) {
        let (trust, status) = (&self.terms.plan.upstream.trust, StatusCode::CREATED);
        trust.observe(&self.terms.plan.method, ASKED, status, &Fate::Done.head(api));
    }

    fn stop_honouring(&mut self) {
        self.server.api = Api::Ignores;
        self.observe(Api::Ignores);
    }

    fn open_circuit(&self) {
        if let Some(permit) =
            self.terms.plan.upstream.breaker.as_ref().and_then(|breaker| breaker.acquire(self.now).ok())
        {
            permit.record(Class::Ambiguous, Duration::ZERO, self.now);
        }
    }

    /// As the loop does it before an attempt.
    fn begin_attempt(&mut self) {
        let number = self.operation.attempts().saturating_add(1);
        let entered = self.gate.enter(&mut self.operation, self.now).now_or_never();
        let entered = entered.expect("only a cooldown waits, and there is none");
        let admitted = entered.and_then(|pass| {
            still_licensed(&mut self.operation, self.terms.client, self.terms.plan, self.wire_request).map(|()| pass)
        });
        match admitted {
            Ok(pass) => self.let_through(pass, number),
            Err(held) => self.hold_back(held),
        }
    }

    fn hold_back(&mut self, held: Held) {
        let Some(recorder) = self.recorder.take() else { return };
        let error = recorder.held_back(self.wire_request, held);
        self.seen.decided = Decided::Held(held.reason);
        self.end(&Err(&error));
    }

    fn let_through(&mut self, pass: Pass<'a>, number: u32) {
        let broken = &mut self.seen.broken;
        broken.early |= self.now < self.not_before;
        broken.late |= self.now >= self.started + self.terms.scenario.deadline();
        broken.after_final |= self.last.is_some_and(Fate::is_final);
        let circuit = self.terms.plan.upstream.breaker.as_ref().map(|breaker| breaker.state(self.now));
        broken.through_open_circuit |= matches!(circuit, Some(BreakerState::Open { .. }));
        let until = clock::earlier(self.terms.plan.attempt_until(pass.started), self.operation.deadline());
        self.operation.begin_attempt();
        self.wire_request.is_repeat = self.operation.is_at_risk();
        self.wire_request.begin_attempt();
        let trail = Trail::new(self.terms.client.max_redirects);
        self.attempt = Some(Attempt { pass, number, until, trail });
        self.seen.sends = self.seen.sends.saturating_add(1);
        self.seen.hops = 0;
        self.seen.phase = Phase::Sending;
    }

    /// The request goes out and meets its fate.
    fn send(&mut self, fate: Fate, acts: bool, stops_meanwhile: bool) {
        let (request, probe) = self.open(fate);
        let key = self.key_of(&request);
        self.check_key(key.as_deref());
        if acts {
            self.server.act(key.as_deref(), request.url().path(), self.now);
        }
        if stops_meanwhile {
            self.stop_honouring();
        }
        self.last = Some(fate);
        let Some(mut attempt) = self.attempt.take() else { return };
        let attempted = match fate.status() {
            Some(status) => match self.answer(fate, status, &mut attempt.trail) {
                Ok(None) => {
                    self.attempt = Some(attempt);
                    self.seen.hops += 1;
                    self.seen.decided = Decided::Hop;
                    return;
                }
                Ok(Some(answer)) => Ok(answer),
                Err(failed) => Err(failed),
            },
            None => Err(self.failed(fate, probe.as_ref())),
        };
        let is_timeout = matches!(fate, Fate::TimedOut | Fate::TimedOutBeforeBody);
        self.now = match attempt.until.filter(|_| is_timeout) {
            Some(until) => until,
            None => self.now + SECOND / 10,
        };
        self.conclude(fate, attempt, attempted);
    }

    /// The request as it is sent. Its body is asked for, unless it fails before that.
    fn open(&mut self, fate: Fate) -> (reqwest::Request, Option<SendProbe>) {
        let no_timer = pin!(None);
        let mut until = clock::Deadline::new(None, no_timer);
        let body = self.wire_request.payload.next(&mut until).now_or_never();
        let body = body.expect("the body is in memory").ok().flatten();
        let (mut request, probe) = self.wire_request.open(self.terms.client, self.terms.plan, body);
        let body = request.body_mut().take();
        if !matches!(fate, Fate::TimedOutBeforeBody | Fate::ClosedBeforeSending | Fate::NoConnection)
            && let Some(mut body) = body
        {
            let _frame = Pin::new(&mut body).poll_frame(&mut Poller::from_waker(Waker::noop()));
        }
        (request, probe)
    }

    fn key_of(&self, request: &reqwest::Request) -> Option<String> {
        let key = request.headers().get(&self.terms.client.keys.header)?.to_str().ok()?.to_owned();
        let is_new = self.terms.design == Design::KeyPerAttempt;
        Some(if is_new { format!("{key}-{}", self.seen.sends) } else { key })
    }

    fn check_key(&mut self, key: Option<&str>) {
        if self.wire_request.is_done() || self.wire_request.is_elsewhere() {
            self.seen.broken.key_leaked |= key.is_some();
            return;
        }
        let first = self.key.get_or_insert_with(|| key.unwrap_or_default().to_owned());
        self.seen.broken.key_changed |= first.as_str() != key.unwrap_or_default();
    }

    /// The answer; `None` if it is a redirect that is followed.
    fn answer(
        &mut self,
        fate: Fate,
        status: StatusCode,
        trail: &mut Trail,
    ) -> std::result::Result<Option<AttemptResponse>, AttemptError> {
        let headers = fate.head(self.server.api);
        if fate == Fate::AnswerCut {
            let head = Some(Box::new((status, headers)));
            return Err(AttemptError { failure: Failure::BodyCut, timed_out: false, head, taken: None, source: None });
        }
        let status = match fate {
            Fate::Conflict | Fate::StillRunning if self.terms.design == Design::ConflictIsDone => StatusCode::CREATED,
            _ => status,
        };
        let url = self.wire_request.current().url().clone();
        let mut response = http::Response::builder().status(status).url(url).body("").expect("a response");
        *response.headers_mut() = headers.clone();
        let response = reqwest::Response::from(response);
        if attempt::follow(self.terms.client, self.terms.plan, self.wire_request, &response, trail)? {
            return Ok(None);
        }
        Ok(Some(AttemptResponse::Whole { status, headers, body: Bytes::from(fate.body()), over_limit: false }))
    }

    /// The request failed without an answer.
    fn failed(&self, fate: Fate, probe: Option<&SendProbe>) -> AttemptError {
        let (failure, timed_out) = match fate {
            Fate::NoConnection => (Failure::Connect, false),
            Fate::NoDescriptor => (Failure::LocalResources, false),
            Fate::BadCertificate => (Failure::Certificate, false),
            Fate::ClosedBeforeSending => (Failure::NotSent, false),
            Fate::Refused => (Failure::Refused, false),
            Fate::TimedOutBeforeBody if self.terms.design == Design::HeadIsNothing => (Failure::NotSent, true),
            Fate::TimedOut | Fate::TimedOutBeforeBody => (transport_error::of_timeout(probe), true),
            Fate::Lost if self.terms.design == Design::LostIsNotSent => (Failure::NotSent, false),
            Fate::Lost => (Failure::Disconnected, false),
            Fate::NotHttp => (Failure::BadResponse, false),
            Fate::OwnBodyFails => (Failure::RequestBody, false),
            _ => (Failure::Unknown, false),
        };
        AttemptError { failure, timed_out, head: None, taken: probe.map(SendProbe::taken), source: None }
    }

    /// As the loop does it after an attempt.
    fn conclude(
        &mut self,
        fate: Fate,
        attempt: Attempt<'a>,
        attempted: std::result::Result<AttemptResponse, AttemptError>,
    ) {
        let Attempt { pass, number, .. } = attempt;
        if self.terms.design == Design::FreeWithoutEnd && fate == Fate::Refused {
            return self.repeat(Duration::ZERO, true, fate);
        }
        if self.terms.design == Design::ForgetsEarlierAttempts
            && let Some(recorder) = &mut self.recorder
        {
            recorder.may_have_been_processed = false;
        }
        let elapsed = self.now.saturating_duration_since(pass.started);
        let ended = self.now;
        let raced = Raced { attempted, number, ended, elapsed, latency: Some(elapsed), other: None };
        self.context.follow(self.wire_request, &mut self.operation);
        let Some(mut recorder) = self.recorder.take() else { return };
        let decision = recorder.conclude(&raced, pass, self.context, self.gate, &mut self.operation, self.wire_request);
        match decision {
            Decision::Retry { after } => {
                self.recorder = Some(recorder);
                self.repeat(after, self.operation.repeats_free(), fate);
            }
            Decision::Stop(reason) => {
                let ended = recorder.end(self.wire_request, raced.attempted, reason, self.now);
                self.stop(ended, reason);
            }
        }
    }

    fn repeat(&mut self, after: Duration, is_free: bool, fate: Fate) {
        self.not_before = self.now + fate.retry_after().unwrap_or_default();
        self.now += after;
        self.seen.free = self.seen.free.saturating_add(u8::from(is_free));
        self.seen.local = self.seen.local.saturating_add(u8::from(fate == Fate::NoDescriptor));
        self.seen.waited = !after.is_zero();
        self.seen.decided = Decided::Retry { after, is_free };
        self.seen.phase = Phase::Waiting;
    }

    /// What `fetch` returns.
    fn stop(&mut self, ended: Result<(AttemptResponse, OperationReport)>, reason: StopReason) {
        self.seen.decided = Decided::Stop(reason);
        let fetched = ended.and_then(|(answer, report)| {
            let value = response::decode::<()>(answer, self.terms.plan.read, self.wire_request.current().url());
            match value {
                Ok(()) => Ok(report),
                Err(error) => Err(response::unfit(error, report, self.terms.plan, self.wire_request)),
            }
        });
        if let Ok(report) = &fetched {
            self.seen.decided = Decided::Stop(report.stop);
        }
        self.end(&fetched.as_ref());
    }

    fn end(&mut self, ended: &std::result::Result<&OperationReport, &Error>) {
        self.seen.phase = Phase::Ended;
        self.seen.end = Some(End::of(ended));
    }

    fn seen(mut self) -> Seen {
        let waits = self.seen.phase == Phase::Waiting;
        if waits {
            // The next attempt starts again from the first address.
            self.wire_request.begin_attempt();
        }
        let path = self.wire_request.current().url().path();
        let has_same_key = !self.wire_request.is_done()
            && !self.wire_request.is_elsewhere()
            && self.terms.design != Design::KeyPerAttempt;
        let key = self.key.as_deref().filter(|_| has_same_key);
        let is_resumed = matches!(self.terms.scenario.ask, Ask::PostResumed { .. });
        let own = own_key();
        let key = key.or_else(|| is_resumed.then(|| own.as_str()));
        self.seen.is_known = self.server.knows(key, path, self.now);
        self.seen.is_moved = path == MOVED;
        self.seen.is_result = self.wire_request.is_done();
        self.seen.is_elsewhere = self.wire_request.is_elsewhere();
        self.seen.executions = self.server.executions;
        self.seen
    }
}
