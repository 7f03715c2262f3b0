//! A retry layer above ours: it calls again with the same extensions, and that is the same
//! operation.

use std::time::Duration;

use async_trait::async_trait;
use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use steadfast::policy::{RetryPolicy, StopReason};
use steadfast::{Client, ErrorKind, KeyPolicy, ResponseExt};
use steadfast_reqwest_middleware::{Steadfast, error};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, assert_one_key};

use super::{doubting, exact, over, plain, refusing, retry_layer, trusting};
use crate::support::in_a_child;
use crate::support::log::Log;

fn under_retry(client: Client) -> ClientWithMiddleware {
    ClientBuilder::new(plain()).with(retry_layer(3)).with(Steadfast::new(client)).build()
}

/// What the layer above would repeat, and must not.
#[tokio::test]
async fn errors_are_final_for_the_layer_above() {
    for fault in [FaultPoint::BeforeExecuting, FaultPoint::AfterExecuting] {
        let server = FaultServer::play([FaultStep::close(fault), FaultStep::ok()]).await.ignoring_keys();
        let failed = under_retry(doubting()).post(server.url("/charges")).body("x").send().await.unwrap_err();
        assert_eq!(server.received().len(), 1, "{failed}");
        assert!(error(&failed).unwrap().may_have_been_processed());
    }
    let server = refusing().await;
    let client = ClientBuilder::new(plain()).with(retry_layer(3)).with(Steadfast::new(doubting())).build();
    let failed = client.post(server.url("/charges")).body("x").send().await.unwrap_err();
    assert_eq!(error(&failed).unwrap().attempts().len(), 1);
}

#[tokio::test]
async fn repeated_503_without_licence_runs_once() {
    for client in [doubting(), Client::builder().keys(KeyPolicy::off()).build().unwrap()] {
        let server = FaultServer::play([FaultStep::execute(503), FaultStep::ok()]).await.ignoring_keys();
        let failed = under_retry(client).post(server.url("/charges")).body("x").send().await.unwrap_err();
        let error = error(&failed).unwrap();
        assert_eq!((server.received().len(), server.executions()), (1, 1), "{error:#}");
        assert!(error.may_have_been_processed() && error.attempts().is_empty(), "{error:#}");
        assert_eq!(error.kind(), ErrorKind::NotAdmitted, "{error}");
    }
}

#[tokio::test]
async fn repeated_503_with_licence_keeps_its_key() {
    let server = FaultServer::play([FaultStep::execute(503)]).await;
    let response = under_retry(trusting()).post(server.url("/charges")).body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), server.executions()), (503, 1));
    assert_one_key(&server).await;
    assert!(response.may_have_been_processed());
}

/// The API may have forgotten the key of the first call.
#[tokio::test]
async fn repeat_past_retention_is_not_sent() {
    let short = KeyPolicy::standard().retention(Duration::from_millis(500));
    let server = FaultServer::play([FaultStep::execute(503), FaultStep::ok()]).await.ignoring_keys();
    let client = Client::builder().retry(RetryPolicy::never()).keys(short).build().unwrap();
    let failed = under_retry(client).post(server.url("/charges")).body("x").send().await.unwrap_err();
    let error = error(&failed).unwrap();
    assert_eq!((server.executions(), error.may_have_been_processed()), (1, true), "{error}");
    assert_eq!(error.stop_reason(), Some(StopReason::DeadlineExceeded), "{error}");
}

/// Three attempts of ours for each of the four calls from above: as the page says, remove the
/// other.
#[tokio::test]
async fn repeated_get_multiplies() {
    let server = FaultServer::play([FaultStep::answer(503)]).await;
    let response = under_retry(doubting()).get(server.url("/report")).send().await.unwrap();
    assert_eq!((response.status().as_u16(), server.received().len()), (503, 12));
}

/// What was not processed may go again, and keeps its key.
#[tokio::test]
async fn repeated_429_keeps_its_key() {
    let throttled = FaultStep::answer(Answer::new(429).retry_after(0));
    let server = FaultServer::play([throttled.clone(), throttled.clone(), throttled, FaultStep::ok()]).await;
    let steadfast = Steadfast::new(doubting()).innermost().assume_no_redirects();
    let client = ClientBuilder::new(super::unredirected()).with(retry_layer(3)).with(steadfast).build();
    let response = client.post(server.url("/charges")).body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), server.received().len(), server.executions()), (200, 4, 1));
    assert_one_key(&server).await;
}

/// Calls the layers below twice with one set of extensions: the second time with another body, or
/// under another key, or after it has dropped the first call.
#[derive(Clone, Copy)]
enum Twice {
    OtherBody,
    OtherKey,
    Dropped(Duration),
    Refreshed,
}

