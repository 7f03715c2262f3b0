//! Redirects over real sockets: what each hop receives, and how the operation ends if a later hop
//! fails.

mod moved;
mod origins;
mod table;

use std::time::Duration;

use serde_json::{Value, json};
use steadfast::policy::{BreakerPolicy, Class, RetryPolicy, StopReason};
use steadfast::{Client, ErrorKind, KeyPolicy, ResponseExt};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, Received, fast_retries};

use crate::support::{clock, trusting};

fn redirect(status: u16, to: impl Into<String>) -> Answer {
    Answer::new(status).header("location", to)
}

/// Starts a server that chooses its response by path.
async fn by_path(route: impl Fn(&Received) -> FaultStep + Send + Sync + 'static) -> FaultServer {
    FaultServer::start(move |_, request| request.map_or(FaultStep::answer(200), &route)).await
}

fn lines(server: &FaultServer) -> Vec<String> {
    server.received().iter().map(|request| format!("{} {}", request.method, request.target)).collect()
}

#[tokio::test]
async fn same_origin_307_keeps_method_body_and_key() {
    let server = FaultServer::play([
        FaultStep::answer(redirect(307, "/b?x=1")),
        FaultStep::answer(redirect(308, "/c")),
        FaultStep::execute(200),
    ])
    .await;
    let client = trusting(&server).build().unwrap();
    let response = client.post("/a").json(&json!({"amount": 5})).header("x-mine", "1").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.url().path(), response.attempts().len()), (200, "/c", 1));
    assert_eq!(lines(&server), ["POST /a", "POST /b?x=1", "POST /c"]);
    let received = server.received();
    assert!(received.iter().all(|hop| hop.body == br#"{"amount":5}"# && hop.header("x-mine") == Some("1")));
    assert!(received[0].key().is_some() && received.iter().all(|hop| hop.key() == received[0].key()));
    assert_eq!(server.connections(), 1, "the redirects were read away");
}

#[tokio::test]
async fn post_303_becomes_get_without_body_and_key() {
    let server = FaultServer::play([FaultStep::execute(redirect(303, "/result")), FaultStep::answer(200)]).await;
    let client = trusting(&server).build().unwrap();
    let value: Value = client.post_json("/charges", &json!({"amount": 5})).await.unwrap();
    assert_eq!(value["status"], 200);
    assert_eq!(lines(&server), ["POST /charges", "GET /result"]);
    let hop = &server.received()[1];
    assert_eq!((hop.key(), hop.header("content-type"), hop.body.len()), (None, None, 0));
}

#[tokio::test]
async fn lost_result_behind_303_repeats_only_the_get() {
    // The server ignores keys and the client has no licence: the GET may be repeated, the POST may
    // not.
    let server = by_path(|request| match request.method.as_str() {
        "POST" => FaultStep::execute(redirect(303, "/result")),
        _ => FaultStep::close(FaultPoint::AfterExecuting),
    });
    let server = server.await;
    let client =
        Client::builder().base_url(server.url("")).retry(fast_retries()).keys(KeyPolicy::off()).build().unwrap();
    let error = client.post_json::<Value>("/charges", &json!({})).await.unwrap_err();
    assert_eq!(lines(&server), ["POST /charges", "GET /result", "GET /result", "GET /result"]);
    assert_eq!(error.stop_reason(), Some(StopReason::AttemptsExhausted));
    assert!(error.may_have_been_processed(), "{error}");
    assert!(error.to_string().starts_with(&format!("POST {}", server.url("/charges"))), "{error}");
}

#[tokio::test]
async fn refused_hop_after_303_may_be_processed() {
    let gone = FaultServer::play([FaultStep::answer(200)]).await;
    let nowhere = gone.url("/result");
    drop(gone);
    let server = FaultServer::play([FaultStep::execute(redirect(303, nowhere))]).await;
    let client = trusting(&server).build().unwrap();
    let error = client.post_json::<Value>("/charges", &json!({})).await.unwrap_err();
    assert_eq!((error.kind(), server.received().len()), (ErrorKind::Connect, 1));
    assert!(error.may_have_been_processed(), "{error}");
    assert!(error.attempts().iter().all(|attempt| attempt.class() == Class::Ambiguous), "{error:#}");
    // The token belongs to the caller's request, not to the GET.
    assert_eq!(error.method(), Some(&http::Method::POST));
    let token = serde_json::to_value(error.resume_token().unwrap()).unwrap();
    assert_eq!(
        (token["method"].as_str(), token["target"].as_str()),
        (Some("POST"), Some(server.url("/charges").as_str()))
    );
}

#[tokio::test]
async fn lost_hop_after_307_restarts_at_first_url() {
    let server = FaultServer::play([
        FaultStep::answer(redirect(307, "/b")),
        FaultStep::close(FaultPoint::AfterExecuting),
        FaultStep::answer(redirect(307, "/b")),
        FaultStep::execute(200),
    ])
    .await;
    let client = trusting(&server).build().unwrap();
    let response = client.post("/a").body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len(), server.executions()), (200, 2, 1));
    assert_eq!(lines(&server), ["POST /a", "POST /b", "POST /a", "POST /b"]);
}

