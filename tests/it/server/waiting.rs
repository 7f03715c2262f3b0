//! A repeat that waits for the first request while the task that polls the store dies.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use http::{Request, Response, StatusCode};
use steadfast::server::{IdempotencyLayer, Scope, SharedStore};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tower::ServiceExt;

use super::failing::Failing;
use super::support::Executions;

/// A handler that runs until the test ends it.
struct Slow {
    store: Arc<Failing>,
    router: Router,
    answers: Arc<Notify>,
    executions: Executions,
}

impl Slow {
    fn new(panicking_looks: usize) -> Self {
        let mut store = Failing::new(false, false, 0);
        store.panicking_looks = panicking_looks.into();
        let (store, answers, executions) = (Arc::new(store), Arc::new(Notify::new()), Executions::default());
        let (go_on, executed) = (answers.clone(), executions.clone());
        let run = async move || {
            executed.add();
            go_on.notified().await;
            StatusCode::CREATED
        };
        let layer = IdempotencyLayer::with_shared_store(SharedStore::from(store.clone()), Scope::single_caller());
        Self { store, router: Router::new().route("/", post(run)).layer(layer), answers, executions }
    }

    fn ask(&self, runtime: &Runtime, wait: Duration) -> JoinHandle<Response<Body>> {
        let prefer = format!("wait={}", wait.as_secs());
        let request = Request::post("/").header("idempotency-key", "k").header("prefer", prefer);
        let router = self.router.clone();
        runtime.spawn(async move { router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap() })
    }

    fn claims(&self) -> usize {
        self.store.asked_claims.load(SeqCst)
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

async fn until_claimed(slow: &Slow, claims: usize) {
    while slow.claims() < claims {
        tokio::task::yield_now().await;
    }
}

#[test]
fn panic_in_get_leaves_no_repeat_waiting() {
    let slow = Slow::new(3);
    let runtime = runtime();
    runtime.block_on(async {
        let first = slow.ask(&runtime, Duration::ZERO);
        until_claimed(&slow, 1).await;
        let repeat = slow.ask(&runtime, Duration::from_secs(60));
        slow.store.looked.notified().await;
        slow.answers.notify_one();
        assert_eq!(first.await.unwrap().status(), StatusCode::CREATED);
        assert_eq!(repeat.await.unwrap().headers()["idempotency-status"], "replayed;retention=86400");
    });
    assert_eq!(
        (slow.executions.count(), slow.claims()),
        (1, 3),
        "two claims of the repeat: before and after it waited"
    );
}

#[test]
fn dropped_runtime_leaves_no_repeat_waiting() {
    let slow = Slow::new(0);
    let (gone, runtime) = (runtime(), runtime());
    let first = slow.ask(&runtime, Duration::ZERO);
    runtime.block_on(until_claimed(&slow, 1));
    let _lost = slow.ask(&gone, Duration::from_secs(60));
    runtime.block_on(slow.store.looked.notified());
    drop(gone);
    runtime.block_on(async {
        let repeat = slow.ask(&runtime, Duration::from_secs(60));
        until_claimed(&slow, 3).await;
        slow.answers.notify_one();
        assert_eq!(first.await.unwrap().status(), StatusCode::CREATED);
        assert_eq!(repeat.await.unwrap().headers()["idempotency-status"], "replayed;retention=86400");
    });
    assert_eq!((slow.executions.count(), slow.claims()), (1, 4), "two claims of the last repeat");
}
