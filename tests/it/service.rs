//! The client as a tower service: what it takes, what it returns, and what the server received.

mod bodies;
mod streams;

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use steadfast::policy::{RetryPolicy, StopReason};
use steadfast::{
    Client, ClientBuilder, ClientService, ErrorKind, KeyPolicy, OperationReport, RequestTerms, ResponseBody,
    ResponseExt,
};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, assert_one_key, fast_retries};
use tower::{BoxError, Service, ServiceExt};

use crate::support::{doubting, trusting};

/// A service of this client over HTTP/1.1, and one over HTTP/2.
fn both(builder: impl Fn() -> ClientBuilder) -> [ClientService; 2] {
    let http2 = builder().http(|http| http.http2_prior_knowledge());
    [builder(), http2].map(|builder| builder.build().unwrap().into_service())
}

fn charge(uri: impl AsRef<str>) -> Request<Full<Bytes>> {
    Request::post(uri.as_ref()).body("12 EUR".into()).unwrap()
}

fn lost() -> FaultStep {
    FaultStep::reset(FaultPoint::AfterExecuting)
}

#[tokio::test]
async fn lost_answer_with_key_executes_once() {
    for http2 in [false, true] {
        let server = FaultServer::play([lost(), FaultStep::execute(Answer::new(201).body("done"))]).await;
        let service = both(|| trusting(&server))[usize::from(http2)].clone();
        let response = service.oneshot(charge("/charges")).await.unwrap();
        let report = response.extensions().get::<OperationReport>().unwrap().clone();
        assert_eq!((response.status().as_u16(), report.attempts().len()), (201, 2));
        assert_eq!((report.stop_reason(), report.may_have_been_processed()), (StopReason::Done, true));
        assert!(report.elapsed() > Duration::ZERO && report.retry_after().is_none());
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "done");
        assert_eq!((server.received().len(), server.executions()), (2, 1), "HTTP/2: {http2}");
        assert_one_key(&server).await;
        let key = report.idempotency_key().map(|key| key.as_str().to_owned());
        assert!(server.received().iter().all(|request| request.key() == key.as_deref() && request.body == b"12 EUR"));
    }
}

#[tokio::test]
async fn lost_answer_without_licence_is_not_repeated() {
    for http2 in [false, true] {
        let server = FaultServer::play([lost()]).await;
        let service = both(|| trusting(&server).keys(KeyPolicy::off()))[usize::from(http2)].clone();
        let error = service.oneshot(charge("/charges")).await.unwrap_err();
        assert_eq!(error.stop_reason(), Some(StopReason::NotRepeatable), "{error:?}");
        assert!(error.may_have_been_processed() && error.url().is_some_and(|url| url.ends_with("/charges")));
        assert_eq!((server.received().len(), server.executions()), (1, 1));
    }
}

#[tokio::test]
async fn final_status_is_a_response() {
    let server = FaultServer::play([FaultStep::answer(503)]).await;
    let service = doubting(&server).build().unwrap().into_service();
    let request = Request::get("/charges").body(String::new()).unwrap();
    let response = service.oneshot(request).await.unwrap();
    let report = response.extensions().get::<OperationReport>().unwrap();
    assert_eq!((response.status().as_u16(), report.stop_reason()), (503, StopReason::AttemptsExhausted));
    assert_eq!(server.received().len(), report.attempts().len());
}

#[tokio::test]
async fn relative_uri_needs_a_base_url() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let service = Client::new().into_service();
    let relative = "url: it is relative and the client has no base_url";
    let no_scheme = "url: the scheme is missing: write http://localhost:80";
    for (uri, line) in [("/charges", relative), ("*", relative), ("localhost:80", no_scheme)] {
        let error = service.clone().oneshot(charge(uri)).await.unwrap_err();
        assert!(error.is_build() && !error.may_have_been_processed(), "{error}");
        assert!(error.to_string().starts_with(line), "{error}");
    }
    let based = Client::builder().base_url(server.url("/v1")).build().unwrap().into_service();
    based.clone().oneshot(charge("/charges?limit=3")).await.unwrap();
    based.clone().oneshot(charge(server.url("/v2/charges"))).await.unwrap();
    let error = based.oneshot(charge("/../v2/charges")).await.unwrap_err();
    assert!(error.to_string().contains("`..` leaves the base_url"), "{error}");
    let targets: Vec<_> = server.received().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/v1/charges?limit=3", "/v2/charges"]);
}

