//! Connections that died silently, and connections that the server closed while they were idle.

use std::sync::atomic::Ordering;
use std::time::Duration;

use steadfast::policy::Class;
use steadfast::{Client, KeyPolicy, ResponseExt};
use steadfast_testing::fast_retries;

use super::peer::{Ending, Fault, Peer, Protocol};

#[tokio::test]
async fn stale_connection_doubles_no_operation() {
    // The server announces that it keeps the connection, and closes it. The next request meets the
    // close, before or after it is written.
    let peer = Peer::start(Protocol::Http1, None, Ending::Fin, &[Fault::AnswerThenClose]).await;
    let client =
        Client::builder().base_url(format!("http://{}", peer.address)).retry(fast_retries()).keys(KeyPolicy::off());
    let client = client.build().unwrap();
    let mut unsure = 0;
    for _ in 0..50 {
        match client.post("/").body("x").send().await {
            Ok(response) => assert_eq!(response.text().await.unwrap(), "{}"),
            // Written into the close: without a key the outcome is unknown, so the client must not
            // retry.
            Err(error) => {
                assert!(error.may_have_been_processed(), "{error}");
                unsure += 1;
            }
        }
    }
    let executed = peer.counts.executed();
    assert!((50 - unsure..=50).contains(&executed), "{executed} executions, {unsure} unsure");
    assert!(unsure < 25, "{unsure} of 50: a close that had arrived was not seen");
}

#[tokio::test]
async fn dead_http2_connection_is_not_reused() {
    // The first connection takes a request and then sends nothing at all, not even replies to
    // pings.
    let faults = [Fault::StallAfterRequest, Fault::Answer(200)];
    let peer = Peer::start(Protocol::Http2, None, Ending::Fin, &faults).await;
    let ping = Duration::from_millis(50);
    let client = Client::builder()
        .base_url(format!("http://{}", peer.address))
        .keys(KeyPolicy::standard())
        .retry(fast_retries())
        .http(|http| http.http2_prior_knowledge().http2_keep_alive_interval(ping).http2_keep_alive_timeout(ping))
        .build()
        .unwrap();
    let response = client.post("/").body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len()), (200, 2), "{:?}", response.attempts());
    assert_eq!((peer.connections(), peer.counts.received()), (2, 2));
    assert!(response.elapsed() < Duration::from_secs(5), "the ping ended it, not the attempt timeout");
}

#[tokio::test]
async fn dead_connection_without_pings_times_out() {
    let peer = Peer::start(Protocol::Http2, None, Ending::Fin, &[Fault::StallAfterRequest]).await;
    let client = Client::builder()
        .base_url(format!("http://{}", peer.address))
        .retry(fast_retries().max_attempts(1))
        .attempt_timeout(Duration::from_millis(300))
        .http(|http| http.http2_prior_knowledge().http2_keep_alive_interval(None))
        .build()
        .unwrap();
    let error = client.post("/").body("x").send().await.unwrap_err();
    assert!(error.is_timeout() && error.may_have_been_processed(), "{error}");
}

/// The transport had read the body but could not send it, while the head had been sent. The server
/// may act on a head alone. This holds from hyper 1.12 on, which reads the body before it reserves
/// window for it.
#[tokio::test]
async fn head_without_body_is_ambiguous() {
    let peer = Peer::start(Protocol::Http2, None, Ending::Fin, &[Fault::NoWindow]).await;
    let client = Client::builder()
        .base_url(format!("http://{}", peer.address))
        .keys(KeyPolicy::off())
        .attempt_timeout(Duration::from_millis(300))
        .http(|http| http.http2_prior_knowledge())
        .build()
        .unwrap();
    // With the first response the client gets the server's settings.
    assert_eq!(client.get("/").send().await.unwrap().status(), 200);
    let error = client.post("/").body("x").send().await.unwrap_err();
    assert_eq!(error.attempts()[0].class(), Class::Ambiguous, "{error}");
    let heads = peer.counts.heads.load(Ordering::SeqCst);
    assert_eq!((peer.connections(), heads, peer.counts.received()), (1, 2, 1));
}

/// Returns a client whose only stream to the server is taken, and a future that frees the stream.
async fn at_a_busy_server(peer: &Peer) -> (Client, impl Future<Output = ()>) {
    let client = Client::builder()
        .base_url(format!("http://{}", peer.address))
        .keys(KeyPolicy::off())
        .retry(fast_retries())
        .http(|http| http.http2_prior_knowledge())
        .build()
        .unwrap();
    // With the first response the client gets the server's settings.
    client.get("/").send().await.unwrap().bytes().await.unwrap();
    let slow = tokio::spawn({
        let client = client.clone();
        async move { client.get("/slow").send().await.unwrap().bytes().await.unwrap() }
    });
    peer.counts.heads(2).await;
    let counts = peer.counts.clone();
    let free = async move {
        counts.free.notify_one();
        slow.await.unwrap();
    };
    (client, free)
}

/// A request that waits for a free stream has handed its head to the connection. The head is sent
/// once the stream is free, even if no caller waits any more. A server may act on a head alone.
#[tokio::test]
async fn request_waiting_for_stream_is_ambiguous() {
    let peer = Peer::start(Protocol::Http2, None, Ending::Fin, &[Fault::OneStream]).await;
    let (client, free) = at_a_busy_server(&peer).await;
    let short = Duration::from_millis(200);
    let error = client.post("/jobs/run").body("x").attempt_timeout(short).send().await.unwrap_err();
    assert_eq!((error.attempts().len(), error.attempts()[0].class()), (1, Class::Ambiguous), "{error}");
    assert!(error.may_have_been_processed(), "{error}");
    free.await;
    peer.counts.heads(3).await;
    assert_eq!((peer.connections(), peer.counts.received()), (1, 2), "its head arrived, and its body was kept back");
}

/// The head of a dropped request may be sent, too, but not its body.
#[tokio::test]
async fn dropped_request_waiting_for_stream_sends_no_body() {
    let peer = Peer::start(Protocol::Http2, None, Ending::Fin, &[Fault::OneStream]).await;
    let (client, free) = at_a_busy_server(&peer).await;
    let dropped = tokio::time::timeout(Duration::from_millis(200), client.post("/jobs/run").body("x").send()).await;
    assert!(dropped.is_err());
    free.await;
    peer.counts.heads(3).await;
    // The next request gets the stream once the dropped request has left it.
    client.get("/").send().await.unwrap();
    assert_eq!((peer.connections(), peer.counts.received()), (1, 3));
}
