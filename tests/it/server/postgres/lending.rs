//! The number of transactions lent at once: lower than the pool's connections, so that a handler
//! can have a second one.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Extension;
use axum::extract::State as Shared;
use steadfast::server::TransactionHandle;
use steadfast_postgres::{PostgresSession, TransactionalPostgresStore};
use tokio::sync::Semaphore;

use super::*;
use crate::support::clock;

type Lending = Extension<TransactionHandle<PostgresSession>>;

/// Returns a store over this number of connections, and its pool.
async fn store(connections: u32) -> (PgPool, PostgresStore) {
    let pool = pool_of(connections, options().options([("search_path", schema().await)]));
    let store = PostgresStore::new(pool.clone());
    store.create_table().await.unwrap();
    run("CREATE TABLE orders (id int)", &pool).await;
    (pool, store)
}

/// Handlers that run at the same time.
#[derive(Clone, Default)]
struct Crowd(Arc<(AtomicUsize, AtomicUsize)>);

impl Crowd {
    fn enter(&self) {
        let there = self.0.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.1.fetch_max(there, Ordering::SeqCst);
    }

    fn leave(&self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }

    fn most(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
}

/// Writes through the transaction, after taking another connection from the pool `asks` times.
fn asking(pool: &PgPool, asks: usize, crowd: &Crowd) -> axum::routing::MethodRouter {
    let (pool, crowd) = (pool.clone(), crowd.clone());
    post(move |Extension(lent): Lending| async move {
        crowd.enter();
        let mut session = lent.lock().unwrap();
        for _ in 0..asks {
            sqlx::query("SELECT pg_sleep(0.005)").execute(&pool).await.unwrap();
        }
        sqlx::query("INSERT INTO orders VALUES (1)").execute(&mut **session).await.unwrap();
        crowd.leave();
        StatusCode::CREATED
    })
}

async fn serve(handler: axum::routing::MethodRouter, store: TransactionalPostgresStore) -> Arc<Served> {
    Arc::new(
        Served::start(Router::new().route("/orders", handler), IdempotencyLayer::new(store, Scope::single_caller()))
            .await,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handlers_with_second_connection_all_end() {
    for (connections, lent) in [(2, 1), (3, 1), (5, 2), (8, 4)] {
        let (pool, store) = store(connections).await;
        let crowd = Crowd::default();
        let served = serve(asking(&pool, 2, &crowd), store.transactional()).await;
        assert_eq!(post_all(&served, 0..40, 20).await, all("201 stored", 40), "{connections}");
        assert_eq!(count("SELECT count(*) FROM orders", &pool).await, 40, "{connections}");
        assert_eq!(crowd.most(), lent, "{connections}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pool_of_one_lends_its_connection() {
    let (pool, store) = store(1).await;
    let served = serve(asking(&pool, 0, &Crowd::default()), store.transactional()).await;
    assert_eq!(post_all(&served, 0..10, 5).await, all("201 stored", 10));
    assert_eq!(count("SELECT count(*) FROM orders", &pool).await, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn derived_stores_share_transaction_limit() {
    let (pool, store) = store(6).await;
    let store = store.max_transactions(2);
    let crowd = Crowd::default();
    let (one, other) = (
        serve(asking(&pool, 1, &crowd), store.transactional()).await,
        serve(asking(&pool, 1, &crowd), store.clone().transactional()).await,
    );
    let (first, second) = tokio::join!(post_all(&one, 0..20, 10), post_all(&other, 20..40, 10));
    assert_eq!((first, second), (all("201 stored", 20), all("201 stored", 20)));
    assert_eq!(crowd.most(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn request_without_free_transaction_gets_503() {
    type Gate = Arc<(Executions, Semaphore, Semaphore)>;
    async fn held(Shared(gate): Shared<Gate>) -> StatusCode {
        gate.0.add();
        gate.1.add_permits(1);
        gate.2.acquire().await.unwrap().forget();
        StatusCode::CREATED
    }
    let (pool, store) = store(2).await;
    let gate: Gate = Arc::new((Executions::default(), Semaphore::new(0), Semaphore::new(0)));
    let layer =
        IdempotencyLayer::new(store.timeout(Duration::from_millis(300)).transactional(), Scope::single_caller());
    let router = Router::new().route("/orders", post(held)).with_state(gate.clone()).layer(layer.clone());
    let served = Arc::new(Served::serve(router).await);
    let order = |key: &'static str| {
        let served = served.clone();
        async move { served.post("/orders", key).send().await.unwrap() }
    };
    let first = tokio::spawn(order("first"));
    gate.1.acquire().await.unwrap().forget();
    for _ in 0..5 {
        let begun = clock::now();
        let refused = order("second").await;
        assert!(begun.elapsed() >= Duration::from_millis(300), "it has waited for a transaction");
        assert_eq!(header(&refused, "retry-after"), Some("1"));
        assert_eq!(problem(refused).await, (503, "store-unavailable".to_owned()));
    }
    // A repeat gets the state at once: it needs no transaction.
    assert_eq!(told(&order("first").await), "409 in-progress");
    assert_eq!(gate.0.count(), 1, "nothing else was executed");
    gate.2.add_permits(1);
    assert_eq!(told(&first.await.unwrap()), "201 stored");

    let second = tokio::spawn(order("second"));
    gate.1.acquire().await.unwrap().forget();
    assert_eq!(told(&order("first").await), "201 replayed");
    gate.2.add_permits(1);
    assert_eq!(told(&second.await.unwrap()), "201 stored");
    assert_eq!(gate.0.count(), 2);
    assert_eq!(layer.metrics().store_down, 5);
    assert_eq!(count("SELECT count(*) FROM steadfast_records", &pool).await, 2);
}

#[tokio::test]
async fn cancelled_claim_returns_its_permit() {
    let proxy = Proxy::start(&options()).await;
    let schema = schema().await;
    let store = PostgresStore::new(pool_by(proxy.options(options()), &schema)).max_transactions(2);
    store.create_table().await.unwrap();
    let store = store.timeout(Duration::from_millis(100)).transactional();
    proxy.hold("BEGIN");
    for key in 0..4 {
        let id = RecordId::new("", &key.to_string());
        assert!(matches!(store.claim(&claim(&id)).await, Err(StoreError::Unavailable(_))));
    }
    proxy.let_go();
    let ids = ["one", "two"].map(|name| RecordId::new("", name));
    let held = async {
        let mut sessions = Vec::new();
        for id in &ids {
            loop {
                match store.claim(&claim(id)).await {
                    Ok(ClaimOutcome::Acquired(session)) => break sessions.push(session),
                    // The database is still slow, after four connections at once.
                    Err(StoreError::Unavailable(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        sessions
    };
    let held = tokio::time::timeout(Duration::from_secs(10), held).await.expect("a permit is lost");
    let id = RecordId::new("", "three");
    let busy = store.claim(&claim(&id)).await.unwrap_err();
    assert!(busy.to_string().contains("max_transactions is reached (2); raise it with"), "{busy}");
    drop(held);
    assert!(matches!(store.claim(&claim(&id)).await.unwrap(), ClaimOutcome::Acquired(_)));
}
