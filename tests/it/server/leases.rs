//! Leases of handlers that run for long or block their thread.
//!
//! Leases are renewed in the store while any thread of the runtime is free. If none is, the process
//! itself knows that the operation runs.
//!
//! Two handles to one store stand for two processes: the second sees the first one's claims only
//! through the store.

#![allow(clippy::disallowed_methods, reason = "what blocks a thread is what is tested, by the real clock")]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use steadfast::server::{
    Delivery, EventId, ExecutionOutcome, Fingerprint, HeldClaim, IdempotencyLayer, Inbox, InboxError, MemoryStore,
    OnUnknown, OperationKey, RecordId, RecordState, Scope, SharedStore, Store, WebhookLayer,
};
use tokio::sync::Notify;
use tower::{Layer, Service, ServiceExt, service_fn};

use super::failing::Failing;
use super::support::Executions;

type Body = Full<Bytes>;
type Answer = Result<Response<Body>, Infallible>;

const LEASE: Duration = Duration::from_millis(600);

/// The ways in which a handler blocks its thread for three leases.
#[derive(Clone, Copy, Debug)]
enum Blocks {
    Sleeping,
    InPlace,
    Computing,
}

impl Blocks {
    const ALL: [Self; 3] = [Self::Sleeping, Self::InPlace, Self::Computing];

    fn block(self) {
        let until = Instant::now() + 3 * LEASE;
        match self {
            Self::Sleeping => std::thread::sleep(3 * LEASE),
            Self::InPlace => tokio::task::block_in_place(|| std::thread::sleep(3 * LEASE)),
            Self::Computing => {
                let mut sum = 0_u64;
                while Instant::now() < until {
                    sum = std::hint::black_box(sum.wrapping_add(1));
                }
            }
        }
    }
}

/// The entry points of an operation.
#[derive(Clone, Copy, Debug)]
enum Door {
    Layer,
    Webhook,
    Inbox,
}

impl Door {
    const ALL: [Self; 3] = [Self::Layer, Self::Webhook, Self::Inbox];

    fn id(self, key: &str) -> RecordId {
        match self {
            Self::Layer => *OperationKey::new("", key).record_id(),
            Self::Webhook | Self::Inbox => RecordId::of_event("shop", key),
        }
    }

