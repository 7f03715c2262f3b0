//! Load on the layer: how many handlers run at a time, and clients that do not read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use steadfast::server::{IdempotencyLayer, MemoryStore, Scope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tower::ServiceExt;

use super::support::{Executions, Served, header, problem};

const MINUTE: Duration = Duration::from_secs(60);

fn layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
}

/// Handlers that run until the test ends them, and how many ran at a time.
#[derive(Clone)]
struct Work {
    executions: Executions,
    started: Arc<Semaphore>,
    may_end: Arc<Semaphore>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Work {
    fn new() -> Self {
        let (started, may_end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        Self { executions: Executions::default(), started, may_end, now: Arc::default(), most: Arc::default() }
    }

    fn router(&self) -> Router {
        let work = self.clone();
        let handler = move || {
            let work = work.clone();
            async move {
                work.executions.add();
                work.most.fetch_max(work.now.fetch_add(1, SeqCst) + 1, SeqCst);
                work.started.add_permits(1);
                work.may_end.acquire().await.unwrap().forget();
                work.now.fetch_sub(1, SeqCst);
                StatusCode::CREATED
            }
        };
        Router::new().route("/orders", post(handler))
    }

    async fn until_started(&self, handlers: u32) {
        self.started.acquire_many(handlers).await.unwrap().forget();
    }
}

#[tokio::test]
async fn clients_that_hang_up_free_no_place() {
    let work = Work::new();
    let layer = layer().max_concurrency(2);
    let served = Served::start(work.router(), layer.clone()).await;
    for key in ["a", "b"] {
        let hangs_up = tokio::spawn(served.post("/orders", key).send());
        work.until_started(1).await;
        hangs_up.abort();
        assert!(hangs_up.await.unwrap_err().is_cancelled());
    }
    for key in 0..20 {
        let refused = served.post("/orders", &key.to_string()).send().await.unwrap();
        assert_eq!(header(&refused, "retry-after"), Some("1"));
        assert_eq!(problem(refused).await, (503, "too-many-running".to_owned()));
    }
    assert_eq!((work.executions.count(), layer.metrics().too_many_running), (2, 20));
    // A repeat needs no place, and a refused key was not claimed.
    assert_eq!(problem(served.post("/orders", "a").send().await.unwrap()).await, (409, "in-progress".to_owned()));
    let other = served.post("/orders", "a").body("other").send().await.unwrap();
    assert_eq!(problem(other).await, (422, "key-of-another-request".to_owned()));
    work.may_end.add_permits(3);
    layer.drain().await;
    for (key, replayed) in [("a", Some("true")), ("0", None)] {
        let response = served.post("/orders", key).send().await.unwrap();
        assert_eq!((response.status().as_u16(), header(&response, "idempotent-replayed")), (201, replayed), "{key}");
    }
    assert_eq!((work.executions.count(), work.most.load(SeqCst)), (3, 2));
}

#[tokio::test]
async fn completed_key_is_replayed_while_all_places_are_taken() {
    let work = Work::new();
    let layer = layer().max_concurrency(1);
    let served = Served::start(work.router(), layer.clone()).await;
    work.may_end.add_permits(1);
    assert_eq!(served.post("/orders", "done").send().await.unwrap().status(), 201);
    let running = tokio::spawn(served.post("/orders", "running").send());
    work.until_started(2).await;
    let replay = served.post("/orders", "done").send().await.unwrap();
    assert_eq!(header(&replay, "idempotent-replayed"), Some("true"));
    // One that waits for the running one takes no place either, and gets its response.
    let waits = tokio::spawn(served.post("/orders", "running").header("prefer", "wait=30").send());
    work.may_end.add_permits(1);
    assert_eq!(running.await.unwrap().unwrap().status(), 201);
    assert_eq!(waits.await.unwrap().unwrap().status(), 201);
    assert_eq!(work.executions.count(), 2);
}

fn ask(router: &Router, key: &str) -> JoinHandle<Response<Body>> {
    let request = Request::post("/orders").header("idempotency-key", key).body(Body::empty()).unwrap();
    let router = router.clone();
    tokio::spawn(async move { router.oneshot(request).await.unwrap() })
}

/// Lets every task run until it waits: the test's runtime has one thread.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn waiting_request_runs_when_a_place_is_free() {
    let work = Work::new();
    let router = work.router().layer(layer().max_concurrency(1).concurrency_wait(MINUTE));
    let requests = ["a", "b", "c"].map(|key| ask(&router, key));
    settle().await;
    assert_eq!(work.executions.count(), 1);
    work.may_end.add_permits(3);
    for request in requests {
        assert_eq!(request.await.unwrap().status(), 201);
    }
    assert_eq!((work.executions.count(), work.most.load(SeqCst)), (3, 1));
}

#[tokio::test]
async fn wait_for_a_place_ends_with_a_refusal() {
    let work = Work::new();
    let router = work.router().layer(layer().max_concurrency(1).concurrency_wait(Duration::from_millis(20)));
    let first = ask(&router, "a");
    work.until_started(1).await;
    assert_eq!(ask(&router, "b").await.unwrap().status(), 503);
    work.may_end.add_permits(1);
    assert_eq!(first.await.unwrap().status(), 201);
    assert_eq!(work.executions.count(), 1);
}

#[tokio::test]
async fn client_gone_while_it_waits_never_runs() {
    let work = Work::new();
    let layer = layer().max_concurrency(1).concurrency_wait(MINUTE);
    let router = work.router().layer(layer.clone());
    let first = ask(&router, "a");
    let waits = ask(&router, "b");
    settle().await;
    waits.abort();
    assert!(waits.await.unwrap_err().is_cancelled());
    settle().await;
    work.may_end.add_permits(2);
    assert_eq!(first.await.unwrap().status(), 201);
    layer.drain().await;
    assert_eq!(work.executions.count(), 1);
    // Its key was not claimed, so the repeat runs.
    assert_eq!(ask(&router, "b").await.unwrap().status(), 201);
    assert_eq!(work.executions.count(), 2);
}

#[tokio::test]
async fn client_that_does_not_read_is_cut_off() {
    const PIECES: usize = 2000;
    const PIECE: usize = 65_536;
    let (executions, made) = (Executions::default(), Arc::new(AtomicUsize::new(0)));
    let (counted, making) = (executions.clone(), made.clone());
    let handler = move || {
        counted.add();
        let making = making.clone();
        let pieces = futures_util::stream::iter((0..PIECES).map(move |_| {
            making.fetch_add(1, SeqCst);
            Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; PIECE]))
        }));
        async move { Body::from_stream(pieces) }
    };
    let layer = layer().max_reader_wait(Duration::from_millis(100));
    let served = Served::start(Router::new().route("/orders", post(handler)), layer.clone()).await;
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    let host = served.address;
    let request = format!("POST /orders HTTP/1.1\r\nhost: {host}\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n");
    silent.write_all(request.as_bytes()).await.unwrap();
    // The head, and no more.
    silent.read_exact(&mut [0; 12]).await.unwrap();
    let drained = tokio::time::timeout(MINUTE, layer.drain()).await;
    assert!(drained.is_ok(), "the client keeps the layer from ending");
    assert_eq!((made.load(SeqCst), executions.count()), (PIECES, 1), "the handler's body is read to its end");
    let repeat = served.post("/orders", "k").send().await.unwrap();
    assert_eq!(problem(repeat).await, (410, "answer-not-kept".to_owned()));
    // What was sent by then, and no end of the body.
    let (mut rest, mut length) = (vec![0; PIECE], 0);
    while let Ok(read @ 1..) = silent.read(&mut rest).await {
        length += read;
    }
    assert!(length < PIECES * PIECE && !rest.ends_with(b"0\r\n\r\n"), "{length}");
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn repeat_that_waits_for_a_place_sees_the_first_one() {
    let work = Work::new();
    let router = work.router().layer(layer().max_concurrency(1).concurrency_wait(Duration::from_millis(300)));
    let other = ask(&router, "a");
    work.until_started(1).await;
    let first = ask(&router, "b");
    settle().await;
    let repeat = ask(&router, "b");
    settle().await;
    work.may_end.add_permits(1);
    work.until_started(1).await;
    assert_eq!(repeat.await.unwrap().status(), 409, "its first request is running");
    work.may_end.add_permits(1);
    assert_eq!((other.await.unwrap().status().as_u16(), first.await.unwrap().status().as_u16()), (201, 201));
    assert_eq!(work.executions.count(), 2);
}
