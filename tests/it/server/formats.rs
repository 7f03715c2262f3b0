//! The layer's own responses in the format of an API, and Stripe's in particular.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Extension, Router};
use steadfast::http;
use steadfast::reqwest::Response;
use steadfast::server::{
    ClaimToken, DeadlineLayer, ExecutionOutcome, IdempotencyLayer, MemoryStore, RejectionFormat, Scope, SharedStore,
    Store,
};
use tokio::sync::{Notify, Semaphore};

use super::failing::Failing;
use super::support::{Executions, Served, header};

fn layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
}

/// A format that no other part of the layer knows.
fn own() -> RejectionFormat {
    RejectionFormat::from_fn(|rejection| {
        let name = format!("{rejection:?}");
        let name = name.split([' ', '{', '(']).next().unwrap().to_owned();
        let response = http::Response::builder().status(rejection.status()).header("content-type", "text/x-own");
        response.body(name).unwrap()
    })
}

/// Returns the status and the name of a rejection that came in our own format.
async fn named(response: Response) -> (u16, String) {
    assert_eq!(header(&response, "content-type"), Some("text/x-own"), "{response:?}");
    assert_eq!(header(&response, "cache-control"), Some("no-store"));
    (response.status().as_u16(), response.text().await.unwrap())
}

#[derive(Clone)]
struct Api {
    executions: Executions,
    started: Arc<Semaphore>,
    go_on: Arc<Notify>,
}

impl Api {
    fn new() -> Self {
        Self { executions: Executions::default(), started: Arc::new(Semaphore::new(0)), go_on: Arc::new(Notify::new()) }
    }

    /// A handler that does what the header `x-do` says.
    fn router(&self) -> Router {
        async fn act(State(api): State<Api>, headers: HeaderMap) -> axum::response::Response {
            use axum::response::IntoResponse;

            let number = api.executions.add();
            match headers.get("x-do").map(|value| value.to_str().unwrap()) {
                Some("panic") => panic!("the handler dies on purpose"),
                Some("hang") => std::future::pending().await,
                Some("wait") => {
                    api.started.add_permits(1);
                    api.go_on.notified().await;
                    number.to_string().into_response()
                }
                Some("not-executed") => {
                    (StatusCode::SERVICE_UNAVAILABLE, Extension(ExecutionOutcome::NotExecuted)).into_response()
                }
                Some(status) => StatusCode::from_u16(status.parse().unwrap()).unwrap().into_response(),
                None => number.to_string().into_response(),
            }
        }
        Router::new().route("/charges", post(act)).with_state(self.clone())
    }
}

#[tokio::test]
async fn every_rejection_comes_in_the_apis_format() {
    let api = Api::new();
    let layer = layer().required().max_body(4).max_response(0).max_handler_time(Duration::from_millis(50));
    let served = Served::start(api.router(), layer.rejection_format(own())).await;
    let post = |key: &str| served.post("/charges", key);
    let without_key = served.http.post(served.url("/charges"));
    for (request, status, name) in [
        (without_key, 400, "KeyMissing"),
        (post("\"half"), 400, "KeyMalformed"),
        (post("k").body("xxxxx"), 413, "BodyTooLarge"),
        (post("a").header("x-do", "panic"), 500, "HandlerFailed"),
        (post("a"), 409, "OutcomeUnknown"),
        (post("b").header("x-do", "hang"), 500, "HandlerTimedOut"),
        (post("b").body("x"), 422, "OtherRequest"),
    ] {
        assert_eq!(named(request.send().await.unwrap()).await, (status, name.to_owned()));
    }
    assert_eq!(post("c").send().await.unwrap().status(), 200);
    let gone = post("c").send().await.unwrap();
    assert_eq!(header(&gone, "idempotency-status"), Some("replayed;retention=86400"));
    assert_eq!(named(gone).await, (410, "AnswerNotKept".to_owned()));
    assert_eq!(api.executions.count(), 3);

    let nobody = IdempotencyLayer::new(MemoryStore::new(), Scope::from_fn(|_| None));
    let down = IdempotencyLayer::new(Failing::new(true, false, 0), Scope::single_caller());
    let full = IdempotencyLayer::new(MemoryStore::new().max_records(0), Scope::single_caller());
    let served = [
        (Served::start(api.router(), nobody.rejection_format(own())).await, (403, "NoCaller")),
        (Served::start(api.router(), down.rejection_format(own())).await, (503, "StoreUnavailable")),
        (Served::start(api.router(), full.rejection_format(own())).await, (503, "StoreFull")),
    ];
    for (served, (status, name)) in served {
        let response = served.post("/charges", "k").send().await.unwrap();
        assert_eq!(header(&response, "retry-after"), (status == 503).then_some("1"));
        assert_eq!(named(response).await, (status, name.to_owned()));
    }
    let header = http::HeaderName::from_static("x-left");
    let late = DeadlineLayer::new(header).min_remaining(Duration::from_secs(1)).rejection_format(own());
    let served = Served::serve(api.router().layer(late)).await;
    let response = served.post("/charges", "k").header("x-left", "1").send().await.unwrap();
    assert_eq!(named(response).await, (503, "DeadlinePassed".to_owned()));
    assert_eq!(api.executions.count(), 3);
}

