//! The store in PostgreSQL, over a real server: in lockstep with the model, several processes' worth of
//! outboxes over one table, transactions of the caller's own, lost replies, and what a database refuses.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, PgPool};
use steadfast::Client;
use steadfast_outbox::model::Model;
use steadfast_outbox::{
    Applied, Change, DurableExt, End, Now, OperationId, Outbox, OutboxBuilder, OutboxError, OutboxEventKind,
    OutboxStore, OutboxStoreError, Submitted,
};
use steadfast_postgres::{PostgresOutbox, SubmitIn};
use steadfast_testing::{Answer, FaultServer, FaultStep};

use super::lockstep::{self, Maker, World, lockstep, terms};
use super::{charge, once, one_attempt};
use crate::server::postgres::pooler::behind_pgbouncer;
use crate::server::postgres::proxy::{Commits, Proxy};
use crate::server::postgres::read_only::Failover;
use crate::server::postgres::roles::Roles;
use crate::server::postgres::{count, options, pool, pool_in, pool_of, run, schema};

async fn table() -> (String, PgPool) {
    let (schema, pool) = pool().await;
    PostgresOutbox::new(pool.clone()).create_table().await.unwrap();
    (schema, pool)
}

fn outbox(pool: &PgPool, client: &Client) -> OutboxBuilder<PostgresOutbox> {
    Outbox::open(PostgresOutbox::new(pool.clone()), client.clone())
        .lease(Duration::from_millis(500))
        .settling_time(Duration::from_millis(100))
        .backoff(Duration::from_millis(5), Duration::from_millis(20))
        .poll_interval(Duration::from_millis(20))
}

async fn created() -> FaultServer {
    FaultServer::start(|_, _| FaultStep::execute(201)).await
}

/// A database whose clock the test sets.
struct DatabaseWorld {
    pool: PgPool,
    store: PostgresOutbox,
    now: u64,
}

impl DatabaseWorld {
    async fn new() -> Self {
        let schema = schema().await;
        // A function of this schema hides the database's own.
        let path = format!("{schema},pg_catalog");
        let pool = pool_of(4, options().options([("search_path", path.as_str()), ("synchronous_commit", "off")]));
        run("CREATE TABLE clock (at_ms bigint)", &pool).await;
        run("INSERT INTO clock VALUES (0)", &pool).await;
        let clock = "CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
             AS 'SELECT to_timestamp(at_ms / 1000.0) FROM clock'";
        run(clock, &pool).await;
        let store = PostgresOutbox::new(pool.clone());
        store.create_table().await.unwrap();
        Self { pool, store, now: lockstep::START }
    }
}

impl World for DatabaseWorld {
    type Store = PostgresOutbox;

    fn store(&self) -> &PostgresOutbox {
        &self.store
    }

    async fn set_clock(&mut self, ms: u64) {
        self.now = ms;
        let set = sqlx::query("UPDATE clock SET at_ms = $1").bind(i64::try_from(ms).unwrap());
        set.execute(&self.pool).await.unwrap();
    }

    fn now(&mut self) -> Now {
        Now::certain(self.now)
    }

    /// Earlier owners may be alive, so their leases hold.
    async fn reopen(&mut self, _: &mut Model) {
        self.store = PostgresOutbox::new(self.pool.clone());
    }
}

#[tokio::test]
async fn store_keeps_step_with_model() {
    for seed in 0..12 {
        lockstep(DatabaseWorld::new().await, seed, 120).await;
    }
}

#[tokio::test]
#[ignore = "ten minutes; the short form runs always"]
async fn store_keeps_step_with_model_for_long() {
    for seed in 100..500 {
        lockstep(DatabaseWorld::new().await, seed, 200).await;
    }
}

