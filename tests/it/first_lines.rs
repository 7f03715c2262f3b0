//! The first lines that a user of reqwest writes: its errors under this crate's `Result`, and cloned
//! requests.

use serde_json::json;
use steadfast::{Client, Error, ErrorKind, IdempotencyKey, ResponseExt};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep};

use crate::support::{doubting, trusting};

/// Executes, and cuts the body of its 200 short.
fn cut() -> FaultStep {
    FaultStep::close(FaultPoint::MidBody)
}

/// The first lines that a user of reqwest writes, under this crate's `Result`.
async fn first_lines(client: &Client, url: &str) -> steadfast::Result<(String, u64, steadfast::reqwest::StatusCode)> {
    let text = client.get(url).send().await?.text().await?;
    let number = client.get(url).send().await?.json::<u64>().await?;
    let key = IdempotencyKey::mint()?;
    let given = "order-1042".parse::<IdempotencyKey>()?;
    assert_ne!(key, given);
    let status = client.post(url).idempotency_key(given).send().await?.error_for_status()?.status();
    Ok((text, number, status))
}

#[tokio::test]
async fn first_lines_of_reqwest_user_compile() {
    let number = || FaultStep::answer(Answer::new(200).body("12"));
    let server = FaultServer::play([number(), number(), FaultStep::answer(201)]).await;
    let (text, number, status) = first_lines(&Client::new(), &server.url("/")).await.unwrap();
    assert_eq!((text.as_str(), number, status.as_u16()), ("12", 12, 201));
}

/// Sends a POST, and returns the error of what is made of its response.
async fn outside(step: FaultStep, read: impl AsyncFn(steadfast::reqwest::Response) -> steadfast::Result<()>) -> Error {
    let server = FaultServer::play([step]).await;
    let client = trusting(&server).read_timeout(std::time::Duration::from_millis(200)).build().unwrap();
    let response = client.post("/?q=s3cret").body("x").send().await.unwrap();
    let error = read(response).await.unwrap_err();
    assert_eq!(server.received().len(), 1, "nothing repeats it");
    error
}

#[tokio::test]
async fn reqwest_error_knows_nothing_of_operation() {
    let text = async |response: steadfast::reqwest::Response| response.text().await.map(drop).map_err(Error::from);
    let json =
        async |response: steadfast::reqwest::Response| response.json::<u64>().await.map(drop).map_err(Error::from);
    let status =
        async |response: steadfast::reqwest::Response| response.error_for_status().map(drop).map_err(Error::from);
    let body = |status, body: &str| FaultStep::execute(Answer::new(status).body(body));
    for (error, kind, status) in [
        (outside(cut(), text).await, ErrorKind::ResponseBody, None),
        (outside(FaultStep::stall(FaultPoint::MidBody), text).await, ErrorKind::Timeout, None),
        (outside(body(200, "\"s3cret\""), json).await, ErrorKind::Decode, None),
        (outside(body(402, "no"), status).await, ErrorKind::Status, Some(402)),
    ] {
        assert_eq!((error.kind(), error.status().map(|status| status.as_u16())), (kind, status), "{error}");
        assert!(error.may_have_been_processed(), "{error}");
        assert!(error.resume_token().is_none() && error.attempts().is_empty() && error.stop_reason().is_none());
        let text = format!("{error:?} {error:#}");
        assert!(text.contains("may have been processed") && !text.contains("nothing was sent"), "{text}");
        assert!(!text.contains("s3cret") && !text.contains("http:"), "{text}");
    }
    let refused = steadfast::reqwest::get("http://127.0.0.1:9/?q=s3cret").await.map_err(Error::from).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Connect, "{refused:#}");
    let invalid = steadfast::reqwest::get("no url s3cret").await.map_err(Error::from).unwrap_err();
    assert_eq!(invalid.kind(), ErrorKind::Transport, "{invalid:#}");
    for error in [refused, invalid] {
        assert!(error.may_have_been_processed() && !format!("{error:#}").contains("s3cret"), "{error:#}");
    }
}

#[tokio::test]
async fn result_of_foreign_response_knows_nothing() {
    let server = FaultServer::play([FaultStep::execute(Answer::new(500).body("broken"))]).await;
    let response = steadfast::reqwest::get(server.url("/")).await.unwrap();
    let error = response.into_result().await.unwrap_err();
    assert_eq!((error.kind(), error.body()), (ErrorKind::Status, Some(&b"broken"[..])));
    assert!(error.may_have_been_processed() && !error.to_string().contains("nothing was sent"), "{error}");
}

#[tokio::test]
async fn invalid_key_is_build_error() {
    let error = Error::from("".parse::<IdempotencyKey>().unwrap_err());
    assert!(error.is_build() && !error.may_have_been_processed(), "{error}");
    assert!(error.to_string().starts_with("idempotency_key: "), "{error}");
}

#[tokio::test]
async fn clone_without_key_is_operation_of_its_own() {
    let server = FaultServer::play([FaultStep::ok(), FaultStep::ok()]).await;
    let client = trusting(&server).build().unwrap();
    let request = client.post("/").header("x-trace", "t").query(&[("page", 2)]).json(&json!({ "amount": 1 }));
    let clone = request.try_clone().unwrap();
    request.send().await.unwrap();
    clone.send().await.unwrap();
    let received = server.received();
    assert_eq!((server.executions(), received.len()), (2, 2));
    assert_ne!(received[0].key(), received[1].key());
    assert_eq!((&received[0].body, &received[0].target), (&received[1].body, &received[1].target));
    for name in ["x-trace", "content-type"] {
        assert!(received[1].header(name).is_some_and(|value| received[0].header(name) == Some(value)), "{name}");
    }
}

#[tokio::test]
async fn clone_with_key_is_the_same_operation() {
    let server = FaultServer::play([FaultStep::ok(), FaultStep::ok(), FaultStep::ok(), FaultStep::ok()]).await;
    let client = trusting(&server).build().unwrap();
    let by_method = client.post("/").body("x").idempotency_key("order-1042".parse().unwrap());
    let by_header = client.post("/").body("x").header("idempotency-key", "order-1043");
    for (executions, request) in [(1, by_method), (2, by_header)] {
        request.try_clone().unwrap().send().await.unwrap();
        request.send().await.unwrap();
        assert_eq!(server.executions(), executions);
    }
    let keys: Vec<_> = server.keys().into_iter().flatten().collect();
    assert_eq!(keys, ["order-1042", "order-1042", "order-1043", "order-1043"]);
}

#[tokio::test]
async fn only_body_that_can_be_sent_again_is_cloned() {
    let client = Client::new();
    let stream = || steadfast::reqwest::Body::wrap(steadfast::reqwest::Body::from("x"));
    let post = || client.post("http://127.0.0.1:9/");
    assert!(post().body(stream()).try_clone().is_none());
    assert!(post().multipart(steadfast::reqwest::multipart::Form::new().text("a", "b")).try_clone().is_none());
    assert!(post().header("no name", "x").try_clone().is_none(), "a setting is invalid");
    assert!(post().body("x").try_clone().is_some());

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "bytes").unwrap();
    let server = FaultServer::play([FaultStep::ok(), FaultStep::ok(), FaultStep::ok(), FaultStep::ok()]).await;
    let client = doubting(&server).build().unwrap();
    for request in [client.put("/").file(file.path()), client.put("/").body_factory(|| "bytes")] {
        request.try_clone().unwrap().send().await.unwrap();
        request.send().await.unwrap();
    }
    assert!(server.received().iter().all(|request| request.body == b"bytes"), "{:?}", server.received());
}
