//! The circuit breaker over real sockets.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use steadfast::policy::{Backoff, BreakerPolicy, BreakerState, Class, RetryPolicy, StopReason};
use steadfast::{Client, ClientBuilder, ErrorKind, EventKind, ResponseExt};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

use crate::support::{doubting, trusting};

const MINUTE: Duration = Duration::from_secs(60);

/// Opens at the second call if both failed.
fn quick() -> BreakerPolicy {
    BreakerPolicy::new().min_calls(2).open_for(MINUTE).open_jitter(0.0).probes(1)
}

/// A client with one attempt per operation.
fn once(server: &FaultServer, policy: BreakerPolicy) -> ClientBuilder {
    doubting(server).retry(RetryPolicy::never()).breaker(policy)
}

/// Waits until the circuit admits a probe.
async fn half_open(client: &Client) {
    while client.breaker_state("/") != Some(BreakerState::HalfOpen) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn open_circuit_sends_nothing_and_gives_wait() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(503))]).await;
    let client = once(&server, quick()).build().unwrap();
    for _ in 0..2 {
        client.get("/").send().await.unwrap();
    }
    let error = client.post("/charges").body("x").send().await.unwrap_err();
    assert_eq!(server.received().len(), 2, "the third was not sent");
    assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::NotAdmitted, Some(StopReason::CircuitOpen)));
    assert!(!error.may_have_been_processed() && error.attempts().is_empty());
    assert!(error.retry_after().is_some_and(|wait| wait <= MINUTE && wait > MINUTE / 2), "{error}");
    assert!(error.resume_token().is_some(), "its key can be used when the origin is back");
    let text = error.to_string();
    assert!(text.contains("held back before the first attempt (circuit open; not processed; key "), "{text}");
    assert!(text.contains("; retry after "), "{text}");
    assert!(matches!(client.breaker_state("/"), Some(BreakerState::Open { .. })));

    let well = FaultServer::play([FaultStep::answer(Answer::new(200))]).await;
    assert_eq!(client.breaker_state(well.url("/")), Some(BreakerState::Closed));
    client.get(well.url("/")).send().await.unwrap();
    assert_eq!(well.received().len(), 1, "another origin has a circuit of its own");
}

#[tokio::test]
async fn deliberate_responses_keep_circuit_closed() {
    for status in [400, 404, 409, 429, 501] {
        let server = FaultServer::play([FaultStep::answer(Answer::new(status))]).await;
        let client = once(&server, quick()).build().unwrap();
        for _ in 0..10 {
            client.get("/").send().await.unwrap();
        }
        assert_eq!(client.breaker_state("/"), Some(BreakerState::Closed), "{status}");
        assert_eq!(server.received().len(), 10);
    }
}

#[tokio::test]
async fn classifier_decides_what_opens_circuit() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(404))]).await;
    let client = once(&server, quick()).classify(|_| Class::Ambiguous).build().unwrap();
    for _ in 0..2 {
        client.get("/").send().await.unwrap();
    }
    assert!(client.get("/").send().await.is_err());
    assert_eq!(server.received().len(), 2);
}

#[tokio::test]
async fn opening_circuit_ends_its_operation() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(503))]).await;
    let client = doubting(&server).retry(fast_retries().max_attempts(5)).breaker(quick()).build().unwrap();
    let response = client.get("/").send().await.unwrap();
    assert_eq!((server.received().len(), response.attempts().len()), (2, 2));
    assert_eq!(response.stop_reason(), Some(StopReason::CircuitOpen));
    assert_eq!(response.retry_after(), Some(MINUTE));
}

#[tokio::test]
async fn circuits_of_clients_open_for_different_times() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(503))]).await;
    let policy = BreakerPolicy::new().min_calls(1).open_for(MINUTE).open_jitter(0.5);
    let mut times = Vec::new();
    for _ in 0..8 {
        let client = once(&server, policy.clone()).build().unwrap();
        client.get("/").send().await.unwrap();
        let Some(BreakerState::Open { retry_after, .. }) = client.breaker_state("/") else { panic!("not open") };
        times.push(retry_after.as_secs());
    }
    assert!(times.iter().all(|time| (29..=60).contains(time)), "{times:?}");
    times.sort_unstable();
    // Within a second of each other, with fixed times.
    assert!(times.last() > times.first().map(|first| first + 2).as_ref(), "{times:?}");
}

