//! The licence to repeat an ambiguous attempt, and what can end it during an operation. The API may
//! stop honouring keys, forget this key, or read its spelling as another key.

use std::time::Duration;

use steadfast::policy::{HedgePolicy, RetryPolicy, StopReason};
use steadfast::{Client, ErrorKind, EventKind, IdempotencyKey, KeyFormat, KeyPolicy, ResponseExt, ResumeToken};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::support::{doubting, trusting};

fn bodies(server: &FaultServer) -> Vec<String> {
    server.received().iter().map(|request| String::from_utf8(request.body.clone()).unwrap()).collect()
}

/// A negotiating client, and a channel that reports the beginning of each wait for a retry.
fn watched(server: &FaultServer) -> (Client, UnboundedReceiver<()>) {
    let (tell, told) = unbounded_channel();
    let client = doubting(server).retry(fast_retries().max_attempts(4)).on_event(move |event| {
        if matches!(event.kind(), EventKind::RetryScheduled { .. }) {
            tell.send(()).unwrap();
        }
    });
    (client.build().unwrap(), told)
}

/// A response that shows that keys are honoured.
fn honours() -> FaultStep {
    FaultStep::execute(Answer::new(200).header("idempotent-replayed", "false"))
}

#[tokio::test]
async fn trust_lost_while_waiting_stops_retry() {
    let unsure = Answer::new(503).header("retry-after-ms", "1500");
    let server = FaultServer::play([honours(), FaultStep::execute(unsure), FaultStep::execute(200)]).await;
    let (client, mut waits) = watched(&server);
    client.post("/charges").body("first").send().await.unwrap();
    let (one, other) = (client.post("/charges").body("A").send(), async {
        waits.recv().await.unwrap();
        client.post("/charges").body("B").send().await.unwrap()
    });
    let (one, other) = tokio::join!(one, other);
    assert_eq!(other.status(), 200, "and no sign of keys in it");
    let error = one.unwrap_err();
    assert_eq!(bodies(&server), ["first", "A", "B"], "{error:#}");
    assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::NotAdmitted, Some(StopReason::KeyNotTrusted)));
    assert!(error.may_have_been_processed() && error.attempts().len() == 1, "{error}");
    assert!(error.to_string().contains("say so: .keys("), "{error}");
}

#[tokio::test]
async fn trust_lost_before_throttled_retry_stops_it() {
    // The response to A's first attempt is lost. Its second attempt is throttled, while B shows
    // that keys are ignored.
    let refused = Answer::new(429).header("retry-after-ms", "1").delay(Duration::from_millis(1500));
    let server = FaultServer::start(move |turn, request| match (turn, request.map(|request| &request.body[..])) {
        (0, _) => honours(),
        (1, _) => FaultStep::close(FaultPoint::AfterExecuting),
        (_, Some(b"A")) => FaultStep::answer(refused.clone()),
        _ => FaultStep::execute(200),
    })
    .await;
    let (client, mut waits) = watched(&server);
    client.post("/charges").body("first").send().await.unwrap();
    let (one, _) = tokio::join!(client.post("/charges").body("A").send(), async {
        waits.recv().await.unwrap();
        // Only once the second attempt is under way; otherwise it would not be sent at all.
        while bodies(&server).len() < 3 {
            tokio::task::yield_now().await;
        }
        client.post("/charges").body("B").send().await.unwrap()
    });
    let response = one.unwrap();
    assert_eq!((response.status().as_u16(), response.stop_reason()), (429, Some(StopReason::KeyNotTrusted)));
    assert!(response.may_have_been_processed());
    assert_eq!(bodies(&server), ["first", "A", "A", "B"]);
}

#[tokio::test]
async fn retry_past_retention_is_not_sent() {
    let short = KeyPolicy::standard().retention(Duration::from_secs(2));
    for (answer, expected) in [
        // 95 % of the retention: a retry at 1.9 s or later would be a new operation.
        (Answer::new(503).header("retry-after-ms", "1900"), (Some(StopReason::RetryAfterTooLong), 1)),
        (Answer::new(503).header("retry-after-ms", "20"), (Some(StopReason::Done), 2)),
    ] {
        let server = FaultServer::play([FaultStep::execute(answer), FaultStep::execute(200)]).await;
        let client = trusting(&server).keys(short.clone()).build().unwrap();
        let response = client.post("/charges").body("x").send().await.unwrap();
        assert_eq!((response.stop_reason(), server.received().len()), expected);
    }
}

