//! The classifier: it sees the body that is read inside the attempt, and may name a wait.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use steadfast::policy::{Class, Classification, Failure, Outcome, RetryPolicy, StopReason};
use steadfast::{Client, ErrorKind, KeyPolicy, ResponseExt};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

use crate::support::{clock, doubting, trusting};

fn says(outcome: &Outcome<'_>, text: &str) -> bool {
    outcome.body().is_some_and(|body| body.windows(text.len()).any(|part| part == text.as_bytes()))
}

/// S3's error in a 200 may have acted. A 429 without credit does not get better.
fn by_body(outcome: &Outcome<'_>) -> Class {
    match outcome.status().map_or(0, |status| status.as_u16()) {
        200 if says(outcome, "<Error>") => Class::Ambiguous,
        429 if says(outcome, "insufficient_quota") => Class::Permanent,
        _ => outcome.default_class(),
    }
}

fn s3_error() -> FaultStep {
    FaultStep::execute(Answer::new(200).body("<Error><Code>InternalError</Code></Error>"))
}

#[tokio::test]
async fn error_inside_200_is_fetched_again() {
    let server = FaultServer::play([s3_error(), FaultStep::execute(Answer::new(200).body("<Done/>"))]).await;
    let client = doubting(&server).classify(by_body).build().unwrap();
    assert_eq!(client.put("/").body("x").fetch_text().await.unwrap(), "<Done/>");
    assert_eq!(server.received().len(), 2);
}

#[tokio::test]
async fn error_inside_200_needs_licence_to_repeat() {
    let server = FaultServer::play([s3_error(), FaultStep::execute(200)]).await.ignoring_keys();
    let client = doubting(&server).classify(by_body).build().unwrap();
    let error = client.post("/").body("x").fetch_text().await.unwrap_err();
    assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::Status, Some(StopReason::KeyNotTrusted)), "{error}");
    assert_eq!((server.executions(), error.status().map(|status| status.as_u16())), (1, Some(200)));
    assert!(error.may_have_been_processed() && error.resume_token().is_some(), "{error}");
    assert!(error.body().unwrap().starts_with(b"<Error>"));
    assert!(error.to_string().contains("status 200, a failure by the classifier"), "{error}");
}

#[tokio::test]
async fn error_inside_200_is_an_error_at_the_end() {
    let failed = || FaultStep::execute(Answer::new(200).body(r#"{"error":{"code":"used_up"}}"#));
    let server = FaultServer::play([failed(), failed()]).await;
    let permanent = |outcome: &Outcome<'_>| {
        if says(outcome, "used_up") { Class::Permanent } else { outcome.default_class() }
    };
    let client = trusting(&server).classify(permanent).build().unwrap();
    let error = client.get_json::<Value>("/").await.unwrap_err();
    assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::Status, Some(StopReason::Permanent)));
    assert_eq!(error.json::<Value>().unwrap(), json!({ "error": { "code": "used_up" } }));
    assert!(error.may_have_been_processed(), "the evidence is the 200");
    let attempt = &error.attempts()[0];
    assert_eq!((attempt.class(), attempt.default_class()), (Class::Permanent, Class::Success));
    // `send` leaves the body to the caller, so the classifier has none.
    let response = client.get("/").send().await.unwrap();
    assert_eq!(response.stop_reason(), Some(StopReason::Done));
}

