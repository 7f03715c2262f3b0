//! The client's metrics: names, units, attributes with their types, and counts beside those of the
//! server.

use std::collections::BTreeMap;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider as _};
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};
use steadfast::ClientBuilder;
use steadfast::policy::{BreakerPolicy, HedgePolicy};
use steadfast_otel::ClientMetrics;
use steadfast_testing::{FaultPoint, FaultServer, FaultStep};

use crate::support::{lines, trusting};

/// A meter with an exporter in memory.
pub(crate) struct Meters {
    exporter: InMemoryMetricExporter,
    provider: SdkMeterProvider,
}

impl Meters {
    pub(crate) fn new() -> Self {
        let exporter = InMemoryMetricExporter::default();
        let provider =
            SdkMeterProvider::builder().with_reader(PeriodicReader::builder(exporter.clone()).build()).build();
        Self { exporter, provider }
    }

    pub(crate) fn meter(&self) -> Meter {
        self.provider.meter("tests")
    }

    fn watch(&self, builder: ClientBuilder) -> ClientBuilder {
        let metrics = ClientMetrics::new(&self.meter());
        builder.on_event(move |event| metrics.observe(event))
    }

    /// Returns each series with its value, or with its count if it is a histogram.
    pub(crate) fn collect(&self, port: u16) -> BTreeMap<String, f64> {
        self.exporter.reset();
        self.provider.force_flush().unwrap();
        let mut series = BTreeMap::new();
        for resource in self.exporter.get_finished_metrics().unwrap() {
            for metric in resource.scope_metrics().flat_map(|scope| scope.metrics()) {
                for (attributes, value) in points(metric.data()) {
                    series.insert(format!("{} [{}]", metric.name(), lines(&attributes, port).join(", ")), value);
                }
            }
        }
        series
    }
}

#[allow(clippy::cast_precision_loss, reason = "small counts")]
fn points(data: &AggregatedMetrics) -> Vec<(Vec<KeyValue>, f64)> {
    match data {
        AggregatedMetrics::F64(MetricData::Histogram(histogram)) => histogram
            .data_points()
            .map(|point| {
                assert_eq!(point.bounds().collect::<Vec<_>>(), BOUNDARIES);
                (point.attributes().cloned().collect(), point.count() as f64)
            })
            .collect(),
        AggregatedMetrics::U64(MetricData::Sum(sum)) => {
            sum.data_points().map(|point| (point.attributes().cloned().collect(), point.value() as f64)).collect()
        }
        AggregatedMetrics::U64(MetricData::Gauge(gauge)) => {
            gauge.data_points().map(|point| (point.attributes().cloned().collect(), point.value() as f64)).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// As the conventions advise.
const BOUNDARIES: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

fn port(server: &FaultServer) -> u16 {
    server.url("").parse::<reqwest::Url>().unwrap().port().unwrap()
}

#[tokio::test]
async fn each_send_is_in_the_conventional_histogram() {
    let lost = FaultStep::reset(FaultPoint::AfterExecuting);
    let server = FaultServer::play([FaultStep::answer(503), lost, FaultStep::ok()]).await;
    let meters = Meters::new();
    let client = meters.watch(trusting(&server)).build().unwrap();
    client.post("/users/7").template("/users/{id}").body("x").send().await.unwrap();
    let server_and_template = "server.address: string 127.0.0.1, server.port: int PORT";
    let request = |error: &str, status: &str, version: &str| {
        format!(
            "http.client.request.duration [{error}http.request.method: string POST, {status}{version}\
             {server_and_template}, url.template: string /users/{{id}}]"
        )
    };
    let operation = |key: &str| {
        format!("http.request.method: string POST, {key}{server_and_template}, url.template: string /users/{{id}}]")
    };
    let version = "network.protocol.version: string 1.1, ";
    let expected = BTreeMap::from([
        (request("error.type: string 503, ", "http.response.status_code: int 503, ", version), 1.0),
        (request("error.type: string disconnected, ", "", ""), 1.0),
        (request("", "http.response.status_code: int 200, ", version), 1.0),
        (format!("steadfast.operation.duration [{}", operation("outcome: string done, ")), 1.0),
        (format!("steadfast.retries [{}", operation("reason: string ambiguous, ")), 2.0),
        (format!("steadfast.budget.tokens [{server_and_template}]"), 486.0),
    ]);
    assert_eq!(meters.collect(port(&server)), expected);
    assert_eq!(server.received().len(), 3);
}

#[tokio::test]
async fn dropped_operation_counts_as_cancelled() {
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::stall(FaultPoint::AfterExecuting)]).await;
    let meters = Meters::new();
    let client = meters.watch(trusting(&server)).build().unwrap();
    tokio::select! {
        result = client.post("/").body("x").send() => panic!("{result:?}"),
        () = async { while server.executions() == 0 { tokio::task::yield_now().await } } => {}
    }
    let series = meters.collect(port(&server));
    let found = |part: &str| series.iter().filter(|(name, _)| name.contains(part)).map(|(_, value)| value).sum::<f64>();
    assert_eq!(found("outcome: string cancelled"), 1.0, "{series:?}");
    assert_eq!((found("http.client.request.duration"), server.received().len()), (2.0, 2), "{series:?}");
}

#[tokio::test]
async fn hedges_are_counted_and_circuit_has_its_state() {
    let server = FaultServer::play([
        FaultStep::stall(FaultPoint::AfterExecuting),
        FaultStep::answer(200),
        FaultStep::answer(500),
    ])
    .await;
    let meters = Meters::new();
    let late = HedgePolicy::after(Duration::from_millis(20)).max_extra_load(1.0);
    let breaker = BreakerPolicy::new().min_calls(2);
    let client = meters.watch(trusting(&server).hedge(late).breaker(breaker)).build().unwrap();
    client.get("/").send().await.unwrap();
    let series = meters.collect(port(&server));
    let found = |part: &str| series.iter().filter(|(name, _)| name.contains(part)).map(|(_, value)| value).sum::<f64>();
    assert_eq!(found("reason: string hedge"), 1.0, "{series:?}");
    assert_eq!(found("http.client.request.duration"), 2.0, "the one that was cancelled too: {series:?}");
    drop(client.get("/").send().await);
    drop(client.get("/").send().await);
    let series = meters.collect(port(&server));
    let state = "steadfast.breaker.state [server.address: string 127.0.0.1, server.port: int PORT]";
    assert_eq!(series[state], 2.0, "{series:?}");
}
