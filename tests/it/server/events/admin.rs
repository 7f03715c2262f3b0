//! A key in the hands of whoever is on call: only what nobody knows can be given back.

use std::time::Duration;

use steadfast::http::{HeaderMap, StatusCode};
use steadfast::server::admin::{self, ReleaseError};
use steadfast::server::{
    Claim, ClaimToken, Claimed, Completion, Fingerprint, MemoryStore, OperationKey, Record, State, Store,
};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn only_an_unknown_operation_can_be_given_back() {
    let (store, operation) = (MemoryStore::new(), OperationKey::new("tenant", "k"));
    let one = Fingerprint::of("x");
    assert!(matches!(admin::release(&store, &operation, "why not").await, Err(ReleaseError::NotFound)));
    assert_eq!(admin::look(&store, &operation).await.unwrap(), None);

    let claim = || Claim::new(operation.record_id(), ClaimToken::new().unwrap(), one, HOUR, HOUR);
    let first = claim();
    assert!(matches!(store.claim(&first).await.unwrap(), Claimed::Won(())));
    assert!(matches!(admin::release(&store, &operation, "it hangs").await, Err(ReleaseError::Running)));
    assert!(store.renew(operation.record_id(), first.token, HOUR).await.unwrap(), "it still runs");

    store.abandon(operation.record_id(), first.token, None).await.unwrap();
    assert_eq!(admin::look(&store, &operation).await.unwrap(), Some(State::unknown(one)));
    admin::release(&store, &operation, "looked it up: nothing was charged").await.unwrap();
    assert_eq!(admin::look(&store, &operation).await.unwrap(), None);

    let second = claim();
    assert!(matches!(store.claim(&second).await.unwrap(), Claimed::Won(())));
    let record = Record::new(StatusCode::OK, &HeaderMap::new(), "done".into());
    store.complete(operation.record_id(), second.token, (), Completion::new(record.clone(), HOUR)).await.unwrap();
    assert!(matches!(admin::release(&store, &operation, "once more").await, Err(ReleaseError::Ended)));
    assert_eq!(admin::look(&store, &operation).await.unwrap(), Some(State::done(one, record)));
}
