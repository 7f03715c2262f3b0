//! The loop: one operation, from its first attempt to its end.
//!
//! This is the only loop in the crate that sends a request twice. Each turn admits an attempt,
//! sends it, classifies and records its outcome, decides, and waits. `attempt.rs` is one attempt,
//! and [`policy::Operation`](Operation) decides.
//!
//! All state is in local variables, so dropping the future at any await ends the operation.

use std::pin::Pin;
use std::time::{Duration, Instant};

use tracing::{Instrument as _, Span};

use super::admission::{Admission, Admitted};
use super::assessment::Assessment;
use super::attempt;
use super::attempt_result::{AttemptProgress, AttemptResponse, AttemptResult, FinishedAttempt, TimeLimits};
use super::confirm::{self, Confirmation};
use super::credentials::NoToken;
use super::event::{EventKind, Exchange};
use super::hedge::{self, Hedge, HedgedResult, LosingAttempt};
use super::key_trust::RequestPaths;
use super::operation::OperationContext;
use super::recorder::Recorder;
use super::redirect::RedirectState;
use super::response_body;
use super::spans::OperationSpan;
use super::transport::Transport;
use super::wire_request::WireRequest;
use crate::cause::Cause;
use crate::clock;
use crate::error::{Error, Result};
use crate::journal::{ConfirmationOutcome, OperationReport, OutOfTime, Reach};
use crate::policy::{BreakerState, Class, Decision, Denied, Idempotency, Operation, StopReason};

/// Runs an operation to its end. Leaves the evidence of the last attempt in `progress`.
#[allow(clippy::manual_async_fn, reason = "an async fn holds each argument twice")]
pub(super) fn run<T: Transport>(
    transport: T,
    context: &OperationContext<'_>,
    wire_request: &mut WireRequest,
    progress: &mut AttemptProgress,
) -> impl Future<Output = Result<(AttemptResponse, OperationReport)>> {
    async move {
        let mut running = Running { run: Run::start(context, wire_request), wire_request, progress };
        let mut now = running.run.recorder.started;
        loop {
            if let Some(tokens) = context.lacks_token(running.wire_request) {
                // Before the attempt, whose timeout and latency are not those of a refresh. If it
                // fails, the attempt has its error.
                if let Err(NoToken::TimedOut) = Box::pin(tokens.get(running.run.operation.deadline())).await {
                    return Err(running.run.no_token_in_time(running.wire_request));
                }
                now = clock::now();
            }
            let pass = match running.run.admit(running.wire_request, running.progress, now).await {
                Ok(pass) => pass,
                Err(held) => return Err(running.run.not_admitted(running.wire_request, held)),
            };
            let late_after = running.run.begin_attempt(running.wire_request, running.progress, &pass);
            // In a block, so that `finished` takes no room in the future while the loop waits.
            let (result, ended, decision) = {
                let finished = match late_after {
                    None => {
                        let result = attempt::send(transport, context, running.wire_request, running.progress).await;
                        FinishedAttempt::now(result, running.progress.number, pass.started)
                    }
                    // Boxed, so that operations without a hedge have no room for one.
                    Some(late_after) => {
                        Box::pin(running.run.send_hedged(transport, running.wire_request, running.progress, late_after))
                            .await
                    }
                };
                let decision = running.run.conclude(running.wire_request, running.progress, &finished, pass);
                (finished.result, finished.ended, decision)
            };
            match decision {
                Decision::Stop(reason) if context.asks(reason) => match running.ask(result, reason, ended).await {
                    Some(end) => return end,
                    None => now = clock::now(),
                },
                Decision::Stop(reason) => {
                    clock::sleep(running.run.operation.pause_before_the_end()).await;
                    return running.end(result, reason, ended);
                }
                Decision::Retry { after } => {
                    response_body::drain(result, running.run.operation.deadline()).await;
                    clock::sleep(after.saturating_sub(clock::now().saturating_duration_since(ended))).await;
                    now = clock::now();
                }
            }
        }
    }
}

