//! Events between two polls of an operation: a caller that is dropped at any of them, destructors
//! that panic, late replies to claims.
//!
//! There is no socket here, since none of this can be staged over one.

use std::convert::Infallible;
use std::future::{Ready, poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use steadfast::server::{
    Delivery, ExecutionOutcome, Fingerprint, IdempotencyLayer, Inbox, MemoryStore, OnUnknown, Reconciliation, Scope,
    SharedStore, Store,
};
use tower::{Layer, Service, ServiceExt, service_fn};

use super::failing::Failing;
use super::support::Executions;

type Answer = Result<Response<Full<Bytes>>, Infallible>;

fn request() -> Request<Full<Bytes>> {
    Request::post("/charges").header("idempotency-key", "k").body(Full::from("{}")).unwrap()
}

fn charged() -> Answer {
    Ok(Response::new(Full::from("charged")))
}

/// Returns the status, the key's state, and the problem's type.
async fn ask<I, S, R>(layer: &IdempotencyLayer<S>, inner: I) -> (u16, Option<String>, String)
where
    S: Store,
    I: Service<Request<Full<Bytes>>, Response = Response<R>, Error = Infallible> + Clone + Send + 'static,
    I::Future: Send,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let answer = layer.layer(inner).oneshot(request()).await.unwrap();
    let told = answer.headers().get("idempotency-status").map(|told| told.to_str().unwrap().to_owned());
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let kind = problem["type"].as_str().unwrap_or_default().rsplit('#').next().unwrap_or_default();
    (status, told, kind.to_owned())
}

/// Whatever the caller does, a successful claim is executed once and to its end, and a claim that
/// was not made is not.
#[tokio::test]
async fn caller_dropped_at_any_poll_runs_once_or_never() {
    for claim_polls in 0..4 {
        for caller_polls in 0..6 {
            for lapsed_before in [false, true] {
                let case = format!("{claim_polls} of the claim, {caller_polls} of the caller, {lapsed_before}");
                let executions = Executions::default();
                let layer = IdempotencyLayer::new(
                    Failing { polls: claim_polls, ..Failing::new(false, false, 0) },
                    Scope::single_caller(),
                )
                .reconcile(|_| async {
                    tokio::task::yield_now().await;
                    Reconciliation::NotApplied
                });
                let counted = executions.clone();
                let service = layer.layer(service_fn(move |_: Request<Full<Bytes>>| {
                    let nobody_knows = counted.add() == 1 && lapsed_before;
                    async move {
                        tokio::task::yield_now().await;
                        let mut answer = charged();
                        if let (true, Ok(answer)) = (nobody_knows, &mut answer) {
                            answer.extensions_mut().insert(ExecutionOutcome::Unknown);
                        }
                        answer
                    }
                }));
                if lapsed_before {
                    service.clone().oneshot(request()).await.unwrap();
                }
                let before = executions.count();
                let mut caller = Box::pin(service.clone().oneshot(request()));
                for _ in 0..caller_polls {
                    let polled = poll_fn(|cx| Poll::Ready(caller.as_mut().poll(cx))).await;
                    if polled.is_ready() {
                        break;
                    }
                }
                drop(caller);
                layer.drain().await;
                assert_eq!(executions.count(), before + usize::from(caller_polls > 0), "{case}");
                let again = service.clone().oneshot(request()).await.unwrap();
                assert_eq!(again.status(), 200, "{case}: the repeat does not see a running operation");
                assert_eq!(executions.count(), before + 1, "{case}");
            }
        }
    }
}

/// The lease begins with the call. The store's reply takes a part of it: here more than the third
/// after which a renewal is due.
#[tokio::test]
async fn late_claim_reply_is_renewed_at_once() {
    let lease = Duration::from_secs(3);
    let store = Arc::new(Failing { late: lease * 2 / 5, ..Failing::new(false, false, 0) });
    let layer =
        IdempotencyLayer::with_shared_store(SharedStore::from(store.clone()), Scope::single_caller()).lease(lease);
    let handling = service_fn(move |_: Request<Full<Bytes>>| {
        let store = store.clone();
        async move {
            // It would be a second if the lease began here.
            let renewed = tokio::time::timeout(lease / 6, store.renewed.notified()).await;
            renewed.expect("it is renewed at once");
            charged()
        }
    });
    assert_eq!(ask(&layer, handling).await.0, 200);
}

/// The same, for the inbox.
#[tokio::test]
async fn late_event_claim_reply_is_renewed_at_once() {
    let lease = Duration::from_secs(3);
    let store = Arc::new(Failing { late: lease * 2 / 5, ..Failing::new(false, false, 0) });
    let handling = |_| async { tokio::time::timeout(lease / 6, store.renewed.notified()).await };
    let inbox = Inbox::with_shared_store(SharedStore::from(store.clone())).lease(lease);
    let delivery = inbox.process("ledger", "e1", Fingerprint::of("paid"), handling).await.unwrap();
    assert!(matches!(delivery, Delivery::Handled(())));
}

