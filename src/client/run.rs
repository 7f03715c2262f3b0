//! The loop: one operation, from its first attempt to its last word.
//!
//! This is the only loop in the crate that sends anything twice. Read it from the top: breaker, attempt, classify, record, decide, wait.
//! What one attempt does is in `attempt.rs`; whether there is another is the word of [`policy::Operation`](Operation).
//! Everything lives in local variables, so dropping the future at any await leaves nothing behind.

use std::time::{Duration, Instant};

use super::Inner;
use super::answer::{self, Answer, Failed, Read};
use super::attempt;
use super::event::{Event, EventKind};
use super::gate::{Gate, Held};
use super::outgoing::Outgoing;
use super::plan::Plan;
use super::verdict::{Context, Verdict};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::{Attempt, Journal, Story, What};
use crate::policy::{BreakerState, Decision, Failure, Idempotency, Operation, StopReason};
use crate::resume::SafeUrl;

pub(super) async fn run(client: &Inner, plan: &Plan, outgoing: &mut Outgoing, read: Read) -> Result<(Answer, Story)> {
    let upstream = client.upstreams.get(outgoing.template.url());
    let mut context = Context {
        is_done: false,
        may_have_acted: false,
        opaque: client.opaque,
        method: &plan.method,
        idempotency: plan.idempotency,
        tells_deadline: client.deadline_header.is_some(),
        has_key: plan.key.is_some(),
        key_was_given: plan.key_was_given,
        keys: &client.keys,
        policy: &plan.policy,
        classifier: client.classifier.as_ref(),
    };
    let mut so_far = SoFar::start(client, plan, outgoing);
    let mut operation = Operation::start(&plan.policy, &upstream.budget, plan.idempotency, so_far.started);
    operation.set_body_replayable(outgoing.payload.is_replayable());
    if let Some(deadline) = plan.deadline {
        operation.end_by(deadline.instant());
    }
    let gate = Gate::new(client, &upstream, outgoing.asked());

    loop {
        let number = operation.attempts().saturating_add(1);
        let pass = match gate.enter(operation.deadline()).await {
            Ok(pass) => pass,
            Err(held) => return Err(so_far.held_back(outgoing, held)),
        };
        if pass.half_opened() {
            so_far.tell(outgoing, EventKind::BreakerChanged { state: BreakerState::HalfOpen });
        }
        so_far.tell(outgoing, EventKind::AttemptStarted { number });
        let until = clock::earlier(plan.attempt_until(pass.started), operation.deadline());
        operation.begin_attempt();
        let mut attempted = attempt::send(client, outgoing, number, until, read).await;

        context.may_have_acted = outgoing.may_have_acted;
        if outgoing.is_done() {
            // A redirect has named the result: what is left is a GET.
            context.is_done = true;
            operation.set_idempotency(Idempotency::Natural);
            operation.set_body_replayable(true);
        }
        let body = answer::error_body(&mut attempted, |status| context.needs_body(status), until).await;
        let verdict = context.judge(&attempted, &body, so_far.may_have_been_processed);
        let head = answer::head(&attempted);
        operation.set_key_trusted(outgoing.key_is_trusted(plan, head, &client.keys.header, &upstream.trust));

        let ended = clock::now();
        let elapsed = ended.saturating_duration_since(pass.started);
        if let Some(state) = gate.settle(pass, &verdict, plan.policy.hint_cap_in_force(), ended) {
            so_far.tell(outgoing, EventKind::BreakerChanged { state });
        }
        let open_for = gate.circuit_open_for(ended);
        operation.set_circuit_open_for(open_for);
        let decision = operation.decide(verdict.class, &verdict.hint, ended, clock::unit());
        so_far.record(outgoing, number, &verdict, elapsed, decision);
        match decision {
            Decision::Stop(reason) => {
                if reason == StopReason::CircuitOpen {
                    so_far.retry_after = Some(open_for);
                }
                clock::sleep(operation.pause_before_the_end()).await;
                return so_far.end(outgoing, attempted, reason);
            }
            Decision::Retry { after } => {
                answer::discard(attempted, operation.deadline()).await;
                clock::sleep(after.saturating_sub(clock::now().saturating_duration_since(ended))).await;
            }
        }
    }
}

/// The story of the operation so far, and those who are told it.
struct SoFar<'a> {
    client: &'a Inner,
    plan: &'a Plan,
    started: Instant,
    journal: Journal,
    retry_after: Option<Duration>,
    may_have_been_processed: bool,
}

