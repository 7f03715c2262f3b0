//! The transaction in real handlers: rows and record are committed together, whatever the handler
//! does.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State as Shared};
use axum::response::{IntoResponse, Response};
use steadfast::server::{ExecutionOutcome, OnUnknown, PendingEnds, TransactionHandle};
use steadfast_postgres::{PostgresSession, TransactionalPostgresStore};
use tokio::sync::{Notify, Semaphore};

use super::*;

struct Shop {
    pool: PgPool,
    layer: IdempotencyLayer<TransactionalPostgresStore>,
    served: Served,
    executions: Executions,
}

impl Shop {
    async fn open(handler: fn(Handling) -> Reply) -> Self {
        Self::with(handler, |layer| layer).await
    }

    async fn with(
        handler: fn(Handling) -> Reply,
        set: impl FnOnce(IdempotencyLayer<TransactionalPostgresStore>) -> IdempotencyLayer<TransactionalPostgresStore>,
    ) -> Self {
        let (_, pool) = pool().await;
        let store = PostgresStore::new(pool.clone());
        store.create_table().await.unwrap();
        run("CREATE TABLE orders (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)", &pool).await;
        let layer = set(IdempotencyLayer::new(store.transactional(), Scope::single_caller()));
        let executions = Executions::default();
        let counted = executions.clone();
        let take = move |Extension(lent), Path(id): Path<i32>| handler(Handling { lent, id, nth: counted.add() });
        let router = Router::new().route("/orders/{id}", post(take)).layer(layer.clone());
        let served = Served::serve(router).await;
        Self { pool, layer, served, executions }
    }

    async fn order(&self, id: i32) -> steadfast::reqwest::Response {
        self.served.post(&format!("/orders/{id}"), &format!("k{id}")).send().await.unwrap()
    }

    async fn rows(&self) -> i64 {
        count("SELECT count(*) FROM orders", &self.pool).await
    }
}

struct Handling {
    lent: TransactionHandle<PostgresSession>,
    id: i32,
    nth: usize,
}

type Reply = std::pin::Pin<Box<dyn Future<Output = Response> + Send>>;
type Handler = fn(Handling) -> Reply;

impl Handling {
    async fn insert(&self) {
        let mut session = self.lent.lock().unwrap();
        sqlx::query("INSERT INTO orders VALUES ($1)").bind(self.id).execute(&mut **session).await.unwrap();
    }
}

fn reply(status: StatusCode, verdict: Option<ExecutionOutcome>) -> Response {
    let mut response = (status, "the answer").into_response();
    if let Some(verdict) = verdict {
        response.extensions_mut().insert(verdict);
    }
    response
}

#[tokio::test]
async fn rows_and_record_commit_together() {
    let shop = Shop::open(|handling| {
        Box::pin(async move {
            handling.insert().await;
            reply(StatusCode::CREATED, None)
        })
    })
    .await;
    let first = shop.order(1).await;
    assert_eq!(header(&first, "idempotency-status"), Some("stored;retention=86400"));
    let again = shop.order(1).await;
    assert_eq!((again.status().as_u16(), header(&again, "idempotent-replayed")), (201, Some("true")));
    assert_eq!((shop.rows().await, shop.executions.count()), (1, 1));
    let other = shop.served.post("/orders/2", "k1").send().await.unwrap();
    assert_eq!(problem(other).await.0, 422);
}

#[tokio::test]
async fn error_response_keeps_record_alone() {
    let shop = Shop::open(|handling| {
        Box::pin(async move {
            handling.insert().await;
            let verdict = (handling.id == 2).then_some(ExecutionOutcome::Executed);
            reply(StatusCode::CONFLICT, verdict)
        })
    })
    .await;
    for id in [1, 2] {
        assert_eq!(shop.order(id).await.status(), 409);
        let again = shop.order(id).await;
        assert_eq!(header(&again, "idempotent-replayed"), Some("true"));
        assert_eq!(again.text().await.unwrap(), "the answer");
    }
    assert_eq!(count("SELECT sum(id) FROM orders", &shop.pool).await, 2, "the one that said Executed keeps its row");
    assert_eq!(shop.executions.count(), 2);
}

