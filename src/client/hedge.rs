//! An attempt with a second one beside it, sent once the first is late; the first final answer counts.
//!
//! Nothing is repeated here that may not be: the policy is asked ([`Operation::hedge`]) before the second goes out, under the licence and
//! at the price of a retry. The one that is dropped has been sent, and nobody will know what came of it: it is evidence, and stands in
//! the journal as such.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::gate::Gate;
use super::operation::OperationContext;
use super::response_body::{AttemptError, AttemptResponse};
use super::wire_request::WireRequest;
use super::{Inner, attempt};
use crate::clock;
use crate::policy::{Class, Hint, Operation};

type Attempted = Result<AttemptResponse, AttemptError>;

/// The terms of one race.
pub(super) struct Race<'a> {
    pub(super) client: &'a Inner,
    pub(super) plan: &'a OperationContext,
    pub(super) gate: &'a Gate<'a>,
    pub(super) number: u32,
    pub(super) until: Option<Instant>,
    /// When the first one is late.
    pub(super) after: Duration,
}

/// What came of an attempt, alone or with another.
pub(super) struct Raced {
    pub(super) attempted: Attempted,
    pub(super) number: u32,
    pub(super) ended: Instant,
    pub(super) elapsed: Duration,
    /// How long the origin took to answer the first one, at least: it may have been dropped. `None` if it failed.
    pub(super) latency: Option<Duration>,
    pub(super) other: Option<Other>,
}

/// The attempt that does not count.
pub(super) struct Other {
    pub(super) number: u32,
    pub(super) elapsed: Duration,
    /// `None` if it was dropped.
    pub(super) attempted: Option<Attempted>,
    pub(super) may_have_acted: bool,
    pub(super) is_done: bool,
}

impl Raced {
    pub(super) fn alone(attempted: Attempted, number: u32, started: Instant) -> Self {
        let ended = clock::now();
        let elapsed = ended.saturating_duration_since(started);
        Self { attempted, number, ended, elapsed, latency: Some(elapsed), other: None }
    }
}

enum Ended {
    First(Attempted),
    Second(Attempted),
}

impl Race<'_> {
    pub(super) async fn run(
        self,
        wire_request: &mut WireRequest,
        operation: &mut Operation<'_>,
        tell: impl Fn(&WireRequest, u32),
    ) -> Raced {
        let Self { client, plan, gate, number, until, after } = self;
        let started = clock::now();
        let Some(mut fork) = wire_request.fork() else {
            return Raced::alone(attempt::send(client, plan, wire_request, number, until).await, number, started);
        };
        // Boxed, so that operations that are not hedged do not carry the room for two.
        let mut first = Box::pin(attempt::send(client, plan, wire_request, number, until));
        let late = clock::until(started.checked_add(after), first.as_mut()).await;
        if let Ok(attempted) = late {
            return Raced::alone(attempted, number, started);
        }
        if !gate.lets_hedge(operation) {
            return Raced::alone(first.await, number, started);
        }
        let hedge = number.saturating_add(1);
        tell(&fork, hedge);
        let hedged = clock::now();
        let (first_counts, attempted, loser) = {
            let mut second = Box::pin(attempt::send(client, plan, &mut fork, hedge, until));
            match both(first.as_mut(), second.as_mut()).await {
                Ended::First(attempted) if is_final(&attempted) => (true, attempted, None),
                Ended::Second(attempted) if is_final(&attempted) => (false, attempted, None),
                // The other may do better; what it comes to is the last word.
                Ended::First(failed) => (false, second.await, Some(failed)),
                Ended::Second(failed) => (true, first.as_mut().await, Some(failed)),
            }
        };
        drop(first);
        let ended = clock::now();
        let elapsed_of = |since: Instant| ended.saturating_duration_since(since);
        let first_failed = !first_counts && loser.is_some();
        let latency = (!first_failed).then(|| elapsed_of(started));
        let (winner, other) =
            if first_counts { ((number, started), (hedge, hedged)) } else { ((hedge, hedged), (number, started)) };
        if !first_counts {
            std::mem::swap(wire_request, &mut fork);
        }
        let other = Other {
            number: other.0,
            elapsed: elapsed_of(other.1),
            attempted: loser,
            may_have_acted: fork.may_have_acted(),
            is_done: fork.is_done(),
        };
        Raced { attempted, number: winner.0, ended, elapsed: elapsed_of(winner.1), latency, other: Some(other) }
    }
}

/// The first of two that ends; the other can be polled further.
async fn both<F: Future<Output = Attempted>, S: Future<Output = Attempted>>(
    mut first: Pin<&mut F>,
    mut second: Pin<&mut S>,
) -> Ended {
    std::future::poll_fn(|cx| {
        if let Poll::Ready(attempted) = first.as_mut().poll(cx) {
            return Poll::Ready(Ended::First(attempted));
        }
        second.as_mut().poll(cx).map(Ended::Second)
    })
    .await
}

/// Whether the other one need not be waited for. A 409 may be about that very one, which runs under the same key.
fn is_final(attempted: &Attempted) -> bool {
    let Ok(answer) = attempted else { return false };
    let class = Class::of_status(answer.status());
    let hint = Hint::read(answer.headers(), class, clock::wall, Duration::ZERO);
    let settled = matches!(class, Class::Success | Class::Permanent) && answer.status() != StatusCode::CONFLICT;
    settled || hint.replayed || hint.retry == Some(false)
}
