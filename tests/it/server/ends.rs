//! Ends that the store refuses or does not confirm, and claims without an execution.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use axum::body::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use steadfast::server::{
    Claim, ClaimOutcome, ClaimToken, Delivery, End, ExecutionOutcome, Fingerprint, IdempotencyLayer, Inbox, InboxError,
    OnUnknown, OperationKey, PendingEnds, RecordId, RecordState, Scope, SharedStore, Store,
};
use tokio::sync::{Notify, Semaphore};
use tower::{Layer, ServiceExt, service_fn};

use super::failing::Failing;
use super::support::Executions;

type Body = Full<Bytes>;

const HOUR: Duration = Duration::from_secs(3600);

/// A handler that counts, and adds an execution outcome to its response if it has one.
#[derive(Clone, Default)]
struct Shop {
    executions: Executions,
    verdict: Option<ExecutionOutcome>,
}

/// The client's view: status, the word of `Idempotency-Status`, and the problem's type.
type Told = (u16, String, String);

impl Shop {
    async fn ask<S: Store>(&self, layer: &IdempotencyLayer<S>, key: &str) -> Told {
        let shop = self.clone();
        let handler = service_fn(move |_: Request<Body>| {
            let shop = shop.clone();
            async move {
                let mut answer = Response::new(Full::from(shop.executions.add().to_string()));
                if let Some(verdict) = shop.verdict {
                    answer.extensions_mut().insert(verdict);
                    *answer.status_mut() = StatusCode::BAD_GATEWAY;
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let request = Request::post("/").header("idempotency-key", key).body(Full::from("{}")).unwrap();
        let answer = layer.layer(handler).oneshot(request).await.unwrap();
        let word = answer.headers().get("idempotency-status").map_or("", |word| word.to_str().unwrap());
        let (status, word) = (answer.status().as_u16(), word.split(';').next().unwrap().to_owned());
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let kind = problem["type"].as_str().unwrap_or_default().rsplit('#').next().unwrap_or_default();
        (status, word, kind.to_owned())
    }
}

fn told(status: u16, word: &str, kind: &str) -> Told {
    (status, word.to_owned(), kind.to_owned())
}

fn id() -> RecordId {
    *OperationKey::new("", "k").record_id()
}

async fn state<S: Store>(layer: &IdempotencyLayer<S>) -> Option<RecordState> {
    layer.store().get(&id()).await.unwrap()
}

/// The store fails for less time than the caller waits, so nobody notices.
#[tokio::test]
async fn short_outage_at_end_is_hidden() {
    let (store, shop) = (Failing::new(false, false, 0), Shop::default());
    store.failing_ends.store(2, SeqCst);
    let layer = IdempotencyLayer::new(store, Scope::single_caller()).end_wait(Duration::from_secs(60));
    assert_eq!(shop.ask(&layer, "k").await, told(200, "stored", ""));
    assert_eq!(shop.ask(&layer, "k").await, told(200, "replayed", ""));
    assert_eq!((shop.executions.count(), layer.metrics().stored, layer.metrics().lost), (1, 1, 0));
    assert_eq!(layer.store().asked_ends.load(SeqCst), 3);
}

/// The store fails for longer: the caller has its response, and so do later repeats.
#[tokio::test]
async fn response_leaves_before_slow_end_is_stored() {
    for wait in [Duration::ZERO, Duration::from_millis(5)] {
        let (store, shop) = (Failing::new(false, false, 0), Shop::default());
        store.failing_ends.store(4, SeqCst);
        let layer = IdempotencyLayer::new(store, Scope::single_caller()).end_wait(wait);
        assert_eq!(shop.ask(&layer, "k").await, told(200, "unknown", ""), "{wait:?}");
        assert_eq!(shop.ask(&layer, "k").await, told(409, "in-progress", "in-progress"), "{wait:?}");
        layer.drain().await;
        assert_eq!(shop.ask(&layer, "k").await, told(200, "replayed", ""), "{wait:?}");
        assert_eq!((shop.executions.count(), layer.metrics().stored), (1, 1), "{wait:?}");
    }
}

/// A store that replies at once has replied before the caller would have to wait.
#[tokio::test]
async fn wait_of_zero_still_sees_stored_end() {
    let layer =
        IdempotencyLayer::new(steadfast::server::MemoryStore::new(), Scope::single_caller()).end_wait(Duration::ZERO);
    assert_eq!(Shop::default().ask(&layer, "k").await, told(200, "stored", ""));
}

/// The end was stored and its reply was lost: the repetition returns the same result, for every
/// kind of end.
#[tokio::test]
async fn end_with_lost_reply_is_recognised() {
    let cases = [
        (None, told(200, "stored", ""), told(200, "replayed", ""), 1),
        (Some(ExecutionOutcome::NotExecuted), told(502, "released", ""), told(502, "released", ""), 2),
        (Some(ExecutionOutcome::Unknown), told(502, "unknown", ""), told(409, "unknown", "outcome-unknown"), 1),
    ];
    for (verdict, first, second, executions) in cases {
        let (store, shop) = (Failing::new(false, false, 0), Shop { verdict, ..Shop::default() });
        store.lost_ends.store(1, SeqCst);
        let layer = IdempotencyLayer::new(store, Scope::single_caller()).end_wait(Duration::from_secs(60));
        assert_eq!(shop.ask(&layer, "k").await, first, "{verdict:?}");
        assert_eq!(layer.metrics().lost, 0, "{verdict:?}");
        assert_eq!(shop.ask(&layer, "k").await, second, "{verdict:?}");
        assert_eq!(shop.executions.count(), executions, "{verdict:?}");
    }
}

/// The claim is renewed while its end waits, so that other processes see a running operation.
#[tokio::test]
async fn pending_end_keeps_claim_renewed() {
    let (store, shop) = (Arc::new(Failing::new(false, false, 0)), Shop::default());
    store.failing_ends.store(usize::MAX, SeqCst);
    let lease = Duration::from_millis(600);
    let layer = |handle: SharedStore<Failing>| {
        IdempotencyLayer::with_shared_store(handle, Scope::single_caller()).on_unknown(OnUnknown::Rerun).lease(lease)
    };
    let (here, elsewhere) = (layer(store.clone().into()).end_wait(Duration::ZERO), layer(store.clone().into()));
    assert_eq!(shop.ask(&here, "k").await, told(200, "unknown", ""));
    for _ in 0..9 {
        assert!(tokio::time::timeout(lease / 4, std::future::pending::<()>()).await.is_err());
        assert_eq!(shop.ask(&elsewhere, "k").await, told(409, "in-progress", "in-progress"));
    }
    store.failing_ends.store(0, SeqCst);
    here.drain().await;
    assert_eq!(shop.ask(&elsewhere, "k").await, told(200, "replayed", ""));
    assert_eq!(shop.executions.count(), 1);
}

/// Each limit gives the end up and reports it: the operation is unknown, and nothing waits any
/// more.
#[tokio::test]
async fn end_over_limit_becomes_unknown() {
    let bounds = PendingEnds::default();
    for most in [bounds.max_count(0), bounds.max_bytes(0), bounds.max_time(Duration::from_millis(1))] {
        let (store, shop) = (Failing::new(false, true, 0), Shop::default());
        let layer =
            IdempotencyLayer::new(store, Scope::single_caller()).pending_ends(most).end_wait(Duration::from_secs(60));
        assert_eq!(shop.ask(&layer, "k").await, told(200, "unknown", ""), "{most:?}");
        layer.drain().await;
        assert_eq!(shop.ask(&layer, "k").await, told(409, "unknown", "outcome-unknown"), "{most:?}");
        assert_eq!((shop.executions.count(), layer.metrics().lost), (1, 1), "{most:?}");
    }
}

#[tokio::test]
async fn drain_waits_for_pending_end() {
    let (store, shop) = (Failing::new(false, false, 0), Shop::default());
    store.failing_ends.store(usize::MAX, SeqCst);
    let layer = IdempotencyLayer::new(store, Scope::single_caller()).end_wait(Duration::ZERO);
    assert_eq!(shop.ask(&layer, "k").await, told(200, "unknown", ""));
    let mut drained = std::pin::pin!(layer.drain());
    assert!(tokio::time::timeout(Duration::from_millis(20), drained.as_mut()).await.is_err());
    layer.store().failing_ends.store(0, SeqCst);
    drained.await;
    assert!(matches!(state(&layer).await, Some(RecordState::Completed { .. })));
}

/// An end that is still to be written is not lost with the caller of `process`.
#[tokio::test]
async fn mark_is_written_after_consumer_returns() {
    for dropped in [false, true] {
        let store = SharedStore::new(Failing::new(false, false, 0));
        store.failing_ends.store(3, SeqCst);
        let wait = if dropped { HOUR } else { Duration::ZERO };
        let inbox = Inbox::with_shared_store(store.clone()).end_wait(wait);
        let executions = Executions::default();
        let deliver = || {
            inbox.process("shop", "e1", Fingerprint::of("paid"), |_| {
                let number = executions.add();
                async move { Ok::<_, Infallible>(number) }
            })
        };
        if dropped {
            assert!(tokio::time::timeout(Duration::from_millis(5), deliver()).await.is_err());
        } else {
            assert!(matches!(deliver().await, Err(InboxError::NotMarked(_))));
        }
        inbox.drain().await;
        assert_eq!(deliver().await.unwrap(), Delivery::AlreadyHandled, "{dropped}");
        assert_eq!(executions.count(), 1, "{dropped}");
    }
}

/// The 503 said that nothing was executed, so no claim stays: the key is as free as before.
#[tokio::test]
async fn claim_without_execution_is_cancelled() {
    // The replies are lost, and at first the store also refuses the cancellation.
    let (store, shop) = (Failing::new(false, false, 2), Shop::default());
    store.failing_ends.store(3, SeqCst);
    let layer = IdempotencyLayer::new(store, Scope::single_caller());
    assert_eq!(shop.ask(&layer, "k").await, told(503, "", "store-unavailable"));
    layer.drain().await;
    assert_eq!(state(&layer).await, None);
    assert_eq!(shop.ask(&layer, "k").await, told(200, "stored", ""));
    assert_eq!(shop.executions.count(), 1);
}

/// A cancelled takeover leaves the operation unknown: it may have run.
#[tokio::test]
async fn cancelled_takeover_is_unknown_again() {
    let (store, shop) = (Failing::new(false, false, 0), Shop::default());
    let layer = IdempotencyLayer::new(store, Scope::single_caller()).on_unknown(OnUnknown::Rerun);
    // Another process began the operation, and died.
    let id = id();
    let unknown = Claim::new(&id, ClaimToken::new().unwrap(), fingerprint(), HOUR, HOUR);
    assert!(matches!(layer.store().claim(&unknown).await.unwrap(), ClaimOutcome::Acquired(())));
    layer.store().finish(unknown.reference(), Some(()), &End::Unknown).await.unwrap();

    layer.store().lost_replies.store(2, SeqCst);
    assert_eq!(shop.ask(&layer, "k").await, told(503, "", "store-unavailable"));
    layer.drain().await;
    assert_eq!(state(&layer).await, Some(RecordState::unknown(fingerprint())));
    assert_eq!(shop.ask(&layer, "k").await, told(200, "stored", ""));
    assert_eq!(shop.executions.count(), 1);
}

/// Returns the fingerprint that the layer gives these requests, read from a record.
fn fingerprint() -> Fingerprint {
    static OF: std::sync::OnceLock<Fingerprint> = std::sync::OnceLock::new();
    *OF.get_or_init(|| {
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let layer = IdempotencyLayer::new(steadfast::server::MemoryStore::new(), Scope::single_caller());
                Shop::default().ask(&layer, "k").await;
                state(&layer).await.unwrap().fingerprint().unwrap()
            })
        })
        .join()
        .unwrap()
    })
}