#[tokio::test]
async fn operation_is_there_if_the_callers_rows_are() {
    let (_, pool) = table().await;
    run("CREATE TABLE orders (item text)", &pool).await;
    let server = created().await;
    let client = once(&server);
    let outbox = outbox(&pool, &client).poll_interval(Duration::from_secs(600)).start().await.unwrap();
    for (item, commits) in [("coffee", false), ("tea", true)] {
        let mut transaction = pool.begin().await.unwrap();
        sqlx::query("INSERT INTO orders VALUES ($1)").bind(item).execute(&mut *transaction).await.unwrap();
        let charge = client.post("/charges").body(item).prepare().unwrap();
        let id = outbox.submit_in(&mut transaction, charge.named(item)).await.unwrap();
        // Nobody sees it yet.
        assert!(outbox.get(id).await.unwrap().is_none());
        outbox.wake();
        if commits {
            transaction.commit().await.unwrap();
            outbox.wake();
            assert!(matches!(outbox.wait(id).await.unwrap(), End::Answer(_)));
        } else {
            transaction.rollback().await.unwrap();
            assert!(outbox.get(id).await.unwrap().is_none() && outbox.find(item).await.unwrap().is_none());
        }
    }
    assert_eq!(count("SELECT count(*) FROM orders", &pool).await, 1);
    assert_eq!(outbox.usage().await.unwrap().entries, 1);
    assert_eq!((server.received().len(), server.executions()), (1, 1));
    assert_eq!(server.received()[0].body, b"tea");
}

#[tokio::test]
async fn operation_committed_by_a_process_that_dies_is_sent_by_the_next() {
    let (_, pool) = table().await;
    let server = created().await;
    let client = once(&server);
    let first = outbox(&pool, &client).poll_interval(Duration::from_secs(600)).start().await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    let id = first.submit_in(&mut transaction, charge(&client)).await.unwrap();
    // It has stopped before it could look for anything.
    first.shutdown(Duration::from_secs(5)).await;
    transaction.commit().await.unwrap();
    drop(first);
    assert!(server.received().is_empty());
    let next = outbox(&pool, &client).start().await.unwrap();
    assert!(matches!(next.wait(id).await.unwrap(), End::Answer(_)));
    assert_eq!((server.received().len(), server.executions()), (1, 1));
}

