//! A real pgbouncer in transaction mode: each transaction may have another session, and prepared
//! statements are not kept.

use axum::Extension;
use steadfast::server::TransactionHandle;
use steadfast_postgres::PostgresSession;

use super::proxy::contains;
use super::*;

/// Returns options that lead through pgbouncer to a database of this test's own, and a pool with
/// direct connections.
pub(crate) async fn behind_pgbouncer() -> (PgConnectOptions, PgPool) {
    let url = std::env::var("STEADFAST_PGBOUNCER_URL")
        .expect("these tests want a pgbouncer: ./scripts/with_servers.sh cargo test -p steadfast-tests");
    let database = schema().await;
    let create = sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {database}")));
    create.execute(&pool_of(1, options())).await.unwrap();
    let through: PgConnectOptions = url.parse().unwrap();
    (through.database(&database), pool_of(4, options().database(&database)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn contract_holds_behind_pooler() {
    let (through, _) = behind_pgbouncer().await;
    let store = PostgresStore::new(pool_of(20, through));
    store.create_table().await.unwrap();
    contract::suite(Arc::new(store.clone()), |name| RecordId::new("contract", name)).await;
    let store = Arc::new(store.transactional());
    steadfast_testing::transactional_store_contract(store, |name| RecordId::new("one", name)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pooler_loses_no_end() {
    // With an existing table, only the calls themselves show the properties of the sessions.
    for makes_table in [true, false] {
        let (through, direct) = behind_pgbouncer().await;
        let executions = Executions::default();
        let store = PostgresStore::new(pool_of(20, through));
        let made = if makes_table { store.clone() } else { PostgresStore::new(direct.clone()) };
        made.create_table().await.unwrap();
        let served =
            Arc::new(Served::start(orders(&executions), IdempotencyLayer::new(store, Scope::single_caller())).await);
        assert_eq!(post_all(&served, 0..200, 20).await, all("201 stored", 200));
        assert_eq!(post_all(&served, 0..200, 20).await, all("201 replayed", 200));
        assert_eq!(executions.count(), 200);
        assert_eq!(count("SELECT count(*) FROM steadfast_records WHERE state = 'done'", &direct).await, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handlers_behind_pooler_use_sqlx_as_usual() {
    let (through, direct) = behind_pgbouncer().await;
    let executions = Executions::default();
    let store = PostgresStore::new(pool_of(20, through));
    store.create_table().await.unwrap();
    run("CREATE TABLE orders (id int)", &direct).await;
    let counted = executions.clone();
    let order = move |Extension(lent): Extension<TransactionHandle<PostgresSession>>| async move {
        counted.add();
        let mut session = lent.lock().unwrap();
        for statement in ["INSERT INTO orders VALUES ($1)", "DELETE FROM orders WHERE id = $1 + 1"] {
            sqlx::query(statement).bind(1_i32).execute(&mut **session).await.unwrap();
        }
        StatusCode::CREATED
    };
    let layer = IdempotencyLayer::new(store.transactional(), Scope::single_caller());
    let served = Arc::new(Served::start(Router::new().route("/orders", post(order)), layer).await);
    assert_eq!(post_all(&served, 0..200, 20).await, all("201 stored", 200));
    assert_eq!(post_all(&served, 0..200, 20).await, all("201 replayed", 200));
    assert_eq!(executions.count(), 200);
    assert_eq!(count("SELECT count(*) FROM orders", &direct).await, 200);
}

/// If another client has given the same name to another statement, that statement would be
/// executed.
#[tokio::test]
async fn statements_behind_pooler_have_no_names() {
    let (through, _) = behind_pgbouncer().await;
    let proxy = Proxy::start(&through).await;
    for connections in [1, 5] {
        let store = PostgresStore::new(pool_of(connections, proxy.options(through.clone())));
        store.create_table().await.unwrap();
        proxy.sent();
        let (one, two) = (RecordId::new("", &connections.to_string()), RecordId::new("two", &connections.to_string()));
        let (apart, end) = (claim(&one), End::Completed(Completion::new(record(), HOUR)));
        assert!(matches!(store.claim(&apart).await.unwrap(), ClaimOutcome::Acquired(())));
        assert!(store.renew(apart.reference(), HOUR).await.unwrap());
        store.finish(apart.reference(), Some(()), &end).await.unwrap();
        let together = claim(&two);
        let store = store.transactional();
        let ClaimOutcome::Acquired(session) = store.claim(&together).await.unwrap() else { panic!("the claim failed") };
        store.finish(together.reference(), Some(session), &end).await.unwrap();
        assert!(matches!(store.get(&two).await.unwrap(), Some(RecordState::Completed { .. })));
        store.purge_expired(10).await.unwrap();
        let sent = proxy.sent();
        assert!(sent.iter().any(|message| contains(message, b"UPDATE steadfast_records")), "they were sent here");
        assert!(!sent.iter().any(|message| uses_name(message)), "{connections}: a statement has a name");
    }
}

/// Returns whether a statement is prepared or executed under one of sqlx's names. (`S` closes one.)
fn uses_name(message: &[u8]) -> bool {
    message.windows(8).any(|window| window[0] != b'S' && window.ends_with(b"sqlx_s_"))
}

/// A hook of the pool may do this, and so may a pooler that was set up anew.
#[tokio::test]
async fn lost_statement_is_resent_without_name() {
    let pool = pool_of(1, options().options([("search_path", schema().await)]));
    let store = PostgresStore::new(pool.clone());
    store.create_table().await.unwrap();
    for key in 0..5 {
        let id = RecordId::new("", &key.to_string());
        let claim = claim(&id);
        assert!(matches!(store.claim(&claim).await.unwrap(), ClaimOutcome::Acquired(())), "{key}");
        run_raw("DEALLOCATE ALL", &pool).await;
        let end = End::Completed(Completion::new(record(), HOUR));
        assert_eq!(store.finish(claim.reference(), Some(()), &end).await.unwrap(), FinishOutcome::Stored, "{key}");
        run_raw("DEALLOCATE ALL", &pool).await;
    }
}

async fn run_raw(sql: &'static str, pool: &PgPool) {
    sqlx::raw_sql(sql).execute(pool).await.unwrap();
}