#[tokio::test]
async fn version_and_user_of_the_request_do_no_harm() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let service = Client::new().into_service();
    let uri = server.url("/charges").replace("//", "//ada:lovelace@");
    let mut request = charge(&uri);
    // The request came in over HTTP/2, and goes on over HTTP/1.1.
    *request.version_mut() = http::Version::HTTP_2;
    assert_eq!(service.oneshot(request).await.unwrap().status(), 200);
    assert_eq!(server.received()[0].header("authorization"), Some("Basic YWRhOmxvdmVsYWNl"));
}

#[tokio::test]
async fn key_in_the_header_is_the_key_of_the_operation() {
    let server = FaultServer::play([lost(), FaultStep::ok()]).await;
    let service = trusting(&server).build().unwrap().into_service();
    let with_key = |key: &str| {
        let mut request = charge("/charges");
        request.headers_mut().append("idempotency-key", key.parse().unwrap());
        request
    };
    let response = service.clone().oneshot(with_key("order-1042")).await.unwrap();
    let report = response.extensions().get::<OperationReport>().unwrap();
    assert_eq!(report.idempotency_key().map(|key| key.as_str()), Some("order-1042"));
    assert_eq!(server.keys(), [Some("order-1042".to_owned()), Some("order-1042".to_owned())]);

    let error = service.clone().oneshot(with_key("\"order")).await.unwrap_err();
    assert!(error.is_build() && error.to_string().contains("idempotency-key"), "{error}");
    let mut twice = with_key("one");
    twice.headers_mut().append("idempotency-key", "two".parse().unwrap());
    assert!(service.oneshot(twice).await.unwrap_err().is_build());
    assert_eq!(server.received().len(), 2, "nothing was sent under a malformed key");
}

#[tokio::test]
async fn terms_in_the_extensions_count() {
    let with = |method: &str, terms: RequestTerms| {
        Request::builder().method(method).uri("/charges").extension(terms).body(Full::<Bytes>::from("12 EUR")).unwrap()
    };
    let server = FaultServer::play([lost(), FaultStep::ok()]).await;
    let service = doubting(&server).build().unwrap().into_service();
    let terms = RequestTerms::new().idempotent(true).idempotency_key("order-1042".parse().unwrap());
    assert_eq!(service.oneshot(with("POST", terms)).await.unwrap().status(), 200);
    assert_eq!(server.keys(), [Some("order-1042".to_owned()), Some("order-1042".to_owned())]);

    let server = FaultServer::play([lost()]).await;
    let service = doubting(&server).build().unwrap().into_service();
    let error =
        service.clone().oneshot(with("PUT", RequestTerms::new().retry(RetryPolicy::never()))).await.unwrap_err();
    assert_eq!((error.stop_reason(), error.attempts().len()), (Some(StopReason::AttemptsExhausted), 1), "{error}");
    let error = service.oneshot(with("PUT", RequestTerms::new().timeout(Duration::ZERO))).await.unwrap_err();
    assert!(error.is_build(), "{error}");
    assert_eq!(server.received().len(), 1);

    let server = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting)]).await;
    let service = doubting(&server).build().unwrap().into_service();
    let short = RequestTerms::new().timeout(Duration::from_millis(50));
    let error = service.oneshot(with("PUT", short)).await.unwrap_err();
    assert!(error.is_timeout() && error.may_have_been_processed(), "{error}");
}

#[tokio::test]
async fn lost_operation_is_resumed_by_terms() {
    let server = FaultServer::play([lost(), FaultStep::ok()]).await;
    let once = || trusting(&server).retry(RetryPolicy::never()).build().unwrap().into_service();
    let error = once().oneshot(charge("/charges")).await.unwrap_err();
    let token = error.resume_token().unwrap();
    let resume = |body: &'static str| {
        let terms = RequestTerms::new().resume(token.clone());
        Request::post("/charges").extension(terms).body(Full::<Bytes>::from(body)).unwrap()
    };
    let other = once().oneshot(resume("13 EUR")).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::KeyExpired, "the token is of another body: {other}");
    assert_eq!(once().oneshot(resume("12 EUR")).await.unwrap().status(), 200);
    assert_eq!((server.received().len(), server.executions()), (2, 1));
}

