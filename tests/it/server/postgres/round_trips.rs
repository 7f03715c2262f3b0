//! The number of round trips of a call. The pool's own connection tests before and after do not
//! count.

use super::proxy::contains;
use super::*;

/// Returns a store over one connection with this isolation, by way of a proxy that counts.
async fn store(level: &str) -> (Proxy, PgPool, PostgresStore) {
    let proxy = Proxy::start(&options()).await;
    let schema = schema().await;
    let settings = [("search_path", schema.as_str()), ("default_transaction_isolation", level)];
    let pool = pool_of(1, proxy.options(options()).options(settings));
    let store = PostgresStore::new(pool.clone());
    store.create_table().await.unwrap();
    (proxy, pool, store)
}

fn end() -> End {
    End::Completed(Completion::new(record(), HOUR))
}

async fn operation(store: &PostgresStore, key: &str) {
    let id = RecordId::new("", key);
    let claim = claim(&id);
    assert!(matches!(store.claim(&claim).await.unwrap(), ClaimOutcome::Acquired(())));
    store.finish(claim.reference(), Some(()), &end()).await.unwrap();
}

async fn lent_operation(store: &PostgresStore, key: &str) {
    let (store, id) = (store.transactional(), RecordId::new("", key));
    let claim = claim(&id);
    let ClaimOutcome::Acquired(session) = store.claim(&claim).await.unwrap() else { panic!("the claim failed") };
    store.finish(claim.reference(), Some(session), &end()).await.unwrap();
}

#[tokio::test]
async fn call_takes_one_round_trip() {
    let (proxy, _, store) = store("read committed").await;
    // Prepares the first statement of its kind.
    operation(&store, "warm").await;
    proxy.sent();
    operation(&store, "k").await;
    assert_eq!(proxy.sent().len(), 2, "one for the claim, one for the end");
    assert!(matches!(
        store.claim(&claim(&RecordId::new("", "k"))).await.unwrap(),
        ClaimOutcome::Existing(RecordState::Completed { .. })
    ));
    assert_eq!(proxy.sent().len(), 1);
}

#[tokio::test]
async fn strict_isolation_takes_two_more_round_trips() {
    let (proxy, _, store) = store("serializable").await;
    operation(&store, "warm").await;
    proxy.sent();
    operation(&store, "k").await;
    let sent = proxy.sent();
    assert_eq!(sent.len(), 6, "BEGIN and COMMIT around the claim and around the end");
    assert!(contains(&sent[0], b"BEGIN ISOLATION LEVEL READ COMMITTED"));
}

#[tokio::test]
async fn deadlock_adds_no_round_trips_to_later_calls() {
    let (proxy, pool, store) = store("read committed").await;
    operation(&store, "warm").await;
    super::isolation::refuse_writes(1, "40P01", &pool).await;
    proxy.sent();
    operation(&store, "deadlocked").await;
    assert_eq!(proxy.sent().len(), 3, "the claim twice");
    operation(&store, "k").await;
    assert_eq!(proxy.sent().len(), 2);
}

#[tokio::test]
async fn operation_in_transaction_takes_six_round_trips() {
    let (proxy, _, store) = store("read committed").await;
    lent_operation(&store, "warm").await;
    proxy.sent();
    lent_operation(&store, "k").await;
    assert_eq!(proxy.sent().len(), 6, "BEGIN, two looks, SAVEPOINT; the end, COMMIT");
}

#[tokio::test]
async fn unnamed_statements_take_three_more_round_trips() {
    let (through, _) = super::pooler::behind_pgbouncer().await;
    let proxy = Proxy::start(&through).await;
    let store = PostgresStore::new(pool_of(1, proxy.options(through)));
    store.create_table().await.unwrap();
    operation(&store, "warm").await;
    lent_operation(&store, "lent").await;
    proxy.sent();
    operation(&store, "k").await;
    assert_eq!(proxy.sent().len(), 8, "BEGIN, Parse, the statement and COMMIT; for the claim and for the end");
    lent_operation(&store, "l").await;
    assert_eq!(proxy.sent().len(), 10, "BEGIN, two looks in two parts, SAVEPOINT, DEALLOCATE; the end in two, COMMIT");
}
