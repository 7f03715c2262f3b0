//! The client's metrics, from its events.
//!
//! A send and an operation are two things: one operation may take five sends. So there are two
//! histograms. The one of sends is that of OpenTelemetry's conventions, and dashboards for any HTTP
//! client show it. The one of operations is what your caller waits for.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};
use steadfast::policy::{BreakerState, Class};
use steadfast::{Event, EventKind, Exchange};

use crate::suppression::is_suppressed;

/// The boundaries in seconds that the conventions advise for `http.client.request.duration`.
const BOUNDARIES: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// The metrics of a client. Give its events to [`observe`](Self::observe).
///
/// | metric | kind, unit | attributes |
/// | --- | --- | --- |
/// | `http.client.request.duration` | histogram, s | `http.request.method`, `server.address`, `server.port`, `url.template`, `http.response.status_code`, `error.type`, `network.protocol.version` |
/// | `steadfast.operation.duration` | histogram, s | `http.request.method`, `server.address`, `server.port`, `url.template`, `outcome` |
/// | `steadfast.retries` | counter | `http.request.method`, `server.address`, `server.port`, `url.template`, `reason` |
/// | `steadfast.budget.tokens` | gauge | `server.address`, `server.port` |
/// | `steadfast.breaker.state` | gauge: 0 closed, 1 half-open, 2 open | `server.address`, `server.port` |
///
/// * `http.client.request.duration` counts each request that was sent, those of redirects and hedges
///   included, up to the head of its response. Semantic conventions, *HTTP metrics*, status stable.
/// * `outcome` is the [label](steadfast::policy::StopReason::label) of the stop reason: `done`,
///   `attempts_exhausted`, `budget_exhausted` and so on. It is `cancelled` if you drop the operation.
/// * `reason` is the [label](steadfast::policy::Class::label) of the class that caused the retry:
///   `not_processed`, `throttled` or `ambiguous`. For a second request beside a late one it is
///   `hedge`, and after a 401 that met an expired token it is `unauthorized`.
/// * `url.template` is there if the request [names it](steadfast::RequestBuilder::template).
/// * The gauges have the value of the origin's last event. An unlimited budget has none.
///
/// A request that is cancelled has neither a status nor an error. If you drop an operation while a
/// hedge is under way, the hedge is not counted.
///
/// ```
/// use opentelemetry::global;
/// use steadfast::Client;
/// use steadfast_otel::ClientMetrics;
///
/// # fn example() -> steadfast::Result<()> {
/// let metrics = ClientMetrics::new(&global::meter("steadfast"));
/// let client = Client::builder()
///     .base_url("https://api.example.com")
///     .on_event(move |event| metrics.observe(event))
///     .build()?;
/// # drop(client);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ClientMetrics {
    requests: Histogram<f64>,
    operations: Histogram<f64>,
    retries: Counter<u64>,
    budget: Gauge<u64>,
    breaker: Gauge<u64>,
}

impl ClientMetrics {
    /// Creates the instruments. Clients that share a meter may share them too.
    #[must_use]
    pub fn new(meter: &Meter) -> Self {
        let seconds = |name, description| {
            let histogram = meter.f64_histogram(name).with_unit("s").with_description(description);
            histogram.with_boundaries(BOUNDARIES.to_vec()).build()
        };
        let retries = meter.u64_counter("steadfast.retries").with_unit("{retry}");
        let budget = meter.u64_gauge("steadfast.budget.tokens").with_unit("{token}");
        let breaker = meter.u64_gauge("steadfast.breaker.state");
        Self {
            requests: seconds("http.client.request.duration", "Duration of HTTP client requests."),
            operations: seconds(
                "steadfast.operation.duration",
                "Duration of operations, with their retries and waits.",
            ),
            retries: retries.with_description("Requests that were sent again, or beside a late one.").build(),
            budget: budget.with_description("Tokens left in the retry budget of an origin.").build(),
            breaker: breaker.with_description("State of an origin's circuit: 0 closed, 1 half-open, 2 open.").build(),
        }
    }

    /// Counts an event. Call it from the client's
    /// [`on_event`](steadfast::ClientBuilder::on_event), before or after your own code.
    ///
    /// Inside an [exporter](crate#exporters) it does nothing.
    pub fn observe(&self, event: &Event<'_>) {
        if is_suppressed() {
            return;
        }
        match event.kind() {
            EventKind::ExchangeEnded { exchange, .. } => self.observe_exchange(event, &exchange),
            EventKind::RetryScheduled { because, free, .. } => {
                self.retries.add(1, &with(event, "reason", reason(because, free)));
            }
            EventKind::HedgeStarted { .. } => self.retries.add(1, &with(event, "reason", "hedge")),
            EventKind::BreakerChanged { state, .. } => self.breaker.record(state_number(state), &server(event)),
            EventKind::OperationEnded { reason, elapsed, .. } => self.observe_operation(event, reason.label(), elapsed),
            EventKind::OperationDropped { elapsed, .. } => self.observe_operation(event, "cancelled", elapsed),
            _ => {}
        }
    }

    fn observe_operation(&self, event: &Event<'_>, outcome: &'static str, elapsed: Duration) {
        self.operations.record(elapsed.as_secs_f64(), &with(event, "outcome", outcome));
        if event.budget_tokens() < u64::MAX {
            self.budget.record(event.budget_tokens(), &server(event));
        }
    }

    fn observe_exchange(&self, event: &Event<'_>, exchange: &Exchange<'_>) {
        let mut attributes = Vec::with_capacity(7);
        attributes.push(KeyValue::new("http.request.method", exchange.method_label().to_owned()));
        attributes.push(KeyValue::new("server.address", exchange.server_address().to_owned()));
        attributes.extend(exchange.server_port().map(|port| KeyValue::new("server.port", i64::from(port))));
        attributes.extend(template(event));
        let status = exchange.status().map(|status| i64::from(status.as_u16()));
        attributes.extend(status.map(|status| KeyValue::new("http.response.status_code", status)));
        attributes.extend(exchange.error_type().map(|error| KeyValue::new("error.type", error.to_owned())));
        let version = exchange.protocol_version();
        attributes.extend(version.map(|version| KeyValue::new("network.protocol.version", version)));
        self.requests.record(exchange.elapsed().as_secs_f64(), &attributes);
    }
}

/// Returns why a request is sent again. A class that permits no retry is that of a 401, whose repeat
/// has a fresh token.
fn reason(because: Class, free: bool) -> &'static str {
    if free && because == Class::Permanent { "unauthorized" } else { because.label() }
}

fn state_number(state: BreakerState) -> u64 {
    match state {
        BreakerState::Closed => 0,
        BreakerState::HalfOpen => 1,
        // Open, and whatever else lets no call through.
        _ => 2,
    }
}

/// Returns the attributes of an operation, and one more.
fn with(event: &Event<'_>, key: &'static str, value: &'static str) -> Vec<KeyValue> {
    let mut attributes = server(event);
    attributes.push(KeyValue::new("http.request.method", event.method_label().to_owned()));
    attributes.extend(template(event));
    attributes.push(KeyValue::new(key, value));
    attributes
}

/// Returns the attributes of the operation's server.
fn server(event: &Event<'_>) -> Vec<KeyValue> {
    let port = event.server_port().map(|port| KeyValue::new("server.port", i64::from(port)));
    [KeyValue::new("server.address", event.server_address().to_owned())].into_iter().chain(port).collect()
}

fn template(event: &Event<'_>) -> Option<KeyValue> {
    event.template().map(|template| KeyValue::new("url.template", template.to_owned()))
}
