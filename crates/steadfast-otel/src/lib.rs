//! OpenTelemetry for steadfast: metrics of the client and of the server layer, and the trace context
//! in the headers of each attempt.
//!
//! The client has spans of its own, by [`tracing`](https://docs.rs/tracing), with the names and
//! attributes of OpenTelemetry's conventions. tracing-opentelemetry exports them. This crate adds
//! what needs OpenTelemetry itself, and keeps its versions out of the client.
//!
//! | item | brings |
//! | --- | --- |
//! | [`ClientMetrics`] | durations of requests and of operations, retries, budget and circuit |
//! | [`propagate`] | `traceparent` in the headers of each attempt |
//! | [`export_idempotency`] | the counts of the server layer (feature `server`) |
//! | [`ExporterClient`] | a client for OTLP exporters, which makes no telemetry of its own (feature `exporter`) |
//!
//! [The guide](https://docs.rs/steadfast/latest/steadfast/guide/observability/) lists the spans and
//! their attributes.
//!
//! # OTLP
//!
//! Spans and metrics go to a collector, by the SDK and `opentelemetry-otlp`:
//!
//! ```no_run
//! use opentelemetry::trace::TracerProvider;
//! use opentelemetry::metrics::MeterProvider;
//! use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig};
//! use opentelemetry_sdk::metrics::SdkMeterProvider;
//! use opentelemetry_sdk::propagation::TraceContextPropagator;
//! use opentelemetry_sdk::trace::SdkTracerProvider;
//! use steadfast::Client;
//! use steadfast_otel::{ClientMetrics, ExporterClient};
//! use tokio::runtime::Handle;
//! use tracing_subscriber::layer::SubscriberExt;
//! use tracing_subscriber::util::SubscriberInitExt;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let sender = ExporterClient::new(Client::builder().spans(false).build()?, Handle::current());
//! let spans = SpanExporter::builder()
//!     .with_http()
//!     .with_http_client(sender.clone())
//!     .with_endpoint("http://localhost:4318/v1/traces")
//!     .build()?;
//! let metrics = MetricExporter::builder()
//!     .with_http()
//!     .with_http_client(sender)
//!     .with_endpoint("http://localhost:4318/v1/metrics")
//!     .build()?;
//! opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
//! let tracers = SdkTracerProvider::builder().with_batch_exporter(spans).build();
//! let meters = SdkMeterProvider::builder().with_periodic_exporter(metrics).build();
//!
//! let layer = tracing_opentelemetry::layer().with_tracer(tracers.tracer("shop"));
//! tracing_subscriber::registry().with(layer).init();
//!
//! let metrics = ClientMetrics::new(&meters.meter("shop"));
//! let client = Client::builder()
//!     .base_url("https://api.example.com")
//!     .on_event(move |event| metrics.observe(event))
//!     .on_attempt(steadfast_otel::propagate())
//!     .build()?;
//! # drop(client);
//!
//! // At the end of the program:
//! tracers.shutdown()?;
//! meters.shutdown()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Prometheus
//!
//! Metrics alone, as a page that Prometheus reads:
//!
//! ```
//! use opentelemetry::metrics::MeterProvider;
//! use opentelemetry_sdk::metrics::SdkMeterProvider;
//! use prometheus::{Encoder, Registry, TextEncoder};
//! use steadfast::Client;
//! use steadfast_otel::ClientMetrics;
//!
//! /// The body of `GET /metrics`.
//! fn page(registry: &Registry) -> Result<Vec<u8>, prometheus::Error> {
//!     let mut page = Vec::new();
//!     TextEncoder::new().encode(&registry.gather(), &mut page)?;
//!     Ok(page)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = Registry::new();
//! let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).build()?;
//! let meters = SdkMeterProvider::builder().with_reader(exporter).build();
//!
//! let metrics = ClientMetrics::new(&meters.meter("shop"));
//! let client = Client::builder().on_event(move |event| metrics.observe(event)).build()?;
//! # client.get("http://127.0.0.1:9/").send().await.unwrap_err();
//!
//! let page = String::from_utf8(page(&registry)?)?;
//! assert!(page.contains("http_client_request_duration_seconds_count"));
//! assert!(page.contains("error_type=\"connect\""));
//! # Ok(())
//! # }
//! ```
//!
//! The server layer needs no exporter for this:
//! [`Metrics::iter`](https://docs.rs/steadfast-server/latest/steadfast_server/struct.Metrics.html)
//! has its page in ten lines.
//!
//! # Exporters
//!
//! An exporter that sends spans by HTTP would make a span for each of its requests, and send that
//! one too. The SDK marks the context in which its exporters run. There this crate counts nothing,
//! and the SDK records no span. [`ExporterClient`] takes the mark to the runtime on which it sends.

#[cfg(feature = "exporter")]
mod exporter;
#[cfg(feature = "server")]
mod idempotency;
mod metrics;
mod propagation;
mod suppression;

#[cfg(feature = "exporter")]
pub use exporter::ExporterClient;
#[cfg(feature = "server")]
pub use idempotency::export_idempotency;
pub use metrics::ClientMetrics;
pub use propagation::{propagate, without_propagation};
