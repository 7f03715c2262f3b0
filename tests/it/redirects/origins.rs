//! The headers that a redirect sends to another origin: two real servers record every header that
//! they receive.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Value, json};
use steadfast::policy::BreakerPolicy;
use steadfast::{Client, ErrorKind, KeyPolicy, ResponseExt};
use steadfast_testing::{Answer, FaultServer, FaultStep, Received, fast_retries};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{by_path, lines, redirect};
use crate::support::{doubting, trusting};
use crate::wire::Identity;

const SECRET: HeaderValue = HeaderValue::from_static("s3cret");

/// Credentials that reqwest adds to every request: well-known headers, and one of the user's own.
fn credentials() -> HeaderMap {
    let names = [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, HeaderName::from_static("x-our-key")];
    names.into_iter().map(|name| (name, SECRET)).collect()
}

/// Returns the names of all headers of these requests, except the one that reqwest's decompression
/// features add.
fn names<'a>(requests: impl IntoIterator<Item = &'a Received>) -> BTreeSet<&'a str> {
    let names = requests.into_iter().flat_map(|request| request.headers.keys().map(HeaderName::as_str));
    names.filter(|name| *name != "accept-encoding").collect()
}

/// Clients whose transport adds credentials: one configured, one given.
fn with_credentials() -> [Client; 2] {
    let bare = steadfast::reqwest::Client::builder().redirect(steadfast::reqwest::redirect::Policy::none());
    let given = bare.default_headers(credentials()).build().unwrap();
    let new = || Client::builder().keys(KeyPolicy::standard()).retry(fast_retries());
    let configured = new().http(|http| http.default_headers(credentials()).referer(true));
    [configured, new().http_client(given).assume_no_redirects()].map(|client| client.build().unwrap())
}

#[tokio::test]
async fn transport_credentials_stay_on_origin() {
    let clients = with_credentials();
    let abroad = FaultServer::play([FaultStep::answer(200)]).await;
    for (method, statuses) in [
        (Method::GET, &[301, 302, 303, 307, 308][..]),
        (Method::HEAD, &[301, 302, 303, 307, 308]),
        (Method::POST, &[303]),
    ] {
        for &status in statuses {
            let home = FaultServer::play([FaultStep::execute(redirect(status, abroad.url("/file?q=s3cret")))]).await;
            for client in &clients {
                let response = client.request(method.clone(), home.url("/")).send().await.unwrap();
                assert_eq!(response.status().as_u16(), status, "{method} is handed on");
                assert!(home.received()[0].headers.values().any(|value| value == SECRET), "home is sent them");
                let error = response.into_result().await.unwrap_err();
                let text = error.to_string();
                assert_eq!(error.kind(), ErrorKind::Redirect);
                assert!(
                    text.contains(&format!("a redirect to {} that is not followed", abroad.url("/file"))),
                    "{text}"
                );
                assert!(text.contains("say so: .cross_origin_redirects(true)") && !text.contains("s3cret"), "{text}");
            }
        }
    }
    assert_eq!(abroad.connections(), 0);
}

#[tokio::test]
async fn transport_with_credentials_follows_on_origin() {
    let home = FaultServer::play([FaultStep::answer(redirect(302, "/b")), FaultStep::answer(200)]).await;
    let [client, _] = with_credentials();
    client.get_json::<Value>(home.url("/a")).await.unwrap();
    assert_eq!(lines(&home), ["GET /a", "GET /b"]);
    assert!(home.received().iter().all(|hop| hop.header("x-our-key") == Some("s3cret")));
}

#[tokio::test]
async fn refused_hop_error_gives_reason_and_setting() {
    let abroad = FaultServer::play([FaultStep::answer(200)]).await;
    let home = FaultServer::play([FaultStep::answer(redirect(302, abroad.url("/file")))]).await;
    let [client, _] = with_credentials();
    let error = client.get_json::<Value>(home.url("/")).await.unwrap_err();
    assert_eq!((error.kind(), abroad.connections()), (ErrorKind::Redirect, 0));
    assert!(error.to_string().ends_with("if it adds none, say so: .cross_origin_redirects(true)"), "{error}");

    let off = trusting(&home).cross_origin_redirects(false).build().unwrap();
    let error = off.get_json::<Value>("/").await.unwrap_err();
    assert_eq!((error.kind(), abroad.connections()), (ErrorKind::Redirect, 0));
    assert!(error.to_string().ends_with("are turned off: cross_origin_redirects(false)"), "{error}");
}

