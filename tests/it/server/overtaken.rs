//! Two concurrent claims of one process, of which the second takes over the first one's key.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use steadfast::server::{
    Claim, ClaimOutcome, ClaimRef, End, FinishOutcome, IdempotencyLayer, OnUnknown, RecordId, RecordState, Scope,
    Store, StoreError,
};
use tokio::sync::Semaphore;

use super::support::{Executions, Served, problem};

/// Lets one claim through after the other, and lets each succeed: the lease of the one before has
/// lapsed in the store.
#[derive(Clone)]
struct Slow {
    may_answer: Arc<[Semaphore; 2]>,
    asked: Arc<AtomicUsize>,
    cancelled: Arc<Semaphore>,
}

impl Store for Slow {
    type Session = ();

    async fn claim(&self, _: &Claim<'_>) -> Result<ClaimOutcome<()>, StoreError> {
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        let gate = self.may_answer.get(number).expect("a third claim");
        gate.acquire().await.expect("an open gate").forget();
        Ok(ClaimOutcome::Acquired(()))
    }

    async fn renew(&self, _: ClaimRef, _: Duration) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn finish(&self, _: ClaimRef, _: Option<()>, end: &End) -> Result<FinishOutcome, StoreError> {
        if matches!(end, End::Cancelled) {
            self.cancelled.add_permits(1);
        }
        Ok(FinishOutcome::Stored)
    }

    async fn get(&self, _: &RecordId) -> Result<Option<RecordState>, StoreError> {
        Ok(None)
    }

    async fn purge_expired(&self, _: usize) -> Result<usize, StoreError> {
        Ok(0)
    }
}

#[tokio::test]
async fn local_operation_is_not_taken_over() {
    let closed = || Semaphore::new(0);
    let store =
        Slow { may_answer: Arc::new([closed(), closed()]), asked: Arc::default(), cancelled: Arc::new(closed()) };
    let (executions, begun, may_end) = (Executions::default(), Arc::new(closed()), Arc::new(closed()));
    let (counted, begins, ends) = (executions.clone(), begun.clone(), may_end.clone());
    let handler = post(move || async move {
        counted.add();
        begins.add_permits(1);
        ends.acquire().await.expect("an open gate").forget();
        StatusCode::CREATED
    });
    let layer = IdempotencyLayer::new(store.clone(), Scope::single_caller()).on_unknown(OnUnknown::Rerun);
    let served = Served::start(Router::new().route("/charges", handler), layer).await;
    let send = || tokio::spawn(served.post("/charges", "k").body("x").send());

    let (first, second) = (send(), send());
    while store.asked.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    let [first_claim, second_claim] = &*store.may_answer;
    first_claim.add_permits(1);
    begun.acquire().await.unwrap().forget();
    second_claim.add_permits(1);
    // Both requests are alike, and either may have been first. One of them is rejected now.
    let cancelled = tokio::time::timeout(Duration::from_secs(10), store.cancelled.acquire()).await;
    cancelled.expect("no claim was cancelled: both run").unwrap().forget();
    may_end.add_permits(2);
    let mut statuses = Vec::new();
    for answer in [first, second] {
        let answer = answer.await.unwrap().unwrap();
        let status = answer.status().as_u16();
        if status != 201 {
            assert_eq!(problem(answer).await, (409, "in-progress".to_owned()));
        }
        statuses.push(status);
    }
    statuses.sort_unstable();
    assert_eq!((statuses, executions.count()), (vec![201, 409], 1));
}
