//! Scripts on a wiremock server: the responses that they play, and that none of their mistakes
//! passes unnoticed.

use std::time::Duration;

use serde_json::{Value, json};
use steadfast::{Client, ErrorKind, KeyPolicy, ResponseExt};
use steadfast_testing::wiremock::matchers::header;
use steadfast_testing::{MockServer, Script, any, assert_attempts, assert_one_key, fast_retries, get, keys, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::panic_of;

fn client(server: &MockServer) -> Client {
    Client::builder().base_url(server.uri()).keys(KeyPolicy::standard()).retry(fast_retries()).build().unwrap()
}

#[tokio::test]
async fn script_plays_in_order() {
    let server = MockServer::start().await;
    let script = Script::new().status(503).retry_after(0).header("x-step", "1").hang_up();
    let script = script.delay(Duration::from_millis(50)).ok_json(&json!({ "id": "ch_1" }));
    script.mount(&server, post("/charges")).await;
    let response = client(&server).post("/charges").body("x").send().await.unwrap();
    let statuses: Vec<_> = response.attempts().iter().map(|attempt| attempt.status().map(|s| s.as_u16())).collect();
    assert_eq!(statuses, [Some(503), None, Some(200)]);
    assert!(response.elapsed() >= Duration::from_millis(50), "the delay belongs to the answer after it");
    assert_eq!(response.json::<Value>().await.unwrap()["id"], "ch_1");
    assert_attempts(&server, 3).await;
    assert_one_key(&server).await;
    let keys = keys(&server).await;
    assert_eq!(keys.len(), 3);
    assert!(keys[0].is_some() && keys.iter().all(|key| *key == keys[0]));
}

#[tokio::test]
async fn headers_and_bodies_belong_to_preceding_answer() {
    let server = MockServer::start().await;
    let script = Script::new().status(402).json(&json!({ "code": "card_declined" })).header("x-request-id", "r1");
    script.status(200).mount(&server, get("/")).await;
    let error = client(&server).get_json::<Value>("/").await.unwrap_err();
    assert_eq!(error.json::<Value>().unwrap()["code"], "card_declined");
    assert_eq!(error.headers().unwrap()["x-request-id"], "r1");
    assert_eq!(client(&server).get("/").send().await.unwrap().headers().get("x-request-id"), None);
}

#[tokio::test]
async fn steps_repeat_and_last_can_repeat_forever() {
    let server = MockServer::start().await;
    Script::new().status(503).times(2).status(500).forever().mount(&server, any()).await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(steadfast::reqwest::get(server.uri()).await.unwrap().status().as_u16());
    }
    assert_eq!(statuses, [503, 503, 500, 500, 500]);
}

#[tokio::test]
async fn script_applies_to_its_route_only() {
    let server = MockServer::start().await;
    Script::new().status(201).mount(&server, post("/charges").and(header("x-tenant", "a"))).await;
    let send = |path, tenant| client(&server).post(path).header("x-tenant", tenant).body("x").send();
    assert_eq!(send("/charges", "b").await.unwrap().status(), 404);
    assert_eq!(send("/refunds", "a").await.unwrap().status(), 404);
    assert_eq!(client(&server).get("/charges").header("x-tenant", "a").send().await.unwrap().status(), 404);
    assert_eq!(send("/charges", "a").await.unwrap().status(), 201);
}

#[tokio::test]
async fn exhausted_script_fails_the_test() {
    let server = MockServer::start().await;
    let script = Script::new().status(503).mount(&server, post("/charges")).await;
    let error = client(&server).post_json::<Value>("/charges", &json!({})).await.unwrap_err();
    // It is not a success, and the client does not retry it.
    assert_eq!((error.kind(), error.status().unwrap().as_u16(), error.attempts().len()), (ErrorKind::Status, 501, 2));
    let text = "the script for POST /charges has run out: it has 1 step; requests after the last step: 1";
    assert_eq!(error.body().unwrap(), text.as_bytes());
    // The count is right, but the test fails all the same, at the end of the guard's scope.
    assert_attempts(&server, 2).await;
    assert_eq!(script.requests_after_end(), 1);
    let message = panic_of(async { drop(script) }).await;
    assert!(message.contains(text), "{message}");
    // A test that has not kept the guard fails when the server is dropped.
    let message = panic_of(server.verify()).await;
    assert!(message.contains("the script for POST /charges has run out"), "{message}");
    server.reset().await;
    assert_attempts(&server, 0).await;
}

