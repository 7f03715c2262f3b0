//! The stores, and a way to let time pass in each of them without waiting.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use steadfast::server::{
    Claim, ClaimOutcome, ClaimRef, ClaimToken, Completion, End, Fingerprint, MemoryStore, Record, RecordId,
    RecordState, Store, StoreError, TOMBSTONE as KEPT,
};
use steadfast_testing::{ModelClaim, ModelClaimOutcome, ModelEnd, ModelRecordState};

pub(super) use self::in_postgres::Postgres;
pub(super) use self::in_redb::Redb;
pub(super) use self::in_redis::Redis;
use super::play::{Answer, Restart, World};
use super::steps::Call;

/// The lifetime of tombstones, in milliseconds.
pub(super) const TOMBSTONE: u64 = KEPT.as_secs() * 1000;

pub(super) fn record_id(id: u8) -> RecordId {
    RecordId::new("lockstep", &id.to_string())
}

pub(super) fn reference(id: u8, token: u16) -> ClaimRef {
    ClaimRef::new(record_id(id), ClaimToken::from_bytes(u128::from(token).to_be_bytes()))
}

pub(super) fn fingerprint(request: u8) -> Fingerprint {
    Fingerprint::from_bytes([request; 32])
}

pub(super) fn end(end: ModelEnd) -> End {
    match end {
        ModelEnd::Completed { answer, retention } => {
            let record = Record::new(StatusCode::CREATED, &HeaderMap::new(), vec![answer].into());
            End::Completed(Completion::new(record, Duration::from_millis(retention)))
        }
        ModelEnd::Released => End::Released,
        ModelEnd::Unknown => End::Unknown,
        ModelEnd::Cancelled => End::Cancelled,
    }
}

/// Converts a state. An unknown request becomes 0.
pub(super) fn state(state: RecordState) -> ModelRecordState {
    let request = state.fingerprint().map_or(0, |fingerprint| fingerprint.as_bytes()[0]);
    match state {
        RecordState::InProgress { lease_left, .. } => {
            ModelRecordState::InProgress { request, lease_left: u64::try_from(lease_left.as_millis()).unwrap() }
        }
        RecordState::Completed { record, .. } => {
            ModelRecordState::Completed { request, answer: record.body().unwrap()[0] }
        }
        RecordState::Unknown { .. } => ModelRecordState::Unknown { request },
        other => panic!("no state of the model: {other:?}"),
    }
}

pub(super) async fn claim<S: Store>(store: &S, claim: ModelClaim) -> Result<ClaimOutcome<S::Session>, StoreError> {
    let ModelClaim { id, token, request, lease, retention, take_over } = claim;
    let (lease, retention) = (Duration::from_millis(lease), Duration::from_millis(retention));
    let id = record_id(id);
    let token = reference(0, token).token;
    store.claim(&Claim::new(&id, token, fingerprint(request), lease, retention).allow_takeover(take_over)).await
}

pub(super) fn claimed<T>(
    claimed: Result<ClaimOutcome<T>, StoreError>,
) -> Result<(ModelClaimOutcome, Option<T>), StoreError> {
    match claimed {
        Ok(ClaimOutcome::Acquired(session)) => Ok((ModelClaimOutcome::Acquired, Some(session))),
        Ok(ClaimOutcome::Existing(known)) => Ok((ModelClaimOutcome::Existing(state(known)), None)),
        Ok(ClaimOutcome::Cancelled) => Ok((ModelClaimOutcome::Cancelled, None)),
        Ok(other) => panic!("the model has no such reply: {other:?}", other = std::mem::discriminant(&other)),
        Err(StoreError::Full(_)) => Ok((ModelClaimOutcome::Full, None)),
        Err(error) => Err(error),
    }
}

async fn ask<S: Store<Session = ()>>(store: &S, call: Call) -> Result<Answer, StoreError> {
    Ok(match call {
        Call::Claim(model) => Answer::Claimed(claimed(claim(store, model).await)?.0),
        Call::Renew { id, token, lease } => {
            Answer::Renewed(store.renew(reference(id, token), Duration::from_millis(lease)).await?)
        }
        Call::Finish { id, token, end: model } => {
            Answer::Finished(store.finish(reference(id, token), None, &end(model)).await?)
        }
        Call::Look { id } => Answer::Looked(store.get(&record_id(id)).await?.map(state)),
        Call::Sweep => {
            let removed = store.purge_expired(3).await?;
            assert!(removed <= 3, "{removed}");
            Answer::Swept
        }
    })
}

/// The store in memory, in a process that uses the runtime's time.
pub(super) struct Memory {
    store: MemoryStore,
    bound: usize,
}

impl Memory {
    pub(super) fn open(bound: usize) -> Self {
        Self { store: MemoryStore::new().max_records(bound), bound }
    }
}

impl World for Memory {
    const RESTART: Restart = Restart::ForgetsAll;

    async fn call(&mut self, call: Call) -> Result<Answer, StoreError> {
        ask(&self.store, call).await
    }

    async fn pass(&mut self, time: Duration) {
        tokio::time::advance(time).await;
    }

    async fn restart(&mut self) {
        *self = Self::open(self.bound);
    }
}
mod in_redb {
    use std::io;
    use std::sync::Arc;

    use redb::backends::InMemoryBackend;
    use redb::{Database, StorageBackend};
    use steadfast_redb::RedbStore;

    use super::*;

