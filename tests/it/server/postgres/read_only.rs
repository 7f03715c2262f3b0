//! A server that no longer accepts writes, under a name that leads to another one. Open sessions
//! stay where they are.
//!
//! A database stands for the name. It decides at their beginning whether its sessions are
//! read-only.

use axum::Extension;
use steadfast::server::TransactionHandle;
use steadfast_postgres::PostgresSession;

use super::*;
use crate::support::clock;

pub(crate) struct Failover {
    database: String,
    admin: PgPool,
}

impl Failover {
    pub(crate) async fn stage() -> Self {
        let database = schema().await;
        let admin = pool_of(1, options());
        let staged = Self { database, admin };
        staged.tell("CREATE DATABASE ").await;
        staged
    }

    async fn tell(&self, words: &str) {
        let (verb, rest) = words.split_once("DATABASE ").unwrap();
        let sql = format!("{verb}DATABASE {} {rest}", self.database);
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&self.admin).await.unwrap();
    }

    /// Returns a pool with all its connections open, to sessions that are read-only or not.
    pub(crate) async fn pool(&self, connections: u32) -> PgPool {
        let pool = pool_of(connections, options().database(&self.database));
        let mut open = Vec::new();
        for _ in 0..connections {
            open.push(pool.acquire().await.unwrap());
        }
        drop(open);
        pool
    }

    /// Makes new sessions read-only, as on a server that accepts no writes.
    pub(crate) async fn read_only(&self) {
        self.tell("ALTER DATABASE SET default_transaction_read_only = on").await;
    }

    /// Makes new sessions writable, as on a primary.
    pub(crate) async fn promoted(&self) {
        self.tell("ALTER DATABASE RESET default_transaction_read_only").await;
    }
}

#[tokio::test]
async fn connections_to_read_only_server_are_closed() {
    let failover = Failover::stage().await;
    PostgresStore::new(failover.pool(1).await).create_table().await.unwrap();
    failover.read_only().await;
    let pool = failover.pool(5).await;
    let executions = Executions::default();
    let store = PostgresStore::new(pool.clone());
    let served =
        Arc::new(Served::start(orders(&executions), IdempotencyLayer::new(store, Scope::single_caller())).await);
    assert_eq!(post_all(&served, 0..10, 1).await, all("503 untold", 10));
    assert_eq!(executions.count(), 0);

    failover.promoted().await;
    let healed = async { while post_all(&served, 10..11, 1).await != all("201 stored", 1) {} };
    tokio::time::timeout(Duration::from_secs(5), healed).await.expect("it stays with the old server");
    assert_eq!(post_all(&served, 11..50, 10).await, all("201 stored", 39));
    assert_eq!(executions.count(), 40);
}

#[tokio::test]
async fn read_only_server_gets_no_session_per_call() {
    let failover = Failover::stage().await;
    PostgresStore::new(failover.pool(1).await).create_table().await.unwrap();
    failover.read_only().await;
    let pool = failover.pool(5).await;
    let store = PostgresStore::new(pool.clone());
    let begun = clock::now();
    let mut refused = 0;
    while begun.elapsed() < Duration::from_millis(2500) {
        let id = RecordId::new("", &format!("{refused}"));
        assert!(matches!(store.claim(&claim(&id)).await, Err(StoreError::Unavailable(_))));
        refused += 1;
    }
    let sql = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()";
    let sessions: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap();
    assert!(refused > 50 && sessions < 30, "{sessions} sessions for {refused} calls");
}

#[tokio::test]
async fn first_call_after_failover_finds_primary() {
    let failover = Failover::stage().await;
    PostgresStore::new(failover.pool(1).await).create_table().await.unwrap();
    failover.read_only().await;
    let pool = failover.pool(5).await;
    failover.promoted().await;
    // The store takes a new session for one with the current server.
    let old = "SELECT count(*) FROM pg_stat_activity
               WHERE datname = current_database() AND backend_start > clock_timestamp() - interval '1.1 s'";
    while count(old, &pool).await > 0 {}
    let executions = Executions::default();
    let layer = IdempotencyLayer::new(PostgresStore::new(pool), Scope::single_caller());
    let served = Arc::new(Served::start(orders(&executions), layer).await);
    assert_eq!(post_all(&served, 0..20, 1).await, all("201 stored", 20));
    assert_eq!(executions.count(), 20);
}

#[tokio::test]
async fn read_only_transaction_runs_no_handler() {
    let failover = Failover::stage().await;
    PostgresStore::new(failover.pool(1).await).create_table().await.unwrap();
    failover.read_only().await;
    let pool = failover.pool(4).await;
    let executions = Executions::default();
    let counted = executions.clone();
    let handler = move |Extension(lent): Extension<TransactionHandle<PostgresSession>>| async move {
        counted.add();
        let mut session = lent.lock().unwrap();
        sqlx::query("CREATE TABLE IF NOT EXISTS orders (id int)").execute(&mut **session).await.unwrap();
        StatusCode::CREATED
    };
    let layer = IdempotencyLayer::new(PostgresStore::new(pool.clone()).transactional(), Scope::single_caller());
    let served = Arc::new(Served::start(Router::new().route("/orders", post(handler)), layer).await);
    assert_eq!(post_all(&served, 0..3, 1).await, all("503 untold", 3));
    assert_eq!(executions.count(), 0);
    failover.promoted().await;
    let healed = async { while post_all(&served, 3..4, 1).await != all("201 stored", 1) {} };
    tokio::time::timeout(Duration::from_secs(5), healed).await.expect("it stays with the old server");
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn terminated_sessions_fail_no_call() {
    let (_, pool) = pool().await;
    let store = PostgresStore::new(pool.clone());
    store.create_table().await.unwrap();
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut connection = pool.acquire().await.unwrap();
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *connection).await.unwrap();
        open.push((connection, pid));
    }
    let (connections, sessions): (Vec<_>, Vec<_>) = open.into_iter().unzip();
    drop(connections);
    let killed = sqlx::query_scalar::<_, i64>("SELECT count(pg_terminate_backend(pid, 5000)) FROM unnest($1) AS pid");
    let other = pool_of(1, options());
    assert_eq!(killed.bind(sessions).fetch_one(&other).await.unwrap(), 5);
    for key in 0..10 {
        let id = RecordId::new("", &key.to_string());
        assert!(matches!(store.claim(&claim(&id)).await.unwrap(), ClaimOutcome::Acquired(())));
    }
}
