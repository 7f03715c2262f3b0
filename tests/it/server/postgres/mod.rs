//! The store in PostgreSQL, over a real server: the contract, faults of the database and of the
//! connection to it, and the transaction that is lent to a handler.

mod commit;
mod conflicts;
mod isolation;
mod lending;
mod lent;
pub(crate) mod pooler;
pub(crate) mod proxy;
pub(crate) mod read_only;
pub(crate) mod roles;
mod round_trips;
mod transactional;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use steadfast::http::HeaderMap;
use steadfast::server::{
    Claim, ClaimOutcome, ClaimToken, Completion, End, Fingerprint, FinishOutcome, IdempotencyLayer, Record, RecordId,
    RecordState, Scope, Store, StoreError,
};
use steadfast_postgres::PostgresStore;

use self::proxy::Proxy;
use super::support::{Executions, Served, header, problem};
use super::{contract, processes};

const HOUR: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(40);
const ONE: Fingerprint = Fingerprint::from_bytes([1; 32]);
const OTHER: Fingerprint = Fingerprint::from_bytes([2; 32]);

fn record() -> Record {
    Record::new(StatusCode::CREATED, &HeaderMap::new(), "done".into())
}

fn claim(id: &RecordId) -> Claim<'_> {
    Claim::new(id, ClaimToken::new().unwrap(), ONE, HOUR, HOUR)
}

/// Returns the options of the database. There is no default, since a skipped test would count as
/// passed.
pub(crate) fn options() -> PgConnectOptions {
    let url = std::env::var("STEADFAST_POSTGRES_URL")
        .expect("these tests want a PostgreSQL: ./scripts/with_servers.sh cargo test -p steadfast-tests");
    url.parse().unwrap()
}

/// Returns a pool in this schema.
pub(crate) fn pool_in(schema: &str) -> PgPool {
    pool_by(options(), schema)
}

pub(crate) fn pool_by(options: PgConnectOptions, schema: &str) -> PgPool {
    pool_of(10, options.options([("search_path", schema)]))
}

pub(crate) fn pool_of(connections: u32, options: PgConnectOptions) -> PgPool {
    let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(Duration::from_secs(10));
    pool.connect_lazy_with(options)
}

/// Creates a new schema.
pub(crate) async fn schema() -> String {
    let schema = format!("t{}", steadfast::uuid::Uuid::from_bytes(*ClaimToken::new().unwrap().as_bytes()).simple());
    let admin = PgPoolOptions::new().max_connections(1).connect_with(options()).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).execute(&admin).await.unwrap();
    admin.close().await;
    schema
}

/// Returns a pool in a schema of its own, with the schema's name.
pub(crate) async fn pool() -> (String, PgPool) {
    let schema = schema().await;
    let pool = pool_in(&schema);
    (schema, pool)
}

pub(crate) async fn store() -> PostgresStore {
    let store = PostgresStore::new(pool().await.1);
    store.create_table().await.unwrap();
    store
}

pub(crate) async fn run(sql: &'static str, pool: &PgPool) -> u64 {
    sqlx::query(sql).execute(pool).await.unwrap().rows_affected()
}

