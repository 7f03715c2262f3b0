//! Attempts, time and budget: what ends an operation, and that nothing continues after its end.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use steadfast::policy::{Backoff, Class, RetryBudget, RetryPolicy, StopReason};
use steadfast::{Attempt, Client, ErrorKind, KeyPolicy, ResponseExt};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

use crate::support::{doubting, trusting};

#[tokio::test]
async fn max_attempts_counts_first_attempt() {
    for most in 1..=4 {
        let server = FaultServer::play([FaultStep::answer(503)]).await;
        let client = doubting(&server).retry(fast_retries().max_attempts(most)).build().unwrap();
        let response = client.get("/").send().await.unwrap();
        assert_eq!(server.received().len(), most as usize);
        assert_eq!(response.attempts().len(), most as usize);
        assert_eq!(response.stop_reason(), Some(StopReason::AttemptsExhausted));
    }
}

#[tokio::test]
async fn nothing_starts_after_deadline() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(503).delay(Duration::from_millis(15)))]).await;
    let deadline = Duration::from_millis(400);
    let policy =
        RetryPolicy::new().max_attempts(1000).backoff(Backoff::fixed(Duration::from_millis(20))).deadline(deadline);
    let client = doubting(&server).retry(policy).budget(RetryBudget::unlimited()).build().unwrap();
    let (attempts, reason) = match client.get("/").send().await {
        Ok(response) => (response.attempts().to_vec(), response.stop_reason()),
        Err(error) => (error.attempts().to_vec(), error.stop_reason()),
    };
    assert_eq!(reason, Some(StopReason::DeadlineExceeded));
    assert!(attempts.len() > 2, "{attempts:?}");
    assert_eq!(server.received().len(), attempts.len());
    let last_start: Duration =
        attempts.iter().rev().skip(1).map(|attempt| attempt.elapsed() + attempt.wait().unwrap()).sum();
    assert!(last_start < deadline, "{attempts:?}");
}

#[tokio::test]
async fn stall_ends_at_attempt_or_operation_timeout() {
    let server = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting), FaultStep::execute(200)]).await;
    let client = trusting(&server).attempt_timeout(Duration::from_millis(100)).build().unwrap();
    let response = client.post("/charges").body("x").send().await.unwrap();
    assert_eq!((response.attempts().len(), server.executions()), (2, 1));

    let server = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting)]).await;
    let client = trusting(&server).timeout(Duration::from_millis(100)).build().unwrap();
    let error = client.post("/charges").body("x").send().await.unwrap_err();
    assert!(error.is_timeout() && error.may_have_been_processed(), "{error}");
    assert_eq!(error.stop_reason(), Some(StopReason::DeadlineExceeded));
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn request_limits_override_client_limits() {
    let server = FaultServer::play([FaultStep::answer(503)]).await;
    let client = doubting(&server).retry(fast_retries().max_attempts(5)).build().unwrap();
    let response = client.get("/").retry(fast_retries().max_attempts(2)).send().await.unwrap();
    assert_eq!(response.attempts().len(), 2);

    let server = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting)]).await;
    let client = doubting(&server).timeout(Duration::from_secs(600)).attempt_timeout(None).build().unwrap();
    let short = Duration::from_millis(50);
    assert!(client.get("/").timeout(short).send().await.unwrap_err().is_timeout());
    assert!(client.get("/").retry(fast_retries().deadline(short)).send().await.unwrap_err().is_timeout());
    let error = client.get("/").retry(fast_retries().max_attempts(1)).attempt_timeout(short).send().await.unwrap_err();
    assert!(error.is_timeout());
    let mut request = steadfast::reqwest::Request::new(http::Method::POST, server.url("/").parse().unwrap());
    *request.timeout_mut() = Some(short);
    assert!(client.execute(request).await.unwrap_err().is_timeout());
}

#[tokio::test]
async fn request_policy_without_deadline_keeps_timeout() {
    let server = FaultServer::play([FaultStep::answer(200)]).await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let client = doubting(&server).timeout(Duration::from_secs(7)).on_event(move |event| {
        if let steadfast::EventKind::OperationStarted { deadline, .. } = event.kind() {
            tell.send(deadline).unwrap();
        }
    });
    let client = client.build().unwrap();
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    client.get("/").retry(fast_retries()).send().await.unwrap();
    assert_eq!(told.recv().await.unwrap(), seconds(7));
    client.get("/").retry(fast_retries().deadline(Duration::from_secs(9))).send().await.unwrap();
    assert_eq!(told.recv().await.unwrap(), seconds(9));
    client
        .get("/")
        .retry(fast_retries().deadline(Duration::from_secs(9)))
        .timeout(Duration::from_secs(3))
        .send()
        .await
        .unwrap();
    assert_eq!(told.recv().await.unwrap(), seconds(3));
}

