//! A controller's config map, through kube: created, listed and patched on an API server that
//! breaks.
//!
//! An API server ignores idempotency keys, and `generateName` makes every create a new object. A
//! JSON patch that appends, appends again. `kube::client::retry` repeats both after a 504, which an
//! API server also sends for a change that it has made too late.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioExecutor;
use interop_common::{Fault, Seen, Table, fast_retries, serve};
use json_patch::{AddOperation, PatchOperation};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::client::Body;
use kube::client::middleware::BaseUriLayer;
use kube::client::retry::RetryPolicy;
use kube::{Api, Client};
use serde_json::{Value, json};
use steadfast::http::header::CONTENT_TYPE;
use steadfast::http::{HeaderValue, Request};
use steadfast::{KeyPolicy, RequestTerms};
use steadfast_testing::{Answer, FaultServer, Received};
use tower::buffer::BufferLayer;
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: HeaderValue = HeaderValue::from_static("application/merge-patch+json");

/// A fake API server: one config map, and how often something was changed.
#[derive(Debug, Default)]
struct Cluster {
    changes: usize,
    data: Value,
}

impl Cluster {
    fn answer(&mut self, request: &Received) -> Answer {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        match request.method.as_str() {
            "GET" => return Answer::new(200).body(self.list().to_string()),
            "POST" => self.changes += 1,
            _ if request.header("content-type") == Some(JSON_PATCH) => self.changes += 1,
            // As in Kubernetes, setting the values that are there already is no change.
            _ if self.data == body["data"] => {}
            _ => self.changes += 1,
        }
        self.data = body["data"].clone();
        Answer::new(200).body(self.config_map().to_string())
    }

    fn list(&self) -> Value {
        json!({ "kind": "ConfigMapList", "apiVersion": "v1", "metadata": {}, "items": [self.config_map()] })
    }

    fn config_map(&self) -> Value {
        let name = format!("settings-{}", self.changes);
        json!({ "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": name }, "data": self.data })
    }
}

/// What a team has today: hyper below kube's own retry policy, with shorter waits.
fn naive(server: &FaultServer) -> Client {
    let uri = server.url("").parse().expect("a URL");
    let policy = RetryPolicy::new(Duration::from_millis(1), Duration::from_millis(10), 3, false);
    let service = ServiceBuilder::new()
        .layer(BaseUriLayer::new(uri))
        .layer(BufferLayer::new(1024))
        .layer(RetryLayer::new(policy.expect("valid waits")))
        .map_err(BoxError::from)
        .service(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http());
    Client::new(service, "default")
}

/// The line that changes.
fn with_steadfast(server: &FaultServer) -> Client {
    Client::new(steadfast(server).into_service(), "default")
}

/// An API server knows no keys, so none is sent.
fn steadfast(server: &FaultServer) -> steadfast::Client {
    let client = steadfast::Client::builder().base_url(server.url("")).keys(KeyPolicy::off()).retry(fast_retries());
    client.build().expect("valid settings")
}

/// A team's own word, as a layer: a merge patch sets values, so a second one changes nothing.
fn with_a_layer(server: &FaultServer) -> Client {
    let declare = |mut request: Request<Body>| {
        if request.headers().get(CONTENT_TYPE) == Some(&MERGE_PATCH) {
            request.extensions_mut().insert(RequestTerms::new().idempotent(true));
        }
        request
    };
    let service = ServiceBuilder::new().map_request(declare).service(steadfast(server).into_service());
    Client::new(service, "default")
}

/// A status reaches kube as it is. What steadfast knows of it is in extensions of the response that
/// kube does not hand on.
fn told<T>(result: &kube::Result<T>) -> String {
    match result {
        Err(kube::Error::Api(status)) => format!("error: {}", status.code),
        _ => interop_common::told(result),
    }
}

async fn create(config_maps: Api<ConfigMap>) -> String {
    let mut settings = ConfigMap::default();
    settings.metadata.generate_name = Some("settings-".to_owned());
    settings.data = Some([("level".to_owned(), "info".to_owned())].into());
    told(&config_maps.create(&PostParams::default(), &settings).await)
}

async fn set(config_maps: Api<ConfigMap>) -> String {
    let change = Patch::Merge(json!({ "data": { "level": "debug" } }));
    told(&config_maps.patch("settings", &PatchParams::default(), &change).await)
}

async fn append(config_maps: Api<ConfigMap>) -> String {
    let path = "/metadata/finalizers/-".parse().expect("a JSON pointer");
    let add = PatchOperation::Add(AddOperation { path, value: json!("example.com/settings") });
    let change = Patch::Json::<()>(json_patch::Patch(vec![add]));
    told(&config_maps.patch("settings", &PatchParams::default(), &change).await)
}

async fn list(config_maps: Api<ConfigMap>) -> String {
    told(&config_maps.list(&ListParams::default()).await)
}

/// Runs one operation against a new server.
async fn run(
    fault: Fault,
    client: impl Fn(&FaultServer) -> Client,
    operation: impl AsyncFn(Api<ConfigMap>) -> String,
) -> Seen {
    let cluster = Arc::new(Mutex::new(Cluster::default()));
    let api = cluster.clone();
    let server = serve(fault, move |request| lock(&api).answer(request)).await;
    let told = operation(Api::default_namespaced(client(&server))).await;
    Seen::write(lock(&cluster).changes, told)
}

fn lock(cluster: &Mutex<Cluster>) -> MutexGuard<'_, Cluster> {
    cluster.lock().unwrap_or_else(PoisonError::into_inner)
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut table = Table::new("kube", "kube 5.0.0, and an API server that ignores keys", "kube's RetryPolicy");
    let late = Fault::Late(504);
    let closed = Fault::Closed;

    table.row(
        "create: made, then 504",
        (run(late, naive, create).await, "twice, ok"),
        (run(late, with_steadfast, create).await, "once, error: 504"),
    );
    table.row(
        "create: made, then the connection closes",
        (run(closed, naive, create).await, "once, error"),
        (run(closed, with_steadfast, create).await, "once, error: may have run"),
    );
    table.row(
        "create: 429, too many requests",
        (run(Fault::Refused(429), naive, create).await, "once, ok"),
        (run(Fault::Refused(429), with_steadfast, create).await, "once, ok"),
    );
    table.row(
        "create: 503, and not made",
        (run(Fault::Refused(503), naive, create).await, "once, ok"),
        (run(Fault::Refused(503), with_steadfast, create).await, "never, error: 503"),
    );
    table.row(
        "create: connection refused",
        (run(Fault::NoConnection, naive, create).await, "never, error"),
        (run(Fault::NoConnection, with_steadfast, create).await, "never, error: has not run"),
    );
    table.row(
        "JSON patch that appends: made, then 504",
        (run(late, naive, append).await, "twice, ok"),
        (run(late, with_steadfast, append).await, "once, error: 504"),
    );
    table.row(
        "merge patch, declared harmless: made, then closes",
        (run(closed, naive, set).await, "once, error"),
        (run(closed, with_a_layer, set).await, "once, ok"),
    );
    table.row(
        "list: the connection closes",
        (run(closed, naive, list).await.as_read(), "read, error"),
        (run(closed, with_steadfast, list).await.as_read(), "read, ok"),
    );
    table.finish()
}
