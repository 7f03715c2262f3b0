//! One key per operation: its source, its form on the wire, when it is a licence, and how it is
//! resumed.

use std::collections::HashSet;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use steadfast::policy::{RetryPolicy, StopReason};
use steadfast::{Client, ErrorKind, IdempotencyKey, KeyFormat, KeyPolicy, ResponseExt, ResumeToken};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

use crate::support::{doubting, trusting};

fn key(text: &str) -> IdempotencyKey {
    text.parse().unwrap()
}

#[tokio::test]
async fn concurrent_operations_keep_their_own_keys() {
    // Every other response is lost.
    let server = FaultServer::start(|turn, _| match turn % 2 {
        0 => FaultStep::close(FaultPoint::AfterExecuting),
        _ => FaultStep::execute(200),
    })
    .await;
    let policy = fast_retries().max_attempts(20);
    let client = trusting(&server).retry(policy).budget(steadfast::policy::RetryBudget::unlimited()).build().unwrap();
    let mut operations = tokio::task::JoinSet::new();
    for number in 0..100 {
        let client = client.clone();
        operations.spawn(async move { client.post_json::<Value>("/charges", &json!({ "number": number })).await });
    }
    for outcome in operations.join_all().await {
        outcome.unwrap();
    }
    let keys_of_body: HashSet<_> = server
        .received()
        .into_iter()
        .map(|request| (request.body.clone(), request.key().unwrap().to_owned()))
        .collect();
    let keys: HashSet<_> = keys_of_body.iter().map(|(_, key)| key.clone()).collect();
    assert_eq!((keys_of_body.len(), keys.len()), (100, 100), "each body has one key and no two share one");
    assert!(server.executions_by_body().values().all(|count| *count == 1));
    assert_eq!(server.executions_by_body().len(), 100);
}

#[tokio::test]
async fn next_operation_gets_new_key() {
    let server = FaultServer::play([FaultStep::execute(200)]).await;
    let client = trusting(&server).build().unwrap();
    for _ in 0..3 {
        client.post("/charges").body("same").send().await.unwrap();
    }
    assert_eq!(server.keys().into_iter().collect::<HashSet<_>>().len(), 3);
}

#[tokio::test]
async fn callers_key_wins_in_any_spelling() {
    let server = FaultServer::play([FaultStep::execute(200)]).await;
    let client = trusting(&server).build().unwrap();
    client.post("/1").idempotency_key(key("order-1")).send().await.unwrap();
    client.post("/2").header("Idempotency-Key", "order-2").send().await.unwrap();
    client.post("/3").header("Idempotency-Key", "\"order-3\"").send().await.unwrap();
    client.post("/4").header("Idempotency-Key", "loses").idempotency_key(key("order-4")).send().await.unwrap();
    client.get("/5").idempotency_key(key("order-5")).send().await.unwrap();
    let mut request = steadfast::reqwest::Request::new(http::Method::POST, server.url("/6").parse().unwrap());
    request.headers_mut().insert("idempotency-key", "order-6".parse().unwrap());
    let response = client.execute(request).await.unwrap();
    assert_eq!(response.idempotency_key().unwrap().as_str(), "order-6");
    let keys: Vec<_> = server.keys().into_iter().flatten().collect();
    assert_eq!(keys, ["order-1", "order-2", "\"order-3\"", "order-4", "order-5", "order-6"]);
}

#[tokio::test]
async fn policy_decides_whether_and_how_key_is_sent() {
    let server = FaultServer::play([FaultStep::execute(200)]).await;
    let with = |keys| Client::builder().base_url(server.url("")).keys(keys).build().unwrap();
    with(KeyPolicy::off()).post("/").send().await.unwrap();
    with(KeyPolicy::paypal()).post("/").send().await.unwrap();
    with(KeyPolicy::standard().form(KeyFormat::Quoted)).post("/").send().await.unwrap();
    with(KeyPolicy::standard()).put("/").body("x").send().await.unwrap();
    let received = server.received();
    assert_eq!(received[0].key(), None);
    assert_eq!(received[1].header("idempotency-key"), None);
    assert_eq!(received[1].header("paypal-request-id").map(str::len), Some(36));
    let quoted = received[2].key().unwrap();
    assert!(quoted.len() == 38 && quoted.starts_with('"') && quoted.ends_with('"'), "{quoted}");
    assert_eq!(received[3].key(), None, "PUT needs no key");
}

