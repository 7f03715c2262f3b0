//! Sessions whose default isolation is stricter than `READ COMMITTED`, and statements that the
//! database rolls back.

use axum::Extension;
use steadfast::server::TransactionHandle;
use steadfast_postgres::PostgresSession;

use super::*;

/// Returns a pool whose sessions have this default isolation, over a table of its own.
async fn strict(level: &str) -> PgPool {
    let options =
        options().options([("search_path", schema().await.as_str()), ("default_transaction_isolation", level)]);
    let pool = pool_of(20, options);
    PostgresStore::new(pool.clone()).create_table().await.unwrap();
    run("CREATE TABLE orders (id int)", &pool).await;
    pool
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn strict_sessions_refuse_no_operation() {
    for level in ["repeatable read", "serializable"] {
        let pool = strict(level).await;
        let executions = Executions::default();
        let store = PostgresStore::new(pool.clone());
        let served =
            Arc::new(Served::start(orders(&executions), IdempotencyLayer::new(store, Scope::single_caller())).await);
        assert_eq!(post_all(&served, 0..300, 32).await, all("201 stored", 300), "{level}");
        assert_eq!(post_all(&served, 0..300, 32).await, all("201 replayed", 300), "{level}");
        assert_eq!(executions.count(), 300, "{level}");
        assert_eq!(count("SELECT count(*) FROM steadfast_records WHERE state = 'done'", &pool).await, 300, "{level}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn strict_sessions_lend_read_committed_transactions() {
    async fn order(Extension(lent): Extension<TransactionHandle<PostgresSession>>) -> StatusCode {
        let mut session = lent.lock().unwrap();
        sqlx::query("INSERT INTO orders VALUES (1)").execute(&mut **session).await.unwrap();
        let level: String = sqlx::query_scalar("SHOW transaction_isolation").fetch_one(&mut **session).await.unwrap();
        assert_eq!(level, "read committed");
        StatusCode::CREATED
    }
    let pool = strict("serializable").await;
    let layer = IdempotencyLayer::new(PostgresStore::new(pool.clone()).transactional(), Scope::single_caller());
    let served = Arc::new(Served::start(Router::new().route("/orders", post(order)), layer).await);
    assert_eq!(post_all(&served, 0..100, 16).await, all("201 stored", 100));
    assert_eq!(post_all(&served, 0..100, 16).await, all("201 replayed", 100));
    assert_eq!(count("SELECT count(*) FROM orders", &pool).await, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sessions_that_become_strict_refuse_no_operation() {
    let (schema, pool) = pool().await;
    let store = PostgresStore::new(pool.clone());
    store.create_table().await.unwrap();
    // The store has checked its sessions, which are now replaced by others.
    let strict = [("search_path", schema.as_str()), ("default_transaction_isolation", "serializable")];
    pool.set_connect_options(options().options(strict));
    while let Some(idle) = pool.try_acquire() {
        idle.close().await.unwrap();
    }
    let executions = Executions::default();
    let served =
        Arc::new(Served::start(orders(&executions), IdempotencyLayer::new(store, Scope::single_caller())).await);
    assert_eq!(post_all(&served, 0..300, 32).await, all("201 stored", 300));
    assert_eq!(executions.count(), 300);
}

/// Makes the table refuse the next `times` writes with this error, from any client, even if the
/// transaction is rolled back.
pub(super) async fn refuse_writes(times: i64, code: &'static str, pool: &PgPool) {
    let sql = format!(
        "DROP SEQUENCE IF EXISTS writes CASCADE;
         CREATE SEQUENCE writes;
         CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF nextval('writes') <= {times} THEN RAISE EXCEPTION 'refused' USING ERRCODE = '{code}'; END IF;
             RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
         END $$;
         CREATE OR REPLACE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON steadfast_records
         FOR EACH ROW EXECUTE FUNCTION refuse()"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(pool).await.unwrap();
}

#[tokio::test]
async fn rolled_back_statement_is_repeated() {
    for code in ["40001", "40P01"] {
        let (_, pool) = pool().await;
        let store = PostgresStore::new(pool.clone());
        store.create_table().await.unwrap();
        let refuse = || refuse_writes(2, code, &pool);
        let ids = ["completed", "released", "abandoned"].map(|name| RecordId::new("", name));
        let claims = ids.each_ref().map(claim);
        for claim in &claims {
            refuse().await;
            assert!(matches!(store.claim(claim).await.unwrap(), ClaimOutcome::Acquired(())), "{code}");
        }
        refuse().await;
        assert!(store.renew(claims[0].reference(), HOUR).await.unwrap(), "{code}");
        refuse().await;
        let end = End::Completed(Completion::new(record(), Duration::ZERO));
        let ended = async |nth: usize, end: &End| store.finish(claims[nth].reference(), Some(()), end).await.unwrap();
        assert_eq!(ended(0, &end).await, FinishOutcome::Stored, "{code}");
        refuse().await;
        assert_eq!(ended(1, &End::Released).await, FinishOutcome::Stored, "{code}");
        refuse().await;
        assert_eq!(ended(2, &End::Unknown).await, FinishOutcome::Stored, "{code}");
        refuse().await;
        assert_eq!(store.purge_expired(10).await.unwrap(), 1, "{code}");
        assert_eq!(count("SELECT last_value FROM writes", &pool).await, 3, "{code}: refused twice, and then taken");
    }
}

#[tokio::test]
async fn statement_repeats_are_limited() {
    let (_, pool) = pool().await;
    let store = PostgresStore::new(pool.clone());
    store.create_table().await.unwrap();
    refuse_writes(1000, "40001", &pool).await;
    let id = RecordId::new("", "k");
    assert!(matches!(store.claim(&claim(&id)).await, Err(StoreError::Unavailable(_))));
    assert_eq!(count("SELECT last_value FROM writes", &pool).await, 6, "once, and five times again");
    assert_eq!(store.get(&id).await.unwrap(), None);
}
