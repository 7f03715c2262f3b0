//! A transfer between two accounts that `kill -9` cannot double.
//!
//! ```text
//! ./scripts/with_servers.sh cargo run --example transfer
//! cargo run --example transfer -- --database postgres://localhost/test --transfers 1000 --kills 20
//! ```
//!
//! A bank runs as a process of its own and is killed in the middle of its work, again and again, while a client asks it for
//! transfers and repeats whatever it got no answer to. Twice: once at a route behind the layer, where claim, bookings and answer are
//! one PostgreSQL transaction, and once at the same handler without it. What was booked is counted in the database.
//!
//! Then the patterns of writes that may be repeated, side by side: what one can do where there is no key, or nothing to keep it in.
//!
//! The last line is plain: `once`, `twice` and `never` are the database's count of the transfers behind the layer. If it is not
//! `twice=0 never=0` the exit code is 1.
//!
//! `bank.rs` is the server, `patterns.rs` the writes. Everything happens in a schema of its own, which is dropped at the end.

mod bank;
mod patterns;

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use comfy_table::{Table, presets};
use futures_util::{StreamExt as _, stream};
use indicatif::{ProgressBar, ProgressStyle};
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use steadfast::policy::{Backoff, RetryBudget, RetryPolicy};
use steadfast::{Client, KeyPolicy, reqwest};

use crate::bank::Transfer;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
#[command(about = "A transfer between two accounts that kill -9 cannot double")]
struct Flags {
    /// A PostgreSQL database; a schema is made in it, and dropped at the end
    #[arg(long, env = "STEADFAST_POSTGRES_URL")]
    database: Option<String>,
    /// Transfers to ask for, at each of the two routes
    #[arg(long, default_value_t = 200)]
    transfers: u32,
    /// How often the bank is killed, at each of the two routes
    #[arg(long, default_value_t = 8)]
    kills: u32,
    /// Be the bank, at this address and in this schema
    #[arg(long, hide = true, requires = "schema")]
    serve: Option<SocketAddr>,
    #[arg(long, hide = true)]
    schema: Option<String>,
    /// A short round
    #[arg(long)]
    self_test: bool,
}

