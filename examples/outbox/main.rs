//! A thousand charges through an outbox whose process is killed again and again.
//!
//! ```text
//! cargo run --example outbox                     a bank that honours idempotency keys
//! cargo run --example outbox -- --ignores-keys   one that ignores them, but can be asked
//! ./scripts/with_servers.sh cargo run --example outbox -- --postgres   operations in a database
//! ```
//!
//! The bank runs in this process, and loses a part of its answers. The charges are made by a second
//! process, which is killed (SIGKILL) at random moments and started again, until all have ended. The
//! bank counts.

mod bank;
mod place;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use futures_util::StreamExt as _;
use futures_util::stream;
use indicatif::{ProgressBar, ProgressStyle};
use steadfast::http::StatusCode;
use steadfast::{Client, KeyPolicy};
use steadfast_outbox::{Answer, DurableExt, End, Outbox, OutboxStore, Reconciliation, RedbOutbox};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use crate::bank::Bank;
use crate::place::Place;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Submits charges through an outbox whose process is killed at random.
#[derive(Parser)]
struct Arguments {
    /// Number of charges
    #[arg(long, default_value_t = 1000)]
    charges: usize,
    /// Seed of the faults and of the kills
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The bank ignores idempotency keys. A hook asks its books instead
    #[arg(long)]
    ignores_keys: bool,
    /// Keep the operations in PostgreSQL, not in a file
    #[arg(long)]
    postgres: bool,
    /// The database; the example creates a schema in it, and drops it at the end
    #[arg(long, env = "STEADFAST_POSTGRES_URL")]
    database: Option<String>,
    /// Makes the charges: the file of the outbox or its schema, and the address of the bank
    #[arg(long, hide = true, num_args = 2)]
    work: Option<Vec<String>>,
}

#[tokio::main]
async fn main() -> Result<ExitCode, Error> {
    let arguments = Arguments::parse();
    match &arguments.work {
        Some(work) => match arguments.database.as_deref().filter(|_| arguments.postgres) {
            Some(database) => make_charges(place::postgres(database, &work[0])?, &work[1], &arguments).await,
            None => make_charges(RedbOutbox::open(&work[0])?, &work[1], &arguments).await,
        },
        None => watch(&arguments).await,
    }
}

/// The second process: submits every charge, and waits for every end.
async fn make_charges(store: impl OutboxStore, bank: &str, arguments: &Arguments) -> Result<ExitCode, Error> {
    let client = Client::builder().base_url(bank).attempt_timeout(Duration::from_millis(300));
    let client = if arguments.ignores_keys { client } else { client.keys(KeyPolicy::standard()) };
    let client = client.build()?;
    // These times suit a bank on this machine. The defaults suit one on the internet.
    let outbox = Outbox::open(store, client.clone())
        .lease(Duration::from_millis(600))
        .settling_time(Duration::from_millis(100))
        .backoff(Duration::from_millis(10), Duration::from_millis(200))
        .poll_interval(Duration::from_millis(100))
        .reconcile(|unknown| async move {
            let name = unknown.entry.name.unwrap_or_default();
            let found = unknown.client.get("/books").query(&[("charge", name)]).fetch_text().await?;
            Ok::<_, steadfast::Error>(match found.as_str() {
                "" => Reconciliation::NotApplied,
                charge => Reconciliation::Applied(Answer::new(StatusCode::OK, charge)),
            })
        })
        .start()
        .await?;
    let charge = |number: usize| {
        let (outbox, client) = (&outbox, &client);
        async move {
            // A name makes the submission idempotent: after a kill it is the same operation.
            let name = format!("charge-{number:04}");
            let charge = client.post("/charges").body(name.clone()).prepare()?.named(name);
            let id = outbox.submit(charge).await?;
            Ok::<End, Error>(outbox.wait(id).await?)
        }
    };
    let mut ends = stream::iter(0..arguments.charges).map(charge).buffer_unordered(64);
    let (mut answered, mut unknown) = (0, 0);
    while let Some(end) = ends.next().await {
        match end? {
            End::Answer(_) => answered += 1,
            End::Rejected(failed) => return Err(failed.into()),
            End::Unknown(_) => unknown += 1,
        }
    }
    println!("{answered} {unknown}");
    Ok(ExitCode::SUCCESS)
}

/// The first process: runs the bank, and kills and starts the second one until that has finished.
async fn watch(arguments: &Arguments) -> Result<ExitCode, Error> {
    let place = Place::make(arguments).await?;
    let bank = Bank::open(arguments.seed, arguments.ignores_keys).await;
    let mut chance = fastrand::Rng::with_seed(arguments.seed);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} charged, {msg}")?;
    let bar = ProgressBar::new(arguments.charges as u64).with_style(style);
    let mut kills = 0;
    let said = loop {
        bar.set_position(bank.charged() as u64);
        bar.set_message(format!("{kills} kills"));
        let child = start(place.name(), &bank.url(), arguments)?;
        // Longer and longer, so that it ends on a slow machine too.
        let lives = Duration::from_millis(chance.u64(20..200) + 4 * kills);
        match finish_within(lives, child).await? {
            Some(said) => break said,
            None => kills += 1,
        }
    };
    bar.finish_and_clear();
    place.remove().await?;
    let mut counts = said.split_whitespace().map(str::parse::<usize>);
    let (Some(Ok(answered)), Some(Ok(unknown))) = (counts.next(), counts.next()) else {
        return Err(format!("the second process said: {said}").into());
    };
    let submitted = arguments.charges;
    let (once, twice) = bank.counts();
    let lost = submitted.saturating_sub(answered + unknown) + answered.saturating_sub(once);
    println!(
        "A bank that {} keys, {kills} kills, {} requests for {submitted} charges, seed {}.",
        if arguments.ignores_keys { "ignores" } else { "honours" },
        bank.requests(),
        arguments.seed
    );
    println!("submitted={submitted} once={once} twice={twice} lost={lost} unknown={unknown} kills={kills}");
    let is_right = twice == 0 && lost == 0 && once + unknown >= submitted;
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn start(place: &str, bank: &str, arguments: &Arguments) -> Result<Child, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--work", place, bank]).args(["--charges", &arguments.charges.to_string()]);
    if arguments.ignores_keys {
        command.arg("--ignores-keys");
    }
    if arguments.postgres {
        // The database is in the environment, since other users can read a command line.
        command.arg("--postgres").env("STEADFAST_POSTGRES_URL", arguments.database.as_deref().unwrap_or_default());
    }
    Ok(command.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn()?)
}

/// Returns what a process has printed, or `None` if it had to be killed after this time.
async fn finish_within(time: Duration, mut child: Child) -> Result<Option<String>, Error> {
    let Ok(status) = tokio::time::timeout(time, child.wait()).await else {
        // Sends SIGKILL and waits: a process that is being killed still has the lock of the file, such
        // as until a sync of the disk is over.
        child.kill().await?;
        return Ok(None);
    };
    let status = status?;
    if !status.success() {
        return Err(format!("the second process failed: {status}").into());
    }
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut said).await?;
    }
    Ok(Some(said))
}
