//! If the outcome of an operation is unknown, the hook finds it out or reports that it cannot.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use axum::routing::post;
use steadfast::server::{
    Claim, ClaimOutcome, ClaimRef, End, Fingerprint, FinishOutcome, IdempotencyLayer, MemoryStore, OperationKey,
    Reconciliation, Record, RecordId, RecordState as Known, Scope, Store, StoreError, UnknownOperation,
};
use tokio::sync::Notify;

use crate::server::failing::Failing;
use crate::server::support::{Executions, Served, header, problem};

/// Panics on the first run.
async fn dying(State(executions): State<Executions>) -> (StatusCode, String) {
    let number = executions.add();
    assert!(number > 1, "this handler dies on purpose");
    (StatusCode::CREATED, format!("run {number}"))
}

async fn serve<F>(executions: &Executions, find: impl Fn(UnknownOperation) -> F + Send + Sync + 'static) -> Served
where
    F: Future<Output = Reconciliation> + Send + 'static,
{
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).reconcile(find);
    let served =
        Served::start(Router::new().route("/charges", post(dying)).with_state(executions.clone()), layer).await;
    assert_eq!(served.post("/charges", "k").body("x").send().await.unwrap().status(), 500);
    served
}

#[tokio::test]
async fn applied_operation_gets_lasting_response() {
    let executions = Executions::default();
    let served = serve(&executions, |lapse| async move {
        assert_eq!((lapse.method.as_str(), lapse.uri.path(), &lapse.body[..]), ("POST", "/charges", b"x".as_slice()));
        assert_eq!(lapse.operation, OperationKey::new("", "k"));
        let mut found = Response::new(Bytes::from_static(b"found in the books"));
        *found.status_mut() = StatusCode::CREATED;
        Reconciliation::Applied(found)
    })
    .await;
    for _ in 0..2 {
        let again = served.post("/charges", "k").body("x").send().await.unwrap();
        assert_eq!((again.status().as_u16(), header(&again, "idempotent-replayed")), (201, Some("true")));
        assert_eq!(again.text().await.unwrap(), "found in the books");
    }
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn found_outcome_is_sent_even_if_not_stored() {
    let executions = Executions::default();
    let store = Failing::new(false, true, 0);
    let layer = IdempotencyLayer::new(store, Scope::single_caller())
        .lease(std::time::Duration::from_millis(30))
        .reconcile(|_| async { Reconciliation::Applied(Response::new(Bytes::from_static(b"found in the books"))) });
    let router = Router::new().route("/charges", post(dying)).with_state(executions.clone());
    let served = Served::start(router, layer).await;
    assert_eq!(served.post("/charges", "k").body("x").send().await.unwrap().status(), 500);
    let found = served.post("/charges", "k").body("x").send().await.unwrap();
    assert_eq!((found.status().as_u16(), header(&found, "idempotency-status")), (200, Some("unknown;retention=86400")));
    assert_eq!(found.text().await.unwrap(), "found in the books");
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn operation_not_applied_runs() {
    let executions = Executions::default();
    let served = serve(&executions, |_| async { Reconciliation::NotApplied }).await;
    let again = served.post("/charges", "k").body("x").send().await.unwrap();
    assert_eq!((header(&again, "idempotent-replayed"), again.status().as_u16()), (None, 201));
    let replayed = served.post("/charges", "k").body("x").send().await.unwrap();
    assert_eq!(replayed.text().await.unwrap(), "run 2");
    assert_eq!(executions.count(), 2);
}

#[tokio::test]
async fn undecided_hook_rejects_and_is_asked_again() {
    let executions = Executions::default();
    let asked = Executions::default();
    let counted = asked.clone();
    let served = serve(&executions, move |_| {
        let number = counted.add();
        async move {
            assert!(number > 1, "this hook dies on purpose");
            Reconciliation::Unknown
        }
    })
    .await;
    for _ in 0..2 {
        let refused = served.post("/charges", "k").body("x").send().await.unwrap();
        assert_eq!(problem(refused).await, (409, "outcome-unknown".to_owned()));
    }
    assert_eq!((executions.count(), asked.count()), (1, 2));
    // The hook is not called for a different request.
    assert_eq!(problem(served.post("/charges", "k").body("y").send().await.unwrap()).await.0, 422);
    assert_eq!(asked.count(), 2);
}

#[tokio::test]
async fn hook_that_panics_at_once_leaves_unknown() {
    let executions = Executions::default();
    let served = serve(&executions, |lapse| {
        assert_eq!(lapse.method.as_str(), "no method", "this hook dies on purpose");
        async { Reconciliation::Unknown }
    })
    .await;
    for _ in 0..2 {
        let refused = served.post("/charges", "k").body("x").send().await.unwrap();
        assert_eq!(problem(refused).await, (409, "outcome-unknown".to_owned()));
    }
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn concurrent_repeats_run_one_reconciliation() {
    let executions = Executions::default();
    let (asked, go_on) = (Executions::default(), Arc::new(Notify::new()));
    let (counted, gate) = (asked.clone(), go_on.clone());
    let served = serve(&executions, move |_| {
        counted.add();
        let gate = gate.clone();
        async move {
            gate.notified().await;
            Reconciliation::NotApplied
        }
    })
    .await;
    let first = tokio::spawn(served.post("/charges", "k").body("x").send());
    while asked.count() == 0 {
        tokio::task::yield_now().await;
    }
    let second = served.post("/charges", "k").body("x").send().await.unwrap();
    assert_eq!(problem(second).await, (409, "in-progress".to_owned()));
    go_on.notify_one();
    assert_eq!(first.await.unwrap().unwrap().status(), 201);
    assert_eq!((executions.count(), asked.count()), (2, 1));
}
#[tokio::test]
async fn reconciling_in_transaction_rejects_others_at_once() {
    use steadfast::server::OnUnknown;

    let executions = Executions::default();
    let (asked, go_on) = (Executions::default(), Arc::new(Notify::new()));
    let (counted, gate) = (asked.clone(), go_on.clone());
    let store = crate::server::postgres::store().await.transactional();
    let layer =
        IdempotencyLayer::new(store, Scope::single_caller()).on_unknown(OnUnknown::Reject).reconcile(move |_| {
            counted.add();
            let gate = gate.clone();
            async move {
                gate.notified().await;
                Reconciliation::NotApplied
            }
        });
    let router = Router::new().route("/charges", post(dying)).with_state(executions.clone());
    let served = Served::start(router, layer).await;
    assert_eq!(served.post("/charges", "k").body("x").send().await.unwrap().status(), 500);
    let first = tokio::spawn(served.post("/charges", "k").body("x").send());
    while asked.count() == 0 {
        tokio::task::yield_now().await;
    }
    // The row says "unknown" until the other transaction ends; the lock shows that it is being
    // reconciled.
    let second = served.post("/charges", "k").body("x").send();
    let second = tokio::time::timeout(std::time::Duration::from_secs(5), second).await.expect("no response");
    assert_eq!(problem(second.unwrap()).await, (409, "in-progress".to_owned()));
    go_on.notify_one();
    assert_eq!(first.await.unwrap().unwrap().status(), 201);
    assert_eq!((executions.count(), asked.count()), (2, 1));
}

/// A store in which, between two calls, the unknown record expires and another request takes the
/// key and completes.
struct TakenMeanwhile;

impl Store for TakenMeanwhile {
    type Session = ();

    async fn claim(&self, claim: &Claim<'_>) -> Result<ClaimOutcome<()>, StoreError> {
        if !claim.take_over {
            return Ok(ClaimOutcome::Existing(Known::unknown(claim.fingerprint)));
        }
        let record =
            Record::new(StatusCode::OK, &axum::http::HeaderMap::new(), Bytes::from_static(b"another's answer"));
        Ok(ClaimOutcome::Existing(Known::completed(Fingerprint::of("another request"), record)))
    }

    async fn renew(&self, _: ClaimRef, _: std::time::Duration) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn finish(&self, _: ClaimRef, _: Option<()>, _: &End) -> Result<FinishOutcome, StoreError> {
        Ok(FinishOutcome::Fenced)
    }

    async fn get(&self, _: &RecordId) -> Result<Option<Known>, StoreError> {
        Ok(None)
    }

    async fn purge_expired(&self, _: usize) -> Result<usize, StoreError> {
        Ok(0)
    }
}

#[tokio::test]
async fn key_taken_before_hook_runs_is_rejected() {
    let executions = Executions::default();
    let layer =
        IdempotencyLayer::new(TakenMeanwhile, Scope::single_caller()).reconcile(|_| async { Reconciliation::Unknown });
    let router = Router::new().route("/charges", post(dying)).with_state(executions.clone());
    let served = Served::start(router, layer).await;
    let refused = served.post("/charges", "k").body("x").send().await.unwrap();
    assert_eq!(problem(refused).await.0, 422, "the answer of another request is not replayed");
    assert_eq!(executions.count(), 0);
}
