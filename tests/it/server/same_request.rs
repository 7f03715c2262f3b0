//! Which part of a body tells a repeat from another request.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use steadfast::server::{
    BodyFingerprint, ClaimToken, IdempotencyLayer, MemoryStore, OnUnknown, Scope, SharedStore, Store,
};
use tokio::sync::{Notify, Semaphore};

use super::support::{Executions, Served, header, problem};

fn counting(executions: &Executions) -> Router {
    async fn run(State(executions): State<Executions>, headers: HeaderMap) -> String {
        let number = executions.add();
        assert!(!headers.contains_key("x-panic"), "the handler dies on purpose");
        number.to_string()
    }
    Router::new().route("/orders", post(run)).with_state(executions.clone())
}

fn over<S: Store>(store: &SharedStore<S>, body: BodyFingerprint) -> IdempotencyLayer<S> {
    IdempotencyLayer::with_shared_store(store.clone(), Scope::single_caller()).fingerprint_body(body)
}

fn by_version() -> BodyFingerprint {
    BodyFingerprint::from_fn("by-version-v1", |parts, body| {
        let version = parts.headers.get("api-version").map_or(&b""[..], |version| version.as_bytes());
        Bytes::from([version, b"\n", body].concat())
    })
}

/// The checks for every store: of each setting, the bodies that are the same and one that is not.
async fn check<S: Store>(store: SharedStore<S>) {
    let run = format!("{:?}", ClaimToken::new().unwrap().as_bytes()).replace(", ", "-");
    let cases = [
        (
            BodyFingerprint::canonical_json(),
            vec![r#"{"amount":10,"to":"é"}"#, "{ \"to\": \"\\u00e9\",\n\"amount\": 10.0 }"],
            r#"{"amount":11,"to":"é"}"#,
        ),
        (
            BodyFingerprint::ignore_fields(["attempt", "/meta/sent_at"]),
            vec![
                r#"{"id":1,"attempt":1,"meta":{"sent_at":"10:00"}}"#,
                r#"{"meta":{"sent_at":"10:05"},"attempt":2,"id":1}"#,
            ],
            r#"{"id":2,"attempt":1,"meta":{"sent_at":"10:00"}}"#,
        ),
        (by_version(), vec!["a", "a"], "b"),
        // Twenty digits, which no double tells apart.
        (BodyFingerprint::canonical_json(), vec![r#"{"to":18446744073709551616}"#], r#"{"to":18446744073709551617}"#),
        (BodyFingerprint::exact(), vec!["{}", "{}"], "{ }"),
    ];
    for (number, (setting, same, other)) in cases.into_iter().enumerate() {
        let (executions, key) = (Executions::default(), format!("{run}-{number}"));
        let served = Served::start(counting(&executions), over(&store, setting)).await;
        for (count, body) in same.into_iter().enumerate() {
            let answer = served.post("/orders", &key).body(body).send().await.unwrap();
            assert_eq!(header(&answer, "idempotent-replayed"), (count > 0).then_some("true"), "{body}");
            assert_eq!(answer.text().await.unwrap(), "1", "{body}");
        }
        let refused = served.post("/orders", &key).body(other).send().await.unwrap();
        assert_eq!(problem(refused).await, (422, "key-of-another-request".to_owned()), "{other}");
        assert_eq!(executions.count(), 1);
    }
}

#[tokio::test]
async fn memory_compares_what_is_set() {
    check(SharedStore::new(MemoryStore::new())).await;
}

#[tokio::test]
async fn redis_compares_what_is_set() {
    let url = super::redis_server::shared();
    check(SharedStore::new(steadfast_redis::RedisStore::connect(&url).await.unwrap())).await;
}

#[tokio::test]
async fn database_compares_what_is_set() {
    let store = super::postgres::store().await;
    check(SharedStore::new(store.transactional())).await;
    check(SharedStore::new(store)).await;
}

#[tokio::test]
async fn ignored_body_still_has_a_target() {
    let executions = Executions::default();
    let store = SharedStore::new(MemoryStore::new());
    let served = Served::start(counting(&executions), over(&store, BodyFingerprint::ignore_body())).await;
    for (body, replayed) in [("a", None), ("b", Some("true")), ("", Some("true"))] {
        let answer = served.post("/orders", "k").body(body).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), header(&answer, "idempotent-replayed")), (200, replayed));
    }
    let other = served.post("/orders?of=another", "k").body("a").send().await.unwrap();
    assert_eq!((problem(other).await.0, executions.count()), (422, 1));
}

