//! Many operations over a wire that breaks all the time: the promise, counted.
//!
//! Whatever breaks: nothing is executed twice, nothing is said to be done that was not executed, and nothing that was executed is
//! said to be not processed. A short run is part of every test run; the long one is `cargo test --test it --release
//! --all-features -- --ignored --nocapture soak`.

mod hedging;
mod http2;

use std::collections::HashMap;

use serde_json::{Value, json};
use steadfast::policy::RetryBudget;
use steadfast::{Client, ClientBuilder, KeyPolicy};

use crate::support::raw::answer;
use crate::support::{Act, Server, fast};

const SHORT: usize = 2_000;
const LONG: usize = 100_000;
const IN_FLIGHT: usize = 64;
/// Faults per hundred requests.
const FAULTS: u64 = 30;

/// A number from 0 to `below`, the same for the same `turn` in every run (SplitMix64).
pub(super) fn draw(turn: usize, salt: u64, below: u64) -> u64 {
    let mut x = (turn as u64).wrapping_add(salt.wrapping_mul(0x51_7c_c1_b7)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) % below
}

/// An HTTP/1.1 server that breaks `FAULTS` of a hundred requests in one of ten ways.
async fn breaking(honours_keys: bool) -> Server {
    let execute = move |answer| if honours_keys { Act::ExecuteOnce(answer) } else { Act::Execute(answer) };
    Server::start(move |turn, request| match request {
        None if draw(turn, 1, 100) < 5 => Act::CloseOnAccept,
        None if draw(turn, 1, 100) < 8 => Act::ResetOnAccept,
        _ if draw(turn, 2, 100) >= FAULTS => execute(answer(200)),
        _ => match draw(turn, 3, 9) {
            0 => Act::ExecuteThenClose,
            1 => Act::ExecuteThenReset,
            2 => Act::ExecuteThenCutBody,
            3 => Act::ExecuteThenCutHead,
            4 => Act::ExecuteThenGarbage,
            5 => execute(answer(500)),
            6 => execute(answer(504)),
            7 => Act::Answer(answer(503)),
            _ => Act::Answer(answer(429).header("retry-after", "0")),
        },
    })
    .await
}

/// What became of each operation: its error, or none.
struct Outcome {
    number: usize,
    /// `None`: it succeeded. Else whether its error says that it may have been processed.
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

/// Holds the promise against the server's own count; returns the share of successes.
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

/// At 30 % faults and four attempts 0.8 % fail; among few operations chance makes that more.
fn leeway(operations: usize) -> f64 {
    if operations < LONG { 0.01 } else { 0.0 }
}

fn client(base: String) -> ClientBuilder {
    Client::builder().base_url(base).retry(fast().max_attempts(4))
}

async fn http1(operations: usize) {
    let cases = [
        ("HTTP/1.1, keys honoured, no budget", true, Some(KeyPolicy::standard()), RetryBudget::unlimited(), 0.99),
        ("HTTP/1.1, keys honoured, standard budget", true, Some(KeyPolicy::standard()), RetryBudget::standard(), 0.0),
        ("HTTP/1.1, keys ignored, no keys sent", false, Some(KeyPolicy::off()), RetryBudget::unlimited(), 0.0),
        ("HTTP/1.1, keys ignored, default client", false, None, RetryBudget::unlimited(), 0.0),
    ];
    for (name, honours, keys, budget, least) in cases {
        let server = breaking(honours).await;
        let client = client(server.url("")).budget(budget);
        let client = keys.into_iter().fold(client, ClientBuilder::keys).build().unwrap();
        let outcomes = operate(&client, operations).await;
        assert!(check(name, &outcomes, &server.executions_by_body()) >= least - leeway(operations), "{name}");
    }
}

async fn http2(operations: usize) {
    let cases = [
        ("HTTP/2, keys honoured, no budget", true, Some(KeyPolicy::standard()), RetryBudget::unlimited(), 0.99),
        ("HTTP/2, keys honoured, standard budget", true, Some(KeyPolicy::standard()), RetryBudget::standard(), 0.0),
        ("HTTP/2, keys ignored, no keys sent", false, Some(KeyPolicy::off()), RetryBudget::unlimited(), 0.0),
        ("HTTP/2, keys ignored, default client", false, None, RetryBudget::unlimited(), 0.0),
    ];
    for (name, honours, keys, budget, least) in cases {
        let server = http2::Server::start(honours).await;
        let client =
            client(format!("http://{}", server.address)).budget(budget).http(|http| http.http2_prior_knowledge());
        let client = keys.into_iter().fold(client, ClientBuilder::keys).build().unwrap();
        let outcomes = operate(&client, operations).await;
        assert!(check(name, &outcomes, &server.executions_by_body()) >= least - leeway(operations), "{name}");
    }
}

#[tokio::test]
async fn nothing_is_doubled_over_a_breaking_wire() {
    http1(SHORT).await;
}

#[tokio::test]
async fn nothing_is_doubled_over_breaking_streams() {
    http2(SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "100,000 operations a case"]
async fn soak_http1() {
    http1(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "100,000 operations a case"]
async fn soak_http2() {
    http2(LONG).await;
}