const WANTED: &str = "this example wants a PostgreSQL: ./scripts/with_servers.sh cargo run --example transfer or \
                      --database postgres://…";

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let mut flags = Flags::parse();
    let database = flags.database.clone().ok_or(WANTED)?;
    if let (Some(address), Some(schema)) = (flags.serve, &flags.schema) {
        bank::serve(address, pool(&database, schema)?).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if flags.self_test {
        (flags.transfers, flags.kills) = (60, 3);
    }
    let schema = format!("transfer_{}", steadfast::uuid::Uuid::from_u128(u128::from(fastrand::u64(..))).simple());
    let pool = pool(&database, &schema)?;
    sqlx::query(AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).execute(&pool).await?;
    let ended = tell(&flags, &database, &schema, &pool).await;
    sqlx::query(AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"))).execute(&pool).await?;
    ended
}

fn pool(database: &str, schema: &str) -> Result<PgPool> {
    let options = database.parse::<PgConnectOptions>()?.options([("search_path", schema)]);
    Ok(PgPoolOptions::new().max_connections(24).connect_lazy_with(options))
}

async fn tell(flags: &Flags, database: &str, schema: &str, pool: &PgPool) -> Result<ExitCode> {
    bank::create_tables(pool).await?;
    let bank = Bank::open(database, schema).await?;
    let steadfast = bank.round(flags, pool, Route::Keyed).await?;
    let naive = bank.round(flags, pool, Route::Naive).await?;
    drop(bank);

    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["", "one transaction, steadfast", "no layer, naive loop"]);
    for (name, of) in ROWS {
        table.add_row([(*name).to_owned(), of(&steadfast).to_string(), of(&naive).to_string()]);
    }
    println!("{table}\n");
    println!("{}\n", patterns::side_by_side(pool).await?);
    let Round { transfers, once, twice, never, kills, .. } = steadfast;
    println!("transfers={transfers} once={once} twice={twice} never={never} kills={kills}");
    let safe = twice == 0 && never == 0 && steadfast.imbalance == 0;
    Ok(if safe { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a round came to, by the database's count.
struct Round {
    transfers: i64,
    once: i64,
    twice: i64,
    never: i64,
    /// Requests that the client sent.
    requests: i64,
    kills: i64,
    /// By how much one account differs from what it should hold.
    imbalance: i64,
}

type Row = (&'static str, fn(&Round) -> i64);
const ROWS: &[Row] = &[
    ("transfers asked for", |round| round.transfers),
    ("kill -9 of the bank", |round| round.kills),
    ("requests sent", |round| round.requests),
    ("booked once", |round| round.once),
    ("booked twice or more", |round| round.twice),
    ("never booked", |round| round.never),
    ("money in the wrong account", |round| round.imbalance),
];

#[derive(Clone, Copy, PartialEq)]
enum Route {
    Keyed,
    Naive,
}

impl Route {
    fn path(self) -> &'static str {
        if self == Self::Keyed { "/transfers" } else { "/naive/transfers" }
    }
}

/// The bank's process, which can be killed.
struct Bank {
    address: SocketAddr,
    command: Vec<String>,
    process: tokio::sync::Mutex<tokio::process::Child>,
}

impl Bank {
    async fn open(database: &str, schema: &str) -> Result<Self> {
        // Held for a moment to find a port that is free, which each new process then has again.
        let address = tokio::net::TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let serve = ["--serve", &address.to_string(), "--schema", schema, "--database", database].map(str::to_owned);
        let process = tokio::sync::Mutex::new(Self::start(&serve)?);
        Ok(Self { address, command: serve.to_vec(), process })
    }

    fn start(arguments: &[String]) -> Result<tokio::process::Child> {
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        Ok(command.args(arguments).kill_on_drop(true).spawn()?)
    }

    /// SIGKILL, and a new process in its place.
    async fn kill(&self) -> Result<()> {
        let mut process = self.process.lock().await;
        process.kill().await?;
        *process = Self::start(&self.command)?;
        Ok(())
    }

    /// Asks for all transfers, sixteen at a time, and kills the bank between them.
    async fn round(&self, flags: &Flags, pool: &PgPool, route: Route) -> Result<Round> {
        let asking = Arc::new(Asking::new(self.address, route)?);
        let transfers = (0..flags.transfers).map(|number| {
            let asking = asking.clone();
            async move { asking.ask(Transfer::numbered(number)).await }
        });
        let style = ProgressStyle::with_template("{prefix:>16} [{bar:40}] {pos}/{len} transfers, {msg}")?;
        let bar = ProgressBar::new(flags.transfers.into()).with_style(style).with_prefix(route.path());
        let mut answers = std::pin::pin!(stream::iter(transfers).buffer_unordered(16));
        let (mut requests, mut kills) = (0, 0);
        while let Some(sent) = answers.next().await {
            requests += sent?;
            bar.inc(1);
            let due = bar.position() * u64::from(flags.kills + 1) / u64::from(flags.transfers.max(1));
            if kills < due.min(flags.kills.into()) {
                self.kill().await?;
                kills += 1;
                bar.set_message(format!("{kills} kills"));
            }
        }
        bar.finish_and_clear();
        let booked = bank::booked(pool, route.path()).await?;
        let transfers = i64::from(flags.transfers);
        let never = transfers - booked.once - booked.twice;
        let Booked { once, twice, imbalance } = booked;
        Ok(Round { transfers, once, twice, never, requests, kills: i64::try_from(kills)?, imbalance })
    }
}

/// What the database says of a route's transfers.
struct Booked {
    once: i64,
    twice: i64,
    imbalance: i64,
}

/// The two clients.
enum Asking {
    Steadfast(Client),
    Naive(reqwest::Client, String),
}

impl Asking {
    fn new(address: SocketAddr, route: Route) -> Result<Self> {
        if route == Route::Naive {
            return Ok(Self::Naive(reqwest::Client::new(), format!("http://{address}{}", route.path())));
        }
        let backoff = Backoff::exponential(Duration::from_millis(10), Duration::from_millis(200));
        let client = Client::builder()
            .base_url(format!("http://{address}"))
            // True: the route is behind the layer. Without this word the layer's own signs would do, after the first answer.
            .keys(KeyPolicy::standard())
            .retry(RetryPolicy::new().max_attempts(200).backoff(backoff))
            // One bank and one client: nobody is protected by giving up.
            .budget(RetryBudget::unlimited())
            .timeout(Duration::from_secs(60))
            .build()?;
        Ok(Self::Steadfast(client))
    }

    /// Asks until there is an answer; returns how many requests it took.
    async fn ask(&self, transfer: Transfer) -> Result<i64> {
        match self {
            Self::Steadfast(client) => {
                use steadfast::ResponseExt as _;
                let response = client.post(Route::Keyed.path()).json(&transfer).send().await?;
                let attempts = i64::try_from(response.attempts().len())?;
                response.error_for_status()?;
                Ok(attempts)
            }
            Self::Naive(client, url) => {
                for request in 1..=500 {
                    match client.post(url).json(&transfer).send().await {
                        Ok(response) if response.status().is_success() => return Ok(request),
                        _ => pause(Duration::from_millis(20)).await,
                    }
                }
                Err("the bank does not come back".into())
            }
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "what a naive retry loop does")]
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}
