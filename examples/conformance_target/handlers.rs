//! Handlers that count every run first, and then respond as a case requires.

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use http::{HeaderMap, HeaderValue, StatusCode};
use steadfast_server::ExecutionOutcome;

use crate::settings::Settings;

#[derive(Clone)]
pub(crate) struct Handlers {
    log: Log,
    retry_5xx: bool,
    numbers: Arc<AtomicU64>,
    /// Effects of events if there is no database: tag and event.
    effects: Arc<Mutex<Vec<(String, String)>>>,
}

/// The count of runs: a file that other instances append to, or memory.
#[derive(Clone)]
enum Log {
    File(String),
    Memory(Arc<Mutex<Vec<String>>>),
}

impl Handlers {
    pub(crate) fn new(settings: &Settings) -> Self {
        let log = settings.exec_log.clone().map_or_else(|| Log::Memory(Arc::default()), Log::File);
        Self { log, retry_5xx: settings.retry_5xx, numbers: Arc::default(), effects: Arc::default() }
    }

    /// Returns how often handlers were started under this tag, over all instances that share the
    /// log.
    pub(crate) fn started(&self, tag: &str) -> usize {
        let lines = match &self.log {
            Log::File(path) => std::fs::read_to_string(path).unwrap_or_default(),
            Log::Memory(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n"),
        };
        lines.lines().filter(|line| *line == tag).count()
    }

    /// Returns the events that were handled under this tag in this process.
    pub(crate) fn effects(&self, tag: &str) -> Vec<String> {
        let effects = self.effects.lock().unwrap_or_else(PoisonError::into_inner);
        effects.iter().filter(|(of, _)| of == tag).map(|(_, event)| event.clone()).collect()
    }

    /// Counts the run, and waits as long as the case requires. Returns the id of the run.
    pub(crate) async fn run(&self, headers: &HeaderMap, query: &HashMap<String, String>) -> String {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let tag = tag(headers);
        match &self.log {
            Log::File(path) => append(path, &format!("{tag}\n")),
            Log::Memory(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).push(tag.to_owned()),
        }
        let milliseconds =
            text("x-sleep-ms").or(query.get("ms").map(String::as_str)).and_then(|text| text.parse().ok());
        if let Some(milliseconds) = milliseconds {
            pause(milliseconds).await;
        }
        format!("{}-{}", std::process::id(), self.numbers.fetch_add(1, Ordering::Relaxed))
    }
}

/// Appends in a single write, so that lines of several processes do not mix.
fn append(path: &str, line: &str) {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        eprintln!("cannot count the run: {error}");
        std::process::abort();
    }
}

#[allow(clippy::disallowed_methods, reason = "a slow handler is what is staged")]
pub(crate) async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

type Arguments = (State<Handlers>, Query<HashMap<String, String>>, HeaderMap);

/// Returns the route for events. Put it behind a layer that knows their ids.
pub(crate) fn webhooks(handlers: Handlers) -> Router {
    Router::new().route("/webhook", post(webhook)).route("/webhook/{consumer}", post(webhook)).with_state(handlers)
}

async fn webhook((State(handlers), Query(query), headers): Arguments, _body: Bytes) -> Response {
    let id = handlers.run(&headers, &query).await;
    if fails(&headers) {
        return answer(StatusCode::INTERNAL_SERVER_ERROR, &id, "{}");
    }
    let effect = (tag(&headers).to_owned(), event(&headers).to_owned());
    handlers.effects.lock().unwrap_or_else(PoisonError::into_inner).push(effect);
    answer(StatusCode::OK, &id, "{}")
}

pub(crate) fn fails(headers: &HeaderMap) -> bool {
    headers.get("x-fail").is_some_and(|fail| fail == "1")
}

pub(crate) fn tag(headers: &HeaderMap) -> &str {
    headers.get("x-test-tag").and_then(|tag| tag.to_str().ok()).unwrap_or("untagged")
}

pub(crate) fn event(headers: &HeaderMap) -> &str {
    headers.get("x-event-id").and_then(|id| id.to_str().ok()).unwrap_or_default()
}

pub(crate) fn routes(handlers: Handlers) -> Router {
    Router::new()
        .route("/orders", any(order))
        .route("/orders/1", any(order))
        .route("/refunds", post(order))
        .route("/transfer", post(order))
        .route("/upload", post(order))
        .route("/slow", post(slow))
        .route("/status/{code}", post(status))
        .route("/validate", post(validate))
        .route("/panic", post(panics))
        .route("/empty", post(empty))
        .route("/echo", post(echo))
        .route("/multi", post(multi))
        .route("/cookie", post(cookie))
        .route("/hop", post(hop))
        .route("/big", post(big))
        .route("/stream", post(stream))
        .with_state(handlers)
}

