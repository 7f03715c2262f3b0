//! A transaction that the database rolls back: it leaves nothing, its key is free, and its caller
//! learns of it.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State as Shared};
use axum::response::{IntoResponse, Response};
use steadfast::server::{ExecutionOutcome, Inbox, InboxError, MemoryStore, OnUnknown, TransactionHandle};
use steadfast_postgres::PostgresSession;
use tokio::sync::Barrier;

use super::*;

struct Shop {
    pool: PgPool,
    served: Arc<Served>,
    handled: Handled,
}

/// State that handlers share: where they meet, and the number of runs.
#[derive(Clone)]
struct Handled {
    barrier: Arc<Barrier>,
    executions: Executions,
}

impl Shop {
    /// `handler` serves `POST /orders/{id}`. It finds the tables `orders (id)`, which is unique,
    /// and `stock`, with the rows 1 and 2.
    async fn open<H, T>(handler: H, lapsed: OnUnknown) -> Self
    where
        H: axum::handler::Handler<T, Handled>,
        T: 'static,
    {
        let (_, pool) = pool().await;
        let store = PostgresStore::new(pool.clone());
        store.create_table().await.unwrap();
        let tables = "CREATE TABLE orders (id int PRIMARY KEY); CREATE TABLE stock (id int PRIMARY KEY, sold int);
             INSERT INTO stock VALUES (1, 0), (2, 0)";
        sqlx::raw_sql(tables).execute(&pool).await.unwrap();
        let handled = Handled { barrier: Arc::new(Barrier::new(2)), executions: Executions::default() };
        let layer = IdempotencyLayer::new(store.transactional(), Scope::single_caller()).on_unknown(lapsed);
        let router = Router::new().route("/orders/{id}", post(handler)).with_state(handled.clone()).layer(layer);
        Self { pool, served: Arc::new(Served::serve(router).await), handled }
    }

    async fn order(&self, id: i32) -> steadfast::reqwest::Response {
        self.served.post(&format!("/orders/{id}"), &format!("k{id}")).send().await.unwrap()
    }

    async fn rows(&self) -> i64 {
        count("SELECT count(*) FROM orders", &self.pool).await
    }

    async fn records(&self) -> i64 {
        count("SELECT count(*) FROM steadfast_records", &self.pool).await
    }
}

/// Makes the database refuse the first of these events with a serialization failure.
async fn refuse_first(trigger: &'static str, pool: &PgPool) {
    let function = "CREATE SEQUENCE events;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF nextval('events') = 1 THEN RAISE EXCEPTION 'refused' USING ERRCODE = '40001'; END IF;
             RETURN NEW;
         END $$";
    sqlx::raw_sql(function).execute(pool).await.unwrap();
    sqlx::raw_sql(trigger).execute(pool).await.unwrap();
}

const AT_COMMIT: &str = "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
     FOR EACH ROW EXECUTE FUNCTION refuse()";
const AT_THE_RECORD: &str =
    "CREATE TRIGGER refuse BEFORE INSERT ON steadfast_records FOR EACH ROW EXECUTE FUNCTION refuse()";

type Lending = Extension<TransactionHandle<PostgresSession>>;

async fn insert(lent: &TransactionHandle<PostgresSession>, id: i32) -> Result<(), sqlx::Error> {
    let mut session = lent.lock().unwrap();
    sqlx::query("INSERT INTO orders VALUES ($1)").bind(id).execute(&mut **session).await.map(|_| ())
}

/// Sells both kinds, each handler in another order, so the database fails one of the two.
async fn sell(handled: &Handled, lent: &TransactionHandle<PostgresSession>, id: i32) -> Result<(), sqlx::Error> {
    let nth = handled.executions.add();
    insert(lent, id).await?;
    for kind in [id, 3 - id] {
        let mut session = lent.lock().unwrap();
        let sold = sqlx::query("UPDATE stock SET sold = sold + 1 WHERE id = $1").bind(kind);
        sold.execute(&mut **session).await?;
        if nth <= 2 && kind == id {
            handled.barrier.wait().await;
        }
    }
    Ok(())
}

