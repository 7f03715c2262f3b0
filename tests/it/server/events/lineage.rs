//! A handler that runs again repeats its own calls under the same keys.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Extension, response::IntoResponse, response::Response};
use steadfast::server::{ExecutionOutcome, IdempotencyLayer, MemoryStore, OperationKey, Scope};
use steadfast::{Client, KeyPolicy};

use crate::server::support::{Executions, Served};

async fn charge(State(charged): State<Executions>) -> (StatusCode, String) {
    (StatusCode::CREATED, charged.add().to_string())
}

#[derive(Clone)]
struct Shop {
    payments: Client,
    orders: Executions,
}

/// Charges, and then fails on the first run: the order is not executed, but the card is charged.
async fn order(State(shop): State<Shop>, Extension(operation): Extension<OperationKey>) -> Response {
    let key = operation.child_key("charge-card");
    let charge = shop.payments.post("/charges").idempotency_key(key).body("12 EUR").send().await.unwrap();
    let number = charge.text().await.unwrap();
    if shop.orders.add() == 1 {
        let mut failed = StatusCode::SERVICE_UNAVAILABLE.into_response();
        failed.extensions_mut().insert(ExecutionOutcome::NotExecuted);
        return failed;
    }
    (StatusCode::CREATED, format!("order with charge {number}")).into_response()
}

#[tokio::test]
async fn repeated_order_charges_once() {
    let (charged, orders) = (Executions::default(), Executions::default());
    let layer = |scope| IdempotencyLayer::new(MemoryStore::new(), scope).required();
    let payments = Router::new().route("/charges", post(charge)).with_state(charged.clone());
    let payments = Served::start(payments, layer(Scope::single_caller())).await;
    let client = Client::builder().base_url(payments.url("")).keys(KeyPolicy::standard()).build().unwrap();
    let shop = Shop { payments: client, orders: orders.clone() };
    let tenant = Scope::from_fn(|parts| Some(parts.headers.get("x-tenant")?.to_str().ok()?.to_owned()));
    let shop = Served::start(Router::new().route("/orders", post(order)).with_state(shop), layer(tenant)).await;

    let ask = |tenant: &'static str| shop.post("/orders", "k").header("x-tenant", tenant).send();
    assert_eq!(ask("a").await.unwrap().status(), 503);
    let second = ask("a").await.unwrap();
    assert_eq!(second.text().await.unwrap(), "order with charge 1");
    assert_eq!((orders.count(), charged.count()), (2, 1), "the handler ran twice, and charged once");
    // Another tenant's equal key is another order, with a charge of its own.
    assert_eq!(ask("b").await.unwrap().text().await.unwrap(), "order with charge 2");
    assert_eq!(charged.count(), 2);
}
