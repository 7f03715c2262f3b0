//! The store whose claim is a transaction: its guarantees beyond the contract, and its differences.

use steadfast_postgres::TransactionalPostgresStore;

use super::*;

async fn win(store: &TransactionalPostgresStore, claim: &Claim<'_>) -> steadfast_postgres::PostgresSession {
    match store.claim(claim).await.unwrap() {
        ClaimOutcome::Acquired(session) => session,
        other => panic!("{other:?}"),
    }
}

async fn lose<S: Store>(store: &S, claim: &Claim<'_>) -> RecordState {
    match store.claim(claim).await.unwrap() {
        ClaimOutcome::Existing(state) => state,
        _ => panic!("the claim succeeded"),
    }
}

fn is_held(state: &RecordState) -> bool {
    matches!(state, RecordState::InProgress { fingerprint: None, .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn contract_holds() {
    let store = Arc::new(store().await.transactional());
    steadfast_testing::transactional_store_contract(store, |name| RecordId::new("contract", name)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_claims_one_succeeds_none_waits() {
    let store = store().await.transactional();
    let id = RecordId::new("", "k");
    let first = claim(&id);
    let session = win(&store, &first).await;
    let mut claims = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let store = store.clone();
        claims.spawn(async move { is_held(&lose(&store, &claim(&id)).await) });
    }
    assert!(claims.join_all().await.into_iter().all(|held| held), "the first claim is still open");
    assert!(is_held(&store.get(&id).await.unwrap().unwrap()));
    assert_eq!(
        store.finish(first.reference(), Some(session), &End::Completed(Completion::new(record(), HOUR))).await.unwrap(),
        FinishOutcome::Stored
    );
    let done = RecordState::completed(ONE, record());
    // Repeats of a finished operation do not block each other.
    let mut repeats = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (store, done) = (store.clone(), done.clone());
        repeats.spawn(async move { lose(&store, &claim(&id)).await == done });
    }
    assert!(repeats.join_all().await.into_iter().all(|replayed| replayed));
    assert_eq!(store.get(&id).await.unwrap(), Some(done));
}

#[tokio::test]
async fn released_or_dropped_claim_leaves_no_record() {
    let store = store().await.transactional();
    let id = RecordId::new("", "k");
    let released = claim(&id);
    let session = win(&store, &released).await;
    assert_eq!(store.finish(released.reference(), Some(session), &End::Released).await.unwrap(), FinishOutcome::Stored);
    assert_eq!(store.get(&id).await.unwrap(), None);
    // A process that dies drops its connection, and so its key.
    drop(win(&store, &claim(&id)).await);
    let again = async {
        while let ClaimOutcome::Existing(state) = store.claim(&claim(&id)).await.unwrap() {
            assert!(is_held(&state), "{state:?}");
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again).await.expect("the key is stuck");
}

#[tokio::test]
async fn abandoned_operation_is_taken_over_only_on_demand() {
    let store = store().await.transactional();
    let id = RecordId::new("", "k");
    let first = claim(&id);
    let session = win(&store, &first).await;
    assert_eq!(store.finish(first.reference(), Some(session), &End::Unknown).await.unwrap(), FinishOutcome::Stored);
    assert_eq!(store.get(&id).await.unwrap(), Some(RecordState::unknown(ONE)));
    assert_eq!(lose(&store, &claim(&id)).await, RecordState::unknown(ONE));
    let other = Claim::new(&id, ClaimToken::new().unwrap(), OTHER, HOUR, HOUR).allow_takeover(true);
    assert_eq!(lose(&store, &other).await, RecordState::unknown(ONE));
    let next = claim(&id).allow_takeover(true);
    let session = win(&store, &next).await;
    store.finish(next.reference(), Some(session), &End::Completed(Completion::new(record(), HOUR))).await.unwrap();
    assert_eq!(store.get(&id).await.unwrap(), Some(RecordState::completed(ONE, record())));
}

#[tokio::test]
async fn plain_and_transactional_claims_exclude_each_other() {
    let separate = store().await;
    let transactional = separate.transactional();
    let (one, two) = (RecordId::new("", "one"), RecordId::new("", "two"));

    let first = claim(&one);
    let session = win(&transactional, &first).await;
    assert!(is_held(&lose(&separate, &claim(&one)).await));
    assert!(is_held(&separate.get(&one).await.unwrap().unwrap()));
    transactional
        .finish(first.reference(), Some(session), &End::Completed(Completion::new(record(), HOUR)))
        .await
        .unwrap();
    assert_eq!(lose(&separate, &claim(&one)).await, RecordState::completed(ONE, record()));

    let first = claim(&two);
    assert!(matches!(separate.claim(&first).await.unwrap(), ClaimOutcome::Acquired(())));
    assert!(matches!(lose(&transactional, &claim(&two)).await, RecordState::InProgress { fingerprint: Some(ONE), .. }));
    separate.finish(first.reference(), Some(()), &End::Completed(Completion::new(record(), HOUR))).await.unwrap();
    assert_eq!(lose(&transactional, &claim(&two)).await, RecordState::completed(ONE, record()));
}

#[tokio::test]
async fn equal_keys_in_two_schemas_are_separate() {
    let (here, there) = (store().await, store().await);
    let id = RecordId::new("", "k");
    let held = claim(&id);
    let session = win(&here.transactional(), &held).await;
    assert_eq!(there.get(&id).await.unwrap(), None);
    let other = claim(&id);
    let elsewhere = win(&there.transactional(), &other).await;
    assert_eq!(there.finish(other.reference(), Some(()), &End::Released).await.unwrap(), FinishOutcome::Fenced);
    there.transactional().finish(other.reference(), Some(elsewhere), &End::Released).await.unwrap();
    assert!(matches!(there.claim(&claim(&id)).await.unwrap(), ClaimOutcome::Acquired(())));
    here.transactional().finish(held.reference(), Some(session), &End::Released).await.unwrap();
}

#[tokio::test]
async fn late_end_of_overtaken_claim_fences_successor() {
    let (_, pool) = pool().await;
    let separate = PostgresStore::new(pool.clone());
    separate.create_table().await.unwrap();
    run("CREATE TABLE orders (id int)", &pool).await;
    let transactional = separate.transactional();
    let id = RecordId::new("", "k");
    let zombie = Claim::new(&id, ClaimToken::new().unwrap(), ONE, SHORT, HOUR);
    assert!(matches!(separate.claim(&zombie).await.unwrap(), ClaimOutcome::Acquired(())));
    let lapsed = async { while separate.get(&id).await.unwrap() != Some(RecordState::unknown(ONE)) {} };
    tokio::time::timeout(Duration::from_secs(10), lapsed).await.unwrap();
    let successor = claim(&id).allow_takeover(true);
    let mut session = win(&transactional, &successor).await;
    sqlx::query("INSERT INTO orders VALUES (1)").execute(&mut *session).await.unwrap();
    let late = Record::new(StatusCode::OK, &HeaderMap::new(), "the zombie's".into());
    separate.finish(zombie.reference(), Some(()), &End::Completed(Completion::new(late.clone(), HOUR))).await.unwrap();
    let lost = transactional
        .finish(successor.reference(), Some(session), &End::Completed(Completion::new(record(), HOUR)))
        .await
        .unwrap();
    assert_eq!(lost, FinishOutcome::Fenced);
    assert_eq!(count("SELECT count(*) FROM orders", &pool).await, 0, "the successor's rows are undone");
    assert_eq!(separate.get(&id).await.unwrap(), Some(RecordState::completed(ONE, late)));
}

#[tokio::test]
async fn end_keeps_rows_or_record_alone() {
    let (_, pool) = pool().await;
    let base = PostgresStore::new(pool.clone());
    base.create_table().await.unwrap();
    run("CREATE TABLE orders (id int PRIMARY KEY)", &pool).await;
    let store = base.transactional();
    for (number, keep, fails) in [(1, true, false), (2, false, false), (3, false, true)] {
        let id = RecordId::new("", &number.to_string());
        let claim = claim(&id);
        let mut session = win(&store, &claim).await;
        sqlx::query("INSERT INTO orders VALUES ($1)").bind(number).execute(&mut *session).await.unwrap();
        if fails {
            let twice = sqlx::query("INSERT INTO orders VALUES ($1)").bind(number).execute(&mut *session).await;
            assert!(twice.is_err(), "the transaction takes no other statement now");
        }
        let mut end = Completion::new(record(), HOUR);
        end.keep_effects = keep;
        assert_eq!(
            store.finish(claim.reference(), Some(session), &End::Completed(end)).await.unwrap(),
            FinishOutcome::Stored
        );
        assert_eq!(store.get(&id).await.unwrap(), Some(RecordState::completed(ONE, record())));
    }
    assert_eq!(count("SELECT sum(id) FROM orders", &pool).await, 1, "the first alone has kept its row");
}

#[tokio::test]
async fn cancelled_begin_loses_no_other_record() {
    let (schema, direct) = pool().await;
    let elsewhere = PostgresStore::new(direct);
    elsewhere.create_table().await.unwrap();
    let proxy = Proxy::start(&options()).await;
    let behind = proxy.options(options()).options([("search_path", &schema)]);
    // One connection, so that the next call uses the one of the cancelled call.
    let pool = PgPoolOptions::new().max_connections(1).connect_with(behind).await.unwrap();
    let store = PostgresStore::new(pool.clone());
    let cut_off = PostgresStore::new(pool).timeout(Duration::from_millis(200)).transactional();
    let (one, two) = (RecordId::new("", "one"), RecordId::new("", "two"));
    // A store begins other transactions before its first call.
    assert_eq!(cut_off.get(&one).await.unwrap(), None);
    proxy.hold("BEGIN");
    assert!(matches!(cut_off.claim(&claim(&one)).await, Err(StoreError::Unavailable(_))));
    proxy.let_go();

    let won = claim(&two);
    assert!(matches!(store.claim(&won).await.unwrap(), ClaimOutcome::Acquired(())));
    assert_eq!(
        store.finish(won.reference(), Some(()), &End::Completed(Completion::new(record(), HOUR))).await.unwrap(),
        FinishOutcome::Stored
    );
    assert_eq!(
        elsewhere.get(&two).await.unwrap(),
        Some(RecordState::completed(ONE, record())),
        "the store reported this record as stored"
    );
    // The key of the cancelled claim is free, too.
    drop(win(&elsewhere.transactional(), &claim(&one)).await);
}

#[tokio::test]
async fn pool_of_one_purges_without_second_connection() {
    let (_, direct) = pool().await;
    let base = PostgresStore::new(direct.clone());
    base.create_table().await.unwrap();
    let options = (*direct.connect_options()).clone();
    let one = PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    let store = PostgresStore::new(one).transactional();
    for number in 0..130 {
        let id = RecordId::new("", &number.to_string());
        let claim = claim(&id);
        let session = win(&store, &claim).await;
        store
            .finish(claim.reference(), Some(session), &End::Completed(Completion::new(record(), Duration::ZERO)))
            .await
            .unwrap();
    }
    // A purge that gets no connection is logged, and removes nothing.
    let rows = count("SELECT count(*) FROM steadfast_records", &direct).await;
    assert!(rows < 64, "{rows} rows after 130 operations");
}
