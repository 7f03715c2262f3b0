//! An API with Stripe's paths and errors, for Stripe's own client libraries.
//!
//! ```text
//! ./scripts/stripe.sh                                # stripe-node and stripe-python against it
//! cargo run --example stripe_api                     # the API alone; Ctrl-C ends it
//! cargo run --example stripe_api -- --self-test
//! ```
//!
//! A proxy stands in front of the API and breaks connections on demand. The metadata of a charge
//! say what goes wrong:
//!
//! | metadata | effect |
//! | --- | --- |
//! | `order` | the name by which deliveries and executions are counted |
//! | `fault` | `unsent`, `lost` or `cut`: what the proxy does to the first delivery. `lost3`: to the first three |
//! | `do` | `hold`: wait for `GET /release`; `panic`; or a status to answer with |
//! | `ms` | how long the charge takes, in milliseconds |

mod proxy;

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser;
use serde_json::{Value, json};
use steadfast_server::{IdempotencyLayer, MemoryStore, RejectionFormat, Scope};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
#[command(about = "An API with Stripe's paths and errors")]
struct Flags {
    /// Address of the API, behind the proxy
    #[arg(long, default_value = "127.0.0.1:3001")]
    listen: String,
    /// Run a command beside the API, as NAME=COMMAND, and exit. It gets the port of the proxy as
    /// its last argument. May be repeated
    #[arg(long)]
    check: Vec<String>,
    /// Charge once over a connection that breaks, and exit
    #[arg(long)]
    self_test: bool,
}

/// How often each order was delivered to the proxy, and charged.
#[derive(Clone, Default)]
struct Books {
    orders: Arc<Mutex<BTreeMap<String, Counts>>>,
    held: Arc<Mutex<BTreeMap<String, Arc<Semaphore>>>>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    delivered: usize,
    executed: usize,
}

impl Books {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Counts>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn delivered(&self, order: &str) -> usize {
        let mut orders = self.lock();
        let counts = orders.entry(order.to_owned()).or_default();
        counts.delivered += 1;
        counts.delivered
    }

    fn executed(&self, order: &str) -> usize {
        let mut orders = self.lock();
        let counts = orders.entry(order.to_owned()).or_default();
        counts.executed += 1;
        counts.executed
    }

    fn gate(&self, order: &str) -> Arc<Semaphore> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.entry(order.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(0))).clone()
    }
}

/// Returns a metadata field of a form body, whose brackets may be escaped.
fn metadata<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    body.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let key = key.strip_prefix("metadata")?;
        let key = key.strip_prefix('[').or_else(|| key.strip_prefix("%5B"))?;
        let key = key.strip_suffix(']').or_else(|| key.strip_suffix("%5D"))?;
        (key == name).then_some(value)
    })
}

async fn charge(State(books): State<Books>, body: String) -> (StatusCode, Json<Value>) {
    let order = metadata(&body, "order").unwrap_or_default();
    let number = books.executed(order);
    if let Some(time) = metadata(&body, "ms").and_then(|time| time.parse().ok()) {
        work(Duration::from_millis(time)).await;
    }
    match metadata(&body, "do") {
        Some("panic") => panic!("this charge dies on purpose"),
        Some("hold") => books.gate(order).acquire().await.map_or((), tokio::sync::SemaphorePermit::forget),
        Some(status) => {
            let status = status.parse().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let (kind, code) =
                if status == 402 { ("card_error", "card_declined") } else { ("api_error", "on_purpose") };
            let error = json!({ "type": kind, "code": code, "message": "on purpose" });
            return (status, Json(json!({ "error": error })));
        }
        None => {}
    }
    let charge = json!({ "id": format!("ch_{order}_{number}"), "object": "charge", "amount": 1200, "paid": true });
    (StatusCode::OK, Json(charge))
}

#[allow(clippy::disallowed_methods, reason = "a charge that takes its time is what is staged")]
async fn work(time: Duration) {
    tokio::time::sleep(time).await;
}

