//! A charge through a client that openapi-generator has made with `supportMiddleware=true`: the
//! generated code stays as it is.
//!
//! The API honours idempotency keys. Nothing in the generated client sends one: with reqwest-retry,
//! a charge whose response is lost is made twice.

use std::process::ExitCode;
use std::time::Duration;

use charges_client::apis::Error;
use charges_client::apis::charges_api::{create_charge, read_charge};
use charges_client::apis::configuration::Configuration;
use charges_client::models::NewCharge;
use interop_common::{Fault, Seen, Table, fast_retries, open, told_by};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_retry::RetryTransientMiddleware;
use reqwest_retry::policies::ExponentialBackoff;
use steadfast::KeyPolicy;
use steadfast_reqwest_middleware::Steadfast;
use steadfast_testing::FaultServer;

/// What a team has today: reqwest-retry, with shorter waits.
fn naive() -> ClientWithMiddleware {
    let waits = ExponentialBackoff::builder().retry_bounds(Duration::from_millis(1), Duration::from_millis(10));
    let retries = RetryTransientMiddleware::new_with_policy(waits.build_with_max_retries(3));
    ClientBuilder::new(reqwest::Client::new()).with(retries).build()
}

/// The line that changes is the last.
fn with_steadfast() -> ClientWithMiddleware {
    let steadfast = steadfast::Client::builder()
        .keys(KeyPolicy::standard()) // our word: this API honours idempotency keys
        .retry(fast_retries())
        .build()
        .expect("valid settings");
    ClientBuilder::new(reqwest::Client::new()).with(Steadfast::new(steadfast)).build()
}

fn told<T, E: std::fmt::Debug + 'static>(result: &Result<T, Error<E>>) -> String {
    told_by(result, |error| steadfast_reqwest_middleware::error(error))
}

async fn charge(api: Configuration) -> String {
    told(&create_charge(&api, NewCharge::new(1200)).await)
}

async fn read(api: Configuration) -> String {
    told(&read_charge(&api, 1).await)
}

/// Runs one operation against a new server.
async fn run(
    fault: Fault,
    client: impl Fn() -> ClientWithMiddleware,
    operation: impl AsyncFn(Configuration) -> String,
) -> Seen {
    let server = open(FaultServer::start(move |turn, _| fault.step(turn)).await, fault).await;
    let api = Configuration { base_path: server.url(""), client: client(), ..Configuration::new() };
    let told = operation(api).await;
    Seen::write(server.executions(), told)
}

#[tokio::main]
async fn main() -> ExitCode {
    let heading = "a client of openapi-generator 7.26.0, and an API that honours keys";
    let mut table = Table::new("generated", heading, "reqwest-retry 0.9.1");

    for (situation, fault) in [
        ("charge: made, then the connection closes", Fault::Closed),
        ("charge: made, then the connection is reset", Fault::Reset),
        ("charge: made, then half a response", Fault::HalfHead),
        ("charge: made, then 502", Fault::Late(502)),
    ] {
        table.row(
            situation,
            (run(fault, naive, charge).await, "twice, ok"),
            (run(fault, with_steadfast, charge).await, "once, ok"),
        );
    }
    for (situation, fault) in
        [("charge: 429, too many requests", Fault::Refused(429)), ("charge: 503, and not made", Fault::Refused(503))]
    {
        table.row(
            situation,
            (run(fault, naive, charge).await, "once, ok"),
            (run(fault, with_steadfast, charge).await, "once, ok"),
        );
    }
    table.row(
        "charge: connection refused",
        (run(Fault::NoConnection, naive, charge).await, "never, error"),
        // The client below may have followed a redirect, so less is known than of our own.
        (run(Fault::NoConnection, with_steadfast, charge).await, "never, error: may have run"),
    );
    table.row(
        "read: the connection closes",
        (run(Fault::Closed, naive, read).await.as_read(), "read, ok"),
        (run(Fault::Closed, with_steadfast, read).await.as_read(), "read, ok"),
    );
    table.finish()
}