/// A repeat that was refused as "in progress" asked twice, and its first call may still arrive.
#[tokio::test]
async fn late_claim_of_refused_request_is_cancelled() {
    let (store, shop) = (Failing::new(false, false, 0), Shop::default());
    let layer = IdempotencyLayer::new(store, Scope::single_caller());
    let id = id();
    let running = Claim::new(&id, ClaimToken::new().unwrap(), fingerprint(), HOUR, HOUR);
    layer.store().claim(&running).await.unwrap();
    layer.store().lost_replies.store(1, SeqCst);
    assert_eq!(shop.ask(&layer, "k").await, told(409, "in-progress", "in-progress"));
    layer.drain().await;
    assert_eq!(layer.store().asked_ends.load(SeqCst), 1, "the claim whose reply was lost is cancelled");
    assert!(matches!(state(&layer).await, Some(RecordState::InProgress { .. })), "and the one that runs is not");
}

/// A caller that disconnects during its claim leaves no claim either.
#[tokio::test]
async fn event_dropped_during_claim_is_cancelled() {
    let hold = Arc::new((Semaphore::new(0), Notify::new()));
    let store = SharedStore::new(Failing { hold: Some(hold.clone()), ..Failing::new(false, false, 0) });
    let inbox = Inbox::with_shared_store(store.clone());
    {
        let mut process =
            Box::pin(inbox.process("shop", "e1", Fingerprint::of("paid"), |_| async { Ok::<_, Infallible>(()) }));
        let claimed = async { hold.0.acquire().await.unwrap().forget() };
        tokio::select! {
            _ = &mut process => panic!("the store has not replied"),
            () = claimed => {}
        }
    }
    inbox.drain().await;
    assert_eq!(store.get(&RecordId::of_event("shop", "e1")).await.unwrap(), None);
}