#[tokio::test]
async fn response_converts_into_one_with_links() {
    let next = Answer::new(200).header("link", "</charges?page=2>; rel=next");
    let server = FaultServer::play([FaultStep::execute(next)]).await;
    let service = Client::new().into_service();
    let response = service.oneshot(charge(server.url("/charges"))).await.unwrap();
    let response = steadfast::reqwest::Response::from(response);
    assert_eq!(response.attempts().len(), 1);
    assert_eq!(response.link("next").unwrap().unwrap().as_str(), server.url("/charges?page=2"));
}

#[tokio::test]
async fn dropped_future_sends_nothing_more() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(503).retry_after(1)), FaultStep::ok()]).await;
    let service = trusting(&server).build().unwrap().into_service();
    let waiting = service.clone().oneshot(charge("/charges"));
    assert!(tokio::time::timeout(Duration::from_millis(100), waiting).await.is_err());
    assert_eq!(server.received().len(), 1);
    drop(service.oneshot(charge("/charges")));
    assert_eq!(server.received().len(), 1, "a future that is never polled sends nothing");
}

/// The bounds of `kube::Client::new` (5.0) and of octocrab's `with_service` and `build` (0.54). The
/// stricter of each two.
async fn stack_of_others<S, ReqBody, ResBody>(service: S, request: Request<ReqBody>) -> Bytes
where
    S: Service<Request<ReqBody>, Response = http::Response<ResBody>> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    ReqBody: Send + 'static,
    ResBody: http_body::Body<Data = Bytes> + Send + Sync + 'static,
    ResBody::Error: Into<BoxError>,
{
    let service = service.map_response(|response| response.map(|body| body.map_err(Into::into).boxed()));
    let mut service = service.map_err(Into::into).boxed_clone();
    let response = service.ready().await.unwrap().call(request).await.unwrap();
    let body: Result<_, BoxError> = response.into_body().collect().await;
    body.unwrap().to_bytes()
}

#[tokio::test]
async fn service_and_body_meet_the_bounds_of_others() {
    let server = FaultServer::play([FaultStep::execute(Answer::new(200).body("done"))]).await;
    let service = trusting(&server).build().unwrap().into_service();
    let spawned = tokio::spawn(stack_of_others(service, charge("/charges")));
    assert_eq!(spawned.await.unwrap(), "done");
}

#[tokio::test]
async fn service_below_a_loop_makes_one_attempt() {
    let server = FaultServer::play([FaultStep::answer(503)]).await;
    let service = trusting(&server).build().unwrap().into_service();
    let outer = trusting(&server).retry(fast_retries().max_attempts(2)).build().unwrap();
    let request = steadfast::reqwest::Request::new(http::Method::POST, server.url("/charges").parse().unwrap());
    let below = async |request: steadfast::reqwest::Request| {
        let request = http::Request::try_from(request).unwrap();
        let response = steadfast::reqwest::Response::from(service.clone().oneshot(request).await?);
        assert_eq!(response.stop_reason(), Some(StopReason::Nested));
        Ok(response)
    };
    let response = outer.execute_through(request, below).await.unwrap();
    assert_eq!((response.stop_reason(), server.received().len()), (Some(StopReason::AttemptsExhausted), 2));
    assert_one_key(&server).await;
}

#[tokio::test]
async fn errors_of_the_body_are_ours() {
    let server = FaultServer::play([FaultStep::reset(FaultPoint::MidBody)]).await;
    let service = doubting(&server).build().unwrap().into_service();
    let response = service.oneshot(charge("/charges")).await.unwrap();
    let body: ResponseBody = response.into_body();
    let error: steadfast::Error = body.collect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResponseBody, "{error:?}");
    assert!(error.may_have_been_processed());
    assert_eq!(server.received().len(), 1, "the operation had ended");
}
