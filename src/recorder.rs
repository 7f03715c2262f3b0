//! Records an operation: its journal, its events, and the report or error that ends it.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use http::StatusCode;
use tracing::level_filters::LevelFilter;

use super::assessment::Assessment;
use super::attempt_result::{AttemptError, AttemptProgress, AttemptResponse, AttemptResult};
use super::event::{EventKind, Exchange};
use super::operation::OperationContext;
use super::redirect::RedirectState;
use super::spans::{self, OperationEnd};
use super::wire_request::WireRequest;
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::{
    Attempt, ConfirmationOutcome, Journal, NotFollowed, OperationReport, OutOfTime, Reach, StatusOrFailure, Withheld,
};
use crate::policy::{Class, Decision, Denied, Failure, StopReason};
use crate::resume::SafeUrl;

/// The record of an operation so far.
pub(super) struct Recorder<'a> {
    context: &'a OperationContext<'a>,
    pub(super) started: Instant,
    journal: Journal,
    pub(super) retry_after: Option<Duration>,
    /// Whose time ran out, if it did.
    pub(super) out_of_time: Option<OutOfTime>,
    pub(super) may_have_been_processed: bool,
    /// An attempt is under way.
    pub(super) is_sending: bool,
    has_ended: bool,
}

impl<'a> Recorder<'a> {
    pub(super) fn start(context: &'a OperationContext<'a>, wire_request: &WireRequest) -> Self {
        let recorder = Self {
            context,
            started: clock::now(),
            journal: Journal::default(),
            retry_after: None,
            out_of_time: None,
            may_have_been_processed: context.may_have_been_processed,
            is_sending: false,
            has_ended: false,
        };
        recorder.emit(wire_request, EventKind::OperationStarted { deadline: context.time_allowed() });
        recorder
    }

    /// Sends an event to `tracing` and to the user's closure, inside the operation's span.
    pub(super) fn emit(&self, wire_request: &WireRequest, kind: EventKind<'_>) {
        // Most clients have no listener, and an event is many fields.
        if self.context.client.on_event.is_none() && LevelFilter::current() == LevelFilter::OFF {
            return;
        }
        self.inside_span(|| {
            let event = self.context.event(wire_request, &self.journal, kind);
            event.trace();
            if let Some(on_event) = &self.context.client.on_event {
                on_event(&event);
            }
        });
    }

    fn inside_span(&self, work: impl FnOnce()) {
        match self.context.span() {
            Some(span) => span.enter(work),
            None => work(),
        }
    }

    /// Reports that the operation is dropped, unless it has ended. `decided`: the attempts that were
    /// decided on. `progress`: the evidence of the last one.
    pub(super) fn dropped(&self, wire_request: &WireRequest, decided: u32, progress: &AttemptProgress) {
        if self.has_ended {
            return;
        }
        let attempts = decided.saturating_add(u32::from(self.is_sending));
        let cut_may = self.is_sending && Assessment::of_cancelled(progress).may_have_been_processed;
        let may_have_been_processed = self.may_have_been_processed || cut_may;
        let token = self.context.resume_token(wire_request, may_have_been_processed);
        let elapsed = clock::now().saturating_duration_since(self.started);
        if self.is_sending && progress.reach == Reach::Sent {
            let exchange =
                Exchange::cancelled(wire_request.current(progress).request, self.since_last_attempt(elapsed));
            self.tell_from_drop(wire_request, EventKind::ExchangeEnded { exchange });
        }
        let resume_token = token.as_deref();
        let kind = EventKind::OperationDropped { attempts, elapsed, may_have_been_processed, resume_token };
        self.tell_from_drop(wire_request, kind);
        if let Some(span) = self.context.span() {
            // The caller no longer wants the result, which is no error.
            span.end(&OperationEnd { outcome: "cancelled", attempts, may_have_been_processed, error_type: None });
        }
    }