    /// Runs `handler` under this key and returns the result as a word.
    async fn ask<S: Store>(self, store: SharedStore<S>, key: &str, handler: impl Handler) -> &'static str {
        match self {
            Self::Layer => {
                serve(
                    IdempotencyLayer::with_shared_store(store, Scope::single_caller())
                        .on_unknown(OnUnknown::Rerun)
                        .lease(LEASE),
                    key,
                    handler,
                )
                .await
            }
            Self::Webhook => {
                serve(WebhookLayer::with_shared_store(store, "shop", EventId::json("/id")).lease(LEASE), key, handler)
                    .await
            }
            Self::Inbox => {
                let inbox = Inbox::with_shared_store(store).lease(LEASE);
                let handle = |_| async {
                    handler.call().await;
                    Ok::<_, Infallible>(())
                };
                match inbox.process("shop", key, Fingerprint::of(key), handle).await {
                    Ok(Delivery::Handled(())) => "done",
                    Ok(_) => "replayed",
                    Err(InboxError::InProgress) => "in progress",
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

/// The work of a handler.
trait Handler: Clone + Send + Sync + 'static {
    fn call(&self) -> impl Future<Output = ()> + Send;
}

/// Counts, and blocks its thread.
#[derive(Clone)]
struct Blocking {
    blocks: Blocks,
    executions: Executions,
    begun: Arc<Notify>,
    ended: Arc<AtomicBool>,
}

impl Handler for Blocking {
    async fn call(&self) {
        self.executions.add();
        self.begun.notify_one();
        self.blocks.block();
        self.ended.store(true, Ordering::SeqCst);
    }
}

async fn serve<L>(layer: L, key: &str, handler: impl Handler) -> &'static str
where
    L: Layer<tower::util::BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>>,
    L::Service: Service<Request<Body>, Response: Replied, Error = Infallible, Future: Send> + Send + 'static,
{
    let handle = service_fn(move |_: Request<Body>| {
        let handler = handler.clone();
        async move {
            handler.call().await;
            Answer::Ok(Response::new(Full::from("done")))
        }
    });
    let body = Full::from(format!(r#"{{"id":"{key}"}}"#));
    let request = Request::post("/").header("idempotency-key", key).body(body).unwrap();
    let answer = layer.layer(tower::util::BoxCloneSyncService::new(handle)).oneshot(request).await.unwrap();
    match (answer.status(), answer.headers().contains_key("idempotent-replayed")) {
        (StatusCode::OK, false) => "done",
        (StatusCode::OK, true) => "replayed",
        (StatusCode::CONFLICT, _) if answer.headers().contains_key("retry-after") => "in progress",
        other => panic!("{other:?}"),
    }
}

trait Replied {
    fn status(&self) -> StatusCode;
    fn headers(&self) -> &HeaderMap;
}

impl<B> Replied for Response<B> {
    fn status(&self) -> StatusCode {
        self.status()
    }
    fn headers(&self) -> &HeaderMap {
        self.headers()
    }
}

/// Every entry point and every way of blocking, on a runtime with two workers. One worker is
/// blocked for three leases. All the time, the store and another process see that the claim holds.
async fn lease_is_renewed_beside_a_blocked_thread<S: Store>(store: S, run: &str) {
    let store = Arc::new(store);
    let (here, elsewhere) = (SharedStore::from(store.clone()), SharedStore::from(store.clone()));
    for door in Door::ALL {
        for blocks in Blocks::ALL {
            let case = format!("{run} {door:?} {blocks:?}");
            let handler =
                Blocking { blocks, executions: Executions::default(), begun: Arc::default(), ended: Arc::default() };
            let first = tokio::spawn({
                let (here, handler, key) = (here.clone(), handler.clone(), case.clone());
                async move { door.ask(here, &key, handler).await }
            });
            handler.begun.notified().await;
            let (begun, mut seen) = (Instant::now(), Duration::ZERO);
            loop {
                let state = store.get(&door.id(&case)).await.unwrap();
                let told = door.ask(elsewhere.clone(), &case, handler.clone()).await;
                if handler.ended.load(Ordering::SeqCst) {
                    break;
                }
                seen = begun.elapsed();
                assert!(matches!(state, Some(RecordState::InProgress { .. })), "{case}: {state:?}");
                assert_eq!(told, "in progress", "{case}");
                assert!(tokio::time::timeout(LEASE / 10, std::future::pending::<()>()).await.is_err());
            }
            assert!(seen > LEASE, "{case}: the last look was after {seen:?}");
            assert_eq!(first.await.unwrap(), "done", "{case}");
            assert_eq!(door.ask(elsewhere.clone(), &case, handler.clone()).await, "replayed", "{case}");
            assert_eq!(handler.executions.count(), 1, "{case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_thread_keeps_its_lease_in_memory() {
    lease_is_renewed_beside_a_blocked_thread(MemoryStore::new(), "memory").await;
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_thread_keeps_its_lease_in_redb() {
    let folder = tempfile::tempdir().unwrap();
    let store = steadfast_redb::RedbStore::open(folder.path().join("keys.redb")).unwrap();
    lease_is_renewed_beside_a_blocked_thread(store, "redb").await;
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_thread_keeps_its_lease_in_redis() {
    // The server outlives the run, so each run needs keys of its own.
    let run = format!("redis {}", steadfast::IdempotencyKey::mint().unwrap().as_str());
    let store = steadfast_redis::RedisStore::connect(&super::redis_server::shared()).await.unwrap();
    lease_is_renewed_beside_a_blocked_thread(store, &run).await;
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_thread_keeps_its_lease_in_postgres() {
    lease_is_renewed_beside_a_blocked_thread(super::postgres::store().await, "postgres").await;
}

/// Blocks the only thread for three leases, and waits after that.
#[derive(Clone)]
struct BlockingAlone {
    executions: Executions,
    lapsed: Arc<Notify>,
    end: Arc<Notify>,
}

impl Handler for BlockingAlone {
    async fn call(&self) {
        if self.executions.add() == 1 {
            Blocks::Sleeping.block();
            self.lapsed.notify_one();
            self.end.notified().await;
        }
    }
}

/// On a runtime with one thread nothing can renew. Only the list of operations that run in this
/// process prevents a second execution.
#[tokio::test]
async fn only_thread_blocked_runs_once() {
    for door in Door::ALL {
        // Never renewed, as if the thread were blocked for good.
        let store = Failing::new(false, false, 0);
        store.renews.store(false, Ordering::SeqCst);
        let store = SharedStore::new(store);
        let handler = BlockingAlone { executions: Executions::default(), lapsed: Arc::default(), end: Arc::default() };
        let first = door.ask(store.clone(), "k", handler.clone());
        let others = async {
            handler.lapsed.notified().await;
            let state = store.get(&door.id("k")).await.unwrap();
            assert!(
                matches!(state, Some(RecordState::Unknown { .. })),
                "{door:?}: the store says that it lapsed: {state:?}"
            );
            for _ in 0..3 {
                assert_eq!(door.ask(store.clone(), "k", handler.clone()).await, "in progress", "{door:?}");
            }
            handler.end.notify_one();
        };
        assert_eq!(tokio::join!(first, others).0, "done", "{door:?}");
        assert_eq!(door.ask(store, "k", handler.clone()).await, "replayed", "{door:?}: its end is stored all the same");
        assert_eq!(handler.executions.count(), 1, "{door:?}");
    }
}

fn request() -> Request<Body> {
    Request::post("/").header("idempotency-key", "k").body(Full::from("{}")).unwrap()
}

fn done() -> Answer {
    Ok(Response::new(Full::from("done")))
}

/// Returns the status and the problem's type.
async fn ask<S: Store, I>(layer: &IdempotencyLayer<S>, inner: I) -> (u16, String)
where
    I: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    ask_for(layer, inner, request()).await
}

async fn ask_for<S: Store, I>(layer: &IdempotencyLayer<S>, inner: I, request: Request<Body>) -> (u16, String)
where
    I: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    let answer = layer.layer(inner).oneshot(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    (status, problem["type"].as_str().unwrap_or_default().rsplit('#').next().unwrap_or_default().to_owned())
}

/// A store that renews nothing, with an operation that has lapsed and still runs.
struct Outlived {
    store: SharedStore<Failing>,
    executions: Executions,
    end: Arc<Notify>,
}

impl Outlived {
    fn new() -> Self {
        let store = Failing::new(false, false, 0);
        store.renews.store(false, Ordering::SeqCst);
        Self { store: SharedStore::new(store), executions: Executions::default(), end: Arc::default() }
    }

    fn layer(&self) -> IdempotencyLayer<Failing> {
        IdempotencyLayer::with_shared_store(self.store.clone(), Scope::single_caller()).lease(Duration::from_millis(20))
    }

    /// Starts the operation, and returns when its lease is over.
    async fn start(&self, layer: &IdempotencyLayer<Failing>) -> tokio::task::JoinHandle<(u16, String)> {
        let (layer, executions, end) = (layer.clone(), self.executions.clone(), self.end.clone());
        let running = tokio::spawn(async move {
            let handler = service_fn(move |_: Request<Body>| {
                let (first, end) = (executions.add() == 1, end.clone());
                async move {
                    if first {
                        end.notified().await;
                    }
                    done()
                }
            });
            ask(&layer, handler).await
        });
        let id = *OperationKey::new("", "k").record_id();
        while !matches!(self.store.get(&id).await.unwrap(), Some(RecordState::Unknown { .. })) {
            tokio::task::yield_now().await;
        }
        running
    }

    fn counting(
        &self,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static
    {
        let executions = self.executions.clone();
        service_fn(move |_: Request<Body>| {
            executions.add();
            std::future::ready(done())
        })
    }
}

#[tokio::test]
async fn live_handler_is_not_reconciled() {
    let outlived = Outlived::new();
    let asked = Executions::default();
    let counted = asked.clone();
    let layer = outlived.layer().reconcile(move |_| {
        counted.add();
        async { steadfast::server::Reconciliation::NotApplied }
    });
    let first = outlived.start(&layer).await;
    assert_eq!(ask(&layer, outlived.counting()).await, (409, "in-progress".to_owned()));
    outlived.end.notify_one();
    assert_eq!(first.await.unwrap().0, 200);
    assert_eq!((asked.count(), outlived.executions.count()), (0, 1));
}

#[tokio::test]
async fn repeat_waits_for_a_handler_that_lapsed() {
    let outlived = Outlived::new();
    let layer = outlived.layer();
    let first = outlived.start(&layer).await;
    let waits = Request::post("/").header("idempotency-key", "k").header("prefer", "wait=10").body(Full::from("{}"));
    let (waited, ()) = tokio::join!(ask_for(&layer, outlived.counting(), waits.unwrap()), async {
        outlived.end.notify_one();
    });
    assert_eq!((waited.0, first.await.unwrap().0), (200, 200));
    assert_eq!(outlived.executions.count(), 1);
}

#[tokio::test]
async fn live_handler_cannot_be_released_by_hand() {
    use steadfast::server::admin::{ReleaseError, release};
    let outlived = Outlived::new();
    let first = outlived.start(&outlived.layer()).await;
    let operation = OperationKey::new("", "k");
    let refused = release(&outlived.store, &operation, "it lapsed").await;
    assert!(matches!(refused, Err(ReleaseError::Running)), "{refused:?}");
    outlived.end.notify_one();
    assert_eq!(first.await.unwrap().0, 200);
}

/// The list entry lives as long as the handler: however it ends, the key is not "in progress" for
/// ever.
#[tokio::test]
async fn handler_that_died_is_not_alive() {
    for abort in [false, true] {
        let store = Failing::new(false, false, 0);
        store.renews.store(false, Ordering::SeqCst);
        let store = SharedStore::new(store);
        let layer = IdempotencyLayer::with_shared_store(store.clone(), Scope::single_caller())
            .on_unknown(OnUnknown::Rerun)
            .lease(Duration::from_millis(20));
        let dies = service_fn(move |_: Request<Body>| async move {
            if abort {
                std::future::pending::<()>().await;
            }
            panic!("this handler dies on purpose")
        });
        // A runtime of its own, which is dropped with the handler in it.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let first = runtime.spawn({
            let layer = layer.clone();
            async move { ask(&layer, dies).await }
        });
        let id = *OperationKey::new("", "k").record_id();
        while !matches!(store.get(&id).await.unwrap(), Some(RecordState::Unknown { .. })) {
            tokio::task::yield_now().await;
        }
        if !abort {
            assert_eq!(first.await.unwrap(), (500, "outcome-unknown-handler-failed".to_owned()));
        }
        runtime.shutdown_background();
        let again = async {
            while ask(&layer, service_fn(|_: Request<Body>| async { done() })).await.0 != 200 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), again).await.expect("the key is in progress for ever");
    }
}

/// Each runtime renews its own operations: one whose only thread is blocked does not stop another.
#[tokio::test]
async fn blocked_runtime_does_not_stop_other_renewals() {
    let store = Arc::new(MemoryStore::new());
    let shared = SharedStore::from(store.clone());
    let begun = Arc::new(Notify::new());
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn({
        let (shared, begun) = (shared.clone(), begun.clone());
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let inbox = Inbox::with_shared_store(shared).lease(LEASE);
                let blocks = |_| async {
                    begun.notify_one();
                    blocked.recv().unwrap();
                    Ok::<_, Infallible>(())
                };
                inbox.process("shop", "blocked", Fingerprint::of("x"), blocks).await.unwrap();
            });
        }
    });
    begun.notified().await;
    let inbox = Inbox::with_shared_store(shared).lease(LEASE);
    let id = RecordId::of_event("shop", "well");
    let handler = |_| async {
        let until = Instant::now() + 3 * LEASE;
        while Instant::now() < until {
            let state = store.get(&id).await.unwrap();
            assert!(matches!(state, Some(RecordState::InProgress { .. })), "{state:?}");
            assert!(tokio::time::timeout(LEASE / 10, std::future::pending::<()>()).await.is_err());
        }
        Ok::<_, Infallible>(())
    };
    inbox.process("shop", "well", Fingerprint::of("x"), handler).await.unwrap();
    release.send(()).unwrap();
    other.join().unwrap();
}

#[tokio::test]
async fn handler_learns_of_lost_claim() {
    let (store, lease) = (Arc::new(Failing::new(false, false, 0)), Duration::from_millis(60));
    store.renews.store(false, Ordering::SeqCst);
    let layer = |handle: SharedStore<Failing>| {
        IdempotencyLayer::with_shared_store(handle, Scope::single_caller()).on_unknown(OnUnknown::Rerun).lease(lease)
    };
    let (here, elsewhere) = (layer(store.clone().into()), layer(store.clone().into()));
    let (begun, taken_over) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, told) = (begun.clone(), taken_over.clone());
    let first = tokio::spawn(async move {
        let handler = service_fn(move |request: Request<Body>| {
            let (tell, told) = (tell.clone(), told.clone());
            async move {
                let claim = request.extensions().get::<HeldClaim>().unwrap().clone();
                assert!(claim.is_held());
                tell.notify_one();
                told.notified().await;
                assert!(!claim.is_held(), "its lease ran out, whatever the store replies later");
                claim.lost().await;
                done()
            }
        });
        ask(&here, handler).await
    });
    begun.notified().await;
    let id = *OperationKey::new("", "k").record_id();
    while !matches!(store.get(&id).await.unwrap(), Some(RecordState::Unknown { .. })) {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&elsewhere, service_fn(|_: Request<Body>| async { done() })).await.0, 200);
    // The store replies to renewals again: it refuses the first operation's.
    store.renews.store(true, Ordering::SeqCst);
    taken_over.notify_one();
    let first =
        tokio::time::timeout(Duration::from_secs(10), first).await.expect("the handler never learns of the lost claim");
    assert_eq!(first.unwrap().0, 200, "a lost fence stays lost, and the caller has its answer");
}

#[tokio::test]
async fn handler_over_time_limit_is_cancelled() {
    for (lapsed, again) in [(OnUnknown::Reject, (409, "outcome-unknown")), (OnUnknown::Rerun, (200, ""))] {
        let (layer, dropped) = (
            IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).on_unknown(lapsed),
            Arc::new(AtomicBool::new(false)),
        );
        let layer = layer.max_handler_time(Duration::from_millis(20));
        struct Tells(Arc<AtomicBool>);
        impl Drop for Tells {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let tells = dropped.clone();
        let hangs = service_fn(move |_: Request<Body>| {
            let tells = Tells(tells.clone());
            async move {
                let _tells = tells;
                std::future::pending::<Answer>().await
            }
        });
        assert_eq!(ask(&layer, hangs).await, (500, "outcome-unknown-handler-timed-out".to_owned()), "{lapsed:?}");
        assert!(dropped.load(Ordering::SeqCst), "it is cancelled, not only abandoned");
        let (status, kind) = ask(&layer, service_fn(|_: Request<Body>| async { done() })).await;
        assert_eq!((status, kind.as_str()), again, "{lapsed:?}");
    }
}

#[tokio::test]
async fn handler_within_time_limit_completes() {
    let layer =
        IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).max_handler_time(Duration::from_secs(60));
    let verdict = service_fn(|_: Request<Body>| async {
        let mut answer = done();
        if let Ok(answer) = &mut answer {
            answer.extensions_mut().insert(ExecutionOutcome::Executed);
        }
        answer
    });
    assert_eq!(ask(&layer, verdict).await.0, 200);
}

/// If the reply to a claim takes longer than the lease, another claim may hold the key by then. So
/// the claim is repeated, and nothing runs under the old one.
#[tokio::test]
async fn claim_confirmed_after_lease_runs_nothing() {
    let lease = Duration::from_millis(40);
    let store = Failing { late: 2 * lease, ..Failing::new(false, false, 0) };
    let layer = IdempotencyLayer::new(store, Scope::single_caller()).lease(lease);
    let executions = Executions::default();
    let counted = executions.clone();
    let handler = service_fn(move |_: Request<Body>| {
        counted.add();
        std::future::ready(done())
    });
    assert_eq!(ask(&layer, handler).await, (503, "store-unavailable".to_owned()));
    layer.drain().await;
    assert_eq!(layer.store().get(OperationKey::new("", "k").record_id()).await.unwrap(), None);
    assert_eq!(executions.count(), 0);
}