/// A typical handler: any error of the database becomes a server error.
async fn careless(Shared(handled): Shared<Handled>, Extension(lent): Lending, Path(id): Path<i32>) -> StatusCode {
    match sell(&handled, &lent, id).await {
        Ok(()) => StatusCode::CREATED,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A handler that ignores errors.
async fn blind(Shared(handled): Shared<Handled>, Extension(lent): Lending, Path(id): Path<i32>) -> StatusCode {
    let _ignored = sell(&handled, &lent, id).await;
    StatusCode::CREATED
}

/// Sends both orders at once. Returns the responses in the order of their status.
async fn both(shop: &Shop) -> [steadfast::reqwest::Response; 2] {
    let (one, two) = tokio::join!(shop.order(1), shop.order(2));
    if one.status() < two.status() { [one, two] } else { [two, one] }
}

fn id_of(response: &steadfast::reqwest::Response) -> i32 {
    response.url().path().rsplit('/').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn deadlock_in_handler_releases_key() {
    for lapsed in [OnUnknown::Rerun, OnUnknown::Reject] {
        let shop = Shop::open(careless, lapsed).await;
        let [sold, deadlocked] = both(&shop).await;
        assert_eq!((told(&sold), told(&deadlocked)), ("201 stored".to_owned(), "500 released".to_owned()));
        assert_eq!((shop.rows().await, shop.records().await), (1, 1), "nothing of the other is kept");
        assert_eq!(shop.handled.executions.count(), 2, "the layer does not run a handler again");
        assert_eq!(told(&shop.order(id_of(&deadlocked)).await), "201 stored");
        assert_eq!((shop.rows().await, shop.handled.executions.count()), (2, 3));
        assert_eq!(count("SELECT sum(sold) FROM stock", &shop.pool).await, 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rolled_back_success_becomes_503() {
    for lapsed in [OnUnknown::Rerun, OnUnknown::Reject] {
        let shop = Shop::open(blind, lapsed).await;
        let [sold, undone] = both(&shop).await;
        assert_eq!((told(&sold), told(&undone)), ("201 stored".to_owned(), "503 released".to_owned()));
        assert_eq!(header(&undone, "retry-after"), Some("1"));
        let id = id_of(&undone);
        assert_eq!(problem(undone).await, (503, "rolled-back".to_owned()));
        assert_eq!((shop.rows().await, shop.handled.executions.count()), (1, 2));
        assert_eq!(told(&shop.order(id).await), "201 stored");
        assert_eq!((shop.rows().await, shop.handled.executions.count()), (2, 3));
    }
}

/// Inserts a row. The length of the response is known or unknown.
async fn insert_one(Shared(handled): Shared<Handled>, Extension(lent): Lending, Path(id): Path<i32>) -> Response {
    handled.executions.add();
    insert(&lent, id).await.unwrap();
    let body = if id == 1 {
        Body::from("created")
    } else {
        Body::from_stream(futures_util::stream::iter(["a", "b"].map(Ok::<_, std::convert::Infallible>)))
    };
    (StatusCode::CREATED, body).into_response()
}

#[tokio::test]
async fn conflict_at_commit_releases_key() {
    for (lapsed, trigger) in
        [(OnUnknown::Rerun, AT_COMMIT), (OnUnknown::Reject, AT_COMMIT), (OnUnknown::Reject, AT_THE_RECORD)]
    {
        for id in [1, 2] {
            let shop = Shop::open(insert_one, lapsed).await;
            refuse_first(trigger, &shop.pool).await;
            let refused = shop.order(id).await;
            assert_eq!(told(&refused), "503 released", "{trigger}");
            assert_eq!(problem(refused).await, (503, "rolled-back".to_owned()), "{trigger}");
            assert_eq!((shop.rows().await, shop.records().await), (0, 0), "{trigger}");
            assert_eq!(told(&shop.order(id).await), "201 stored", "{trigger}");
            assert_eq!((shop.rows().await, shop.handled.executions.count()), (1, 2), "{trigger}");
        }
    }
}

/// Fails every order but the first: the row exists.
async fn order_one(Shared(handled): Shared<Handled>, Extension(lent): Lending, Path(status): Path<u16>) -> StatusCode {
    handled.executions.add();
    let fails = status != 418;
    if fails {
        insert(&lent, 1).await.unwrap();
        assert!(insert(&lent, 1).await.is_err());
    }
    StatusCode::from_u16(status).unwrap()
}

#[tokio::test]
async fn only_5xx_of_failed_transaction_releases_key() {
    let shop = Shop::open(order_one, OnUnknown::Rerun).await;
    // (A response about a constraint is an end. A teapot has asked the database for nothing.)
    for (status, first, again) in
        [(409, "stored", "replayed"), (418, "stored", "replayed"), (503, "released", "released")]
    {
        shop.handled.executions.reset();
        assert_eq!(told(&shop.order(status).await), format!("{status} {first}"));
        assert_eq!(told(&shop.order(status).await), format!("{status} {again}"));
        assert_eq!(shop.handled.executions.count(), if status == 503 { 2 } else { 1 }, "{status}");
    }
    assert_eq!(shop.rows().await, 0);
}

#[tokio::test]
async fn outer_layer_releases_its_key_too() {
    for fails in [true, false] {
        let (_, pool) = pool().await;
        let store = PostgresStore::new(pool.clone());
        store.create_table().await.unwrap();
        run("CREATE TABLE orders (id int PRIMARY KEY)", &pool).await;
        if !fails {
            refuse_first(AT_COMMIT, &pool).await;
        }
        let executions = Executions::default();
        let counted = executions.clone();
        let handler = move |Extension(lent): Lending| async move {
            let is_first = counted.add() == 1;
            insert(&lent, 1).await.unwrap();
            let failed = is_first && fails && insert(&lent, 1).await.is_err();
            if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::CREATED }
        };
        let inside = IdempotencyLayer::new(store.transactional(), Scope::single_caller());
        let outside = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
        let router = Router::new().route("/orders", post(handler)).layer(inside).layer(outside);
        let served = Arc::new(Served::serve(router).await);
        let refused = if fails { "500 released" } else { "503 released" };
        assert_eq!(post_all(&served, 0..1, 1).await, all(refused, 1));
        assert_eq!(post_all(&served, 0..1, 1).await, all("201 stored", 1));
        assert_eq!(executions.count(), 2);
        assert_eq!(count("SELECT count(*) FROM orders", &pool).await, 1);
    }
}

async fn out_of_stock(Shared(handled): Shared<Handled>, Extension(lent): Lending, Path(id): Path<i32>) -> Response {
    handled.executions.add();
    insert(&lent, id).await.unwrap();
    (StatusCode::INTERNAL_SERVER_ERROR, "the shelf has collapsed").into_response()
}

#[tokio::test]
async fn server_error_of_intact_transaction_is_stored() {
    let shop = Shop::open(out_of_stock, OnUnknown::Rerun).await;
    assert_eq!(told(&shop.order(1).await), "500 stored");
    let again = shop.order(1).await;
    assert_eq!(told(&again), "500 replayed");
    assert_eq!(again.text().await.unwrap(), "the shelf has collapsed");
    assert_eq!((shop.rows().await, shop.handled.executions.count()), (0, 1));
}

#[tokio::test]
async fn deadlock_recovered_by_handler_commits() {
    async fn mending(Shared(handled): Shared<Handled>, Extension(lent): Lending, Path(id): Path<i32>) -> StatusCode {
        handled.executions.add();
        let mut session = lent.lock().unwrap();
        let mut attempt = sqlx::Connection::begin(&mut **session).await.unwrap();
        let refused = sqlx::query("DO $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '40P01'; END $$");
        assert!(refused.execute(&mut *attempt).await.is_err());
        attempt.rollback().await.unwrap();
        drop(session);
        insert(&lent, id).await.unwrap();
        StatusCode::CREATED
    }
    let shop = Shop::open(mending, OnUnknown::Rerun).await;
    assert_eq!(told(&shop.order(1).await), "201 stored");
    assert_eq!((shop.rows().await, shop.handled.executions.count()), (1, 1));
}

#[tokio::test]
async fn handler_may_declare_not_executed() {
    async fn saying(Shared(handled): Shared<Handled>, Extension(lent): Lending, Path(id): Path<i32>) -> Response {
        let nth = handled.executions.add();
        insert(&lent, id).await.unwrap();
        match insert(&lent, if nth == 1 { id } else { id + 1 }).await {
            Ok(()) => StatusCode::CREATED.into_response(),
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, Extension(ExecutionOutcome::NotExecuted)).into_response(),
        }
    }
    let shop = Shop::open(saying, OnUnknown::Reject).await;
    assert_eq!(told(&shop.order(1).await), "503 released");
    assert_eq!(told(&shop.order(1).await), "201 stored");
    assert_eq!((shop.rows().await, shop.handled.executions.count()), (2, 2));
}

#[tokio::test]
async fn event_with_conflicting_mark_is_handled_again() {
    let (_, pool) = pool().await;
    let store = PostgresStore::new(pool.clone());
    store.create_table().await.unwrap();
    run("CREATE TABLE orders (id int)", &pool).await;
    refuse_first(AT_COMMIT, &pool).await;
    let (inbox, runs) = (Inbox::new(store.transactional()), AtomicUsize::new(0));
    let deliver = || {
        inbox.process("shop", "event", ONE, |lent| {
            runs.fetch_add(1, Ordering::SeqCst);
            async move { insert(&lent, 1).await }
        })
    };
    assert!(matches!(deliver().await, Err(InboxError::NotMarked(StoreError::RolledBack(_)))));
    let rows = || count("SELECT count(*) FROM orders", &pool);
    assert_eq!(rows().await, 0);
    deliver().await.unwrap();
    assert_eq!((rows().await, runs.load(Ordering::SeqCst)), (1, 2));
}

/// Returns the response to a first order whose reply to these words is held back, and the final
/// response to a repeat. Also returns the numbers of rows and executions.
async fn stalled(words: &'static str) -> (String, String, i64, usize) {
    let schema = schema().await;
    let proxy = Arc::new(Proxy::start(&options()).await);
    let direct = pool_in(&schema);
    let store = PostgresStore::new(pool_by(proxy.options(options()), &schema)).timeout(Duration::from_millis(500));
    store.create_table().await.unwrap();
    run("CREATE TABLE orders (id int)", &direct).await;
    let executions = Executions::default();
    let (counted, holding) = (executions.clone(), proxy.clone());
    let handler = post(move |Extension(lent): Lending| async move {
        insert(&lent, 1).await.unwrap();
        if counted.add() == 1 {
            holding.hold(words);
        }
        StatusCode::CREATED
    });
    let layer = IdempotencyLayer::new(store.transactional(), Scope::single_caller()).on_unknown(OnUnknown::Reject);
    let served = Served::start(Router::new().route("/orders", handler), layer).await;
    let order = || async { told(&served.post("/orders", "k").send().await.unwrap()) };
    let first = order().await;
    proxy.let_go();
    let again = async {
        loop {
            let again = order().await;
            if again.starts_with("201") {
                return again;
            }
        }
    };
    let again = tokio::time::timeout(Duration::from_secs(10), again).await.expect("the key is stuck");
    (first, again, count("SELECT count(*) FROM orders", &direct).await, executions.count())
}

#[tokio::test]
async fn stall_before_commit_rolls_back() {
    let (first, again, rows, executions) = stalled("INSERT INTO steadfast_records").await;
    assert_eq!((first.as_str(), again.as_str(), rows, executions), ("503 released", "201 stored", 1, 2));
}

#[tokio::test]
async fn stalled_commit_is_unknown() {
    let (first, again, rows, executions) = stalled("COMMIT").await;
    assert_eq!((first.as_str(), again.as_str(), rows, executions), ("500 unknown", "201 replayed", 1, 1));
}