#[tokio::test]
async fn throttled_without_credit_is_not_repeated() {
    let refused = |code: &str| FaultStep::answer(Answer::new(429).body(format!(r#"{{"error":{{"code":"{code}"}}}}"#)));
    let server = FaultServer::play([refused("insufficient_quota"), refused("slow_down"), FaultStep::answer(200)]).await;
    let client = doubting(&server).classify(by_body).build().unwrap();
    let error = client.get_json::<Value>("/").await.unwrap_err();
    assert_eq!((error.stop_reason(), server.received().len()), (Some(StopReason::Permanent), 1));
    client.get_json::<Value>("/").await.unwrap();
    assert_eq!(server.received().len(), 3);
}

/// Notes the body of each outcome.
fn noting(builder: steadfast::ClientBuilder) -> (Client, Arc<Mutex<Vec<Option<usize>>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    let client = builder.classify(move |outcome| {
        assert!(outcome.failure().is_none() || outcome.body().is_none());
        noted.lock().unwrap().push(outcome.body().map(<[u8]>::len));
        outcome.default_class()
    });
    (client.build().unwrap(), seen)
}

#[tokio::test]
async fn classifier_sees_bounded_body_of_fetch_alone() {
    let long = |status| FaultStep::answer(Answer::new(status).body(vec![b' '; 100_000]));
    let server = FaultServer::play([
        long(200),
        long(404),
        FaultStep::answer(Answer::new(200).body("")),
        FaultStep::close(FaultPoint::MidBody),
        FaultStep::answer(200),
        FaultStep::answer(200),
        long(409),
    ])
    .await;
    let (client, seen) = noting(doubting(&server).retry(RetryPolicy::never()).body_limit(80_000));
    client.get("/").fetch_bytes().await.unwrap_err();
    client.get("/").fetch_bytes().await.unwrap_err();
    client.get("/").fetch_bytes().await.unwrap();
    client.get("/").fetch_bytes().await.unwrap_err();
    client.get("/").fetch_bytes().await.unwrap();
    client.get("/").send().await.unwrap();
    // Under a key the client itself looks at the body of a 409.
    client.post("/").idempotency_key("mine".parse().unwrap()).send().await.unwrap();
    let expected = [Some(80_000), Some(64 * 1024), Some(0), None, Some(r#"{"status":200}"#.len()), None, None];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[tokio::test]
async fn classification_names_the_wait() {
    let server = FaultServer::play([FaultStep::answer(403), FaultStep::answer(200)]).await;
    let secondary = |outcome: &Outcome<'_>| match outcome.status() {
        Some(http::StatusCode::FORBIDDEN) => Classification::new(Class::Throttled).after(Duration::from_millis(300)),
        _ => outcome.default_class().into(),
    };
    let client = doubting(&server).classify(secondary).build().unwrap();
    let begun = clock::now();
    let response = client.get("/").send().await.unwrap();
    assert_eq!((response.status().as_u16(), server.received().len()), (200, 2));
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    assert!(response.attempts()[0].wait() >= Some(Duration::from_millis(300)));
}

#[tokio::test]
async fn classified_wait_replaces_and_is_limited() {
    let refused = || FaultStep::answer(Answer::new(429).retry_after(3600));
    let server = FaultServer::play([refused(), FaultStep::answer(200), FaultStep::answer(429)]).await;
    let wait = Arc::new(Mutex::new(Duration::ZERO));
    let asked = wait.clone();
    let client = doubting(&server).keys(KeyPolicy::off()).classify(move |outcome| {
        let classification = Classification::from(outcome.default_class());
        if outcome.status().is_some_and(|status| status == 429) {
            classification.after(*asked.lock().unwrap())
        } else {
            classification
        }
    });
    let client = client.build().unwrap();
    assert_eq!(client.get("/").send().await.unwrap().status(), 200, "the hour is replaced");
    *wait.lock().unwrap() = Duration::from_secs(61);
    let response = client.get("/").send().await.unwrap();
    assert_eq!(response.stop_reason(), Some(StopReason::RetryAfterTooLong));
    assert_eq!((response.retry_after(), server.received().len()), (Some(Duration::from_secs(61)), 3));
}

#[tokio::test]
async fn classified_failure_names_its_wait() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::answer(200)]).await;
    let client = doubting(&server).retry(fast_retries()).classify(|outcome| match outcome.failure() {
        Some(Failure::Disconnected) => Classification::new(Class::Ambiguous).after(Duration::from_millis(200)),
        _ => outcome.default_class().into(),
    });
    let begun = clock::now();
    client.build().unwrap().get("/").send().await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200) && server.received().len() == 2);
}

#[tokio::test]
async fn response_called_throttled_waits_for_its_quota() {
    let refused = Answer::new(403).header("x-ratelimit-reset", "1").header("date", "Mon, 30 Nov 2026 12:00:00 GMT");
    let server = FaultServer::play([FaultStep::answer(refused), FaultStep::answer(200)]).await;
    let client = doubting(&server).classify(|outcome| match outcome.status() {
        Some(http::StatusCode::FORBIDDEN) => Class::Throttled,
        _ => outcome.default_class(),
    });
    let begun = clock::now();
    assert_eq!(client.build().unwrap().get("/").send().await.unwrap().status(), 200);
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
}