#[tokio::test]
async fn invalid_key_fails_before_sending() {
    let server = FaultServer::play([FaultStep::execute(200)]).await;
    let client = trusting(&server).build().unwrap();
    let long = "x".repeat(256);
    let cases = [
        client.post("/").idempotency_key(key(&long)),
        client.post("/").header("Idempotency-Key", long.as_str()),
        client.post("/").header("Idempotency-Key", "\"half"),
        client.post("/").header("Idempotency-Key", "a").header("Idempotency-Key", "b"),
    ];
    for request in cases {
        let error = request.send().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Build, "{error}");
        assert!(error.to_string().to_lowercase().contains("idempotency"), "{error}");
    }
    assert_eq!(server.connections(), 0);
}

/// Sends an operation whose response is lost, and returns the token that resumes it.
async fn lost(server: &FaultServer) -> ResumeToken {
    let client = trusting(server).retry(RetryPolicy::never()).build().unwrap();
    let error = client.post_json::<Value>("/charges?expand=all", &json!({"amount": 7})).await.unwrap_err();
    assert!(error.may_have_been_processed());
    let stored = serde_json::to_string(error.resume_token().unwrap()).unwrap();
    serde_json::from_str(&stored).unwrap()
}

#[tokio::test]
async fn lost_operation_is_resumed_under_its_key() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::execute(200)]).await;
    let token = lost(&server).await;
    let client = trusting(&server).build().unwrap();
    let again = client.post("/charges?expand=all").json(&json!({"amount": 7})).resume(token);
    let value: Value = again.fetch().await.unwrap();
    assert_eq!(value["status"], 200);
    let keys = server.keys();
    assert_eq!((keys.len(), server.executions()), (2, 1));
    assert_eq!(keys[0], keys[1]);
}

/// Returns the same token as if the operation had first been sent `seconds` ago.
fn aged(token: &ResumeToken, seconds: i64) -> ResumeToken {
    let mut json = serde_json::to_value(token).unwrap();
    let then = i64::try_from(UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap() - seconds * 1000;
    json["first_sent_ms"] = then.into();
    serde_json::from_value(json).unwrap()
}

/// The wall clock was set back between the two. That ends no retry, not even in the middle of the
/// operation.
#[tokio::test]
async fn token_from_future_is_resumed_and_retried() {
    for ahead in [1, 25] {
        let acts = [
            FaultStep::close(FaultPoint::AfterExecuting),
            FaultStep::answer(503),
            FaultStep::answer(503),
            FaultStep::execute(200),
        ];
        let server = FaultServer::play(acts).await;
        let token = aged(&lost(&server).await, -ahead);
        let client = trusting(&server).build().unwrap();
        let again = client.post("/charges?expand=all").json(&json!({"amount": 7})).resume(token);
        let response = again.send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.attempts().len()), (200, 3), "{ahead} s ahead");
        assert_eq!((server.received().len(), server.executions()), (4, 1));
    }
}

#[tokio::test]
async fn token_from_future_shortens_retention() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::answer(503)]).await;
    let token = aged(&lost(&server).await, -20);
    // 19 s of 20 s are usable, and the token is from 20 s ahead.
    let keys = KeyPolicy::standard().retention(Duration::from_secs(20));
    let client = trusting(&server).keys(keys).build().unwrap();
    let again = client.post("/charges?expand=all").json(&json!({"amount": 7})).resume(token);
    let error = again.send().await.unwrap_err();
    assert!(error.kind() == ErrorKind::KeyExpired && error.to_string().contains("forgotten"), "{error}");
    assert_eq!(server.received().len(), 1, "only the lost one");
}

