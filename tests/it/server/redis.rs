//! The store in Redis: the contract on one server and on a Cluster, several processes, lost
//! replies, restarts, outages, replicas.
//!
//! The tests use the real server of STEADFAST_REDIS_URL, and servers of their own to break.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use redis::cluster::ClusterClient;
use steadfast::server::{
    Claim, ClaimOutcome, ClaimRef, ClaimToken, Completion, End, Fingerprint, FinishOutcome, IdempotencyLayer, Record,
    RecordError, RecordId, RecordState, Scope, Store, StoreError,
};
use steadfast_redis::{RedisStore, RedisWarning};

use super::redis_server::{RedisServer, Wire, command, free_port, shared};
use super::support::{Executions, Served, header, problem};
use super::{contract, processes};

const HOUR: Duration = Duration::from_secs(3600);
const ONE: Fingerprint = Fingerprint::from_bytes([1; 32]);

fn token() -> ClaimToken {
    ClaimToken::new().unwrap()
}

fn record() -> Record {
    Record::new(StatusCode::CREATED, &HeaderMap::new(), "done".into())
}

fn end() -> Completion {
    Completion::new(record(), HOUR)
}

fn claim(id: &RecordId) -> Claim<'_> {
    Claim::new(id, token(), ONE, HOUR, HOUR)
}

/// Returns an identity that no other run against the shared server has.
fn fresh() -> RecordId {
    RecordId::new("", &format!("{:?}", token().as_bytes()))
}

/// Returns the key of a store with the default prefix.
fn key(id: &RecordId) -> String {
    let digits: String = id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("steadfast:{{{digits}}}")
}

async fn win(store: &RedisStore, claim: &Claim<'_>) -> ClaimToken {
    assert!(matches!(store.claim(claim).await.unwrap(), ClaimOutcome::Acquired(())));
    claim.token
}

async fn eventually<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let holds = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), holds).await.expect("it never came");
}

fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unavailable(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn contract_holds() {
    let store = RedisStore::connect(&shared()).await.unwrap();
    let run = format!("{:?}", token().as_bytes());
    contract::suite(Arc::new(store), |name| RecordId::new(&run, name)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn contract_holds_on_cluster() {
    let buses = [free_port(), free_port(), free_port()].map(|port| port.to_string());
    let nodes = buses.each_ref().map(|bus| RedisServer::start(&["--cluster-enabled", "yes", "--cluster-port", bus]));
    let slots = [("0", "5461"), ("5462", "10922"), ("10923", "16383")];
    for ((node, bus), (first, last)) in nodes.iter().zip(&buses).zip(slots) {
        node.command::<()>(&["CLUSTER", "ADDSLOTSRANGE", first, last]).await;
        nodes[0].command::<()>(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), bus]).await;
    }
    for node in &nodes {
        eventually(|| async {
            let info: String = node.command(&["CLUSTER", "INFO"]).await;
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        })
        .await;
    }
    let client = ClusterClient::new(nodes.iter().map(RedisServer::url)).unwrap();
    let store = RedisStore::from_connection(client.get_async_connection().await.unwrap());
    assert_eq!(store.check().await, []);
    contract::suite(Arc::new(store), |name| RecordId::new("contract", name)).await;
    for node in &nodes {
        let keys: usize = node.command(&["DBSIZE"]).await;
        assert!(keys > 0, "every node has some of the keys");
    }
    nodes[2].command::<()>(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    let store = RedisStore::from_connection(client.get_async_connection().await.unwrap());
    assert_eq!(store.check().await, [RedisWarning::MayEvict("allkeys-lru".to_owned())], "one node is enough");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn child_that_contends() {
    let Some(run) = processes::contender() else { return };
    let store = RedisStore::connect(&shared()).await.unwrap();
    processes::contend(Arc::new(store), RecordId::new("contest", &run), 100).await;
}

#[test]
fn claims_in_two_processes_one_succeeds() {
    for _ in 0..5 {
        let run = format!("{:?}", token().as_bytes());
        assert_eq!(processes::contest("server::redis::child_that_contends", &run, 2), 1);
    }
}

#[tokio::test]
async fn call_with_lost_reply_is_repeated_with_one_effect() {
    let wire = Wire::to(&shared()).await;
    let store = RedisStore::connect(&wire.url).await.unwrap();
    let sent = || String::from_utf8_lossy(&wire.requests()).matches("EVALSHA").count();
    let (id, released) = (fresh(), fresh());
    let first = claim(&id);
    for id in [&fresh(), &released] {
        let token = win(&store, &claim(id)).await;
        assert!(store.renew(ClaimRef::new(*id, token), HOUR).await.unwrap());
    }
    sent();

    wire.lose_replies(1);
    win(&store, &first).await;
    assert_eq!(sent(), 2, "asked twice");
    wire.lose_replies(1);
    assert!(store.renew(first.reference(), HOUR).await.unwrap());
    assert_eq!(sent(), 2, "asked twice");
    wire.lose_replies(1);
    assert_eq!(store.finish(first.reference(), Some(()), &End::Completed(end())).await.unwrap(), FinishOutcome::Stored);
    assert!(sent() >= 2, "asked twice, and once for the script");
    assert_eq!(store.get(&id).await.unwrap(), Some(RecordState::completed(ONE, record())));

    // Both replies are lost, so the caller repeats the claim under its token.
    let other = fresh();
    let second = claim(&other);
    wire.lose_replies(2);
    unavailable(store.claim(&second).await);
    assert!(matches!(store.get(&other).await.unwrap(), Some(RecordState::InProgress { .. })), "it was carried out");
    win(&store, &second).await;
}

#[tokio::test]
async fn requests_carry_no_local_time() {
    let wire = Wire::to(&shared()).await;
    let store = RedisStore::connect(&wire.url).await.unwrap();
    let id = fresh();
    let claim = claim(&id);
    let round = || async {
        wire.requests();
        win(&store, &claim).await;
        assert!(store.renew(claim.reference(), HOUR).await.unwrap());
        String::from_utf8_lossy(&wire.requests()).into_owned()
    };
    // Redis may need the scripts first.
    round().await;
    let mut rounds = Vec::new();
    for _ in 0..2 {
        rounds.push(round().await);
        // Redis's clock moves on between the rounds, so the test's clock does too.
        let lease_left = || async {
            match store.get(&id).await.unwrap() {
                Some(RecordState::InProgress { lease_left, .. }) => lease_left,
                other => panic!("{other:?}"),
            }
        };
        let before = lease_left().await;
        eventually(|| async { lease_left().await < before }).await;
    }
    assert_eq!(rounds[0], rounds[1]);
}

#[tokio::test]
async fn acknowledged_records_survive_redis_kill() {
    let mut server = RedisServer::start(&[]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    assert_eq!(store.warnings(), []);
    let (done, running, unknown) = (fresh(), fresh(), fresh());
    let token = win(&store, &claim(&done)).await;
    store.finish(ClaimRef::new(done, token), Some(()), &End::Completed(end())).await.unwrap();
    let held = win(&store, &claim(&running)).await;
    let token = win(&store, &claim(&unknown)).await;
    store.finish(ClaimRef::new(unknown, token), None, &End::Unknown).await.unwrap();
    server.kill();
    unavailable(store.get(&done).await);
    unavailable(store.claim(&claim(&fresh())).await);

    server.start_again();
    assert_eq!(store.get(&done).await.unwrap(), Some(RecordState::completed(ONE, record())));
    assert!(matches!(
        store.claim(&claim(&running)).await.unwrap(),
        ClaimOutcome::Existing(RecordState::InProgress { .. })
    ));
    assert_eq!(store.get(&unknown).await.unwrap(), Some(RecordState::unknown(ONE)));
    assert_eq!(
        store.finish(ClaimRef::new(running, held), Some(()), &End::Completed(end())).await.unwrap(),
        FinishOutcome::Stored
    );
}

#[tokio::test]
async fn redis_outage_executes_nothing() {
    let mut server = RedisServer::start(&[]);
    let executions = Executions::default();
    let counted = executions.clone();
    let router = Router::new().route("/charges", post(move || async move { counted.add().to_string() }));
    let layer = IdempotencyLayer::new(RedisStore::connect(&server.url()).await.unwrap(), Scope::single_caller());
    let served = Served::start(router, layer).await;
    server.kill();
    for _ in 0..3 {
        let response = served.post("/charges", "k").send().await.unwrap();
        assert_eq!(problem(response).await, (503, "store-unavailable".to_owned()));
    }
    assert_eq!(executions.count(), 0);

    server.start_again();
    let first = served.post("/charges", "k").send().await.unwrap();
    assert_eq!((first.status().as_u16(), header(&first, "idempotent-replayed")), (200, None));
    let again = served.post("/charges", "k").send().await.unwrap();
    assert_eq!((again.status().as_u16(), header(&again, "idempotent-replayed")), (200, Some("true")));
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn redis_restart_at_end_stores_end_later() {
    let server = Arc::new(std::sync::Mutex::new(RedisServer::start(&[])));
    let url = server.lock().unwrap().url();
    let executions = Executions::default();
    let (counted, pulled) = (executions.clone(), server.clone());
    let charge = move || async move {
        pulled.lock().unwrap().kill();
        (StatusCode::CREATED, counted.add().to_string())
    };
    let layer = IdempotencyLayer::new(RedisStore::connect(&url).await.unwrap(), Scope::single_caller())
        .lease(Duration::from_secs(1));
    let served = Served::start(Router::new().route("/charges", post(charge)), layer.clone()).await;
    let first = served.post("/charges", "k").send().await.unwrap();
    assert_eq!(header(&first, "idempotency-status").map(|status| status.starts_with("unknown")), Some(true));
    assert_eq!((first.status().as_u16(), first.text().await.unwrap()), (201, "1".to_owned()));

    server.lock().unwrap().start_again();
    layer.drain().await;
    let again = served.post("/charges", "k").send().await.unwrap();
    assert_eq!(header(&again, "idempotent-replayed"), Some("true"));
    assert_eq!((again.status().as_u16(), again.text().await.unwrap()), (201, "1".to_owned()));
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn frozen_redis_is_unavailable_and_calls_repeatable() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::connect(&server.url()).await.unwrap().timeout(Duration::from_millis(200));
    let (id, warm) = (fresh(), fresh());
    win(&store, &claim(&warm)).await;
    server.signal("-STOP");
    let claim = claim(&id);
    assert!(unavailable(store.claim(&claim).await).contains("no response within 200ms"));
    server.signal("-CONT");
    eventually(|| async { matches!(store.get(&id).await, Ok(Some(RecordState::InProgress { .. }))) }).await;
    win(&store, &claim).await;
}

#[tokio::test]
async fn missing_redis_fails_at_once() {
    let nobody = format!("redis://:s3cret@127.0.0.1:{}", free_port());
    for url in [nobody.as_str(), "redis://:s3cret@127.0.0.1:port", "http://127.0.0.1"] {
        let error = RedisStore::connect(url).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)) && !format!("{error} {error:?}").contains("s3cret"));
    }
    // Accepts connections and never replies.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    unavailable(RedisStore::connect(&format!("redis://{}", silent.local_addr().unwrap())).await);
}

#[tokio::test]
async fn unreadable_record_is_refused_and_unchanged() {
    let url = shared();
    let store = RedisStore::connect(&url).await.unwrap();
    let damages: [(&[&str], RecordError); 6] = [
        (&["HSET", "KEY", "record", "\u{1}not what was written"], RecordError::Damaged),
        (&["HSET", "KEY", "record", ""], RecordError::Damaged),
        (&["HSET", "KEY", "version", "2"], RecordError::Version(2)),
        (&["HSET", "KEY", "fingerprint", "short"], RecordError::Damaged),
        (&["HDEL", "KEY", "version"], RecordError::Damaged),
        (&["SET", "KEY", "of somebody else"], RecordError::Damaged),
    ];
    for (damage, expected) in damages {
        let id = fresh();
        let token = win(&store, &claim(&id)).await;
        store.finish(ClaimRef::new(id, token), Some(()), &End::Completed(end())).await.unwrap();
        let key = key(&id);
        let words: Vec<&str> = damage.iter().map(|&word| if word == "KEY" { &key } else { word }).collect();
        command::<redis::Value>(&url, &words).await;
        let dump = || async { command::<Vec<u8>>(&url, &["DUMP", &key]).await };
        let before = dump().await;
        for found in [store.get(&id).await.map(drop), store.claim(&claim(&id).allow_takeover(true)).await.map(drop)] {
            assert!(matches!(found, Err(StoreError::Unreadable(error)) if error == expected), "{damage:?}: {found:?}");
        }
        assert_eq!(dump().await, before, "{damage:?}");
    }
    // A running claim can be damaged as well.
    let id = fresh();
    win(&store, &claim(&id)).await;
    for retention in ["soon", "0x10", ""] {
        command::<redis::Value>(&url, &["HSET", &key(&id), "retention", retention]).await;
        let found = store.claim(&claim(&id).allow_takeover(true)).await;
        assert!(matches!(found, Err(StoreError::Unreadable(RecordError::Damaged))), "{retention}: {found:?}");
    }
}

#[tokio::test]
async fn key_expires_after_lease_and_retention() {
    let url = shared();
    let store = RedisStore::connect(&url).await.unwrap();
    let id = fresh();
    let hours = || async {
        let left: i64 = command(&url, &["PTTL", &key(&id)]).await;
        (left + 3_599_999) / 3_600_000
    };
    let held = win(&store, &Claim::new(&id, token(), ONE, HOUR * 2, HOUR * 3)).await;
    assert_eq!(hours().await, 5);
    assert!(store.renew(ClaimRef::new(id, held), HOUR * 7).await.unwrap());
    assert_eq!(hours().await, 10);
    store
        .finish(ClaimRef::new(id, held), Some(()), &End::Completed(Completion::new(record(), HOUR * 4)))
        .await
        .unwrap();
    assert_eq!(hours().await, 4);

    // A duration that no clock can hold is a long time, not an error.
    let id = fresh();
    let endless = Claim::new(&id, token(), ONE, Duration::MAX, Duration::MAX);
    let held = win(&store, &endless).await;
    assert!(store.renew(ClaimRef::new(id, held), Duration::MAX).await.unwrap());
    store
        .finish(ClaimRef::new(id, held), Some(()), &End::Completed(Completion::new(record(), Duration::MAX)))
        .await
        .unwrap();
    assert_eq!(store.get(&id).await.unwrap(), Some(RecordState::completed(ONE, record())));
}

#[tokio::test]
async fn claim_with_changed_expiry_lapses_but_stays() {
    let url = shared();
    let store = RedisStore::connect(&url).await.unwrap();
    let id = fresh();
    win(&store, &claim(&id)).await;
    assert!(command::<bool>(&url, &["PERSIST", &key(&id)]).await);
    assert_eq!(store.get(&id).await.unwrap(), Some(RecordState::unknown(ONE)));
    assert!(matches!(store.claim(&claim(&id)).await.unwrap(), ClaimOutcome::Existing(RecordState::Unknown { .. })));
    win(&store, &claim(&id).allow_takeover(true)).await;
    assert!(matches!(store.get(&id).await.unwrap(), Some(RecordState::InProgress { .. })));

    // A longer expiry does not extend the claim, once it was abandoned.
    let id = fresh();
    let token = win(&store, &claim(&id)).await;
    store.finish(ClaimRef::new(id, token), None, &End::Unknown).await.unwrap();
    assert!(command::<bool>(&url, &["EXPIRE", &key(&id), "604800"]).await);
    assert_eq!(store.get(&id).await.unwrap(), Some(RecordState::unknown(ONE)));
}

#[tokio::test]
async fn prefixes_separate_records() {
    let url = shared();
    let one = RedisStore::connect(&url).await.unwrap().prefix("one:");
    let other = RedisStore::connect(&url).await.unwrap().prefix("other:");
    let id = fresh();
    win(&one, &claim(&id)).await;
    assert_eq!(other.get(&id).await.unwrap(), None);
    win(&other, &claim(&id)).await;
}

#[tokio::test]
async fn server_that_may_lose_records_gives_warning() {
    assert_eq!(RedisStore::connect(&shared()).await.unwrap().warnings(), []);
    let server = RedisServer::start(&["--maxmemory-policy", "volatile-lru", "--appendonly", "no"]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let evicts = RedisWarning::MayEvict("volatile-lru".to_owned());
    assert_eq!(store.warnings(), [evicts, RedisWarning::NoAppendOnlyFile]);
    assert!(store.warnings()[0].to_string().contains("volatile-lru"));

    // A user who may run scripts, but may not read the settings.
    server.command::<()>(&["ACL", "SETUSER", "poor", "on", ">pw", "~*", "+@all", "-info", "-config"]).await;
    let store = RedisStore::connect(&as_user(&server, "poor")).await.unwrap();
    assert!(matches!(store.warnings(), [RedisWarning::Unchecked(_)]), "{:?}", store.warnings());
}

fn as_user(server: &RedisServer, name: &str) -> String {
    server.url().replace("redis://", &format!("redis://{name}:pw@"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn documented_permissions_suffice() {
    const DOCS: &str = "~steadfast:* +evalsha +script|load +hmget +hset +hdel +pttl +pexpire +del +exists +set";
    assert!(include_str!("../../../crates/steadfast-redis/src/lib.rs").contains(DOCS), "the docs say something else");
    let server = RedisServer::start(&[]);
    let mut words = vec!["ACL", "SETUSER", "shop", "on", ">pw", "+info"];
    words.extend(DOCS.split(' '));
    server.command::<()>(&words).await;
    let store = RedisStore::connect(&as_user(&server, "shop")).await.unwrap();
    assert_eq!(store.warnings(), []);
    contract::suite(Arc::new(store), |name| RecordId::new("contract", name)).await;
}

#[tokio::test]
async fn full_redis_refuses_claims_but_stores_ends() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let (first, second, third, lapsed) = (fresh(), fresh(), fresh(), fresh());
    let completes = win(&store, &claim(&first)).await;
    let releases = win(&store, &claim(&second)).await;
    let abandons = win(&store, &claim(&third)).await;
    let token = win(&store, &claim(&lapsed)).await;
    store.finish(ClaimRef::new(lapsed, token), None, &End::Unknown).await.unwrap();
    // Less than it uses.
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;

    let refused = fresh();
    assert!(matches!(store.claim(&claim(&refused)).await, Err(StoreError::Full(_))));
    assert_eq!(store.get(&refused).await.unwrap(), None);
    assert!(matches!(store.claim(&claim(&lapsed).allow_takeover(true)).await, Err(StoreError::Full(_))));
    assert_eq!(store.get(&lapsed).await.unwrap(), Some(RecordState::unknown(ONE)), "it is not forgotten for that");
    let waiting = RedisStore::connect(&server.url()).await.unwrap().replicas(1, Duration::from_millis(10));
    assert!(matches!(waiting.claim(&claim(&refused)).await, Err(StoreError::Full(_))));

    assert!(store.renew(ClaimRef::new(first, completes), HOUR).await.unwrap());
    let large = Record::new(StatusCode::OK, &HeaderMap::new(), vec![b'x'; 1024 * 1024].into());
    let completion = Completion::new(large.clone(), HOUR);
    assert_eq!(
        store.finish(ClaimRef::new(first, completes), Some(()), &End::Completed(completion)).await.unwrap(),
        FinishOutcome::Stored
    );
    assert_eq!(store.get(&first).await.unwrap(), Some(RecordState::completed(ONE, large)));
    assert_eq!(
        store.finish(ClaimRef::new(second, releases), Some(()), &End::Released).await.unwrap(),
        FinishOutcome::Stored
    );
    assert_eq!(store.finish(ClaimRef::new(third, abandons), None, &End::Unknown).await.unwrap(), FinishOutcome::Stored);
    assert_eq!(store.get(&third).await.unwrap(), Some(RecordState::unknown(ONE)));
}

#[tokio::test]
async fn claim_on_too_few_replicas_fails() {
    let primary = RedisServer::start(&[]);
    let wait = Duration::from_millis(50);
    let store = RedisStore::connect(&primary.url()).await.unwrap().replicas(1, wait);
    let id = fresh();
    let given_up = claim(&id);
    assert!(unavailable(store.claim(&given_up).await).contains("0 of 1 replicas"));
    store.finish(given_up.reference(), None, &End::Cancelled).await.unwrap();
    assert_eq!(store.get(&id).await.unwrap(), None, "nothing runs under the claim, so no record stays");

    let of = format!("127.0.0.1 {}", primary.port());
    let replica = RedisServer::start(&["--replicaof", &of, "--repl-diskless-sync-delay", "0"]);
    eventually(|| replica.info_says("master_link_status:up")).await;
    let patient = RedisStore::connect(&primary.url()).await.unwrap().replicas(1, Duration::from_secs(10));
    let token = win(&patient, &claim(&id)).await;
    let held: Vec<u8> = replica.command(&["HGET", &key(&id), "token"]).await;
    assert_eq!(held, token.as_bytes(), "the replica has it");
    patient.finish(ClaimRef::new(id, token), Some(()), &End::Completed(end())).await.unwrap();
    assert!(matches!(patient.claim(&claim(&id)).await.unwrap(), ClaimOutcome::Existing(RecordState::Completed { .. })));

    // After a failover, the new primary knows the claims.
    let running = fresh();
    win(&patient, &claim(&running)).await;
    replica.command::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    let promoted = RedisStore::connect(&replica.url()).await.unwrap();
    assert!(matches!(
        promoted.claim(&claim(&running)).await.unwrap(),
        ClaimOutcome::Existing(RecordState::InProgress { .. })
    ));

    eventually(|| primary.info_says("connected_slaves:0")).await;
    let other = fresh();
    unavailable(store.claim(&claim(&other)).await);
    assert!(matches!(store.get(&other).await.unwrap(), Some(RecordState::InProgress { .. })), "until it is cancelled");
    // Reading an existing record needs no replica.
    assert!(matches!(store.claim(&claim(&id)).await.unwrap(), ClaimOutcome::Existing(RecordState::Completed { .. })));
}