    /// Returns how much of `elapsed` has passed since the last attempt and the wait after it.
    fn since_last_attempt(&self, elapsed: Duration) -> Duration {
        let before = |attempt: &Attempt| attempt.elapsed.saturating_add(attempt.wait.unwrap_or_default());
        elapsed.saturating_sub(self.journal.attempts().iter().map(before).sum())
    }

    fn tell_from_drop(&self, wire_request: &WireRequest, kind: EventKind<'_>) {
        self.inside_span(|| {
            let event = self.context.event(wire_request, &self.journal, kind);
            event.trace();
            if let Some(on_event) = &self.context.client.on_event {
                // A second panic, while a first one drops the operation, would end the process. The
                // hook has printed its own.
                let _panicked = std::panic::catch_unwind(AssertUnwindSafe(|| on_event(&event)));
            }
        });
    }

    /// Records an attempt, and the retry that follows it if it has a wait.
    pub(super) fn record(&mut self, wire_request: &WireRequest, attempt: Attempt, assessment: &Assessment) {
        self.may_have_been_processed |= assessment.may_have_been_processed;
        self.is_sending = false;
        self.retry_after = assessment.hint.after;
        self.emit(wire_request, EventKind::AttemptEnded { attempt: &attempt });
        let (because, wait, free) = (attempt.class, attempt.wait, attempt.free_repeat);
        self.journal.push(attempt);
        if let Some(after) = wait {
            let number = self.attempts().saturating_add(1);
            self.emit(wire_request, EventKind::RetryScheduled { number, after, because, free });
        }
    }

    /// Records what the user's read said about the last attempt, and the decision that follows.
    pub(super) fn confirmed(&mut self, wire_request: &WireRequest, outcome: ConfirmationOutcome, decision: Decision) {
        let number = self.attempts();
        self.emit(wire_request, EventKind::Confirmed { number, outcome });
        let wait = match decision {
            Decision::Retry { after } => Some(after),
            Decision::Stop(_) => None,
        };
        if let Some(attempt) = self.journal.last_mut() {
            attempt.confirmation = Some(outcome);
            attempt.wait = wait;
        }
        if let Some(after) = wait {
            let (number, because) = (number.saturating_add(1), Class::Ambiguous);
            self.emit(wire_request, EventKind::RetryScheduled { number, after, because, free: false });
        }
    }

    fn attempts(&self) -> u32 {
        u32::try_from(self.journal.attempts().len()).unwrap_or(u32::MAX)
    }

