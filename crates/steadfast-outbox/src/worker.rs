//! One worker: it carries out one operation that was claimed, round by round, until there is
//! something to write down.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use steadfast::adapter::{DurableRequest, Earlier};
use steadfast::{Client, Error, reqwest};
use steadfast_core::{clock, milliseconds};

use crate::change::{Change, Outcome};
use crate::end::{Answer, End, Failed};
use crate::engine::Engine;
use crate::entry::{Entry, State};
use crate::event::OutboxEventKind;
use crate::gate::Gate;
use crate::lease::Lease;
use crate::question::{Reconciliation, UnknownOperation};
use crate::slots::Slot;
use crate::store::{Applied, OutboxStore};
use crate::verdict::{Facts, Verdict, judge};

/// An operation that a worker has claimed, with the time of the store at the claim.
pub(crate) struct Claimed {
    pub(crate) entry: Entry,
    lease: Lease,
    claimed: Instant,
    claimed_ms: u64,
    is_marked: bool,
}

impl Claimed {
    /// Takes an entry that was claimed under `lease`. Returns the entry if it is not claimed.
    pub(crate) fn new(entry: Entry, lease_ms: u64, lease: Lease) -> Result<Self, Box<Entry>> {
        match entry.state {
            State::Running { lease_ends_ms, is_marked } => {
                let claimed_ms = lease_ends_ms.saturating_sub(lease_ms);
                Ok(Self { entry, lease, claimed: clock::now(), claimed_ms, is_marked })
            }
            _ => Err(Box::new(entry)),
        }
    }

    /// Returns the time by the store's clock.
    fn now_ms(&self) -> u64 {
        self.claimed_ms.saturating_add(milliseconds(clock::now().saturating_duration_since(self.claimed)))
    }

    /// Returns the time after which the server can be asked whether it has acted on what earlier
    /// claims have sent.
    fn time_to_settle(&self) -> Duration {
        Duration::from_millis(self.entry.settles_ms.unwrap_or_default().saturating_sub(self.now_ms()))
    }

    /// Returns whether the API may have forgotten the key.
    fn is_key_old(&self) -> bool {
        let retention = self.entry.request.retention_ms;
        let age = self.entry.first_sent_ms.map(|first| self.now_ms().saturating_sub(first));
        self.entry.request.key.is_some() && age.is_some_and(|age| age >= retention - retention / 20)
    }
}

/// Carries out a claimed operation until its end, or until it waits. The slot is free afterwards.
pub(crate) async fn carry_out<S: OutboxStore>(engine: Arc<Engine<S>>, claimed: Claimed, slot: Slot) {
    let outcome = match engine.client_for(&claimed.entry) {
        Ok(client) => round(&engine, &claimed, &client).await,
        Err(reason) => {
            let may_have_been_processed = claimed.entry.may_have_been_processed;
            Some(Outcome::Held { may_have_been_processed, reason })
        }
    };
    match outcome {
        Some(outcome) => write_down(&engine, &claimed.entry, outcome).await,
        None => engine.tell(&claimed.entry, OutboxEventKind::Fenced),
    }
    drop(slot);
}

