//! Many operations over a wire that keeps breaking, with every execution counted.
//!
//! Nothing is executed twice, no unexecuted operation is reported as a success, and no executed
//! operation is reported as not processed. A short run is part of every test run. The long one is
//! `cargo test -p steadfast-tests --test it --release -- --ignored --nocapture soak`. The soak of
//! the stores is in `server::lockstep`.

mod hedging;

use std::collections::HashMap;

use serde_json::{Value, json};
use steadfast::policy::RetryBudget;
use steadfast::{Client, ClientBuilder, KeyPolicy};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, StreamError, fast_retries};

const SHORT: usize = 2_000;
const LONG: usize = 100_000;
const IN_FLIGHT: usize = 64;
const SEED: u64 = 1;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Http1,
    Http2,
}

/// Starts a server where three tenths of the requests meet a fault.
async fn breaking(protocol: Protocol, honours_keys: bool) -> FaultServer {
    let statuses = [
        (0.03, FaultStep::execute(500)),
        (0.03, FaultStep::execute(504)),
        (0.03, FaultStep::answer(503)),
        (0.03, FaultStep::answer(Answer::new(429).retry_after(0))),
    ];
    let http1 = [
        (0.02, FaultStep::close(FaultPoint::OnAccept)),
        (0.01, FaultStep::reset(FaultPoint::OnAccept)),
        (0.03, FaultStep::reset(FaultPoint::BeforeExecuting)),
        (0.03, FaultStep::close(FaultPoint::AfterExecuting)),
        (0.03, FaultStep::reset(FaultPoint::AfterExecuting)),
        (0.02, FaultStep::close(FaultPoint::MidBody)),
        (0.02, FaultStep::close(FaultPoint::MidHead)),
        (0.02, FaultStep::garbage()),
    ];
    // A lost connection ends all its streams.
    let http2 = [
        (0.03, FaultStep::refuse_stream()),
        (0.03, FaultStep::reset_stream(StreamError::Internal, FaultPoint::AfterExecuting)),
        (0.03, FaultStep::reset_stream(StreamError::Cancel, FaultPoint::AfterExecuting)),
        (0.03, FaultStep::reset_stream(StreamError::Internal, FaultPoint::MidBody)),
        (0.000_3, FaultStep::go_away(FaultPoint::BeforeExecuting)),
        (0.000_3, FaultStep::go_away(FaultPoint::AfterExecuting)),
        (0.000_3, FaultStep::reset(FaultPoint::AfterExecuting)),
        (0.000_1, FaultStep::close(FaultPoint::OnAccept)),
    ];
    let faults = if protocol == Protocol::Http1 { http1 } else { http2 };
    let server = FaultServer::random(SEED, statuses.into_iter().chain(faults)).await;
    if honours_keys { server } else { server.ignoring_keys() }
}

/// The result of one operation.
struct Outcome {
    number: usize,
    /// `None`: it succeeded. Otherwise, whether its error says that it may have been processed.
    failed: Option<bool>,
}

async fn operate(client: &Client, operations: usize) -> Vec<Outcome> {
    let mut running = tokio::task::JoinSet::new();
    let mut outcomes = Vec::with_capacity(operations);
    for number in 0..operations {
        if running.len() == IN_FLIGHT {
            outcomes.push(running.join_next().await.expect("some are running").expect("none panics"));
        }
        let client = client.clone();
        running.spawn(async move {
            let outcome = client.post_json::<Value>("/charges", &json!({ "n": number })).await;
            Outcome { number, failed: outcome.err().map(|error| error.may_have_been_processed()) }
        });
    }
    outcomes.extend(running.join_all().await);
    outcomes
}

/// Asserts the promise against the server's own count, and returns the share of successes.
fn check(name: &str, outcomes: &[Outcome], executions: &HashMap<Vec<u8>, usize>) -> f64 {
    let count = |number: usize| executions.get(format!("{{\"n\":{number}}}").as_bytes()).copied().unwrap_or(0);
    let twice = outcomes.iter().filter(|outcome| count(outcome.number) > 1).count();
    let lies = outcomes.iter().filter(|outcome| outcome.failed.is_none() && count(outcome.number) == 0).count();
    let denials = outcomes.iter().filter(|outcome| outcome.failed == Some(false) && count(outcome.number) > 0).count();
    let unsure = outcomes.iter().filter(|outcome| outcome.failed == Some(true)).count();
    let succeeded = outcomes.iter().filter(|outcome| outcome.failed.is_none()).count();
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let share = succeeded as f64 / outcomes.len() as f64;
    println!(
        "{name}: {} operations, {:.2} % succeeded, {unsure} unsure, {twice} executed twice, {lies} said done and not executed, \
         {denials} executed and said not processed",
        outcomes.len(),
        share * 100.0
    );
    assert_eq!((twice, lies, denials), (0, 0, 0), "{name}");
    share
}

/// With 30 % of faults and four attempts, 0.8 % of operations fail. Among few operations chance can
/// exceed that.
fn leeway(operations: usize) -> f64 {
    if operations < LONG { 0.01 } else { 0.0 }
}

async fn soak(protocol: Protocol, operations: usize) {
    let cases = [
        ("keys honoured, no budget", true, Some(KeyPolicy::standard()), RetryBudget::unlimited(), 0.99),
        ("keys honoured, standard budget", true, Some(KeyPolicy::standard()), RetryBudget::standard(), 0.0),
        ("keys ignored, no keys sent", false, Some(KeyPolicy::off()), RetryBudget::unlimited(), 0.0),
        ("keys ignored, default client", false, None, RetryBudget::unlimited(), 0.0),
    ];
    for (name, honours, keys, budget, least) in cases {
        let name = format!("{protocol:?}, {name}");
        let server = breaking(protocol, honours).await;
        let client = Client::builder().base_url(server.url("")).retry(fast_retries().max_attempts(4)).budget(budget);
        let client = match protocol {
            Protocol::Http1 => client,
            Protocol::Http2 => client.http(|http| http.http2_prior_knowledge()),
        };
        let client = keys.into_iter().fold(client, ClientBuilder::keys).build().unwrap();
        let outcomes = operate(&client, operations).await;
        println!("{}", server.report());
        assert!(check(&name, &outcomes, &server.executions_by_body()) >= least - leeway(operations), "{name}");
    }
}

#[tokio::test]
async fn breaking_http1_wire_doubles_nothing() {
    soak(Protocol::Http1, SHORT).await;
}

#[tokio::test]
async fn breaking_http2_wire_doubles_nothing() {
    soak(Protocol::Http2, SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "100,000 operations a case"]
async fn soak_http1() {
    soak(Protocol::Http1, LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "100,000 operations a case"]
async fn soak_http2() {
    soak(Protocol::Http2, LONG).await;
}
