//! The owner of a key: no caller gets another caller's response, and a new credential is no new
//! caller.

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use steadfast::server::{IdempotencyLayer, MemoryStore, Scope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Executions, Served, header, problem};

/// The principal of a token: tokens are `subject.number`.
#[derive(Clone)]
struct Subject(String);

async fn authenticate(mut request: Request, next: Next) -> Response {
    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let Some((subject, _)) = token.and_then(|token| token.split_once('.')) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let subject = Subject(subject.to_owned());
    request.extensions_mut().insert(subject);
    next.run(request).await
}

fn counting(executions: &Executions) -> Router {
    let counted = executions.clone();
    Router::new().route("/orders", post(move || async move { format!("order {}", counted.add()) }))
}

fn layer(scope: Scope) -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new(), scope).required()
}

#[tokio::test]
async fn refreshed_token_is_the_same_caller() {
    let executions = Executions::default();
    let scope = Scope::from_extension(|Subject(name)| name.clone());
    let router = counting(&executions).layer(layer(scope)).layer(middleware::from_fn(authenticate));
    let served = Served::serve(router).await;
    let ask = |token: &'static str| served.post("/orders", "k").bearer_auth(token).send();

    assert_eq!(ask("alice.1").await.unwrap().text().await.unwrap(), "order 1");
    let again = ask("alice.2").await.unwrap();
    assert_eq!(header(&again, "idempotent-replayed"), Some("true"));
    assert_eq!((again.text().await.unwrap().as_str(), executions.count()), ("order 1", 1));

    let other = ask("mallory.1").await.unwrap();
    assert_eq!(header(&other, "idempotent-replayed"), None);
    assert_eq!((other.text().await.unwrap().as_str(), executions.count()), ("order 2", 2));
}

#[tokio::test]
async fn request_without_scope_is_refused() {
    let executions = Executions::default();
    let nobody: [Scope; 3] = [
        Scope::from_extension(|Subject(name)| name.clone()),
        Scope::from_fn(|_| None),
        Scope::from_fn(|_| Some(String::new())),
    ];
    for scope in nobody {
        let served = Served::start(counting(&executions), layer(scope)).await;
        let refused = served.post("/orders", "k").send().await.unwrap();
        assert_eq!(problem(refused).await, (403, "no-caller".to_owned()));
    }
    assert_eq!(executions.count(), 0);
}

#[tokio::test]
async fn hosts_can_be_scopes() {
    let executions = Executions::default();
    let served = Served::start(counting(&executions), layer(Scope::by_host())).await;
    let ask = |host: &'static str| served.post("/orders", "k").header("host", host).send();
    for (host, answer) in
        [("a.example", "order 1"), ("b.example", "order 2"), ("A.example:8080", "order 1"), ("b.example.", "order 2")]
    {
        assert_eq!(ask(host).await.unwrap().text().await.unwrap(), answer, "{host}");
    }
    assert_eq!(executions.count(), 2);

    let head = raw(&served, "POST /orders HTTP/1.0\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n").await;
    assert!(head.contains(" 403 ") && head.contains("no-caller"), "{head}");
    assert_eq!(executions.count(), 2);
}

#[tokio::test]
async fn other_host_under_key_is_rejected() {
    let executions = Executions::default();
    let served = Served::start(counting(&executions), layer(Scope::single_caller())).await;
    let ask = |host: &'static str| served.post("/orders", "k").header("host", host).send();
    assert_eq!(ask("a.example").await.unwrap().status(), 200);
    for same in ["A.EXAMPLE", "a.example:8080", "a.example.", "a.example:"] {
        let again = ask(same).await.unwrap();
        assert_eq!(header(&again, "idempotent-replayed"), Some("true"), "{same}");
    }
    for other in ["b.example", "a.example.b", "[::1]"] {
        let refused = problem(ask(other).await.unwrap()).await;
        assert_eq!(refused, (422, "key-of-another-request".to_owned()), "{other}");
    }
    // A client cannot change the host by a forwarded header.
    let forwarded = served.post("/orders", "k").header("host", "b.example").header("x-forwarded-host", "a.example");
    assert_eq!(problem(forwarded.send().await.unwrap()).await.0, 422);
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn repeat_over_other_http_version_is_replayed() {
    let executions = Executions::default();
    let served = Served::start(counting(&executions), layer(Scope::single_caller())).await;
    assert_eq!(served.post("/orders", "k").send().await.unwrap().version(), http::Version::HTTP_11);
    let http2 = steadfast::reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let again = http2.post(served.url("/orders")).header("idempotency-key", "k").send().await.unwrap();
    assert_eq!((again.version(), header(&again, "idempotent-replayed")), (http::Version::HTTP_2, Some("true")));

    // The absolute form of HTTP/1, whose `Host` a server has to ignore.
    let target = served.url("/orders");
    let request = format!("POST {target} HTTP/1.1\r\nhost: b.example\r\nidempotency-key: k\r\n");
    let answer = raw(&served, &format!("{request}connection: close\r\ncontent-length: 0\r\n\r\n")).await;
    assert!(answer.contains("idempotent-replayed: true"), "{answer}");
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn host_can_be_set_or_ignored() {
    let executions = Executions::default();
    let by_proxy = layer(Scope::single_caller())
        .host(|parts| Some(parts.headers.get("x-forwarded-host")?.to_str().ok()?.to_owned()));
    let served = Served::start(counting(&executions), by_proxy).await;
    let ask = |host: &'static str| served.post("/orders", "k").header("x-forwarded-host", host).send();
    assert_eq!(ask("a.example").await.unwrap().status(), 200);
    assert_eq!(problem(ask("b.example").await.unwrap()).await.0, 422);

    let served = Served::start(counting(&executions), layer(Scope::single_caller()).host(|_| None)).await;
    let ask = |host: &'static str| served.post("/orders", "k").header("host", host).send();
    assert_eq!(ask("10.0.0.1").await.unwrap().text().await.unwrap(), "order 2");
    assert_eq!(ask("10.0.0.2").await.unwrap().text().await.unwrap(), "order 2");
    assert_eq!(executions.count(), 2);
}

/// Sends these bytes, and returns the server's reply up to the close.
async fn raw(served: &Served, request: &str) -> String {
    let mut connection = tokio::net::TcpStream::connect(served.address).await.unwrap();
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}
