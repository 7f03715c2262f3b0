//! The layer over real sockets: the client's response, and the number of executions.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use steadfast::server::{ExecutionOutcome, IdempotencyLayer, MemoryStore, OnUnknown, PendingEnds, Scope, SharedStore};
use tokio::sync::{Notify, Semaphore};

use super::failing::Failing;
use super::support::{Executions, Served, header, problem};

type Layer = IdempotencyLayer<MemoryStore>;

fn layer() -> Layer {
    IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
}

/// Returns 201 with the number of the execution.
fn counting(executions: &Executions) -> Router {
    async fn run(State(executions): State<Executions>) -> impl IntoResponse {
        let number = executions.add();
        (StatusCode::CREATED, [("location", format!("/orders/{number}"))], format!("order {number}"))
    }
    let routes = post(run).get(run).put(run).patch(run).delete(run);
    Router::new().route("/orders", routes.clone()).route("/refunds", routes).with_state(executions.clone())
}

#[tokio::test]
async fn repeat_gets_stored_response_byte_for_byte() {
    let executions = Executions::default();
    let layer = layer();
    let served = Served::start(counting(&executions), layer.clone()).await;
    let first = served.post("/orders", "\"k1\"").body("x").send().await.unwrap();
    assert_eq!(first.status(), 201);
    assert_eq!(
        (header(&first, "idempotent-replayed"), header(&first, "idempotency-status")),
        (None, Some("stored;retention=86400"))
    );
    for key in ["\"k1\"", "k1", "\"k1\";v=1"] {
        let again = served.post("/orders", key).body("x").send().await.unwrap();
        assert_eq!(again.status(), 201);
        assert_eq!(header(&again, "location"), Some("/orders/1"));
        assert_eq!(header(&again, "idempotent-replayed"), Some("true"));
        assert_eq!(header(&again, "idempotency-status"), Some("replayed;retention=86400"));
        assert_eq!(again.text().await.unwrap(), "order 1");
    }
    assert_eq!(executions.count(), 1);
    let metrics = layer.metrics();
    assert_eq!((metrics.executed, metrics.stored, metrics.replayed), (1, 1, 3));
}

#[tokio::test]
async fn other_request_under_key_is_rejected() {
    let executions = Executions::default();
    let served = Served::start(counting(&executions), layer()).await;
    served.post("/orders", "k").body("x").send().await.unwrap();
    let put = served.http.put(served.url("/orders")).header("idempotency-key", "k").body("x");
    let cases = [
        served.post("/orders", "k").body("y"),
        served.post("/refunds", "k").body("x"),
        served.post("/orders?a=1", "k").body("x"),
        put,
    ];
    for request in cases {
        assert_eq!(problem(request.send().await.unwrap()).await, (422, "key-of-another-request".to_owned()));
    }
    let again = served.post("/orders", "k").body("x").send().await.unwrap();
    assert_eq!((header(&again, "idempotent-replayed"), executions.count()), (Some("true"), 1));
}

#[tokio::test]
async fn malformed_key_is_never_run_unprotected() {
    let executions = Executions::default();
    let served = Served::start(counting(&executions), layer().required()).await;
    for key in ["", "\"\"", "\"half", "\"a\"b", &"k".repeat(256)] {
        let refused = problem(served.post("/orders", key).send().await.unwrap()).await;
        assert_eq!(refused, (400, "key-malformed".to_owned()), "{key:?}");
    }
    let bytes = steadfast::http::HeaderValue::from_bytes(b"k\xe9y").unwrap();
    let request = served.http.post(served.url("/orders")).header("idempotency-key", bytes);
    assert_eq!(problem(request.send().await.unwrap()).await.0, 400);
    let two = served.post("/orders", "a").header("idempotency-key", "b");
    assert_eq!(problem(two.send().await.unwrap()).await.0, 400);
    let none = served.http.post(served.url("/orders"));
    assert_eq!(problem(none.send().await.unwrap()).await, (400, "key-missing".to_owned()));
    assert_eq!(executions.count(), 0);
    assert_eq!(served.post("/orders", &"k".repeat(255)).send().await.unwrap().status(), 201);
}