/// Sends the request, with the client's own retries, and finds out what that means. Returns `None`
/// if another worker has the operation.
async fn round<S: OutboxStore>(engine: &Arc<Engine<S>>, claimed: &Claimed, client: &Client) -> Option<Outcome> {
    let entry = &claimed.entry;
    let key_of_claim = (entry.id, entry.fence);
    let gate = Arc::new(Gate::new(engine, key_of_claim, claimed.lease, claimed.is_marked));
    let first_sent = entry.first_sent().unwrap_or_else(clock::wall);
    let earlier = Earlier::under_key(entry.request.key(), first_sent, entry.may_have_been_processed);
    let failed = match rebuilt(entry) {
        Some(request) => match request.build(client, earlier, gate.clone()).fetch_response().await {
            Ok(response) => match answer(engine, response).await {
                Ok(answer) => return Some(engine.ended(End::Answer(answer))),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        },
        None => Ok(Failed::new("the stored request cannot be read")),
    };
    let facts = match failed {
        Ok(failed) => Facts { failed: Some(failed), ..Facts::default() },
        Err(error) => Facts::of(&error, answer_of(engine, &error)),
    };
    let may_have_been_processed = facts.may_have_been_processed || entry.may_have_been_processed;
    let facts = Facts {
        may_have_been_processed,
        is_taken_up: !engine.is_own(entry.id),
        is_key_old: claimed.is_key_old(),
        stopped: gate.stopped(),
        ..facts
    };
    match judge(facts) {
        Verdict::Lost => None,
        Verdict::Answered(answer) => Some(engine.ended(End::Answer(answer))),
        Verdict::Rejected(failed) => Some(engine.ended(End::Rejected(failed))),
        Verdict::Hold { may_have_been_processed, reason } => Some(Outcome::Held { may_have_been_processed, reason }),
        Verdict::TryAgain { after, may_have_been_processed, error } => {
            let after = after.unwrap_or_default().max(engine.backoff(entry.rounds));
            Some(postponed(engine, after, may_have_been_processed, error))
        }
        Verdict::Ask(failed) => Some(ask(engine, claimed, client, (failed, gate.has_marked())).await),
    }
}

/// Asks the user whether the server has acted, once that has settled. `sent_now`: an attempt was made
/// in this round.
async fn ask<S: OutboxStore>(
    engine: &Engine<S>,
    claimed: &Claimed,
    client: &Client,
    (failed, sent_now): (Failed, bool),
) -> Outcome {
    let unknown = |failed| engine.ended(End::Unknown(failed));
    let Some(reconcile) = &engine.reconcile else { return unknown(failed) };
    let settling = if sent_now { engine.settling_time } else { claimed.time_to_settle() };
    if !settling.is_zero() {
        return postponed(engine, settling, true, failed.message);
    }
    let operation = UnknownOperation { entry: claimed.entry.clone(), client: client.clone() };
    match reconcile.ask(operation).await {
        Ok(Reconciliation::Applied(answer)) => engine.ended(End::Answer(answer)),
        Ok(Reconciliation::NotApplied) => Outcome::NotApplied,
        Ok(Reconciliation::Unknown) => unknown(failed),
        // The books may be open again later.
        Err(error) => {
            let error = format!("{}; the reconcile hook failed: {error}", failed.message);
            postponed(engine, engine.backoff(claimed.entry.rounds), true, error)
        }
    }
}

fn postponed<S: OutboxStore>(
    engine: &Engine<S>,
    after: Duration,
    may_have_been_processed: bool,
    error: String,
) -> Outcome {
    let (after_ms, settling_ms) = (milliseconds(after), milliseconds(engine.settling_time));
    Outcome::Postponed { after_ms, settling_ms, may_have_been_processed, error }
}

/// Writes down what has become of a claimed operation, as soon as the store lets it.
async fn write_down<S: OutboxStore>(engine: &Arc<Engine<S>>, entry: &Entry, outcome: Outcome) {
    let change = Change::Settle { fence: entry.fence, outcome };
    let mut pauses = 0;
    loop {
        match engine.store.apply(entry.id, change.clone()).await {
            Ok(Applied::Done(entry)) => return engine.settled(&entry, &change),
            Ok(Applied::Refused(_)) => return engine.tell(entry, OutboxEventKind::Fenced),
            Err(error) => {
                // What is known is lost if this is given up, so it goes on until the process ends.
                engine.counters.store_errors.fetch_add(1, Ordering::Relaxed);
                tracing::error!(target: "steadfast", operation = %entry.id, %error, "an operation's state cannot be written yet");
                clock::sleep(engine.backoff(pauses)).await;
                pauses += 1;
            }
        }
    }
}

fn rebuilt(entry: &Entry) -> Option<DurableRequest> {
    let request = &entry.request;
    Some(DurableRequest {
        method: request.method.parse().ok()?,
        url: request.url()?,
        headers: request.headers(),
        body: request.body(),
        key: request.key(),
        retention: request.retention(),
        idempotent: request.idempotent,
    })
}

async fn answer<S>(engine: &Engine<S>, response: reqwest::Response) -> Result<Answer, Error> {
    let (status, headers) = (response.status(), response.headers().clone());
    // It was read inside the attempt.
    let body = response.bytes().await.map_err(Error::from)?;
    Ok(Answer::new(status, body).with_headers(&headers, &engine.keep_headers))
}

fn answer_of<S>(engine: &Engine<S>, error: &Error) -> Option<Answer> {
    let answer = Answer::new(error.status()?, error.body().unwrap_or_default());
    Some(match error.headers() {
        Some(headers) => answer.with_headers(headers, &engine.keep_headers),
        None => answer,
    })
}
