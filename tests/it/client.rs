//! The main path: what a caller gets, and what the server receives.

use http::HeaderMap;
use serde_json::{Value, json};
use steadfast::policy::StopReason;
use steadfast::{Client, IdempotencyKey, KeyPolicy, RequestBuilder, ResponseExt};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, Received, fast_retries};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{doubting, trusting};

#[tokio::test]
async fn first_success_is_one_request_with_one_key() {
    let server = FaultServer::play([FaultStep::execute(Answer::new(201).body(r#"{"id":"ch_1"}"#))]).await;
    let client = trusting(&server).build().unwrap();
    let charge: Value = client.post_json("/charges", &json!({"amount": 1200})).await.unwrap();
    assert_eq!(charge["id"], "ch_1");
    let received = server.received();
    assert_eq!(received.len(), 1);
    assert_eq!((received[0].method.as_str(), received[0].target.as_str()), ("POST", "/charges"));
    assert_eq!(received[0].header("content-type"), Some("application/json"));
    assert_eq!(received[0].body, br#"{"amount":1200}"#);
    assert_eq!(received[0].key().map(str::len), Some(36));
}

fn lines(request: &Received, name: &str) -> Vec<String> {
    request.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

/// Headers of the caller for the body and the key are sent once, whatever the order of the calls.
#[tokio::test]
async fn callers_headers_replace_defaults() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(503)), FaultStep::answer(Answer::new(201))]).await;
    let client = doubting(&server).keys(KeyPolicy::standard()).build().unwrap();
    let own = ("content-type", "application/vnd.api+json");
    let before = || client.post("/").header(own.0, own.1).json(&1);
    let after = || client.post("/").json(&1).header(own.0, own.1);
    for request in [before(), after()] {
        let response = request.header("idempotency-key", "order-1").send().await.unwrap();
        assert_eq!(response.idempotency_key().map(IdempotencyKey::as_str), Some("order-1"));
    }
    client.post("/").json(&1).form(&[("a", 1)]).send().await.unwrap();
    let received = server.received();
    assert_eq!(received.len(), 4, "the first was sent twice");
    for request in &received[..3] {
        assert_eq!(lines(request, "content-type"), [own.1]);
        assert_eq!(lines(request, "idempotency-key"), ["order-1"]);
    }
    assert_eq!(lines(&received[3], "content-type"), ["application/x-www-form-urlencoded"]);
}

/// A request without headers of its own is built on another path, and must look the same.
#[tokio::test]
async fn callers_header_leaves_others_unchanged() {
    let server = FaultServer::start(|_, _| FaultStep::answer(200)).await;
    let client = trusting(&server).build().unwrap();
    let requests: [fn(&Client) -> RequestBuilder; 6] = [
        |client| client.get("/"),
        |client| client.put("/").json(&1),
        |client| client.post("/"),
        |client| client.post("/").json(&1),
        |client| client.post("/").form(&[("a", 1)]),
        |client| client.post("/").body("x"),
    ];
    for request in requests {
        for own in [None, Some("1")] {
            let request = request(&client).idempotency_key("order-1".parse().unwrap());
            let request = if let Some(own) = own { request.header("x-own", own) } else { request };
            request.send().await.unwrap();
        }
        let [.., without, with] = &server.received()[..] else { panic!("two were sent") };
        let mut others = with.headers.clone();
        assert_eq!(others.remove("x-own").unwrap(), "1");
        assert_eq!(without.headers, others);
        assert_eq!((lines(without, "accept"), lines(without, "idempotency-key").len()), (vec!["*/*".to_owned()], 1));
    }
}

#[tokio::test]
async fn lost_response_is_retried_under_key_and_runs_once() {
    for fault in [
        FaultStep::close(FaultPoint::AfterExecuting),
        FaultStep::reset(FaultPoint::AfterExecuting),
        FaultStep::close(FaultPoint::MidBody),
        FaultStep::close(FaultPoint::MidHead),
        FaultStep::garbage(),
        FaultStep::execute(500),
        FaultStep::execute(503),
        FaultStep::execute(408),
    ] {
        let name = format!("{fault:?}");
        let server = FaultServer::play([fault, FaultStep::execute(200)]).await;
        let client = trusting(&server).build().unwrap();
        let value: Value = client.post_json("/charges", &json!({})).await.expect(&name);
        assert_eq!(value["status"], 200, "{name}");
        let keys = server.keys();
        assert_eq!((keys.len(), server.executions()), (2, 1), "{name}");
        assert!(keys[0].is_some() && keys[0] == keys[1], "{name}: {keys:?}");
    }
}

#[tokio::test]
async fn defaults_never_double_where_keys_are_ignored() {
    for fault in [
        FaultStep::close(FaultPoint::AfterExecuting),
        FaultStep::reset(FaultPoint::AfterExecuting),
        FaultStep::close(FaultPoint::MidBody),
        FaultStep::close(FaultPoint::MidHead),
        FaultStep::garbage(),
        FaultStep::execute(500),
        FaultStep::execute(503),
    ] {
        let name = format!("{fault:?}");
        let server = FaultServer::play([fault, FaultStep::execute(200)]).await.ignoring_keys();
        let client = doubting(&server).build().unwrap();
        let error = client.post_json::<Value>("/charges", &json!({})).await.expect_err(&name);
        assert_eq!((server.received().len(), server.executions()), (1, 1), "{name}");
        assert_eq!(error.stop_reason(), Some(StopReason::KeyNotTrusted), "{name}: {error}");
        assert!(error.may_have_been_processed(), "{name}: {error}");
        assert!(error.resume_token().is_some(), "{name}");
        assert!(error.to_string().ends_with(".keys(KeyPolicy::standard())"), "{error}");
    }
}

/// The client writes `Host` if only the URL can decide it. Otherwise the transport does.
#[tokio::test]
async fn host_comes_from_url_unless_set() {
    let server = FaultServer::start(|_, _| FaultStep::answer(200)).await;
    let mut named = HeaderMap::new();
    named.insert("host", "by-transport.example".parse().unwrap());
    let finished = reqwest::Client::builder().default_headers(named.clone()).build().unwrap();
    let based = || Client::builder().base_url(server.url("/v1"));
    let ours = [
        (based().build(), None),
        (based().build(), Some("by-request.example")),
        (based().default_header("host", "by-client.example").build(), None),
        (based().http(move |http| http.default_headers(named)).build(), None),
        (based().http_client(finished).build(), None),
        (Client::builder().build(), None),
    ];
    for (client, host) in ours {
        let request = client.unwrap().post(server.url("/v1/charges")).body("x");
        let request = if let Some(host) = host { request.header("host", host) } else { request };
        request.send().await.unwrap();
    }
    let authority = &server.address().to_string();
    let hosts: Vec<Vec<String>> = server.received().iter().map(|request| lines(request, "host")).collect();
    let by_transport = "by-transport.example";
    let expected = [authority, "by-request.example", "by-client.example", by_transport, by_transport, authority];
    assert_eq!(hosts, expected.map(|host| [host]));
}

#[tokio::test]
async fn body_sets_content_type_before_defaults() {
    let server = FaultServer::play([FaultStep::execute(200)]).await;
    let client = trusting(&server).default_header("content-type", "application/xml").build().unwrap();
    client.post("/json").json(&1).send().await.unwrap();
    client.post("/form").form(&[("a", "1")]).send().await.unwrap();
    client.post("/text").body("<a/>").send().await.unwrap();
    client.post("/own").header("content-type", "application/merge-patch+json").json(&1).send().await.unwrap();
    let received = server.received();
    let types: Vec<_> = received.iter().map(|request| request.header("content-type").unwrap()).collect();
    let form = "application/x-www-form-urlencoded";
    assert_eq!(types, ["application/json", form, "application/xml", "application/merge-patch+json"]);
}

#[tokio::test]
async fn switching_protocols_response_is_final() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/chat", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // On loopback the head of a GET arrives in one piece.
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        // No second connection is accepted: one response is enough.
        (stream, listener)
    });
    let client = Client::builder().retry(fast_retries()).build().unwrap();
    let request = client.get(url).header("connection", "upgrade").header("upgrade", "chat");
    let response = request.send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len()), (101, 1));
    drop(server.await.unwrap());
}