#[tokio::test]
async fn name_of_an_open_transaction_is_waited_for() {
    for commits in [true, false] {
        let (_, pool) = table().await;
        let server = created().await;
        let client = once(&server);
        let outbox = outbox(&pool, &client).start().await.unwrap();
        let mut transaction = pool.begin().await.unwrap();
        let first = outbox.submit_in(&mut transaction, charge(&client).named("order-1")).await.unwrap();
        let again = outbox.submit_in(&mut transaction, charge(&client).named("order-1")).await.unwrap();
        assert_eq!(again, first);

        let mut second = tokio::spawn({
            let (outbox, client) = (outbox.clone(), client.clone());
            async move { outbox.submit(charge(&client).named("order-1")).await.unwrap() }
        });
        // The database shows that it waits.
        let waits = "SELECT count(*) FROM pg_stat_activity
             WHERE wait_event_type = 'Lock' AND query LIKE '%steadfast_outbox%' AND pid <> pg_backend_pid()
               AND pg_blocking_pids(pid) <> '{}'";
        while count(waits, &pool).await == 0 {
            assert!(!second.is_finished());
        }
        // Nothing else waits.
        let other = client.get("/charges").prepare().unwrap();
        let other = outbox.submit(other).await.unwrap();
        assert!(matches!(outbox.wait(other).await.unwrap(), End::Answer(_)));
        assert!(!second.is_finished());
        if commits {
            transaction.commit().await.unwrap();
            assert_eq!((&mut second).await.unwrap(), first);
        } else {
            transaction.rollback().await.unwrap();
            assert_ne!((&mut second).await.unwrap(), first);
        }
        let entry = outbox.find("order-1").await.unwrap().unwrap();
        outbox.wait(entry.id).await.unwrap();
        assert_eq!((server.received().len(), outbox.usage().await.unwrap().entries), (2, 2), "commits: {commits}");

        let other = client.post("/charges").body("13 EUR").prepare().unwrap();
        let mut transaction = pool.begin().await.unwrap();
        let error = outbox.submit_in(&mut transaction, other.named("order-1")).await.unwrap_err();
        assert!(matches!(error, OutboxError::Store(OutboxStoreError::NameTaken { .. })), "{error}");
        // The transaction can go on.
        outbox.submit_in(&mut transaction, charge(&client).named("order-2")).await.unwrap();
        transaction.commit().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outboxes_of_two_pools_share_a_table() {
    const OPERATIONS: usize = 100;
    let (schema, pool) = table().await;
    let server = created().await;
    let client = once(&server);
    let mut outboxes = Vec::new();
    for _ in 0..2 {
        outboxes.push(outbox(&pool_in(&schema), &client).workers(4, 4).start().await.unwrap());
    }
    // Both submit every name, and wait for both.
    let submit = |number: usize| {
        let (outboxes, client) = (&outboxes, &client);
        async move {
            let submit = outboxes.iter().map(|outbox| {
                let charge = client.post("/charges").body(format!("charge {number}")).prepare().unwrap();
                outbox.submit(charge.named(format!("charge-{number}")))
            });
            let ids: Vec<_> = join_all(submit).await.into_iter().map(Result::unwrap).collect();
            assert_eq!(ids[0], ids[1]);
            for (outbox, id) in outboxes.iter().zip(ids) {
                assert!(matches!(outbox.wait(id).await.unwrap(), End::Answer(_)));
            }
        }
    };
    join_all((0..OPERATIONS).map(submit)).await;
    let counts = server.executions_by_body();
    assert!(counts.len() == OPERATIONS && counts.values().all(|count| *count == 1), "{counts:?}");
    assert_eq!(server.received().len(), OPERATIONS);
    let ended: u64 = outboxes.iter().map(|outbox| outbox.metrics().answered).sum();
    assert_eq!(ended, OPERATIONS as u64);
    assert_eq!(count("SELECT count(*) FROM steadfast_outbox WHERE state = 'answer'", &pool).await, 100);
}

/// The reply to the write is lost, and the version in the row tells that it was written.
#[tokio::test]
async fn lost_reply_of_the_database_changes_nothing() {
    let (schema, pool) = table().await;
    let proxy = Proxy::start(&options()).await;
    let through = pool_of(4, proxy.options(options()).options([("search_path", schema.as_str())]));
    let store = Arc::new(PostgresOutbox::new(through));
    let maker = Maker::new().await;
    // Statements are prepared and sessions are checked by a first one.
    let first = maker.entry("/first", None, "");
    store.submit(first, None).await.unwrap();

    let new = maker.entry("/charges", Some("order-1"), "needle");
    let id = new.id;
    let versions = "SELECT count(DISTINCT version) FROM steadfast_outbox";
    let entry = interrupted(&proxy, "needle", || count(versions, &pool), 2, {
        let store = store.clone();
        async move { store.submit(new, Some(terms())).await.unwrap() }
    })
    .await;
    let Submitted::New(entry) = entry else { panic!("{entry:?}") };
    assert_eq!((entry.attempts, entry.fence), (1, 1));
    assert_eq!(store.get(id).await.unwrap(), Some(entry));

    let before: String = sqlx::query_scalar("SELECT max(version::text) FROM steadfast_outbox WHERE name IS NOT NULL")
        .fetch_one(&pool)
        .await
        .unwrap();
    let changed =
        format!("SELECT count(*) FROM steadfast_outbox WHERE name IS NOT NULL AND version::text <> '{before}'");
    let applied = interrupted(&proxy, "running", || counted(&changed, &pool), 1, {
        let store = store.clone();
        async move { store.apply(id, Change::Mark { fence: 1, terms: terms() }).await.unwrap() }
    })
    .await;
    let Applied::Done(entry) = applied else { panic!("{applied:?}") };
    assert_eq!(entry.attempts, 2, "the mark was applied once");
    assert_eq!(store.get(id).await.unwrap(), Some(entry));
}

async fn counted(sql: &str, pool: &PgPool) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.unwrap()
}

/// Makes a call whose statement with these words is executed, which `sign` shows by this count, and
/// whose reply is lost.
async fn interrupted<T: Send + 'static, F: Future<Output = i64>>(
    proxy: &Proxy,
    words: &'static str,
    sign: impl Fn() -> F,
    expected: i64,
    call: impl Future<Output = T> + Send + 'static,
) -> T {
    proxy.hold(words);
    let call = tokio::spawn(call);
    while sign().await != expected {
        assert!(!call.is_finished());
        tokio::task::yield_now().await;
    }
    proxy.set_down(true);
    proxy.let_go();
    proxy.set_down(false);
    call.await.unwrap()
}

