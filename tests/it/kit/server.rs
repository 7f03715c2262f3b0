//! The fault server: it breaks at the point that a step names, over both protocols, and counts
//! correctly.

use std::io;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use steadfast::policy::{Class, RetryBudget, RetryPolicy};
use steadfast::reqwest::Certificate;
use steadfast::{Client, ClientBuilder, KeyPolicy};
use steadfast_testing::{
    Answer, FaultPoint, FaultServer, FaultStep, StreamError, assert_attempts, assert_one_key, fast_retries, keys,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::panic_of;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Http1,
    Http2,
}

const BOTH: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

fn client(server: &FaultServer, protocol: Protocol) -> ClientBuilder {
    let client = Client::builder().base_url(server.url("")).keys(KeyPolicy::standard()).retry(fast_retries());
    match protocol {
        Protocol::Http1 => client,
        Protocol::Http2 => client.http(|http| http.http2_prior_knowledge()),
    }
}

/// A client with one attempt and short timeouts. It is shared, since reading the system's
/// certificates takes time.
fn impatient(protocol: Protocol) -> Client {
    let client = Client::builder().keys(KeyPolicy::off()).retry(RetryPolicy::never());
    let client = client.attempt_timeout(Duration::from_millis(500));
    let client = if protocol == Protocol::Http2 { client.http(|http| http.http2_prior_knowledge()) } else { client };
    client.build().unwrap()
}

/// The same over TLS, where ALPN chooses the protocol.
fn impatient_over_tls(protocol: Protocol, server: &FaultServer) -> Client {
    let root = Certificate::from_pem(server.root_certificate().as_bytes()).unwrap();
    let client = Client::builder().keys(KeyPolicy::off()).retry(RetryPolicy::never());
    let client = client.attempt_timeout(Duration::from_millis(1500)).http(move |http| {
        let http = http.tls_certs_only([root.clone()]);
        if protocol == Protocol::Http1 { http.http1_only() } else { http }
    });
    client.build().unwrap()
}

/// Plays one step. Returns what the client reports (a class, and any status), whole requests and
/// executions.
async fn played(client: &Client, act: FaultStep) -> (String, usize, usize) {
    told(client, &FaultServer::play([act]).await).await
}

async fn played_over_tls(protocol: Protocol, act: FaultStep) -> (String, usize, usize) {
    let server = FaultServer::play([act]).await.tls();
    told(&impatient_over_tls(protocol, &server), &server).await
}

async fn told(client: &Client, server: &FaultServer) -> (String, usize, usize) {
    let told = match client.post_json::<Value>(server.url("/"), &json!({ "n": 1 })).await {
        Ok(value) => value.to_string(),
        Err(error) => {
            let attempt = &error.attempts()[0];
            let status = attempt.status().map_or("-".to_owned(), |status| status.as_u16().to_string());
            format!("{:?} {status}{}", attempt.class(), if error.is_timeout() { " timeout" } else { "" })
        }
    };
    (told, server.received().len(), server.executions())
}

/// A step, the report of the client over HTTP/1.1 and HTTP/2, whole requests, executions.
type Row = (FaultStep, &'static str, &'static str, usize, usize);

const LOST: &str = "Ambiguous -";
const CUT: &str = "Ambiguous 200";

