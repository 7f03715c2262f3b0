//! What the server layer records on the span of a request, and its counts as metrics.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::post;
use opentelemetry::KeyValue;
use opentelemetry_sdk::trace::SpanData;
use steadfast::server::{ExecutionOutcome, IdempotencyLayer, MemoryStore, Scope};
use tower::ServiceExt as _;
use tracing::field::Empty;
use tracing::{Instrument as _, info_span};

use crate::meters::Meters;
use crate::support::{Trace, attribute};

fn layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).required()
}

fn app(layer: &IdempotencyLayer<MemoryStore>) -> Router {
    let busy = (StatusCode::SERVICE_UNAVAILABLE, axum::Extension(ExecutionOutcome::NotExecuted));
    Router::new()
        .route("/charges", post(async || "charged"))
        .route("/busy", post(async move || busy))
        .route("/broken", post(async || -> &'static str { panic!("the handler is broken") }))
        .layer(layer.clone())
}

/// Sends a request through the layer, and returns outcome and end on its span.
async fn serve(app: &Router, path: &str, key: Option<&str>, body: &'static str) -> (String, String) {
    let mut request = Request::post(path);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let request = request.body(Body::from(body)).unwrap();
    let work = async {
        let span = info_span!(
            target: "test",
            "request",
            "steadfast.idempotency.outcome" = Empty,
            "steadfast.idempotency.end" = Empty,
        );
        drop(app.clone().oneshot(request).instrument(span).await.unwrap());
        // The layer's task holds the span until it has ended.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    let ((), trace) = Trace::of(work).await;
    let [span] = &trace.spans[..] else { panic!("{:?}", trace.spans) };
    (text(span, "steadfast.idempotency.outcome"), text(span, "steadfast.idempotency.end"))
}

fn text(span: &SpanData, key: &str) -> String {
    attribute(span, key).trim_start_matches("string ").to_owned()
}

#[tokio::test]
async fn span_has_outcome_and_end() {
    let app = app(&layer());
    let check = async |path, key, body| {
        let (outcome, end) = serve(&app, path, key, body).await;
        format!("{outcome}, {end}")
    };
    assert_eq!(check("/charges", Some("a"), "x").await, "executed, stored");
    assert_eq!(check("/charges", Some("a"), "x").await, "replayed, ");
    assert_eq!(check("/charges", Some("a"), "y").await, "mismatched, ");
    assert_eq!(check("/charges", None, "x").await, "refused, ");
    assert_eq!(check("/busy", Some("b"), "x").await, "executed, released");
    assert_eq!(check("/broken", Some("c"), "x").await, "executed, unknown");
    assert_eq!(check("/broken", Some("c"), "x").await, "unknown, ");
}

#[tokio::test]
async fn counts_are_exported_as_metrics() {
    let layer = layer();
    let (app, meters) = (app(&layer), Meters::new());
    steadfast_otel::export_idempotency(&meters.meter(), &layer, vec![KeyValue::new("http.route", "/charges")]);
    for (key, body) in [("a", "x"), ("a", "x"), ("a", "y"), ("b", "x")] {
        serve(&app, "/charges", Some(key), body).await;
    }
    let counts = meters.collect(u16::MAX);
    let requests = |outcome| {
        format!(
            "steadfast.idempotency.requests [http.route: string /charges, steadfast.idempotency.outcome: string {outcome}]"
        )
    };
    assert_eq!(counts[&requests("executed")], 2.0);
    assert_eq!(counts[&requests("replayed")], 1.0);
    assert_eq!(counts[&requests("mismatched")], 1.0);
    let ends = "steadfast.idempotency.ends [http.route: string /charges, steadfast.idempotency.end: string stored]";
    assert_eq!(counts[ends], 2.0);
}
