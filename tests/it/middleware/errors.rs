//! What leaves the middleware as an error: always `Error::Middleware`, with the whole of ours
//! inside.

use std::fmt;
use std::time::Duration;

use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error};
use steadfast::policy::{Failure, StopReason};
use steadfast::{Client, ErrorKind, RequestTerms, ResponseExt};
use steadfast_reqwest_middleware::{Steadfast, error, into_error, is_connect, is_timeout, status};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

use super::{doubting, exact, over, plain, refusing, retry_layer, trusting};

/// Sends a POST that fails, and returns the error.
async fn failed_post(client: &ClientWithMiddleware, server: &FaultServer) -> Error {
    client.post(server.url("/charges")).body("x").send().await.unwrap_err()
}

/// A retry layer above repeats `Error::Reqwest`, and takes `Error::Middleware` for final.
#[tokio::test]
async fn every_error_is_one_of_a_middleware() {
    let faults = [
        FaultStep::close(FaultPoint::OnAccept),
        FaultStep::close(FaultPoint::BeforeExecuting),
        FaultStep::reset(FaultPoint::AfterExecuting),
        FaultStep::close(FaultPoint::MidHead),
        FaultStep::garbage(),
        FaultStep::stall(FaultPoint::AfterExecuting),
    ];
    for fault in faults {
        for client in [over(Steadfast::new(doubting())), exact(doubting())] {
            let server = FaultServer::play([fault.clone()]).await.ignoring_keys();
            let request = client.post(server.url("/charges")).body("x").timeout(Duration::from_millis(200));
            let failed = request.send().await.unwrap_err();
            assert!(matches!(failed, Error::Middleware(_)), "{fault:?}: {failed:?}");
            let error = error(&failed).unwrap();
            assert!(server.executions() <= 1, "{fault:?}: {error:#}");
            assert!(error.may_have_been_processed() || server.executions() == 0, "{fault:?}: {error:#}");
        }
    }
}

/// An error as users define it.
#[derive(Debug)]
enum Wrapped {
    /// As thiserror's `transparent` does, it passes the source on and skips the error itself.
    Transparent(Error),
    Sourced(Error),
}

impl fmt::Display for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the call failed")
    }
}

impl std::error::Error for Wrapped {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Transparent(error) => error.source(),
            Self::Sourced(error) => Some(error),
        }
    }
}

#[tokio::test]
async fn our_error_survives_every_wrapper() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting)]).await.ignoring_keys();
    let client = over(Steadfast::new(doubting()));
    let check = |wrapped: &(dyn std::error::Error + 'static)| {
        let error = error(wrapped).unwrap_or_else(|| panic!("not found in {wrapped:?}"));
        assert_eq!(error.stop_reason(), Some(StopReason::KeyNotTrusted));
        assert!(error.resume_token().is_some() && error.attempts().len() == 1);
    };
    check(&failed_post(&client, &server).await);
    check(&*anyhow::Error::from(failed_post(&client, &server).await));
    check(&*anyhow::Error::from(failed_post(&client, &server).await).context("while charging"));
    check(&*Box::<dyn std::error::Error>::from(failed_post(&client, &server).await));
    check(&std::io::Error::other(failed_post(&client, &server).await));
    check(&Wrapped::Sourced(failed_post(&client, &server).await));
    check(&Wrapped::Transparent(failed_post(&client, &server).await));
    let Error::Middleware(inside) = failed_post(&client, &server).await else { panic!("another error") };
    check(inside.as_ref());
    // reqwest-retry wraps every error once more.
    let under = ClientBuilder::new(plain()).with(retry_layer(3)).with(Steadfast::new(doubting())).build();
    check(&failed_post(&under, &server).await);
    check(&Wrapped::Transparent(failed_post(&under, &server).await));
}

#[tokio::test]
async fn our_error_can_be_taken_out() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting)]).await.ignoring_keys();
    let failed = failed_post(&over(Steadfast::new(doubting())), &server).await;
    let token = into_error(failed).unwrap().resume_token().cloned().unwrap();
    assert_eq!(token.key().unwrap().as_str(), server.keys()[0].as_deref().unwrap());
    let failed = failed_post(&ClientBuilder::new(plain()).build(), &refusing().await).await;
    assert!(into_error(failed).unwrap_err().is_connect(), "another error is handed back");
}

#[tokio::test]
async fn error_line_is_printed_once() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting)]).await.ignoring_keys();
    let failed = failed_post(&over(Steadfast::new(doubting())), &server).await;
    let line = error(&failed).unwrap().to_string();
    assert_eq!(failed.to_string(), line);
    assert!(line.contains("may have been processed"), "{line}");
    let whole = format!("{:#}", anyhow::Error::from(failed));
    assert_eq!(whole.matches("POST ").count(), 1, "{whole}");
    assert!(whole.contains("attempt 1: ambiguous"), "{whole}");
}

