//! A transfer between two accounts that `kill -9` cannot double.
//!
//! ```text
//! ./scripts/with_servers.sh cargo run --example transfer
//! cargo run --example transfer -- --database postgres://localhost/test --transfers 1000 --kills 20
//! ```
//!
//! A bank runs as a separate process and is killed again and again during its work. A client asks
//! it for transfers, and repeats each request without a response. The first round uses a route
//! behind the layer, where claim, bookings and response are one PostgreSQL transaction. The second
//! uses the same handler without the layer. The database counts the bookings.
//!
//! Then a table shows writes that may be repeated. Use them if there is no key, or no place to
//! store it.
//!
//! The last line is for scripts: `once`, `twice` and `never` are the database's counts of the
//! transfers behind the layer. Unless `twice=0 never=0`, the exit code is 1.
//!
//! `bank.rs` is the server, `patterns.rs` the writes. Everything happens in a schema of its own,
//! which is dropped at the end.

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
    /// A PostgreSQL database; the example creates a schema in it and drops it at the end
    #[arg(long, env = "STEADFAST_POSTGRES_URL")]
    database: Option<String>,
    /// Number of transfers, on each of the two routes
    #[arg(long, default_value_t = 200)]
    transfers: u32,
    /// Number of times that the bank is killed, on each of the two routes
    #[arg(long, default_value_t = 8)]
    kills: u32,
    /// Run as the bank, at this address and in this schema
    #[arg(long, hide = true, requires = "schema")]
    serve: Option<SocketAddr>,
    #[arg(long, hide = true)]
    schema: Option<String>,
    /// Run a short round
    #[arg(long)]
    self_test: bool,
}

const WANTED: &str = "this example needs a PostgreSQL database: ./scripts/with_servers.sh cargo run --example transfer or \
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

/// The result of a round, counted by the database.
struct Round {
    transfers: i64,
    once: i64,
    twice: i64,
    never: i64,
    /// Requests that the client sent.
    requests: i64,
    kills: i64,
    /// Difference between an account's balance and the correct one.
    imbalance: i64,
}

type Row = (&'static str, fn(&Round) -> i64);
const ROWS: &[Row] = &[
    ("transfers requested", |round| round.transfers),
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
        // Binds a free port for a moment. Each new process then uses it.
        let address = tokio::net::TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let serve = ["--serve", &address.to_string(), "--schema", schema, "--database", database].map(str::to_owned);
        let process = tokio::sync::Mutex::new(Self::start(&serve)?);
        Ok(Self { address, command: serve.to_vec(), process })
    }

    fn start(arguments: &[String]) -> Result<tokio::process::Child> {
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        Ok(command.args(arguments).kill_on_drop(true).spawn()?)
    }

    /// Sends SIGKILL and starts a new process.
    async fn kill(&self) -> Result<()> {
        let mut process = self.process.lock().await;
        process.kill().await?;
        *process = Self::start(&self.command)?;
        Ok(())
    }

    /// Makes all transfers, sixteen at a time, and kills the bank between them.
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

/// The database's counts for one route.
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
            // True: the route is behind the layer. Without this declaration, the layer's own signs
            // suffice after the first response.
            .keys(KeyPolicy::standard())
            .retry(RetryPolicy::new().max_attempts(200).backoff(backoff))
            // With one bank and one client, giving up protects nobody.
            .budget(RetryBudget::unlimited())
            .timeout(Duration::from_secs(60))
            .build()?;
        Ok(Self::Steadfast(client))
    }

    /// Repeats the request until there is a response. Returns the number of requests.
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
                Err("the bank did not come back".into())
            }
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "what a naive retry loop does")]
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}
