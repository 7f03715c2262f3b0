//! The workers: how many there are, when they stop, and what they do with a lease that is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use steadfast_core::clock;
use steadfast_outbox::rules::NewEntry;
use steadfast_outbox::{
    Applied, Change, DurableExt, End, Entry, MemoryOutbox, OperationId, Outbox, OutboxError, OutboxStore,
    OutboxStoreError, Refusal, State, Submitted, Terms, Usage,
};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep};

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

/// A store whose marks take their time.
struct Slow {
    store: MemoryOutbox,
    mark: Duration,
}

impl OutboxStore for Slow {
    const IS_SHARED: bool = true;

    async fn submit(&self, new: NewEntry, _: Option<Terms>) -> Result<Submitted, OutboxStoreError> {
        // Never claimed with the submission, so that each attempt has a mark of its own.
        self.store.submit(new, None).await
    }

    async fn apply(&self, id: OperationId, change: Change) -> Result<Applied, OutboxStoreError> {
        let applied = self.store.apply(id, change.clone()).await;
        if matches!(change, Change::Mark { .. }) {
            clock::sleep(self.mark).await;
        }
        applied
    }

    async fn claim_due(&self, terms: Terms, limit: usize, except: Vec<String>) -> Result<Vec<Entry>, OutboxStoreError> {
        let claimed = self.store.claim_due(terms, limit, except).await;
        clock::sleep(self.mark).await;
        claimed
    }

    async fn next_due(&self, except: Vec<String>) -> Result<Option<Duration>, OutboxStoreError> {
        self.store.next_due(except).await
    }

    async fn get(&self, id: OperationId) -> Result<Option<Entry>, OutboxStoreError> {
        self.store.get(id).await
    }

    async fn find(&self, name: &str) -> Result<Option<Entry>, OutboxStoreError> {
        self.store.find(name).await
    }

    async fn list(&self, after: Option<OperationId>, limit: usize) -> Result<Vec<Entry>, OutboxStoreError> {
        self.store.list(after, limit).await
    }

    async fn usage(&self) -> Result<Usage, OutboxStoreError> {
        self.store.usage().await
    }

    async fn sweep(&self, limit: usize) -> Result<usize, OutboxStoreError> {
        self.store.sweep(limit).await
    }
}

/// A process that was stopped between its claim and its attempt must not send.
#[tokio::test]
async fn nothing_is_sent_when_the_lease_is_over() {
    let server = FaultServer::start(|_, _| FaultStep::execute(201)).await;
    let client = one_attempt(&server).attempt_timeout(Duration::from_millis(100)).build().unwrap();
    let store = Arc::new(Slow { store: MemoryOutbox::new(), mark: Duration::from_millis(250) });
    let rounds = Arc::new(tokio::sync::Semaphore::new(0));
    let seen = rounds.clone();
    let builder = Outbox::open(store, client.clone())
        .lease(Duration::from_millis(200))
        .backoff(Duration::from_millis(5), Duration::from_millis(20))
        .poll_interval(Duration::from_millis(20))
        .on_event(move |event| {
            if event.entry.last_error.as_deref().is_some_and(|error| error.contains("lease was over")) {
                seen.add_permits(1);
            }
        });
    let outbox = builder.start().await.unwrap();
    outbox.submit(charge(&client)).await.unwrap();
    rounds.acquire_many(2).await.unwrap().forget();
    assert_eq!(server.received().len(), 0);
}
