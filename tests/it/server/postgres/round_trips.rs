//! How often a call waits for the database. The pool asks its connection whether it is alive beside
//! that, before and after.

use super::proxy::contains;
use super::*;

/// A store over one connection, by way of a proxy that counts, with sessions of this isolation.
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
    let ClaimOutcome::Acquired(session) = store.claim(&claim).await.unwrap() else { panic!("it is not won") };
    store.finish(claim.reference(), Some(session), &end()).await.unwrap();
}

#[tokio::test]
async fn a_call_waits_once_for_the_database() {
    let (proxy, _, store) = store("read committed").await;
    // The first statement of its kind is prepared.
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
async fn naming_the_isolation_costs_strict_sessions_two() {
    let (proxy, _, store) = store("serializable").await;
    operation(&store, "warm").await;
    proxy.sent();
    operation(&store, "k").await;
    let sent = proxy.sent();
    assert_eq!(sent.len(), 6, "BEGIN and COMMIT around the claim and around the end");
    assert!(contains(&sent[0], b"BEGIN ISOLATION LEVEL READ COMMITTED"));
}

#[tokio::test]
async fn a_deadlock_does_not_make_later_calls_dearer() {
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
async fn an_operation_in_one_transaction_waits_six_times() {
    let (proxy, _, store) = store("read committed").await;
    lent_operation(&store, "warm").await;
    proxy.sent();
    lent_operation(&store, "k").await;
    assert_eq!(proxy.sent().len(), 6, "BEGIN, two looks, SAVEPOINT; the end, COMMIT");
}

#[tokio::test]
async fn statements_without_names_cost_three_more() {
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
