//! The bounds of the store in memory: what fits, who may fill it, and how a refusal names the limit.

use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use bytes::Bytes;
use http::HeaderMap;
use steadfast::reqwest::Response;
use steadfast::server::{
    Claim, ClaimOutcome, ClaimRef, Completion, End, Fingerprint, IdempotencyLayer, MemoryStore, Record, RecordId,
    RecordState, Scope, SharedStore, Store, StoreError,
};

use super::support::{Executions, Served, header};

const TIME: Duration = Duration::from_secs(3600);
const MIB: usize = 1024 * 1024;

fn counting(executions: &Executions) -> Router {
    let counted = executions.clone();
    let handler = move || async move {
        counted.add();
        StatusCode::CREATED
    };
    Router::new().route("/orders", post(handler))
}

async fn detail(response: Response) -> String {
    assert_eq!(header(&response, "retry-after"), Some("1"));
    let body: serde_json::Value = response.json().await.unwrap();
    assert_eq!(body["status"], 503);
    body["detail"].as_str().unwrap().to_owned()
}

async fn claim(store: &MemoryStore, key: &str, reserve: usize) -> Result<End, StoreError> {
    let id = RecordId::new("", key);
    let claim = Claim::new(&id, store.token().unwrap(), Fingerprint::of("pay"), TIME, TIME).reserve(reserve);
    assert!(matches!(store.claim(&claim).await?, ClaimOutcome::Acquired(())));
    let record = Record::new(StatusCode::OK, &HeaderMap::new(), Bytes::from(vec![b'x'; reserve.min(60)]));
    Ok(End::Completed(Completion::new(record, TIME)))
}

#[tokio::test]
async fn defaults_fit_ten_thousand_running_operations() {
    let store = MemoryStore::new();
    let mut small = 0;
    for key in 0..10_000 {
        let before = store.bytes();
        claim(&store, &key.to_string(), MIB).await.unwrap();
        small = small.max(store.bytes() - before);
    }
    let running = store.bytes();
    assert!(small < 1500, "{small} bytes for each");
    // Beside a million records with small responses, and the room for one more claim.
    let id = RecordId::new("", "small");
    let one = Claim::new(&id, store.token().unwrap(), Fingerprint::of("pay"), TIME, TIME);
    store.claim(&one).await.unwrap();
    let record = Record::new(StatusCode::CREATED, &HeaderMap::new(), Bytes::from(vec![b'x'; 50]));
    store.finish(one.reference(), None, &End::Completed(Completion::new(record, TIME))).await.unwrap();
    let all = running + 1_000_000 * (store.bytes() - running) + MIB;
    assert!(all <= 256 * MIB, "{all} bytes");
}

#[tokio::test]
async fn claim_needs_room_for_its_whole_response() {
    let store = MemoryStore::new().max_bytes(2 * MIB);
    claim(&store, "1", MIB).await.unwrap();
    // It holds only a little, but a response of the whole length might end now.
    assert!(store.bytes() < 2000);
    let refused = claim(&store, "2", 2 * MIB).await;
    let limit = "the store is full: max_bytes is reached (2097152); raise it with MemoryStore::max_bytes";
    assert_eq!(refused.unwrap_err().to_string(), limit);
}

#[tokio::test]
async fn response_without_room_is_forgotten_but_not_rerun() {
    let executions = Executions::default();
    let gate = std::sync::Arc::new(tokio::sync::Barrier::new(2));
    let counted = executions.clone();
    let handler = move || async move {
        counted.add();
        // Both run when the first of them ends.
        gate.wait().await;
        "x".repeat(6_000)
    };
    let store = SharedStore::new(MemoryStore::new().max_bytes(10_000));
    let layer = IdempotencyLayer::with_shared_store(store.clone(), Scope::single_caller()).max_response(6_000);
    let served = Served::start(Router::new().route("/orders", post(handler)), layer).await;
    let (one, two) = tokio::join!(served.post("/orders", "1").send(), served.post("/orders", "2").send());
    for response in [one.unwrap(), two.unwrap()] {
        assert_eq!((response.status().as_u16(), response.text().await.unwrap().len()), (200, 6_000));
    }
    assert!(store.bytes() <= 10_000, "{} bytes", store.bytes());
    let mut statuses = Vec::new();
    for key in ["1", "2"] {
        statuses.push(served.post("/orders", key).send().await.unwrap().status().as_u16());
    }
    statuses.sort_unstable();
    assert_eq!((statuses, executions.count()), (vec![200, 410], 2));
}

