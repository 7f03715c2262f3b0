//! Exporters in memory, and a collector if there is one.

use opentelemetry::metrics::{Meter, MeterProvider as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, Metric, MetricData};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use steadfast::Client;
use steadfast_otel::ExporterClient;
use tokio::runtime::Handle;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::Result;

const METHOD: &str = "http.request.method";

pub(crate) struct Telemetry {
    spans: InMemorySpanExporter,
    metrics: InMemoryMetricExporter,
    tracers: SdkTracerProvider,
    meters: SdkMeterProvider,
}

impl Telemetry {
    /// Starts to listen.
    pub(crate) fn start(collector: Option<&str>) -> Result<Self> {
        let (spans, metrics) = (InMemorySpanExporter::default(), InMemoryMetricExporter::default());
        let mut tracers = SdkTracerProvider::builder().with_simple_exporter(spans.clone());
        let reader = PeriodicReader::builder(metrics.clone()).build();
        let mut meters = SdkMeterProvider::builder().with_reader(reader);
        if let Some(url) = collector {
            // A client that makes no telemetry of its own.
            let sender = ExporterClient::new(Client::builder().spans(false).build()?, Handle::current());
            let exporter = SpanExporter::builder().with_http().with_http_client(sender.clone());
            tracers = tracers.with_batch_exporter(exporter.with_endpoint(format!("{url}/v1/traces")).build()?);
            let exporter = MetricExporter::builder().with_http().with_http_client(sender);
            meters = meters.with_periodic_exporter(exporter.with_endpoint(format!("{url}/v1/metrics")).build()?);
        }
        let (tracers, meters) = (tracers.build(), meters.build());
        global::set_text_map_propagator(TraceContextPropagator::new());
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracers.tracer("observability"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false);
        // Spans only. At DEBUG the client's events would be in them too.
        let targets = Targets::new().with_target("steadfast::spans", LevelFilter::INFO);
        let targets = targets.with_target("shop", LevelFilter::INFO);
        tracing_subscriber::registry().with(layer.with_filter(targets)).try_init()?;
        Ok(Self { spans, metrics, tracers, meters })
    }

    pub(crate) fn meter(&self) -> Meter {
        self.meters.meter("observability")
    }

    /// Returns the spans that have ended.
    pub(crate) fn spans(&self) -> Result<Vec<SpanData>> {
        Ok(self.spans.get_finished_spans()?)
    }

    /// Renders each series on a line.
    pub(crate) fn metrics(&self) -> Result<String> {
        self.meters.force_flush()?;
        let mut lines = Vec::new();
        for resource in self.metrics.get_finished_metrics()? {
            for metric in resource.scope_metrics().flat_map(|scope| scope.metrics()) {
                lines.extend(series(metric));
            }
        }
        lines.sort();
        Ok(lines.join("\n"))
    }

    /// Sends what is left to the collector.
    pub(crate) fn stop(&self) -> Result<()> {
        self.tracers.shutdown()?;
        Ok(self.meters.shutdown()?)
    }
}

/// Renders the series of a metric that have a value.
fn series(metric: &Metric) -> Vec<String> {
    let line = |attributes: Vec<&KeyValue>, value: String| format!("{} {}{value}", metric.name(), labels(&attributes));
    match metric.data() {
        AggregatedMetrics::F64(MetricData::Histogram(histogram)) => histogram
            .data_points()
            .map(|point| line(point.attributes().collect(), format!("{} in {:.3} s", point.count(), point.sum())))
            .collect(),
        AggregatedMetrics::U64(MetricData::Sum(sum)) => sum
            .data_points()
            .filter(|point| point.value() > 0)
            .map(|point| line(point.attributes().collect(), point.value().to_string()))
            .collect(),
        AggregatedMetrics::U64(MetricData::Gauge(gauge)) => {
            gauge.data_points().map(|point| line(point.attributes().collect(), point.value().to_string())).collect()
        }
        _ => Vec::new(),
    }
}

/// Renders the attributes in which the series differ.
fn labels(attributes: &[&KeyValue]) -> String {
    let is_shown = |key: &str| !key.starts_with("server.") && !key.starts_with("network.") && key != METHOD;
    let shown = attributes.iter().filter(|attribute| is_shown(attribute.key.as_str()));
    let mut labels: Vec<_> = shown.map(|attribute| format!("{}={} ", attribute.key, attribute.value)).collect();
    labels.sort();
    labels.concat()
}