fn rows() -> Vec<Row> {
    let (lost, cut, silent) = (LOST, CUT, "Ambiguous - timeout");
    #[rustfmt::skip]
    let rows = vec![
        (FaultStep::ok(), r#"{"execution":1}"#, r#"{"execution":1}"#, 1, 1),
        (FaultStep::execute(201), r#"{"status":201}"#, r#"{"status":201}"#, 1, 1),
        (FaultStep::answer(503), "Ambiguous 503", "Ambiguous 503", 1, 0),
        (FaultStep::close(FaultPoint::AfterBytes(5)), lost, lost, 0, 0),
        (FaultStep::reset(FaultPoint::AfterBytes(5)), lost, lost, 0, 0),
        (FaultStep::stall(FaultPoint::AfterBytes(5)), silent, silent, 0, 0),
        (FaultStep::close(FaultPoint::BeforeExecuting), lost, lost, 1, 0),
        (FaultStep::reset(FaultPoint::BeforeExecuting), lost, lost, 1, 0),
        (FaultStep::stall(FaultPoint::BeforeExecuting), silent, silent, 1, 0),
        (FaultStep::close(FaultPoint::AfterExecuting), lost, lost, 1, 1),
        (FaultStep::reset(FaultPoint::AfterExecuting), lost, lost, 1, 1),
        (FaultStep::stall(FaultPoint::AfterExecuting), silent, silent, 1, 1),
        (FaultStep::close(FaultPoint::MidHead), lost, lost, 1, 1),
        (FaultStep::reset(FaultPoint::MidHead), lost, lost, 1, 1),
        (FaultStep::stall(FaultPoint::MidHead), silent, silent, 1, 1),
        (FaultStep::close(FaultPoint::MidBody), cut, cut, 1, 1),
        (FaultStep::stall(FaultPoint::MidBody), "Ambiguous 200 timeout", "Ambiguous 200 timeout", 1, 1),
        (FaultStep::garbage(), lost, lost, 1, 1),
        (FaultStep::execute(Answer::new(200).claiming_length(100)), cut, cut, 1, 1),
        (FaultStep::execute(Answer::new(200).interim(103)), r#"{"status":200}"#, r#"{"status":200}"#, 1, 1),
        (FaultStep::execute(Answer::new(200).drip(Duration::ZERO)), r#"{"status":200}"#, r#"{"status":200}"#, 1, 1),
        (FaultStep::execute(Answer::new(200).drip(Duration::from_secs(1))), silent, "Ambiguous 200 timeout", 1, 1),
        (FaultStep::execute(Answer::new(200).delay(Duration::from_secs(9))), silent, silent, 1, 1),
        (FaultStep::refuse_stream(), "Permanent 501", "NotProcessed -", 1, 0),
        (FaultStep::reset_stream(StreamError::Cancel, FaultPoint::AfterExecuting), "Permanent 501", lost, 1, 1),
        (FaultStep::reset_stream(StreamError::Internal, FaultPoint::MidBody), "Permanent 501", cut, 1, 1),
        (FaultStep::go_away(FaultPoint::BeforeExecuting), "Permanent 501", "NotProcessed -", 1, 0),
        (FaultStep::go_away(FaultPoint::AfterExecuting), "Permanent 501", lost, 1, 1),
    ];
    rows
}

#[tokio::test]
async fn every_step_breaks_at_its_point() {
    let (one, two) = (impatient(Protocol::Http1), impatient(Protocol::Http2));
    // Concurrently, because half of them wait for a timeout.
    let checks = rows().into_iter().map(async |(act, http1, http2, received, executed)| {
        let executed1 = if http1 == "Permanent 501" { 0 } else { executed };
        let (seen1, seen2) = (played(&one, act.clone()).await, played(&two, act.clone()).await);
        assert_eq!(seen1, (http1.to_owned(), received, executed1), "HTTP/1.1: {act:?}");
        assert_eq!(seen2, (http2.to_owned(), received, executed), "HTTP/2: {act:?}");
    });
    join_all(checks).await;
    // Whether a first byte was sent by then is a race.
    for act in [FaultStep::close(FaultPoint::OnAccept), FaultStep::reset(FaultPoint::OnAccept)] {
        for client in [&one, &two] {
            let (told, received, executed) = played(client, act.clone()).await;
            assert!(["NotProcessed -", LOST].contains(&told.as_str()), "{act:?}: {told}");
            assert_eq!((received, executed), (0, 0));
        }
    }
    // A reset may overtake the half of the body that precedes it.
    for client in [&one, &two] {
        let (told, received, executed) = played(client, FaultStep::reset(FaultPoint::MidBody)).await;
        assert!([LOST, CUT].contains(&told.as_str()), "{told}");
        assert_eq!((received, executed), (1, 1));
    }
}

/// The same table over TLS. The client sees each fault through a real handshake.
#[tokio::test]
async fn every_step_breaks_the_same_over_tls() {
    let checks = rows().into_iter().map(async |(act, http1, http2, received, executed)| {
        let executed1 = if http1 == "Permanent 501" { 0 } else { executed };
        let seen1 = played_over_tls(Protocol::Http1, act.clone()).await;
        let seen2 = played_over_tls(Protocol::Http2, act.clone()).await;
        assert_eq!(seen1, (http1.to_owned(), received, executed1), "HTTP/1.1: {act:?}");
        assert_eq!(seen2, (http2.to_owned(), received, executed), "HTTP/2: {act:?}");
    });
    join_all(checks).await;
    for protocol in BOTH {
        // Before the handshake, so no byte of a request has left.
        for act in [FaultStep::close(FaultPoint::OnAccept), FaultStep::reset(FaultPoint::OnAccept)] {
            let seen = played_over_tls(protocol, act.clone()).await;
            assert_eq!(seen, ("NotProcessed -".to_owned(), 0, 0), "{protocol:?}: {act:?}");
        }
        let (told, received, executed) = played_over_tls(protocol, FaultStep::reset(FaultPoint::MidBody)).await;
        assert!([LOST, CUT].contains(&told.as_str()), "{protocol:?}: {told}");
        assert_eq!((received, executed), (1, 1));
    }
}

#[tokio::test]
async fn alpn_lets_the_client_choose_the_protocol() {
    use steadfast::http::Version;

    let server = FaultServer::play([FaultStep::ok()]).await.tls();
    assert!(server.url("/a").starts_with("https://127.0.0.1:") && server.url("/a").ends_with("/a"));
    for (protocol, version) in [(Protocol::Http1, Version::HTTP_11), (Protocol::Http2, Version::HTTP_2)] {
        let client = impatient_over_tls(protocol, &server);
        // The certificate is good for the name too.
        for url in [server.url("/"), format!("https://localhost:{}/", server.address().port())] {
            assert_eq!(client.get(url).send().await.unwrap().version(), version);
        }
    }
    assert_eq!((server.connections(), server.received().len()), (4, 4));
}

#[tokio::test]
async fn untrusted_certificate_of_server_is_refused() {
    let server = FaultServer::play([FaultStep::ok()]).await.tls();
    let other = FaultServer::play([FaultStep::ok()]).await.tls();
    let error = impatient_over_tls(Protocol::Http1, &other).post(server.url("/")).send().await.unwrap_err();
    assert_eq!(error.kind(), steadfast::ErrorKind::Certificate, "{error}");
    assert_eq!((server.connections(), server.received().len()), (1, 0));
}

/// A close says `close_notify`, and a reset does not.
#[tokio::test]
async fn tls_close_is_announced_and_reset_is_not() {
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    let acts = [FaultStep::close(FaultPoint::AfterExecuting), FaultStep::reset(FaultPoint::AfterExecuting)];
    let server = FaultServer::play(acts).await.tls();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server.root_certificate().as_bytes()).unwrap()).unwrap();
    let provider = std::sync::Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = std::sync::Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    for expected in [None, Some(io::ErrorKind::ConnectionReset)] {
        let stream = TcpStream::connect(server.address()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(config.clone()).connect(name, stream).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab").await.unwrap();
        let end = stream.read_to_end(&mut Vec::new()).await.err().map(|error| error.kind());
        // Without `close_notify` the end would be an UnexpectedEof.
        assert_eq!(end, expected);
    }
    assert_eq!(server.executions(), 2);
}

/// Returns what a plain socket sees of a step: the bytes, and how the connection ended.
async fn seen(act: FaultStep, request: &str) -> (String, Option<io::ErrorKind>) {
    let server = FaultServer::play([act]).await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).await.err().map(|error| error.kind());
    (String::from_utf8(bytes).unwrap(), end)
}

#[tokio::test]
async fn close_sends_fin_and_reset_sends_rst() {
    let request = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab";
    let reset = Some(io::ErrorKind::ConnectionReset);
    for phase in [
        FaultPoint::BeforeExecuting,
        FaultPoint::AfterExecuting,
        FaultPoint::AfterBytes(request.len()),
        FaultPoint::AfterBytes(9999),
    ] {
        // The server waits for the rest of a request that is shorter than the point, so this one
        // must end first.
        if phase == FaultPoint::AfterBytes(9999) {
            continue;
        }
        assert_eq!(seen(FaultStep::close(phase), request).await, (String::new(), None), "{phase:?}");
        assert_eq!(seen(FaultStep::reset(phase), request).await, (String::new(), reset), "{phase:?}");
    }
    let whole = "HTTP/1.1 200 OK\r\ncontent-length: 15\r\ncontent-type: application/json\r\n\r\n{\"execution\":1}";
    let head = whole.len() - 15;
    assert_eq!(seen(FaultStep::close(FaultPoint::MidHead), request).await, (whole[..head / 2].to_owned(), None));
    assert_eq!(seen(FaultStep::close(FaultPoint::MidBody), request).await, (whole[..head + 7].to_owned(), None));
    assert_eq!(seen(FaultStep::garbage(), request).await, ("I am not HTTP\r\n\r\n".to_owned(), None));
    let (text, end) = seen(FaultStep::execute(Answer::new(200).body("ab").claiming_length(1)), request).await;
    assert!(text.contains("content-length: 1\r\n") && text.ends_with("\r\n\r\nab") && end.is_none(), "{text}");
}

#[tokio::test]
async fn request_is_read_to_the_exact_byte() {
    for bytes in [4, 10, 60, 5000] {
        let server = FaultServer::play([FaultStep::reset(FaultPoint::AfterBytes(bytes))]).await;
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let request = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n{}", "x".repeat(9000));
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(stream.read_to_end(&mut Vec::new()).await.is_err());
        assert_eq!((server.report().bytes_in, server.report().requests), (bytes as u64, 0));
    }
}

#[tokio::test]
async fn stalled_upload_is_read_no_further() {
    for (phase, read) in [(FaultPoint::OnAccept, 0), (FaultPoint::AfterBytes(100), 100)] {
        let server = FaultServer::play([FaultStep::stall(phase)]).await;
        // More than the buffers of a socket pair can hold.
        let upload = impatient(Protocol::Http1).post(server.url("/")).body(vec![b'x'; 16 * 1024 * 1024]);
        assert!(upload.send().await.unwrap_err().is_timeout());
        assert_eq!((server.report().bytes_in, server.report().requests), (read, 0));
    }
}

#[tokio::test]
async fn bodiless_answer_has_no_body() {
    for protocol in BOTH {
        let server =
            FaultServer::play([FaultStep::execute(204), FaultStep::execute(304), FaultStep::execute(200)]).await;
        let client = client(&server, protocol).build().unwrap();
        for status in [204, 304, 200] {
            let response = client.head("/").send().await.unwrap();
            assert_eq!((response.status().as_u16(), response.bytes().await.unwrap().len()), (status, 0));
        }
        let headers = Answer::new(200).header("x-a", "1").header("x-a", "2").header("content-type", "text/plain");
        let server = FaultServer::play([FaultStep::answer(headers)]).await;
        let response = self::client(&server, protocol).build().unwrap().get("/").send().await.unwrap();
        let values = |name| response.headers().get_all(name).iter().cloned().collect::<Vec<_>>();
        assert_eq!(
            (values("x-a"), values("content-type")),
            (vec!["1".parse().unwrap(), "2".parse().unwrap()], vec!["text/plain".parse().unwrap()])
        );
    }
}

#[tokio::test]
async fn steps_play_in_order_and_last_repeats() {
    for protocol in BOTH {
        let acts = [
            FaultStep::close(FaultPoint::OnAccept),
            FaultStep::answer(503),
            FaultStep::reset(FaultPoint::AfterExecuting),
            FaultStep::ok(),
        ];
        let server = FaultServer::play(acts).await;
        let client = client(&server, protocol).retry(fast_retries().max_attempts(5)).build().unwrap();
        let value: Value = client.post_json("/charges", &json!({})).await.unwrap();
        assert_eq!(value["execution"], 1, "{protocol:?}");
        assert_attempts(&server, 3).await;
        assert_one_key(&server).await;
        let again: Value = client.post_json("/charges", &json!({})).await.unwrap();
        assert_eq!((again["execution"].as_u64(), server.executions()), (Some(2), 2));
    }
}

#[tokio::test]
async fn key_executes_once_unless_keys_are_ignored() {
    for protocol in BOTH {
        let server = FaultServer::play([FaultStep::ok()]).await;
        let client = client(&server, protocol).build().unwrap();
        let send = |key: &str| client.post("/").header("idempotency-key", key).body("x").send();
        let first = send("a").await.unwrap();
        assert_eq!(first.headers().get("idempotent-replayed"), None);
        assert_eq!(first.text().await.unwrap(), r#"{"execution":1}"#);
        send("b").await.unwrap();
        let again = send("a").await.unwrap();
        assert_eq!(again.headers()["idempotent-replayed"], "true");
        assert_eq!(again.text().await.unwrap(), r#"{"execution":1}"#);
        assert_eq!(server.executions(), 2);

        let server = FaultServer::play([FaultStep::ok()]).await.ignoring_keys();
        let client = self::client(&server, protocol).build().unwrap();
        for _ in 0..2 {
            client.post("/").header("idempotency-key", "a").body("x").send().await.unwrap();
        }
        assert_eq!(server.executions_by_key(), [(Some("a".to_owned()), 2)].into());
    }
}

#[tokio::test]
async fn report_counts_requests_and_executions() {
    let acts = [FaultStep::ok(), FaultStep::answer(503), FaultStep::ok(), FaultStep::ok(), FaultStep::ok()];
    let server = FaultServer::play(acts).await.ignoring_keys();
    let client = client(&server, Protocol::Http1).retry(RetryPolicy::never()).build().unwrap();
    let send = |key: &str, body: &str| client.post("/").header("idempotency-key", key).body(body.to_owned()).send();
    send("once", "1").await.unwrap();
    send("never", "2").await.unwrap();
    send("twice", "3").await.unwrap();
    send("twice", "3").await.unwrap();
    send("other", "3").await.unwrap();
    let report = server.report();
    assert_eq!((report.connections, report.requests, report.executions), (1, 5, 4));
    let (keys, bodies) = (report.by_key, report.by_body);
    assert_eq!((keys.asked, keys.once, keys.twice, keys.never), (4, 2, 1, 1));
    assert_eq!((bodies.asked, bodies.once, bodies.twice, bodies.never), (3, 1, 1, 1));
    assert!(report.bytes_in > 5 * 100 && report.bytes_out > 5 * 50, "{report}");
    let table = report.to_string();
    assert!(
        table.starts_with("          asked   once  twice  never\nby key        4      2      1      1\n"),
        "{table}"
    );
}

#[tokio::test]
async fn draw_is_seeded_and_keeps_its_shares() {
    async fn statuses(seed: u64) -> Vec<u16> {
        let server = FaultServer::random(seed, [(0.2, FaultStep::answer(503)), (0.1, FaultStep::answer(429))]).await;
        let http = steadfast::reqwest::Client::new();
        let mut statuses = Vec::new();
        for _ in 0..1000 {
            statuses.push(http.get(server.url("/")).send().await.unwrap().status().as_u16());
        }
        statuses
    }
    let first = statuses(1).await;
    assert_eq!(first, statuses(1).await);
    assert_ne!(first, statuses(2).await);
    let count = |status| first.iter().filter(|seen| **seen == status).count();
    assert!((160..240).contains(&count(503)) && (70..130).contains(&count(429)), "{} {}", count(503), count(429));
    assert_eq!(count(200) + count(503) + count(429), 1000);
    let message = panic_of(FaultServer::random(1, [(0.7, FaultStep::ok()), (0.4, FaultStep::ok())])).await;
    assert!(message.contains("add up to 1.1"), "{message}");
}

#[tokio::test]
async fn refused_connections_fail_until_accepted() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let client = client(&server, Protocol::Http1).build().unwrap();
    client.post("/").body("x").send().await.unwrap();
    server.refuse_connections().await;
    let error = client.post("/").body("x").send().await.unwrap_err();
    assert_eq!((error.attempts()[2].class(), error.may_have_been_processed()), (Class::NotProcessed, false), "{error}");
    server.accept_connections();
    client.post("/").body("x").send().await.unwrap();
    assert_eq!((server.received().len(), server.executions()), (2, 2));
}

#[tokio::test]
async fn dropped_server_leaves_no_task() {
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = alive();
    let server = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting)]).await;
    let address = server.address();
    let mut stalled = TcpStream::connect(address).await.unwrap();
    stalled.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut idle = TcpStream::connect(address).await.unwrap();
    while server.executions() == 0 || server.connections() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(alive(), before + 3);
    drop(server);
    // Both connections end at the same moment.
    assert_eq!(stalled.read(&mut [0]).await.unwrap_or(0) + idle.read(&mut [0]).await.unwrap_or(0), 0);
    while alive() > before {
        tokio::task::yield_now().await;
    }
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn script_assertions_work_on_fault_server() {
    let server = FaultServer::play([FaultStep::answer(204)]).await;
    let client = client(&server, Protocol::Http2).budget(RetryBudget::unlimited()).build().unwrap();
    client.post("/a").body("x").send().await.unwrap();
    client.get("/b").send().await.unwrap();
    assert_eq!(keys(&server).await.iter().flatten().count(), 1);
    let message = panic_of(assert_attempts(&server, 1)).await;
    assert!(message.contains("1. POST /a, key ") && message.contains("2. GET /b, no key, 0 bytes"), "{message}");
}
