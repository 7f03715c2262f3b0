//! Operations whose caller is gone: dropped at every point, detached from their caller, or prepared
//! by a process that did not live to send them.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use steadfast::policy::{Backoff, HedgePolicy, RetryPolicy};
use steadfast::{
    Client, ClientBuilder, Deadline, ErrorKind, EventKind, KeyPolicy, RequestBuilder, ResumeToken, with_deadline,
};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, assert_one_key};

use crate::support::{doubting, trusting};

/// What the event of a dropped operation said.
#[derive(Clone, Debug)]
struct Dropped {
    attempts: u32,
    may_have_been_processed: bool,
    token: Option<ResumeToken>,
}

/// Collects the events of dropped operations, and counts those that ended.
#[derive(Clone, Default)]
struct Watch(Arc<Mutex<(Vec<Dropped>, usize)>>);

impl Watch {
    fn on(&self, builder: ClientBuilder) -> Client {
        let seen = self.0.clone();
        let builder = builder.on_event(move |event| match event.kind() {
            EventKind::OperationDropped { attempts, may_have_been_processed, resume_token, .. } => {
                let token = resume_token.cloned();
                seen.lock().unwrap().0.push(Dropped { attempts, may_have_been_processed, token });
            }
            EventKind::OperationEnded { .. } => seen.lock().unwrap().1 += 1,
            _ => {}
        });
        builder.build().unwrap()
    }

    fn seen(&self) -> (Vec<Dropped>, usize) {
        self.0.lock().unwrap().clone()
    }
}

/// Polls `future` up to `polls` times, whenever it wakes, and then drops it. Returns whether it has
/// ended.
async fn poll_at_most(future: impl Future, polls: usize) -> bool {
    let mut future = Box::pin(future);
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        future.as_mut().poll(cx).map(|_| true)
    })
    .await
}

