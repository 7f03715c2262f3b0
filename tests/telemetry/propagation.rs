//! `traceparent` on the wire: that of the attempt's own span, and none for another origin.

use std::time::Duration;

use opentelemetry_sdk::trace::SpanData;
use steadfast::policy::HedgePolicy;
use steadfast_otel::{ExporterClient, propagate, without_propagation};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, Received};
use tokio::runtime::Handle;

use crate::support::{Trace, trusting};

/// The context of a span as W3C writes it, sampled.
fn context(span: &SpanData) -> String {
    format!("00-{}-{}-01", span.span_context.trace_id(), span.span_context.span_id())
}

fn parents(requests: &[Received]) -> Vec<Option<String>> {
    requests.iter().map(|request| request.header("traceparent").map(str::to_owned)).collect()
}

/// Checks that each request carries the context of its own span.
fn check(trace: &Trace, received: &[Received]) {
    let expected: Vec<_> = trace.sends().into_iter().map(|span| Some(context(span))).collect();
    assert_eq!(parents(received), expected);
    assert!(expected.len() > 1);
}

#[tokio::test]
async fn each_attempt_carries_its_own_span() {
    let moved = Answer::new(307).header("location", "/moved");
    let lost = FaultStep::reset(FaultPoint::AfterExecuting);
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::answer(moved), lost, FaultStep::ok()]).await;
    let client = trusting(&server).on_attempt(propagate()).build().unwrap();
    // A header of the caller's own is replaced: it names one span for all attempts.
    let request = client.post("/charges").header("traceparent", "00-1-1-00").body("x");
    let (response, trace) = Trace::of(request.send()).await;
    assert_eq!(response.unwrap().status(), 200);
    check(&trace, &server.received());
    assert_eq!(server.received().len(), 4);
}

#[tokio::test]
async fn hedge_carries_its_own_span() {
    let server = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting), FaultStep::answer(200)]).await;
    let late = HedgePolicy::after(Duration::from_millis(20)).max_extra_load(1.0);
    let client = trusting(&server).hedge(late).on_attempt(propagate()).build().unwrap();
    let (_, trace) = Trace::of(client.get("/").send()).await;
    check(&trace, &server.received());
}

#[tokio::test]
async fn other_origin_learns_nothing_of_the_trace() {
    let other = FaultServer::play([FaultStep::answer(200)]).await;
    let away = Answer::new(302).header("location", other.url("/elsewhere"));
    let server = FaultServer::play([FaultStep::answer(away)]).await;
    let client = trusting(&server).on_attempt(propagate()).build().unwrap();
    let (_, trace) = Trace::of(client.get("/").send()).await;
    assert_eq!(trace.sends().len(), 2);
    assert!(parents(&server.received())[0].is_some());
    assert_eq!(parents(&other.received()), [None]);
}

#[tokio::test]
async fn propagation_is_off_per_client_and_request() {
    let server = FaultServer::play([FaultStep::answer(200)]).await;
    let with = trusting(&server).on_attempt(propagate()).build().unwrap();
    let without = trusting(&server).build().unwrap();
    let work = async {
        without.get("/").send().await.unwrap();
        without_propagation(with.get("/").send()).await.unwrap();
        with.get("/").send().await.unwrap();
    };
    let ((), trace) = Trace::of(work).await;
    assert_eq!(trace.sends().len(), 3);
    assert_eq!(parents(&server.received()), [None, None, Some(context(trace.sends()[2]))]);
    let exporter = ExporterClient::new(with, Handle::current());
    let request = steadfast::http::Request::post(server.url("/")).body(bytes::Bytes::new()).unwrap();
    opentelemetry_http::HttpClient::send_bytes(&exporter, request).await.unwrap();
    assert_eq!(parents(&server.received())[3], None);
}
