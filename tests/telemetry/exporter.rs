//! A client that sends telemetry makes none.

use bytes::Bytes;
use opentelemetry_http::HttpClient as _;
use steadfast::http::Request;
use steadfast_otel::ExporterClient;
use steadfast_testing::{FaultServer, FaultStep};
use tokio::runtime::Handle;

use crate::support::{Trace, trusting};

#[tokio::test]
async fn exporter_makes_no_spans_of_its_own() {
    let collector = FaultServer::play([FaultStep::answer(429), FaultStep::answer(200)]).await;
    // The same client makes spans for others.
    let client = trusting(&collector).build().unwrap();
    let exporter = ExporterClient::new(client.clone(), Handle::current());
    let request = || Request::post(collector.url("/v1/traces")).body(Bytes::from_static(b"spans")).unwrap();
    let (response, trace) = Trace::of(exporter.send_bytes(request())).await;
    assert_eq!((response.unwrap().status().as_u16(), trace.spans.len()), (200, 0));
    assert_eq!(collector.received().len(), 2, "it was repeated");
    let (_, trace) = Trace::of(client.get("/").send()).await;
    assert_eq!(trace.sends().len(), 1);
}
