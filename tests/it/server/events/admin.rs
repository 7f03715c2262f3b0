//! Releasing a key by hand: only an unknown operation can be released.

use std::time::Duration;

use steadfast::http::{HeaderMap, StatusCode};
use steadfast::server::admin::{self, ReleaseError};
use steadfast::server::{
    Claim, ClaimOutcome, ClaimToken, Completion, End, Fingerprint, MemoryStore, OperationKey, Record, RecordState,
    SharedStore, Store,
};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn only_unknown_operation_is_released_by_hand() {
    only_what_is_unknown(MemoryStore::new(), true).await;
}
#[tokio::test]
async fn database_releases_only_unknown_operation_by_hand() {
    use crate::server::postgres::store;
    only_what_is_unknown(store().await, true).await;
    only_what_is_unknown(store().await.transactional(), false).await;
}

/// `renews`: whether a claim has a lease, which a release by hand could end.
async fn only_what_is_unknown<S: Store>(store: S, renews: bool) {
    let store = SharedStore::new(store);
    let operation = OperationKey::new("tenant", "k");
    let one = Fingerprint::of("x");
    assert!(matches!(admin::release(&store, &operation, "why not").await, Err(ReleaseError::NotFound)));
    assert_eq!(store.get(operation.record_id()).await.unwrap(), None);

    let claim = || Claim::new(operation.record_id(), ClaimToken::new().unwrap(), one, HOUR, HOUR);
    let first = claim();
    let ClaimOutcome::Acquired(session) = store.claim(&first).await.unwrap() else { panic!("the key is free") };
    assert!(matches!(admin::release(&store, &operation, "it hangs").await, Err(ReleaseError::Running)));
    assert!(!renews || store.renew(first.reference(), HOUR).await.unwrap(), "it still runs");

    store.finish(first.reference(), Some(session), &End::Unknown).await.unwrap();
    assert_eq!(store.get(operation.record_id()).await.unwrap(), Some(RecordState::unknown(one)));
    admin::release(&store, &operation, "looked it up: nothing was charged").await.unwrap();
    assert_eq!(store.get(operation.record_id()).await.unwrap(), None);

    let second = claim();
    let ClaimOutcome::Acquired(session) = store.claim(&second).await.unwrap() else { panic!("it was given back") };
    let record = Record::new(StatusCode::OK, &HeaderMap::new(), "done".into());
    store
        .finish(second.reference(), Some(session), &End::Completed(Completion::new(record.clone(), HOUR)))
        .await
        .unwrap();
    assert!(matches!(admin::release(&store, &operation, "once more").await, Err(ReleaseError::Ended)));
    assert_eq!(store.get(operation.record_id()).await.unwrap(), Some(RecordState::completed(one, record)));
}
