//! A history, replayed through the code of the client.
//!
//! Everything but the transport is the client's own. The functions of a real operation fix its
//! terms, admit each attempt, check the licence again, follow redirects, classify the outcome,
//! decide and write the error. Only the time comes from the history, and the responses come from
//! the exploration's [`Server`].

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
use crate::admission::Admitted;
use crate::attempt_result::{AttemptError, AttemptProgress, AttemptResponse, FinishedAttempt};
use crate::clock;
use crate::credentials::TokenNumber;
use crate::error::{Error, Result};
use crate::journal::OperationReport;
use crate::key_policy::Trust;
use crate::operation::OperationContext;
use crate::policy::{BreakerState, Class, Decision, Denied, Failure, StopReason};
use crate::redirect::RedirectState;
use crate::run::Run;
use crate::send_probe::SendProbe;
use crate::wire_request::WireRequest;
use crate::{attempt, transport_error, whole_response};

/// Replays `history` and returns the observations.
pub(super) fn replay(model: &Model, scenario: Scenario, history: &[Step]) -> Seen {
    let mut request = scenario.request().redirect_post_as_get(model.design == Design::MovedPostIsGet);
    let (mut context, wire_request) = match request.begin(true, None) {
        Ok(prepared) => prepared,
        Err(error) => return refused(scenario, &error),
    };
    context.origin = scenario.origin();
    if model.design == Design::KeyIsLicence {
        context.trust = Trust::Declared;
    }
    let setting = Setting { design: model.design, scenario, context: &context };
    let mut course = Course::start(setting, wire_request);
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

/// The parts that do not change while the operation runs.
#[derive(Clone, Copy)]
struct Setting<'a> {
    design: Design,
    scenario: Scenario,
    context: &'a OperationContext<'a>,
}

/// One operation on its way.
struct Course<'a> {
    setting: Setting<'a>,
    wire_request: &'a mut WireRequest,
    progress: AttemptProgress,
    /// `None` once the operation has ended.
    run: Option<Run<'a>>,
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
    pass: Admitted<'a>,
    until: Option<Instant>,
}