#[tokio::test]
async fn end_is_stored_although_the_format_panics() {
    let api = Api::new();
    let broken = RejectionFormat::from_fn(|_| -> http::Response<String> { panic!("the format dies on purpose") })
        .response_header(|_, _| panic!("the format dies on purpose"));
    let served = Served::start(api.router(), layer().rejection_format(broken)).await;
    let failed = served.post("/charges", "k").header("x-do", "panic").send().await.unwrap();
    assert_eq!(super::support::problem(failed).await, (500, "outcome-unknown-handler-failed".to_owned()));
    let repeat = served.post("/charges", "k").send().await.unwrap();
    assert_eq!(super::support::problem(repeat).await, (409, "outcome-unknown".to_owned()));
    assert_eq!(served.post("/charges", "ok").send().await.unwrap().status(), 200);
    assert_eq!(api.executions.count(), 2);
}

/// Returns status, `type`, `code` and `Stripe-Should-Retry` of an error.
async fn stripe_error(response: Response) -> (u16, String, Option<String>, Option<String>) {
    let retry = header(&response, "stripe-should-retry").map(str::to_owned);
    let status = response.status().as_u16();
    let error: serde_json::Value = response.json().await.unwrap();
    let text = |name: &str| error["error"][name].as_str().map(str::to_owned);
    (status, text("type").unwrap(), text("code"), retry)
}

/// The checks for every store.
async fn check_stripe<S: Store>(store: SharedStore<S>) {
    let api = Api::new();
    let layer = IdempotencyLayer::with_shared_store(store, Scope::single_caller());
    let served = Arc::new(Served::start(api.router(), layer.rejection_format(RejectionFormat::stripe())).await);
    let run = format!("{:?}", ClaimToken::new().unwrap().as_bytes()).replace(", ", "-");
    let error = |status, kind: &str, code: Option<&str>, retry: &str| {
        (status, kind.to_owned(), code.map(str::to_owned), Some(retry.to_owned()))
    };

    let first = tokio::spawn(served.post("/charges", &run).header("x-do", "wait").send());
    api.started.acquire().await.unwrap().forget();
    let busy = stripe_error(served.post("/charges", &run).send().await.unwrap()).await;
    assert_eq!(busy, error(409, "idempotency_error", Some("idempotency_key_in_use"), "true"));
    api.go_on.notify_one();
    let first = first.await.unwrap().unwrap();
    assert_eq!((first.status().as_u16(), header(&first, "stripe-should-retry")), (200, None));
    let replayed = served.post("/charges", &run).send().await.unwrap();
    assert_eq!(
        (header(&replayed, "idempotent-replayed"), header(&replayed, "stripe-should-retry")),
        (Some("true"), None)
    );

    let other = stripe_error(served.post("/charges", &run).body("x").send().await.unwrap()).await;
    assert_eq!(other, error(400, "idempotency_error", None, "false"));
    let long = stripe_error(served.post("/charges", &"k".repeat(256)).send().await.unwrap()).await;
    assert_eq!(long, error(400, "invalid_request_error", None, "false"));
    assert_eq!(api.executions.count(), 1);

    // The stored error is final: neither the first response nor a replay asks for a repeat.
    let key = format!("{run}-500");
    for replayed in [None, Some("true")] {
        let failed = served.post("/charges", &key).header("x-do", "500").send().await.unwrap();
        assert_eq!(
            (failed.status().as_u16(), header(&failed, "idempotent-replayed"), header(&failed, "stripe-should-retry")),
            (500, replayed, Some("false"))
        );
    }
    // A released key runs again, so the client may decide by the status.
    let key = format!("{run}-free");
    for _ in 0..2 {
        let free = served.post("/charges", &key).header("x-do", "not-executed").send().await.unwrap();
        assert_eq!((free.status().as_u16(), header(&free, "stripe-should-retry")), (503, None));
    }
    assert_eq!(api.executions.count(), 4);
}

#[tokio::test]
async fn memory_answers_as_stripe_does() {
    check_stripe(SharedStore::new(MemoryStore::new())).await;
}

#[tokio::test]
async fn redis_answers_as_stripe_does() {
    let url = super::redis_server::shared();
    check_stripe(SharedStore::new(steadfast_redis::RedisStore::connect(&url).await.unwrap())).await;
}

#[tokio::test]
async fn unknown_outcome_is_no_invalid_stripe_request() {
    let api = Api::new();
    let served = Served::start(api.router(), layer().rejection_format(RejectionFormat::stripe())).await;
    let failed = served.post("/charges", "k").header("x-do", "panic").send().await.unwrap();
    assert_eq!(stripe_error(failed).await, (500, "api_error".to_owned(), None, Some("false".to_owned())));
    let unknown = served.post("/charges", "k").send().await.unwrap();
    assert_eq!(stripe_error(unknown).await, (409, "api_error".to_owned(), None, Some("false".to_owned())));
    // A repeat would run, so nothing keeps the client from it.
    let reruns = layer().on_unknown(steadfast::server::OnUnknown::Rerun).rejection_format(RejectionFormat::stripe());
    let served = Served::start(api.router(), reruns).await;
    let failed = served.post("/charges", "k").header("x-do", "panic").send().await.unwrap();
    assert_eq!(stripe_error(failed).await, (500, "api_error".to_owned(), None, None));
    assert_eq!(served.post("/charges", "k").send().await.unwrap().status(), 200);
    assert_eq!(api.executions.count(), 3);
}