/// The COMMIT of a claim is executed, and its reply is lost.
#[tokio::test]
async fn claim_whose_reply_is_lost_is_not_left_to_its_lease() {
    let (schema, pool) = table().await;
    let proxy = Proxy::start(&options()).await;
    let through = pool_of(4, proxy.options(options()).options([("search_path", schema.as_str())]));
    let store = PostgresOutbox::new(through);
    let maker = Maker::new().await;
    store.submit(maker.entry("/charges", None, ""), None).await.unwrap();
    proxy.commits(Commits::Unanswered);
    let claim = store.claim_due(terms(), 10, Vec::new());
    let pass = async {
        while count("SELECT count(*) FROM steadfast_outbox WHERE state = 'running'", &pool).await == 0 {}
        proxy.commits(Commits::Pass);
    };
    let (claimed, ()) = tokio::join!(claim, pass);
    let claimed = claimed.unwrap();
    assert_eq!((claimed.len(), claimed[0].fence, claimed[0].may_have_been_processed), (1, 1, false));
    assert!(store.claim_due(terms(), 10, Vec::new()).await.unwrap().is_empty());
}

#[tokio::test]
async fn database_that_is_away_loses_nothing() {
    let (schema, pool) = table().await;
    let proxy = Proxy::start(&options()).await;
    let through = pool_of(4, proxy.options(options()).options([("search_path", schema.as_str())]));
    let server = FaultServer::start(|_, _| FaultStep::execute(Answer::new(201).delay(Duration::from_millis(50)))).await;
    let client = once(&server);
    let outbox = outbox(&through, &client).start().await.unwrap();
    let id = outbox.submit(charge(&client)).await.unwrap();
    proxy.set_down(true);
    let error = outbox.submit(charge(&client)).await.unwrap_err();
    assert!(matches!(error, OutboxError::Store(OutboxStoreError::Unavailable(_))), "{error}");
    while outbox.metrics().store_errors == 0 {
        tokio::task::yield_now().await;
    }
    proxy.set_down(false);
    assert!(matches!(outbox.wait(id).await.unwrap(), End::Answer(_)));
    // What could not be written down was not sent.
    assert_eq!((server.executions(), count("SELECT count(*) FROM steadfast_outbox", &pool).await), (1, 1));
}