/// A body that is longer than its size hint.
struct Understated(Full<Bytes>);

impl Body for Understated {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(1)
    }
}

/// The handler has acted and responded. A body longer than its size hint does not make the
/// operation unknown.
#[tokio::test]
async fn body_longer_than_size_hint_is_stored() {
    let executions = Executions::default();
    let layer =
        IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).max_response(4).on_unknown(OnUnknown::Rerun);
    for told in ["stored", "replayed"] {
        let counted = executions.clone();
        let answering = service_fn(move |_: Request<Full<Bytes>>| {
            counted.add();
            ready(Ok::<_, Infallible>(Response::new(Understated(Full::from("charged")))))
        });
        let answer = layer.layer(answering).oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.headers()["idempotency-status"].to_str().unwrap().starts_with(told));
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "charged");
    }
    assert_eq!(executions.count(), 1);
}

/// Panics when it is dropped.
struct Dies;

impl Drop for Dies {
    fn drop(&mut self) {
        panic!("a destructor dies on purpose");
    }
}

/// A handler that has responded and still holds unfinished work, as a timeout does.
struct Holding(#[allow(dead_code, reason = "it is dropped")] Dies);

impl Future for Holding {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Answer> {
        Poll::Ready(charged())
    }
}

/// A response body of known length.
struct DyingBody(Option<Bytes>, #[allow(dead_code, reason = "it is dropped")] Dies);

impl Body for DyingBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |_| 7))
    }
}

/// A service that dies right after its call.
#[derive(Clone)]
struct DyingService(Executions, Option<Arc<Dies>>);

impl Service<Request<Full<Bytes>>> for DyingService {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Answer>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        self.0.add();
        self.1 = Some(Arc::new(Dies));
        ready(charged())
    }
}

#[tokio::test]
async fn panic_in_destructor_is_unknown() {
    for (lapsed, runs, second) in
        [(OnUnknown::Reject, 1, "outcome-unknown"), (OnUnknown::Rerun, 2, "outcome-unknown-handler-failed")]
    {
        let check =
            |what: &str, first: (u16, Option<String>, String), again: (u16, Option<String>, String), ran: usize| {
                assert_eq!(first.0, 500, "{what}, {lapsed:?}");
                let told = if lapsed == OnUnknown::Rerun { "released" } else { "unknown" };
                assert!(
                    first.1.is_some_and(|word| word.starts_with(told)),
                    "{what}, {lapsed:?}: the first response names the state of its key"
                );
                assert_eq!((again.2.as_str(), ran), (second, runs), "{what}, {lapsed:?}: the key is not wedged");
            };
        let executions = Executions::default();
        let (layer, counted) =
            (IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).on_unknown(lapsed), executions.clone());
        let holding = service_fn(move |_: Request<Full<Bytes>>| {
            counted.add();
            Holding(Dies)
        });
        check("a handler", ask(&layer, holding.clone()).await, ask(&layer, holding).await, executions.count());

        let executions = Executions::default();
        let (layer, counted) =
            (IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).on_unknown(lapsed), executions.clone());
        let body = service_fn(move |_: Request<Full<Bytes>>| {
            counted.add();
            ready(Ok::<_, Infallible>(Response::new(DyingBody(Some("charged".into()), Dies))))
        });
        check("a body", ask(&layer, body.clone()).await, ask(&layer, body).await, executions.count());

        let executions = Executions::default();
        let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).on_unknown(lapsed);
        let service = DyingService(executions.clone(), None);
        check("a service", ask(&layer, service.clone()).await, ask(&layer, service).await, executions.count());
    }
}

/// Notes when it is dropped after its call.
#[derive(Clone)]
struct Called(Arc<AtomicBool>, bool);

impl Drop for Called {
    fn drop(&mut self) {
        self.0.fetch_or(self.1, Ordering::SeqCst);
    }
}

/// Shows in its only frame whether the service is gone. Its length is unknown before.
struct Witness(Option<Arc<AtomicBool>>);

impl Body for Witness {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let gone = self.0.take().map(|gone| gone.load(Ordering::SeqCst));
        Poll::Ready(gone.map(|gone| Ok(Frame::data(Bytes::from(gone.to_string())))))
    }
}

impl Service<Request<Full<Bytes>>> for Called {
    type Response = Response<Witness>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Witness>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        self.1 = true;
        ready(Ok(Response::new(Witness(Some(self.0.clone())))))
    }
}

#[tokio::test]
async fn service_is_dropped_before_body_is_read() {
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
    let answer = layer.layer(Called(Arc::default(), false)).oneshot(request()).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "true");
}