#[tokio::test]
async fn other_origin_gets_no_private_headers_on_any_hop() {
    // reqwest 0.13.5 sends Authorization again on the second hop of such a chain, and custom
    // headers on all of them.
    let abroad = by_path(|request| match request.target.as_str() {
        "/1" => FaultStep::answer(redirect(302, "/2")),
        _ => FaultStep::answer(200),
    })
    .await;
    let home = FaultServer::play([FaultStep::answer(redirect(302, abroad.url("/1")))]).await;
    let client = Client::builder().base_url(home.url("")).bearer_auth("s3cret").retry(fast_retries()).build().unwrap();
    let request = client
        .get("/")
        .header("cookie", "c")
        .header("x-mine", "1")
        .header("accept-language", "de")
        .header("range", "bytes=0-1");
    let request = request.idempotency_key("mine".parse().unwrap()).header("referer", "x");
    assert_eq!(request.send().await.unwrap().status(), 200);
    assert_eq!(home.received()[0].header("authorization"), Some("Bearer s3cret"));
    assert_eq!(lines(&abroad), ["GET /1", "GET /2"]);
    for hop in abroad.received() {
        assert_eq!(hop.header("host"), Some(abroad.address().to_string().as_str()));
        for name in ["authorization", "cookie", "x-mine", "idempotency-key", "referer"] {
            assert_eq!(hop.header(name), None, "{name} on {}", hop.target);
        }
        assert_eq!((hop.header("accept-language"), hop.header("range")), (Some("de"), Some("bytes=0-1")));
    }
}

#[tokio::test]
async fn other_origin_gets_neither_key_nor_host() {
    let abroad = FaultServer::play([FaultStep::answer(200)]).await;
    let home = FaultServer::play([FaultStep::answer(redirect(302, abroad.url("/1")))]).await;
    let client = trusting(&home).build().unwrap();
    client.get("/").idempotency_key("mine".parse().unwrap()).send().await.unwrap();
    assert_eq!(home.received()[0].key(), Some("mine"));
    let hop = &abroad.received()[0];
    assert_eq!((hop.header("host"), hop.key()), (Some(abroad.address().to_string().as_str()), None));
}

#[tokio::test]
async fn get_with_body_stays_on_its_origin() {
    let abroad = FaultServer::play([FaultStep::answer(200)]).await;
    let home = FaultServer::play([FaultStep::answer(redirect(302, abroad.url("/")))]).await;
    let client = trusting(&home).build().unwrap();
    let response = client.get("/search").json(&json!({"query": "private"})).send().await.unwrap();
    assert_eq!((response.status().as_u16(), abroad.connections()), (302, 0));
}

#[tokio::test]
async fn chain_that_returns_gets_no_credentials() {
    let home = by_path(|request| match request.target.as_str() {
        "/back" => FaultStep::answer(200),
        _ => FaultStep::answer(redirect(302, request.header("x-to").unwrap_or("/").to_owned())),
    })
    .await;
    let back = home.url("/back");
    let abroad = by_path(move |_| FaultStep::answer(redirect(302, back.clone()))).await;
    let client = Client::builder().base_url(home.url("")).bearer_auth("s3cret").build().unwrap();
    client.get("/").header("x-to", abroad.url("/")).send().await.unwrap();
    assert_eq!(home.received()[1].header("authorization"), None);
}

#[tokio::test]
async fn post_stays_on_its_origin() {
    let abroad = FaultServer::play([FaultStep::answer(200)]).await;
    let server = FaultServer::play([FaultStep::answer(redirect(307, abroad.url("/")))]).await;
    let client = trusting(&server).build().unwrap();
    let response = client.post("/").body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.stop_reason()), (307, Some(StopReason::Done)));
    let error = client.post_json::<Value>("/", &json!({})).await.unwrap_err();
    assert_eq!((error.kind(), abroad.connections()), (ErrorKind::Redirect, 0));
}

