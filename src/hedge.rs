//! Sends a second attempt beside a late first one, and returns the first final result.
//!
//! The policy decides before the second one goes out ([`Operation::hedge`]), under the licence and
//! at the price of a retry. The cancelled attempt was sent, and its end is not known. So it is
//! evidence, and is in the journal.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::admission::Admission;
use super::attempt;
use super::attempt_result::{AttemptProgress, AttemptResult, FinishedAttempt};
use super::event::EventKind;
use super::operation::OperationContext;
use super::recorder::Recorder;
use super::transport::Transport;
use super::wire_request::WireRequest;
use crate::clock;
use crate::policy::{Class, Failure, Hint, Operation};

/// The terms of one hedged attempt.
pub(super) struct Hedge<'a> {
    pub(super) context: &'a OperationContext<'a>,
    pub(super) admission: &'a Admission<'a>,
    pub(super) recorder: &'a Recorder<'a>,
    /// How long after its start the first attempt is late.
    pub(super) late_after: Duration,
}

/// The result of a first attempt that may have had a second one beside it.
pub(super) struct HedgedResult {
    pub(super) winner: FinishedAttempt,
    pub(super) loser: Option<LosingAttempt>,
}

/// The attempt of a hedged pair that does not decide.
pub(super) struct LosingAttempt {
    pub(super) progress: AttemptProgress,
    /// `None` if it was cancelled.
    pub(super) result: Option<AttemptResult>,
    pub(super) elapsed: Duration,
}

impl FinishedAttempt {
    /// An attempt that started at `started` and has ended now.
    pub(super) fn now(result: AttemptResult, number: u32, started: Instant) -> Self {
        let ended = clock::now();
        let elapsed = ended.saturating_duration_since(started);
        Self { number, result, ended, elapsed, latency: Some(elapsed) }
    }
}

/// Sends an attempt, and a second one once that is late. Leaves the winner's evidence in
/// `progress`.
pub(super) async fn run<T: Transport>(
    transport: T,
    hedge: Hedge<'_>,
    wire_request: &mut WireRequest,
    progress: &mut AttemptProgress,
    operation: &mut Operation<'_>,
) -> HedgedResult {
    let Hedge { context, admission, recorder, late_after } = hedge;
    let started = clock::now();
    let (number, limits) = (progress.number, progress.limits);
    let alone = |result| HedgedResult { winner: FinishedAttempt::now(result, number, started), loser: None };
    let Some(mut second_request) = wire_request.fork() else {
        return alone(attempt::send(transport, context, wire_request, progress).await);
    };
    let token = context.token_at_hand();
    // Boxed, so that operations that are not hedged do not carry the room for two.
    let mut first = Box::pin(attempt::send(transport, context, wire_request, progress));
    if let Ok(result) = clock::until(started.checked_add(late_after), first.as_mut()).await {
        return alone(result);
    }
    if !admission.lets_hedge(operation) {
        return alone(first.await);
    }
    let mut second_progress = AttemptProgress::new(number.saturating_add(1), true, second_request.redirect_state());
    second_progress.limits = limits;
    // Both attempts speak for the same principal.
    second_progress.token = token;
    recorder.emit(&second_request, EventKind::HedgeStarted { number: second_progress.number });
    let second_started = clock::now();
    let (first_wins, result, loser) = {
        let mut second = Box::pin(attempt::send(transport, context, &mut second_request, &mut second_progress));
        race(first.as_mut(), second.as_mut()).await
    };
    drop(first);
    let ended = clock::now();
    let first_elapsed = ended.saturating_duration_since(started);
    let second_elapsed = ended.saturating_duration_since(second_started);
    // A cancelled first attempt took at least this long. A failed one has no latency.
    let latency = if first_wins || loser.is_none() { Some(first_elapsed) } else { None };
    let (elapsed, loser_elapsed) =
        if first_wins { (first_elapsed, second_elapsed) } else { (second_elapsed, first_elapsed) };
    if !first_wins {
        std::mem::swap(progress, &mut second_progress);
    }
    HedgedResult {
        winner: FinishedAttempt { number: progress.number, result, ended, elapsed, latency },
        loser: Some(LosingAttempt { progress: second_progress, result: loser, elapsed: loser_elapsed }),
    }
}

/// Waits for the first final result of two attempts. Returns whether it is `first`'s, the result,
/// and that of the other attempt if it has ended too.
async fn race(
    mut first: Pin<&mut impl Future<Output = AttemptResult>>,
    mut second: Pin<&mut impl Future<Output = AttemptResult>>,
) -> (bool, AttemptResult, Option<AttemptResult>) {
    let (is_first, result) = first_to_end(first.as_mut(), second.as_mut()).await;
    if is_final(&result) {
        (is_first, result, None)
    } else if is_first {
        // The other one may do better, so its result decides.
        (false, second.await, Some(result))
    } else {
        (true, first.await, Some(result))
    }
}

/// Waits for the first of two attempts to end, and returns whether it is `first`. The other one can
/// be polled further.
async fn first_to_end<T>(
    mut first: Pin<&mut impl Future<Output = T>>,
    mut second: Pin<&mut impl Future<Output = T>>,
) -> (bool, T) {
    poll_fn(|cx| {
        if let Poll::Ready(result) = first.as_mut().poll(cx) {
            return Poll::Ready((true, result));
        }
        second.as_mut().poll(cx).map(|result| (false, result))
    })
    .await
}

/// Returns whether a result ends the wait for the other attempt. A 409 does not: it may be about
/// that attempt, which runs under the same key. A hook of the user's that failed ends the operation.
fn is_final(result: &AttemptResult) -> bool {
    let response = match &result.outcome {
        Ok(response) => response,
        Err(error) => return error.failure == Failure::AttemptHook,
    };
    let class = Class::read(response.status(), response.headers(), clock::wall);
    let hint = Hint::read(response.headers(), class, clock::wall);
    let is_settled = matches!(class, Class::Success | Class::Permanent) && response.status() != StatusCode::CONFLICT;
    is_settled || hint.replayed || hint.retry == Some(false)
}