/// How an operation has ended.
type Ended = Result<(AttemptResponse, OperationReport)>;

/// An operation under way. If it is dropped before its end, it reports that.
struct Running<'a, 'b> {
    run: Run<'a>,
    wire_request: &'b mut WireRequest,
    progress: &'b mut AttemptProgress,
}

impl<'a> Running<'a, '_> {
    /// Asks the user whether the server has acted. Returns the end of the operation, or `None` if
    /// it is repeated.
    ///
    /// Boxed here, so that operations without a question have no room for one.
    fn ask(
        &mut self,
        result: AttemptResult,
        reason: StopReason,
        ended: Instant,
    ) -> Pin<Box<impl Future<Output = Option<Ended>>>> {
        Box::pin(self.confirm(result, reason, ended))
    }

    async fn confirm(&mut self, mut result: AttemptResult, reason: StopReason, ended: Instant) -> Option<Ended> {
        let (read, deadline) = (self.run.context.read, self.run.operation.deadline());
        let Some(question) = self.run.context.question(self.wire_request, deadline) else {
            return Some(self.end(result, reason, ended));
        };
        // The read is an operation of its own, which belongs to this one.
        let span = self.run.context.span().map_or_else(Span::none, OperationSpan::handle);
        let (confirmation, is_licence) = question.settle(ended).instrument(span).await;
        let (outcome, decision) = match confirmation {
            Confirmation::Applied(response) => match confirm::read(response, read, deadline).await {
                Some(response) => {
                    result = AttemptResult { outcome: Ok(response), redirects: RedirectState::default() };
                    (ConfirmationOutcome::Applied, Decision::Stop(StopReason::Confirmed))
                }
                None => (ConfirmationOutcome::Unknown, Decision::Stop(reason)),
            },
            Confirmation::NotApplied if is_licence => (ConfirmationOutcome::NotApplied, self.repeat_unapplied(ended)),
            Confirmation::NotApplied => (ConfirmationOutcome::NotApplied, Decision::Stop(reason)),
            Confirmation::Unknown => (ConfirmationOutcome::Unknown, Decision::Stop(reason)),
        };
        self.run.recorder.confirmed(self.wire_request, outcome, decision);
        match decision {
            Decision::Retry { after } => {
                response_body::drain(result, deadline).await;
                clock::sleep(after).await;
                None
            }
            Decision::Stop(reason) => {
                let now = clock::now();
                clock::sleep(self.run.operation.pause_before_the_end()).await;
                Some(self.end(result, reason, now))
            }
        }
    }

    /// Decides about the repeat of an operation that was not carried out. `ended`: when its last
    /// attempt ended.
    fn repeat_unapplied(&mut self, ended: Instant) -> Decision {
        let (run, now) = (&mut self.run, clock::now());
        // The circuit may have opened for probes meanwhile, and a part of the wait is over.
        run.operation.set_circuit_open_for(run.admission.circuit_open_for(now));
        let asked = run.recorder.retry_after.map(|asked| asked.saturating_sub(now.saturating_duration_since(ended)));
        let decision = run.operation.repeat_unapplied(asked, now);
        if let Decision::Stop(reason) = decision {
            run.recorder.out_of_time = run.limit_behind(reason, asked);
        }
        decision
    }

    /// Ends the operation with the result of its last attempt, which ended at `ended`.
    fn end(
        &mut self,
        result: AttemptResult,
        reason: StopReason,
        ended: Instant,
    ) -> Result<(AttemptResponse, OperationReport)> {
        let pause = self.run.operation.pause_before_the_end();
        let ended = ended.checked_add(pause).unwrap_or(ended);
        let done = self.run.recorder.end(self.wire_request, result, reason, ended);
        done.map_err(|error| at_last_hop(error, self.wire_request, self.progress))
    }
}