#[tokio::test]
async fn streamed_body_follows_no_307() {
    let server = FaultServer::play([FaultStep::answer(redirect(307, "/b"))]).await;
    let client = trusting(&server).build().unwrap();
    let stream = steadfast::reqwest::Body::wrap(steadfast::reqwest::Body::from("streamed"));
    assert_eq!(client.put("/a").body(stream).send().await.unwrap().status(), 307);
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn redirect_circle_or_long_chain_error_lists_hops() {
    let server = by_path(|request| {
        FaultStep::answer(redirect(302, if request.target == "/a?q=s3cret" { "/b" } else { "/a?q=s3cret" }))
    })
    .await;
    let client = trusting(&server).build().unwrap();
    let error = client.get("/a?q=s3cret").send().await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    let url = |path| server.url(path);
    assert_eq!(source, format!("a circle of redirects: GET {} -> GET {} -> GET {}", url("/a"), url("/b"), url("/a")));
    assert_eq!(
        (error.kind(), error.stop_reason(), server.received().len()),
        (ErrorKind::Redirect, Some(StopReason::Permanent), 2)
    );
    assert!(error.may_have_been_processed());

    let server = by_path(|request| {
        let number: u32 = request.target.trim_start_matches('/').parse().unwrap();
        FaultStep::answer(if number == 11 { Answer::new(200) } else { redirect(302, format!("/{}", number + 1)) })
    })
    .await;
    let client = trusting(&server).build().unwrap();
    let error = client.get("/0").send().await.unwrap_err();
    assert_eq!(server.received().len(), 11, "the first and ten hops");
    assert!(
        std::error::Error::source(&error).unwrap().to_string().starts_with("too many redirects: GET "),
        "{error:?}"
    );
    assert_eq!(client.get("/1").send().await.unwrap().status(), 200, "ten hops are well");
    let none = trusting(&server).max_redirects(0).build().unwrap();
    assert_eq!(none.get("/0").send().await.unwrap().status(), 302);
}

#[tokio::test]
async fn hops_share_the_attempt_timeout() {
    let slow = std::time::Duration::from_millis(80);
    let server = by_path(move |request| {
        let number: u32 = request.target.trim_start_matches('/').parse().unwrap();
        FaultStep::answer(redirect(302, format!("/{}", number + 1)).delay(slow))
    })
    .await;
    let client = trusting(&server).retry(fast_retries().max_attempts(1)).attempt_timeout(2 * slow).build().unwrap();
    let error = client.get("/0").send().await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert!(server.received().len() <= 3);
}

/// The caller has declared that this GET has effects. Neither 302 nor 303 denies that they
/// happened.
#[tokio::test]
async fn get_with_effects_is_not_repeated_behind_redirect() {
    for status in [301, 302, 303] {
        let server = by_path(move |request| match request.target.as_str() {
            "/act" => FaultStep::execute(redirect(status, "/result")),
            _ => FaultStep::answer(425),
        });
        let server = server.await;
        let client = trusting(&server).build().unwrap();
        let response = client.get("/act").idempotent(false).send().await.unwrap();
        assert_eq!(lines(&server), ["GET /act", "GET /result"], "{status}");
        assert_eq!(response.stop_reason(), Some(StopReason::NotRepeatable), "{status}");
        assert!(response.may_have_been_processed(), "{status}");
    }
}

/// A redirect leads to another server. Its limits and failures are not those of the first origin.
#[tokio::test]
async fn trouble_of_redirect_target_spares_first_origin() {
    let elsewhere = FaultServer::play([FaultStep::answer(Answer::new(429).retry_after(30))]).await;
    let to = elsewhere.url("/file");
    let server = by_path(move |request| match request.target.as_str() {
        "/download" => FaultStep::answer(redirect(302, &to)),
        _ => FaultStep::execute(200),
    });
    let server = server.await;
    let client = trusting(&server)
        .retry(RetryPolicy::never())
        .cooldown()
        .breaker(BreakerPolicy::new().min_calls(2))
        .build()
        .unwrap();
    for _ in 0..2 {
        assert_eq!(client.get("/download").send().await.unwrap().status(), 429);
    }
    elsewhere.refuse_connections().await;
    for _ in 0..4 {
        client.get("/download").send().await.unwrap_err();
    }
    let begun = clock::now();
    assert_eq!(client.post("/charges").body("x").send().await.unwrap().status(), 200);
    assert!(begun.elapsed() < Duration::from_secs(10), "nothing cools down here");
    assert_eq!(server.executions(), 1);
}