#[tokio::test]
async fn stated_retention_is_believed() {
    let forgetful = Answer::new(200).header("idempotency-status", "stored;retention=0");
    let server = FaultServer::play([
        FaultStep::execute(forgetful),
        FaultStep::close(FaultPoint::AfterExecuting),
        FaultStep::execute(200),
    ])
    .await;
    let client = doubting(&server).build().unwrap();
    client.post("/charges").body("first").send().await.unwrap();
    let error = client.post("/charges").body("x").send().await.unwrap_err();
    assert_eq!(error.stop_reason(), Some(StopReason::DeadlineExceeded), "{error}");
    let token = error.resume_token().cloned().unwrap();
    let error = client.post("/charges").body("x").resume(token).send().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::KeyExpired, "{error}");
    assert_eq!(server.received().len(), 2);
}

/// An API that compares the raw header would read another spelling as another key.
#[tokio::test]
async fn resumed_key_keeps_its_spelling() {
    for (form, spelt) in
        [(KeyFormat::Bare, "\"order-1\""), (KeyFormat::Quoted, "order-1"), (KeyFormat::Bare, "order-1")]
    {
        let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::execute(200)]).await;
        let keys = KeyPolicy::standard().form(form);
        let client = trusting(&server).keys(keys).retry(RetryPolicy::never()).build().unwrap();
        let error = client.post("/charges").header("Idempotency-Key", spelt).body("x").send().await.unwrap_err();
        let token = serde_json::to_string(error.resume_token().unwrap()).unwrap();
        let token: ResumeToken = serde_json::from_str(&token).unwrap();
        client.post("/charges").body("x").resume(token).send().await.unwrap();
        let sent: Vec<_> = server.keys().into_iter().flatten().collect();
        assert_eq!(sent, [spelt, spelt], "{form:?}");
        assert_eq!(server.executions(), 1);
    }
}

#[tokio::test]
async fn declared_keys_apply_to_listed_methods_only() {
    // PayPal takes keys for POST only.
    for (method, attempts) in [(http::Method::POST, 2), (http::Method::PATCH, 1)] {
        let server = FaultServer::play([FaultStep::execute(503), FaultStep::execute(200)]).await;
        let client = trusting(&server).keys(KeyPolicy::paypal()).build().unwrap();
        let key: IdempotencyKey = "order-1".parse().unwrap();
        let response = client.request(method, "/x").idempotency_key(key).body("x").send().await.unwrap();
        assert_eq!((response.attempts().len(), server.received().len()), (attempts, attempts));
    }
}

/// A proxy or a debugging handler can reflect headers without knowing keys.
#[tokio::test]
async fn echoed_key_is_no_licence() {
    for status in [503, 500, 408] {
        let server = FaultServer::play([FaultStep::execute(Answer::new(status).echo_key())]).await.ignoring_keys();
        let client = doubting(&server).build().unwrap();
        let response = client.post("/charges").body("x").send().await.unwrap();
        assert_eq!((server.executions(), response.attempts().len()), (1, 1), "{status}");
        assert_eq!(response.stop_reason(), Some(StopReason::KeyNotTrusted));
        assert!(response.headers().contains_key("idempotency-key"), "it was echoed");
    }
    // The same holds after a success, and beside an earlier sign: an echo on a success is no sign.
    let echo = || FaultStep::execute(Answer::new(201).echo_key());
    for first in [echo(), honours()] {
        let acts = [first, echo(), FaultStep::close(FaultPoint::AfterExecuting)];
        let server = FaultServer::play(acts).await.ignoring_keys();
        let client = doubting(&server).build().unwrap();
        for _ in 0..2 {
            client.post("/charges").body("x").send().await.unwrap();
        }
        let error = client.post("/charges").body("x").send().await.unwrap_err();
        assert_eq!((error.stop_reason(), server.executions()), (Some(StopReason::KeyNotTrusted), 3), "{error}");
    }
}

/// Returns the paths of the requests that a server received.
fn paths(server: &FaultServer) -> Vec<String> {
    server.received().into_iter().map(|request| request.target).collect()
}

fn moved_to(path: &str) -> FaultStep {
    FaultStep::answer(Answer::new(307).header("location", path))
}

#[tokio::test]
async fn sign_behind_307_belongs_to_responding_path() {
    // The old path redirects to a new one, which honours keys. Later a server without keys serves
    // the old path.
    let acts = [moved_to("/v2/charges"), honours(), FaultStep::close(FaultPoint::AfterExecuting)];
    let server = FaultServer::play(acts).await.ignoring_keys();
    let client = doubting(&server).build().unwrap();
    client.post("/charges").body("x").send().await.unwrap();
    let error = client.post("/charges").body("x").send().await.unwrap_err();
    assert_eq!((error.stop_reason(), server.executions()), (Some(StopReason::KeyNotTrusted), 2), "{error}");
    assert_eq!(paths(&server), ["/charges", "/v2/charges", "/charges"]);

    // The path that sent the response is trusted.
    let acts = [moved_to("/v2/charges"), honours(), FaultStep::close(FaultPoint::AfterExecuting), honours()];
    let server = FaultServer::play(acts).await;
    let client = doubting(&server).build().unwrap();
    client.post("/charges").body("x").send().await.unwrap();
    let response = client.post("/v2/charges").body("x").send().await.unwrap();
    assert_eq!((response.attempts().len(), server.executions()), (2, 2));
}