#[tokio::test]
async fn unexecuted_or_unknown_leaves_no_rows_and_reruns() {
    let shop = Shop::open(|handling| {
        Box::pin(async move {
            handling.insert().await;
            match (handling.nth, handling.id) {
                (1, 1) => reply(StatusCode::SERVICE_UNAVAILABLE, Some(ExecutionOutcome::NotExecuted)),
                (1, 2) => panic!("on purpose"),
                (1, 3) => reply(StatusCode::BAD_GATEWAY, Some(ExecutionOutcome::Unknown)),
                _ => reply(StatusCode::CREATED, None),
            }
        })
    })
    .await;
    for (id, status) in [(1, 503), (2, 500), (3, 502)] {
        assert_eq!(shop.order(id).await.status(), status);
        assert_eq!(shop.rows().await, i64::from(id - 1), "{id}: nothing of the first run is left");
        assert_eq!(shop.order(id).await.status(), 201);
        assert_eq!(shop.rows().await, i64::from(id));
        shop.executions.reset();
    }
}

#[tokio::test]
async fn unknown_is_rejected_if_configured() {
    let shop = Shop::with(
        |handling| {
            Box::pin(async move {
                handling.insert().await;
                panic!("on purpose")
            })
        },
        |layer| layer.on_unknown(OnUnknown::Reject),
    )
    .await;
    assert_eq!(problem(shop.order(1).await).await, (500, "outcome-unknown-handler-failed".to_owned()));
    assert_eq!(problem(shop.order(1).await).await, (409, "outcome-unknown".to_owned()));
    assert_eq!((shop.rows().await, shop.executions.count()), (0, 1));
}

#[tokio::test]
async fn handler_that_loses_transaction_gets_500() {
    static HELD: std::sync::Mutex<Vec<steadfast::server::TransactionGuard<PostgresSession>>> =
        std::sync::Mutex::new(Vec::new());
    let shop = Shop::open(|handling| {
        Box::pin(async move {
            handling.insert().await;
            if handling.nth == 1 {
                HELD.lock().unwrap().push(handling.lent.lock().unwrap());
            }
            reply(StatusCode::CREATED, None)
        })
    })
    .await;
    assert_eq!(problem(shop.order(1).await).await, (500, "transaction-lost".to_owned()));
    assert_eq!(shop.rows().await, 0);
    assert_eq!(problem(shop.order(1).await).await, (409, "in-progress".to_owned()), "the handler still holds the key");
    HELD.lock().unwrap().clear();
    let run_again = async { while shop.order(1).await.status() != 201 {} };
    tokio::time::timeout(Duration::from_secs(10), run_again).await.unwrap();
    assert_eq!((shop.rows().await, shop.executions.count()), (1, 2));
}

/// The SQL of a handler can end the transaction, though the session cannot. The response must not
/// be stored as a success.
#[tokio::test]
async fn transaction_ended_by_handler_gets_500() {
    async fn end(handling: Handling, sql: &'static str, first: u16) -> Response {
        handling.insert().await;
        if handling.nth > 1 {
            return reply(StatusCode::CREATED, None);
        }
        let mut session = handling.lent.lock().unwrap();
        sqlx::raw_sql(sql).execute(&mut **session).await.unwrap();
        reply(StatusCode::from_u16(first).unwrap(), None)
    }
    let handlers: [(Handler, i64); 7] = [
        (|handling| Box::pin(end(handling, "ROLLBACK", 201)), 0),
        (|handling| Box::pin(end(handling, "ROLLBACK; BEGIN", 201)), 0),
        (|handling| Box::pin(end(handling, "ROLLBACK AND CHAIN", 201)), 0),
        (|handling| Box::pin(end(handling, "COMMIT", 201)), 1),
        // A status whose rows would be rolled back: they cannot be any more.
        (|handling| Box::pin(end(handling, "COMMIT", 409)), 1),
        (|handling| Box::pin(end(handling, "COMMIT", 500)), 1),
        (|handling| Box::pin(end(handling, "COMMIT; BEGIN", 400)), 1),
    ];
    for (handler, kept) in handlers {
        let shop = Shop::open(handler).await;
        assert_eq!(problem(shop.order(1).await).await, (500, "transaction-lost".to_owned()));
        assert_eq!((shop.rows().await, shop.executions.count()), (kept, 1));
        if kept == 0 {
            assert_eq!(shop.order(1).await.status(), 201, "nothing was kept, so the repeat runs");
            assert_eq!((shop.rows().await, shop.executions.count()), (1, 2));
        }
    }
}