#[async_trait]
impl Middleware for Twice {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let mut first = request.try_clone().unwrap();
        let mut second = request;
        match self {
            Self::OtherBody => *second.body_mut() = Some("y".into()),
            Self::OtherKey => {
                first.headers_mut().insert("idempotency-key", "first".parse().unwrap());
                second.headers_mut().insert("idempotency-key", "second".parse().unwrap());
            }
            Self::Refreshed => {
                second.headers_mut().insert("authorization", "Bearer fresh".parse().unwrap());
            }
            Self::Dropped(after) => {
                let late = tokio::time::timeout(*after, next.clone().run(first, extensions)).await;
                assert!(late.is_err(), "the first call is dropped");
                return next.run(second, extensions).await;
            }
        }
        // As a layer that retries errors of every kind does.
        let _first = next.clone().run(first, extensions).await;
        next.run(second, extensions).await
    }
}

fn under(twice: Twice, client: Client) -> ClientWithMiddleware {
    ClientBuilder::new(plain()).with(twice).with(Steadfast::new(client)).build()
}

#[tokio::test]
async fn another_body_is_another_operation() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    under(Twice::OtherBody, doubting()).post(server.url("/charges")).body("x").send().await.unwrap();
    assert_eq!(server.executions(), 2);
    let keys = server.keys();
    assert_ne!(keys[0], keys[1]);
}

/// A key that is minted above, once for each call, is not one key (x402-rs#108).
#[tokio::test]
async fn repeat_under_another_key_keeps_the_first() {
    let lost = || FaultStep::close(FaultPoint::AfterExecuting);
    let once = || Client::builder().retry(RetryPolicy::never());
    let server = FaultServer::play([lost(), FaultStep::ok()]).await;
    let trusting = once().keys(KeyPolicy::standard()).build().unwrap();
    under(Twice::OtherKey, trusting).post(server.url("/charges")).body("x").send().await.unwrap();
    assert_eq!((server.executions(), server.keys()), (1, vec![Some("first".to_owned()); 2]));

    let server = FaultServer::play([lost(), FaultStep::ok()]).await.ignoring_keys();
    let client = under(Twice::OtherKey, once().build().unwrap());
    client.post(server.url("/charges")).body("x").send().await.unwrap_err();
    assert_eq!((server.executions(), server.received().len()), (1, 1));
}

#[tokio::test]
async fn repeat_of_a_dropped_call_keeps_its_key() {
    let after = Duration::from_millis(150);
    let acts = || [FaultStep::stall(FaultPoint::AfterExecuting), FaultStep::ok()];
    let server = FaultServer::play(acts()).await;
    let client = under(Twice::Dropped(after), trusting());
    client.post(server.url("/charges")).body("x").send().await.unwrap();
    assert_eq!((server.received().len(), server.executions()), (2, 1));
    assert_one_key(&server).await;

    let server = FaultServer::play(acts()).await.ignoring_keys();
    let failed = under(Twice::Dropped(after), doubting()).post(server.url("/charges")).body("x").send().await;
    assert!(error(&failed.unwrap_err()).unwrap().may_have_been_processed());
    assert_eq!((server.received().len(), server.executions()), (1, 1));
}

/// A layer that refreshes a token after a 401 repeats what was not processed, under the same key.
#[tokio::test]
async fn repeat_after_401_goes_out() {
    let server = FaultServer::play([FaultStep::answer(401), FaultStep::ok()]).await.ignoring_keys();
    let response = under(Twice::Refreshed, doubting()).post(server.url("/charges")).body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), server.executions()), (200, 1));
    assert_one_key(&server).await;
}

#[test]
fn other_retry_layer_is_named_once() {
    let said = in_a_child("middleware::retry_above::other_retry_layer_is_named", &[("CHILD", "1")]);
    assert!(said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn other_retry_layer_is_named() {
    let has_own_process = std::env::var_os("CHILD").is_some();
    let log = has_own_process.then(Log::of_process);
    let server = FaultServer::play([FaultStep::answer(503)]).await;
    let client = under_retry(doubting());
    for _ in 0..2 {
        client.get(server.url("/report")).send().await.unwrap();
    }
    let Some(log) = log else { return };
    let said = log.take();
    assert_eq!(said.matches("repeats requests").count(), 1, "{said}");
    assert!(said.contains("WARN steadfast") && said.contains("reqwest-retry"), "{said}");
    // A layer that repeats after a 401 is none.
    let server = FaultServer::play([FaultStep::answer(401), FaultStep::ok()]).await;
    under(Twice::Refreshed, doubting()).post(server.url("/charges")).body("x").send().await.unwrap();
    assert!(!log.take().contains("repeats requests"));
}

/// The same request in another call has other extensions, and is another operation.
#[tokio::test]
async fn equal_calls_are_operations_of_their_own() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    for client in [over(Steadfast::new(doubting())), exact(doubting())] {
        for _ in 0..2 {
            client.post(server.url("/charges")).body("x").send().await.unwrap();
        }
    }
    assert_eq!(server.executions(), 4);
}
