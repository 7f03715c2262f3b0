//! The workers: how many there are, when they stop, and what they do with a lease that is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use steadfast_core::clock;
use steadfast_outbox::{DurableExt, End, MemoryOutbox, Outbox, OutboxError, OutboxEventKind, Refusal, State};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep};

use super::around::{Around, Writes};
use super::{charge, once, one_attempt, outbox, store};

#[tokio::test]
async fn workers_of_an_origin_are_bounded() {
    let server = FaultServer::start(|_, _| FaultStep::execute(Answer::new(201).delay(Duration::from_millis(10)))).await;
    let running = Arc::new(AtomicUsize::new(0));
    let (most, now) = (Arc::new(AtomicUsize::new(0)), running.clone());
    let peak = most.clone();
    // Counted where the requests are made: at the server they overlap by the width of the network.
    let client = one_attempt(&server).on_event(move |event| match event.kind() {
        steadfast::EventKind::AttemptStarted { .. } => {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        }
        steadfast::EventKind::OperationEnded { .. } => {
            now.fetch_sub(1, Ordering::SeqCst);
        }
        _ => {}
    });
    let client = client.build().unwrap();
    let outbox = outbox(&store(), &client).workers(10, 3).start().await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..40 {
        ids.push(outbox.submit(charge(&client)).await.unwrap());
    }
    for id in ids {
        assert!(matches!(outbox.wait(id).await.unwrap(), End::Answer(_)));
    }
    assert_eq!((most.load(Ordering::SeqCst), server.executions()), (3, 40));
}

#[tokio::test]
async fn what_was_not_sent_can_be_cancelled() {
    let server = FaultServer::start(|_, _| FaultStep::stall(FaultPoint::BeforeExecuting)).await;
    let client = once(&server);
    let outbox = outbox(&store(), &client).workers(1, 1).start().await.unwrap();
    let sent = outbox.submit(charge(&client)).await.unwrap();
    let waiting = outbox.submit(charge(&client).named("waits")).await.unwrap();
    outbox.cancel(waiting).await.unwrap();
    let End::Rejected(failed) = outbox.wait(waiting).await.unwrap() else { panic!("not rejected") };
    assert!(failed.message.contains("cancelled"), "{failed}");
    let error = outbox.cancel(sent).await.unwrap_err();
    assert!(matches!(error, OutboxError::Refused(Refusal::WasSent)), "{error}");
    let error = outbox.acknowledge(sent).await.unwrap_err();
    assert!(matches!(error, OutboxError::Refused(Refusal::NotEnded)), "{error}");
}

#[tokio::test]
async fn what_was_never_sent_expires() {
    let server = FaultServer::start(|_, _| FaultStep::execute(201)).await;
    let client = once(&server);
    let store = store();
    let stopped = outbox(&store, &client).start().await.unwrap();
    stopped.shutdown(Duration::from_secs(5)).await;
    let id = stopped.submit(charge(&client).expires_in(Duration::ZERO)).await.unwrap();
    let next = outbox(&store, &client).start().await.unwrap();
    let End::Rejected(failed) = next.wait(id).await.unwrap() else { panic!("not rejected") };
    assert!(failed.message.contains("expired") && server.received().is_empty(), "{failed}");
}

#[tokio::test]
async fn shutdown_waits_and_leaves_the_rest() {
    let server = FaultServer::start(|_, _| FaultStep::execute(Answer::new(201).delay(Duration::from_millis(50)))).await;
    let client = once(&server);
    let outbox = outbox(&store(), &client).workers(1, 1).start().await.unwrap();
    let under_way = outbox.submit(charge(&client)).await.unwrap();
    let rest = outbox.submit(charge(&client)).await.unwrap();
    assert_eq!(outbox.shutdown(Duration::from_secs(30)).await, 0);
    assert!(outbox.get(under_way).await.unwrap().unwrap().end().is_some());
    let entry = outbox.get(rest).await.unwrap().unwrap();
    assert!(matches!(entry.state, State::Waiting { .. }) && entry.is_unsent(), "{entry:?}");
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn lease_shorter_than_an_attempt_is_refused() {
    let server = FaultServer::start(|_, _| FaultStep::execute(201)).await;
    let client = one_attempt(&server).attempt_timeout(Duration::from_secs(1)).build().unwrap();
    let error = outbox(&store(), &client).lease(Duration::from_secs(1)).start().await.unwrap_err();
    assert!(error.to_string().contains("attempt timeout of 1s"), "{error}");
}

/// Makes writes take longer than a lease, once they are on the disk.
struct Slow;

impl Writes for Slow {
    async fn after(&self) {
        clock::sleep(Duration::from_millis(250)).await;
    }
}

/// A process that was stopped between its claim and its attempt must not send.
#[tokio::test]
async fn nothing_is_sent_when_the_lease_is_over() {
    let server = FaultServer::start(|_, _| FaultStep::execute(201)).await;
    let client = one_attempt(&server).attempt_timeout(Duration::from_millis(100)).build().unwrap();
    let store = Around { store: Arc::new(MemoryOutbox::new()), writes: Slow };
    let rounds = Arc::new(tokio::sync::Semaphore::new(0));
    let seen = rounds.clone();
    let builder = Outbox::open(store, client.clone())
        .lease(Duration::from_millis(200))
        .backoff(Duration::from_millis(5), Duration::from_millis(20))
        .poll_interval(Duration::from_millis(20))
        .on_event(move |event| {
            // The lease is over, or somebody has taken over because of that.
            if matches!(event.kind, OutboxEventKind::Postponed { .. } | OutboxEventKind::Fenced) {
                seen.add_permits(1);
            }
        });
    let outbox = builder.start().await.unwrap();
    outbox.submit(charge(&client)).await.unwrap();
    rounds.acquire_many(3).await.unwrap().forget();
    assert_eq!(server.received().len(), 0);
}

/// The redirects of an attempt belong to its mark.
#[tokio::test]
async fn redirect_is_sent_under_the_mark_of_its_attempt() {
    let server = FaultServer::start(|_, request| match request {
        Some(request) if request.target == "/charges" => {
            FaultStep::answer(Answer::new(307).header("location", "/v2/charges"))
        }
        _ => FaultStep::execute(201),
    })
    .await;
    let client = once(&server);
    let outbox = outbox(&store(), &client).start().await.unwrap();
    let id = outbox.submit(charge(&client)).await.unwrap();
    assert!(matches!(outbox.wait(id).await.unwrap(), End::Answer(_)));
    let targets: Vec<_> = server.received().iter().map(|request| request.target.clone()).collect();
    assert_eq!((targets, server.executions()), (vec!["/charges".to_owned(), "/v2/charges".to_owned()], 1));
    assert_eq!(outbox.get(id).await.unwrap().unwrap().attempts, 1);
}

#[tokio::test]
async fn panic_of_a_closure_ends_no_worker() {
    let server = FaultServer::start(|_, _| FaultStep::execute(201)).await;
    let client = once(&server);
    let builder = outbox(&store(), &client).on_event(|_| panic!("the listener has failed"));
    let outbox = builder.principals(|_| panic!("the resolver has failed")).start().await.unwrap();
    let id = outbox.submit(charge(&client)).await.unwrap();
    assert!(matches!(outbox.wait(id).await.unwrap(), End::Answer(_)));
    let held = outbox.submit(charge(&client).as_principal("tenant-7")).await.unwrap();
    while outbox.metrics().held == 0 {
        tokio::task::yield_now().await;
    }
    let state = outbox.get(held).await.unwrap().unwrap().state;
    assert!(matches!(state, State::Held { .. }) && server.received().len() == 1, "{state:?}");
}
