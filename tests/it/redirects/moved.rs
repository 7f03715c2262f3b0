//! A 301 or 302 to a request with effects ends the operation. Nothing is sent to the new address,
//! and no caller sees a success.

use http::Method;
use serde_json::{Value, json};
use steadfast::policy::{BreakerPolicy, HedgePolicy, RetryPolicy, StopReason};
use steadfast::{Client, Error, ErrorKind, EventKind, IdempotencyKey, KeyPolicy, ResponseExt};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

use super::{by_path, lines, redirect};
use crate::support::{doubting, trusting};

/// A server that has moved `/charges` and serves a GET of the new address, as a server does that
/// lists `/charges/`.
async fn moved(status: u16) -> FaultServer {
    by_path(move |request| match (request.method.as_str(), request.target.as_str()) {
        (_, "/charges") => FaultStep::execute(redirect(status, "/charges/")),
        ("GET", _) => FaultStep::answer(200),
        _ => FaultStep::execute(200),
    })
    .await
}

#[tokio::test]
async fn moved_post_error_names_new_address() {
    for status in [301, 302] {
        let server = moved(status).await;
        let client = trusting(&server).build().unwrap();
        let error = client.post_json::<Value>("/charges", &json!({"amount": 12})).await.unwrap_err();
        assert_eq!(lines(&server), ["POST /charges"], "nothing else is sent");
        assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::Redirect, Some(StopReason::Done)), "{error}");
        assert!(error.may_have_been_processed(), "{error}");
        let place = format!("status {status}, a redirect to {} that is not followed", server.url("/charges/"));
        assert!(error.to_string().contains(&place), "{error}");
        assert!(error.to_string().contains("does not say whether the request was carried out"), "{error}");
    }
}

#[tokio::test]
async fn method_with_effects_ends_at_301() {
    for status in [301, 302] {
        for method in ["POST", "PUT", "PATCH", "DELETE", "PURGE"] {
            let method: Method = method.parse().unwrap();
            let server = moved(status).await;
            let client = trusting(&server).build().unwrap();
            let response = client.request(method.clone(), "/charges").body("x").send().await.unwrap();
            assert_eq!((response.status().as_u16(), response.url().path()), (status, "/charges"), "{method}");
            assert_eq!(lines(&server), [format!("{method} /charges")]);
            assert!(response.may_have_been_processed(), "{method} {status}");
            let error = response.into_result().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Redirect);
            assert!(error.to_string().contains(&server.url("/charges/")), "{error}");
        }
    }
}

/// A licence permits the repeat of a failure, and a 302 is no failure.
#[tokio::test]
async fn no_licence_repeats_after_302() {
    let server = moved(302).await.ignoring_keys();
    let key: IdempotencyKey = "order-1".parse().unwrap();
    let client = trusting(&server).build().unwrap();
    client.post("/charges").idempotency_key(key.clone()).body("x").send().await.unwrap();
    client.post("/charges").idempotent(true).body("x").send().await.unwrap();
    client.post("/charges").idempotency_key(key).idempotent(true).body("x").send().await.unwrap();
    let says_go = Answer::new(302).header("location", "/charges/").header("x-should-retry", "true");
    let eager = FaultServer::play([FaultStep::execute(says_go)]).await;
    trusting(&eager).build().unwrap().put("/charges").body("x").send().await.unwrap();
    assert_eq!((server.executions(), eager.executions()), (3, 1), "one for each operation");
}

#[tokio::test]
async fn lost_response_then_302_ends_operation() {
    let server =
        FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::execute(redirect(302, "/done"))])
            .await;
    let client = trusting(&server).build().unwrap();
    let response = client.post("/charges").body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len(), server.executions()), (302, 2, 1));
    assert_eq!(lines(&server), ["POST /charges", "POST /charges"]);
    assert!(response.may_have_been_processed());
}

#[tokio::test]
async fn post_301_behind_307_is_resolved_against_hop() {
    let server = by_path(|request| match request.target.as_str() {
        "/a" => FaultStep::answer(redirect(307, "/deep/b")),
        _ => FaultStep::execute(redirect(301, "c/?q=s3cret")),
    })
    .await;
    let client = trusting(&server).build().unwrap();
    let error = client.post_json::<Value>("/a", &json!({})).await.unwrap_err();
    assert_eq!(lines(&server), ["POST /a", "POST /deep/b"]);
    assert!(error.to_string().contains(&format!("a redirect to {} that", server.url("/deep/c/"))), "{error}");
    assert!(error.may_have_been_processed() && !error.to_string().contains("s3cret"), "{error}");
    let token = serde_json::to_value(error.resume_token().unwrap()).unwrap();
    assert_eq!(token["target"].as_str(), Some(server.url("/a").as_str()), "what was asked");
}