impl Drop for Running<'_, '_> {
    fn drop(&mut self) {
        let Self { run, wire_request, progress } = self;
        run.recorder.dropped(wire_request, run.operation.attempts(), progress);
    }
}

/// Names the address behind redirects in an error, since that is the one that failed.
fn at_last_hop(error: Error, wire_request: &WireRequest, progress: &AttemptProgress) -> Error {
    error.at_hop(wire_request.original().url(), wire_request.current(progress).request.url())
}

/// An operation under way: the parts that the loop drives.
struct Run<'a> {
    context: &'a OperationContext<'a>,
    admission: Admission<'a>,
    operation: Operation<'a>,
    recorder: Recorder<'a>,
}

impl<'a> Run<'a> {
    fn start(context: &'a OperationContext<'a>, wire_request: &WireRequest) -> Self {
        let recorder = Recorder::start(context, wire_request);
        let budget = &context.origin.budget;
        let mut operation = Operation::start(context.policy(), budget, context.idempotency, recorder.started);
        operation.set_body_replayable(wire_request.body.is_replayable());
        if context.may_have_been_processed {
            operation.set_at_risk();
        }
        if context.is_nested {
            operation.set_nested();
        }
        if let Some(deadline) = context.task_deadline() {
            operation.end_by(deadline);
        }
        let admission = Admission::new(context.client, &context.origin, || context.assemble(wire_request));
        Self { context, admission, operation, recorder }
    }

