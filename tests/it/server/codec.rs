//! Records that no store can read: sealed before they are stored, opened before they are replayed,
//! and never executed again.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use axum::Router;
use axum::routing::post;
use steadfast::server::{
    ClaimToken, CodecError, EventId, IdempotencyLayer, MemoryStore, Record, RecordCodec, RecordId, RecordState, Scope,
    SharedStore, Store, WebhookLayer,
};

use super::support::{Executions, Served, header, problem};

const SECRET: &str = "s3cret-answer";

struct Aead {
    key: RandomizedNonceKey,
    accepts_plain: bool,
    fails: bool,
}

fn aead(key: u8) -> Aead {
    Aead { key: RandomizedNonceKey::new(&AES_256_GCM, &[key; 32]).unwrap(), accepts_plain: false, fails: false }
}

impl RecordCodec for Aead {
    fn seal(&self, id: &RecordId, plain: &[u8]) -> Result<Vec<u8>, CodecError> {
        if self.fails {
            return Err("the key is gone".into());
        }
        let mut sealed = plain.to_vec();
        let nonce = self.key.seal_in_place_append_tag(Aad::from(id.as_bytes()), &mut sealed)?;
        Ok([nonce.as_ref().as_slice(), &sealed].concat())
    }

    fn open(&self, id: &RecordId, sealed: &[u8]) -> Result<Vec<u8>, CodecError> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or("too short")?;
        let mut plain = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        Ok(self.key.open_in_place(nonce, Aad::from(id.as_bytes()), &mut plain)?.to_vec())
    }

    fn accepts_plain(&self) -> bool {
        self.accepts_plain
    }
}

fn tokens(executions: &Executions) -> Router {
    let counted = executions.clone();
    let issue = post(move || async move {
        counted.add();
        ([("x-secret", SECRET)], SECRET)
    });
    Router::new().route("/tokens", issue)
}

fn over<S: Store>(store: &SharedStore<S>) -> IdempotencyLayer<S> {
    IdempotencyLayer::with_shared_store(store.clone(), Scope::single_caller())
}

fn holds_secret(bytes: &[u8]) -> bool {
    bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
}

async fn record_of<S: Store>(store: &S, id: &RecordId) -> Record {
    match store.get(id).await.unwrap() {
        Some(RecordState::Completed { record, .. }) => record,
        other => panic!("{other:?}"),
    }
}

/// The checks for every store.
async fn check<S: Store>(store: SharedStore<S>) {
    let executions = Executions::default();
    let key = format!("{:?}", ClaimToken::new().unwrap().as_bytes()).replace(", ", "-");
    let id = RecordId::new("", &key);
    let served = Served::start(tokens(&executions), over(&store).codec(aead(1))).await;
    for replayed in [None, Some("true")] {
        let answer = served.post("/tokens", &key).send().await.unwrap();
        assert_eq!((header(&answer, "idempotent-replayed"), header(&answer, "x-secret")), (replayed, Some(SECRET)));
        assert_eq!(answer.text().await.unwrap(), SECRET);
    }
    let record = record_of(&*store, &id).await;
    assert!(record.is_sealed() && record.headers().is_empty() && !holds_secret(&record.encode()));
    let opened = record.opened(&id, Some(&aead(1))).unwrap();
    assert_eq!(opened.body().unwrap(), SECRET);

    // The key of another service, and a service without a key.
    for layer in [over(&store).codec(aead(2)), over(&store)] {
        let served = Served::start(tokens(&executions), layer).await;
        let unreadable = served.post("/tokens", &key).send().await.unwrap();
        assert_eq!(problem(unreadable).await, (500, "record-unreadable".to_owned()));
    }
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn memory_holds_sealed_records_only() {
    check(SharedStore::new(MemoryStore::new())).await;
}
#[tokio::test]
async fn file_holds_sealed_records_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.redb");
    let store = SharedStore::new(steadfast_redb::RedbStore::open(&path).unwrap());
    check(store.clone()).await;
    assert!(!holds_secret(&std::fs::read(&path).unwrap()));
    // Without a codec, the store would hold the plain text.
    let served = Served::start(tokens(&Executions::default()), over(&store)).await;
    assert_eq!(served.post("/tokens", "plain").send().await.unwrap().status(), 200);
    assert!(holds_secret(&std::fs::read(&path).unwrap()));
}
#[tokio::test]
async fn database_holds_sealed_records_only() {
    let store = super::postgres::store().await;
    check(SharedStore::new(store.transactional())).await;
    check(SharedStore::new(store)).await;
}
#[tokio::test]
async fn redis_holds_sealed_records_only() {
    check(SharedStore::new(steadfast_redis::RedisStore::connect(&super::redis_server::shared()).await.unwrap())).await;
}

#[tokio::test]
async fn plain_record_is_replayed_only_if_accepted() {
    let executions = Executions::default();
    let store = SharedStore::new(MemoryStore::new());
    let served = Served::start(tokens(&executions), over(&store)).await;
    assert_eq!(served.post("/tokens", "k").send().await.unwrap().status(), 200);

    let strict = Served::start(tokens(&executions), over(&store).codec(aead(1))).await;
    let refused = strict.post("/tokens", "k").send().await.unwrap();
    assert_eq!(problem(refused).await, (500, "record-unreadable".to_owned()));

    let accepting = over(&store).codec(Aead { accepts_plain: true, ..aead(1) });
    let accepting = Served::start(tokens(&executions), accepting).await;
    let replayed = accepting.post("/tokens", "k").send().await.unwrap();
    assert_eq!((replayed.text().await.unwrap().as_str(), executions.count()), (SECRET, 1));
}

#[tokio::test]
async fn response_that_fails_to_seal_is_not_stored() {
    let executions = Executions::default();
    let store = SharedStore::new(MemoryStore::new());
    let layer = over(&store).codec(Aead { fails: true, ..aead(1) });
    let served = Served::start(tokens(&executions), layer).await;
    assert_eq!(served.post("/tokens", "k").send().await.unwrap().text().await.unwrap(), SECRET);
    let again = served.post("/tokens", "k").send().await.unwrap();
    assert_eq!(problem(again).await, (410, "answer-not-kept".to_owned()));
    assert_eq!(record_of(&*store, &RecordId::new("", "k")).await.body(), None);
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn event_response_is_sealed() {
    let executions = Executions::default();
    let store = SharedStore::new(MemoryStore::new());
    let layer = WebhookLayer::with_shared_store(store.clone(), "billing", EventId::stripe()).codec(aead(1));
    let served = Served::serve(tokens(&executions).layer(layer)).await;
    for _ in 0..2 {
        let deliver = served.http.post(served.url("/tokens")).body(r#"{"id":"evt_1"}"#);
        assert_eq!(deliver.send().await.unwrap().text().await.unwrap(), SECRET);
    }
    let record = record_of(&*store, &RecordId::of_event("billing", "evt_1")).await;
    assert!(record.is_sealed() && !holds_secret(&record.encode()));
    assert_eq!(executions.count(), 1);
}
