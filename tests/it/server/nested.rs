//! Layers inside layers: those with the same record execute once, all others do their own work, and
//! no rejection is stored.

use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, StatusCode};
use axum::routing::post;
use steadfast::server::{
    DeadlineLayer, EventId, IdempotencyLayer, MemoryStore, RecordId, RecordState, Scope, SharedStore, Store,
    WebhookLayer,
};

use super::support::{Executions, Served, header, problem};

type Layer = IdempotencyLayer<MemoryStore>;

fn layer() -> Layer {
    IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
}

fn orders(executions: &Executions) -> Router {
    let counted = executions.clone();
    let order = post(move |body: String| async move { (StatusCode::CREATED, format!("{body} {}", counted.add())) });
    Router::new().route("/orders", order)
}

/// Expects one execution, and then its stored response.
async fn executes_once(router: Router, executions: &Executions) {
    let served = Served::serve(router).await;
    for replayed in [None, Some("true")] {
        let answer = served.post("/orders", "k").body("order").send().await.unwrap();
        assert_eq!((answer.status().as_u16(), header(&answer, "idempotent-replayed")), (201, replayed));
        assert!(header(&answer, "idempotency-status").is_some());
        assert_eq!((answer.text().await.unwrap().as_str(), executions.count()), ("order 1", 1));
    }
}

async fn is_done(layer: &Layer, id: &RecordId) -> bool {
    matches!(layer.store().get(id).await.unwrap(), Some(RecordState::Completed { .. }))
}

#[tokio::test]
async fn same_layer_twice_executes_once() {
    let (executions, layer) = (Executions::default(), layer().required());
    executes_once(orders(&executions).layer(layer.clone()).layer(layer.clone()), &executions).await;
    assert_eq!((layer.metrics().executed, layer.metrics().in_progress), (1, 0));
}

#[tokio::test]
async fn two_layers_over_one_store_execute_once() {
    let (executions, store) = (Executions::default(), SharedStore::new(MemoryStore::new()));
    let over = || IdempotencyLayer::with_shared_store(store.clone(), Scope::single_caller());
    // The inner layer's limits do not apply to a request that it passes on.
    let inner = over().retention(Duration::ZERO).max_body(1);
    executes_once(orders(&executions).layer(inner).layer(over().required()), &executions).await;
}

#[tokio::test]
async fn layers_over_two_stores_both_record() {
    let (executions, outer, inner) = (Executions::default(), layer(), layer());
    let router = orders(&executions).layer(outer.clone()).layer(inner.clone()).layer(outer.clone());
    executes_once(router, &executions).await;
    let id = RecordId::new("", "k");
    assert!(is_done(&outer, &id).await && is_done(&inner, &id).await);
}

#[tokio::test]
async fn layers_of_two_scopes_both_record() {
    let (executions, store) = (Executions::default(), SharedStore::new(MemoryStore::new()));
    let inner = IdempotencyLayer::with_shared_store(store.clone(), Scope::from_fn(|_| Some("tenant".to_owned())));
    let outer = IdempotencyLayer::with_shared_store(store, Scope::single_caller());
    executes_once(orders(&executions).layer(inner.clone()).layer(outer), &executions).await;
    assert!(is_done(&inner, &RecordId::new("", "k")).await && is_done(&inner, &RecordId::new("tenant", "k")).await);
}

#[tokio::test]
async fn key_inside_event_is_honoured() {
    let (executions, store) = (Executions::default(), SharedStore::new(MemoryStore::new()));
    let events = || WebhookLayer::with_shared_store(store.clone(), "billing", EventId::stripe());
    let keys = IdempotencyLayer::with_shared_store(store.clone(), Scope::single_caller()).required();
    // The layer of events is there twice, and passes on a delivery that it is handling.
    let served = Served::serve(orders(&executions).layer(events()).layer(keys).layer(events())).await;
    let deliver = |key: &'static str, event: &'static str| served.post("/orders", key).body(event).send();

    let (one, two) = (r#"{"id":"evt_1"}"#, r#"{"id":"evt_2"}"#);
    let first = deliver("k", one).await.unwrap();
    assert_eq!((first.status().as_u16(), header(&first, "idempotent-replayed")), (201, None));
    let again = deliver("other", one).await.unwrap();
    assert_eq!((again.status().as_u16(), header(&again, "idempotent-replayed")), (201, Some("true")));
    let other = deliver("k", two).await.unwrap();
    assert_eq!(problem(other).await, (422, "key-of-another-request".to_owned()));
    assert_eq!(executions.count(), 1);
    // The rejection has not marked the second event as handled.
    assert_eq!(deliver("k2", two).await.unwrap().status(), 201);
    assert_eq!(executions.count(), 2);
}

#[tokio::test]
async fn rejection_by_inner_layer_is_not_stored() {
    let executions = Executions::default();
    let tenant = Scope::from_fn(|parts| Some(parts.headers.get("x-tenant")?.to_str().ok()?.to_owned()));
    let deadline = HeaderName::from_static("x-deadline-ms");
    let router = orders(&executions)
        .layer(IdempotencyLayer::new(MemoryStore::new(), tenant))
        .layer(DeadlineLayer::new(deadline))
        .layer(layer());
    let served = Served::serve(router).await;
    let ask = |deadline: &'static str| served.post("/orders", "k").body("order").header("x-deadline-ms", deadline);

    let late = ask("0").send().await.unwrap();
    assert_eq!(header(&late, "idempotency-status"), Some("released;retention=86400"));
    assert_eq!(problem(late).await, (503, "deadline-passed".to_owned()));
    assert_eq!(problem(ask("60000").send().await.unwrap()).await, (403, "no-caller".to_owned()));
    assert_eq!(executions.count(), 0);
    for _ in 0..2 {
        let done = ask("60000").header("x-tenant", "a").send().await.unwrap();
        assert_eq!(done.text().await.unwrap(), "order 1");
    }
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn panic_behind_inner_layer_is_unknown() {
    let executions = Executions::default();
    let counted = executions.clone();
    let dies = post(move || async move {
        counted.add();
        panic!("this handler dies on purpose");
        #[allow(unreachable_code, reason = "the handler's answer needs a type")]
        ()
    });
    let served = Served::serve(Router::new().route("/", dies).layer(layer()).layer(layer())).await;
    let first = problem(served.post("/", "k").send().await.unwrap()).await;
    assert_eq!(first, (500, "outcome-unknown-handler-failed".to_owned()));
    // If the outer layer had stored this rejection, it would count as the operation's end.
    let again = problem(served.post("/", "k").send().await.unwrap()).await;
    assert_eq!((again, executions.count()), ((409, "outcome-unknown".to_owned()), 1));
}
