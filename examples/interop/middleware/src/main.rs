//! A charge through a chain of middlewares that signs every request with HMAC, on a server that
//! refuses a nonce that it has seen.
//!
//! A signature is for one attempt: it belongs *below* the retries. Above them, a repeat carries the
//! nonce of the first attempt and is refused, and the caller hears of a refusal for a charge that
//! was made. Below reqwest-retry, the charge is made twice.

mod signature;

use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use interop_common::{Fault, Seen, Table, fast_retries, told_by};
use reqwest::StatusCode;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_retry::RetryTransientMiddleware;
use reqwest_retry::policies::ExponentialBackoff;
use serde_json::json;
use steadfast::KeyPolicy;
use steadfast_reqwest_middleware::Steadfast;
use steadfast_testing::{FaultServer, FaultStep, Received};

use signature::{Sign, Verdict};

fn retries() -> RetryTransientMiddleware<ExponentialBackoff> {
    let waits = ExponentialBackoff::builder().retry_bounds(Duration::from_millis(1), Duration::from_millis(10));
    RetryTransientMiddleware::new_with_policy(waits.build_with_max_retries(3))
}

/// What some teams have today: one signature for all attempts.
fn signed_above() -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with(Sign).with(retries()).build()
}

/// What others have today: a signature for each attempt.
fn signed_below() -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with(retries()).with(Sign).build()
}

/// The line that changes is the last.
fn with_steadfast() -> ClientWithMiddleware {
    let steadfast = steadfast::Client::builder()
        .keys(KeyPolicy::standard()) // our word: this API honours idempotency keys
        .retry(fast_retries())
        .build()
        .expect("valid settings");
    ClientBuilder::new(reqwest::Client::new()).with(Steadfast::new(steadfast)).with(Sign).build()
}

async fn charge(client: ClientWithMiddleware, url: &str) -> String {
    let response = client.post(url).json(&json!({ "amount": 1200 })).send().await;
    match &response {
        Ok(response) if response.status() == StatusCode::UNAUTHORIZED => "refused: 401".to_owned(),
        _ => told_by(&response, |error| steadfast_reqwest_middleware::error(error)),
    }
}

/// Plays the fault if the signature is right and the nonce is new. The nonces are remembered for
/// as long as the server runs.
fn step(fault: Fault, turn: usize, request: &Received, seen: &Mutex<HashSet<String>>) -> FaultStep {
    let Verdict::Valid { nonce } = Verdict::of(request) else { return FaultStep::answer(401) };
    let is_new = seen.lock().unwrap_or_else(PoisonError::into_inner).insert(nonce);
    if is_new { fault.step(turn) } else { FaultStep::answer(401) }
}

async fn run(fault: Fault, client: impl Fn() -> ClientWithMiddleware) -> Seen {
    let seen = Mutex::new(HashSet::new());
    let server = FaultServer::start(move |turn, request| match request {
        Some(request) => step(fault, turn, request, &seen),
        None => fault.step(turn),
    })
    .await;
    let told = charge(client(), &server.url("/charges")).await;
    Seen::write(server.executions(), told)
}

#[tokio::main]
async fn main() -> ExitCode {
    let heading = "reqwest-middleware 0.5.2, and an API that honours keys and refuses repeated nonces";
    let mut table = Table::new("middleware", heading, "reqwest-retry 0.9.1");

    for (situation, fault) in [("closes", Fault::Closed), ("is reset", Fault::Reset)] {
        table.row(
            &format!("made, then the connection {situation}; signed above"),
            (run(fault, signed_above).await, "once, refused: 401"),
            (run(fault, with_steadfast).await, "once, ok"),
        );
        table.row(
            &format!("made, then the connection {situation}; signed below"),
            (run(fault, signed_below).await, "twice, ok"),
            (run(fault, with_steadfast).await, "once, ok"),
        );
    }
    table.row(
        "made, then 502; signed below",
        (run(Fault::Late(502), signed_below).await, "twice, ok"),
        (run(Fault::Late(502), with_steadfast).await, "once, ok"),
    );
    table.row(
        "503, and not made; signed below",
        (run(Fault::Refused(503), signed_below).await, "once, ok"),
        (run(Fault::Refused(503), with_steadfast).await, "once, ok"),
    );
    table.finish()
}
