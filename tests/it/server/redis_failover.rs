//! A failover of Redis behind a name: the connection stays with the old primary, and the name leads
//! to the new one.

use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use steadfast::server::{
    Claim, ClaimOutcome, ClaimToken, Completion, End, Fingerprint, FinishOutcome, IdempotencyLayer, Record, RecordId,
    RecordState, Scope, Store, StoreError,
};
use steadfast_redis::RedisStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::redis_server::{RedisServer, Wire};
use super::support::{Executions, Served, header};
use crate::support::clock;

const HOUR: Duration = Duration::from_secs(3600);
const ONE: Fingerprint = Fingerprint::from_bytes([1; 32]);

fn claim(id: &RecordId) -> Claim<'_> {
    Claim::new(id, ClaimToken::new().unwrap(), ONE, HOUR, HOUR)
}

fn end() -> Completion {
    Completion::new(Record::new(StatusCode::CREATED, &HeaderMap::new(), "done".into()), HOUR)
}

fn id(name: &str) -> RecordId {
    RecordId::new("", name)
}

async fn eventually<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let holds = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), holds).await.expect("it never came");
}

/// A primary, its replica, and a name that leads to the primary.
struct Pair {
    primary: RedisServer,
    replica: RedisServer,
    name: Wire,
}

impl Pair {
    async fn start() -> Self {
        let primary = RedisServer::start(&["--repl-diskless-sync-delay", "0"]);
        let of = format!("127.0.0.1 {}", primary.port());
        let replica = RedisServer::start(&["--replicaof", &of, "--repl-diskless-sync-delay", "0"]);
        eventually(|| replica.info_says("master_link_status:up")).await;
        let name = Wire::to(&primary.url()).await;
        Self { primary, replica, name }
    }

    /// Swaps the two servers. The old primary closes no connection.
    async fn fail_over(&self) {
        let offset = || async {
            let info: String = self.primary.command(&["INFO", "replication"]).await;
            let line = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:"));
            line.unwrap().to_owned()
        };
        eventually(|| async { self.replica.info_says(&format!("master_repl_offset:{}", offset().await)).await }).await;
        self.replica.command::<()>(&["REPLICAOF", "NO", "ONE"]).await;
        let port = self.replica.port().to_string();
        self.primary.command::<()>(&["REPLICAOF", "127.0.0.1", &port]).await;
    }

    fn moves_name(&self) {
        self.name.lead_to(&self.replica.url());
    }
}

#[tokio::test]
async fn every_call_finds_new_primary() {
    let pair = Pair::start().await;
    let store = RedisStore::connect(&pair.name.url).await.unwrap();
    let names = ["renewed", "completed", "released", "abandoned"].map(id);
    let claims = names.each_ref().map(claim);
    for claim in &claims {
        assert!(matches!(store.claim(claim).await.unwrap(), ClaimOutcome::Acquired(())));
    }
    // A separate store for each call, so that each call is the first after the failover.
    let mut stores = Vec::new();
    for _ in &names {
        stores.push(RedisStore::connect(&pair.name.url).await.unwrap());
    }
    pair.fail_over().await;
    pair.moves_name();

    let fresh = id("claimed");
    assert!(matches!(store.claim(&claim(&fresh)).await.unwrap(), ClaimOutcome::Acquired(())));
    assert!(stores[0].renew(claims[0].reference(), HOUR).await.unwrap());
    for (nth, end) in [(1, End::Completed(end())), (2, End::Released), (3, End::Unknown)] {
        let ended = stores[nth].finish(claims[nth].reference(), Some(()), &end).await.unwrap();
        assert_eq!(ended, FinishOutcome::Stored, "{end:?}");
    }

    let new = RedisStore::connect(&pair.replica.url()).await.unwrap();
    assert!(
        matches!(new.get(&fresh).await.unwrap(), Some(RecordState::InProgress { .. })),
        "it is with the new primary"
    );
    assert!(matches!(new.get(&names[1]).await.unwrap(), Some(RecordState::Completed { .. })));
    assert_eq!(new.get(&names[2]).await.unwrap(), None);
    assert_eq!(new.get(&names[3]).await.unwrap(), Some(RecordState::unknown(ONE)));
}