impl<'a> Course<'a> {
    fn start(setting: Setting<'a>, wire_request: &'a mut WireRequest) -> Self {
        let run = Run::start(setting.context, wire_request);
        let started = run.recorder.started;
        Self {
            setting,
            wire_request,
            progress: AttemptProgress::new(0, false, RedirectState::default()),
            run: Some(run),
            started,
            now: started,
            attempt: None,
            server: Self::server(setting.scenario, started),
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
                self.now = self.now.max(self.started + self.setting.scenario.deadline());
                self.begin_attempt();
            }
            Step::Sent { fate, acts, stops_meanwhile } => self.send(fate, acts, stops_meanwhile),
        }
    }

    /// The response to another call of the same client.
    fn observe(&self, api: Api) {
        let (trust, status) = (&self.setting.context.origin.trust, StatusCode::CREATED);
        trust.observe(&self.setting.context.method, ASKED, status, &Fate::Done.head(api));
    }

    fn stop_honouring(&mut self) {
        self.server.api = Api::Ignores;
        self.observe(Api::Ignores);
    }

    fn open_circuit(&self) {
        if let Some(permit) =
            self.setting.context.origin.admission.breaker.as_ref().and_then(|breaker| breaker.acquire(self.now).ok())
        {
            permit.record(Class::Ambiguous, Duration::ZERO, self.now);
        }
    }

    /// As the loop does it before an attempt.
    fn begin_attempt(&mut self) {
        let Some(mut run) = self.run.take() else { return };
        let admitted = run.admit(self.wire_request, &self.progress, self.now).now_or_never();
        match admitted.expect("only a cooldown waits, and there is none") {
            Ok(pass) => {
                self.check_time();
                run.begin_attempt(self.wire_request, &mut self.progress, &pass);
                let until = self.progress.limits.until;
                self.run = Some(run);
                self.attempt = Some(Attempt { pass, until });
                self.seen.sends = self.seen.sends.saturating_add(1);
                self.seen.hops = 0;
                self.seen.phase = Phase::Sending;
            }
            Err(held) => self.hold_back(run, held),
        }
    }

    fn hold_back(&mut self, mut run: Run<'_>, held: Denied) {
        let error = run.recorder.not_admitted(self.wire_request, held);
        self.seen.decided = Decided::Denied(held.reason);
        self.end(&Err(&error));
    }

    /// Checks that an attempt may be sent now, by the wishes of server and caller.
    fn check_time(&mut self) {
        let broken = &mut self.seen.broken;
        broken.early |= self.now < self.not_before;
        broken.late |= self.now >= self.started + self.setting.scenario.deadline();
        broken.after_final |= self.last.is_some_and(Fate::is_final);
        let circuit = self.setting.context.origin.admission.breaker.as_ref().map(|breaker| breaker.state(self.now));
        broken.through_open_circuit |= matches!(circuit, Some(BreakerState::Open { .. }));
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
        let Some(attempt) = self.attempt.take() else { return };
        let outcome = match fate.status() {
            Some(status) => match self.answer(fate, status) {
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
        self.conclude(fate, attempt, outcome);
    }

    /// The request as it is sent. Its body is asked for, unless it fails before that.
    fn open(&mut self, fate: Fate) -> (reqwest::Request, Option<SendProbe>) {
        let body = if self.progress.redirects.is_done { None } else { self.next_body() };
        let (mut request, probe) = attempt::open(self.setting.context, self.wire_request, &self.progress, body);
        let has_token = self.setting.scenario.has_token() && !self.progress.redirects.is_elsewhere;
        self.progress.token = TokenNumber::new(u32::from(self.seen.renewed) + 1).filter(|_| has_token);
        let body = request.body_mut().take();
        if !matches!(fate, Fate::TimedOutBeforeBody | Fate::ClosedBeforeSending | Fate::NoConnection)
            && let Some(mut body) = body
        {
            let _frame = Pin::new(&mut body).poll_frame(&mut Poller::from_waker(Waker::noop()));
        }
        (request, probe)
    }

    fn next_body(&mut self) -> Option<reqwest::Body> {
        let no_timer = pin!(None);
        let mut until = clock::SharedTimer::new(None, no_timer);
        let body = self.wire_request.body.next(&mut until).now_or_never();
        body.expect("the body is in memory").ok().flatten()
    }

    fn key_of(&self, request: &reqwest::Request) -> Option<String> {
        let key = request.headers().get(&self.setting.context.client.keys.header)?.to_str().ok()?.to_owned();
        let is_new = self.setting.design == Design::KeyPerAttempt;
        Some(if is_new { format!("{key}-{}", self.seen.sends) } else { key })
    }

    fn check_key(&mut self, key: Option<&str>) {
        if self.progress.redirects.is_done || self.progress.redirects.is_elsewhere {
            self.seen.broken.key_leaked |= key.is_some();
            return;
        }
        let first = self.key.get_or_insert_with(|| key.unwrap_or_default().to_owned());
        self.seen.broken.key_changed |= first.as_str() != key.unwrap_or_default();
    }

    /// The response, or `None` if it is a redirect that is followed.
    fn answer(&mut self, fate: Fate, status: StatusCode) -> std::result::Result<Option<AttemptResponse>, AttemptError> {
        let headers = fate.head(self.server.api);
        if fate == Fate::AnswerCut {
            let head = Some(Box::new((status, headers)));
            return Err(AttemptError {
                failure: Failure::BodyCut,
                timed_out: false,
                head,
                body_was_taken: None,
                source: None,
            });
        }
        let status = match fate {
            Fate::Conflict | Fate::StillRunning if self.setting.design == Design::ConflictIsDone => StatusCode::CREATED,
            _ => status,
        };
        let url = self.wire_request.current(&self.progress).request.url().clone();
        let mut response = http::Response::builder().status(status).url(url).body("").expect("a response");
        *response.headers_mut() = headers.clone();
        let response = reqwest::Response::from(response);
        if attempt::follow(self.setting.context, self.wire_request, &mut self.progress, &response)? {
            return Ok(None);
        }
        Ok(Some(AttemptResponse::Whole { status, headers, body: Bytes::from(fate.body()), over_limit: false }))
    }

    /// The request failed without a response.
    fn failed(&self, fate: Fate, probe: Option<&SendProbe>) -> AttemptError {
        let (failure, timed_out) = match fate {
            Fate::NoConnection => (Failure::Connect, false),
            Fate::NoDescriptor => (Failure::LocalResources, false),
            Fate::BadCertificate => (Failure::Certificate, false),
            Fate::ClosedBeforeSending => (Failure::NotSent, false),
            Fate::Refused => (Failure::Refused, false),
            Fate::TimedOutBeforeBody if self.setting.design == Design::HeadIsNothing => (Failure::NotSent, true),
            Fate::TimedOut | Fate::TimedOutBeforeBody => (transport_error::of_timeout(probe), true),
            Fate::Lost if self.setting.design == Design::LostIsNotSent => (Failure::NotSent, false),
            Fate::Lost => (Failure::Disconnected, false),
            Fate::NotHttp => (Failure::BadResponse, false),
            Fate::OwnBodyFails => (Failure::RequestBody, false),
            _ => (Failure::Unknown, false),
        };
        AttemptError { failure, timed_out, head: None, body_was_taken: probe.map(SendProbe::taken), source: None }
    }

    /// As the loop does it after an attempt.
    fn conclude(
        &mut self,
        fate: Fate,
        attempt: Attempt<'a>,
        outcome: std::result::Result<AttemptResponse, AttemptError>,
    ) {
        if self.setting.design == Design::FreeWithoutEnd && fate == Fate::Refused {
            return self.repeat(Duration::ZERO, true, fate);
        }
        if self.setting.design == Design::RefusalIsNothing && fate.status() == Some(StatusCode::UNAUTHORIZED) {
            return self.repeat(Duration::ZERO, true, fate);
        }
        let Some(mut run) = self.run.take() else { return };
        if self.setting.design == Design::ForgetsEarlierAttempts {
            run.recorder.may_have_been_processed = false;
        }
        let elapsed = self.now.saturating_duration_since(attempt.pass.started);
        let finished = FinishedAttempt {
            number: self.progress.number,
            result: self.progress.finish(outcome),
            ended: self.now,
            elapsed,
            latency: Some(elapsed),
        };
        match run.conclude(self.wire_request, &mut self.progress, &finished, attempt.pass) {
            Decision::Retry { after } => {
                let is_free = run.operation.repeats_free();
                self.run = Some(run);
                self.repeat(after, is_free, fate);
            }
            Decision::Stop(reason) => {
                let ended = run.recorder.end(self.wire_request, finished.result, reason, self.now);
                self.stop(ended, reason);
            }
        }
    }

    fn repeat(&mut self, after: Duration, is_free: bool, fate: Fate) {
        self.not_before = self.now + fate.retry_after().unwrap_or_default();
        self.now += after;
        self.seen.repeat(after, is_free, fate);
    }

    /// What `fetch` returns.
    fn stop(&mut self, ended: Result<(AttemptResponse, OperationReport)>, reason: StopReason) {
        self.seen.decided = Decided::Stop(reason);
        let fetched = ended.and_then(|(answer, report)| {
            let url = self.wire_request.current(&self.progress).request.url();
            let read = self.setting.context.read;
            let value =
                whole_response::success(answer, read, report.stop, url).and_then(whole_response::decode_json::<()>);
            match value {
                Ok(()) => Ok(report),
                Err(error) => {
                    Err(whole_response::with_report(error, report, self.setting.context, self.wire_request, url))
                }
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
            self.progress = AttemptProgress::new(0, false, self.wire_request.redirect_state());
        }
        let path = self.wire_request.current(&self.progress).request.url().path();
        let RedirectState { is_done, is_elsewhere, .. } = self.progress.redirects;
        let has_same_key = !is_done && !is_elsewhere && self.setting.design != Design::KeyPerAttempt;
        let key = self.key.as_deref().filter(|_| has_same_key);
        let is_resumed = matches!(self.setting.scenario.ask, Ask::PostResumed { .. });
        let own = own_key();
        let key = key.or_else(|| is_resumed.then(|| own.as_str()));
        self.seen.is_known = self.server.knows(key, path, self.now);
        self.seen.is_moved = path == MOVED;
        self.seen.is_result = is_done;
        self.seen.is_elsewhere = is_elsewhere;
        self.seen.executions = self.server.executions;
        self.seen
    }
}
