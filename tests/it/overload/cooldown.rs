//! The cooldown over real sockets: one refusal delays all operations to the origin.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steadfast::policy::{RetryBudget, RetryPolicy, StopReason};
use steadfast::{Client, ClientBuilder, ErrorKind, EventKind, KeyPolicy, ResponseExt};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep};
use tokio::task::JoinSet;

use crate::support::clock;
use crate::support::doubting;

fn refused(milliseconds: u32) -> Answer {
    Answer::new(429).header("retry-after-ms", milliseconds.to_string())
}

/// A client with one attempt per operation, so every wait precedes a first attempt.
fn once(server: &FaultServer) -> ClientBuilder {
    doubting(server).retry(RetryPolicy::never())
}

/// Starts `number` operations at once.
fn start(client: &Client, number: usize) -> JoinSet<u16> {
    let mut operations = JoinSet::new();
    for _ in 0..number {
        let client = client.clone();
        operations.spawn(async move { client.get("/").send().await.unwrap().status().as_u16() });
    }
    operations
}

#[tokio::test]
async fn one_refusal_delays_all_and_one_probes() {
    for status in [429, 503] {
        let refused = Answer::new(status).header("retry-after-ms", "200");
        let slow = Answer::new(200).delay(Duration::from_millis(50));
        let server = Arc::new(
            FaultServer::play([
                FaultStep::answer(refused),
                FaultStep::answer(slow),
                FaultStep::answer(Answer::new(200)),
            ])
            .await,
        );
        let (ended, at_probe) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let (seen, counted) = (server.clone(), at_probe.clone());
        let client = once(&server).cooldown().on_event(move |event| {
            if let EventKind::AttemptEnded { .. } = event.kind()
                && ended.fetch_add(1, Ordering::Relaxed) == 1
            {
                counted.store(seen.received().len(), Ordering::Relaxed);
            }
        });
        let client = client.build().unwrap();
        let begun = clock::now();
        assert_eq!(client.get("/").send().await.unwrap().status(), status);
        let statuses = start(&client, 20).join_all().await;
        assert!(begun.elapsed() >= Duration::from_millis(200), "they waited: {:?}", begun.elapsed());
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
        assert_eq!(at_probe.load(Ordering::Relaxed), 2, "while the probe was out nothing else was sent");
        assert_eq!(server.received().len(), 21);
    }
}

#[tokio::test]
async fn without_cooldown_every_operation_is_refused() {
    let server = FaultServer::play([FaultStep::answer(refused(60_000))]).await;
    let client = once(&server).build().unwrap();
    assert_eq!(start(&client, 10).join_all().await, [429; 10]);
    assert_eq!(server.received().len(), 10);
}

#[tokio::test]
async fn deadline_before_cooldown_end_fails_at_once() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(503).header("retry-after", "7"))]).await;
    let client = once(&server).cooldown().timeout(Duration::from_secs(2)).build().unwrap();
    client.get("/").send().await.unwrap();
    let error = client.post("/charges").body("x").send().await.unwrap_err();
    assert_eq!(server.received().len(), 1);
    assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::NotAdmitted, Some(StopReason::RetryAfterTooLong)));
    assert!(!error.may_have_been_processed() && error.attempts().is_empty());
    assert!(error.elapsed() < Duration::from_secs(1), "{error}");
    assert!(error.retry_after().is_some_and(|wait| wait.as_secs() > 2), "{error}");
}

/// Unpaid waits would release all their requests at once onto a server that has just recovered.
#[tokio::test]
async fn cooldown_wait_takes_tokens_or_ends_operation() {
    let server = FaultServer::play([FaultStep::answer(refused(300)), FaultStep::answer(Answer::new(200))]).await;
    // Tokens for two waits of five.
    let budget = RetryBudget::standard().capacity(12);
    let client = once(&server).cooldown().budget(budget).build().unwrap();
    client.get("/").send().await.unwrap();
    let mut operations = JoinSet::new();
    for _ in 0..5 {
        let client = client.clone();
        operations.spawn(async move { client.post("/charges").body("x").send().await });
    }
    let mut waited = 0;
    for ended in operations.join_all().await {
        let Err(error) = ended else {
            waited += 1;
            continue;
        };
        assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::NotAdmitted, Some(StopReason::BudgetExhausted)));
        assert!(!error.may_have_been_processed() && error.attempts().is_empty());
        assert!(error.retry_after().is_some_and(|wait| wait <= Duration::from_millis(300)), "{error}");
        assert!(error.elapsed() < Duration::from_millis(200), "{error}");
    }
    assert_eq!((waited, server.received().len()), (2, 3));
}

#[tokio::test]
async fn cooldown_needs_hint_and_respects_cap() {
    let server = FaultServer::play([
        FaultStep::answer(Answer::new(503)),
        FaultStep::answer(Answer::new(429).header("retry-after", "86400")),
    ])
    .await;
    let client = once(&server).cooldown().build().unwrap();
    client.get("/").send().await.unwrap();
    client.get("/").send().await.unwrap();
    assert_eq!(server.received().len(), 2, "a 503 without a hint holds nobody back");
    let error = client.get("/").send().await.unwrap_err();
    assert!(error.retry_after().is_some_and(|wait| wait <= Duration::from_secs(60)), "{error}");
    assert_eq!(server.received().len(), 2);
}