    /// Waits until an attempt may be sent.
    async fn admit(
        &mut self,
        wire_request: &WireRequest,
        progress: &AttemptProgress,
        now: Instant,
    ) -> Result<Admitted<'a>, Denied> {
        let pass = self.admission.enter(&mut self.operation, now).await?;
        self.notice_unseen_redirects(progress);
        self.check_age_of_key(wire_request)?;
        // While the operation waited, the API may have shown that it no longer honours keys.
        if self.operation.attempts() > 0 || self.context.may_have_been_processed {
            self.operation.set_key_trusted(self.context.is_key_trusted(wire_request, progress));
        }
        if self.operation.needs_licence() {
            let is_keyed = self.context.idempotency == Idempotency::Keyed;
            let reason = if is_keyed { StopReason::KeyNotTrusted } else { StopReason::NotRepeatable };
            return Err(Denied { reason, retry_after: None });
        }
        Ok(pass)
    }

    /// Takes "not processed" back if the transport has shown since that it follows redirects. A
    /// refused connection may then have been that of a second hop.
    fn notice_unseen_redirects(&mut self, last: &AttemptProgress) {
        if self.operation.attempts() > 0 && !last.redirects.is_opaque && self.context.view().is_opaque() {
            self.operation.set_at_risk();
            self.recorder.may_have_been_processed = true;
        }
    }

    /// Checks that the API still knows the key of a resumed operation. It may have waited for a token
    /// or a cooldown before its first attempt. (Later attempts have a deadline.)
    fn check_age_of_key(&mut self, wire_request: &WireRequest) -> std::result::Result<(), Denied> {
        if !self.context.may_have_been_processed || self.operation.attempts() > 0 {
            return Ok(());
        }
        let (requested, now) = (RequestPaths::only(wire_request.original().url().path()), clock::now());
        match self.context.key_expires_at(requested, self.recorder.started, now) {
            Some(forgotten) if forgotten <= now => {
                self.operation.end_by(forgotten);
                Err(Denied { reason: StopReason::DeadlineExceeded, retry_after: None })
            }
            _ => Ok(()),
        }
    }

    /// Announces the next attempt, and spends the tokens of its retry. Returns when it is late, if
    /// it is hedged.
    fn begin_attempt(
        &mut self,
        wire_request: &WireRequest,
        progress: &mut AttemptProgress,
        pass: &Admitted<'_>,
    ) -> Option<Duration> {
        let number = self.operation.attempts().saturating_add(1);
        if pass.half_opened() {
            self.recorder.emit(wire_request, EventKind::BreakerChanged { state: BreakerState::HalfOpen });
        }
        self.recorder.emit(wire_request, EventKind::AttemptStarted { number });
        let deadline = self.operation.deadline();
        let limits = TimeLimits { until: clock::earlier(self.context.attempt_until(pass.started), deadline), deadline };
        self.operation.begin_attempt();
        self.recorder.is_sending = true;
        let late_after = self.admission.late_after(self.context.hedge_policy(number), pass);
        let is_repeat = self.operation.is_at_risk() || late_after.is_some();
        progress.begin(number, is_repeat, wire_request.redirect_state());
        progress.limits = limits;
        late_after
    }

    /// Sends an attempt with a second one beside it once it is late.
    async fn send_hedged<T: Transport>(
        &mut self,
        transport: T,
        wire_request: &mut WireRequest,
        progress: &mut AttemptProgress,
        late_after: Duration,
    ) -> FinishedAttempt {
        let Self { context, admission, operation, recorder } = self;
        operation.set_key_trusted(context.is_key_trusted(wire_request, progress));
        let hedge = Hedge { context, admission, recorder, late_after };
        let HedgedResult { winner, loser } = hedge::run(transport, hedge, wire_request, progress, operation).await;
        if let Some(loser) = loser {
            self.record_loser(wire_request, &loser);
        }
        winner
    }

    /// Records the attempt of a hedged pair that does not decide. It is still evidence.
    fn record_loser(&mut self, wire_request: &WireRequest, loser: &LosingAttempt) {
        let LosingAttempt { progress, result, elapsed } = loser;
        if result.is_none() && progress.reach == Reach::Sent {
            let exchange = Exchange::cancelled(wire_request.current(progress).request, *elapsed);
            self.recorder.emit(wire_request, EventKind::ExchangeEnded { exchange });
        }
        let mut assessment = match result {
            Some(result) => Assessment::of(self.context, result, progress.token, self.recorder.may_have_been_processed),
            None => Assessment::of_cancelled(progress),
        };
        if assessment.cause == Some(Cause::AttemptTimeout) {
            self.name_timeout(&mut assessment, clock::now());
        }
        if assessment.may_have_been_processed {
            self.operation.set_at_risk();
        }
        self.context.observe_token(progress.token, &assessment, result.as_ref());
        let attempt = assessment.to_attempt(progress.number, *elapsed);
        self.recorder.record(wire_request, attempt, &assessment);
    }

    /// Classifies a finished attempt, decides the next step, and records both.
    fn conclude(
        &mut self,
        wire_request: &mut WireRequest,
        progress: &mut AttemptProgress,
        finished: &FinishedAttempt,
        pass: Admitted<'_>,
    ) -> Decision {
        let FinishedAttempt { number, result, ended, elapsed, .. } = finished;
        if result.redirects.is_done {
            wire_request.become_result(progress);
            self.operation.set_idempotency(Idempotency::Natural);
            self.operation.set_body_replayable(true);
        }
        let sent_before = self.recorder.may_have_been_processed;
        let mut assessment = Assessment::of(self.context, result, progress.token, sent_before);
        // Another endpoint may accept a token that this one refuses although it is fresh.
        if !self.operation.has_taken_fresh_token() || assessment.class == Class::Success {
            self.context.observe_token(progress.token, &assessment, Some(result));
        }
        self.context.observe(wire_request, progress, result.head());
        self.operation.set_key_trusted(self.context.is_key_trusted(wire_request, progress));
        self.settle(wire_request, finished, &assessment, pass);
        if assessment.class != Class::Success && !result.redirects.is_done {
            let paths = wire_request.paths(progress);
            if let Some(forgotten) = self.context.key_expires_at(paths, self.recorder.started, *ended) {
                self.operation.end_by(forgotten);
            }
        }
        let decision = self.decide(&assessment, *ended);
        if assessment.cause == Some(Cause::AttemptTimeout) {
            self.name_timeout(&mut assessment, *ended);
        }
        let mut attempt = assessment.to_attempt(*number, *elapsed);
        if let Decision::Retry { after } = decision {
            attempt.wait = Some(after);
            attempt.free_repeat = self.operation.repeats_free();
        }
        self.recorder.record(wire_request, attempt, &assessment);
        if decision == Decision::Stop(StopReason::CircuitOpen) {
            self.recorder.retry_after = Some(self.admission.circuit_open_for(*ended));
        }
        if let Decision::Stop(reason) = decision
            && reason != StopReason::Done
            && !assessment.cause.is_some_and(Cause::names_deadline)
        {
            self.recorder.out_of_time = self.limit_behind(reason, self.recorder.retry_after);
        }
        decision
    }

    /// Returns the error of an operation whose next attempt was not admitted.
    fn not_admitted(&mut self, wire_request: &WireRequest, held: Denied) -> Error {
        self.recorder.out_of_time = self.limit_behind(held.reason, None);
        self.recorder.not_admitted(wire_request, held)
    }

    /// Returns the error of an operation whose time has passed while it waited for a token.
    fn no_token_in_time(&mut self, wire_request: &WireRequest) -> Error {
        self.recorder.out_of_time = self.limit_behind(StopReason::DeadlineExceeded, None);
        self.recorder.no_token_in_time(wire_request)
    }

    /// Returns whose time is too short, if an operation stops for that reason. `asked`: the wait
    /// that the response asks for.
    fn limit_behind(&self, reason: StopReason, asked: Option<Duration>) -> Option<OutOfTime> {
        match reason {
            StopReason::RetryAfterTooLong if asked > Some(self.context.policy().max_retry_after) => {
                Some(OutOfTime::MaxRetryAfter)
            }
            StopReason::DeadlineExceeded | StopReason::RetryAfterTooLong => {
                Some(self.context.limit_at(self.operation.deadline()?, self.recorder.started))
            }
            _ => None,
        }
    }

    /// Names the limit behind an attempt that the client's own timer has ended.
    fn name_timeout(&self, assessment: &mut Assessment, ended: Instant) {
        if let Some(deadline) = self.operation.deadline().filter(|deadline| *deadline <= ended) {
            assessment.cause = Some(match self.context.limit_at(deadline, self.recorder.started) {
                OutOfTime::Task => Cause::TaskDeadline,
                OutOfTime::Key => Cause::KeyForgotten,
                OutOfTime::Operation | OutOfTime::MaxRetryAfter => Cause::OperationTimeout,
            });
        }
    }

    /// Reports the outcome of the attempt to the mechanisms that protect the origin.
    fn settle(
        &self,
        wire_request: &WireRequest,
        finished: &FinishedAttempt,
        assessment: &Assessment,
        pass: Admitted<'_>,
    ) {
        // An outcome at another origin or inside this process tells nothing about this origin, and
        // neither does a refusal whose repeat is free.
        let is_neutral = finished.result.redirects.is_elsewhere
            || assessment.hint.local
            || self.operation.has_free_repeat(assessment.class, &assessment.hint);
        let of_origin = if is_neutral { None } else { Some(assessment) };
        let max_retry_after = self.context.policy().max_retry_after;
        let changed = self.admission.settle(pass, of_origin, finished.latency, max_retry_after, finished.ended);
        if let Some(state) = changed {
            self.recorder.emit(wire_request, EventKind::BreakerChanged { state });
        }
    }

    fn decide(&mut self, assessment: &Assessment, now: Instant) -> Decision {
        self.operation.set_circuit_open_for(self.admission.circuit_open_for(now));
        // A success has no wait, so it needs no random number.
        let unit = if assessment.class == Class::Success { 0.0 } else { clock::unit() };
        self.operation.decide(assessment.class, &assessment.hint, now, unit)
    }
}

#[cfg(all(test, steadfast_explore))]
mod exploration;
