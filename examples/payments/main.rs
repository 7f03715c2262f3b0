//! Makes some hundreds of charges over a faulty network. Was anybody charged twice, or not at all?
//!
//! ```text
//! cargo run --example payments
//! cargo run --example payments -- --fault-share 0.6 --seed 42
//! cargo run --example payments -- --ignore-keys
//! ```
//!
//! The policy, from `first_pass` and `second_pass`:
//!
//! | | attempts a charge | charges in flight | retry budget |
//! | --- | --- | --- | --- |
//! | first pass | 4, of 300 ms each | 16 | `standard()`: 500 tokens, a retry costs 14 |
//! | second pass, by the tokens of the errors | 20, of 300 ms each | 8 | `standard().capacity(5000)` |
//!
//! If the first pass gives up on a charge, the second resumes it under its own key, so it is found
//! or carried out once. With `--ignore-keys` the server ignores keys, and the client declares
//! nothing about them. In neither pass does it retry a request that the server may have acted on,
//! and it reports the number of charges to look up. The last column shows a plain client with a
//! naive retry loop, with the same faults.
//!
//! The last line is for scripts: `once` and `twice` are the server's counts, `unsure` is the
//! client's. Unless `twice` is 0, the exit code is 1.
//!
//! `server.rs` is the faulty network, `bank.rs` the books behind it, `naive.rs` the other client,
//! `report.rs` the table.

mod bank;
mod clock;
mod naive;
mod report;
mod server;

use std::error::Error;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use futures_util::{StreamExt as _, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use steadfast::policy::{Backoff, RetryBudget, RetryPolicy};
use steadfast::{Client, KeyPolicy, RequestBuilder};

use crate::report::{Column, Report};
use crate::server::{Sabotage, Server};

/// Short, because the server is in the same process: a longer attempt has been stalled on purpose.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(300);
const BASE_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_millis(200);

/// The settings of one pass over the charges.
struct Pass {
    attempts: u32,
    in_flight: usize,
    budget: RetryBudget,
    budget_name: &'static str,
}

/// Returns the settings for a caller that waits: few attempts, and the standard budget, which
/// spares a server in trouble. Charges that it gives up on are not lost.
fn first_pass() -> Pass {
    Pass { attempts: 4, in_flight: 16, budget: RetryBudget::standard(), budget_name: "standard" }
}

/// Returns the settings for a background job, which can be patient. Few charges in flight limit the
/// load by themselves. The larger bucket still ends the pass soon if the server never recovers.
fn second_pass() -> Pass {
    let budget = RetryBudget::standard().capacity(5000);
    Pass { attempts: 20, in_flight: 8, budget, budget_name: "standard, with a larger bucket" }
}

impl Pass {
    fn client(&self, url: &str, server_honours_keys: bool) -> steadfast::Result<Client> {
        let backoff = Backoff::exponential(BASE_WAIT, LONGEST_WAIT).throttle_base(BASE_WAIT * 5);
        let builder = Client::builder()
            .base_url(url)
            .retry(RetryPolicy::new().max_attempts(self.attempts).backoff(backoff))
            .budget(self.budget)
            .attempt_timeout(ATTEMPT_TIMEOUT)
            // The server is on loopback, where a proxy from the environment cannot reach it.
            .http(steadfast::reqwest::ClientBuilder::no_proxy);
        if server_honours_keys {
            // Declares that this API honours idempotency keys: `bank.rs` acts once per key and then
            // replays the response. This is the licence to retry a charge whose response was lost.
            builder.keys(KeyPolicy::standard()).build()
        } else {
            // No declaration: the client sends keys, and relies on them only after the server has
            // shown that it honours them.
            builder.build()
        }
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attempts, in_flight, budget, budget_name } = self;
        let tokens = budget.capacity;
        write!(f, "{attempts} attempts a charge, {in_flight} in flight, retry budget: {budget_name} ({tokens} tokens)")
    }
}

/// Charges over a faulty network: none twice, none lost.
#[derive(Parser)]
struct Flags {
    /// Number of charges to make.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    charges: u32,
    /// Share of requests that meet a fault, from 0 to 1.
    #[arg(long, default_value_t = 0.3, value_parser = share)]
    fault_share: f64,
    /// Seed of the faults: the same seed affects the same attempts of the same charges.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Let the server ignore idempotency keys. The client must still not charge twice.
    #[arg(long)]
    ignore_keys: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "expected a number such as 0.3".to_owned())?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("a share must lie between 0 and 1".to_owned()) }
}

/// The request. The server counts by `order`.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Order {
    order: u32,
    amount: u32,
}

impl Order {
    fn all(charges: u32) -> impl Iterator<Item = Self> {
        (1..=charges).map(|order| Self { order, amount: 500 + order % 9_500 })
    }
}

/// The response.
#[derive(Deserialize)]
struct Charge {
    id: String,
}

