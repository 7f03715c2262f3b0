//! The loop: one operation, from its first attempt to its last word.
//!
//! This is the only loop in the crate that sends anything twice. Read it from the top: gate, attempt (or race), classify, record, decide, wait.
//! What one attempt does is in `attempt.rs`; whether there is another is the word of [`policy::Operation`](Operation).
//! Everything lives in local variables, so dropping the future at any await leaves nothing behind.

use std::time::{Duration, Instant};

use super::Inner;
use super::assessment::{Assessment, AttemptContext};
use super::attempt;
use super::event::{Event, EventKind};
use super::gate::{Gate, Held, Pass};
use super::hedge::{Other, Race, Raced};
use super::operation::OperationContext;
use super::response_body::{self, AttemptError, AttemptResponse};
use super::wire_request::WireRequest;
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::{Attempt, Journal, NotFollowed, OperationReport, StatusOrFailure};
use crate::policy::{BreakerState, Class, Decision, Failure, Idempotency, Operation, RetryPolicy, StopReason};
use crate::resume::SafeUrl;

#[allow(
    clippy::manual_async_fn,
    reason = "an async fn holds each argument twice, and this is held by every operation in flight"
)]
pub(super) fn run(
    client: &Inner,
    plan: &OperationContext,
    wire_request: &mut WireRequest,
) -> impl Future<Output = Result<(AttemptResponse, OperationReport)>> {
    async move {
        let mut context = AttemptContext::at_first(client, plan);
        let mut recorder = Recorder::start(client, plan, wire_request);
        let mut operation = begin(plan, context.policy, wire_request, recorder.started);
        let gate = Gate::new(client, &plan.upstream, || wire_request.whole(client, plan));
        let mut now = recorder.started;

        loop {
            let number = operation.attempts().saturating_add(1);
            let entered = gate.enter(&mut operation, now).await;
            let pass = match entered
                .and_then(|pass| still_licensed(&mut operation, client, plan, wire_request).map(|()| pass))
            {
                Ok(pass) => pass,
                Err(held) => return Err(recorder.held_back(wire_request, held)),
            };
            if pass.half_opened() {
                recorder.tell(wire_request, EventKind::BreakerChanged { state: BreakerState::HalfOpen });
            }
            recorder.tell(wire_request, EventKind::AttemptStarted { number });
            let until = clock::earlier(plan.attempt_until(pass.started), operation.deadline());
            operation.begin_attempt();
            let late_after = gate.late_after(plan.hedge.as_deref().filter(|_| number == 1), &pass);
            wire_request.is_repeat = operation.is_at_risk() || late_after.is_some();
            // In a block, so that what is only looked at here takes no room in the future while it waits.
            let (attempted, ended, decision) = {
                let mut raced = match late_after {
                    None => Raced::alone(
                        attempt::send(client, plan, wire_request, number, until).await,
                        number,
                        pass.started,
                    ),
                    Some(after) => {
                        operation.set_key_trusted(wire_request.key_is_trusted(client, plan, None));
                        let tell = |fork: &WireRequest, number| recorder.tell(fork, EventKind::HedgeStarted { number });
                        let race = Race { client, plan, gate: &gate, number, until, after };
                        // Boxed, so that operations that are not hedged do not carry the room for a race.
                        Box::pin(race.run(wire_request, &mut operation, tell)).await
                    }
                };
                if raced.other.take().is_some_and(|other| recorder.record_other(wire_request, context, &other)) {
                    operation.set_at_risk();
                }
                context.follow(wire_request, &mut operation);
                let decision = recorder.conclude(&raced, pass, context, &gate, &mut operation, wire_request);
                (raced.attempted, raced.ended, decision)
            };
            match decision {
                Decision::Stop(reason) => {
                    let pause = operation.pause_before_the_end();
                    clock::sleep(pause).await;
                    return recorder.end(wire_request, attempted, reason, ended.checked_add(pause).unwrap_or(ended));
                }
                Decision::Retry { after } => {
                    response_body::discard(attempted, operation.deadline()).await;
                    clock::sleep(after.saturating_sub(clock::now().saturating_duration_since(ended))).await;
                    now = clock::now();
                }
            }
        }
    }
}

/// The operation as the policy sees it, before its first attempt.
fn begin<'a>(
    plan: &'a OperationContext,
    policy: &'a RetryPolicy,
    wire_request: &WireRequest,
    started: Instant,
) -> Operation<'a> {
    let mut operation = Operation::start(policy, &plan.upstream.budget, plan.idempotency, started);
    operation.set_body_replayable(wire_request.payload.is_replayable());
    if plan.may_have_been_processed {
        operation.set_at_risk();
    }
    if let Some(deadline) = plan.deadline {
        operation.end_by(deadline.instant());
    }
    operation
}