#[tokio::test]
async fn unfit_token_fails_before_sending() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::execute(200)]).await;
    let token = lost(&server).await;
    let client = trusting(&server).build().unwrap();
    let aged = |seconds| aged(&token, seconds);
    let body = json!({"amount": 7});
    let path = "/charges?expand=all";
    let cases = [
        ("forgotten", client.post(path).json(&body).resume(aged(24 * 3600))),
        ("forgotten", client.post(path).json(&body).resume(aged(23 * 3600))),
        ("backwards", client.post(path).json(&body).resume(aged(-60))),
        ("backwards", client.post(path).json(&body).resume(aged(-32))),
        ("query or body", client.post(path).json(&json!({"amount": 8})).resume(token.clone())),
        ("query or body", client.post("/charges").json(&body).resume(token.clone())),
        ("method or target", client.post("/refunds").json(&body).resume(token.clone())),
        ("method or target", client.patch(path).json(&body).resume(token.clone())),
    ];
    for (reason, request) in cases {
        let error = request.send().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::KeyExpired, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    let both = client.post(path).json(&body).resume(token.clone()).idempotency_key(key("another"));
    assert_eq!(both.send().await.unwrap_err().kind(), ErrorKind::Build);
    assert_eq!(server.received().len(), 1, "only the lost one");
}

#[tokio::test]
async fn resumed_connect_failure_keeps_earlier_evidence() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting)]).await;
    let token = lost(&server).await;
    let first_sent = token.first_sent();
    let base = server.url("");
    drop(server);
    let client =
        Client::builder().base_url(base).retry(RetryPolicy::never()).keys(KeyPolicy::standard()).build().unwrap();
    let error = client.post("/charges?expand=all").json(&json!({"amount": 7})).resume(token).send().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert!(error.may_have_been_processed(), "{error}");
    assert_eq!(error.resume_token().unwrap().first_sent(), first_sent, "the age counts from the first attempt of all");
}

#[tokio::test]
async fn sign_in_response_earns_trust() {
    let signed = || Answer::new(201).header("idempotent-replayed", "false");
    let acts = [
        FaultStep::execute(signed()),
        FaultStep::close(FaultPoint::AfterExecuting),
        FaultStep::execute(signed()),
        // A success without a sign withdraws the trust.
        FaultStep::execute(201),
        FaultStep::close(FaultPoint::AfterExecuting),
    ];
    let server = FaultServer::play(acts).await;
    let client = doubting(&server).build().unwrap();
    let charge = || client.post("/charges").body("x").send();
    charge().await.unwrap();
    let response = charge().await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len()), (201, 2));
    charge().await.unwrap();
    let error = charge().await.unwrap_err();
    assert_eq!(error.stop_reason(), Some(StopReason::KeyNotTrusted));
    assert_eq!((server.received().len(), server.executions()), (5, 4));
}

#[tokio::test]
async fn declared_keys_apply_to_base_origin_only() {
    let home = FaultServer::play([FaultStep::execute(200)]).await;
    let elsewhere = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting)]).await;
    let client = trusting(&home).build().unwrap();
    let error = client.post(elsewhere.url("/charges")).body("x").send().await.unwrap_err();
    assert_eq!(error.stop_reason(), Some(StopReason::KeyNotTrusted));
    assert_eq!(elsewhere.executions(), 1);
}

fn conflict() -> Answer {
    Answer::new(409)
}