#[tokio::test]
async fn reserved_room_keeps_every_response() {
    let store = MemoryStore::new().max_bytes(20_000).max_reserved(usize::MAX);
    let mut claims = Vec::new();
    for key in ["1", "2"] {
        let (id, token) = (RecordId::new("", key), store.token().unwrap());
        let claim = Claim::new(&id, token, Fingerprint::of("pay"), TIME, TIME).reserve(9_000);
        assert!(matches!(store.claim(&claim).await, Ok(ClaimOutcome::Acquired(()))));
        claims.push(ClaimRef::new(id, token));
    }
    assert!(matches!(claim(&store, "3", 9_000).await, Err(StoreError::Full(_))));
    for claim in claims {
        let record = Record::new(StatusCode::OK, &HeaderMap::new(), Bytes::from(vec![b'x'; 9_000]));
        store.finish(claim, Some(()), &End::Completed(Completion::new(record, TIME))).await.unwrap();
        let Some(RecordState::Completed { record, .. }) = store.get(&claim.id).await.unwrap() else { panic!() };
        assert_eq!(record.body().map(Bytes::len), Some(9_000));
    }
}

#[tokio::test]
async fn full_store_names_its_limit_to_client() {
    let executions = Executions::default();
    let store = MemoryStore::new().max_records(1);
    let served = Served::start(counting(&executions), IdempotencyLayer::new(store, Scope::single_caller())).await;
    assert_eq!(served.post("/orders", "1").send().await.unwrap().status(), 201);
    let refused = served.post("/orders", "2").send().await.unwrap();
    assert_eq!(detail(refused).await, "max_records is reached (1); raise it with MemoryStore::max_records");
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn tenant_over_its_share_leaves_room_for_others() {
    let executions = Executions::default();
    let store = MemoryStore::new().max_records(40).max_share_per_scope(0.1);
    let scope = Scope::from_fn(|parts| Some(parts.headers.get("x-tenant")?.to_str().ok()?.to_owned()));
    let served = Served::start(counting(&executions), IdempotencyLayer::new(store, scope)).await;
    let send = |tenant: &str, key: u32| served.post("/orders", &key.to_string()).header("x-tenant", tenant).send();
    for key in 0..4 {
        assert_eq!(send("greedy", key).await.unwrap().status(), 201);
    }
    for key in 4..100 {
        let told = detail(send("greedy", key).await.unwrap()).await;
        assert!(told.starts_with("max_share_per_scope is reached (4)"), "{told}");
    }
    assert_eq!(send("greedy", 0).await.unwrap().status(), 201, "its own records are replayed");
    for tenant in ["a", "b", "c"] {
        assert_eq!(send(tenant, 0).await.unwrap().status(), 201, "{tenant}");
    }
    assert_eq!(executions.count(), 4 + 3);
}

#[tokio::test]
async fn ended_records_free_the_share_of_their_scope() {
    let executions = Executions::default();
    let store = MemoryStore::new().max_records(10).max_share_per_scope(0.1);
    let scope = Scope::from_fn(|_| Some("one".to_owned()));
    let layer = IdempotencyLayer::new(store, scope).retention(Duration::ZERO);
    let served = Served::start(counting(&executions), layer).await;
    for key in 0..20 {
        assert_eq!(served.post("/orders", &key.to_string()).send().await.unwrap().status(), 201);
    }
    assert_eq!(executions.count(), 20);
}