impl AttemptContext<'_> {
    /// Takes note of where redirects have led.
    fn follow(&mut self, wire_request: &WireRequest, operation: &mut Operation<'_>) {
        self.may_have_acted = wire_request.may_have_acted();
        if wire_request.is_done() {
            // A redirect has named the result: what is left is a GET.
            self.is_done = true;
            operation.set_idempotency(Idempotency::Natural);
            operation.set_body_replayable(true);
        }
    }
}

/// Whether another attempt may still be sent: while the operation waited, the API may have shown that it no longer honours keys.
fn still_licensed(
    operation: &mut Operation<'_>,
    client: &Inner,
    plan: &OperationContext,
    wire_request: &WireRequest,
) -> std::result::Result<(), Held> {
    if operation.attempts() > 0 || plan.may_have_been_processed {
        operation.set_key_trusted(wire_request.key_is_trusted(client, plan, None));
    }
    let lost = Held { reason: StopReason::KeyNotTrusted, retry_after: None };
    if operation.needs_licence() { Err(lost) } else { Ok(()) }
}

/// What follows an attempt that is not the last.
#[derive(Clone, Copy)]
struct Next {
    wait: Duration,
    is_free: bool,
}

/// The story of the operation so far, and those who are told it.
struct Recorder<'a> {
    client: &'a Inner,
    plan: &'a OperationContext,
    started: Instant,
    journal: Journal,
    retry_after: Option<Duration>,
    may_have_been_processed: bool,
}

impl<'a> Recorder<'a> {
    fn start(client: &'a Inner, plan: &'a OperationContext, wire_request: &WireRequest) -> Self {
        let started = clock::now();
        let may_have_been_processed = plan.may_have_been_processed;
        let recorder =
            Self { client, plan, started, journal: Journal::default(), retry_after: None, may_have_been_processed };
        recorder.tell(wire_request, EventKind::OperationStarted { deadline: plan.time_allowed(client) });
        recorder
    }

    fn tell(&self, wire_request: &WireRequest, kind: EventKind<'_>) {
        let url = SafeUrl(wire_request.asked().url());
        let event = Event { method: &self.plan.method, url, key: self.plan.key.as_ref(), kind };
        event.trace();
        if let Some(on_event) = &self.client.on_event {
            on_event(&event);
        }
    }

    /// Classifies what an attempt came to, tells those who keep count of the origin, decides and records.
    fn conclude(
        &mut self,
        raced: &Raced,
        pass: Pass<'_>,
        context: AttemptContext<'_>,
        gate: &Gate<'_>,
        operation: &mut Operation<'_>,
        wire_request: &WireRequest,
    ) -> Decision {
        let Self { client, plan, .. } = *self;
        let &Raced { ref attempted, number, ended, elapsed, latency, .. } = raced;
        let assessment = context.judge(attempted, self.may_have_been_processed);
        let succeeded = assessment.class == Class::Success;
        operation.set_key_trusted(wire_request.key_is_trusted(client, plan, response_body::head(attempted)));
        // What happened elsewhere, or never left this process, says nothing about the origin; nor
        // does a refusal that costs nothing.
        let is_neutral = assessment.hint.local || operation.has_free_repeat(assessment.class, &assessment.hint);
        let of_origin = (!wire_request.is_elsewhere() && !is_neutral).then_some(&assessment);
        if let Some(state) = gate.settle(pass, of_origin, latency, context.policy.hint_cap_in_force(), ended) {
            self.tell(wire_request, EventKind::BreakerChanged { state });
        }
        let open_for = gate.circuit_open_for(ended);
        operation.set_circuit_open_for(open_for);
        let may_be_repeated = !succeeded && !context.is_done;
        if let Some(forgotten) =
            may_be_repeated.then(|| plan.key_until(client, wire_request, self.started, ended)).flatten()
        {
            operation.end_by(forgotten);
        }
        // A success waits for nothing.
        let unit = if succeeded { 0.0 } else { clock::unit() };
        let decision = operation.decide(assessment.class, &assessment.hint, ended, unit);
        let next = if let Decision::Retry { after } = decision { Some(after) } else { None };
        let next = next.map(|wait| Next { wait, is_free: operation.repeats_free() });
        self.record(wire_request, number, &assessment, elapsed, next);
        if decision == Decision::Stop(StopReason::CircuitOpen) {
            self.retry_after = Some(open_for);
        }
        decision
    }