#[tokio::test]
async fn get_301_after_303_is_followed() {
    let server = by_path(|request| match request.target.as_str() {
        "/charges" => FaultStep::execute(redirect(303, "/result")),
        "/result" => FaultStep::answer(redirect(301, "/result/")),
        _ => FaultStep::answer(200),
    })
    .await;
    let client = trusting(&server).build().unwrap();
    client.post_json::<Value>("/charges", &json!({})).await.unwrap();
    assert_eq!(lines(&server), ["POST /charges", "GET /result", "GET /result/"]);
}

#[tokio::test]
async fn post_becomes_get_only_if_allowed() {
    for status in [301, 302] {
        let server = moved(status).await;
        let habit = trusting(&server).redirect_post_as_get(true).build().unwrap();
        habit.post_json::<Value>("/charges", &json!({"amount": 12})).await.unwrap();
        assert_eq!(lines(&server), ["POST /charges", "GET /charges/"]);
        let hop = &server.received()[1];
        assert_eq!((hop.key(), hop.header("content-type"), hop.body.len()), (None, None, 0));
        for method in [Method::PUT, Method::PATCH, Method::DELETE] {
            let response = habit.request(method, "/charges").body("x").send().await.unwrap();
            assert_eq!(response.status().as_u16(), status, "POST alone");
        }
        // A request can set the option itself, or override the client's setting.
        let strict = trusting(&server).build().unwrap();
        let send = |request: steadfast::RequestBuilder| async move { request.send().await.unwrap().status().as_u16() };
        assert_eq!(send(strict.post("/charges").redirect_post_as_get(true)).await, 200);
        assert_eq!(send(habit.post("/charges").redirect_post_as_get(false)).await, status);
    }
}

/// As after a 303: the GET failed, and the POST was processed.
#[tokio::test]
async fn post_that_became_get_may_be_processed() {
    let server = by_path(|request| match request.method.as_str() {
        "POST" => FaultStep::execute(redirect(302, "/result")),
        _ => FaultStep::close(FaultPoint::AfterExecuting),
    })
    .await;
    let client = doubting(&server).keys(KeyPolicy::off()).redirect_post_as_get(true).build().unwrap();
    let error = client.post_json::<Value>("/charges", &json!({})).await.unwrap_err();
    assert_eq!(lines(&server), ["POST /charges", "GET /result", "GET /result", "GET /result"]);
    assert!(error.may_have_been_processed(), "{error}");
}

#[tokio::test]
async fn unfollowed_307_is_not_processed() {
    let other = FaultServer::play([FaultStep::answer(200)]).await;
    for status in [307, 308] {
        let server = FaultServer::play([FaultStep::answer(redirect(status, other.url("/")))]).await;
        for client in [trusting(&server), trusting(&server).max_redirects(0)] {
            let client = client.build().unwrap();
            let error = client.post_json::<Value>("/charges", &json!({})).await.unwrap_err();
            assert_eq!((error.kind(), error.may_have_been_processed()), (ErrorKind::Redirect, false), "{error}");
            assert!(error.to_string().contains(&other.url("/")), "{error}");
            assert!(!error.resume_token().unwrap().may_have_been_processed());
        }
        assert_eq!((server.executions(), other.connections()), (0, 0));
    }
}

#[tokio::test]
async fn lost_307_hop_is_classified_by_the_hop() {
    for (hop, processed) in [(FaultStep::close(FaultPoint::AfterExecuting), true), (FaultStep::answer(404), false)] {
        let server = FaultServer::play([FaultStep::answer(redirect(307, "/b")), hop]).await;
        let client = trusting(&server).retry(RetryPolicy::never()).build().unwrap();
        let error = client.post_json::<Value>("/a", &json!({})).await.unwrap_err();
        assert_eq!((error.may_have_been_processed(), server.executions() > 0), (processed, processed), "{error}");
    }
}

#[tokio::test]
async fn circle_of_307s_is_not_processed() {
    let server =
        by_path(|request| FaultStep::answer(redirect(307, if request.target == "/a" { "/b" } else { "/a" }))).await;
    let client = trusting(&server).build().unwrap();
    let error = client.post_json::<Value>("/a", &json!({})).await.unwrap_err();
    assert_eq!((error.kind(), server.executions()), (ErrorKind::Redirect, 0));
    assert!(!error.may_have_been_processed(), "{error}");
}

