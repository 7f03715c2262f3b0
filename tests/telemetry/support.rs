//! A subscriber with an exporter in memory, for the whole process. Each test reads its own trace.

use std::sync::OnceLock;

use opentelemetry::trace::{SpanKind, TraceContextExt as _, TraceId, TracerProvider as _};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use steadfast::{Client, ClientBuilder, KeyPolicy};
use steadfast_testing::{FaultServer, fast_retries};
use tracing::{Instrument as _, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;

/// A client of this server that trusts its keys and does not wait between attempts.
pub(crate) fn trusting(server: &FaultServer) -> ClientBuilder {
    Client::builder().base_url(server.url("")).retry(fast_retries()).keys(KeyPolicy::standard())
}

/// The spans of one trace, in the order of their starts.
pub(crate) struct Trace {
    pub(crate) spans: Vec<SpanData>,
}

impl Trace {
    /// Runs `work` under a span of its own, and returns the spans in it.
    pub(crate) async fn of<T>(work: impl Future<Output = T>) -> (T, Self) {
        let exporter = exporter();
        let root = info_span!(target: "test", "root");
        let id = root.context().span().span_context().trace_id();
        let result = work.instrument(root).await;
        (result, Self::with_id(exporter, id))
    }

    fn with_id(exporter: &InMemorySpanExporter, id: TraceId) -> Self {
        let mut spans = exporter.get_finished_spans().unwrap();
        spans.retain(|span| span.span_context.trace_id() == id && span.name != "root");
        spans.sort_by_key(|span| span.start_time);
        Self { spans }
    }

    /// Returns the spans of requests.
    pub(crate) fn sends(&self) -> Vec<&SpanData> {
        self.spans.iter().filter(|span| span.span_kind == SpanKind::Client).collect()
    }

    /// Returns the only other span.
    pub(crate) fn operation(&self) -> &SpanData {
        let mut others = self.spans.iter().filter(|span| span.span_kind != SpanKind::Client);
        let operation = others.next().expect("an operation");
        assert!(others.next().is_none(), "{:?}", self.spans);
        assert_eq!(operation.span_kind, SpanKind::Internal);
        for send in self.sends() {
            assert_eq!(send.parent_span_id, operation.span_context.span_id());
        }
        operation
    }
}

/// Returns the exporter of the process.
pub(crate) fn exporter() -> &'static InMemorySpanExporter {
    static EXPORTER: OnceLock<InMemorySpanExporter> = OnceLock::new();
    EXPORTER.get_or_init(|| {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("tests"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false);
        let targets =
            Targets::new().with_target("test", LevelFilter::INFO).with_target("steadfast", LevelFilter::DEBUG);
        let subscriber = tracing_subscriber::registry().with(layer.with_filter(targets));
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        tracing::subscriber::set_global_default(subscriber).expect("no other test of this process sets one");
        exporter
    })
}

/// Renders attributes with their types, sorted. `port` is written as `PORT`.
pub(crate) fn lines(attributes: &[KeyValue], port: u16) -> Vec<String> {
    let without_port = |attribute| line(attribute).replace(&port.to_string(), "PORT");
    let mut lines: Vec<_> = attributes.iter().map(without_port).collect();
    lines.sort();
    lines
}

fn line(attribute: &KeyValue) -> String {
    let (kind, value) = match &attribute.value {
        Value::Bool(value) => ("bool", value.to_string()),
        Value::I64(value) => ("int", value.to_string()),
        Value::F64(value) => ("double", value.to_string()),
        Value::String(value) => ("string", value.to_string()),
        other => ("other", format!("{other:?}")),
    };
    format!("{}: {kind} {value}", attribute.key)
}

/// Returns an attribute of a span with its type, or an empty text if it is not there.
pub(crate) fn attribute(span: &SpanData, key: &str) -> String {
    let mut found = span.attributes.iter().filter(|attribute| attribute.key.as_str() == key);
    let first = found.next().map(line);
    assert!(found.next().is_none(), "{key} is there twice: {span:?}");
    first.map(|line| line.split_once(": ").unwrap().1.to_owned()).unwrap_or_default()
}
