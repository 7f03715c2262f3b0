//! Connections that have died in silence, and ones that the server has closed while they were idle.

use std::sync::atomic::Ordering;
use std::time::Duration;

use steadfast::policy::Class;
use steadfast::testing::fast_retries;
use steadfast::{Client, KeyPolicy, ResponseExt};

use super::peer::{Ending, Fault, Peer, Protocol};

#[tokio::test]
async fn a_stale_connection_costs_no_operation_and_doubles_none() {
    // The server says that it keeps the connection and closes it: the next request meets the close, before or after it is
    // written.
    let peer = Peer::start(Protocol::Http1, None, Ending::Fin, &[Fault::AnswerThenClose]).await;
    let client =
        Client::builder().base_url(format!("http://{}", peer.address)).retry(fast_retries()).keys(KeyPolicy::off());
    let client = client.build().unwrap();
    let mut unsure = 0;
    for _ in 0..50 {
        match client.post("/").body("x").send().await {
            Ok(response) => assert_eq!(response.text().await.unwrap(), "{}"),
            // Written into the close: without a key nobody can know, and nobody may try again.
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
async fn a_dead_http2_connection_is_left_behind_and_not_reused() {
    // The first connection takes a request and then answers nothing at all, pings included.
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
async fn without_pings_only_the_attempt_timeout_ends_it() {
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

/// The body was offered to the transport and could not leave, but the head had: the server may act on a head alone. This holds
/// from hyper 1.12 on, which asks for the body before it reserves window for it.
#[tokio::test]
async fn a_head_that_arrived_without_its_body_is_ambiguous() {
    let peer = Peer::start(Protocol::Http2, None, Ending::Fin, &[Fault::NoWindow]).await;
    let client = Client::builder()
        .base_url(format!("http://{}", peer.address))
        .keys(KeyPolicy::off())
        .attempt_timeout(Duration::from_millis(300))
        .http(|http| http.http2_prior_knowledge())
        .build()
        .unwrap();
    // By its answer the client knows the server's settings.
    assert_eq!(client.get("/").send().await.unwrap().status(), 200);
    let error = client.post("/").body("x").send().await.unwrap_err();
    assert_eq!(error.attempts()[0].class(), Class::Ambiguous, "{error}");
    let heads = peer.counts.heads.load(Ordering::SeqCst);
    assert_eq!((peer.connections(), heads, peer.counts.received()), (1, 2, 1));
}