#[tokio::test]
async fn alternate_error_names_its_cause() {
    let client = Client::builder().retry(fast_retries()).build().unwrap();
    let error = client.get("http://127.0.0.1:1/").send().await.unwrap_err();
    for text in [format!("{error:#}"), format!("{error:?}")] {
        assert!(text.contains("caused by: ") && text.to_lowercase().contains("refused"), "{text}");
    }
}

#[tokio::test]
async fn budget_stops_retry_storm_per_origin() {
    let down = FaultServer::play([FaultStep::answer(503)]).await;
    let well = FaultServer::play([FaultStep::answer(503), FaultStep::answer(200)]).await;
    let client = Client::builder().retry(fast_retries().max_attempts(10)).build().unwrap();
    let mut operations = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (client, url) = (client.clone(), down.url("/"));
        operations.spawn(async move { client.get(url).send().await.unwrap().stop_reason() });
    }
    let reasons = operations.join_all().await;
    // 500 tokens; a retry costs 14.
    assert_eq!(down.received().len(), 100 + 35);
    assert!(reasons.contains(&Some(StopReason::BudgetExhausted)), "{reasons:?}");
    let response = client.get(well.url("/")).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len()), (200, 2), "another origin has its own");
}

#[tokio::test]
async fn server_hint_is_minimum_wait() {
    let acts = [
        FaultStep::answer(Answer::new(429).header("retry-after-ms", "30")),
        FaultStep::answer(Answer::new(503).retry_after(0).header("retry-after-ms", "20")),
        FaultStep::answer(200),
    ];
    let server = FaultServer::play(acts).await;
    let client = doubting(&server).build().unwrap();
    let response = client.get("/").send().await.unwrap();
    let waits: Vec<_> = response.attempts().iter().filter_map(Attempt::wait).collect();
    assert_eq!(waits, [Duration::from_millis(30), Duration::from_millis(20)]);
}

#[tokio::test]
async fn too_long_retry_after_ends_operation_at_once() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(503).retry_after(3600))]).await;
    let client = doubting(&server).build().unwrap();
    let error = client.get_json::<Value>("/").await.unwrap_err();
    assert_eq!(error.stop_reason(), Some(StopReason::RetryAfterTooLong));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)));
    assert_eq!((error.status().map(|status| status.as_u16()), server.received().len()), (Some(503), 1));
}

#[tokio::test]
async fn stream_gets_one_attempt() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(429).retry_after(0)), FaultStep::answer(200)]).await;
    let client = trusting(&server).build().unwrap();
    let stream = || steadfast::reqwest::Body::wrap(steadfast::reqwest::Body::from("streamed"));
    let response = client.post("/upload").body(stream()).send().await.unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.stop_reason(), Some(StopReason::BodyNotReplayable));
    let received = server.received();
    assert_eq!((received.len(), received[0].body.as_slice()), (1, &b"streamed"[..]));
}
#[tokio::test]
async fn multipart_form_is_sent_whole_and_once() {
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::answer(200)]).await;
    let client = trusting(&server).build().unwrap();
    let form = steadfast::reqwest::multipart::Form::new().text("name", "value");
    let response = client.put("/upload").multipart(form).send().await.unwrap();
    assert_eq!(response.stop_reason(), Some(StopReason::BodyNotReplayable));
    let received = server.received();
    assert_eq!(received.len(), 1);
    assert!(received[0].header("content-type").unwrap().starts_with("multipart/form-data; boundary="));
    assert!(String::from_utf8_lossy(&received[0].body).contains("value"));
}

#[tokio::test]
async fn retried_response_is_drained_for_connection_reuse() {
    let server =
        FaultServer::play([FaultStep::answer(Answer::new(503).body("x".repeat(20_000))), FaultStep::answer(200)]).await;
    let client = doubting(&server).build().unwrap();
    client.get("/").send().await.unwrap();
    assert_eq!((server.received().len(), server.connections()), (2, 1));
}