    /// Ends the operation with the result of its last attempt.
    pub(super) fn end(
        &mut self,
        wire_request: &WireRequest,
        result: AttemptResult,
        reason: StopReason,
        now: Instant,
    ) -> Result<(AttemptResponse, OperationReport)> {
        match result.outcome {
            Ok(response) => {
                let RedirectState { not_followed, is_elsewhere, .. } = result.redirects;
                let reason = match not_followed {
                    Some(NotFollowed::KeyNotTrusted) => StopReason::KeyNotTrusted,
                    _ => reason,
                };
                // A 2xx that is not done is a failure by the user's classifier.
                let succeeded =
                    response.status().is_success() && matches!(reason, StopReason::Done | StopReason::Confirmed);
                let withheld = match response.status() {
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                        self.context.withheld(wire_request, result.redirects)
                    }
                    _ => Withheld::default(),
                };
                let report = self.end_with(wire_request, reason, succeeded, now);
                Ok((response, OperationReport { not_followed, is_elsewhere, withheld, ..report }))
            }
            Err(error) => {
                let report = self.end_with(wire_request, reason, false, now);
                Err(attempt_failed(error, report, wire_request))
            }
        }
    }

    /// Ends the operation because its token was not renewed in time.
    pub(super) fn no_token_in_time(&mut self, wire_request: &WireRequest) -> Error {
        let report = self.end_with(wire_request, StopReason::DeadlineExceeded, false, clock::now());
        with_report(Error::new(ErrorKind::Timeout, "the credentials were not renewed in time"), report, wire_request)
    }

    /// Ends the operation because its next attempt was not admitted.
    pub(super) fn not_admitted(&mut self, wire_request: &WireRequest, held: Denied) -> Error {
        self.retry_after = held.retry_after;
        let report = self.end_with(wire_request, held.reason, false, clock::now());
        let error = match held.reason {
            StopReason::DeadlineExceeded => Error::new(ErrorKind::Timeout, "no time is left"),
            _ => Error::new(ErrorKind::NotAdmitted, "held back"),
        };
        with_report(error, report, wire_request)
    }

    /// Records the end of the operation on its span.
    fn end_span(&self, reason: StopReason) {
        let Some(span) = self.context.span() else { return };
        let last = self.journal.attempts().last();
        let status = last.and_then(Attempt::status);
        let failure = last.and_then(Attempt::failure).map(Failure::label);
        let error = status.as_ref().and_then(spans::status_error).or(failure).unwrap_or(reason.label());
        let is_error = !matches!(reason, StopReason::Done | StopReason::Confirmed);
        span.end(&OperationEnd {
            outcome: reason.label(),
            attempts: self.attempts(),
            may_have_been_processed: self.may_have_been_processed,
            error_type: is_error.then_some(error),
        });
    }

    fn end_with(
        &mut self,
        wire_request: &WireRequest,
        reason: StopReason,
        succeeded: bool,
        now: Instant,
    ) -> OperationReport {
        let elapsed = now.saturating_duration_since(self.started);
        let may_have_been_processed = self.may_have_been_processed;
        let attempts = self.attempts();
        self.has_ended = true;
        self.emit(wire_request, EventKind::OperationEnded { reason, attempts, elapsed, may_have_been_processed });
        self.end_span(reason);
        // A success needs no token. Its digest of the body would cost time on every call.
        let resume = if succeeded { None } else { self.context.resume_token(wire_request, may_have_been_processed) };
        OperationReport {
            method: self.context.method.clone(),
            key: self.context.key.clone(),
            journal: std::mem::take(&mut self.journal),
            stop: reason,
            elapsed,
            retry_after: self.retry_after,
            may_have_been_processed,
            resume,
            not_followed: None,
            is_elsewhere: false,
            out_of_time: self.out_of_time,
            withheld: Withheld::default(),
        }
    }
}

fn attempt_failed(error: AttemptError, report: OperationReport, wire_request: &WireRequest) -> Error {
    let status = error.head.as_deref().map(|(status, _)| *status);
    let cause = report.journal.attempts().last().and_then(|attempt| attempt.cause);
    let kind = error_kind(error.failure, error.timed_out);
    let error = match (error.failure, error.source) {
        // How far the upload got says more than the failure.
        (Failure::UploadTimeout | Failure::UploadTooSlow, Some(line)) => Error::new(kind, line.to_string()),
        (failure, source) => {
            let what = StatusOrFailure { status, failure: Some(failure), cause };
            Error::new(kind, what.to_string()).with_source(source)
        }
    };
    with_report(error, report, wire_request)
}

fn with_report(error: Error, report: OperationReport, wire_request: &WireRequest) -> Error {
    let request = wire_request.original();
    error.with_report(report).at(request.method(), SafeUrl(request.url()))
}

fn error_kind(failure: Failure, timed_out: bool) -> ErrorKind {
    match failure {
        Failure::Connect | Failure::LocalResources | Failure::ProxyLogin => ErrorKind::Connect,
        Failure::Certificate => ErrorKind::Certificate,
        Failure::RequestBody => ErrorKind::RequestBody,
        Failure::Redirects => ErrorKind::Redirect,
        Failure::InvalidRequest => ErrorKind::Build,
        Failure::AttemptHook => ErrorKind::AttemptHook,
        Failure::Credentials if !timed_out => ErrorKind::Credentials,
        _ if timed_out => ErrorKind::Timeout,
        Failure::BodyCut => ErrorKind::ResponseBody,
        _ => ErrorKind::Transport,
    }
}
