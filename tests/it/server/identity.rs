//! A store whose records have another identity version is refused: its records could not be found,
//! and their operations would run again.
mod redb {
    use std::path::Path;
    use std::time::Duration;

    use redb::{Database, TableDefinition};
    use steadfast::server::{Claim, ClaimOutcome, ClaimToken, Fingerprint, IDENTITY_VERSION, RecordId, Store};
    use steadfast_redb::RedbStore;

    const HOUR: Duration = Duration::from_secs(3600);
    const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("steadfast_meta");

    async fn win(store: &RedbStore, key: &str) {
        let id = RecordId::new("", key);
        let claim = Claim::new(&id, ClaimToken::new().unwrap(), Fingerprint::from_bytes([1; 32]), HOUR, HOUR);
        assert!(matches!(store.claim(&claim).await.unwrap(), ClaimOutcome::Acquired(())));
    }

    /// Sets or removes the file's identity version.
    fn say(path: &Path, version: Option<u32>) {
        let database = Database::open(path).unwrap();
        let transaction = database.begin_write().unwrap();
        match version {
            Some(version) => {
                transaction
                    .open_table(META)
                    .unwrap()
                    .insert("identity_version", version.to_be_bytes().as_slice())
                    .unwrap();
            }
            None => assert!(transaction.delete_table(META).unwrap()),
        }
        transaction.commit().unwrap();
    }

    #[tokio::test]
    async fn file_of_another_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.redb");
        win(&RedbStore::open(&path).unwrap(), "k").await;
        for (version, told) in [(Some(IDENTITY_VERSION + 1), "identified by version 2"), (None, "version 0 (not told)")]
        {
            say(&path, version);
            let error = RedbStore::open(&path).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        say(&path, Some(IDENTITY_VERSION));
        RedbStore::open(&path).expect("refusing the file has changed nothing in it");
    }

    #[tokio::test]
    async fn database_without_records_is_new() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ours.redb");
        let store = RedbStore::from_database(Database::create(&path).unwrap()).unwrap();
        drop(store);
        say(&path, None);
        win(&RedbStore::open(&path).unwrap(), "k").await;
        RedbStore::open(&path).expect("its version was written before its first record");
    }
}
mod postgres {
    use steadfast::server::{Claim, ClaimToken, Fingerprint, RecordId, Store, StoreError};
    use steadfast_postgres::PostgresStore;

    use crate::server::postgres::{count, pool, run};

    const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);

    fn is_refused<T: std::fmt::Debug>(result: Result<T, StoreError>) -> Option<u32> {
        match result {
            Err(StoreError::IdentityMismatch(mismatch)) => mismatch.found,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn table_of_another_version_is_refused() {
        let (_, pool) = pool().await;
        let first = PostgresStore::new(pool.clone());
        first.create_table().await.unwrap();
        let id = RecordId::new("", "k");
        let claim = || Claim::new(&id, ClaimToken::new().unwrap(), Fingerprint::from_bytes([1; 32]), HOUR, HOUR);
        first.claim(&claim()).await.unwrap();

        for (change, found) in
            [("UPDATE steadfast_identity SET version = 2", Some(2)), ("DELETE FROM steadfast_identity", None)]
        {
            run(change, &pool).await;
            // Separate stores, so that none relies on another one's verification.
            let store = || PostgresStore::new(pool.clone());
            assert_eq!(is_refused(store().create_table().await), found);
            assert_eq!(is_refused(store().verify_identity().await), found);
            assert_eq!(is_refused(store().claim(&claim()).await), found);
            assert_eq!(is_refused(store().get(&id).await), found);
            assert_eq!(is_refused(store().transactional().claim(&claim()).await.map(drop)), found);
        }
        assert_eq!(count("SELECT count(*) FROM steadfast_records", &pool).await, 1);
    }

    #[tokio::test]
    async fn schema_run_by_hand_suffices() {
        let (_, pool) = pool().await;
        sqlx::raw_sql(PostgresStore::SCHEMA).execute(&pool).await.unwrap();
        let store = PostgresStore::new(pool);
        store.verify_identity().await.unwrap();
        assert_eq!(store.get(&RecordId::new("", "k")).await.unwrap(), None);
    }
}
mod redis {
    use std::time::Duration;

    use axum::Router;
    use axum::routing::post;
    use steadfast::server::{
        Claim, ClaimOutcome, ClaimToken, Fingerprint, IdempotencyLayer, RecordId, Scope, Store, StoreError,
    };
    use steadfast_redis::RedisStore;

    use crate::server::redis_server::{command, shared};
    use crate::server::support::{Executions, Served, problem};

    const HOUR: Duration = Duration::from_secs(3600);

    async fn claim(store: &RedisStore) -> Result<ClaimOutcome<()>, StoreError> {
        let id = RecordId::new("", "k");
        let token = ClaimToken::new().unwrap();
        store.claim(&Claim::new(&id, token, Fingerprint::from_bytes([1; 32]), HOUR, HOUR)).await
    }

    #[tokio::test]
    async fn prefix_of_another_version_is_refused() {
        let run = steadfast::uuid::Uuid::from_bytes(*ClaimToken::new().unwrap().as_bytes()).simple();
        let (ours, theirs) = (format!("{run}-ours:"), format!("{run}-theirs:"));
        command::<()>(&shared(), &["HSET", &format!("{theirs}identity"), "version", "2"]).await;

        let store = RedisStore::connect(&shared()).await.unwrap().prefix(&ours);
        store.verify_identity().await.unwrap();
        assert!(matches!(claim(&store).await, Ok(ClaimOutcome::Acquired(()))));
        let said: String = command(&shared(), &["HGET", &format!("{ours}identity"), "version"]).await;
        assert_eq!(said, "1");

        // The verification of one prefix does not cover another.
        let store = store.prefix(&theirs);
        for refused in [store.verify_identity().await, claim(&store).await.map(drop)] {
            assert!(matches!(refused, Err(StoreError::IdentityMismatch(mismatch)) if mismatch.found == Some(2)));
        }
        let executions = Executions::default();
        let counted = executions.clone();
        let router = Router::new().route("/", post(move || async move { counted.add().to_string() }));
        let served = Served::start(router, IdempotencyLayer::new(store, Scope::single_caller())).await;
        let refused = served.post("/", "k").send().await.unwrap();
        assert_eq!(problem(refused).await, (503, "store-unavailable".to_owned()));
        assert_eq!(executions.count(), 0);
    }
}