pub(crate) async fn count(sql: &'static str, pool: &PgPool) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// Sends a POST for each key, `at_once` at a time. Counts the responses by status and
/// `Idempotency-Status`.
async fn post_all(served: &Arc<Served>, keys: std::ops::Range<usize>, at_once: usize) -> BTreeMap<String, usize> {
    let (mut answers, mut posts) = (BTreeMap::new(), tokio::task::JoinSet::new());
    let mut count = |answer| *answers.entry(answer).or_default() += 1;
    for key in keys {
        if posts.len() == at_once {
            count(posts.join_next().await.unwrap().unwrap());
        }
        let served = served.clone();
        posts.spawn(async move { told(&served.post("/orders", &key.to_string()).send().await.unwrap()) });
    }
    for answer in posts.join_all().await {
        count(answer);
    }
    answers
}

/// Returns the status and the key's state, as in `201 stored`.
fn told(response: &steadfast::reqwest::Response) -> String {
    let became = header(response, "idempotency-status").and_then(|status| status.split(';').next());
    format!("{} {}", response.status().as_u16(), became.unwrap_or("untold"))
}

fn all(answer: &str, times: usize) -> BTreeMap<String, usize> {
    BTreeMap::from([(answer.to_owned(), times)])
}

fn orders(executions: &Executions) -> Router {
    let executions = executions.clone();
    Router::new().route("/orders", post(move || async move { (StatusCode::CREATED, format!("{}", executions.add())) }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn contract_holds() {
    contract::suite(Arc::new(store().await), |name| RecordId::new("contract", name)).await;
}

/// The children of the next test: a hundred concurrent claims, as soon as all children are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn contender() {
    let Some(argument) = processes::contender() else { return };
    let (mode, schema) = argument.split_once('#').unwrap();
    let (store, id) = (PostgresStore::new(pool_in(schema)), RecordId::new("", "contended"));
    if mode == "apart" {
        processes::contend(Arc::new(store), id, 100).await;
    } else {
        processes::contend(Arc::new(store.transactional()), id, 100).await;
    }
}

#[tokio::test]
async fn two_hundred_claims_in_two_processes_one_succeeds() {
    for mode in ["apart", "one"] {
        let (schema, pool) = pool().await;
        PostgresStore::new(pool).create_table().await.unwrap();
        let contest = move || processes::contest("server::postgres::contender", &format!("{mode}#{schema}"), 2);
        assert_eq!(tokio::task::spawn_blocking(contest).await.unwrap(), 1, "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_starts_all_create_table() {
    let (_, pool) = pool().await;
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let store = PostgresStore::new(pool.clone());
        starts.spawn(async move { store.create_table().await });
    }
    assert!(starts.join_all().await.into_iter().all(|made| made.is_ok()));
}

#[test]
fn guide_prints_the_created_schema() {
    assert!(include_str!("../../../../src/guide/server.md").contains(PostgresStore::SCHEMA));
}

#[tokio::test]
async fn repeat_writes_nothing_and_no_raw_key_is_stored() {
    let (_, pool) = pool().await;
    let store = PostgresStore::new(pool.clone());
    store.create_table().await.unwrap();
    let id = RecordId::new("tenant", "key");
    let first = claim(&id);
    assert!(matches!(store.claim(&first).await.unwrap(), ClaimOutcome::Acquired(())));
    store.finish(first.reference(), Some(()), &End::Completed(Completion::new(record(), HOUR))).await.unwrap();
    let stored: Vec<u8> = sqlx::query_scalar("SELECT id FROM steadfast_records").fetch_one(&pool).await.unwrap();
    assert_eq!(stored, id.as_bytes());
    // `xmin` and `xmax` name the transactions that wrote and locked the row. A repeat does neither.
    const TOUCHED: &str = "SELECT (xmin::text || xmax::text || ctid::text) FROM steadfast_records";
    let before: String = sqlx::query_scalar(TOUCHED).fetch_one(&pool).await.unwrap();
    for _ in 0..3 {
        assert!(matches!(
            store.claim(&claim(&id)).await.unwrap(),
            ClaimOutcome::Existing(RecordState::Completed { .. })
        ));
    }
    let after: String = sqlx::query_scalar(TOUCHED).fetch_one(&pool).await.unwrap();
    assert_eq!(after, before);
}

#[tokio::test]
async fn damaged_or_newer_record_is_refused() {
    let (_, pool) = pool().await;
    let store = PostgresStore::new(pool.clone());
    store.create_table().await.unwrap();
    let id = RecordId::new("", "k");
    let first = claim(&id);
    store.claim(&first).await.unwrap();
    store.finish(first.reference(), Some(()), &End::Completed(Completion::new(record(), HOUR))).await.unwrap();
    for damage in [
        "UPDATE steadfast_records SET record = set_byte(record, 12, 255 - get_byte(record, 12))",
        "UPDATE steadfast_records SET record = set_byte(record, 0, 9)",
        "UPDATE steadfast_records SET record = ''",
    ] {
        assert_eq!(run(damage, &pool).await, 1);
        for take_over in [false, true] {
            let refused = store.claim(&claim(&id).allow_takeover(take_over)).await;
            assert!(matches!(refused, Err(StoreError::Unreadable(_))), "{damage}");
            let refused = store.transactional().claim(&claim(&id).allow_takeover(take_over)).await;
            assert!(matches!(refused, Err(StoreError::Unreadable(_))), "{damage}");
        }
        assert!(matches!(store.get(&id).await, Err(StoreError::Unreadable(_))), "{damage}");
    }
}

#[tokio::test]
async fn claims_remove_expired_records() {
    let (_, pool) = pool().await;
    let store = PostgresStore::new(pool.clone());
    store.create_table().await.unwrap();
    for number in 0..200 {
        let id = RecordId::new("", &number.to_string());
        let claim = claim(&id);
        store.claim(&claim).await.unwrap();
        store
            .finish(claim.reference(), Some(()), &End::Completed(Completion::new(record(), Duration::ZERO)))
            .await
            .unwrap();
    }
    let rows = count("SELECT count(*) FROM steadfast_records", &pool).await;
    assert!((1..64).contains(&rows), "{rows} rows after 200 claims");
    assert_eq!(store.purge_expired(1).await.unwrap(), 1);
    assert_eq!(store.purge_expired(1000).await.unwrap(), usize::try_from(rows - 1).unwrap());
}

#[tokio::test]
async fn database_outage_executes_nothing_then_recovers() {
    let proxy = Proxy::start(&options()).await;
    let pool = pool_by(proxy.options(options()), &schema().await);
    let store = PostgresStore::new(pool).timeout(Duration::from_millis(500));
    store.create_table().await.unwrap();
    let executions = Executions::default();
    let served = Served::start(orders(&executions), IdempotencyLayer::new(store, Scope::single_caller())).await;
    proxy.set_down(true);
    let refused = served.post("/orders", "k").send().await.unwrap();
    assert_eq!(header(&refused, "retry-after"), Some("1"));
    assert_eq!(problem(refused).await, (503, "store-unavailable".to_owned()));
    assert_eq!(executions.count(), 0);
    proxy.set_down(false);
    assert_eq!(served.post("/orders", "k").send().await.unwrap().status(), 201);
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn database_lost_at_end_stores_end_later() {
    let proxy = Arc::new(Proxy::start(&options()).await);
    let pool = pool_by(proxy.options(options()), &schema().await);
    let store = PostgresStore::new(pool).timeout(Duration::from_millis(500));
    store.create_table().await.unwrap();
    let executions = Executions::default();
    let (cut, counted) = (proxy.clone(), executions.clone());
    let handler = post(move || async move {
        cut.set_down(true);
        (StatusCode::CREATED, format!("{}", counted.add()))
    });
    let layer = IdempotencyLayer::new(store, Scope::single_caller()).lease(Duration::from_secs(2));
    let served = Served::start(Router::new().route("/orders", handler), layer.clone()).await;
    let first = served.post("/orders", "k").send().await.unwrap();
    assert_eq!(header(&first, "idempotency-status"), Some("unknown;retention=86400"));
    assert_eq!((first.status().as_u16(), first.text().await.unwrap().as_str()), (201, "1"));
    // Longer than the lease: nothing was renewed, but the operation still belongs to this process.
    assert!(tokio::time::timeout(Duration::from_secs(3), std::future::pending::<()>()).await.is_err());
    proxy.set_down(false);
    layer.drain().await;
    let again = served.post("/orders", "k").send().await.unwrap();
    assert_eq!(header(&again, "idempotent-replayed"), Some("true"));
    assert_eq!((again.status().as_u16(), again.text().await.unwrap().as_str()), (201, "1"));
    assert_eq!(executions.count(), 1);
}
