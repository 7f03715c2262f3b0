//! The shop: it charges the card at the bank, writes the order, and dies at a given point.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Json, Router};
use clap::ValueEnum;
use sqlx::PgPool;
use steadfast::{Client, IdempotencyKey, KeyPolicy};
use steadfast_postgres::{PostgresSession, PostgresStore};
use steadfast_server::{ExecutionOutcome, IdempotencyLayer, OperationKey, Scope, TransactionHandle};

use crate::Result;

/// The point at which the shop dies.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Point {
    BeforeTheClaim,
    BeforeTheCharge,
    AfterTheCharge,
    /// The shop does not die here: the database refuses the row once.
    TheOrderFails,
    AfterTheOrder,
    AfterTheCommit,
}

impl Point {
    pub(crate) const ALL: [Self; 6] = [
        Self::BeforeTheClaim,
        Self::BeforeTheCharge,
        Self::AfterTheCharge,
        Self::TheOrderFails,
        Self::AfterTheOrder,
        Self::AfterTheCommit,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BeforeTheClaim => "before-the-claim",
            Self::BeforeTheCharge => "before-the-charge",
            Self::AfterTheCharge => "after-the-charge",
            Self::TheOrderFails => "the-order-fails",
            Self::AfterTheOrder => "after-the-order",
            Self::AfterTheCommit => "after-the-commit",
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name().replace('-', " "))
    }
}

#[derive(Clone)]
struct Shop {
    bank: Client,
    derives_keys: bool,
    die_at: Option<Point>,
    has_failed: Arc<AtomicBool>,
}

impl Shop {
    /// Whether the database is to refuse this order: once, at [`Point::TheOrderFails`].
    fn stages_failure(&self) -> bool {
        self.die_at == Some(Point::TheOrderFails) && !self.has_failed.swap(true, Ordering::SeqCst)
    }

    /// Sends SIGKILL: no clean-up, no response, and nothing happens until the signal arrives.
    async fn at(&self, point: Point) {
        if self.die_at == Some(point) {
            let killed = std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
            if killed.is_err() {
                std::process::abort();
            }
            std::future::pending::<()>().await;
        }
    }
}

pub(crate) async fn create_tables(pool: &PgPool) -> Result<()> {
    PostgresStore::new(pool.clone()).create_table().await?;
    sqlx::query("CREATE TABLE orders (name text NOT NULL, charge text NOT NULL)").execute(pool).await?;
    Ok(())
}

pub(crate) async fn serve(
    address: SocketAddr,
    pool: PgPool,
    bank: &str,
    derives_keys: bool,
    die_at: Option<Point>,
) -> Result<()> {
    let bank = Client::builder().base_url(bank).keys(KeyPolicy::standard()).build()?;
    let shop = Shop { bank, derives_keys, die_at, has_failed: Arc::default() };
    // The only caller is the customer of this example.
    let layer = IdempotencyLayer::new(PostgresStore::new(pool).transactional(), Scope::single_caller()).required();
    let router = Router::new()
        .route("/orders", post(order))
        .layer(layer)
        .layer(middleware::from_fn_with_state(shop.clone(), around))
        .with_state(shop);
    Ok(axum::serve(tokio::net::TcpListener::bind(address).await?, router).await?)
}

/// Runs outside the layer: before its claim, and after its commit.
async fn around(State(shop): State<Shop>, request: Request, next: Next) -> Response {
    shop.at(Point::BeforeTheClaim).await;
    let response = next.run(request).await;
    shop.at(Point::AfterTheCommit).await;
    response
}

async fn order(
    State(shop): State<Shop>,
    Extension(operation): Extension<OperationKey>,
    Extension(lent): Extension<TransactionHandle<PostgresSession>>,
    Json(name): Json<String>,
) -> std::result::Result<(StatusCode, String), Unsure> {
    shop.at(Point::BeforeTheCharge).await;
    let charge = charge(&shop, &operation).await.map_err(|error| failed(&error))?;
    shop.at(Point::AfterTheCharge).await;
    let mut session = lent.lock().ok_or_else(|| failed(&"another task holds the transaction"))?;
    let staged = shop.stages_failure();
    let statement =
        if staged { "INSERT INTO no_such_table VALUES ($1, $2)" } else { "INSERT INTO orders VALUES ($1, $2)" };
    let insert = sqlx::query(statement).bind(&name).bind(&charge);
    // An error that is part of the show is not printed, so that a printed one is a real one.
    insert.execute(&mut **session).await.map_err(|error| if staged { UNSURE } else { failed(&error) })?;
    shop.at(Point::AfterTheOrder).await;
    Ok((StatusCode::CREATED, charge))
}

/// Derives or mints the key: this decides whether the card is charged once.
async fn charge(shop: &Shop, operation: &OperationKey) -> Result<String> {
    let key = if shop.derives_keys { operation.child_key("charge-card") } else { IdempotencyKey::mint()? };
    let charge = shop.bank.post("/charges").idempotency_key(key).body("12 EUR").send().await?;
    Ok(charge.error_for_status()?.text().await?)
}

/// The card may have been charged, and there is no order. This must not become the stored response.
/// The operation must run again, under the same derived key.
type Unsure = (StatusCode, Extension<ExecutionOutcome>);

const UNSURE: Unsure = (StatusCode::BAD_GATEWAY, Extension(ExecutionOutcome::Unknown));

fn failed(error: &dyn fmt::Display) -> Unsure {
    eprintln!("no order yet: {error}");
    UNSURE
}
