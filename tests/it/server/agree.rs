//! The client and the layer over one socket: they work together without configuration.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use steadfast::policy::StopReason;
use steadfast::server::{ExecutionOutcome, IdempotencyLayer, MemoryStore, RejectionFormat, Scope};
use steadfast::{Client, IdempotencyKey, KeyPolicy, ResponseExt};
use steadfast_testing::fast_retries;

use super::support::{Executions, Served};

/// Fails on every odd execution, after it has acted.
async fn flaky(State(executions): State<Executions>) -> Response {
    let number = executions.add();
    let status = if number % 2 == 1 { StatusCode::BAD_GATEWAY } else { StatusCode::CREATED };
    let mut response = (status, number.to_string()).into_response();
    if number % 2 == 1 {
        response.extensions_mut().insert(ExecutionOutcome::NotExecuted);
    }
    response
}

fn router(executions: &Executions) -> Router {
    Router::new().route("/v1/charges", post(flaky)).with_state(executions.clone())
}

#[tokio::test]
async fn layer_responses_earn_trust() {
    let executions = Executions::default();
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).advertise_scope("/v1");
    let served = Served::start(router(&executions), layer).await;
    // Without configuration: even the first response, an error, shows that the server honours the
    // key.
    let client = Client::builder().base_url(served.url("")).retry(fast_retries()).build().unwrap();
    let response = client.post("/v1/charges").body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len()), (201, 2));
    assert_eq!(executions.count(), 2);
}

#[tokio::test]
async fn no_layer_earns_no_trust() {
    let executions = Executions::default();
    let served = Served::serve(router(&executions)).await;
    let client = Client::builder().base_url(served.url("")).retry(fast_retries()).build().unwrap();
    let response = client.post("/v1/charges").body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.stop_reason()), (502, Some(StopReason::KeyNotTrusted)));
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn stored_error_is_final_for_client() {
    async fn fails(State(executions): State<Executions>) -> StatusCode {
        executions.add();
        StatusCode::INTERNAL_SERVER_ERROR
    }
    let executions = Executions::default();
    let router = Router::new().route("/", post(fails)).with_state(executions.clone());
    let served = Served::start(router, IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())).await;
    let client =
        Client::builder().base_url(served.url("")).retry(fast_retries()).keys(KeyPolicy::standard()).build().unwrap();
    let response = client.post("/").body("x").send().await.unwrap();
    assert_eq!((response.stop_reason(), response.attempts().len()), (Some(StopReason::Replayed), 1));
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn client_waits_for_conflict_but_not_for_unknown() {
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
    // The layer's headers say as much as its problems.
    let stripe = layer.clone().rejection_format(RejectionFormat::stripe());
    for (layer, mine, reason) in
        [(layer, "one", StopReason::OutcomeUnknown), (stripe, "two", StopReason::ServerSaidStop)]
    {
        check_conflict_and_unknown(layer, mine, reason).await;
    }
}

async fn check_conflict_and_unknown(layer: IdempotencyLayer<MemoryStore>, mine: &str, reason: StopReason) {
    let executions = Executions::default();
    let release = std::sync::Arc::new(tokio::sync::Notify::new());
    let gate = release.clone();
    let slow = post(move |State(executions): State<Executions>| async move {
        executions.add();
        gate.notified().await;
        "done"
    });
    async fn panics(State(executions): State<Executions>) -> &'static str {
        executions.add();
        panic!("the handler dies on purpose")
    }
    let router = Router::new().route("/slow", slow).route("/panic", post(panics)).with_state(executions.clone());
    let served = Served::start(router, layer).await;
    let key = || mine.parse::<IdempotencyKey>().unwrap();

    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let watch = move |event: &steadfast::Event<'_>| {
        if let steadfast::EventKind::RetryScheduled { .. } = event.kind() {
            let _nobody_listens = tell.send(());
        }
    };
    let client =
        Client::builder().base_url(served.url("")).retry(fast_retries()).keys(KeyPolicy::standard()).on_event(watch);
    let client = client.build().unwrap();
    let first = tokio::spawn(served.post("/slow", mine).body("x").send());
    while executions.count() == 0 {
        tokio::task::yield_now().await;
    }
    let repeat = client.post("/slow").idempotency_key(key()).body("x").send();
    let repeat = tokio::spawn(repeat);
    told.recv().await;
    release.notify_one();
    let repeat = repeat.await.unwrap().unwrap();
    assert_eq!((repeat.status().as_u16(), repeat.text().await.unwrap().as_str()), (200, "done"));
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    assert_eq!(executions.count(), 1);

    let response = client.post("/panic").body("x").send().await.unwrap();
    assert_eq!(response.stop_reason(), Some(reason));
    assert!(response.may_have_been_processed());
    assert_eq!(executions.count(), 2);
}