#[tokio::test]
async fn redirect_without_location_is_returned() {
    let answers = [
        (301, None, true),
        (302, Some("https://["), true),
        (303, None, true),
        (303, Some("mailto:s3cret@x"), true),
        (307, None, false),
        (308, Some("ftp://x/"), false),
        (300, None, true),
        (304, None, true),
        (305, Some("http://proxy.example/"), true),
        (306, None, true),
    ];
    for (status, location, processed) in answers {
        let answer = Answer::new(status);
        let answer = location.map_or(answer.clone(), |location| answer.header("location", location));
        let server = FaultServer::play([FaultStep::execute(answer)]).await;
        let client = trusting(&server).build().unwrap();
        let response = client.post("/charges").body("x").send().await.unwrap();
        let seen = (response.status().as_u16(), response.may_have_been_processed());
        assert_eq!((seen, server.received().len()), ((status, processed), 1), "{location:?}");
        let error = response.into_result().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Redirect);
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}

#[tokio::test]
async fn disabled_redirects_are_returned_for_all_methods() {
    let server = moved(302).await;
    let client = trusting(&server).max_redirects(0).redirect_post_as_get(true).build().unwrap();
    for method in [Method::GET, Method::POST, Method::PUT] {
        let response = client.request(method, "/charges").send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.may_have_been_processed()), (302, true));
    }
    assert_eq!(server.received().len(), 3);
}

/// A 301 is a response of the origin, and a fast one.
#[tokio::test]
async fn breaker_counts_301_as_response() {
    let server = moved(301).await;
    let breaker = BreakerPolicy::new().min_calls(2);
    let client = trusting(&server).breaker(breaker).cooldown().build().unwrap();
    for _ in 0..6 {
        client.post("/charges").body("x").send().await.unwrap();
    }
    assert_eq!(server.received().len(), 6, "the circuit stays closed");
}

#[tokio::test]
async fn moved_hedged_put_ends_operation() {
    let late = std::time::Duration::from_millis(60);
    let server = FaultServer::start(move |turn, request| match request {
        Some(request) if request.target == "/charges" => {
            let answer = redirect(302, "/charges/");
            FaultStep::execute(if turn == 0 { answer.delay(late) } else { answer })
        }
        _ => FaultStep::execute(200),
    })
    .await;
    let client = trusting(&server).build().unwrap();
    let hedge = HedgePolicy::after(std::time::Duration::from_millis(5));
    let response = client.put("/charges").hedge(hedge).body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len()), (302, 2), "{:?}", response.attempts());
    assert_eq!(lines(&server), ["PUT /charges", "PUT /charges"]);
    assert!(response.may_have_been_processed());
}

#[tokio::test]
async fn events_and_journal_contain_302() {
    let server = moved(302).await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let client = trusting(&server).on_event(move |event| {
        if let EventKind::OperationEnded { reason, attempts, may_have_been_processed, .. } = event.kind() {
            tell.send((reason, attempts, may_have_been_processed)).unwrap();
        }
    });
    let response = client.build().unwrap().post("/charges").body("x").send().await.unwrap();
    assert_eq!(told.recv().await, Some((StopReason::Done, 1, true)));
    assert_eq!(response.attempts()[0].status().map(|status| status.as_u16()), Some(302));
}

/// To resume is to repeat, so it needs the licence. It then meets the same 302.
#[tokio::test]
async fn moved_operation_needs_licence_to_resume() {
    let server = moved(302).await.ignoring_keys();
    let lost = |error: Error| error.resume_token().unwrap().clone();
    let error = doubting(&server).build().unwrap().post_json::<Value>("/charges", &json!({})).await.unwrap_err();
    let token = lost(error);
    assert!(token.may_have_been_processed());
    let again = |client: Client| client.post("/charges").json(&json!({})).resume(token.clone()).fetch::<Value>();
    let refused = again(doubting(&server).build().unwrap()).await.unwrap_err();
    assert_eq!((refused.kind(), server.executions()), (ErrorKind::KeyExpired, 1));
    let licensed = again(trusting(&server).retry(fast_retries()).build().unwrap()).await.unwrap_err();
    assert_eq!((licensed.kind(), server.received().len()), (ErrorKind::Redirect, 2));
}