    /// The attempt of a race that does not count for the decision, and counts as evidence: whether it may have been carried out.
    fn record_other(&mut self, wire_request: &WireRequest, context: AttemptContext<'_>, other: &Other) -> bool {
        let &Other { number, elapsed, may_have_acted, is_done, .. } = other;
        let context = AttemptContext { may_have_acted, is_done, ..context };
        let judge = |attempted| context.judge(attempted, self.may_have_been_processed);
        let assessment = other.attempted.as_ref().map_or_else(Assessment::on_dropped, judge);
        self.record(wire_request, number, &assessment, elapsed, None);
        assessment.may_have_been_processed
    }

    fn record(
        &mut self,
        wire_request: &WireRequest,
        number: u32,
        assessment: &Assessment,
        elapsed: Duration,
        next: Option<Next>,
    ) {
        self.may_have_been_processed |= assessment.may_have_been_processed;
        self.retry_after = assessment.hint.after;
        let &Assessment { class, default_class, reach, status, failure, .. } = assessment;
        let (wait, free_repeat) = (next.map(|next| next.wait), next.is_some_and(|next| next.is_free));
        let attempt = Attempt { number, reach, class, default_class, status, failure, elapsed, wait, free_repeat };
        self.tell(wire_request, EventKind::AttemptEnded { attempt: &attempt });
        self.journal.push(attempt);
        if let Some(Next { wait: after, is_free: free }) = next {
            let number = self.attempts().saturating_add(1);
            self.tell(wire_request, EventKind::RetryScheduled { number, after, because: class, free });
        }
    }

    fn attempts(&self) -> u32 {
        u32::try_from(self.journal.attempts().len()).unwrap_or(u32::MAX)
    }

    /// The last word.
    fn end(
        self,
        wire_request: &WireRequest,
        attempted: Result<AttemptResponse, AttemptError>,
        reason: StopReason,
        now: Instant,
    ) -> Result<(AttemptResponse, OperationReport)> {
        let succeeded = matches!(&attempted, Ok(answer) if answer.status().is_success());
        let not_followed = wire_request.not_followed().filter(|_| attempted.is_ok());
        let reason = match not_followed {
            Some(NotFollowed::KeyNotTrusted) => StopReason::KeyNotTrusted,
            _ => reason,
        };
        let report = OperationReport { not_followed, ..self.into_report(wire_request, reason, succeeded, now) };
        match attempted {
            Ok(answer) => Ok((answer, report)),
            Err(failed) => {
                let what = StatusOrFailure {
                    status: failed.head.as_deref().map(|(status, _)| *status),
                    failure: Some(failed.failure),
                };
                let error = Error::new(kind_of(&failed), what.to_string()).with_source(failed.source);
                Err(error.with_report(report).at(wire_request.asked().method(), SafeUrl(wire_request.asked().url())))
            }
        }
    }

    /// The next attempt, or the first, was not let through.
    fn held_back(mut self, wire_request: &WireRequest, held: Held) -> Error {
        self.retry_after = held.retry_after;
        let report = self.into_report(wire_request, held.reason, false, clock::now());
        let error = match held.reason {
            StopReason::DeadlineExceeded => Error::new(ErrorKind::Timeout, "no time is left"),
            _ => Error::new(ErrorKind::NotAdmitted, "held back"),
        };
        let error = error.with_report(report);
        error.at(wire_request.asked().method(), SafeUrl(wire_request.asked().url()))
    }

    fn into_report(
        self,
        wire_request: &WireRequest,
        reason: StopReason,
        succeeded: bool,
        now: Instant,
    ) -> OperationReport {
        let elapsed = now.saturating_duration_since(self.started);
        let may_have_been_processed = self.may_have_been_processed;
        let attempts = self.attempts();
        self.tell(wire_request, EventKind::OperationEnded { reason, attempts, elapsed, may_have_been_processed });
        // Nothing is left to ask for after a success, and its digest would be paid for on every call.
        let resume = if succeeded { None } else { wire_request.resume_token(self.plan, may_have_been_processed) };
        OperationReport {
            method: self.plan.method.clone(),
            key: self.plan.key.clone(),
            journal: self.journal,
            stop: reason,
            elapsed,
            retry_after: self.retry_after,
            may_have_been_processed,
            resume,
            not_followed: None,
        }
    }
}

fn kind_of(failed: &AttemptError) -> ErrorKind {
    match failed.failure {
        Failure::Connect | Failure::LocalResources => ErrorKind::Connect,
        Failure::Certificate => ErrorKind::Certificate,
        Failure::RequestBody => ErrorKind::RequestBody,
        Failure::Redirects => ErrorKind::Redirect,
        Failure::InvalidRequest => ErrorKind::Build,
        _ if failed.timed_out => ErrorKind::Timeout,
        Failure::BodyCut => ErrorKind::ResponseBody,
        _ => ErrorKind::Transport,
    }
}

#[cfg(all(test, feature = "json"))]
mod exploration;
