//! Hedges over real sockets: what the server received, and how the journal records the dropped
//! attempt.

use std::time::Duration;

use steadfast::http::Method;
use steadfast::policy::{BreakerPolicy, BreakerState, Failure, HedgePolicy, RetryBudget, RetryPolicy, StopReason};
use steadfast::{Attempt, Client, ClientBuilder, EventKind, KeyPolicy, Reach, ResponseExt};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

use crate::support::{doubting, trusting};

const LATE: Duration = Duration::from_millis(20);

fn late() -> HedgePolicy {
    HedgePolicy::after(LATE).max_extra_load(1.0)
}

/// A response well after a hedge has been sent.
fn slow(status: u16) -> Answer {
    Answer::new(status).delay(Duration::from_millis(150))
}

fn hedging(server: &FaultServer) -> ClientBuilder {
    doubting(server).hedge(late())
}

/// Renders each attempt as a line.
fn lines(attempts: &[Attempt]) -> Vec<String> {
    let line = |attempt: &Attempt| {
        let what = attempt.status().map(|status| status.as_u16().to_string());
        let failure = attempt.failure().map(|failure| format!("{failure:?}"));
        format!("{} {:?} {}", attempt.number(), attempt.class(), what.or(failure).unwrap_or_default())
    };
    attempts.iter().map(line).collect()
}

#[tokio::test]
async fn late_attempt_is_hedged_first_response_wins() {
    let server = FaultServer::play([
        FaultStep::stall(FaultPoint::AfterExecuting),
        FaultStep::answer(Answer::new(200)),
        FaultStep::answer(Answer::new(200)),
    ])
    .await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let client = hedging(&server).attempt_header("x-attempt".parse().unwrap()).on_event(move |event| {
        if let EventKind::HedgeStarted { number, .. } = event.kind() {
            tell.send(number).unwrap();
        }
    });
    let client = client.build().unwrap();
    let response = client.get("/").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.stop_reason()), (200, Some(StopReason::Done)));
    assert_eq!(lines(response.attempts()), ["1 Ambiguous HedgeCancelled", "2 Success 200"]);
    let dropped = &response.attempts()[0];
    assert_eq!((dropped.reach(), dropped.failure()), (Reach::Sent, Some(Failure::HedgeCancelled)));
    assert!(dropped.elapsed() >= LATE, "{dropped}");
    assert_eq!(told.recv().await, Some(2));
    let numbers: Vec<_> =
        server.received().iter().map(|request| request.header("x-attempt").unwrap().to_owned()).collect();
    assert_eq!(numbers, ["1", "2"]);
    let patient = client.get("/").hedge(HedgePolicy::after(Duration::from_secs(9)));
    assert_eq!(patient.send().await.unwrap().attempts().len(), 1, "an answer in time is not hedged");
    assert_eq!(server.received().len(), 3);
}

#[tokio::test]
async fn only_safe_methods_are_hedged_by_default() {
    let refused: [fn(&Client) -> steadfast::RequestBuilder; 6] = [
        |client| client.post("/").body("x"),
        |client| client.put("/").body("x"),
        |client| client.delete("/"),
        |client| client.get("/").idempotent(false),
        |client| client.get("/").hedge(None),
        |client| client.get("/").retry(RetryPolicy::never()),
    ];
    for (number, request) in refused.iter().enumerate() {
        let server = FaultServer::play([FaultStep::answer(slow(200))]).await;
        let client = trusting(&server).hedge(late()).build().unwrap();
        request(&client).send().await.unwrap();
        assert_eq!(server.received().len(), 1, "request {number}");
    }
    for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, "QUERY".parse().unwrap()] {
        let server = FaultServer::play([FaultStep::answer(slow(200))]).await;
        let client = hedging(&server).build().unwrap();
        client.request(method.clone(), "/").send().await.unwrap();
        assert_eq!(server.received().len(), 2, "{method}");
    }
}

#[tokio::test]
async fn keyed_request_is_hedged_on_request() {
    let keys = KeyPolicy::standard().concurrent_duplicates_safe();
    let server =
        FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting), FaultStep::execute(Answer::new(201))]).await;
    let client = trusting(&server).keys(keys.clone()).build().unwrap();
    let response = client.post("/charges").body("x").hedge(late()).send().await.unwrap();
    assert_eq!((response.status().as_u16(), server.executions()), (201, 1));
    let keys_sent = server.keys();
    assert!(keys_sent.len() == 2 && keys_sent[0].is_some() && keys_sent[0] == keys_sent[1], "{keys_sent:?}");

    // With a negotiated policy the keys of this API are not trusted yet.
    let server = FaultServer::play([FaultStep::answer(slow(201))]).await;
    let client = doubting(&server).keys(keys.negotiated()).build().unwrap();
    client.post("/charges").body("x").hedge(late()).send().await.unwrap();
    assert_eq!(server.received().len(), 1);
    // A PUT races other writers, so it is hedged only on request.
    client.put("/charges/1").body("x").hedge(late()).send().await.unwrap();
    assert_eq!(server.received().len(), 3);
}

#[tokio::test]
async fn in_progress_response_waits_for_first_attempt() {
    let conflict = Answer::new(409).header("retry-after", "0");
    let server = FaultServer::play([FaultStep::execute(slow(201)), FaultStep::answer(conflict)]).await;
    let client = trusting(&server).keys(KeyPolicy::standard().concurrent_duplicates_safe()).build().unwrap();
    let response = client.post("/charges").body("x").hedge(late()).send().await.unwrap();
    assert_eq!((server.received().len(), server.executions()), (2, 1));
    assert_eq!(lines(response.attempts()), ["2 Permanent 409", "1 Success 201"]);
}