#[tokio::test]
async fn request_that_needs_no_key_passes() {
    let executions = Executions::default();
    let served = Served::start(counting(&executions), layer()).await;
    for _ in 0..2 {
        let without = served.http.post(served.url("/orders")).send().await.unwrap();
        assert_eq!((without.status().as_u16(), header(&without, "idempotency-status")), (201, None));
        let safe = served.http.get(served.url("/orders")).header("idempotency-key", "k").send().await.unwrap();
        assert_eq!(header(&safe, "idempotency-status"), None);
    }
    assert_eq!(executions.count(), 4);
}

#[tokio::test]
async fn body_over_limit_claims_no_key() {
    let executions = Executions::default();
    let served = Served::start(counting(&executions), layer().max_body(10)).await;
    let large = || served.post("/orders", "k").body("x".repeat(11)).send();
    assert_eq!(problem(large().await.unwrap()).await, (413, "body-too-large".to_owned()));
    {
        let chunks = futures_util::stream::iter(["xxxxxx", "xxxxxx"].map(Ok::<_, Infallible>));
        let stream = steadfast::reqwest::Body::wrap_stream(chunks);
        assert_eq!(problem(served.post("/orders", "k").body(stream).send().await.unwrap()).await.0, 413);
    }
    assert_eq!(served.post("/orders", "k").body("x".repeat(10)).send().await.unwrap().status(), 201);
    assert_eq!(executions.count(), 1);
}

/// A handler that runs until the test ends it.
#[derive(Clone)]
struct Held {
    executions: Executions,
    started: Arc<Semaphore>,
    go_on: Arc<Notify>,
}

impl Held {
    fn new() -> Self {
        Self { executions: Executions::default(), started: Arc::new(Semaphore::new(0)), go_on: Arc::new(Notify::new()) }
    }

    fn router(&self) -> Router {
        async fn run(State(held): State<Held>) -> String {
            let number = held.executions.add();
            held.started.add_permits(1);
            held.go_on.notified().await;
            format!("done {number}")
        }
        Router::new().route("/slow", post(run)).with_state(self.clone())
    }

    async fn until_started(&self) {
        self.started.acquire().await.unwrap().forget();
    }
}

#[tokio::test]
async fn concurrent_repeat_gets_retry_after() {
    let held = Held::new();
    let served = Served::start(held.router(), layer()).await;
    let first = tokio::spawn(served.post("/slow", "k").send());
    held.until_started().await;
    let busy = served.post("/slow", "k").send().await.unwrap();
    assert_eq!(
        (header(&busy, "retry-after"), header(&busy, "idempotency-status")),
        (Some("1"), Some("in-progress;retention=86400"))
    );
    assert_eq!(problem(busy).await, (409, "in-progress".to_owned()));
    // A different request under the key is not asked to wait.
    assert_eq!(problem(served.post("/slow", "k").body("y").send().await.unwrap()).await.0, 422);
    held.go_on.notify_one();
    assert_eq!(first.await.unwrap().unwrap().text().await.unwrap(), "done 1");
    let again = served.post("/slow", "k").send().await.unwrap();
    assert_eq!((header(&again, "idempotent-replayed"), held.executions.count()), (Some("true"), 1));
}

#[tokio::test]
async fn fifty_concurrent_repeats_run_once() {
    let held = Held::new();
    let served = Served::start(held.router(), layer()).await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let request = served.post("/slow", "k").header("prefer", "wait=10").send();
        requests.spawn(async move { request.await.unwrap().text().await.unwrap() });
    }
    held.until_started().await;
    held.go_on.notify_one();
    assert!(requests.join_all().await.iter().all(|answer| answer == "done 1"));
    assert_eq!(held.executions.count(), 1);
}

