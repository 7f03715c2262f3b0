//! One order and one charge, whenever the shop dies.
//!
//! ```text
//! ./scripts/with_servers.sh cargo run --example checkout
//! ```
//!
//! ```text
//! client ──key──▶ layer ▶ shop's handler ──derived key──▶ layer ▶ bank's handler
//!                         (order in the layer's transaction)     (charge)
//! ```
//!
//! The shop writes its order into the transaction of the layer. It charges the card at another
//! service, which takes part in no transaction. SIGKILL ends the shop at every point of its work.
//! The database rolls the transaction back, the client repeats its request, and the handler charges
//! again. The charge has the same key, because the key is derived from the order's, so the bank
//! replays its stored response. In the last column the handler mints a key for each call, as many
//! handlers do.
//!
//! The last line is for scripts and counts over all points. Unless `orders == charges ==
//! checkouts`, the exit code is 1.
//!
//! `shop.rs` is the shop, `bank.rs` the bank.

mod bank;
mod shop;

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use comfy_table::{Table, presets};
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use steadfast::policy::{Backoff, RetryBudget, RetryPolicy};
use steadfast::{Client, KeyPolicy, ResponseExt as _};
use tokio::process::{Child, Command};

use crate::bank::Bank;
use crate::shop::Point;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
#[command(about = "One order and one charge, whenever the shop dies")]
struct Flags {
    /// A PostgreSQL database; the example creates a schema in it and drops it at the end
    #[arg(long, env = "STEADFAST_POSTGRES_URL")]
    database: Option<String>,
    /// Run as the shop, at this address
    #[arg(long, hide = true, requires_all = ["schema", "bank", "keys"])]
    serve: Option<SocketAddr>,
    #[arg(long, hide = true)]
    schema: Option<String>,
    #[arg(long, hide = true)]
    bank: Option<String>,
    #[arg(long, hide = true)]
    keys: Option<String>,
    #[arg(long, hide = true)]
    die_at: Option<Point>,
    /// Run the same round: it is short
    #[arg(long)]
    self_test: bool,
}

const WANTED: &str = "this example needs a PostgreSQL database: ./scripts/with_servers.sh cargo run --example checkout or \
                      --database postgres://…";

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let flags = Flags::parse();
    let database = flags.database.clone().ok_or(WANTED)?;
    if let (Some(address), Some(schema), Some(bank), Some(keys)) =
        (flags.serve, &flags.schema, &flags.bank, &flags.keys)
    {
        shop::serve(address, pool(&database, schema)?, bank, keys == "derived", flags.die_at).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let schema = format!("checkout_{:016x}", fastrand::u64(..));
    let pool = pool(&database, &schema)?;
    sqlx::query(AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).execute(&pool).await?;
    let ended = tell(&database, &schema, &pool).await;
    sqlx::query(AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"))).execute(&pool).await?;
    ended
}

fn pool(database: &str, schema: &str) -> Result<PgPool> {
    let options = database.parse::<PgConnectOptions>()?.options([("search_path", schema)]);
    Ok(PgPoolOptions::new().max_connections(8).connect_lazy_with(options))
}

async fn tell(database: &str, schema: &str, pool: &PgPool) -> Result<ExitCode> {
    shop::create_tables(pool).await?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["where", "requests", "orders", "charges", "charges, if keys are minted"]);
    let (mut checkouts, mut orders, mut charges) = (0, 0, 0);
    for point in Point::ALL {
        let derived = checkout(database, schema, pool, "derived", point).await?;
        let minted = checkout(database, schema, pool, "minted", point).await?;
        let cells =
            [derived.requests, derived.orders, derived.charges, minted.charges].map(|number| number.to_string());
        table.add_row(std::iter::once(point.to_string()).chain(cells));
        checkouts += 1;
        orders += derived.orders;
        charges += derived.charges;
    }
    println!("In each row the shop is killed there once, on purpose. At \"{}\" the database", Point::TheOrderFails);
    println!("refuses the order once instead. Every error of these is staged and expected.\n");
    println!("{table}\n");
    println!("checkouts={checkouts} orders={orders} charges={charges}");
    Ok(if (orders, charges) == (checkouts, checkouts) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The result of one checkout: the client's requests, the rows in the database, the executions at
/// the bank.
struct Checkout {
    requests: i64,
    orders: i64,
    charges: i64,
}

async fn checkout(database: &str, schema: &str, pool: &PgPool, keys: &str, point: Point) -> Result<Checkout> {
    let bank = Bank::open().await?;
    // Binds a free port for a moment. Each process of the shop then uses it in turn.
    let address = tokio::net::TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let shop = [
        "--serve",
        &address.to_string(),
        "--schema",
        schema,
        "--database",
        database,
        "--bank",
        &bank.url(),
        "--keys",
        keys,
    ]
    .map(str::to_owned);
    let supervised = tokio::spawn(supervise(shop.to_vec(), point));

    let client = Client::builder()
        .base_url(format!("http://{address}"))
        .keys(KeyPolicy::standard())
        .retry(
            RetryPolicy::new()
                .max_attempts(300)
                .backoff(Backoff::exponential(Duration::from_millis(10), Duration::from_millis(100))),
        )
        .budget(RetryBudget::unlimited())
        .build()?;
    let name = format!("{keys}: {point}");
    let response = client.post("/orders").json(&name).send().await?;
    supervised.abort();
    let requests = i64::try_from(response.attempts().len())?;
    response.error_for_status()?;
    let orders = sqlx::query_scalar("SELECT count(*) FROM orders WHERE name = $1").bind(&name).fetch_one(pool).await?;
    Ok(Checkout { requests, orders, charges: bank.charges() })
}

/// Runs a shop that dies at its point, and then one that does not. Kills the current one when
/// dropped.
async fn supervise(arguments: Vec<String>, point: Point) -> Result<()> {
    let start = |more: &[String]| -> Result<Child> {
        Ok(Command::new(std::env::current_exe()?).args(&arguments).args(more).kill_on_drop(true).spawn()?)
    };
    start(&["--die-at".to_owned(), point.name().to_owned()])?.wait().await?;
    start(&[])?.wait().await?;
    Ok(())
}
