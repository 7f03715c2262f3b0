//! Which requests get a key, and which key: real requests, judged by what the server received.

use std::collections::HashSet;

use http::Method;
use serde::Deserialize;
use serde_json::json;
use steadfast::policy::RetryPolicy;
use steadfast::{Client, ErrorKind, IdempotencyKey, KeyPolicy};
use steadfast_testing::{FaultServer, FaultStep, fast_retries};

#[derive(Deserialize)]
pub(super) struct Given {
    #[serde(default)]
    method: Option<String>,
    api: Option<String>,
    max: Option<u32>,
    attempts: Option<u32>,
    user_key_len: Option<usize>,
}

impl Given {
    fn method(&self) -> Method {
        self.method.as_ref().map_or(Method::POST, |method| method.parse().unwrap())
    }

    /// Version 1 takes keys for POST; version 2 takes them for POST and DELETE.
    fn keys(&self) -> KeyPolicy {
        match self.api.as_deref() {
            Some("v2") => KeyPolicy::standard().methods([Method::POST, Method::DELETE]),
            _ => KeyPolicy::stripe(),
        }
    }

    /// Zero retries are `never`; zero attempts are an error.
    fn policy(&self) -> RetryPolicy {
        if self.max == Some(0) { RetryPolicy::never() } else { fast_retries() }
    }
}

pub(super) async fn check(id: &str, given: &Given, expect: &str) {
    let attempts = given.attempts.unwrap_or(1) as usize;
    // Every response except the last one is retried.
    let acts = (1..=attempts).map(|number| FaultStep::execute(if number < attempts { 503 } else { 200 }));
    let server = FaultServer::play(acts).await;
    let client = Client::builder().base_url(server.url("")).keys(given.keys()).retry(given.policy()).build().unwrap();
    let send = async |key: Option<usize>| {
        let request = client.request(given.method(), "/v1/charges").json(&json!({"amount": 1200}));
        let request = match key {
            Some(length) => request.idempotency_key("k".repeat(length).parse::<IdempotencyKey>().unwrap()),
            None => request,
        };
        request.send().await
    };
    let response = send(given.user_key_len).await.unwrap();
    assert_eq!(response.status(), 200, "{id}");
    assert_eq!(server.received().len(), attempts, "{id}");
    let keys = server.keys();
    let distinct: HashSet<Option<&str>> = keys.iter().map(Option::as_deref).collect();
    let lengths: Vec<usize> = keys.iter().map(|key| key.as_ref().map_or(0, String::len)).collect();
    match expect {
        "generated" => assert_eq!(lengths, [36], "{id}"),
        "none" => assert_eq!(keys, [None], "{id}"),
        "one distinct value across all attempts" => {
            assert_eq!((distinct.len(), lengths), (1, vec![36; attempts]), "{id}");
        }
        "sent" => {
            assert_eq!(lengths, [given.user_key_len.unwrap()], "{id}");
            let error = send(given.user_key_len.map(|length| length + 1)).await.expect_err(id);
            assert_eq!((error.kind(), server.received().len()), (ErrorKind::Build, 1), "{id}: refused before sending");
        }
        other => panic!("{id}: {other}"),
    }
}

#[test]
fn zero_attempts_is_an_error() {
    let error = Client::builder().retry(RetryPolicy::new().max_attempts(0)).build().expect_err("0 attempts");
    assert_eq!(error.kind(), ErrorKind::Build);
}