#[tokio::test]
async fn only_marked_conflict_means_in_progress() {
    let busy = || conflict().header("retry-after", "0");
    let stripe = r#"{"error":{"type":"idempotency_error","code":"idempotency_key_in_use"}}"#;
    let ours = r#"{"type":"https://docs.rs/steadfast/latest/steadfast/guide/problems/#in-progress","status":409}"#;
    let done = || FaultStep::execute(200);
    let cases: [(&str, Vec<FaultStep>, bool, u16, usize); 8] = [
        (
            "after a lost answer",
            vec![FaultStep::close(FaultPoint::AfterExecuting), FaultStep::answer(busy()), done()],
            false,
            200,
            3,
        ),
        (
            "no mark",
            vec![FaultStep::close(FaultPoint::AfterExecuting), FaultStep::answer(conflict()), done()],
            false,
            409,
            2,
        ),
        ("first try, minted key", vec![FaultStep::answer(busy()), done()], false, 409, 1),
        ("first try, the caller's key", vec![FaultStep::answer(busy()), done()], true, 200, 2),
        ("the policy's mark", vec![FaultStep::answer(conflict().body(stripe)), done()], true, 200, 2),
        ("our layer's problem", vec![FaultStep::answer(conflict().body(ours)), done()], true, 200, 2),
        (
            "our layer's status",
            vec![FaultStep::answer(conflict().header("idempotency-status", "in-progress")), done()],
            true,
            200,
            2,
        ),
        (
            "another conflict",
            vec![FaultStep::answer(conflict().body(r#"{"code":"name_taken"}"#)), done()],
            true,
            409,
            1,
        ),
    ];
    for (name, acts, given, status, requests) in cases {
        let server = FaultServer::play(acts).await;
        let client = trusting(&server).keys(KeyPolicy::stripe()).build().unwrap();
        let request = client.post("/charges").body("x");
        let request = if given { request.idempotency_key(key("mine")) } else { request };
        let response = request.send().await.unwrap();
        assert_eq!((response.status().as_u16(), server.received().len()), (status, requests), "{name}");
        assert_eq!(response.url().as_str(), server.url("/charges"), "{name}");
        assert!(!response.text().await.unwrap().is_empty(), "{name}: the body that was looked at is still there");
    }
}

#[tokio::test]
async fn retry_sends_prefer_wait_only_if_set() {
    let busy = || FaultStep::answer(conflict().header("retry-after", "0"));
    let acts = || [FaultStep::close(FaultPoint::AfterExecuting), busy(), FaultStep::execute(200)];
    let asked = |server: &FaultServer| -> Vec<Option<String>> {
        server.received().iter().map(|request| request.header("prefer").map(str::to_owned)).collect()
    };
    let wait = KeyPolicy::standard().wait_on_retry(Duration::from_millis(3700));
    let server = FaultServer::play(acts()).await;
    trusting(&server).keys(wait.clone()).build().unwrap().post("/charges").body("x").send().await.unwrap();
    assert_eq!(asked(&server), [None, Some("wait=3".to_owned()), Some("wait=3".to_owned())]);

    let server = FaultServer::play(acts()).await;
    let client = trusting(&server).keys(wait.clone()).build().unwrap();
    client.post("/charges").header("prefer", "return=minimal").body("x").send().await.unwrap();
    assert_eq!(
        asked(&server),
        [(); 3].map(|()| Some("return=minimal".to_owned())),
        "the caller's own preference stays"
    );

    let server = FaultServer::play(acts()).await;
    trusting(&server).build().unwrap().post("/charges").body("x").send().await.unwrap();
    assert_eq!(asked(&server), [None, None, None]);

    // A request without a key has nothing to wait for.
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::answer(200)]).await;
    trusting(&server).keys(wait).build().unwrap().get("/charges").send().await.unwrap();
    assert_eq!(asked(&server), [None, None]);
}

#[tokio::test]
async fn unknown_outcome_is_not_in_progress() {
    for unknown in [
        conflict().header("idempotency-status", "unknown").header("retry-after", "0"),
        conflict()
            .body(r#"{"type":"https://docs.rs/steadfast/latest/steadfast/guide/problems/#outcome-unknown"}"#)
            .header("retry-after", "0"),
    ] {
        let server = FaultServer::play([FaultStep::answer(unknown), FaultStep::execute(200)]).await;
        let client = trusting(&server).build().unwrap();
        let response = client.post("/charges").idempotency_key(key("mine")).body("x").send().await.unwrap();
        assert_eq!(response.stop_reason(), Some(StopReason::OutcomeUnknown));
        assert!(response.may_have_been_processed());
        assert_eq!(server.received().len(), 1);
    }
}

#[tokio::test]
async fn replayed_error_is_final() {
    for header in
        [("idempotent-replayed", "true"), ("idempotency-status", "stored"), ("idempotency-status", "replayed")]
    {
        let server = FaultServer::play([FaultStep::execute(Answer::new(500).header(header.0, header.1))]).await;
        let client = trusting(&server).build().unwrap();
        let error = client.post_json::<Value>("/charges", &json!({})).await.unwrap_err();
        assert_eq!((error.stop_reason(), server.received().len()), (Some(StopReason::Replayed), 1), "{header:?}");
        assert!(error.may_have_been_processed());
    }
}

#[tokio::test]
async fn retention_keeps_five_percent_margin() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::execute(200)]).await;
    let token = lost(&server).await;
    let strict = KeyPolicy::standard().retention(Duration::from_nanos(1));
    let client = trusting(&server).keys(strict).build().unwrap();
    let error = client.post("/charges?expand=all").json(&json!({"amount": 7})).resume(token).send().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::KeyExpired);
}

