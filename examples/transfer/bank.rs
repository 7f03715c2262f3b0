//! The bank: one handler behind the layer, and the same bookings without it.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use steadfast_postgres::{PostgresSession, PostgresStore};
use steadfast_server::{ExecutionOutcome, IdempotencyLayer, Scope, TransactionHandle};

use crate::{Booked, Result};

/// A request of the client. The number is the client's own and means nothing to the bank, which
/// stores it only to count bookings.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Transfer {
    number: i32,
    amount: i64,
}

impl Transfer {
    pub(crate) fn numbered(number: u32) -> Self {
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        Self { number, amount: 1 + i64::from(number) % 50 }
    }
}

pub(crate) async fn create_tables(pool: &PgPool) -> Result<()> {
    const TABLES: &str = "
        CREATE TABLE accounts (owner text PRIMARY KEY, balance bigint NOT NULL);
        INSERT INTO accounts VALUES ('alice', 1000000), ('bob', 0), ('carol', 1000000), ('dave', 0);
        CREATE TABLE bookings (route text NOT NULL, number int NOT NULL, amount bigint NOT NULL);";
    PostgresStore::new(pool.clone()).create_table().await?;
    sqlx::raw_sql(TABLES).execute(pool).await?;
    Ok(())
}

pub(crate) async fn serve(address: SocketAddr, pool: PgPool) -> Result<()> {
    let store = PostgresStore::new(pool.clone()).transactional();
    // The only caller is the client of this example.
    let layer = IdempotencyLayer::new(store, Scope::single_caller()).required();
    let router = Router::new()
        .route("/transfers", post(transfer))
        .layer(layer.clone())
        .route("/naive/transfers", post(naive_transfer))
        .with_state(pool)
        .route("/ready", get(|| async { "ready" }));
    axum::serve(tokio::net::TcpListener::bind(address).await?, router).await?;
    layer.drain().await;
    Ok(())
}

/// The error says that nothing was kept, so the key is released and a repeat runs.
type Answer = std::result::Result<(StatusCode, Json<Transfer>), (StatusCode, Extension<ExecutionOutcome>)>;

/// Books in the layer's transaction: it commits the bookings with the record of the response, or
/// neither.
async fn transfer(
    Extension(lent): Extension<TransactionHandle<PostgresSession>>,
    Json(transfer): Json<Transfer>,
) -> Answer {
    let mut session = lent.lock().ok_or_else(|| failed("another task holds the transaction"))?;
    book(&mut session, "/transfers", ["alice", "bob"], transfer).await.map_err(failed)?;
    Ok((StatusCode::CREATED, Json(transfer)))
}

/// Books in a transaction of its own. If the process dies between commit and response, the client
/// repeats the request.
async fn naive_transfer(State(pool): State<PgPool>, Json(transfer): Json<Transfer>) -> Answer {
    let mut transaction = pool.begin().await.map_err(failed)?;
    book(&mut transaction, "/naive/transfers", ["carol", "dave"], transfer).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    work().await;
    Ok((StatusCode::CREATED, Json(transfer)))
}

/// Moves money from one account to the other. An increment must not be repeated: it has to happen
/// once.
async fn book(
    connection: &mut PgConnection,
    route: &str,
    [from, to]: [&str; 2],
    Transfer { number, amount }: Transfer,
) -> std::result::Result<(), sqlx::Error> {
    work().await;
    const MOVE: &str = "UPDATE accounts SET balance = balance + $1 WHERE owner = $2";
    sqlx::query(MOVE).bind(-amount).bind(from).execute(&mut *connection).await?;
    sqlx::query(MOVE).bind(amount).bind(to).execute(&mut *connection).await?;
    sqlx::query("INSERT INTO bookings VALUES ($1, $2, $3)")
        .bind(route)
        .bind(number)
        .bind(amount)
        .execute(connection)
        .await?;
    Ok(())
}

/// Stands for further work of the handler: time in which it can be killed.
#[allow(clippy::disallowed_methods, reason = "a handler that takes its time is what is shown")]
async fn work() {
    tokio::time::sleep(Duration::from_millis(3)).await;
}

fn failed(error: impl std::fmt::Display) -> (StatusCode, Extension<ExecutionOutcome>) {
    eprintln!("cannot book a transfer: {error}");
    (StatusCode::SERVICE_UNAVAILABLE, Extension(ExecutionOutcome::NotExecuted))
}

/// Returns how often each transfer of a route was booked, and the receiver's surplus over the
/// requested amount.
pub(crate) async fn booked(pool: &PgPool, route: &str) -> Result<Booked> {
    const COUNT: &str = "
        WITH times AS (SELECT number, count(*) AS n, min(amount) AS amount FROM bookings WHERE route = $1 GROUP BY number)
        SELECT count(*) FILTER (WHERE n = 1), count(*) FILTER (WHERE n > 1), coalesce(sum(amount), 0)::bigint FROM times";
    let (once, twice, asked): (i64, i64, i64) = sqlx::query_as(COUNT).bind(route).fetch_one(pool).await?;
    let receiver = if route == "/transfers" { "bob" } else { "dave" };
    let balance: i64 =
        sqlx::query_scalar("SELECT balance FROM accounts WHERE owner = $1").bind(receiver).fetch_one(pool).await?;
    Ok(Booked { once, twice, imbalance: balance - asked })
}