async fn orders(State(books): State<Books>) -> Json<Value> {
    let orders = books.lock();
    let counts = |counts: &Counts| json!({ "delivered": counts.delivered, "executed": counts.executed });
    Json(orders.iter().map(|(order, both)| (order.clone(), counts(both))).collect::<serde_json::Map<_, _>>().into())
}

async fn release(State(books): State<Books>, Path(order): Path<String>) {
    books.gate(&order).add_permits(1);
}

fn router(books: Books) -> Router {
    // The scope is the account and not its secret: a key that is rolled must not forget its
    // records.
    let scope = Scope::from_fn(|parts| {
        let secret = parts.headers.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")?;
        Some(secret.strip_prefix("sk_test_")?.to_owned())
    });
    let layer = IdempotencyLayer::new(MemoryStore::new(), scope).rejection_format(RejectionFormat::stripe());
    Router::new()
        .route("/v1/charges", post(charge))
        .layer(layer)
        .route("/orders", get(orders))
        .route("/release/{order}", get(release))
        .with_state(books)
}

#[tokio::main]
async fn main() -> Result<()> {
    let flags = Flags::parse();
    let is_check = flags.self_test || !flags.check.is_empty();
    let listener = TcpListener::bind(if is_check { "127.0.0.1:0" } else { &flags.listen }).await?;
    let (books, api) = (Books::default(), listener.local_addr()?);
    let proxy = TcpListener::bind("127.0.0.1:0").await?;
    let port = proxy.local_addr()?.port();
    let served = axum::serve(listener, router(books.clone()));
    tokio::spawn(proxy::run(proxy, api, books.clone()));
    if !is_check {
        println!("http://{api}/v1/charges; a proxy that breaks connections: 127.0.0.1:{port}");
        return Ok(served.await?);
    }
    tokio::spawn(async move { served.await });
    if flags.self_test { self_test(port, &books).await } else { run_checks(&flags.check, port, &books).await }
}

/// Runs each command, and says what was charged.
async fn run_checks(checks: &[String], port: u16, books: &Books) -> Result<()> {
    let (mut line, mut failed) = (String::from("stripe:"), false);
    for check in checks {
        let (name, command) = check.split_once('=').ok_or("--check NAME=COMMAND")?;
        let mut words = command.split_whitespace();
        let program = words.next().ok_or("--check NAME=COMMAND")?;
        let status = tokio::process::Command::new(program).args(words).arg(port.to_string()).status().await?;
        line += &format!(" {name}={}", if status.success() { "ok" } else { "FAILED" });
        failed |= !status.success();
    }
    let (executed, twice) = totals(books);
    println!("{line} executed={executed} twice={twice}");
    if failed || twice > 0 || executed == 0 { Err("a check has failed".into()) } else { Ok(()) }
}

/// Returns how many orders were charged, and how many of them more than once.
fn totals(books: &Books) -> (usize, usize) {
    let orders = books.lock();
    let more_than = |least: usize| orders.values().filter(|counts| counts.executed > least).count();
    (more_than(0), more_than(1))
}

async fn self_test(port: u16, books: &Books) -> Result<()> {
    let http = steadfast::reqwest::Client::new();
    let charge = |body: &'static str| {
        let request = http.post(format!("http://127.0.0.1:{port}/v1/charges")).header("idempotency-key", "order-7");
        request.bearer_auth("sk_test_self").body(body).send()
    };
    let body = "amount=1200&metadata[order]=7&metadata[fault]=lost";
    let lost = charge(body).await;
    let replayed = charge(body).await?;
    let is_replayed = replayed.headers().contains_key("idempotent-replayed");
    let other = charge("amount=1300&metadata[order]=7").await?;
    let is_refused = other.status() == 400 && other.text().await?.contains("idempotency_error");
    println!("response lost: {}; replayed: {is_replayed}; other body refused: {is_refused}", lost.is_err());
    match (lost, is_replayed, is_refused, totals(books)) {
        (Err(_), true, true, (1, 0)) => Ok(()),
        (_, _, _, totals) => Err(format!("executed and twice: {totals:?}").into()),
    }
}