#[tokio::test]
async fn retry_denied_by_circuit_keeps_evidence() {
    let server = FaultServer::play([FaultStep::execute(Answer::new(503)), FaultStep::answer(Answer::new(503))]).await;
    let wait = Backoff::fixed(Duration::from_millis(500)).jitter(steadfast::policy::Jitter::None);
    let client = trusting(&server).retry(RetryPolicy::new().backoff(wait)).breaker(quick().min_calls(3));
    let (tell, mut scheduled) = tokio::sync::mpsc::unbounded_channel();
    let client = client.on_event(move |event| {
        if let EventKind::RetryScheduled { .. } = event.kind() {
            tell.send(()).unwrap();
        }
    });
    let client = client.build().unwrap();
    let charge = async { client.post("/charges").body("x").send().await.unwrap_err() };
    // While the charge waits for its second attempt, two others open the circuit.
    let others = async {
        scheduled.recv().await.unwrap();
        for _ in 0..2 {
            client.get("/").retry(RetryPolicy::never()).send().await.unwrap();
        }
    };
    let (error, ()) = tokio::join!(charge, others);
    assert_eq!((server.received().len(), server.executions()), (3, 1));
    assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::NotAdmitted, Some(StopReason::CircuitOpen)));
    assert!(error.may_have_been_processed() && error.resume_token().is_some(), "{error}");
    assert_eq!(error.attempts().len(), 1);
}

#[tokio::test]
async fn circuit_closes_after_probes_with_events() {
    let well = Answer::new(200).delay(Duration::from_millis(20));
    let server = FaultServer::play([
        FaultStep::answer(Answer::new(503)),
        FaultStep::answer(Answer::new(503)),
        FaultStep::answer(well),
    ])
    .await;
    let states = Arc::new(Mutex::new(Vec::new()));
    let log = states.clone();
    let client = once(&server, quick().open_for(Duration::from_millis(30))).on_event(move |event| {
        if let EventKind::BreakerChanged { state, .. } = event.kind() {
            log.lock().unwrap().push(state.as_str());
        }
    });
    let client = client.build().unwrap();
    for _ in 0..2 {
        client.get("/").send().await.unwrap();
    }
    half_open(&client).await;
    let (probe, other) = tokio::join!(client.get("/").send(), client.get("/").send());
    assert_eq!(probe.unwrap().status(), 200);
    assert_eq!(other.unwrap_err().stop_reason(), Some(StopReason::CircuitOpen), "one probe at a time");
    assert_eq!(server.received().len(), 3);
    assert_eq!(client.breaker_state("/"), Some(BreakerState::Closed));
    client.get("/").send().await.unwrap();
    assert_eq!(*states.lock().unwrap(), ["open", "half-open", "closed"]);
}

#[tokio::test]
async fn dropped_breaker_probe_frees_its_place() {
    let server = FaultServer::play([
        FaultStep::answer(Answer::new(503)),
        FaultStep::answer(Answer::new(503)),
        FaultStep::stall(FaultPoint::AfterExecuting),
    ])
    .await;
    let client = once(&server, quick().open_for(Duration::from_millis(10))).build().unwrap();
    for _ in 0..2 {
        client.get("/").send().await.unwrap();
    }
    half_open(&client).await;
    for _ in 0..3 {
        let mut probe = Box::pin(client.get("/").send());
        let stalls = std::future::poll_fn(|cx| std::task::Poll::Ready(probe.as_mut().poll(cx).is_pending())).await;
        assert!(stalls, "it was let through");
        assert!(client.get("/").send().await.is_err(), "and no other with it");
    }
}

#[tokio::test]
async fn slow_responses_open_circuit_if_configured() {
    let slow = Answer::new(200).delay(Duration::from_millis(30));
    let server = FaultServer::play([FaultStep::answer(slow)]).await;
    let policy = quick().slow_calls(Duration::from_millis(20), 1.0);
    let client = once(&server, policy).build().unwrap();
    for _ in 0..2 {
        client.get("/").send().await.unwrap();
    }
    assert!(client.get("/").send().await.is_err());
    assert_eq!(server.received().len(), 2);
}
#[tokio::test]
async fn request_body_failure_keeps_circuit_closed() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(200))]).await;
    let client = once(&server, quick()).build().unwrap();
    for _ in 0..4 {
        let error = client.put("/").file("/there/is/no/such/file").send().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RequestBody, "{error}");
    }
    assert_eq!(client.breaker_state("/"), Some(BreakerState::Closed));
}