#[tokio::test]
async fn attempt_header_carries_attempt_number() {
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::answer(503), FaultStep::answer(200)]).await;
    let header = http::HeaderName::from_static("x-attempt");
    let client = doubting(&server).attempt_header(header).build().unwrap();
    client.get("/").send().await.unwrap();
    let numbers: Vec<_> =
        server.received().iter().map(|request| request.header("x-attempt").unwrap().to_owned()).collect();
    assert_eq!(numbers, ["1", "2", "3"]);
}

#[tokio::test]
async fn retry_directive_is_no_licence() {
    for (status, directive, keys, requests) in [
        (503, "false", KeyPolicy::standard(), 1),
        (400, "true", KeyPolicy::standard(), 2),
        (400, "true", KeyPolicy::off(), 1),
        (503, "true", KeyPolicy::off(), 1),
        (400, "maybe", KeyPolicy::standard(), 1),
    ] {
        let server = FaultServer::play([
            FaultStep::answer(Answer::new(status).header("x-should-retry", directive)),
            FaultStep::answer(200),
        ])
        .await;
        let client = trusting(&server).keys(keys).build().unwrap();
        client.post("/").body("x").send().await.unwrap();
        assert_eq!(server.received().len(), requests, "{status} {directive}");
    }
}

#[tokio::test]
async fn declared_idempotency_overrides_method_and_key() {
    let acts = || [FaultStep::close(FaultPoint::AfterExecuting), FaultStep::execute(200)];
    let server = FaultServer::play(acts()).await;
    let client = trusting(&server).keys(KeyPolicy::off()).build().unwrap();
    client.post("/search").body("x").idempotent(true).send().await.unwrap();
    assert_eq!(server.received().len(), 2, "a POST that only reads");

    for method in [http::Method::PUT, http::Method::POST] {
        let server = FaultServer::play(acts()).await;
        let client = trusting(&server).build().unwrap();
        let error = client.request(method, "/counter").body("x").idempotent(false).send().await.unwrap_err();
        assert_eq!((error.stop_reason(), server.received().len()), (Some(StopReason::NotRepeatable), 1));
    }
}

#[tokio::test]
async fn misdirected_request_is_sent_once_more() {
    let server = FaultServer::play([FaultStep::answer(421)]).await;
    let client = doubting(&server).retry(fast_retries().max_attempts(9)).build().unwrap();
    let response = client.post("/").body("x").send().await.unwrap();
    assert_eq!((response.stop_reason(), server.received().len()), (Some(StopReason::Permanent), 2));
    assert!(!response.may_have_been_processed());
}

#[tokio::test]
async fn throttled_as_ambiguous_is_not_doubled() {
    let server =
        FaultServer::play([FaultStep::execute(Answer::new(429).retry_after(0)), FaultStep::execute(200)]).await;
    let server = server.ignoring_keys();
    let policy = fast_retries().throttled_is_ambiguous(true);
    let client = doubting(&server).retry(policy).build().unwrap();
    let response = client.post("/").body("x").send().await.unwrap();
    assert_eq!((response.stop_reason(), server.executions()), (Some(StopReason::KeyNotTrusted), 1));
    assert!(response.may_have_been_processed());
}

#[tokio::test]
async fn classifier_cannot_change_evidence() {
    let server = FaultServer::play([FaultStep::execute(503), FaultStep::answer(402)]).await;
    let client = doubting(&server).keys(KeyPolicy::off()).classify(|outcome| match outcome.status() {
        Some(http::StatusCode::SERVICE_UNAVAILABLE) => Class::NotProcessed,
        _ => outcome.default_class(),
    });
    let response = client.build().unwrap().post("/").body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), server.received().len()), (402, 2));
    let first = &response.attempts()[0];
    assert_eq!((first.class(), first.default_class()), (Class::NotProcessed, Class::Ambiguous));
    assert!(first.to_string().contains("by the classifier; the table says ambiguous"), "{first}");
    assert!(response.may_have_been_processed(), "the server acted, whatever the closure said");
}

#[tokio::test]
async fn failures_of_given_client_are_ambiguous() {
    let server = FaultServer::play([FaultStep::answer(200)]).await;
    let refused = server.url("/");
    drop(server);
    let build = || Client::builder().retry(fast_retries()).http_client(steadfast::reqwest::Client::new());
    let error = build().build().unwrap().post(&refused).body("x").send().await.unwrap_err();
    assert_eq!(error.stop_reason(), Some(StopReason::KeyNotTrusted), "{error}");
    assert!(error.may_have_been_processed());
    let error = build().assume_no_redirects().build().unwrap().post(&refused).body("x").send().await.unwrap_err();
    assert_eq!((error.kind(), error.attempts().len()), (ErrorKind::Connect, 3), "{error}");
    assert!(!error.may_have_been_processed());
}

