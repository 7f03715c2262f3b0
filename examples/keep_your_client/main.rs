//! 3,000 POSTs through a `ClientWithMiddleware` over connections that break: with reqwest-retry,
//! and with one changed line.
//!
//! ```text
//! cargo run --example keep_your_client
//! ```
//!
//! Three tenths of the requests meet a fault. The server counts what it executes. Two servers play
//! the same faults: one honours idempotency keys, and one ignores them.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use reqwest::redirect::Policy;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_retry::RetryTransientMiddleware;
use reqwest_retry::policies::ExponentialBackoff;
use steadfast::policy::{Backoff, RetryBudget, RetryPolicy};
use steadfast::{Client, KeyPolicy, ResponseExt};
use steadfast_reqwest_middleware::{Steadfast, error};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep};
use tokio::task::JoinSet;

const POSTS: usize = 3_000;
const IN_FLIGHT: usize = 64;
const SEED: u64 = 1;
const ATTEMPTS: u32 = 4;
const WAIT: Duration = Duration::from_millis(1);

const LEGEND: &str = "\
reqwest-retry tells nothing about a POST that has failed, so its caller must take it for one that may
have been processed.";

/// The client as it was.
fn before() -> ClientWithMiddleware {
    let backoff = ExponentialBackoff::builder().retry_bounds(WAIT, WAIT);
    let retries = RetryTransientMiddleware::new_with_policy(backoff.build_with_max_retries(ATTEMPTS - 1));
    ClientBuilder::new(reqwest::Client::new()).with(retries).build()
}

/// The client with one changed line.
fn after(steadfast: Client) -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with(Steadfast::new(steadfast)).build()
}

/// The same, where you can say what is below.
fn exact(steadfast: Client) -> reqwest::Result<ClientWithMiddleware> {
    let plain = reqwest::Client::builder().redirect(Policy::none()).build()?;
    Ok(ClientBuilder::new(plain).with(Steadfast::new(steadfast).innermost().assume_no_redirects()).build())
}

/// As many attempts and the same waits as before. Three tenths of faults would exhaust a budget,
/// and the comparison is not about that.
fn steadfast(honours_keys: bool) -> steadfast::Result<Client> {
    let keys = KeyPolicy::standard();
    Client::builder()
        .retry(RetryPolicy::new().max_attempts(ATTEMPTS).backoff(Backoff::fixed(WAIT)))
        .budget(RetryBudget::unlimited())
        .keys(if honours_keys { keys } else { keys.negotiated() }) // the second is the default
        .build()
}

/// Starts a server where three tenths of the requests meet a fault.
async fn breaking(honours_keys: bool) -> FaultServer {
    let faults = [
        (0.04, FaultStep::execute(500)),
        (0.04, FaultStep::answer(503)),
        (0.03, FaultStep::answer(Answer::new(429).retry_after(0))),
        (0.03, FaultStep::close(FaultPoint::OnAccept)),
        (0.04, FaultStep::reset(FaultPoint::BeforeExecuting)),
        (0.06, FaultStep::close(FaultPoint::AfterExecuting)),
        (0.04, FaultStep::reset(FaultPoint::AfterExecuting)),
        (0.02, FaultStep::close(FaultPoint::MidHead)),
    ];
    let server = FaultServer::random(SEED, faults).await;
    if honours_keys { server } else { server.ignoring_keys() }
}

/// What the caller of a POST was told.
#[derive(Clone, Copy, PartialEq)]
enum Told {
    Done,
    NotDone,
    /// It may have been processed.
    Unsure,
}

async fn post(client: ClientWithMiddleware, url: String, number: usize) -> (usize, Told) {
    let unsure = |may_have_been_processed| if may_have_been_processed { Told::Unsure } else { Told::NotDone };
    let told = match client.post(url).body(number.to_string()).send().await {
        Ok(response) if response.status().is_success() => Told::Done,
        // reqwest-retry leaves no report: its caller does not know.
        Ok(response) => unsure(response.attempts().is_empty() || response.may_have_been_processed()),
        Err(failed) => unsure(error(&failed).is_none_or(steadfast::Error::may_have_been_processed)),
    };
    (number, told)
}

/// What the callers were told, and what the server did.
#[derive(Default)]
struct Counts {
    once: usize,
    twice: usize,
    never: usize,
    done: usize,
    unsure: usize,
    /// Told a falsehood: done and not executed, or not done and executed.
    lies: usize,
    requests: usize,
}

impl Counts {
    fn add(&mut self, told: Told, executions: usize) {
        match executions {
            0 => self.never += 1,
            1 => self.once += 1,
            _ => self.twice += 1,
        }
        match told {
            Told::Done => self.done += 1,
            Told::Unsure => self.unsure += 1,
            Told::NotDone => {}
        }
        self.lies += usize::from((told == Told::Done) != (executions > 0) && told != Told::Unsure);
    }
}

async fn post_all(client: ClientWithMiddleware, honours_keys: bool) -> Result<Counts, tokio::task::JoinError> {
    let server = breaking(honours_keys).await;
    let mut running = JoinSet::new();
    let mut ended = Vec::with_capacity(POSTS);
    for number in 0..POSTS {
        if running.len() == IN_FLIGHT
            && let Some(first) = running.join_next().await
        {
            ended.push(first?);
        }
        running.spawn(post(client.clone(), server.url("/charges"), number));
    }
    while let Some(next) = running.join_next().await {
        ended.push(next?);
    }
    let executions: HashMap<Vec<u8>, usize> = server.executions_by_body();
    let mut counts = Counts { requests: server.received().len(), ..Counts::default() };
    for (number, told) in ended {
        counts.add(told, executions.get(number.to_string().as_bytes()).copied().unwrap_or(0));
    }
    Ok(counts)
}

fn print(title: &str, columns: &[Counts; 3]) {
    let mut table = Table::new();
    let header = [title, "reqwest-retry", "one changed line", "innermost, no redirects"];
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    let mut row = |name: &str, cell: &dyn Fn(&Counts) -> usize| {
        let cells = columns.iter().map(|counts| cell(counts).to_string());
        table.add_row(std::iter::once(name.to_owned()).chain(cells));
    };
    row("executed once", &|counts| counts.once);
    row("executed twice or more", &|counts| counts.twice);
    row("never executed", &|counts| counts.never);
    row("told: done", &|counts| counts.done);
    row("told: may have been processed", &|counts| counts.unsure);
    row("told a falsehood", &|counts| counts.lies);
    row("requests received", &|counts| counts.requests);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut naive_twice = Vec::new();
    let mut faults = 0;
    for honours_keys in [true, false] {
        let columns = [
            post_all(before(), honours_keys).await?,
            post_all(after(steadfast(honours_keys)?), honours_keys).await?,
            post_all(exact(steadfast(honours_keys)?)?, honours_keys).await?,
        ];
        let title = if honours_keys { "the API honours keys" } else { "the API ignores keys" };
        print(title, &columns);
        let [naive, ours @ ..] = &columns;
        naive_twice.push(naive.twice.to_string());
        faults += ours.iter().map(|counts| counts.twice + counts.lies).sum::<usize>();
    }
    println!("{LEGEND}");
    println!("posts={POSTS} naive_twice={} twice_or_false={faults}", naive_twice.join(","));
    Ok(if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
