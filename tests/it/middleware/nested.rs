//! Loops below loops: their attempts would multiply (uv#17267: 16 instead of 4). Where both are
//! ours, the inner one makes one attempt.

use async_trait::async_trait;
use http::Extensions;
use reqwest::{Body, Request, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use steadfast::policy::StopReason;
use steadfast::{ClientService, OperationReport, ResponseExt, TransportError};
use steadfast_reqwest_middleware::{Steadfast, error};
use steadfast_testing::{FaultPoint, FaultServer, FaultStep, assert_one_key};
use tower::ServiceExt as _;

use super::{Counter, doubting, over, plain, retry_layer, trusting};

/// Sends by a client of ours instead of the layers below, and notes why that has stopped.
struct Leaf(steadfast::Client);

#[async_trait]
impl Middleware for Leaf {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> reqwest_middleware::Result<Response> {
        let sent = self.0.execute(request).await.map_err(reqwest_middleware::Error::middleware)?;
        assert_eq!(sent.stop_reason(), Some(StopReason::Nested));
        Ok(sent)
    }
}

/// Sends by our service instead of the layers below.
struct Service(ClientService);

#[async_trait]
impl Middleware for Service {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> reqwest_middleware::Result<Response> {
        let request: http::Request<Body> = request.try_into()?;
        let sent = self.0.clone().oneshot(request).await.map_err(reqwest_middleware::Error::middleware)?;
        assert_eq!(sent.extensions().get::<OperationReport>().unwrap().stop_reason(), StopReason::Nested);
        Ok(sent.into())
    }
}

/// Three attempts, and not nine.
async fn check_503(client: &ClientWithMiddleware) {
    let server = FaultServer::play([FaultStep::answer(503)]).await;
    let response = client.post(server.url("/charges")).body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len()), (503, 3));
    assert_eq!(response.stop_reason(), Some(StopReason::AttemptsExhausted));
    assert_eq!(server.received().len(), 3);
    assert_one_key(&server).await;
}

#[tokio::test]
async fn middleware_over_our_client_makes_three_attempts() {
    check_503(&ClientBuilder::new(plain()).with(Steadfast::new(trusting())).with(Leaf(trusting())).build()).await;
}

#[tokio::test]
async fn middleware_over_service_makes_three_attempts() {
    let service = Service(trusting().into_service());
    check_503(&ClientBuilder::new(plain()).with(Steadfast::new(trusting())).with(service).build()).await;
}

#[tokio::test]
async fn middleware_over_middleware_makes_three_attempts() {
    let twice = ClientBuilder::new(plain()).with(Steadfast::new(trusting())).with(Steadfast::new(trusting()));
    check_503(&twice.build()).await;
}

#[tokio::test]
async fn function_over_middleware_makes_three_attempts() {
    let server = FaultServer::play([FaultStep::answer(503)]).await;
    let (outer, inner) = (trusting(), over(Steadfast::new(trusting())));
    let request = outer.http_request(&server);
    let response = outer
        .execute_through(request, |request| {
            let inner = inner.clone();
            async move {
                let response = inner.execute(request).await.map_err(TransportError::unsure)?;
                assert_eq!(response.stop_reason(), Some(StopReason::Nested));
                Ok(response)
            }
        })
        .await
        .unwrap();
    assert_eq!((response.attempts().len(), server.received().len()), (3, 3));
    assert_one_key(&server).await;
}

/// A request as a generated client makes it.
trait HttpRequest {
    fn http_request(&self, server: &FaultServer) -> Request;
}

impl HttpRequest for steadfast::Client {
    fn http_request(&self, server: &FaultServer) -> Request {
        let mut request = Request::new(http::Method::POST, server.url("/charges").parse().unwrap());
        *request.body_mut() = Some("x".into());
        request
    }
}

#[tokio::test]
async fn lost_response_below_two_loops_runs_once() {
    let lost = FaultStep::close(FaultPoint::AfterExecuting);
    for (client, requests) in [(trusting(), 3), (doubting(), 1)] {
        let server = FaultServer::play([lost.clone()]).await;
        let server = if requests == 1 { server.ignoring_keys() } else { server };
        let twice = ClientBuilder::new(plain()).with(Steadfast::new(client.clone())).with(Steadfast::new(client));
        let failed = twice.build().post(server.url("/charges")).body("x").send().await.unwrap_err();
        let error = error(&failed).unwrap();
        assert_eq!((server.received().len(), server.executions()), (requests, 1), "{error:#}");
        assert!(error.may_have_been_processed() && error.attempts().len() == requests, "{error:#}");
        assert_one_key(&server).await;
    }
}

/// reqwest-retry between two of ours multiplies what it can reach. The key is one all the same, and
/// what nobody has licensed goes out once.
#[tokio::test]
async fn retry_layer_between_two_of_ours_keeps_one_key() {
    let stack = |client: steadfast::Client, calls: &Counter| {
        let outer = ClientBuilder::new(plain()).with(Steadfast::new(client.clone())).with(retry_layer(2));
        outer.with(calls.clone()).with(Steadfast::new(client)).build()
    };
    let server = FaultServer::play([FaultStep::execute(503)]).await;
    let calls = Counter::default();
    stack(trusting(), &calls).post(server.url("/charges")).body("x").send().await.unwrap();
    assert_eq!((calls.count(), server.executions()), (9, 1));
    assert_one_key(&server).await;

    let server = FaultServer::play([FaultStep::execute(503)]).await.ignoring_keys();
    let calls = Counter::default();
    let failed = stack(doubting(), &calls).post(server.url("/charges")).body("x").send().await.unwrap_err();
    assert_eq!((server.received().len(), server.executions()), (1, 1));
    assert!(error(&failed).unwrap().may_have_been_processed());
}

/// reqwest-retry below ours cannot be seen. It doubles as it does alone, and what we say stays
/// true.
#[tokio::test]
async fn retry_layer_below_ours_doubles_as_it_does_alone() {
    let lost = FaultStep::close(FaultPoint::AfterExecuting);
    let server = FaultServer::play([lost]).await.ignoring_keys();
    let client = ClientBuilder::new(plain()).with(Steadfast::new(doubting())).with(retry_layer(2)).build();
    let failed = client.post(server.url("/charges")).body("x").send().await.unwrap_err();
    let error = error(&failed).unwrap();
    assert_eq!((error.attempts().len(), server.executions()), (1, 3), "remove the layer below: {error:#}");
    assert!(error.may_have_been_processed());
    assert_one_key(&server).await;
}

/// Sends the request, and then an audit by a client of ours, which cannot be reached.
struct Audit(steadfast::Client);

#[async_trait]
impl Middleware for Audit {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let response = next.run(request, extensions).await?;
        self.0.post("http://127.0.0.1:9/audit").send().await.map_err(reqwest_middleware::Error::middleware)?;
        Ok(response)
    }
}

#[tokio::test]
async fn error_about_an_audit_is_no_word_about_the_charge() {
    let server = FaultServer::start(|_, _| FaultStep::execute(201)).await;
    let client = ClientBuilder::new(plain()).with(Steadfast::new(doubting())).with(Audit(doubting())).build();
    let failed = client.post(server.url("/charges")).body("x").send().await.unwrap_err();
    let error = error(&failed).unwrap();
    assert_eq!((server.executions(), error.may_have_been_processed()), (1, true), "{error}");
}
