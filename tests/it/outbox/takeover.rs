//! Operations whose process has died, or whose worker was too slow.

use std::time::Duration;

use steadfast::{Client, Refreshing, Token};
use steadfast_outbox::{DurableExt, End, OperationId, Outbox, State};
use steadfast_testing::{FaultPoint, FaultServer, FaultStep};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use super::{Store, charge, once, once_doubting, one_attempt, outbox, store};

/// Submits a charge in a runtime of its own, and ends that once the server has executed it.
fn die_after_execution(server: &FaultServer, store: &Store, client: &Client) -> OperationId {
    let (store, client, executed) = (store.clone(), client.clone(), || server.executions() == 1);
    std::thread::scope(|scope| {
        let process = scope.spawn(move || {
            let runtime = Runtime::new().unwrap();
            let id = runtime.block_on(async {
                let outbox = outbox(&store, &client).start().await.unwrap();
                outbox.submit(charge(&client)).await.unwrap()
            });
            (runtime, id)
        });
        let (runtime, id) = process.join().unwrap();
        while !executed() {
            std::thread::yield_now();
        }
        runtime.shutdown_background();
        id
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operation_of_dead_process_is_resumed_under_its_key() {
    let server = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting), FaultStep::ok()]).await;
    let (store, client) = (store(), once(&server));
    let id = die_after_execution(&server, &store, &client);
    let next = outbox(&store, &client).start().await.unwrap();
    assert!(matches!(next.wait(id).await.unwrap(), End::Answer(_)));
    assert_eq!((server.executions(), server.received().len()), (1, 2));
    let keys = server.keys();
    assert!(keys[0].is_some() && keys[0] == keys[1]);
    assert_eq!(next.metrics().taken_up, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operation_of_dead_process_needs_a_licence() {
    let steps = [FaultStep::stall(FaultPoint::AfterExecuting), FaultStep::ok()];
    let server = FaultServer::play(steps).await.ignoring_keys();
    let (store, client) = (store(), once_doubting(&server));
    let id = die_after_execution(&server, &store, &client);
    let next = outbox(&store, &client).start().await.unwrap();
    assert!(matches!(next.wait(id).await.unwrap(), End::Unknown(_)));
    assert_eq!((server.executions(), server.received().len()), (1, 1));
}

/// Submits without a worker, and waits until the next process holds the operation.
async fn held(server: &FaultServer, store: &Store) -> (Outbox<Store>, OperationId) {
    let first = outbox(store, &once(server)).start().await.unwrap();
    first.shutdown(Duration::from_secs(5)).await;
    let id = first.submit(charge(&once(server))).await.unwrap();
    let held = std::sync::Arc::new(Notify::new());
    let tell = held.clone();
    let builder = outbox(store, &once(server)).on_event(move |event| {
        if matches!(event.entry.state, State::Held { .. }) {
            tell.notify_one();
        }
    });
    let next = builder.start().await.unwrap();
    held.notified().await;
    (next, id)
}

#[tokio::test]
async fn refused_credentials_after_restart_hold_operation() {
    let server = FaultServer::play([FaultStep::answer(401), FaultStep::execute(201)]).await;
    let (next, id) = held(&server, &store()).await;
    let entry = next.get(id).await.unwrap().unwrap();
    assert!(matches!(&entry.state, State::Held { reason, .. } if reason.contains("401")), "{entry:?}");
    assert_eq!(server.received().len(), 1);

    next.release(id).await.unwrap();
    assert!(matches!(next.wait(id).await.unwrap(), End::Answer(_)));
    assert_eq!(server.executions(), 1);
}

#[tokio::test]
async fn principal_gets_its_own_credentials_or_waits() {
    let server = FaultServer::start(|_, _| FaultStep::execute(201)).await;
    let held = std::sync::Arc::new(Notify::new());
    let tell = held.clone();
    let tenant = one_attempt(&server).bearer_auth("of-tenant-7").build().unwrap();
    let nobody = one_attempt(&server).bearer_auth("of-nobody").build().unwrap();
    let builder = outbox(&store(), &nobody)
        .principals(move |name| (name == "tenant-7").then(|| tenant.clone()))
        .on_event(move |event| {
            if matches!(event.entry.state, State::Held { .. }) {
                tell.notify_one();
            }
        });
    let outbox = builder.start().await.unwrap();
    let known = outbox.submit(charge(&once(&server)).as_principal("tenant-7")).await.unwrap();
    outbox.wait(known).await.unwrap();
    assert_eq!(server.received()[0].header("authorization"), Some("Bearer of-tenant-7"));

    let missing = outbox.submit(charge(&once(&server)).as_principal("tenant-8")).await.unwrap();
    held.notified().await;
    assert_eq!(server.received().len(), 1);
    let entry = outbox.get(missing).await.unwrap().unwrap();
    assert!(matches!(&entry.state, State::Held { reason, .. } if reason.contains("`tenant-8`")), "{entry:?}");
}

#[tokio::test]
async fn credentials_that_cannot_be_had_hold_operation() {
    let server = FaultServer::start(|_, _| FaultStep::execute(201)).await;
    let held = std::sync::Arc::new(Notify::new());
    let tell = held.clone();
    let tokens = Refreshing::bearer(|_| async { Err::<Token, _>(std::io::Error::other("no login")) });
    let client = one_attempt(&server).credentials(tokens).build().unwrap();
    let builder = outbox(&store(), &client).on_event(move |event| {
        if matches!(event.entry.state, State::Held { .. }) {
            tell.notify_one();
        }
    });
    let outbox = builder.start().await.unwrap();
    outbox.submit(charge(&once(&server))).await.unwrap();
    held.notified().await;
    assert_eq!(server.received().len(), 0);
}
