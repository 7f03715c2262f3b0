//! The counts of the server layer, as OpenTelemetry's counters.

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use steadfast_server::{IdempotencyLayer, Store};

/// Attribute of a count of requests.
const OUTCOME: &str = "steadfast.idempotency.outcome";

/// Feature `server`. Exports the [counts](steadfast_server::Metrics) of a layer. They are read at
/// each collection, so they cost a request nothing.
///
/// | counter | attribute | counts |
/// | --- | --- | --- |
/// | `steadfast.idempotency.requests` | `steadfast.idempotency.outcome` | what became of each request under a key: `executed`, `replayed`, `in_progress` and so on |
/// | `steadfast.idempotency.ends` | `steadfast.idempotency.end` | how the operations ended: `stored`, `released`, `unknown` and so on |
///
/// The values are those of the [fields on the request's
/// span](steadfast_server::Metrics#on-the-requests-span). `attributes` are added to every count; use
/// them to tell several layers apart.
///
/// ```
/// use opentelemetry::{KeyValue, global};
/// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
///
/// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
/// let route = KeyValue::new("http.route", "/charges");
/// steadfast_otel::export_idempotency(&global::meter("steadfast"), &layer, vec![route]);
/// ```
pub fn export_idempotency<S: Store>(meter: &Meter, layer: &IdempotencyLayer<S>, attributes: Vec<KeyValue>) {
    let counter = |name: &'static str, description: &'static str, is_counted: fn(&str) -> bool| {
        let (layer, attributes) = (layer.clone(), attributes.clone());
        meter
            .u64_observable_counter(name)
            .with_unit("{request}")
            .with_description(description)
            .with_callback(move |observer| {
                for metric in layer.metrics().iter().filter(|metric| is_counted(metric.attribute.0)) {
                    let (key, value) = metric.attribute;
                    let all: Vec<_> = attributes.iter().cloned().chain([KeyValue::new(key, value)]).collect();
                    observer.observe(metric.value, &all);
                }
            })
            .build();
    };
    counter("steadfast.idempotency.requests", "Requests under a key, by their outcome.", |key| key == OUTCOME);
    counter("steadfast.idempotency.ends", "Operations under a key, by their end.", |key| key != OUTCOME);
}