/// To resume is to repeat: it needs the same licence as a retry.
#[tokio::test]
async fn resume_without_trusted_key_is_refused() {
    for keys in [KeyPolicy::default(), KeyPolicy::off()] {
        let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::execute(200)])
            .await
            .ignoring_keys();
        let token = lost(&server).await;
        let client = trusting(&server).keys(keys).build().unwrap();
        let request = || client.post("/charges?expand=all").json(&json!({"amount": 7})).resume(token.clone());
        let error = request().send().await.unwrap_err();
        assert_eq!((error.kind(), server.executions()), (ErrorKind::KeyExpired, 1), "{error}");
        assert!(error.to_string().contains(".keys(KeyPolicy::standard())"), "{error}");
        assert!(
            error.may_have_been_processed() && error.resume_token() == Some(&token),
            "what was done before stays true"
        );
        let error = request().idempotent(false).send().await.unwrap_err();
        assert_eq!((error.kind(), server.executions()), (ErrorKind::KeyExpired, 1), "{error}");
        // The caller's declaration overrides the key.
        assert_eq!(request().idempotent(true).send().await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn readme_error_handling_doubles_nothing() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::execute(200)])
        .await
        .ignoring_keys();
    let client = doubting(&server).build().unwrap();
    let error = client.post_json::<Value>("/charges", &json!({})).await.unwrap_err();
    assert!(error.may_have_been_processed());
    let token = error.resume_token().unwrap().clone();
    client.post("/charges").json(&json!({})).resume(token).fetch::<Value>().await.unwrap_err();
    assert_eq!(server.executions(), 1);
}

#[tokio::test]
async fn refused_token_keeps_earlier_evidence() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting)]).await;
    let token = lost(&server).await;
    let client = trusting(&server).build().unwrap();
    let error = client.post("/charges").json(&json!({"amount": 8})).resume(token).send().await.unwrap_err();
    assert!(error.may_have_been_processed(), "{error}");
    assert!(
        error.to_string().ends_with("(nothing was sent now; an earlier attempt may have been processed)"),
        "{error}"
    );
    // Errors of any kind, found before or while the request is sent.
    let again = |token| client.post("/charges?expand=all").json(&json!({"amount": 7})).resume(token);
    let token = || error.resume_token().unwrap().clone();
    for request in [again(token()).header("a b", "c"), again(token()).timeout(Duration::ZERO)] {
        let mistake = request.send().await.unwrap_err();
        assert!(mistake.is_build() && mistake.may_have_been_processed(), "{mistake}");
        assert_eq!(mistake.resume_token(), Some(&token()));
    }
    assert_eq!(server.received().len(), 1);
}
