//! The leave to repeat what may have been carried out, and what ends it while an operation is still under way: the API no longer honours
//! keys, it has forgotten this one, or it would take it for another.

use std::time::Duration;

use steadfast::policy::{RetryPolicy, StopReason};
use steadfast::testing::{Act, Answer, FaultServer, Phase, fast_retries};
use steadfast::{Client, ErrorKind, EventKind, IdempotencyKey, KeyForm, KeyPolicy, ResponseExt, ResumeToken};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::support::{doubting, trusting};

fn bodies(server: &FaultServer) -> Vec<String> {
    server.received().iter().map(|request| String::from_utf8(request.body.clone()).unwrap()).collect()
}

/// A client that negotiates, and tells when it begins to wait for a retry.
fn watched(server: &FaultServer) -> (Client, UnboundedReceiver<()>) {
    let (tell, told) = unbounded_channel();
    let client = doubting(server).retry(fast_retries().max_attempts(4)).on_event(move |event| {
        if matches!(event.kind(), EventKind::RetryScheduled { .. }) {
            tell.send(()).unwrap();
        }
    });
    (client.build().unwrap(), told)
}

/// Answers that show that keys are honoured, and ones that show that they are not.
fn honours() -> Act {
    Act::execute(Answer::new(200).header("idempotent-replayed", "false"))
}

#[tokio::test]
async fn an_operation_that_waits_is_not_repeated_once_the_api_stops_honouring_keys() {
    let unsure = Answer::new(503).header("retry-after-ms", "1500");
    let server = FaultServer::play([honours(), Act::execute(unsure), Act::execute(200)]).await;
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
    assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::HeldBack, Some(StopReason::KeyNotTrusted)));
    assert!(error.may_have_been_processed() && error.attempts().len() == 1, "{error}");
    assert!(error.to_string().contains("say so: .keys("), "{error}");
}

#[tokio::test]
async fn nor_is_it_after_an_attempt_that_was_not_processed() {
    // A's first attempt is carried out and its answer lost; its second is refused, while B shows that keys are ignored.
    let refused = Answer::new(429).header("retry-after-ms", "1").delay(Duration::from_millis(1500));
    let server = FaultServer::start(move |turn, request| match (turn, request.map(|request| &request.body[..])) {
        (0, _) => honours(),
        (1, _) => Act::close(Phase::AfterExecuting),
        (_, Some(b"A")) => Act::answer(refused.clone()),
        _ => Act::execute(200),
    })
    .await;
    let (client, mut waits) = watched(&server);
    client.post("/charges").body("first").send().await.unwrap();
    let (one, _) = tokio::join!(client.post("/charges").body("A").send(), async {
        waits.recv().await.unwrap();
        // Not before the second attempt is on its way: else it would not be sent at all.
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
async fn a_key_that_the_api_has_forgotten_by_then_is_no_licence() {
    let short = KeyPolicy::standard().retention(Duration::from_secs(2));
    for (answer, expected) in [
        // 95 % of the retention: a retry at 1.9 s or later would be another operation.
        (Answer::new(503).header("retry-after-ms", "1900"), (Some(StopReason::RetryAfterTooLong), 1)),
        (Answer::new(503).header("retry-after-ms", "20"), (Some(StopReason::Done), 2)),
    ] {
        let server = FaultServer::play([Act::execute(answer), Act::execute(200)]).await;
        let client = trusting(&server).keys(short.clone()).build().unwrap();
        let response = client.post("/charges").body("x").send().await.unwrap();
        assert_eq!((response.stop_reason(), server.received().len()), expected);
    }
}

#[tokio::test]
async fn a_server_that_says_how_long_it_keeps_a_record_is_believed() {
    let forgetful = Answer::new(200).header("idempotency-status", "stored;retention=0");
    let server =
        FaultServer::play([Act::execute(forgetful), Act::close(Phase::AfterExecuting), Act::execute(200)]).await;
    let client = doubting(&server).build().unwrap();
    client.post("/charges").body("first").send().await.unwrap();
    let error = client.post("/charges").body("x").send().await.unwrap_err();
    assert_eq!(error.stop_reason(), Some(StopReason::DeadlineExceeded), "{error}");
    let token = error.resume_token().cloned().unwrap();
    let error = client.post("/charges").body("x").resume(token).send().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::KeyExpired, "{error}");
    assert_eq!(server.received().len(), 2);
}

/// An API that takes the header as it comes would take another spelling for another key.
#[tokio::test]
async fn an_operation_is_resumed_under_the_key_as_it_was_spelt() {
    for (form, spelt) in [(KeyForm::Bare, "\"order-1\""), (KeyForm::Quoted, "order-1"), (KeyForm::Bare, "order-1")] {
        let server = FaultServer::play([Act::close(Phase::AfterExecuting), Act::execute(200)]).await;
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
async fn the_users_word_is_about_the_methods_for_which_the_api_takes_keys() {
    // PayPal takes keys for POST alone.
    for (method, attempts) in [(http::Method::POST, 2), (http::Method::PATCH, 1)] {
        let server = FaultServer::play([Act::execute(503), Act::execute(200)]).await;
        let client = trusting(&server).keys(KeyPolicy::paypal()).build().unwrap();
        let key: IdempotencyKey = "order-1".parse().unwrap();
        let response = client.request(method, "/x").idempotency_key(key).body("x").send().await.unwrap();
        assert_eq!((response.attempts().len(), server.received().len()), (attempts, attempts));
    }
}