/// Polls `future` once and drops it, although it waits.
fn poll_once(future: impl Future) {
    let mut future = Box::pin(future);
    assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

/// Drops the operation of `request` at its first poll, at its second, and so on until it completes.
/// Each round has a client and a body of its own. The event must come in every round but the first,
/// and must not promise more than the server has counted. Returns the events.
async fn drop_everywhere(
    server: &FaultServer,
    builder: impl Fn() -> ClientBuilder,
    request: impl Fn(&Client, String) -> RequestBuilder,
) -> Vec<Dropped> {
    let mut all = Vec::new();
    for polls in 0.. {
        let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let (watch, body) = (Watch::default(), format!("{polls:0>2000}"));
        let client = watch.on(builder());
        let finished = poll_at_most(request(&client, body.clone()).send(), polls).await;
        drop(client);
        // The tasks of the server end with the connections, and those with the client.
        let gone = async {
            while tokio::runtime::Handle::current().metrics().num_alive_tasks() > before {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("a task stayed behind");

        let (dropped, ended) = watch.seen();
        if finished {
            assert_eq!((dropped.len(), ended), (0, 1), "{dropped:?}");
            return all;
        }
        assert_eq!((dropped.len(), ended), (usize::from(polls > 0), 0), "after {polls} polls: {dropped:?}");
        let executions = executions_of(server, &body);
        let may = dropped.iter().any(|dropped| dropped.may_have_been_processed);
        assert!(may || executions == 0, "after {polls} polls: {executions} executions, {dropped:?}");
        all.extend(dropped);
    }
    unreachable!("it ends some time")
}

/// Counts the executions of a round. An upload has the round's body many times over.
fn executions_of(server: &FaultServer, body: &str) -> usize {
    let of_round = |sent: &[u8]| sent.starts_with(body.as_bytes());
    server.executions_by_body().iter().filter(|(sent, _)| of_round(sent)).map(|(_, times)| times).sum()
}

fn waiting() -> RetryPolicy {
    RetryPolicy::new().max_attempts(3).backoff(Backoff::fixed(Duration::from_millis(3)))
}

#[tokio::test]
async fn dropped_operation_is_told_at_every_poll() {
    let keyed = || Client::builder().retry(waiting()).keys(KeyPolicy::standard());
    let lost = FaultServer::start(|_, _| FaultStep::close(FaultPoint::AfterExecuting)).await;
    let told = drop_everywhere(&lost, keyed, |client, body| client.post(lost.url("/charges")).body(body)).await;
    assert!(told.len() > 4 && told.iter().any(|dropped| dropped.attempts == 3), "{told:?}");
    assert!(told.iter().all(|dropped| dropped.token.is_some() && dropped.may_have_been_processed));

    // The server refuses before it acts. So while the operation waits, nothing was processed.
    let throttled = FaultServer::start(|_, _| FaultStep::answer(429)).await;
    let told =
        drop_everywhere(&throttled, keyed, |client, body| client.post(throttled.url("/charges")).body(body)).await;
    assert!(told.iter().any(|dropped| dropped.attempts > 0 && !dropped.may_have_been_processed), "{told:?}");

    let moved = FaultServer::start(|_, request| {
        let is_moved = request.is_some_and(|request| request.target == "/charges");
        let away = Answer::new(307).header("location", "/moved");
        if is_moved { FaultStep::answer(away) } else { FaultStep::execute(503) }
    })
    .await;
    let told = drop_everywhere(&moved, keyed, |client, body| client.post(moved.url("/charges")).body(body)).await;
    assert!(told.len() > 6, "{told:?}");
}

#[tokio::test]
async fn dropped_hedge_is_told_at_every_poll() {
    let late = FaultServer::start(|_, _| FaultStep::execute(Answer::new(200).delay(Duration::from_millis(10)))).await;
    let policy = HedgePolicy::after(Duration::from_millis(2)).max_extra_load(1.0);
    let builder = || Client::builder().retry(waiting());
    let told = drop_everywhere(&late, builder, |client, body| {
        client.post(late.url("/")).body(body).idempotent(true).hedge(policy)
    })
    .await;
    assert!(told.iter().any(|dropped| dropped.attempts == 2), "{told:?}");
}

#[tokio::test]
async fn dropped_upload_is_told_at_every_poll() {
    let server = FaultServer::start(|_, _| FaultStep::execute(201)).await;
    let builder = || Client::builder().retry(waiting());
    let told = drop_everywhere(&server, builder, |client, body| {
        client.post(server.url("/upload")).body_factory(move || body.repeat(200))
    })
    .await;
    assert!(!told.is_empty() && server.received().iter().any(|request| request.body.len() == 400_000));
}

#[tokio::test]
async fn operation_dropped_in_cooldown_was_not_processed() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(429).retry_after(3))]).await;
    let watch = Watch::default();
    let client = watch.on(trusting(&server).cooldown().retry(RetryPolicy::new().max_attempts(1)));
    client.post("/charges").body("first").send().await.unwrap();
    poll_once(client.post("/charges").body("second").send());
    let (dropped, _) = watch.seen();
    assert_eq!((dropped[0].attempts, dropped[0].may_have_been_processed), (0, false), "{dropped:?}");
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn panicking_hook_does_not_break_the_drop() {
    let server = FaultServer::start(|_, _| FaultStep::stall(FaultPoint::AfterExecuting)).await;
    let builder = trusting(&server).on_event(|event| {
        assert!(!matches!(event.kind(), EventKind::OperationDropped { .. }), "the hook dies on purpose");
    });
    let client = builder.build().unwrap();
    poll_once(client.post("/charges").body("x").send());
}

#[tokio::test]
async fn prepared_operation_is_sent_under_its_stored_key() {
    let server = FaultServer::play([FaultStep::execute(503), FaultStep::execute(201)]).await;
    let client = trusting(&server).build().unwrap();
    let charge = client.post("/charges").body("12 EUR").prepare().unwrap();
    let key = charge.resume_token().unwrap().key().unwrap();
    assert_eq!(server.received().len(), 0, "nothing is sent by preparing");
    charge.send().await.unwrap();
    assert_one_key(&server).await;
    assert_eq!(server.keys()[0].as_deref(), Some(key.as_str()));
}