/// Errors of other middlewares print whole URLs.
#[tokio::test]
async fn chain_of_an_error_has_no_query() {
    let server = refusing().await;
    let client = ClientBuilder::new(plain()).with(Steadfast::new(doubting())).with(retry_layer(1)).build();
    let failed = client.post(server.url("/charges?q=s3cret-query")).body("x").send().await.unwrap_err();
    assert!(is_connect(&failed), "the cause is found all the same");
    let error = anyhow::Error::from(failed);
    let printed = format!("{error} {error:#} {error:?} {:?}", error.downcast_ref::<Error>().unwrap());
    assert!(printed.contains("Request failed after 1 retries") && printed.contains("refused"), "{printed}");
    assert!(!printed.contains("s3cret"), "{printed}");
}

/// Nothing of ours failed: the request was wrong, or another middleware answered.
#[tokio::test]
async fn other_errors_hold_none_of_ours() {
    let failed = over(Steadfast::new(doubting())).get("no URL").send().await.unwrap_err();
    assert!(error(&failed).is_none());
    let bare = ClientBuilder::new(plain()).build();
    let failed = failed_post(&bare, &refusing().await).await;
    assert!(error(&failed).is_none() && is_connect(&failed) && !is_timeout(&failed));
}

#[tokio::test]
async fn timeout_is_told_as_reqwest_tells_it() {
    let server = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting)]).await.ignoring_keys();
    let short = Duration::from_millis(50);
    let by_client = Client::builder().attempt_timeout(short).build().unwrap();
    let client = over(Steadfast::new(by_client));
    let slow = ClientBuilder::new(reqwest::Client::builder().timeout(short).build().unwrap());
    let slow = slow.with(Steadfast::new(doubting())).build();
    let patient = over(Steadfast::new(doubting()));
    for failed in [
        failed_post(&client, &server).await,
        failed_post(&slow, &server).await,
        patient.post(server.url("/charges")).body("x").timeout(short).send().await.unwrap_err(),
    ] {
        assert!(is_timeout(&failed) && !is_connect(&failed), "{failed}");
        assert!(!failed.is_timeout(), "reqwest-middleware itself says so of no middleware's error");
        assert!(error(&failed).unwrap().may_have_been_processed() && status(&failed).is_none(), "{failed}");
    }
}

/// reqwest's timeout covers the body, which is read after the operation.
#[tokio::test]
async fn request_timeout_limits_the_body_too() {
    let server = FaultServer::play([FaultStep::stall(FaultPoint::MidBody)]).await;
    let request = over(Steadfast::new(doubting())).get(server.url("/report")).timeout(Duration::from_millis(300));
    let response = request.send().await.unwrap();
    assert!(response.text().await.unwrap_err().is_timeout());
}

#[tokio::test]
async fn status_is_told_where_an_error_has_one() {
    // A 2xx that the classifier calls a failure is a response here, and an error by `into_result`.
    let server = FaultServer::play([FaultStep::answer(Answer::new(404))]).await;
    let response = over(Steadfast::new(doubting())).get(server.url("/charges/7")).send().await.unwrap();
    assert_eq!(response.status(), 404, "a final response is no error");
    let failed = Error::middleware(response.into_result().await.unwrap_err());
    assert_eq!(status(&failed).map(|status| status.as_u16()), Some(404));
    assert_eq!((failed.status(), error(&failed).unwrap().kind()), (None, ErrorKind::Status));
    let response = plain().get(server.url("/charges/7")).send().await.unwrap();
    let failed = Error::from(response.error_for_status().unwrap_err());
    assert_eq!(status(&failed).map(|status| status.as_u16()), Some(404));
}

/// reqwest-retry refuses a stream before it sends anything. Ours is sent once.
#[tokio::test]
async fn stream_is_sent_once_and_says_so() {
    let server = FaultServer::play([FaultStep::execute(503), FaultStep::ok()]).await;
    let stream = || reqwest::Body::wrap(reqwest::Body::from("a stream"));
    let client = over(Steadfast::new(trusting()));
    let response = client.post(server.url("/charges")).body(stream()).send().await.unwrap();
    assert_eq!(response.stop_reason(), Some(StopReason::BodyNotReplayable));
    assert_eq!((server.received().len(), server.received()[0].body.len()), (1, 8));

    let naive = ClientBuilder::new(plain()).with(retry_layer(3)).build();
    let failed = naive.post(server.url("/charges")).body(stream()).send().await.unwrap_err();
    assert!(failed.to_string().contains("not cloneable"), "{failed}");
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn invalid_terms_fail_before_sending() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let client = over(Steadfast::new(doubting()));
    let terms = RequestTerms::new().retry(fast_retries().max_attempts(0));
    let failed = client.post(server.url("/charges")).with_extension(terms).send().await.unwrap_err();
    let error = error(&failed).unwrap();
    assert!(error.is_build() && !error.may_have_been_processed(), "{error}");
    assert_eq!(server.received().len(), 0);
}

/// The journal of an attempt below us tells what the transport said, as far as that is known.
#[tokio::test]
async fn opaque_failure_is_unknown_and_keeps_its_cause() {
    let failed = failed_post(&over(Steadfast::new(doubting())), &refusing().await).await;
    let error = error(&failed).unwrap();
    assert_eq!(error.attempts()[0].failure(), Some(Failure::Unknown));
    let whole = format!("{error:#}");
    assert!(whole.contains("refused"), "{whole}");
}