/// From home to another origin and back: the last hop gets no credentials either.
#[tokio::test]
async fn every_header_of_redirect_chain_is_expected() {
    let home = by_path(|request| match request.target.as_str() {
        "/back" => FaultStep::answer(200),
        _ => FaultStep::answer(redirect(302, request.header("x-to").unwrap_or("/").to_owned())),
    })
    .await;
    let back = home.url("/back");
    let abroad = by_path(move |_| FaultStep::answer(redirect(307, back.clone()))).await;
    let ours = || {
        trusting(&home)
            .bearer_auth("s3cret")
            .default_header("x-team", "s3cret")
            .default_header("accept-language", "de")
            .default_header("user-agent", "tests")
            .attempt_header(HeaderName::from_static("x-attempt"))
            .deadline_header(HeaderName::from_static("x-deadline"))
    };
    // With steadfast's transport, and with one of the user's that adds nothing.
    for client in [ours(), ours().http(|http| http.referer(true)).cross_origin_redirects(true)] {
        let request = client.build().unwrap().get("/").header("x-to", abroad.url("/")).header("cookie", "s3cret");
        let request = request.header("www-authenticate", "s3cret").header("referer", "s3cret");
        request.idempotency_key("s3cret".parse().unwrap()).send().await.unwrap();
    }
    let travels = BTreeSet::from(["accept", "accept-language", "host", "user-agent"]);
    let (at_home, elsewhere) = (home.received(), abroad.received());
    assert_eq!(names(&elsewhere), travels);
    assert_eq!(names(at_home.iter().filter(|request| request.target == "/back")), travels);
    assert_eq!((at_home.len(), elsewhere.len()), (4, 2));
}

/// A retry after a 303 repeats a GET to another origin, with no more headers than at first.
#[tokio::test]
async fn result_on_other_origin_is_retried_bare() {
    let abroad = FaultServer::play([FaultStep::answer(503), FaultStep::answer(200)]).await;
    let home = FaultServer::play([FaultStep::execute(redirect(303, abroad.url("/result")))]).await;
    let client = trusting(&home)
        .bearer_auth("s3cret")
        .attempt_header(HeaderName::from_static("x-attempt"))
        .deadline_header(HeaderName::from_static("x-deadline"));
    let response = client.build().unwrap().post("/charges").body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), home.received().len()), (200, 1));
    assert_eq!((lines(&abroad).len(), names(&abroad.received())), (2, BTreeSet::from(["accept", "host"])));
}

/// The user's declaration covers headers of the transport, and none that this client adds.
#[tokio::test]
async fn allowed_hop_gets_only_transport_headers() {
    let abroad = FaultServer::play([FaultStep::answer(200)]).await;
    let home = FaultServer::play([FaultStep::answer(redirect(302, abroad.url("/")))]).await;
    let client = trusting(&home)
        .default_header("x-team", "s3cret")
        .http(|http| http.default_headers([(HeaderName::from_static("x-client"), SECRET)].into_iter().collect()))
        .cross_origin_redirects(true);
    assert_eq!(client.build().unwrap().get("/").bearer_auth("s3cret").send().await.unwrap().status(), 200);
    assert_eq!(names(&abroad.received()), BTreeSet::from(["accept", "host", "x-client"]));
}
#[tokio::test]
async fn cookie_store_sends_nothing_to_other_port() {
    let abroad = FaultServer::play([FaultStep::answer(200)]).await;
    let sets = redirect(302, abroad.url("/")).header("set-cookie", "session=s3cret");
    let home = FaultServer::play([FaultStep::answer(sets)]).await;
    let client = trusting(&home).http(|http| http.cookie_store(true)).build().unwrap();
    for _ in 0..2 {
        assert_eq!(client.get("/").send().await.unwrap().status(), 302);
    }
    assert_eq!(home.received()[1].header("cookie"), Some("session=s3cret"), "the store works");
    assert_eq!(abroad.connections(), 0);
}