#[tokio::test]
async fn prepared_operation_keeps_its_terms() {
    let server = FaultServer::start(|_, _| FaultStep::answer(503)).await;
    let client = trusting(&server).build().unwrap();
    let charge = client.post("/charges").body("x").retry(RetryPolicy::never()).prepare().unwrap();
    assert_eq!((charge.send().await.unwrap().status().as_u16(), server.received().len()), (503, 1));
    let own = client.post("/charges").header("idempotency-key", "order-7").prepare().unwrap();
    assert_eq!(own.resume_token().unwrap().key().unwrap().as_str(), "order-7");
    own.send().await.unwrap();
    assert_eq!(server.keys()[1].as_deref(), Some("order-7"));
    assert!(client.get("/charges").prepare().unwrap().resume_token().is_none());
    let error = client.post("/charges").header("idempotency-key", " ").prepare().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Build, "{error}");
}

/// The token says that the operation may have been processed, and here it was.
#[tokio::test]
async fn token_of_a_dead_process_needs_the_licence() {
    let server = FaultServer::start(|_, _| FaultStep::close(FaultPoint::AfterExecuting)).await.ignoring_keys();
    let client = doubting(&server).build().unwrap();
    let charge = client.post("/charges").body("12 EUR").prepare().unwrap();
    let stored = serde_json::to_string(&charge.resume_token()).unwrap();
    charge.send().await.unwrap_err();
    assert_eq!(server.executions(), 1);

    let next = doubting(&server).build().unwrap();
    let token: ResumeToken = serde_json::from_str(&stored).unwrap();
    let error = next.post("/charges").body("12 EUR").resume(token).send().await.unwrap_err();
    assert_eq!((server.executions(), error.kind()), (1, ErrorKind::KeyExpired), "{error}");
    assert!(error.may_have_been_processed() && error.resume_token().is_some(), "{error}");
}

#[tokio::test]
async fn detached_operation_outlives_its_caller() {
    let server = FaultServer::play([FaultStep::execute(503), FaultStep::execute(201)]).await;
    let watch = Watch::default();
    let client = watch.on(trusting(&server));
    let charge = client.post("/charges").body("x").detached();
    poll_once(charge.send());
    assert_eq!(client.drain(Duration::from_secs(10)).await, 0);
    assert_eq!((server.executions_by_key().len(), server.received().len()), (1, 2));
    let (dropped, ended) = watch.seen();
    assert_eq!((dropped.len(), ended), (0, 1));
}

#[tokio::test]
async fn detached_operation_returns_what_it_fetched() {
    let server = FaultServer::play([FaultStep::execute(Answer::new(200).body(r#"{"id":7}"#))]).await;
    let client = trusting(&server).build().unwrap();
    let charge = || client.post("/charges").body("x").detached();
    let charged: serde_json::Value = charge().fetch().await.unwrap();
    assert_eq!(charged["id"], 7);
    assert_eq!(charge().fetch_text().await.unwrap(), r#"{"id":7}"#);
    assert_eq!(client.drain(Duration::ZERO).await, 0);
}

#[tokio::test]
async fn detached_operation_without_an_end_is_refused() {
    let server = FaultServer::play([FaultStep::execute(201)]).await;
    let client = trusting(&server).build().unwrap();
    let endless = || client.post("/charges").body("x").timeout(None).detached();
    let error = endless().send().await.unwrap_err();
    assert!(error.is_build() && error.to_string().contains("/charges: detached: "), "{error}");
    assert_eq!(server.received().len(), 0);
    // The deadline of the caller's task ends it, and goes with it.
    with_deadline(Deadline::from(Duration::from_secs(20)), endless().send()).await.unwrap();
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn drain_counts_what_still_runs() {
    let server = FaultServer::start(|_, _| FaultStep::stall(FaultPoint::AfterExecuting)).await;
    let client = trusting(&server).build().unwrap();
    poll_once(client.post("/charges").body("x").detached().send());
    assert_eq!(client.clone().drain(Duration::from_millis(1)).await, 1);
}