#[tokio::test]
async fn bodies_are_text_bytes_and_json() {
    let server = MockServer::start().await;
    let script = Script::new().status(200).text("grüße").status(200).bytes([0_u8, 255]);
    // The script's own type wins, before and after the body.
    let script = script.status(409).json(&json!({})).header("content-type", "application/problem+json");
    let script = script.status(409).header("content-type", "application/problem+json").json(&json!({}));
    script.mount(&server, any()).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let response = steadfast::reqwest::get(server.uri()).await.unwrap();
        let content_type = response.headers().get("content-type").map(|value| value.to_str().unwrap().to_owned());
        seen.push((content_type, response.bytes().await.unwrap().to_vec()));
    }
    let expect = |content_type: Option<&str>, body: &[u8]| (content_type.map(str::to_owned), body.to_vec());
    assert_eq!(seen[0], expect(Some("text/plain; charset=utf-8"), "grüße".as_bytes()));
    assert_eq!(seen[1], expect(None, &[0, 255]));
    assert_eq!(seen[2], expect(Some("application/problem+json"), b"{}"));
    assert_eq!(seen[3], seen[2]);
}

#[tokio::test]
async fn unplayed_step_fails_if_asked_to() {
    let server = MockServer::start().await;
    let script = Script::new().status(503).hang_up().status(200).mount(&server, post("/charges")).await;
    assert_eq!(script.steps_left(), 3);
    let once = Client::builder().base_url(server.uri()).retry(fast_retries().max_attempts(1)).build().unwrap();
    once.post("/charges").send().await.unwrap();
    once.post("/charge").send().await.unwrap();
    let message = panic_of(async { script.assert_done() }).await;
    let text = "the script for POST /charges is not done: 1 of 3 steps played, the next is hang-up; requests without \
                a script: POST /charge";
    assert_eq!((message.as_str(), script.steps_left()), (text, 2));
    // Nobody has asked for the check here.
    drop(script);
    server.verify().await;

    let script = Script::new().status(200).forever().mount(&server, get("/")).await;
    assert!(panic_of(async { script.assert_done() }).await.contains("0 of 1 steps played, the next is status 200"));
    once.get("/").send().await.unwrap();
    once.get("/").send().await.unwrap();
    script.assert_done();
}

#[tokio::test]
async fn late_request_fails_assert_done() {
    let server = MockServer::start().await;
    let script = Script::new().status(200).mount(&server, get("/")).await;
    client(&server).get("/").send().await.unwrap();
    script.assert_done();
    client(&server).get("/").send().await.unwrap();
    assert!(panic_of(async { script.assert_done() }).await.ends_with("requests after the last step: 1"));
    panic_of(async { drop(script) }).await;
    server.reset().await;
}

#[tokio::test]
async fn script_that_must_finish_fails_the_server() {
    let server = MockServer::start().await;
    let script = Script::new().status(503).hang_up().status(200).must_finish();
    script.mount(&server, post("/charges")).await;
    let once = Client::builder().base_url(server.uri()).retry(fast_retries().max_attempts(1)).build().unwrap();
    once.post("/charges").send().await.unwrap();
    let message = panic_of(server.verify()).await;
    for step in ["step 2 of 3 (hang-up)", "step 3 of 3 (status 200)"] {
        assert!(message.contains(&format!("{step} of the script for POST /charges")), "{message}");
    }
    assert!(!message.contains("step 1 of 3"), "{message}");
    assert!(once.post("/charges").send().await.is_err());
    once.post("/charges").send().await.unwrap();
    server.verify().await;

    server.reset().await;
    Script::new().status(200).forever().must_finish().mount(&server, any()).await;
    panic_of(server.verify()).await;
    once.get("/").send().await.unwrap();
    once.get("/").send().await.unwrap();
    server.verify().await;
}

