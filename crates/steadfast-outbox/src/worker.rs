//! One worker: it carries out one round of an operation that was claimed, and writes down what has
//! become of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use steadfast::adapter::{DurableRequest, Earlier};
use steadfast::{Client, Error, reqwest};
use steadfast_core::{clock, milliseconds};

use crate::change::{Change, Evidence, Outcome};
use crate::clock::Now;
use crate::end::{Answer, End, Failed};
use crate::engine::Engine;
use crate::entry::{Entry, State};
use crate::event::OutboxEventKind;
use crate::gate::Gate;
use crate::lease::Lease;
use crate::question::{Reconciliation, UnknownOperation};
use crate::rules;
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
            State::Running { lease_ends_ms, is_marked, .. } => {
                let claimed_ms = lease_ends_ms.saturating_sub(lease_ms);
                Ok(Self { entry, lease, claimed: clock::now(), claimed_ms, is_marked })
            }
            _ => Err(Box::new(entry)),
        }
    }

    /// Returns the time by the store's clock.
    fn now(&self) -> Now {
        let passed = milliseconds(clock::now().saturating_duration_since(self.claimed));
        Now::certain(self.claimed_ms.saturating_add(passed))
    }
}

/// Carries out a claimed operation until its end, or until it waits. The slot is free afterwards.
pub(crate) async fn carry_out<S: OutboxStore>(engine: Arc<Engine<S>>, claimed: Claimed, slot: Slot) {
    let outcome = match prepared(&engine, &claimed.entry) {
        Ok((client, request)) => round(&engine, &claimed, &client, request).await,
        Err(reason) => {
            let evidence = Evidence::new(claimed.entry.may_have_been_processed, true);
            Some(Outcome::Held { evidence, reason })
        }
    };
    match outcome {
        Some(outcome) => write_down(&engine, &claimed.entry, outcome).await,
        None => engine.tell(&claimed.entry, OutboxEventKind::Fenced),
    }
    drop(slot);
}

/// Returns the client that sends an operation, and its request.
fn prepared<S>(engine: &Engine<S>, entry: &Entry) -> Result<(Client, DurableRequest), String> {
    let client = engine.client_for(entry)?;
    let request =
        rebuilt(entry).ok_or("the stored request cannot be read; look it up at the server, and resolve it")?;
    Ok((client, request))
}

/// Sends the request, with the client's own retries, and finds out what that means. Returns `None`
/// if another worker has the operation.
async fn round<S: OutboxStore>(
    engine: &Arc<Engine<S>>,
    claimed: &Claimed,
    client: &Client,
    request: DurableRequest,
) -> Option<Outcome> {
    let entry = &claimed.entry;
    let gate = Arc::new(Gate::new(engine, (entry.id, entry.fence), claimed.lease, claimed.is_marked));
    let first_sent = entry.first_sent().unwrap_or_else(clock::wall);
    let earlier = Earlier::under_key(entry.request.key(), first_sent, entry.may_have_been_processed);
    let answered = match request.build(client, earlier, gate.clone()).fetch_response().await {
        Ok(response) => answer(engine, response).await,
        Err(error) => Err(error),
    };
    let error = match answered {
        Ok(answer) => return Some(engine.ended(End::Answer(answer))),
        Err(error) => error,
    };
    let facts = Facts {
        may_have_been_processed: error.may_have_been_processed() || entry.may_have_been_processed,
        is_taken_up: !engine.is_own(entry.id),
        is_key_old: rules::is_key_old(entry, claimed.now()),
        stopped: gate.stopped(),
        ..Facts::of(&error, answer_of(engine, &error))
    };
    match judge(facts) {
        Verdict::Lost => None,
        Verdict::Answered(answer) => Some(engine.ended(End::Answer(answer))),
        Verdict::Rejected(failed) => Some(engine.ended(End::Rejected(failed))),
        Verdict::Hold { evidence, reason } => Some(Outcome::Held { evidence, reason }),
        Verdict::TryAgain { after, evidence, error } => {
            let after = after.unwrap_or_default().max(engine.backoff(entry.rounds));
            Some(postponed(engine, after, evidence, error))
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
    const MAYBE: Evidence = Evidence { may_have_been_processed: true, is_unsent: false };
    let unknown = |failed| engine.ended(End::Unknown(failed));
    let Some(reconcile) = &engine.settings.reconcile else { return unknown(failed) };
    let settling =
        if sent_now { engine.settings.settling_time } else { rules::time_to_settle(&claimed.entry, claimed.now()) };
    if !settling.is_zero() {
        return postponed(engine, settling, MAYBE, failed.message);
    }
    let operation = UnknownOperation { entry: claimed.entry.clone(), client: client.clone() };
    match reconcile.ask(operation).await {
        Ok(Reconciliation::Applied(answer)) => engine.ended(End::Answer(answer)),
        Ok(Reconciliation::NotApplied) => Outcome::NotApplied,
        Ok(Reconciliation::Unknown) => unknown(failed),
        // The books may be open again later.
        Err(error) => {
            let error = format!("{}; the reconcile hook failed: {error}", failed.message);
            postponed(engine, engine.backoff(claimed.entry.rounds), MAYBE, error)
        }
    }
}

fn postponed<S>(engine: &Engine<S>, after: Duration, evidence: Evidence, error: String) -> Outcome {
    let settling_ms = milliseconds(engine.settings.settling_time);
    Outcome::Postponed { after_ms: milliseconds(after), settling_ms, evidence, error }
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
    Ok(Answer::new(status, body).with_headers(&headers, &engine.settings.keep_headers))
}

fn answer_of<S>(engine: &Engine<S>, error: &Error) -> Option<Answer> {
    let answer = Answer::new(error.status()?, error.body().unwrap_or_default());
    Some(match error.headers() {
        Some(headers) => answer.with_headers(headers, &engine.settings.keep_headers),
        None => answer,
    })
}
