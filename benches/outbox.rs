//! Whole operations through an outbox in a file and in PostgreSQL, beside bare commits of the same
//! durability.
//!
//! `./scripts/bench.sh outbox` puts the table on the page. Times differ from run to run; the ratio is
//! what counts.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a program that measures time, and panics if it cannot"
)]

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream;
use redb::{Database, TableDefinition};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use steadfast::{Client, KeyPolicy};
use steadfast_outbox::{Outbox, OutboxStore, RedbOutbox};
use steadfast_postgres::PostgresOutbox;
use steadfast_testing::{FaultServer, FaultStep};

const SUBMITTERS: usize = 64;
const OPERATIONS: usize = 4_000;
const COMMITS: usize = 400;
const CONNECTIONS: u32 = 10;
const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("bare");

/// Returns how many bare commits a second `SUBMITTERS` threads make, each with its own sync.
fn bare() -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let database = Arc::new(Database::create(folder.path().join("bare.redb")).unwrap());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..SUBMITTERS {
            let database = database.clone();
            scope.spawn(move || {
                for number in (thread..COMMITS).step_by(SUBMITTERS) {
                    let mut transaction = database.begin_write().unwrap();
                    transaction.set_two_phase_commit(true);
                    transaction.open_table(TABLE).unwrap().insert(number as u64, [7; 300].as_slice()).unwrap();
                    transaction.commit().unwrap();
                }
            });
        }
    });
    COMMITS as f64 / started.elapsed().as_secs_f64()
}

/// Returns how many rows a second `SUBMITTERS` tasks insert, each with a commit of its own.
async fn bare_inserts(pool: &PgPool) -> f64 {
    sqlx::query("CREATE TABLE bare (id bigint PRIMARY KEY, entry bytea)").execute(pool).await.unwrap();
    let insert = |number: usize| async move {
        let insert = sqlx::query("INSERT INTO bare VALUES ($1, $2)").bind(number as i64).bind([7_u8; 300].as_slice());
        insert.execute(pool).await.unwrap();
    };
    let started = Instant::now();
    stream::iter(0..OPERATIONS).for_each_concurrent(SUBMITTERS, insert).await;
    OPERATIONS as f64 / started.elapsed().as_secs_f64()
}

/// Returns how many operations a second are submitted, sent, ended, waited for and acknowledged.
async fn whole(store: impl OutboxStore, operations: usize) -> f64 {
    let server = FaultServer::start(|_, _| FaultStep::execute(201)).await;
    let client = Client::builder().base_url(server.url("")).keys(KeyPolicy::standard()).build().unwrap();
    let outbox = Outbox::open(store, client.clone()).workers(SUBMITTERS, SUBMITTERS).start().await.unwrap();
    let started = Instant::now();
    let operation = |_| async {
        let id = outbox.submit(client.post("/charges").body("12 EUR").prepare().unwrap()).await.unwrap();
        outbox.wait(id).await.unwrap();
        outbox.acknowledge(id).await.unwrap();
    };
    stream::iter(0..operations).for_each_concurrent(SUBMITTERS, operation).await;
    assert_eq!(server.executions(), operations);
    operations as f64 / started.elapsed().as_secs_f64()
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().unwrap();
    let floor = bare();
    let redb = whole(RedbOutbox::open(folder.path().join("operations.redb")).unwrap(), OPERATIONS).await;
    let url = std::env::var("STEADFAST_POSTGRES_URL").expect("this wants a PostgreSQL: ./scripts/bench.sh outbox");
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect(&url).await.unwrap();
    let store = PostgresOutbox::new(pool.clone());
    store.create_table().await.unwrap();
    // Connections are opened, statements prepared, and the table analysed, as autovacuum does within a
    // minute: the plan for a small table is the wrong one for a large one.
    whole(store.clone(), OPERATIONS / 10).await;
    sqlx::query("ANALYZE steadfast_outbox").execute(&pool).await.unwrap();
    let inserts = bare_inserts(&pool).await;
    let postgres = whole(store, OPERATIONS).await;
    println!("| {SUBMITTERS} at once | a second | of the floor |");
    println!("| --- | ---: | ---: |");
    println!("| a bare commit in a file of redb, synced twice (the floor) | {floor:.0} | 1.0 |");
    println!("| a whole operation over `RedbOutbox` | {redb:.0} | {:.1} |", redb / floor);
    println!("| a bare INSERT in PostgreSQL, {CONNECTIONS} connections (the floor) | {inserts:.0} | 1.0 |");
    println!("| a whole operation over `PostgresOutbox` | {postgres:.0} | {:.1} |", postgres / inserts);
}
