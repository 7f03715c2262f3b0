//! The extensions of a request: passed down, cloned for each attempt, handed back by the winner.
//! They carry the terms of one request too.

use std::time::Duration;

use async_trait::async_trait;
use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use steadfast::policy::{HedgePolicy, RetryPolicy, StopReason};
use steadfast::{Client, RequestTerms, ResponseExt};
use steadfast_reqwest_middleware::{Steadfast, error};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

use super::{doubting, over, plain, trusting};

/// Given by the caller.
#[derive(Clone, Debug, PartialEq)]
struct Tenant(&'static str);

/// Counts the calls that saw these extensions.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen(u32);

/// Left by a layer below, with the status that it saw.
#[derive(Clone, Debug, PartialEq)]
struct Left(u16);

struct Below;

#[async_trait]
impl Middleware for Below {
    async fn handle(
        &self,
        mut request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let tenant = extensions.get::<Tenant>().unwrap().0;
        let seen = extensions.get_or_insert_default::<Seen>();
        seen.0 += 1;
        let seen = seen.0.to_string();
        request.headers_mut().insert("x-tenant", tenant.parse().unwrap());
        request.headers_mut().insert("x-seen", seen.parse().unwrap());
        let response = next.run(request, extensions).await?;
        extensions.insert(Left(response.status().as_u16()));
        Ok(response)
    }
}

fn client(steadfast: Client) -> ClientWithMiddleware {
    ClientBuilder::new(plain()).with(Steadfast::new(steadfast)).with(Below).build()
}

#[tokio::test]
async fn each_attempt_starts_with_the_callers_extensions() {
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::answer(503), FaultStep::ok()]).await;
    let client = client(trusting());
    let mut extensions = Extensions::new();
    extensions.insert(Tenant("acme"));
    let request = client.post(server.url("/charges")).body("x").build().unwrap();
    client.execute_with_extensions(request, &mut extensions).await.unwrap();
    for request in server.received() {
        assert_eq!((request.header("x-tenant"), request.header("x-seen")), (Some("acme"), Some("1")));
    }
    // Those of the attempt that brought the response.
    assert_eq!((extensions.get(), extensions.get()), (Some(&Seen(1)), Some(&Left(200))));
    assert_eq!(extensions.get(), Some(&Tenant("acme")));
}

#[tokio::test]
async fn after_an_error_extensions_are_as_given() {
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::close(FaultPoint::AfterExecuting)]).await;
    let client = client(
        Client::builder().retry(fast_retries().max_attempts(2)).keys(steadfast::KeyPolicy::standard()).build().unwrap(),
    );
    let mut extensions = Extensions::new();
    extensions.insert(Tenant("acme"));
    let request = client.post(server.url("/charges")).body("x").build().unwrap();
    let failed = client.execute_with_extensions(request, &mut extensions).await.unwrap_err();
    assert_eq!(error(&failed).unwrap().attempts().len(), 2);
    assert_eq!((extensions.get::<Seen>(), extensions.get::<Left>()), (None, None));
    assert_eq!(extensions.get(), Some(&Tenant("acme")));
}

#[tokio::test]
async fn terms_in_extensions_set_the_policy() {
    let server = FaultServer::play([FaultStep::answer(503)]).await;
    let client = over(Steadfast::new(trusting()));
    let once = RequestTerms::new().retry(RetryPolicy::never());
    let response = client.post(server.url("/charges")).body("x").with_extension(once).send().await.unwrap();
    assert_eq!((response.attempts().len(), response.stop_reason()), (1, Some(StopReason::AttemptsExhausted)));
    client.post(server.url("/charges")).body("x").send().await.unwrap();
    assert_eq!(server.received().len(), 1 + 3, "other requests have the client's policy");
}

#[tokio::test]
async fn terms_in_extensions_set_idempotent() {
    for (terms, requests) in [(None, 1), (Some(RequestTerms::new().idempotent(true)), 2)] {
        let server = FaultServer::play([FaultStep::answer(503), FaultStep::ok()]).await.ignoring_keys();
        let mut request = over(Steadfast::new(doubting())).post(server.url("/search")).body("apples");
        if let Some(terms) = terms {
            request = request.with_extension(terms);
        }
        request.send().await.unwrap();
        assert_eq!(server.received().len(), requests);
    }
}

/// The extensions of two attempts at once could not both be handed back.
#[tokio::test]
async fn requests_are_not_hedged() {
    let slow = FaultStep::answer(Answer::new(200).delay(Duration::from_millis(200)));
    let server = FaultServer::play([slow]).await;
    let hedging = Client::builder().hedge(HedgePolicy::after(Duration::from_millis(5))).build().unwrap();
    let response = over(Steadfast::new(hedging)).get(server.url("/report")).send().await.unwrap();
    assert_eq!((response.attempts().len(), server.received().len()), (1, 1));
}
