//! Why there was no connection: the server, the name, the network, this process or a proxy.

use std::time::Duration;

use steadfast::policy::{Class, Failure, RetryPolicy, StopReason};
use steadfast::reqwest::Proxy;
use steadfast::{Client, Error, ErrorKind, KeyPolicy};
use steadfast_testing::{FaultServer, FaultStep, fast_retries};
use tokio::net::TcpListener;

use super::{line, raw_server};
use crate::support::in_a_child;
use crate::wire::Full;

const ONCE: &str = "after 1 attempt in T (attempts exhausted; not processed)";

async fn refused() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn failed_connection_names_its_cause() {
    let full = Full::start().await;
    let (plain, _told) = raw_server("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let client = || Client::builder().retry(RetryPolicy::never()).keys(KeyPolicy::off());
    let (client, impatient) = (client(), client().connect_timeout(Duration::from_millis(100)));
    let (client, impatient) = (client.build().unwrap(), impatient.build().unwrap());
    for (url, why) in [
        (format!("http://{}/", refused().await), "connection refused"),
        // Not a valid name, so no name server is asked.
        ("http://-bad-.example/".to_owned(), "no such host"),
        (format!("http://{}/", full.address), "timed out (connect_timeout)"),
        // Broadcast: the kernel has no route for TCP.
        ("http://255.255.255.255/".to_owned(), "network unreachable"),
        (format!("https://{plain}/"), "the server does not speak TLS on this port"),
    ] {
        let client = if why.starts_with("timed out") { &impatient } else { &client };
        let error = client.post(&url).body("x").send().await.unwrap_err();
        assert_eq!(line(&error), format!("could not connect: {why} {ONCE}"), "{error:#}");
        assert_eq!((error.kind(), error.attempts()[0].class()), (ErrorKind::Connect, Class::NotProcessed));
        let attempt = error.attempts()[0].to_string();
        assert!(attempt.starts_with(&format!("attempt 1: not processed, could not connect: {why}, ")), "{attempt}");
        assert_eq!(serde_json::to_value(&error.attempts()[0]).unwrap()["cause"], why);
    }
}

async fn through_proxy(proxy: std::net::SocketAddr) -> Error {
    let client = Client::builder().retry(fast_retries()).keys(KeyPolicy::standard());
    let client = client.http(move |http| http.proxy(Proxy::all(format!("http://{proxy}")).unwrap()));
    client.build().unwrap().post("https://api.example.com/charges").body("x").send().await.unwrap_err()
}

#[tokio::test]
async fn proxy_that_wants_a_login_is_final() {
    let (proxy, mut told) = raw_server("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
    let error = through_proxy(proxy).await;
    let text = "could not connect: the proxy wants a login (407) after 1 attempt in T \
                (permanent; not processed; key K)";
    assert_eq!(line(&error), text);
    assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::Connect, Some(StopReason::Permanent)));
    assert_eq!((error.attempts().len(), error.attempts()[0].failure()), (1, Some(Failure::ProxyLogin)));
    assert!(!error.may_have_been_processed());
    assert!(told.recv().await.unwrap().starts_with("CONNECT api.example.com:443 HTTP/1.1\r\n"));
    assert!(told.try_recv().is_err(), "it was asked once");
}

/// The status of any other refusal is lost: hyper-util 0.1.21 reports "unsuccessful" for a 403 and
/// for a 502. A 502 may pass, so both are repeated.
#[tokio::test]
async fn proxy_that_refuses_tunnel_is_named() {
    let ended = "after 3 attempts in T (attempts exhausted; not processed; key K)";
    for answer in ["HTTP/1.1 403 Forbidden\r\n\r\n", "HTTP/1.1 502 Bad Gateway\r\n\r\n"] {
        let (proxy, mut told) = raw_server(answer).await;
        let error = through_proxy(proxy).await;
        assert_eq!(line(&error), format!("could not connect: the proxy refused the tunnel (CONNECT) {ended}"));
        for _ in 0..3 {
            assert!(told.recv().await.unwrap().starts_with("CONNECT "));
        }
        assert!(told.try_recv().is_err());
    }
    let (silent, _told) = raw_server("").await;
    let error = through_proxy(silent).await;
    assert_eq!(line(&error), format!("could not connect: the proxy closed the connection {ended}"));
    let error = through_proxy(refused().await).await;
    assert_eq!(line(&error), format!("could not connect: the proxy cannot be reached {ended}"));
}

const CHILD: &str = "STEADFAST_TEST_NO_CA";

/// As in a slim container image (seanmonstar/reqwest#2988).
#[tokio::test]
async fn host_without_ca_certificates_can_use_http() {
    if std::env::var_os(CHILD).is_none() {
        let nothing = [(CHILD, "1"), ("SSL_CERT_FILE", "/nonexistent"), ("SSL_CERT_DIR", "/nonexistent")];
        in_a_child("lines::connect::host_without_ca_certificates_can_use_http", &nothing);
        return;
    }
    let server = FaultServer::play([FaultStep::answer(200)]).await;
    let identity = crate::wire::Identity::new("localhost", |_| {});
    let secure = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", secure.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = secure.accept().await {
            assert!(identity.http1_acceptor().accept(stream).await.is_err(), "no certificate is trusted");
        }
    });
    for client in [Client::new(), Client::builder().keys(KeyPolicy::standard()).build().unwrap()] {
        assert_eq!(client.get(server.url("/")).send().await.unwrap().status().as_u16(), 200);
        let error = client.get(&url).send().await.unwrap_err();
        let why = "this host has no CA certificates (install ca-certificates, or set SSL_CERT_FILE)";
        let what = format!("the server's certificate was rejected: {why}");
        assert_eq!(line(&error), format!("{what} after 1 attempt in T (permanent; not processed)"));
        assert_eq!(error.kind(), ErrorKind::Certificate);
    }
    assert_eq!(server.received().len(), 2);
    // A transport with settings of the user's cannot be built a second time without them.
    let text = Client::builder().http(|http| http.tcp_nodelay(true)).build().unwrap_err().to_string();
    assert!(text.contains("No CA certificates were loaded from the system"), "{text}");
}