#[tokio::test]
async fn failed_commit_never_returns_success() {
    let handler = |handling: Handling| -> Reply {
        Box::pin(async move {
            handling.insert().await;
            if handling.nth == 1 {
                // The same row twice: the constraint is deferred, so only the commit detects it.
                handling.insert().await;
            }
            let body = if handling.id == 2 {
                Body::from_stream(futures_util::stream::iter(["a", "b"].map(Ok::<_, std::convert::Infallible>)))
            } else {
                Body::from("created")
            };
            (StatusCode::CREATED, body).into_response()
        })
    };
    // The database has confirmed the rollback, so no end has to wait for the outcome.
    let shop = Shop::with(handler, |layer| layer.pending_ends(PendingEnds::default().max_count(0))).await;
    for id in [1, 2] {
        assert_eq!(problem(shop.order(id).await).await, (503, "rolled-back".to_owned()));
        assert_eq!(shop.rows().await, i64::from(id - 1));
        assert_eq!(shop.order(id).await.status(), 201, "nothing was kept, so the repeat runs");
        assert_eq!(shop.rows().await, i64::from(id));
        shop.executions.reset();
    }
    assert_eq!((shop.layer.metrics().released, shop.layer.metrics().lost), (2, 0), "told so, and counted so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_repeats_run_once_without_blocking() {
    #[derive(Clone)]
    struct Gate(Arc<(AtomicUsize, Semaphore, Notify)>);
    let (_, pool) = pool().await;
    let store = PostgresStore::new(pool.clone());
    store.create_table().await.unwrap();
    let gate = Gate(Arc::new((AtomicUsize::new(0), Semaphore::new(0), Notify::new())));
    async fn held(
        Shared(gate): Shared<Gate>,
        Extension(lent): Extension<TransactionHandle<PostgresSession>>,
    ) -> StatusCode {
        let mut session = lent.lock().unwrap();
        sqlx::query("SELECT 1").execute(&mut **session).await.unwrap();
        gate.0.0.fetch_add(1, Ordering::SeqCst);
        gate.0.1.add_permits(1);
        gate.0.2.notified().await;
        StatusCode::CREATED
    }
    let router = Router::new().route("/orders", post(held)).with_state(gate.clone());
    let served =
        Arc::new(Served::start(router, IdempotencyLayer::new(store.transactional(), Scope::single_caller())).await);
    let first = tokio::spawn({
        let served = served.clone();
        async move { served.post("/orders", "k").send().await.unwrap() }
    });
    gate.0.1.acquire().await.unwrap().forget();
    // Twice the number of the pool's connections: if they waited for the first, they would wait for
    // each other.
    let mut repeats = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let served = served.clone();
        repeats.spawn(async move { problem(served.post("/orders", "k").send().await.unwrap()).await });
    }
    assert!(repeats.join_all().await.into_iter().all(|answer| answer == (409, "in-progress".to_owned())));
    let waiting = tokio::spawn({
        let served = served.clone();
        async move { served.post("/orders", "k").header("prefer", "wait=20").send().await.unwrap() }
    });
    gate.0.2.notify_one();
    assert_eq!(first.await.unwrap().status(), 201);
    let waited = waiting.await.unwrap();
    assert_eq!((waited.status().as_u16(), header(&waited, "idempotent-replayed")), (201, Some("true")));
    assert_eq!(gate.0.0.load(Ordering::SeqCst), 1);
}