#[tokio::test]
async fn success_behind_307_keeps_trust_of_first_path() {
    let acts = [
        honours(),
        moved_to("/v2/charges"),
        FaultStep::execute(200),
        FaultStep::close(FaultPoint::AfterExecuting),
        honours(),
    ];
    let server = FaultServer::play(acts).await;
    let client = doubting(&server).build().unwrap();
    for _ in 0..2 {
        client.post("/charges").body("x").send().await.unwrap();
    }
    let response = client.post("/charges").body("x").send().await.unwrap();
    assert_eq!((response.attempts().len(), server.executions()), (2, 3));
}

/// The requested path honours keys. Nothing is known of the path that it redirects to.
#[tokio::test]
async fn lost_response_behind_307_needs_trust_in_both_paths() {
    let scope = |scope: &str| Answer::new(200).header("idempotency-status", format!("stored;scope=\"{scope}\""));
    let acts = |sign| {
        let lost = FaultStep::close(FaultPoint::AfterExecuting);
        [FaultStep::execute(sign), moved_to("/v2"), lost, moved_to("/v2"), FaultStep::execute(200)]
    };
    let server = FaultServer::play(acts(scope("/charges"))).await.ignoring_keys();
    let client = doubting(&server).build().unwrap();
    client.post("/charges").body("x").send().await.unwrap();
    let error = client.post("/charges").body("x").send().await.unwrap_err();
    assert_eq!((error.stop_reason(), server.executions()), (Some(StopReason::KeyNotTrusted), 2), "{error}");

    let server = FaultServer::play(acts(scope("/"))).await;
    let client = doubting(&server).build().unwrap();
    client.post("/charges").body("x").send().await.unwrap();
    let response = client.post("/charges").body("x").send().await.unwrap();
    assert_eq!((response.attempts().len(), server.executions()), (2, 2));
}

/// A redirect hop of a retry is a repeat, too.
#[tokio::test]
async fn retry_follows_no_307_to_untrusted_path() {
    let acts = || [honours(), FaultStep::close(FaultPoint::AfterExecuting), moved_to("/v2"), FaultStep::execute(200)];
    let server = FaultServer::play(acts()).await.ignoring_keys();
    let client = doubting(&server).build().unwrap();
    client.post("/charges").body("x").send().await.unwrap();
    let error = client.post_json::<serde_json::Value>("/charges", &1).await.unwrap_err();
    assert_eq!(paths(&server), ["/charges", "/charges", "/charges"]);
    assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::Redirect, Some(StopReason::KeyNotTrusted)), "{error}");
    assert!(error.may_have_been_processed(), "{error}");
    assert!(
        error.to_string().contains("at the new address") && error.to_string().contains("say so: .keys("),
        "{error}"
    );

    // With declared keys the hop is followed: the API honours keys on its whole origin. A first
    // attempt may follow it, too.
    let server = FaultServer::play(acts()).await;
    let client = trusting(&server).build().unwrap();
    client.post("/charges").body("x").send().await.unwrap();
    assert_eq!(client.post("/charges").body("x").send().await.unwrap().status(), 200);
    assert_eq!((paths(&server).last().map(String::as_str), server.executions()), (Some("/v2"), 2));
}

/// Two concurrent attempts are repeats of each other.
#[tokio::test]
async fn hedge_follows_no_307_to_untrusted_path() {
    let late = Duration::from_millis(100);
    let slow = move || FaultStep::execute(Answer::new(200).delay(late));
    // First case: the first attempt is redirected while a hedge may be sent. Second case: the hedge
    // is redirected while the first attempt runs.
    for (first, executions) in [(moved_to("/v2"), 1), (slow(), 2)] {
        let server = FaultServer::start(move |turn, request| match request {
            Some(request) if request.target == "/v2" => slow(),
            Some(_) if turn == 1 => first.clone(),
            Some(_) if turn > 1 => moved_to("/v2"),
            _ => honours(),
        });
        let server = server.await.ignoring_keys();
        let keys = KeyPolicy::standard().concurrent_duplicates_safe().negotiated();
        let client = doubting(&server).keys(keys).build().unwrap();
        client.post("/charges").body("x").send().await.unwrap();
        let hedge = HedgePolicy::after(Duration::from_millis(5));
        let response = client.post("/charges").hedge(hedge).body("x").send().await.unwrap();
        assert_eq!((response.status().as_u16(), server.executions()), (307, executions), "{:?}", paths(&server));
        assert_eq!(response.stop_reason(), Some(StopReason::KeyNotTrusted));
    }
}