#[tokio::test]
async fn prefer_wait_gets_first_response() {
    let held = Held::new();
    let layer = layer();
    let served = Served::start(held.router(), layer.clone()).await;
    let first = tokio::spawn(served.post("/slow", "k").send());
    held.until_started().await;
    let patient = tokio::spawn(served.post("/slow", "k").header("prefer", "respond-async, wait=10").send());
    // A repeat that waits for too short a time gets the conflict at the end.
    let hasty = served.post("/slow", "k").header("prefer", "wait=0").send().await.unwrap();
    assert_eq!(hasty.status(), 409);
    held.go_on.notify_one();
    let waited = patient.await.unwrap().unwrap();
    assert_eq!(header(&waited, "preference-applied"), Some("wait"));
    assert_eq!(waited.text().await.unwrap(), "done 1");
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    assert_eq!((held.executions.count(), layer.metrics().waited), (1, 1));
}

#[tokio::test]
async fn disconnected_client_does_not_stop_handler() {
    let held = Held::new();
    let layer = layer();
    let served = Served::start(held.router(), layer.clone()).await;
    let hangs_up = tokio::spawn(served.post("/slow", "k").send());
    held.until_started().await;
    hangs_up.abort();
    assert!(hangs_up.await.unwrap_err().is_cancelled());
    held.go_on.notify_one();
    // A shutdown waits for the end.
    layer.drain().await;
    let again = served.post("/slow", "k").send().await.unwrap();
    assert_eq!(header(&again, "idempotent-replayed"), Some("true"));
    assert_eq!((again.text().await.unwrap().as_str(), held.executions.count()), ("done 1", 1));
}

#[tokio::test]
async fn slow_handler_keeps_its_lease() {
    let held = Held::new();
    let lease = Duration::from_millis(60);
    let served = Served::start(held.router(), layer().lease(lease)).await;
    let first = tokio::spawn(served.post("/slow", "k").send());
    held.until_started().await;
    // Well past the lease, by the clock of the waiting repeats.
    let waits = served.post("/slow", "k").header("prefer", "wait=1").send().await.unwrap();
    assert_eq!(problem(waits).await, (409, "in-progress".to_owned()));
    held.go_on.notify_one();
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    assert_eq!(held.executions.count(), 1);
}

#[tokio::test]
async fn execution_outcome_decides_about_key() {
    #[derive(Clone)]
    struct Says(Option<ExecutionOutcome>, StatusCode, Executions);
    async fn run(State(Says(verdict, status, executions)): State<Says>) -> Response {
        let mut response = (status, format!("run {}", executions.add())).into_response();
        if let Some(verdict) = verdict {
            response.extensions_mut().insert(verdict);
        }
        response
    }
    let cases = [
        (None, 500, "stored", 500, 1),
        (None, 402, "stored", 402, 1),
        (Some(ExecutionOutcome::Executed), 503, "stored", 503, 1),
        (Some(ExecutionOutcome::NotExecuted), 503, "released", 503, 2),
        (Some(ExecutionOutcome::Unknown), 502, "unknown", 409, 1),
    ];
    for (verdict, status, told, again, runs) in cases {
        let executions = Executions::default();
        let says = Says(verdict, StatusCode::from_u16(status).unwrap(), executions.clone());
        let served = Served::start(Router::new().route("/", post(run)).with_state(says), layer()).await;
        let first = served.post("/", "k").send().await.unwrap();
        assert_eq!(
            header(&first, "idempotency-status"),
            Some(format!("{told};retention=86400").as_str()),
            "{verdict:?}"
        );
        let second = served.post("/", "k").send().await.unwrap();
        assert_eq!((second.status().as_u16(), executions.count()), (again, runs), "{verdict:?} {status}");
    }
}

async fn panics(State(executions): State<Executions>) -> Response {
    executions.add();
    panic!("the handler dies on purpose")
}