/// 300 requests meet a frozen Redis, and each response says that nothing was executed. This stays
/// true when Redis goes on, although the claims reach it only then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_redis_keeps_no_orphaned_claim() {
    use steadfast_redis::RedisStore;

    use super::redis_server::RedisServer;

    let server = RedisServer::start(&[]);
    let store = RedisStore::connect(&server.url()).await.unwrap().timeout(Duration::from_millis(300));
    let (layer, shop) = (IdempotencyLayer::new(store, Scope::single_caller()), Shop::default());
    server.signal("-STOP");
    let asked = (0..300).map(|number| {
        let (layer, shop) = (layer.clone(), shop.clone());
        tokio::spawn(async move { shop.ask(&layer, &number.to_string()).await })
    });
    for refused in asked.collect::<Vec<_>>() {
        assert_eq!(refused.await.unwrap(), told(503, "", "store-unavailable"));
    }
    server.signal("-CONT");
    layer.drain().await;
    let held: Vec<String> = server.command(&["EVAL", RECORDS, "0"]).await;
    assert_eq!(held, Vec::<String>::new(), "claims without an execution");
    assert_eq!(shop.executions.count(), 0);
    assert_eq!(shop.ask(&layer, "7").await, told(200, "stored", ""));
}

/// All names except those of tombstones.
const RECORDS: &str = "local names = {} for _, name in ipairs(redis.call('KEYS', '*')) do \
                       if string.sub(name, -1) == '}' then table.insert(names, name) end end return names";