/// A charge without a reliable response.
struct Unfinished {
    order: Order,
    error: steadfast::Error,
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let flags = Flags::parse();
    print_policy(&flags);
    let steadfast = charge_steadfastly(&flags).await?;
    let naive = charge_naively(&flags).await?;
    let twice = steadfast.tally.twice;
    println!("{}", Report { charges: flags.charges, ignore_keys: flags.ignore_keys, steadfast, naive });
    Ok(if twice == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_policy(flags: &Flags) {
    let (share, seed) = (flags.fault_share * 100.0, flags.seed);
    let (attempt, base, longest) = (ATTEMPT_TIMEOUT.as_millis(), BASE_WAIT.as_millis(), LONGEST_WAIT.as_millis());
    let (client, server) = match flags.ignore_keys {
        false => ("KeyPolicy::standard(), which declares that this API honours them", "honours idempotency keys"),
        true => ("the default, trusted only once the server shows that it honours them", "ignores idempotency keys"),
    };
    println!("first pass:  {}", first_pass());
    println!("second pass: {}", second_pass());
    println!("both:        attempt timeout {attempt} ms, full jitter from {base} ms up to {longest} ms");
    println!("keys:        {client}");
    println!("server:      {server}; {share:.0} % of the requests meet a fault (seed {seed})\n");
}

/// Runs both passes with steadfast, against a server of their own.
async fn charge_steadfastly(flags: &Flags) -> Result<Column, Box<dyn Error>> {
    let (server, started) = (server_for(flags).await?, clock::now());
    let outcome = two_passes(flags, server.url()).await?;
    let elapsed = started.elapsed();
    let unsure = outcome.left.iter().filter(|charge| charge.error.may_have_been_processed()).count();
    let not_charged = Some(outcome.left.len() - unsure);
    let tally = server.finish(flags.charges).await?;
    Ok(Column { tally, resumed: Some(outcome.resumed), unsure, not_charged, elapsed, example: outcome.example })
}

struct Outcome {
    /// Number of charges that the second pass resumed.
    resumed: usize,
    /// Charges that are still unfinished after it.
    left: Vec<Unfinished>,
    /// An order that the first pass gave up on, and the text of its error.
    example: Option<(u32, String)>,
}

async fn two_passes(flags: &Flags, url: &str) -> Result<Outcome, Box<dyn Error>> {
    let honours_keys = !flags.ignore_keys;
    let (first, second) = (first_pass(), second_pass());

    let client = first.client(url, honours_keys)?;
    let charges = Order::all(flags.charges).map(|order| fetch(order, charge(&client, order)));
    let unfinished = drive(charges, first.in_flight, bar("first pass", flags.charges)?).await;
    let example = unfinished.first().map(|Unfinished { order, error }| (order.order, error.to_string()));

    // The key in the token makes a repeat harmless, but only at a server that honours keys. At any
    // other server, repeating an operation that may have been processed is a second charge.
    let may_resume = |charge: &Unfinished| honours_keys || !charge.error.may_have_been_processed();
    let (to_resume, mut left): (Vec<_>, Vec<_>) = unfinished.into_iter().partition(may_resume);
    let resumed = to_resume.len();

    // A new client: this could be another process on another day, with the tokens from a database.
    let client = second.client(url, honours_keys)?;
    let charges = to_resume.into_iter().map(|charge| fetch(charge.order, resume(&client, &charge)));
    left.extend(drive(charges, second.in_flight, bar("second pass", u32::try_from(resumed)?)?).await);
    Ok(Outcome { resumed, left, example })
}

fn charge(client: &Client, order: Order) -> RequestBuilder {
    client.post("/charges").json(&order)
}

/// Returns the same request under the same key. Every request that was sent with a key has a token.
fn resume(client: &Client, unfinished: &Unfinished) -> RequestBuilder {
    let request = charge(client, unfinished.order);
    match unfinished.error.resume_token() {
        Some(token) => request.resume(token.clone()),
        None => request,
    }
}

async fn fetch(order: Order, request: RequestBuilder) -> Result<Charge, Unfinished> {
    request.fetch().await.map_err(|error| Unfinished { order, error })
}

/// Runs the plain client with the same limits, against a server of its own with the same seed.
async fn charge_naively(flags: &Flags) -> Result<Column, Box<dyn Error>> {
    let (server, started) = (server_for(flags).await?, clock::now());
    let Pass { attempts, in_flight, .. } = first_pass();
    let client = naive::Client::new(server.url(), attempts, ATTEMPT_TIMEOUT)?;
    let charges = Order::all(flags.charges).map(|order| client.clone().charge(order));
    let gave_up = drive(charges, in_flight, bar("naive loop", flags.charges)?).await;
    drop(client);
    let (elapsed, unsure) = (started.elapsed(), gave_up.len());
    let tally = server.finish(flags.charges).await?;
    Ok(Column { tally, resumed: None, unsure, not_charged: None, elapsed, example: None })
}

/// Makes the charges, at most `in_flight` at a time. Returns the failures.
async fn drive<E>(
    charges: impl Iterator<Item = impl Future<Output = Result<Charge, E>>>,
    in_flight: usize,
    bar: ProgressBar,
) -> Vec<E> {
    let mut outcomes = std::pin::pin!(stream::iter(charges).buffer_unordered(in_flight));
    let mut failed = Vec::new();
    while let Some(outcome) = outcomes.next().await {
        bar.inc(1);
        match outcome {
            Ok(charge) => bar.set_message(charge.id),
            Err(error) => failed.push(error),
        }
    }
    bar.finish_and_clear();
    failed
}

async fn server_for(flags: &Flags) -> std::io::Result<Server> {
    let sabotage = Sabotage { share: flags.fault_share, seed: flags.seed };
    Server::start(sabotage, !flags.ignore_keys).await
}

/// Shown on stderr, and only on a terminal, so that stdout is the report alone.
fn bar(name: &'static str, charges: u32) -> Result<ProgressBar, Box<dyn Error>> {
    let style = ProgressStyle::with_template("{prefix:>11} [{bar:40}] {pos}/{len} charges, {elapsed} {msg}")?;
    Ok(ProgressBar::new(charges.into()).with_style(style.progress_chars("=> ")).with_prefix(name))
}