#[tokio::test]
async fn panic_is_unknown_and_route_policy_decides() {
    for (policy, second, runs) in [(OnUnknown::Reject, 409, 1), (OnUnknown::Rerun, 500, 2)] {
        let executions = Executions::default();
        let router = Router::new().route("/", post(panics)).with_state(executions.clone());
        let served = Served::start(router, layer().on_unknown(policy)).await;
        let first = problem(served.post("/", "k").send().await.unwrap()).await;
        assert_eq!(first, (500, "outcome-unknown-handler-failed".to_owned()));
        let (status, kind) = problem(served.post("/", "k").send().await.unwrap()).await;
        assert_eq!((status, executions.count()), (second, runs), "{policy:?}");
        assert!(kind.contains("unknown"), "{kind}");
    }
}

#[tokio::test]
async fn scopes_separate_equal_keys_of_tenants() {
    let executions = Executions::default();
    let tenant = Scope::from_fn(|parts| Some(parts.headers.get("x-tenant")?.to_str().ok()?.to_owned()));
    let layer = IdempotencyLayer::new(MemoryStore::new(), tenant);
    let served = Served::start(counting(&executions), layer).await;
    for tenant in ["a", "b"] {
        let response = served.post("/orders", "k").header("x-tenant", tenant).send().await.unwrap();
        assert_eq!((response.status().as_u16(), header(&response, "idempotent-replayed")), (201, None));
    }
    let guessed = served.post("/orders", "k").header("x-tenant", "c").body("other").send().await.unwrap();
    assert_eq!(guessed.status(), 201, "another tenant's key says nothing");
    assert_eq!(problem(served.post("/orders", "k").send().await.unwrap()).await, (403, "no-caller".to_owned()));
    assert_eq!(executions.count(), 3);
}

#[tokio::test]
async fn unstored_response_is_sent_and_repeat_gets_410() {
    async fn large(State(executions): State<Executions>) -> String {
        executions.add();
        "x".repeat(5000)
    }
    async fn streamed(State((executions, go_on)): State<(Executions, Arc<Notify>)>) -> Body {
        executions.add();
        let chunks = futures_util::stream::unfold(0, move |number| {
            let go_on = go_on.clone();
            async move {
                if number == 1 {
                    go_on.notified().await;
                }
                (number < 2).then(|| (Ok::<_, Infallible>(Bytes::from(format!("line {number}\n"))), number + 1))
            }
        });
        Body::from_stream(chunks)
    }
    let (executions, go_on) = (Executions::default(), Arc::new(Notify::new()));
    let router = Router::new()
        .route("/large", post(large).with_state(executions.clone()))
        .route("/stream", post(streamed).with_state((executions.clone(), go_on.clone())));
    let layer = layer().max_response(4000);
    let served = Served::start(router, layer.clone()).await;

    let first = served.post("/large", "1").send().await.unwrap();
    assert_eq!((first.content_length(), first.text().await.unwrap().len()), (Some(5000), 5000));
    assert_eq!(problem(served.post("/large", "1").send().await.unwrap()).await, (410, "answer-not-kept".to_owned()));

    let mut first = served.post("/stream", "2").send().await.unwrap();
    assert_eq!(first.chunk().await.unwrap().as_deref(), Some(&b"line 0\n"[..]), "it arrives before the end");
    assert_eq!(served.post("/stream", "2").send().await.unwrap().status(), 409, "and is running until then");
    go_on.notify_one();
    assert_eq!(first.text().await.unwrap(), "line 1\n");
    let again = served.post("/stream", "2").send().await.unwrap();
    assert_eq!(header(&again, "idempotent-replayed"), Some("true"));
    assert_eq!(problem(again).await.0, 410);
    assert_eq!((executions.count(), layer.metrics().not_kept), (2, 2));
}

