//! What is known of a transport that is not ours, and what the user's word adds.

use reqwest_middleware::ClientBuilder;
use steadfast::policy::{Class, StopReason};
use steadfast::{Client, ErrorKind, ResponseExt};
use steadfast_reqwest_middleware::{Steadfast, error, is_connect};
use steadfast_testing::{Answer, FaultServer, FaultStep, fast_retries};

use super::{doubting, exact, over, plain, refusing, trusting, unredirected};
use crate::support::in_a_child;
use crate::support::log::Log;

/// Carries the request out, and redirects to a port that refuses connections.
async fn moved_to(refusing: &FaultServer) -> FaultServer {
    let moved = Answer::new(303).header("location", refusing.url("/result"));
    FaultServer::play([FaultStep::execute(moved)]).await.ignoring_keys()
}

/// The first request of its client: nothing was learnt yet. reqwest says `is_connect`.
#[tokio::test]
async fn post_behind_303_to_refused_port_runs_once() {
    let refusing = refusing().await;
    let opaque = || Steadfast::new(doubting());
    for (view, steadfast) in [
        ("opaque", opaque()),
        ("innermost", opaque().innermost()),
        ("no redirects, and not innermost", opaque().assume_no_redirects()),
    ] {
        let server = moved_to(&refusing).await;
        let failed = over(steadfast).post(server.url("/charges")).body("x").send().await.unwrap_err();
        let error = error(&failed).unwrap();
        assert_eq!((server.executions(), server.received().len()), (1, 1), "{view}: {error:#}");
        assert!(error.may_have_been_processed() && is_connect(&failed), "{view}: {error:#}");
        assert_eq!(error.stop_reason(), Some(StopReason::KeyNotTrusted), "{view}");
        assert_eq!(error.attempts()[0].class(), Class::Ambiguous, "{view}");
    }
}

#[tokio::test]
async fn exact_view_follows_303_itself() {
    let refusing = refusing().await;
    let server = moved_to(&refusing).await;
    let allowed = Client::builder().retry(fast_retries()).cross_origin_redirects(true).build().unwrap();
    let failed = exact(allowed).post(server.url("/charges")).body("x").send().await.unwrap_err();
    let error = error(&failed).unwrap();
    assert_eq!((server.executions(), server.received().len()), (1, 1), "{error:#}");
    // The result is fetched again, and the POST is not.
    assert_eq!((error.attempts().len(), error.may_have_been_processed()), (3, true), "{error:#}");
}

#[tokio::test]
async fn refused_post_is_repeated_only_if_exact() {
    let server = refusing().await;
    for (client, attempts, may_have_acted) in [
        (over(Steadfast::new(doubting())), 1, true),
        (over(Steadfast::new(doubting()).innermost()), 1, true),
        (exact(doubting()), 3, false),
    ] {
        let failed = client.post(server.url("/charges")).body("x").send().await.unwrap_err();
        let error = error(&failed).unwrap();
        assert_eq!((error.attempts().len(), error.may_have_been_processed()), (attempts, may_have_acted), "{error:#}");
        assert!(is_connect(&failed), "{error:#}");
        assert_eq!(error.kind() == ErrorKind::Connect, !may_have_acted, "{error:#}");
    }
}

#[tokio::test]
async fn refused_get_is_repeated_in_every_view() {
    let server = refusing().await;
    for client in [over(Steadfast::new(doubting())), exact(doubting())] {
        let failed = client.get(server.url("/charges")).send().await.unwrap_err();
        assert_eq!(error(&failed).unwrap().attempts().len(), 3);
    }
}

#[tokio::test]
async fn throttled_post_is_repeated_only_if_exact() {
    for (client, requests) in [(over(Steadfast::new(doubting())), 1), (exact(doubting()), 2)] {
        let throttled = FaultStep::answer(Answer::new(429).retry_after(0));
        let server = FaultServer::play([throttled, FaultStep::ok()]).await.ignoring_keys();
        let response = client.post(server.url("/charges")).body("x").send().await.unwrap();
        assert_eq!(server.received().len(), requests, "{}", response.status());
    }
}

/// The client below follows redirects after all, and one response shows it.
#[test]
fn false_word_about_redirects_is_taken_back() {
    let said = in_a_child("middleware::transport::word_about_redirects_is_taken_back", &[("CHILD", "1")]);
    assert!(said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn word_about_redirects_is_taken_back() {
    let has_own_process = std::env::var_os("CHILD").is_some();
    let log = has_own_process.then(Log::of_process);
    let moved = FaultStep::answer(Answer::new(302).header("location", "/new"));
    let server = FaultServer::play([moved, FaultStep::ok(), FaultStep::ok()]).await;
    let steadfast = Steadfast::new(doubting()).innermost().assume_no_redirects();
    let client = ClientBuilder::new(plain()).with(steadfast).build();

    let before = refused_attempts(&client).await;
    assert_eq!(before, 3, "a refused connection was not processed, by the user's word");
    client.get(server.url("/old")).send().await.unwrap();
    for _ in 0..2 {
        assert_eq!(refused_attempts(&client).await, 1, "the word is gone, for good");
    }
    if let Some(log) = log {
        let said = log.take();
        assert_eq!(said.matches("follows redirects").count(), 1, "{said}");
        assert!(said.contains("WARN"), "{said}");
    }
}

async fn refused_attempts(client: &reqwest_middleware::ClientWithMiddleware) -> usize {
    let server = refusing().await;
    let failed = client.post(server.url("/charges")).body("x").send().await.unwrap_err();
    error(&failed).unwrap().attempts().len()
}

#[tokio::test]
async fn report_is_on_the_response() {
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::ok()]).await;
    let client = ClientBuilder::new(unredirected()).with(Steadfast::new(trusting())).build();
    let response = client.post(server.url("/charges")).body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len()), (200, 2));
    assert_eq!(response.stop_reason(), Some(StopReason::Done));
    let key = response.idempotency_key().unwrap().as_str().to_owned();
    assert_eq!(server.keys(), [Some(key.clone()), Some(key)]);
}