/// The response of such a client may belong to a later hop.
#[tokio::test]
async fn redirect_of_given_client_leaves_first_hop_unknown() {
    for (result, status) in [("/result", 429), ("/result", 425), ("/result", 404), ("/charges", 429), ("/charges", 425)]
    {
        let server = FaultServer::start(move |_, request| match request {
            Some(request) if request.method == "POST" => {
                FaultStep::execute(Answer::new(303).header("location", result))
            }
            _ => FaultStep::answer(status),
        });
        let server = server.await;
        let client = doubting(&server).http_client(steadfast::reqwest::Client::new()).build().unwrap();
        let response = client.post("/charges").body("x").send().await.unwrap();
        assert_eq!((response.status().as_u16(), server.executions()), (status, 1), "{result}");
        assert!(response.may_have_been_processed(), "{result} {status}");
    }
    let server = FaultServer::play([FaultStep::answer(404)]).await;
    let client = doubting(&server).http_client(steadfast::reqwest::Client::new()).build().unwrap();
    let response = client.post("/charges?a=b#c").body("x").send().await.unwrap();
    assert!(!response.may_have_been_processed(), "an answer of the URL that was asked");
    // A client declared to follow no redirects is believed.
    let server = FaultServer::play([FaultStep::answer(429), FaultStep::answer(425), FaultStep::answer(404)]).await;
    let none = steadfast::reqwest::Client::builder().redirect(steadfast::reqwest::redirect::Policy::none());
    let client = doubting(&server).http_client(none.build().unwrap()).assume_no_redirects().build().unwrap();
    let response = client.post("/charges").body("x").send().await.unwrap();
    assert_eq!((response.attempts().len(), response.may_have_been_processed()), (3, false));
}

#[tokio::test]
async fn operation_dropped_while_waiting_returns_tokens() {
    let server = FaultServer::play([FaultStep::answer(503)]).await;
    let slow = RetryPolicy::new().max_attempts(2).backoff(Backoff::fixed(Duration::from_secs(20)));
    // Tokens for one retry.
    let budget = RetryBudget::standard().capacity(14);
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let client = doubting(&server).budget(budget).on_event(move |event| {
        if let steadfast::EventKind::RetryScheduled { .. } = event.kind() {
            tell.send(()).unwrap();
        }
    });
    let client = client.build().unwrap();
    tokio::select! {
        _ = client.get("/").retry(slow).send() => unreachable!("it waits for 20 s"),
        _ = told.recv() => {}
    }
    let response = client.get("/").retry(fast_retries().max_attempts(2)).send().await.unwrap();
    assert_eq!(response.stop_reason(), Some(StopReason::AttemptsExhausted), "the tokens were there");
    assert_eq!(server.received().len(), 3);
}

#[tokio::test]
async fn json_post_is_repeated_byte_for_byte() {
    let server = FaultServer::play([
        FaultStep::close(FaultPoint::AfterExecuting),
        FaultStep::reset(FaultPoint::AfterExecuting),
        FaultStep::execute(200),
    ])
    .await;
    let client = trusting(&server).build().unwrap();
    client.post_json::<Value>("/", &json!({"a": [1, 2, 3], "b": "ü"})).await.unwrap();
    let received = server.received();
    assert_eq!(received.len(), 3);
    assert!(received.iter().all(|request| request.body == received[0].body && request.headers == received[0].headers));
}

/// The clocks of client and server differ. A date in `Retry-After` counts by the server's clock.
#[tokio::test]
async fn retry_after_date_is_read_by_servers_clock() {
    let now = UNIX_EPOCH.elapsed().unwrap().as_secs();
    for behind in [-300, 0, 300] {
        let theirs = |seconds: i64| {
            let at = now.checked_add_signed(seconds - behind).unwrap();
            httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(at))
        };
        let busy = Answer::new(503).header("date", theirs(0)).header("retry-after", theirs(7));
        let server = FaultServer::play([FaultStep::answer(busy)]).await;
        let client = trusting(&server).retry(RetryPolicy::never()).build().unwrap();
        let response = client.get("/").send().await.unwrap();
        assert_eq!(response.retry_after(), Some(Duration::from_secs(7)), "{behind} s behind");
    }
}
