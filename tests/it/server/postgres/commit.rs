//! A COMMIT without a reply: the transaction's outcome is looked up, and nothing is written again.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use steadfast::server::{Scope, TransactionHandle};
use steadfast_postgres::{PostgresSession, TransactionalPostgresStore};
use tower::{Layer, ServiceExt, service_fn};

use super::proxy::{Commits, Proxy};
use super::*;

/// A shop whose database is behind a proxy. Rows are counted by a direct connection.
struct Shop {
    proxy: Proxy,
    direct: PgPool,
    layer: IdempotencyLayer<TransactionalPostgresStore>,
    executions: Executions,
}

/// The status, the word of `Idempotency-Status`, and the body or the problem's type.
type Told = (u16, String, String);

fn told(status: u16, word: &str, body: &str) -> Told {
    (status, word.to_owned(), body.to_owned())
}

impl Shop {
    async fn open() -> Self {
        let (schema, direct) = pool().await;
        PostgresStore::new(direct.clone()).create_table().await.unwrap();
        run("CREATE TABLE orders (nth int)", &direct).await;
        let proxy = Proxy::start(&options()).await;
        let store = PostgresStore::new(pool_by(proxy.options(options()), &schema)).timeout(Duration::from_millis(500));
        let layer =
            IdempotencyLayer::new(store.transactional(), Scope::single_caller()).end_wait(Duration::from_secs(60));
        Self { proxy, direct, layer, executions: Executions::default() }
    }

    async fn order(&self) -> Told {
        let executions = self.executions.clone();
        let handler = service_fn(move |request: Request<Full<Bytes>>| {
            let nth = executions.add();
            async move {
                let lent = request.extensions().get::<TransactionHandle<PostgresSession>>().unwrap();
                let mut session = lent.lock().unwrap();
                let insert = sqlx::query("INSERT INTO orders VALUES ($1)").bind(i32::try_from(nth).unwrap());
                insert.execute(&mut **session).await.unwrap();
                Ok::<_, Infallible>(Response::new(Full::from(format!("order {nth}"))))
            }
        });
        let request = Request::post("/").header("idempotency-key", "k").body(Full::from("{}")).unwrap();
        let answer = self.layer.layer(handler).oneshot(request).await.unwrap();
        let word = answer.headers().get("idempotency-status").map_or("", |word| word.to_str().unwrap());
        let (status, word) = (answer.status().as_u16(), word.split(';').next().unwrap().to_owned());
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let problem: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let kind = problem["type"].as_str().and_then(|kind| kind.rsplit('#').next().map(str::to_owned));
        (status, word, kind.unwrap_or(text))
    }

    async fn rows(&self) -> i64 {
        count("SELECT count(*) FROM orders", &self.direct).await
    }
}

#[tokio::test]
async fn lost_commit_releases_key() {
    let shop = Shop::open().await;
    shop.proxy.commits(Commits::Lost);
    assert_eq!(shop.order().await, told(503, "released", "rolled-back"));
    assert_eq!(shop.rows().await, 0);
    shop.proxy.commits(Commits::Pass);
    assert_eq!(shop.order().await, told(200, "stored", "order 2"));
    assert_eq!(shop.order().await, told(200, "replayed", "order 2"));
    assert_eq!((shop.rows().await, shop.executions.count()), (1, 2));
}

#[tokio::test]
async fn commit_without_reply_is_looked_up() {
    let shop = Shop::open().await;
    shop.proxy.commits(Commits::Unanswered);
    assert_eq!(shop.order().await, told(200, "stored", "order 1"));
    shop.proxy.commits(Commits::Pass);
    assert_eq!(shop.order().await, told(200, "replayed", "order 1"));
    assert_eq!((shop.rows().await, shop.executions.count()), (1, 1));
}

/// While the transaction may still be committed, its key is neither free nor done.
#[tokio::test]
async fn late_commit_is_waited_for() {
    let mut shop = Shop::open().await;
    shop.layer = shop.layer.end_wait(Duration::from_millis(700));
    shop.proxy.commits(Commits::Late);
    // The outcome is unknown, and the repeat will show it.
    assert_eq!(shop.order().await, told(500, "released", "transaction-lost"));
    assert_eq!(shop.order().await, told(409, "in-progress", "in-progress"));
    assert_eq!((shop.rows().await, shop.executions.count()), (0, 1));
    shop.proxy.commits(Commits::Pass);
    shop.layer.drain().await;
    assert_eq!(shop.order().await, told(200, "replayed", "order 1"));
    assert_eq!((shop.rows().await, shop.executions.count()), (1, 1));
}