#[tokio::test]
async fn unscripted_path_names_the_scripts() {
    let server = MockServer::start().await;
    let _other = {
        // Another server's script is not named.
        let other = MockServer::start().await;
        Script::new().status(200).mount(&other, get("/elsewhere")).await;
        other
    };
    Script::new().status(201).status(201).mount(&server, post("/charges")).await;
    Script::new().status(200).forever().mount(&server, get("/health")).await;
    client(&server).post("/charges").send().await.unwrap();
    for _ in 0..2 {
        let error = client(&server).post_json::<Value>("/charge?x=1", &json!({})).await.unwrap_err();
        let text = "no script for POST /charge; this server has: POST /charges (1 of 2 steps played), GET /health (0 \
                    of 1 steps played)";
        assert_eq!(std::str::from_utf8(error.body().unwrap()).unwrap(), text);
        assert_eq!(error.status().unwrap(), 404);
    }
    // A mock of the test itself comes first.
    let mock = steadfast_testing::wiremock::Mock::given(steadfast_testing::wiremock::matchers::path("/own"));
    let answer = steadfast_testing::wiremock::ResponseTemplate::new(204);
    mock.respond_with(answer).mount(&server).await;
    assert_eq!(client(&server).get("/own").send().await.unwrap().status(), 204);
    // Scripts that are gone are not named.
    server.reset().await;
    Script::new().status(200).forever().mount(&server, get("/new")).await;
    let response = client(&server).get("/health").send().await.unwrap();
    let text = "no script for GET /health; this server has: GET /new (0 of 1 steps played)";
    assert_eq!(response.text().await.unwrap(), text);
}

#[tokio::test]
async fn failed_assertion_lists_received_requests() {
    let server = MockServer::start().await;
    Script::new().status(204).forever().mount(&server, any()).await;
    let message = panic_of(assert_one_key(&server)).await;
    assert!(message.ends_with("expected one key on every request\nthe server received no request"), "{message}");
    let send = |key: &str| client(&server).post("/charges?x=1").header("idempotency-key", key).body("12345").send();
    send("k1").await.unwrap();
    send("k2").await.unwrap();
    client(&server).get("/").send().await.unwrap();
    let list = "received, in order:\n  1. POST /charges?x=1, key k1, 5 bytes\n  2. POST /charges?x=1, key k2, 5 bytes\n  \
                3. GET /, no key, 0 bytes";
    let message = panic_of(assert_attempts(&server, 2)).await;
    assert!(message.starts_with("assert_attempts at tests/it/kit/script.rs:"), "{message}");
    assert!(message.ends_with(&format!("expected 2 attempts\n{list}")), "{message}");
    assert!(panic_of(assert_one_key(&server)).await.ends_with(list));
}

#[tokio::test]
async fn request_without_key_fails_key_assertion() {
    let server = MockServer::start().await;
    Script::new().status(204).forever().mount(&server, any()).await;
    client(&server).get("/").send().await.unwrap();
    panic_of(assert_one_key(&server)).await;
}

#[tokio::test]
async fn senseless_script_is_refused() {
    type Write = fn() -> Script;
    let cases: [(&str, Write); 6] = [
        ("retry_after has no response before it", || Script::new().retry_after(1)),
        ("json has no response before it", || Script::new().hang_up().json(&1)),
        ("wiremock cannot delay a hang-up", || Script::new().delay(Duration::from_secs(1)).hang_up()),
        ("no step can follow forever", || Script::new().status(200).forever().status(500)),
        ("a b: c is not a valid header", || Script::new().status(200).header("a b", "c")),
        ("times(2) has no step before it", || Script::new().times(2)),
    ];
    for (reason, script) in cases {
        let message = panic_of(async { script() }).await;
        assert!(message.contains(reason), "{message}");
    }
    let server = MockServer::start().await;
    let message = panic_of(Script::new().status(200).delay(Duration::from_secs(1)).mount(&server, any())).await;
    assert!(message.contains("the last delay has no response after it"), "{message}");
}

/// The table in the module's documentation describes this behaviour of wiremock.
#[tokio::test]
async fn wiremock_faults_close_after_whole_request() {
    let server = MockServer::start().await;
    let reset = |_: &steadfast_testing::wiremock::Request| std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    steadfast_testing::wiremock::Mock::given(steadfast_testing::wiremock::matchers::path("/reset"))
        .respond_with_err(reset)
        .mount(&server)
        .await;
    Script::new().hang_up().mount(&server, post("/")).await;
    for path in ["/", "/reset"] {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nab");
        stream.write_all(head.as_bytes()).await.unwrap();
        assert!(timeout(Duration::from_millis(50), stream.read(&mut [0])).await.is_err(), "it reads the request first");
        stream.write_all(b"cd").await.unwrap();
        assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 0, "closed, and not reset: {path}");
    }
    assert_attempts(&server, 2).await;
}