/// One statement writes what waits at the same time, so one bad change must not fail the others.
#[tokio::test]
async fn change_that_the_database_refuses_fails_alone() {
    let (_, pool) = table().await;
    let (store, maker) = (PostgresOutbox::new(pool), Maker::new().await);
    let names = (0..40).map(|number| if number == 20 { "a\0b".to_owned() } else { format!("order-{number}") });
    let results = join_all(names.map(|name| store.submit(maker.entry("/a", Some(&name), ""), None))).await;
    for (number, result) in results.into_iter().enumerate() {
        match result {
            Ok(Submitted::New(_)) => assert_ne!(number, 20),
            Err(OutboxStoreError::Unavailable(error)) => {
                assert_eq!(number, 20);
                assert!(error.to_string().contains("0x00"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn changes_that_wait_share_their_statements() {
    let (schema, _) = table().await;
    let proxy = Proxy::start(&options()).await;
    // Each connection prepares each statement once.
    let through = pool_of(1, proxy.options(options()).options([("search_path", schema.as_str())]));
    let (store, maker) = (PostgresOutbox::new(through), Maker::new().await);
    let entry = |name: Option<&str>| maker.entry("/a", name, "");
    join_all((0..64).map(|_| store.submit(entry(None), None))).await;
    proxy.sent();
    let Submitted::New(one) = store.submit(entry(None), Some(terms())).await.unwrap() else { panic!("not new") };
    assert_eq!(proxy.sent().len(), 2, "a read and a write");
    store.apply(one.id, Change::Mark { fence: 1, terms: terms() }).await.unwrap();
    assert_eq!(proxy.sent().len(), 2, "a read and a write");
    let results = join_all((0..64).map(|_| store.submit(entry(None), None))).await;
    assert!(results.into_iter().all(|result| matches!(result, Ok(Submitted::New(_)))));
    assert_eq!(proxy.sent().len(), 2, "a read and a write for all 64");
    // Many of one name are one operation.
    let results = join_all((0..64).map(|_| store.submit(entry(Some("order-1")), None))).await;
    let new = results.iter().filter(|result| matches!(result, Ok(Submitted::New(_)))).count();
    let existing = results.iter().filter(|result| matches!(result, Ok(Submitted::Existing(_)))).count();
    assert_eq!((new, existing), (1, 63));
}

#[tokio::test]
async fn acknowledgement_rides_along() {
    let (schema, _) = table().await;
    let proxy = Proxy::start(&options()).await;
    let through = pool_of(1, proxy.options(options()).options([("search_path", schema.as_str())]));
    let (store, maker) = (PostgresOutbox::new(through), Maker::new().await);
    let mut ended = Vec::new();
    for _ in 0..3 {
        let Submitted::New(entry) = store.submit(maker.entry("/a", None, ""), None).await.unwrap() else { panic!() };
        store.apply(entry.id, Change::Cancel).await.unwrap();
        ended.push(entry.id);
    }
    let acknowledge = async |number: usize| store.apply(ended[number], Change::Acknowledge).await.unwrap();
    proxy.sent();
    let (first, second, new) =
        tokio::join!(acknowledge(0), acknowledge(1), store.submit(maker.entry("/a", None, ""), None));
    assert_eq!(proxy.sent().len(), 2, "a read and a write for all three");
    assert!(matches!((first, second), (Applied::Done(_), Applied::Done(_))) && new.is_ok());
    // Without company it goes alone, after a while.
    assert!(matches!(acknowledge(2).await, Applied::Done(_)));
    assert_eq!(proxy.sent().len(), 2);
}

#[tokio::test]
async fn full_outbox_refuses_what_is_new() {
    let (_, pool) = table().await;
    let maker = Maker::new().await;
    for (limit, store) in [
        ("max_entries 2", PostgresOutbox::new(pool.clone()).max_entries(2)),
        ("max_bytes 600", PostgresOutbox::new(pool.clone()).max_bytes(600)),
    ] {
        run("DELETE FROM steadfast_outbox", &pool).await;
        let submit = async |name| store.submit(maker.entry("/a", name, &"x".repeat(200)), None).await;
        submit(Some("a")).await.unwrap();
        let Submitted::New(second) = submit(None).await.unwrap() else { panic!("not new") };
        let error = submit(None).await.unwrap_err().to_string();
        assert!(error.contains(&format!("the outbox is full: {limit}")), "{error}");
        // What is there already needs no room.
        assert!(matches!(submit(Some("a")).await, Ok(Submitted::Existing(_))));
        store.apply(second.id, Change::Cancel).await.unwrap();
        assert!(submit(None).await.is_err(), "nothing unacknowledged is removed");
        store.apply(second.id, Change::Acknowledge).await.unwrap();
        submit(None).await.unwrap();
        assert!(submit(None).await.is_err());
    }
}

#[tokio::test]
async fn damaged_row_is_left_alone() {
    let (_, pool) = table().await;
    let server = created().await;
    let client = once(&server);
    let (store, maker) = (PostgresOutbox::new(pool.clone()), Maker::new().await);
    let bad = maker.entry("/bad", Some("bad"), "");
    let id = bad.id;
    store.submit(bad, None).await.unwrap();
    run("UPDATE steadfast_outbox SET entry = set_byte(entry, 20, get_byte(entry, 20) # 1)", &pool).await;
    let outbox = outbox(&pool, &client).start().await.unwrap();
    let good = outbox.submit(charge(&client)).await.unwrap();
    assert!(matches!(outbox.wait(good).await.unwrap(), End::Answer(_)));
    for error in [
        outbox.wait(id).await.unwrap_err(),
        outbox.cancel(id).await.unwrap_err(),
        outbox.find("bad").await.unwrap_err(),
        outbox.submit(charge(&client).named("bad")).await.unwrap_err(),
    ] {
        let expected = format!("operation {id} is damaged");
        assert!(error.to_string().contains(&expected), "{error}");
    }
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn credentials_are_not_in_the_table() {
    let (_, pool) = table().await;
    let server = created().await;
    let client = one_attempt(&server).bearer_auth("planted-s3cret").build().unwrap();
    let outbox = outbox(&pool, &client).start().await.unwrap();
    let id = outbox.submit(charge(&client).named("order-1")).await.unwrap();
    outbox.wait(id).await.unwrap();
    assert_eq!(server.received()[0].header("authorization"), Some("Bearer planted-s3cret"));
    let found = "SELECT count(*) FROM steadfast_outbox t
         WHERE position('s3cret'::bytea IN entry) > 0 OR (t.*)::text LIKE '%s3cret%'";
    assert_eq!(count(found, &pool).await, 0);
    let planted = "SELECT count(*) FROM steadfast_outbox WHERE position('12 EUR'::bytea IN entry) > 0";
    assert_eq!(count(planted, &pool).await, 1, "the search finds what is there");
}

#[tokio::test]
async fn missing_table_says_what_to_do() {
    let (_, pool) = pool().await;
    let server = created().await;
    let error = outbox(&pool, &once(&server)).start().await.unwrap_err().to_string();
    assert!(error.contains("steadfast_outbox") && error.contains("PostgresOutbox::create_table"), "{error}");
}

/// Submits in a transaction of the sessions' isolation, again and again until no other one is in the
/// way.
async fn submitted_in_transaction(
    outbox: &Outbox<PostgresOutbox>,
    pool: &PgPool,
    client: &Client,
    number: usize,
) -> OperationId {
    loop {
        let charge = client.post("/charges").body(format!("charge {number}")).prepare().unwrap();
        let mut transaction = pool.begin().await.unwrap();
        let error = match outbox.submit_in(&mut transaction, charge).await {
            Ok(id) => match transaction.commit().await {
                Ok(()) => return id,
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        assert!(error.contains("could not serialize access"), "{error}");
    }
}

async fn carries_out(pool: PgPool) {
    PostgresOutbox::new(pool.clone()).create_table().await.unwrap();
    let server = created().await;
    let client = once(&server);
    let outbox = outbox(&pool, &client).workers(4, 4).start().await.unwrap();
    let submit = |number: usize| {
        let (outbox, client, pool) = (&outbox, &client, &pool);
        async move {
            let id = if number.is_multiple_of(4) {
                submitted_in_transaction(outbox, pool, client, number).await
            } else {
                let charge = client.post("/charges").body(format!("charge {number}")).prepare().unwrap();
                outbox.submit(charge).await.unwrap()
            };
            assert!(matches!(outbox.wait(id).await.unwrap(), End::Answer(_)));
            outbox.acknowledge(id).await.unwrap();
        }
    };
    join_all((0..60).map(submit)).await;
    assert_eq!((server.received().len(), server.executions_by_body().len()), (60, 60));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_sessions_refuse_no_operation() {
    for level in ["repeatable read", "serializable"] {
        let schema = schema().await;
        let settings = [("search_path", schema.as_str()), ("default_transaction_isolation", level)];
        carries_out(pool_of(10, options().options(settings))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooler_refuses_no_operation() {
    let (through, _): (PgConnectOptions, PgPool) = behind_pgbouncer().await;
    carries_out(pool_of(20, through)).await;
}

/// Two workers meet at one row, and the database lets one of them pass.
#[tokio::test]
async fn late_worker_is_fenced() {
    let (_, pool) = table().await;
    let server =
        FaultServer::start(|_, _| FaultStep::execute(Answer::new(201).delay(Duration::from_millis(300)))).await;
    let client = once(&server);
    let fenced = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let first = outbox(&pool, &client).on_event({
        let fenced = fenced.clone();
        move |event| {
            if matches!(event.kind, OutboxEventKind::Fenced) {
                fenced.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        }
    });
    let first = first.start().await.unwrap();
    let id = first.submit(charge(&client)).await.unwrap();
    // Another process has taken it over, as if this one had slept past its lease.
    let mut model = Model::default();
    model.insert(first.get(id).await.unwrap().unwrap());
    let later = Now::certain(u64::MAX / 2);
    let taken = model.claim_due(terms(), 1, &[], later).remove(0);
    let bytes = steadfast_outbox::codec::encode(&taken).unwrap();
    let take =
        sqlx::query("UPDATE steadfast_outbox SET entry = $1, version = gen_random_uuid(), due_ms = NULL").bind(bytes);
    take.execute(&pool).await.unwrap();
    while fenced.load(std::sync::atomic::Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(first.get(id).await.unwrap().unwrap(), taken, "a late end changes nothing");
}

#[tokio::test]
async fn role_that_may_not_create_uses_the_table() {
    let roles = Roles::stage().await;
    PostgresOutbox::new(roles.owner.clone()).create_table().await.unwrap();
    let (store, maker) = (PostgresOutbox::new(roles.role.clone()), Maker::new().await);
    let error = store.create_table().await.unwrap_err().to_string();
    assert!(error.contains("permission denied"), "{error}");
    roles.tell("GRANT SELECT, INSERT, UPDATE, DELETE ON steadfast_outbox TO role_$").await;
    store.create_table().await.unwrap();
    store.submit(maker.entry("/a", None, ""), None).await.unwrap();
    let claimed = store.claim_due(terms(), 10, Vec::new()).await.unwrap();
    let end = Change::Settle { fence: 1, outcome: lockstep::answered() };
    store.apply(claimed[0].id, end).await.unwrap();
    store.apply(claimed[0].id, Change::Acknowledge).await.unwrap();
    assert_eq!((store.sweep(10).await.unwrap(), store.usage().await.unwrap().entries), (1, 0));
}

/// Looking for work reads, and claiming it writes: so a worker would find it and never get it.
#[tokio::test]
async fn worker_leaves_a_server_that_has_become_read_only() {
    let failover = Failover::stage().await;
    let (before, maker) = (PostgresOutbox::new(failover.pool(2).await), Maker::new().await);
    before.create_table().await.unwrap();
    before.submit(maker.entry("/a", None, ""), None).await.unwrap();
    failover.read_only().await;
    let store = PostgresOutbox::new(failover.pool(4).await);
    assert!(store.claim_due(terms(), 10, Vec::new()).await.unwrap_err().to_string().contains("read-only"));
    failover.promoted().await;
    let claimed = async {
        loop {
            match store.claim_due(terms(), 10, Vec::new()).await {
                Ok(claimed) => break claimed,
                Err(error) => assert!(error.to_string().contains("read-only"), "{error}"),
            }
        }
    };
    let claimed = tokio::time::timeout(Duration::from_secs(5), claimed).await.expect("it stays with the old server");
    assert_eq!(claimed.len(), 1);
}