/// 300 requests meet a locked table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_table_keeps_no_orphaned_claim() {
    use steadfast_postgres::PostgresStore;

    use super::postgres::{count, pool};

    let (_, pool) = pool().await;
    let store = PostgresStore::new(pool.clone()).timeout(Duration::from_millis(500));
    store.create_table().await.unwrap();
    let (layer, shop) = (IdempotencyLayer::new(store, Scope::single_caller()), Shop::default());
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE steadfast_records IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let asked = (0..300).map(|number| {
        let (layer, shop) = (layer.clone(), shop.clone());
        tokio::spawn(async move { shop.ask(&layer, &number.to_string()).await })
    });
    for refused in asked.collect::<Vec<_>>() {
        assert_eq!(refused.await.unwrap(), told(503, "", "store-unavailable"));
    }
    lock.rollback().await.unwrap();
    layer.drain().await;
    assert_eq!(count("SELECT count(*) FROM steadfast_records WHERE state <> 'free'", &pool).await, 0);
    assert_eq!(shop.executions.count(), 0);
    assert_eq!(shop.ask(&layer, "7").await, told(200, "stored", ""));
}

/// Redis is away for two seconds while 20 operations end: all 20 outcomes are known afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_redis_knows_every_end() {
    use std::sync::Mutex;

    use steadfast_redis::RedisStore;

    use super::redis_server::RedisServer;

    let server = Mutex::new(RedisServer::start(&[]));
    let url = server.lock().unwrap().url();
    let layer = IdempotencyLayer::new(RedisStore::connect(&url).await.unwrap(), Scope::single_caller());
    let (begun, end, executions) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)), Executions::default());
    let handler = {
        let (begun, end, executions) = (begun.clone(), end.clone(), executions.clone());
        service_fn(move |_: Request<Body>| {
            let (begun, end, number) = (begun.clone(), end.clone(), executions.add());
            async move {
                begun.add_permits(1);
                end.acquire().await.unwrap().forget();
                Ok::<_, Infallible>(Response::new(Full::from(number.to_string())))
            }
        })
    };
    let ask = |key: usize| {
        let key = HeaderValue::from_str(&key.to_string()).unwrap();
        let request = Request::post("/").header("idempotency-key", key).body(Full::from("{}")).unwrap();
        layer.layer(handler.clone()).oneshot(request)
    };
    let asked: Vec<_> = (0..20).map(|key| tokio::spawn(ask(key))).collect();
    begun.acquire_many(20).await.unwrap().forget();
    server.lock().unwrap().kill();
    end.add_permits(20);
    for answer in asked {
        let answer = answer.await.unwrap().unwrap();
        let word = answer.headers()["idempotency-status"].to_str().unwrap();
        assert_eq!((answer.status().as_u16(), word.split(';').next()), (200, Some("unknown")));
    }
    assert!(tokio::time::timeout(Duration::from_secs(1), std::future::pending::<()>()).await.is_err());
    server.lock().unwrap().start_again();
    layer.drain().await;
    for key in 0..20 {
        let answer = ask(key).await.unwrap();
        assert_eq!(answer.headers().get("idempotent-replayed"), Some(&HeaderValue::from_static("true")), "{key}");
    }
    assert_eq!((executions.count(), layer.metrics().lost), (20, 0));
}