impl<'a> SoFar<'a> {
    fn start(client: &'a Inner, plan: &'a Plan, outgoing: &Outgoing) -> Self {
        let started = clock::now();
        let may_have_been_processed = plan.may_have_been_processed;
        let so_far =
            Self { client, plan, started, journal: Journal::default(), retry_after: None, may_have_been_processed };
        so_far.tell(outgoing, EventKind::OperationStarted { deadline: plan.time_allowed() });
        so_far
    }

    fn tell(&self, outgoing: &Outgoing, kind: EventKind<'_>) {
        let url = SafeUrl(outgoing.asked().url());
        let event = Event { method: &self.plan.method, url, key: self.plan.key.as_ref(), kind };
        event.trace();
        if let Some(on_event) = &self.client.on_event {
            on_event(&event);
        }
    }

    fn record(&mut self, outgoing: &Outgoing, number: u32, verdict: &Verdict, elapsed: Duration, decision: Decision) {
        self.may_have_been_processed |= verdict.may_have_been_processed;
        self.retry_after = verdict.hint.after;
        let wait = match decision {
            Decision::Retry { after } => Some(after),
            Decision::Stop(_) => None,
        };
        let &Verdict { class, default_class, reach, status, failure, .. } = verdict;
        let attempt = Attempt { number, reach, class, default_class, status, failure, elapsed, wait };
        self.tell(outgoing, EventKind::AttemptEnded { attempt: &attempt });
        self.journal.push(attempt);
        if let Some(after) = wait {
            self.tell(outgoing, EventKind::RetryScheduled { number: number.saturating_add(1), after, because: class });
        }
    }

    /// The last word.
    fn end(
        self,
        outgoing: &Outgoing,
        attempted: Result<Answer, Failed>,
        reason: StopReason,
    ) -> Result<(Answer, Story)> {
        let succeeded = matches!(&attempted, Ok(answer) if answer.status().is_success());
        let story = self.into_story(outgoing, reason, succeeded);
        match attempted {
            Ok(answer) => Ok((answer, story)),
            Err(failed) => {
                let what =
                    What { status: failed.head.as_deref().map(|(status, _)| *status), failure: Some(failed.failure) };
                let error = Error::new(kind_of(&failed), what.to_string()).with_source(failed.source);
                Err(error.with_story(story).at(outgoing.asked().method(), SafeUrl(outgoing.asked().url())))
            }
        }
    }

    /// The next attempt, or the first, was not let through.
    fn held_back(mut self, outgoing: &Outgoing, held: Held) -> Error {
        self.retry_after = held.retry_after;
        let story = self.into_story(outgoing, held.reason, false);
        let error = match held.reason {
            StopReason::DeadlineExceeded => Error::new(ErrorKind::Timeout, "no time is left"),
            _ => Error::new(ErrorKind::HeldBack, "held back"),
        };
        let error = error.with_story(story);
        error.at(outgoing.asked().method(), SafeUrl(outgoing.asked().url()))
    }

    fn into_story(self, outgoing: &Outgoing, reason: StopReason, succeeded: bool) -> Story {
        let elapsed = clock::now().saturating_duration_since(self.started);
        let may_have_been_processed = self.may_have_been_processed;
        let attempts = u32::try_from(self.journal.attempts().len()).unwrap_or(u32::MAX);
        self.tell(outgoing, EventKind::OperationEnded { reason, attempts, elapsed, may_have_been_processed });
        // Nothing is left to ask for after a success, and its digest would be paid for on every call.
        let resume = if succeeded { None } else { outgoing.resume_token(self.plan, may_have_been_processed) };
        Story {
            method: self.plan.method.clone(),
            key: self.plan.key.clone(),
            journal: self.journal,
            stop: reason,
            elapsed,
            retry_after: self.retry_after,
            may_have_been_processed,
            resume,
        }
    }
}

fn kind_of(failed: &Failed) -> ErrorKind {
    match failed.failure {
        Failure::Connect => ErrorKind::Connect,
        Failure::Certificate => ErrorKind::Certificate,
        Failure::RequestBody => ErrorKind::RequestBody,
        Failure::Redirects => ErrorKind::Redirect,
        Failure::Rejected => ErrorKind::Build,
        _ if failed.timed_out => ErrorKind::Timeout,
        Failure::BodyCut => ErrorKind::ResponseBody,
        _ => ErrorKind::Transport,
    }
}