    /// A disk in memory that outlives the database.
    #[derive(Clone, Debug)]
    struct Disk(Arc<InMemoryBackend>);

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)
        }
    }

    /// The embedded store, in a process that uses the runtime's time.
    pub(in super::super) struct Redb {
        /// `Some` except during a restart.
        store: Option<RedbStore>,
        disk: Disk,
        bound: usize,
        passed: Duration,
    }

    impl Redb {
        pub(in super::super) fn open(bound: usize) -> Self {
            let disk = Disk(Arc::new(InMemoryBackend::new()));
            let store = Some(open(&disk, bound));
            Self { store, disk, bound, passed: Duration::ZERO }
        }
    }

    fn open(disk: &Disk, bound: usize) -> RedbStore {
        let database = Database::builder().create_with_backend(disk.clone()).unwrap();
        RedbStore::from_database(database).unwrap().max_records(u64::try_from(bound).unwrap())
    }

    impl World for Redb {
        const RESTART: Restart = Restart::EndsClaims;

        async fn call(&mut self, call: Call) -> Result<Answer, StoreError> {
            ask(self.store.as_ref().unwrap(), call).await
        }

        async fn pass(&mut self, time: Duration) {
            self.passed += time;
            tokio::time::advance(time).await;
        }

        /// The next process reads the wall clock, which has not moved. So the passed time has to be
        /// added for it.
        async fn restart(&mut self) {
            self.store = None;
            self.store = Some(open(&self.disk, self.bound));
            tokio::time::advance(self.passed).await;
        }
    }
}
mod in_redis {
    use redis::aio::MultiplexedConnection;
    use steadfast_redis::RedisStore;

    use super::super::super::redis_server::shared;
    use super::*;

    /// Ages all keys of a prefix by this number of milliseconds. Skips keys without an expiry.
    const AGE: &str = "
        for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
            local left = redis.call('PTTL', key)
            if left >= 0 then redis.call('PEXPIRE', key, string.format('%.0f', left - ARGV[2])) end
        end";

    /// The store in Redis. The test ages its records.
    #[derive(Clone)]
    pub(in super::super) struct Redis {
        store: std::sync::Arc<RedisStore<MultiplexedConnection>>,
        connection: MultiplexedConnection,
        prefix: String,
    }

    impl Redis {
        /// Uses a logical database of its own, since finding its keys means looking at all keys.
        pub(in super::super) async fn connect() -> Self {
            let client = redis::Client::open(format!("{}/9", shared())).unwrap();
            let connection = client.get_multiplexed_async_connection().await.unwrap();
            let token = ClaimToken::new().unwrap();
            let run: String = token.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            let prefix = format!("lockstep:{run}:");
            let store = std::sync::Arc::new(open(&connection, &prefix));
            Self { store, connection, prefix }
        }

        /// Removes all records.
        pub(in super::super) async fn clear(&mut self) {
            self.pass(Duration::from_secs(100 * 365 * 24 * 3600)).await;
        }
    }

    fn open(connection: &MultiplexedConnection, prefix: &str) -> RedisStore<MultiplexedConnection> {
        RedisStore::from_connection(connection.clone()).prefix(prefix).timeout(Duration::from_secs(20))
    }

    impl World for Redis {
        const RESTART: Restart = Restart::KeepsAll;

        async fn call(&mut self, call: Call) -> Result<Answer, StoreError> {
            ask(&*self.store, call).await
        }

        async fn pass(&mut self, time: Duration) {
            let time = u64::try_from(time.as_millis()).unwrap();
            let mut age = redis::cmd("EVAL");
            age.arg(AGE).arg(0).arg(&self.prefix).arg(time);
            age.query_async::<()>(&mut self.connection).await.unwrap();
        }

        async fn restart(&mut self) {
            self.store = std::sync::Arc::new(open(&self.connection, &self.prefix));
        }
    }
}
mod in_postgres {
    use sqlx::PgPool;
    use sqlx::postgres::PgPoolOptions;
    use steadfast_postgres::PostgresStore;

    use super::super::super::postgres::{options, schema};
    use super::*;

    /// Ages all rows by this number of milliseconds.
    const AGE: &str = "
        UPDATE steadfast_records SET lease_until = lease_until - $1 * interval '1 ms',
            forget_at = forget_at - $1 * interval '1 ms', tombstones_until = tombstones_until - $1 * interval '1 ms'";

    /// The store in PostgreSQL, in a schema of its own. The test ages its records.
    #[derive(Clone)]
    pub(in super::super) struct Postgres {
        pub(in super::super) store: PostgresStore,
        pool: PgPool,
    }

    impl Postgres {
        pub(in super::super) async fn connect() -> Self {
            // These tests need not survive the loss of the machine.
            let options = options().options([("search_path", schema().await.as_str()), ("synchronous_commit", "off")]);
            let pool = PgPoolOptions::new().max_connections(8).test_before_acquire(false).connect_lazy_with(options);
            let store = PostgresStore::new(pool.clone()).timeout(Duration::from_secs(20));
            store.create_table().await.unwrap();
            Self { store, pool }
        }

        /// Removes all records.
        pub(in super::super) async fn clear(&mut self) {
            sqlx::query("DELETE FROM steadfast_records").execute(&self.pool).await.unwrap();
        }
    }

    impl World for Postgres {
        const RESTART: Restart = Restart::KeepsAll;

        async fn call(&mut self, call: Call) -> Result<Answer, StoreError> {
            ask(&self.store, call).await
        }

        async fn pass(&mut self, time: Duration) {
            let time = i64::try_from(time.as_millis()).unwrap();
            sqlx::query(AGE).bind(time).execute(&self.pool).await.unwrap();
        }

        async fn restart(&mut self) {
            self.store = PostgresStore::new(self.pool.clone()).timeout(Duration::from_secs(20));
        }
    }
}
