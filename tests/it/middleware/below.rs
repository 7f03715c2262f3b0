//! What middlewares below ours see, and what their errors mean.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{ClientBuilder, Error, Middleware, Next};
use steadfast::policy::Class;
use steadfast_reqwest_middleware::{Steadfast, error};
use steadfast_testing::{FaultPoint, FaultServer, FaultStep};

use super::{Counter, doubting, plain, trusting, unredirected};

/// Notes whether the request can be cloned, for each attempt.
#[derive(Clone, Default)]
struct Clones(Arc<Mutex<Vec<bool>>>);

#[async_trait]
impl Middleware for Clones {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        self.0.lock().unwrap().push(request.try_clone().is_some());
        next.run(request, extensions).await
    }
}

#[tokio::test]
async fn layers_below_can_clone_unless_innermost() {
    for (steadfast, can_clone) in [(Steadfast::new(trusting()), true), (Steadfast::new(trusting()).innermost(), false)]
    {
        let server = FaultServer::play([FaultStep::answer(503), FaultStep::ok()]).await;
        let clones = Clones::default();
        let client = ClientBuilder::new(plain()).with(steadfast).with(clones.clone()).build();
        let response = client.post(server.url("/charges")).body("twelve euros").send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(*clones.0.lock().unwrap(), [can_clone; 2], "one for each attempt");
        assert!(server.received().iter().all(|request| request.body == b"twelve euros"));
    }
}

/// Fails with an error of its own, before or after the request was sent.
struct Failing {
    sends: bool,
}

#[async_trait]
impl Middleware for Failing {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        if self.sends {
            next.run(request, extensions).await?;
        }
        Err(Error::Middleware(anyhow::anyhow!("no token")))
    }
}

/// A middleware's error does not tell whether it has sent the request.
#[tokio::test]
async fn error_of_a_middleware_is_ambiguous() {
    for sends in [false, true] {
        for exact in [false, true] {
            let server = FaultServer::play([FaultStep::ok()]).await.ignoring_keys();
            let steadfast = Steadfast::new(doubting());
            let steadfast = if exact { steadfast.innermost().assume_no_redirects() } else { steadfast };
            let client = ClientBuilder::new(unredirected()).with(steadfast).with(Failing { sends }).build();
            let failed = client.post(server.url("/charges")).body("x").send().await.unwrap_err();
            let error = error(&failed).unwrap();
            assert_eq!((error.attempts().len(), error.attempts()[0].class()), (1, Class::Ambiguous), "{error:#}");
            assert!(error.may_have_been_processed() && format!("{error:#}").contains("no token"), "{error:#}");
            assert_eq!(server.executions(), usize::from(sends));
        }
    }
}

/// Sends the request by a client of ours, and hands its error on.
struct ByOurs {
    client: steadfast::Client,
    /// Whether anyhow adds a context around the error.
    context: bool,
}

#[async_trait]
impl Middleware for ByOurs {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> reqwest_middleware::Result<Response> {
        self.client.execute(request).await.map_err(|error| {
            let error = anyhow::Error::from(error);
            Error::Middleware(if self.context { error.context("in a middleware") } else { error })
        })
    }
}

/// Our own client knows that a refused connection was not processed, and its word counts.
#[tokio::test]
async fn word_of_an_inner_error_of_ours_is_handed_on() {
    let lost = FaultStep::close(FaultPoint::AfterExecuting);
    for context in [false, true] {
        for (refuses, may_have_acted, requests) in [(true, false, 0), (false, true, 1)] {
            let server = FaultServer::play([lost.clone()]).await.ignoring_keys();
            if refuses {
                server.refuse_connections().await;
            }
            let inner = ByOurs { client: doubting(), context };
            let client = ClientBuilder::new(plain()).with(Steadfast::new(doubting())).with(inner).build();
            let failed = client.post(server.url("/charges")).body("x").send().await.unwrap_err();
            let error = error(&failed).unwrap();
            assert_eq!(error.may_have_been_processed(), may_have_acted, "{error:#}");
            assert_eq!(server.received().len(), requests, "{error:#}");
            // What was not processed is sent again, by the outer loop alone.
            assert_eq!(error.attempts().len(), if refuses { 3 } else { 1 }, "{error:#}");
        }
    }
}

#[tokio::test]
async fn layers_below_see_each_attempt() {
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::answer(503), FaultStep::ok()]).await;
    let (above, below) = (Counter::default(), Counter::default());
    let client = ClientBuilder::new(plain()).with(above.clone()).with(Steadfast::new(trusting())).with(below.clone());
    client.build().post(server.url("/charges")).body("x").send().await.unwrap();
    assert_eq!((above.count(), below.count()), (1, 3));
}