#[tokio::test]
async fn failed_attempt_waits_for_its_hedge() {
    for failed in [
        FaultStep::answer(Answer::new(503)),
        FaultStep::answer(Answer::new(429)),
        FaultStep::close(FaultPoint::AfterExecuting),
    ] {
        let name = format!("{failed:?}");
        let server = FaultServer::play([FaultStep::answer(slow(200)), failed]).await;
        let client = hedging(&server).build().unwrap();
        let response = client.get("/").send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.attempts().len()), (200, 2), "{name}");
        assert_eq!(server.received().len(), 2, "{name}: no retry was needed");
    }
}

#[tokio::test]
async fn both_hedge_failures_count_as_attempts() {
    let server = FaultServer::play([
        FaultStep::execute(slow(503)),
        FaultStep::answer(Answer::new(503)),
        FaultStep::answer(Answer::new(404)),
    ])
    .await;
    let client = hedging(&server).build().unwrap();
    let response = client.get("/").send().await.unwrap();
    assert_eq!(lines(response.attempts()), ["2 Ambiguous 503", "1 Ambiguous 503", "3 Permanent 404"]);
    assert_eq!(server.received().len(), 3);
    assert!(response.may_have_been_processed());
}

#[tokio::test]
async fn dropped_hedge_may_have_been_processed() {
    let keys = KeyPolicy::standard().concurrent_duplicates_safe();
    let server =
        FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting), FaultStep::answer(Answer::new(422))]).await;
    let client = trusting(&server).keys(keys).build().unwrap();
    let response = client.post("/charges").body("x").hedge(late()).send().await.unwrap();
    assert_eq!((response.status().as_u16(), server.executions()), (422, 1));
    assert!(response.may_have_been_processed(), "the 422 does not speak for the one that was dropped");
    let error = response.into_result().await.unwrap_err();
    assert!(error.may_have_been_processed() && error.resume_token().is_some(), "{error}");
    assert!(
        format!("{error:#}").contains("attempt 1: ambiguous, dropped, since the other attempt got a response first")
    );
}

#[tokio::test]
async fn hedges_and_retries_share_one_budget() {
    let server = FaultServer::play([FaultStep::answer(slow(200))]).await;
    let budget = RetryBudget::standard().capacity(28).first_try_refund(0);
    let client = hedging(&server).budget(budget).build().unwrap();
    for expected in [2, 2, 1, 1] {
        assert_eq!(client.get("/").send().await.unwrap().attempts().len(), expected);
    }
    assert_eq!(server.received().len(), 6, "two hedges at 14 tokens each, and their success brings nothing back");
}

#[tokio::test]
async fn hedge_load_limit_holds_if_all_are_late() {
    let server = FaultServer::play([FaultStep::answer(slow(200))]).await;
    let client = hedging(&server).hedge(HedgePolicy::after(LATE).max_extra_load(0.1)).build().unwrap();
    let mut operations = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let client = client.clone();
        operations.spawn(async move { client.get("/").send().await.unwrap().attempts().len() });
    }
    let attempts: usize = operations.join_all().await.into_iter().sum();
    assert_eq!((attempts, server.received().len()), (56, 56), "a tenth of fifty, and the one to begin with");
}

#[tokio::test]
async fn quantile_hedge_needs_a_hundred_responses() {
    let server = FaultServer::start(|turn, _| {
        FaultStep::answer(if [50, 100].contains(&turn) { slow(200) } else { Answer::new(200) })
    })
    .await;
    let client = doubting(&server).hedge(HedgePolicy::quantile(0.98)).build().unwrap();
    let mut attempts = Vec::new();
    for _ in 0..100 {
        attempts.push(client.get("/").send().await.unwrap().attempts().len());
    }
    assert_eq!(attempts, [1; 100], "the slow one among the first hundred is waited for");
    let response = client.get("/").send().await.unwrap();
    assert_eq!(lines(response.attempts()), ["1 Ambiguous HedgeCancelled", "2 Success 200"]);
    assert_eq!(server.received().len(), 102);
}

#[tokio::test]
async fn breaker_probe_is_not_hedged() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(503)), FaultStep::answer(slow(200))]).await;
    let policy = BreakerPolicy::new().min_calls(1).probes(2).open_for(Duration::from_millis(10));
    let client = hedging(&server).retry(fast_retries().max_attempts(2)).breaker(policy).build().unwrap();
    client.get("/").send().await.unwrap();
    while client.breaker_state("/") != Some(BreakerState::HalfOpen) {
        tokio::task::yield_now().await;
    }
    let response = client.get("/").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len()), (200, 1));
    assert_eq!(server.received().len(), 2);
}

#[tokio::test]
async fn one_shot_body_is_not_hedged() {
    let server = FaultServer::play([FaultStep::answer(slow(200))]).await;
    let client = doubting(&server).build().unwrap();
    let stream = || steadfast::reqwest::Body::wrap(steadfast::reqwest::Body::from("x"));
    client.put("/").body(stream()).hedge(late()).send().await.unwrap();
    assert_eq!(server.received().len(), 1);
    client.put("/").body_factory(stream).hedge(late()).send().await.unwrap();
    let bodies: Vec<_> = server.received().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, [b"x", b"x", b"x"]);
}