#[tokio::test]
async fn failover_refuses_no_request() {
    let pair = Pair::start().await;
    let executions = Executions::default();
    let counted = executions.clone();
    let router = Router::new().route("/orders", post(move || async move { counted.add().to_string() }));
    let store = RedisStore::connect(&pair.name.url).await.unwrap().timeout(Duration::from_secs(5));
    let served = Served::start(router, IdempotencyLayer::new(store, Scope::single_caller())).await;
    let order = async |key: usize| served.post("/orders", &key.to_string()).send().await.unwrap();
    for key in 0..50 {
        if key == 25 {
            pair.fail_over().await;
            pair.moves_name();
        }
        assert_eq!(order(key).await.status(), 200, "{key}");
    }
    for key in 0..50 {
        assert_eq!(header(&order(key).await, "idempotent-replayed"), Some("true"), "{key}");
    }
    assert_eq!(executions.count(), 50);
    let keys: usize = pair.replica.command(&["DBSIZE"]).await;
    assert_eq!(keys, 51, "all of them are with the new primary, and how they are identified");
}

#[tokio::test]
async fn unmoved_name_gets_few_reconnections() {
    let pair = Pair::start().await;
    let store = RedisStore::connect(&pair.name.url).await.unwrap();
    pair.fail_over().await;
    let (begun, before) = (clock::now(), pair.name.connections());
    let mut calls = 0;
    while begun.elapsed() < Duration::from_millis(500) {
        let refused = store.claim(&claim(&id("early"))).await;
        assert!(matches!(&refused, Err(StoreError::Unavailable(error)) if error.to_string().contains("read only")));
        calls += 1;
    }
    let made = pair.name.connections() - before;
    assert!(calls > 20 && (1..=7).contains(&made), "{made} connections for {calls} calls");
    pair.moves_name();
    eventually(|| async { matches!(store.claim(&claim(&id("late"))).await, Ok(ClaimOutcome::Acquired(()))) }).await;
}

#[tokio::test]
async fn primary_demoted_during_wait_is_replaced() {
    let pair = Pair::start().await;
    let store = RedisStore::connect(&pair.name.url).await.unwrap().replicas(2, Duration::from_secs(10));
    let waiting = tokio::spawn(async move {
        let id = id("waiting");
        let claimed = store.claim(&claim(&id)).await;
        (store, claimed.map(|_| ()))
    });
    eventually(|| pair.primary.info_says("blocked_clients:1")).await;
    pair.moves_name();
    pair.fail_over().await;
    // The claim waits there for the same number of replicas again.
    eventually(|| pair.replica.info_says("blocked_clients:1")).await;
    waiting.abort();
}

/// Starts a server that gives each command this reply.
async fn saying(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = vec![0; 65_536];
                while let Ok(length @ 1..) = client.read(&mut bytes).await {
                    // A command begins with the number of its words.
                    let commands = bytes[..length].iter().filter(|byte| **byte == b'*').count();
                    client.write_all(answer.repeat(commands).as_bytes()).await.unwrap();
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn wrong_server_is_replaced() {
    let primary = RedisServer::start(&[]);
    for answer in [
        "-READONLY You can't write against a read only replica.\r\n",
        "-ERR Error running script (call to f_1): @user_script:11: -READONLY You can't write against a replica.\r\n",
        "-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
        "-LOADING Redis is loading the dataset in memory\r\n",
        "-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)\r\n",
        "-NOREPLICAS Not enough good replicas to write.\r\n",
    ] {
        let name = Wire::to(&saying(answer).await).await;
        let store = RedisStore::connect(&name.url).await.unwrap();
        name.lead_to(&primary.url());
        let began = || async { matches!(store.claim(&claim(&id(answer))).await, Ok(ClaimOutcome::Acquired(()))) };
        eventually(began).await;
        assert_eq!(name.connections(), 2, "{answer}");
    }
    // An error that is not about the server is no reason to replace the connection.
    let name = Wire::to(&saying("-ERR unknown command\r\n").await).await;
    let store = RedisStore::connect(&name.url).await.unwrap();
    name.lead_to(&primary.url());
    for _ in 0..3 {
        assert!(store.claim(&claim(&id("unknown command"))).await.is_err());
    }
    assert_eq!(name.connections(), 1);
}

#[tokio::test]
async fn refused_login_is_retried() {
    let (right, wrong) =
        (RedisServer::start(&["--requirepass", "pw"]), RedisServer::start(&["--requirepass", "other"]));
    let name = Wire::to(&right.url()).await;
    let store = RedisStore::connect(&name.url.replace("redis://", "redis://:pw@")).await.unwrap();
    assert!(matches!(store.claim(&claim(&id("before"))).await.unwrap(), ClaimOutcome::Acquired(())));
    name.lead_to(&wrong.url());
    name.cut();
    assert!(store.claim(&claim(&id("between"))).await.is_err());
    name.lead_to(&right.url());
    eventually(|| async { matches!(store.claim(&claim(&id("after"))).await, Ok(ClaimOutcome::Acquired(()))) }).await;
}