pub(crate) fn answer(status: StatusCode, id: &str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert("x-exec-id", id);
    }
    response
}

pub(crate) fn created(id: &str) -> Response {
    let mut response = answer(StatusCode::CREATED, id, format!("{{\"id\":\"{id}\",\"n\":\"{id}\"}}"));
    if let Ok(location) = HeaderValue::try_from(format!("/orders/{id}")) {
        response.headers_mut().insert("location", location);
    }
    response
}

fn not_executed(mut response: Response) -> Response {
    response.extensions_mut().insert(ExecutionOutcome::NotExecuted);
    response
}

pub(crate) async fn order(
    (State(handlers), Query(query), headers): Arguments,
    method: http::Method,
    _body: Bytes,
) -> Response {
    let id = handlers.run(&headers, &query).await;
    if method == http::Method::POST {
        return created(&id);
    }
    answer(StatusCode::OK, &id, format!("{{\"id\":\"{id}\",\"n\":\"{id}\"}}"))
}

async fn slow((State(handlers), Query(query), headers): Arguments, _body: Bytes) -> Response {
    let id = handlers.run(&headers, &query).await;
    if headers.get("x-fail").is_some_and(|fail| fail == "not_executed") {
        return not_executed(answer(StatusCode::SERVICE_UNAVAILABLE, &id, "{}"));
    }
    created(&id)
}

async fn status((State(handlers), Query(query), headers): Arguments, Path(code): Path<u16>, _body: Bytes) -> Response {
    let id = handlers.run(&headers, &query).await;
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST);
    let body = if code == 204 { String::new() } else { format!("{{\"code\":{code}}}") };
    let response = answer(status, &id, body);
    if status.is_server_error() && handlers.retry_5xx { not_executed(response) } else { response }
}

async fn validate((State(handlers), Query(query), headers): Arguments, body: Bytes) -> Response {
    let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    if value["bad"] == true {
        let mut response = answer(StatusCode::BAD_REQUEST, "", "{\"error\":\"bad\"}");
        // Nothing has run, so there is no run to name.
        response.headers_mut().remove("x-exec-id");
        return not_executed(response);
    }
    created(&handlers.run(&headers, &query).await)
}

async fn panics((State(handlers), Query(query), headers): Arguments, _body: Bytes) -> Response {
    handlers.run(&headers, &query).await;
    panic!("this handler dies on purpose")
}

async fn empty((State(handlers), Query(query), headers): Arguments, _body: Bytes) -> Response {
    let mut response = answer(StatusCode::NO_CONTENT, &handlers.run(&headers, &query).await, Body::empty());
    response.headers_mut().remove("content-type");
    response
}

async fn echo((State(handlers), Query(query), headers): Arguments, body: Bytes) -> Response {
    answer(StatusCode::OK, &handlers.run(&headers, &query).await, body)
}

async fn multi((State(handlers), Query(query), headers): Arguments, _body: Bytes) -> Response {
    let mut response = created(&handlers.run(&headers, &query).await);
    response.headers_mut().append("x-multi", HeaderValue::from_static("a"));
    response.headers_mut().append("x-multi", HeaderValue::from_static("b"));
    response
}

async fn cookie((State(handlers), Query(query), headers): Arguments, _body: Bytes) -> Response {
    let mut response = created(&handlers.run(&headers, &query).await);
    response.headers_mut().insert("set-cookie", HeaderValue::from_static("session=1"));
    response
}

async fn hop((State(handlers), Query(query), headers): Arguments, _body: Bytes) -> Response {
    let mut response = created(&handlers.run(&headers, &query).await);
    let lines = [
        ("connection", "X-Nominated-By-Connection"),
        ("x-nominated-by-connection", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
    ];
    for (name, value) in lines {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn big((State(handlers), Query(query), headers): Arguments, _body: Bytes) -> Response {
    let id = handlers.run(&headers, &query).await;
    let bytes = query.get("bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
    let mut response = answer(StatusCode::OK, &id, "x".repeat(bytes));
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
    response
}

async fn stream((State(handlers), Query(query), headers): Arguments, _body: Bytes) -> Response {
    let id = handlers.run(&headers, &query).await;
    let number = |name: &str| query.get(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(1);
    let (chunks, gap) = (number("chunks"), number("gap_ms"));
    let lines = futures_util::stream::unfold(0, move |line| async move {
        if line > 0 && line < chunks {
            pause(gap).await;
        }
        (line < chunks).then(|| (Ok::<_, std::convert::Infallible>(Bytes::from(format!("line {line}\n"))), line + 1))
    });
    let mut response = answer(StatusCode::OK, &id, Body::from_stream(lines));
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
    response.into_response()
}