/// Starts a TLS server that redirects every request to `to` and records the request lines.
async fn over_tls(identity: &Identity, to: String) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (acceptor, log) = (identity.http1_acceptor(), Arc::new(Mutex::new(Vec::new())));
    let written = log.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut head).await.unwrap() > 0, "a whole head");
            }
            let head = String::from_utf8(head).unwrap();
            written.lock().unwrap().push(head.lines().next().unwrap().to_owned());
            let answer =
                format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    (address, log)
}

#[tokio::test]
async fn https_redirects_never_to_http() {
    let identity = Identity::new("localhost", |_| {});
    let plain = FaultServer::play([FaultStep::answer(200)]).await;
    let (address, log) = over_tls(&identity, plain.url("/")).await;
    let client = Client::builder()
        .http(|http| http.tls_certs_only([identity.authority()]))
        .cross_origin_redirects(true)
        .redirect_post_as_get(true)
        .retry(fast_retries())
        .build()
        .unwrap();
    let url = format!("https://localhost:{}/", address.port());
    let error = client.get(&url).bearer_auth("s3cret").fetch::<Value>().await.unwrap_err();
    assert!(error.to_string().contains("https never leads to http"), "{error}");
    assert_eq!(client.post(&url).send().await.unwrap().status(), 302);
    assert_eq!(*log.lock().unwrap(), ["GET / HTTP/1.1", "POST / HTTP/1.1"]);
    assert_eq!(plain.connections(), 0);
}

/// A given client follows redirects itself. A response of another origin is no evidence about this
/// one, and no sign for its keys.
#[tokio::test]
async fn given_client_redirects_leave_no_evidence_here() {
    let signed = || Answer::new(200).header("idempotency-status", "stored;scope=\"/\"");
    let abroad = FaultServer::play([FaultStep::execute(signed())]).await;
    let home =
        FaultServer::play([FaultStep::answer(redirect(307, abroad.url("/charges"))), FaultStep::execute(503)]).await;
    let client = doubting(&home).http_client(steadfast::reqwest::Client::new()).build().unwrap();
    // Without a body, because reqwest cannot send this one again.
    assert_eq!(client.post("/charges").send().await.unwrap().status(), 200);
    let response = client.post("/charges").send().await.unwrap();
    assert_eq!((response.attempts().len(), home.executions()), (1, 1), "this origin has shown nothing");

    // The result of a POST is no evidence either: it is the response to a GET.
    let acts = [FaultStep::execute(redirect(303, "/result")), FaultStep::answer(signed()), FaultStep::execute(503)];
    let home = FaultServer::play(acts).await;
    let client = doubting(&home).http_client(steadfast::reqwest::Client::new()).build().unwrap();
    client.post("/charges").send().await.unwrap();
    client.post("/charges").send().await.unwrap();
    assert_eq!(lines(&home), ["POST /charges", "GET /result", "POST /charges"]);

    let abroad = FaultServer::play([FaultStep::answer(503)]).await;
    let to = abroad.url("/file");
    let home = by_path(move |request| match request.target.as_str() {
        "/file" => FaultStep::answer(redirect(302, &to)),
        _ => FaultStep::execute(200),
    })
    .await;
    let breaker = BreakerPolicy::new().min_calls(2);
    let client = Client::builder().base_url(home.url("")).keys(KeyPolicy::off()).breaker(breaker).retry(fast_retries());
    let client = client.http_client(steadfast::reqwest::Client::new()).build().unwrap();
    for _ in 0..3 {
        client.get("/file").send().await.unwrap();
    }
    client.post_json::<Value>("/charges", &json!({})).await.unwrap();
    assert_eq!(home.executions(), 1, "the circuit is closed");
}