#[tokio::test]
async fn record_of_another_setting_is_never_replayed() {
    let all = || {
        [
            BodyFingerprint::exact(),
            BodyFingerprint::canonical_json(),
            BodyFingerprint::ignore_fields(["a"]),
            BodyFingerprint::ignore_fields(["b"]),
            BodyFingerprint::ignore_body(),
            BodyFingerprint::from_fn("v1", |_, _| Bytes::from_static(b"{}")),
            BodyFingerprint::from_fn("v2", |_, _| Bytes::from_static(b"{}")),
        ]
    };
    for (before, old) in all().into_iter().enumerate() {
        let (executions, store) = (Executions::default(), SharedStore::new(MemoryStore::new()));
        let served = Served::start(counting(&executions), over(&store, old.clone())).await;
        // For each setting, the compared part of this body is `{}`, or nothing.
        assert_eq!(served.post("/orders", "k").body("{}").send().await.unwrap().status(), 200);
        for (after, new) in all().into_iter().enumerate() {
            let served = Served::start(counting(&executions), over(&store, new.clone())).await;
            let repeat = served.post("/orders", "k").body("{}").send().await.unwrap();
            let (status, replayed) = if before == after { (200, Some("true")) } else { (422, None) };
            let told = (repeat.status().as_u16(), header(&repeat, "idempotent-replayed"));
            assert_eq!(told, (status, replayed), "{old:?}, then {new:?}");
        }
        assert_eq!(executions.count(), 1);
    }
}

#[tokio::test]
async fn rewritten_repeat_meets_the_running_request() {
    let executions = Executions::default();
    let (started, go_on) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let (counted, starts, waits) = (executions.clone(), started.clone(), go_on.clone());
    let slow = post(move || async move {
        counted.add();
        starts.add_permits(1);
        waits.notified().await;
        "done"
    });
    let store = SharedStore::new(MemoryStore::new());
    let layer = over(&store, BodyFingerprint::ignore_fields(["attempt"]));
    let served = Served::start(Router::new().route("/orders", slow), layer).await;
    let first = tokio::spawn(served.post("/orders", "k").body(r#"{"attempt":1}"#).send());
    started.acquire().await.unwrap().forget();
    let busy = served.post("/orders", "k").body(r#"{"attempt":2}"#).send().await.unwrap();
    assert_eq!(problem(busy).await, (409, "in-progress".to_owned()));
    go_on.notify_one();
    assert_eq!(first.await.unwrap().unwrap().text().await.unwrap(), "done");
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn rewritten_repeat_reruns_an_unknown_request() {
    let executions = Executions::default();
    let store = SharedStore::new(MemoryStore::new());
    let layer = over(&store, BodyFingerprint::ignore_fields(["attempt"])).on_unknown(OnUnknown::Rerun);
    let served = Served::start(counting(&executions), layer).await;
    let dies = served.post("/orders", "k").header("x-panic", "1").body(r#"{"attempt":1}"#);
    assert_eq!(dies.send().await.unwrap().status(), 500);
    let other = served.post("/orders", "k").body(r#"{"attempt":2,"amount":1}"#).send().await.unwrap();
    assert_eq!(problem(other).await.0, 422);
    let again = served.post("/orders", "k").body(r#"{"attempt":2}"#).send().await.unwrap();
    assert_eq!((again.text().await.unwrap().as_str(), executions.count()), ("2", 2));
}