#[tokio::test]
async fn connection_headers_are_not_replayed() {
    async fn run() -> impl IntoResponse {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("set-cookie", "session=1"),
            ("keep-alive", "timeout=5"),
            ("x-request-id", "1"),
            ("x-ratelimit-remaining", "7"),
            ("retry-after", "2"),
            ("x-multi", "a"),
            ("x-multi", "b"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        (headers, Bytes::from_static(b"\0\xff\r\n"))
    }
    let own = ["set-cookie", "x-request-id", "x-ratelimit-remaining"];
    let served = Served::start(Router::new().route("/", post(run)), layer()).await;
    let first = served.post("/", "k").send().await.unwrap();
    assert_eq!(own.map(|name| header(&first, name)), [Some("session=1"), Some("1"), Some("7")]);
    let again = served.post("/", "k").send().await.unwrap();
    assert_eq!(own.map(|name| header(&again, name)), [None; 3]);
    assert_eq!((header(&again, "keep-alive"), header(&again, "retry-after")), (None, Some("2")));
    assert_eq!(again.headers().get_all("x-multi").iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(again.bytes().await.unwrap(), &b"\0\xff\r\n"[..]);

    let listed = layer().keep_headers([http::header::SET_COOKIE]).omit_headers([http::header::RETRY_AFTER]);
    let served = Served::start(Router::new().route("/", post(run)), listed).await;
    served.post("/", "k").send().await.unwrap();
    let again = served.post("/", "k").send().await.unwrap();
    assert_eq!((header(&again, "set-cookie"), header(&again, "retry-after")), (Some("session=1"), None));
}

#[tokio::test]
async fn unavailable_store_runs_nothing() {
    let executions = Executions::default();
    let store = Failing::new(true, false, 0);
    let served = Served::start(counting(&executions), IdempotencyLayer::new(store, Scope::single_caller())).await;
    let refused = served.post("/orders", "k").send().await.unwrap();
    assert_eq!(header(&refused, "retry-after"), Some("1"));
    assert_eq!(problem(refused).await, (503, "store-unavailable".to_owned()));
    let full = Served::start(
        counting(&executions),
        IdempotencyLayer::new(MemoryStore::new().max_records(0), Scope::single_caller()),
    )
    .await;
    assert_eq!(problem(full.post("/orders", "k").send().await.unwrap()).await.0, 503);
    assert_eq!(executions.count(), 0);
}

#[tokio::test]
async fn claim_with_lost_reply_is_repeated() {
    let executions = Executions::default();
    let served = Served::start(
        counting(&executions),
        IdempotencyLayer::new(Failing::new(false, false, 1), Scope::single_caller()),
    )
    .await;
    assert_eq!(served.post("/orders", "k").send().await.unwrap().status(), 201);
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn client_gone_during_claim_leaves_no_orphaned_claim() {
    let executions = Executions::default();
    let hold = Arc::new((Semaphore::new(0), Notify::new()));
    let store = Failing { hold: Some(hold.clone()), ..Failing::new(false, false, 0) };
    let layer = IdempotencyLayer::new(store, Scope::single_caller());
    let served = Served::start(counting(&executions), layer.clone()).await;
    let hangs_up = tokio::spawn(served.post("/orders", "k").send());
    hold.0.acquire().await.unwrap().forget();
    hangs_up.abort();
    assert!(hangs_up.await.unwrap_err().is_cancelled());
    hold.1.notify_one();
    layer.drain().await;
    hold.1.notify_one();
    let again = served.post("/orders", "k").send().await.unwrap();
    assert_eq!((again.status().as_u16(), header(&again, "idempotent-replayed")), (201, Some("true")));
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn end_is_stored_before_client_sees_response() {
    async fn large() -> String {
        "x".repeat(5000)
    }
    async fn streamed() -> Body {
        Body::from_stream(futures_util::stream::iter(["one", "two"].map(Ok::<_, Infallible>)))
    }
    let router = || Router::new().route("/large", post(large)).route("/stream", post(streamed));
    for path in ["/large", "/stream"] {
        let hold = Arc::new((Semaphore::new(0), Notify::new()));
        let store = Failing { hold_end: Some(hold.clone()), ..Failing::new(false, false, 0) };
        let served =
            Served::start(router(), IdempotencyLayer::new(store, Scope::single_caller()).max_response(100)).await;
        let mut answer = served.post(path, "k").send().await.unwrap();
        hold.0.acquire().await.unwrap().forget();
        let read = tokio::spawn(async move { while answer.chunk().await.unwrap().is_some() {} });
        // The repeat gets its response while the first end is held back.
        assert_eq!(served.post(path, "k").send().await.unwrap().status(), 409, "{path}");
        assert!(!read.is_finished(), "{path}: the client has seen the end and the record is not there");
        hold.1.notify_one();
        read.await.unwrap();
        assert_eq!(problem(served.post(path, "k").send().await.unwrap()).await.0, 410, "{path}");
    }
}

#[tokio::test]
async fn end_that_fails_still_sends_response() {
    let executions = Executions::default();
    let store = Failing::new(false, true, 0);
    let layer = IdempotencyLayer::new(store, Scope::single_caller()).pending_ends(PendingEnds::default().max_count(0));
    let served = Served::start(counting(&executions), layer.clone()).await;
    let first = served.post("/orders", "k").send().await.unwrap();
    assert_eq!((first.status().as_u16(), header(&first, "idempotency-status")), (201, Some("unknown;retention=86400")));
    assert_eq!(first.text().await.unwrap(), "order 1");
    // The layer does not run it again.
    let waits = served.post("/orders", "k").header("prefer", "wait=10").send().await.unwrap();
    assert_eq!(problem(waits).await, (409, "outcome-unknown".to_owned()));
    assert_eq!((executions.count(), layer.metrics().lost), (1, 1));
}

#[tokio::test]
async fn handler_keeps_callers_span_and_extensions() {
    #[derive(Clone)]
    struct Caller(&'static str);
    async fn run(Extension(Caller(name)): Extension<Caller>) -> &'static str {
        name
    }
    let router = Router::new().route("/", post(run)).layer(layer()).layer(Extension(Caller("outside")));
    let served = Served::serve(router).await;
    assert_eq!(served.post("/", "k").send().await.unwrap().text().await.unwrap(), "outside");
}

#[tokio::test]
async fn inner_error_reaches_caller_and_is_unknown() {
    use tower::{Layer as _, Service as _, ServiceExt as _};

    let calls = Executions::default();
    let counted = calls.clone();
    let inner = tower::service_fn(move |_: http::Request<Body>| {
        counted.add();
        async { Err::<http::Response<Body>, &'static str>("the inner error, kept as it is") }
    });
    let mut service = layer().layer(inner);
    let request = || http::Request::post("/").header("idempotency-key", "k").body(Body::empty()).unwrap();
    let error = service.ready().await.unwrap().call(request()).await.unwrap_err();
    assert_eq!(error, "the inner error, kept as it is");
    let again = service.ready().await.unwrap().call(request()).await.unwrap();
    assert_eq!((again.status().as_u16(), calls.count()), (409, 1));
}

#[tokio::test]
async fn nested_route_may_have_own_policy_over_one_store() {
    let executions = Executions::default();
    let store = SharedStore::new(MemoryStore::new());
    async fn health() -> &'static str {
        "well"
    }
    let strict = counting(&executions).layer(
        IdempotencyLayer::with_shared_store(store.clone(), Scope::single_caller()).required().advertise_scope("/v1"),
    );
    let router = Router::new().nest("/v1", strict).route("/health", get(health));
    let served =
        Served::serve(router.layer(IdempotencyLayer::with_shared_store(store, Scope::single_caller()).methods([])))
            .await;
    assert_eq!(served.http.post(served.url("/v1/orders")).send().await.unwrap().status(), 400);
    let told = served.post("/v1/orders", "k").send().await.unwrap();
    assert_eq!(header(&told, "idempotency-status"), Some("stored;retention=86400;scope=\"/v1\""));
}