#[tokio::test]
async fn refused_probe_restarts_cooldown() {
    let server = FaultServer::play([
        FaultStep::answer(refused(50)),
        FaultStep::answer(refused(300)),
        FaultStep::answer(Answer::new(200)),
    ])
    .await;
    let client = once(&server).cooldown().build().unwrap();
    let begun = clock::now();
    client.get("/").send().await.unwrap();
    let mut operations = start(&client, 5);
    let first = operations.join_next().await.unwrap().unwrap();
    assert_eq!((first, server.received().len()), (429, 2), "one of them found out for the others");
    assert_eq!(operations.join_all().await, [200; 4]);
    assert!(begun.elapsed() >= Duration::from_millis(350), "{:?}", begun.elapsed());
    assert_eq!(server.received().len(), 6);
}

#[tokio::test]
async fn dropped_cooldown_probe_frees_its_place() {
    let server = FaultServer::play([
        FaultStep::answer(refused(20)),
        FaultStep::stall(FaultPoint::AfterExecuting),
        FaultStep::answer(Answer::new(200)),
    ])
    .await;
    let client = once(&server).cooldown().build().unwrap();
    client.get("/").send().await.unwrap();
    let probe = start(&client, 1);
    while server.received().len() < 2 {
        tokio::task::yield_now().await;
    }
    let others = start(&client, 3);
    drop(probe);
    assert_eq!(others.join_all().await, [200; 3]);
}

#[tokio::test]
async fn deadline_during_probe_is_a_timeout() {
    let server =
        FaultServer::play([FaultStep::answer(refused(20)), FaultStep::stall(FaultPoint::AfterExecuting)]).await;
    let client = once(&server).cooldown().build().unwrap();
    client.get("/").send().await.unwrap();
    let probe = start(&client, 1);
    while server.received().len() < 2 {
        tokio::task::yield_now().await;
    }
    let error = client.get("/").timeout(Duration::from_millis(50)).send().await.unwrap_err();
    assert!(error.is_timeout() && !error.may_have_been_processed(), "{error}");
    assert_eq!(error.stop_reason(), Some(StopReason::DeadlineExceeded));
    assert_eq!(server.received().len(), 2);
    drop(probe);
}

#[tokio::test]
async fn retry_of_refused_operation_waits_too() {
    let server = FaultServer::play([FaultStep::answer(refused(100)), FaultStep::answer(Answer::new(200))]).await;
    let client = doubting(&server).cooldown().build().unwrap();
    let response = client.get("/").send().await.unwrap();
    assert_eq!((response.attempts().len(), server.received().len()), (2, 2));
    assert!(response.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn lanes_do_not_wait_for_each_other() {
    let server = FaultServer::start(|_, request| match request {
        Some(request) if request.target == "/slow-down" => FaultStep::answer(refused(60_000)),
        _ => FaultStep::answer(Answer::new(200)),
    })
    .await;
    let client = once(&server).cooldown_by(|request| request.url().path().to_owned());
    let client = client.timeout(Duration::from_secs(5)).build().unwrap();
    client.get("/slow-down").send().await.unwrap();
    assert_eq!(client.get("/").send().await.unwrap().status(), 200);
    assert!(client.get("/slow-down").send().await.is_err());
    assert_eq!(server.received().len(), 2);
}

#[tokio::test]
async fn lane_closure_sees_final_request() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(200))]).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seeing = seen.clone();
    let client =
        doubting(&server).keys(KeyPolicy::standard()).default_header("x-tenant", "7").cooldown_by(move |request| {
            let headers = request.headers();
            let shown = ["content-type", "idempotency-key", "x-tenant"].map(|name| headers.contains_key(name));
            seeing.lock().unwrap().push(shown);
            String::new()
        });
    client.build().unwrap().post("/").json(&1).send().await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [[true; 3]]);
    assert_eq!(server.received()[0].header("x-tenant"), Some("7"));
}

/// The probe is slow. The other operations wait for it, and then for a random part of their
/// remaining spread.
#[tokio::test]
async fn wait_for_probe_ends_before_deadline() {
    let slow = Answer::new(200).delay(Duration::from_millis(800));
    let server =
        FaultServer::play([FaultStep::answer(refused(600)), FaultStep::answer(slow), FaultStep::execute(200)]).await;
    let client = once(&server).cooldown().build().unwrap();
    client.get("/").send().await.unwrap();
    // The probe starts after 600 ms and gets its response 800 ms later. That leaves 50 ms, of a
    // spread of 600 ms.
    let time = Duration::from_millis(1450);
    let mut operations = JoinSet::new();
    for number in 0..20 {
        let client = client.clone();
        operations.spawn(async move {
            let begun = clock::now();
            let time = if number == 0 { Duration::from_secs(5) } else { time };
            let _either = client.get("/").timeout(time).send().await;
            begun.elapsed().saturating_sub(time)
        });
    }
    let late = operations.join_all().await.into_iter().max().unwrap();
    assert!(late < Duration::from_millis(300), "{late:?} after the deadline");
}
