//! The customer, the shop behind the idempotency layer, and the bank, which fails on purpose.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Extension, Router};
use opentelemetry::global::get_text_map_propagator;
use opentelemetry_http::HeaderExtractor;
use serde_json::{Value, json};
use steadfast::policy::{Backoff, HedgePolicy, RetryPolicy};
use steadfast::{Client, ClientBuilder, KeyPolicy, Refreshing, Token, Why};
use steadfast_otel::ClientMetrics;
use steadfast_server::{IdempotencyLayer, MemoryStore, OperationKey, Scope};
use steadfast_testing::{Answer, FaultServer, FaultStep};
use tokio::net::TcpListener;
use tracing::field::Empty;
use tracing::{Instrument as _, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::Result;

/// The token that the shop takes. The customer's first one has expired.
const FRESH: &str = "fresh";

/// The two services on loopback.
pub(crate) struct Services {
    pub(crate) layer: IdempotencyLayer<MemoryStore>,
    shop: SocketAddr,
    bank: Arc<FaultServer>,
    received_by_shop: Arc<AtomicUsize>,
}

impl Services {
    pub(crate) async fn start(metrics: &ClientMetrics) -> Result<Self> {
        let bank = Arc::new(bank().await);
        let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).required();
        let received_by_shop = Arc::new(AtomicUsize::new(0));
        let late = HedgePolicy::after(Duration::from_millis(30)).max_extra_load(1.0);
        let client = client(&bank.url(""), metrics)
            // The statement that the bank never runs two requests under one key at the same time.
            .keys(KeyPolicy::standard().concurrent_duplicates_safe())
            .build()?;
        let app = Router::new()
            .route("/orders", post(order))
            .layer(layer.clone())
            .layer(from_fn(authenticated))
            .layer(from_fn_with_state(received_by_shop.clone(), traced))
            .with_state(Bank { client, late });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let shop = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { layer, shop, bank, received_by_shop })
    }

    /// Waits for the tasks of the layer.
    pub(crate) async fn stop(&self) {
        self.layer.drain().await;
    }

    /// Returns how many requests the two services have received.
    pub(crate) fn sends(&self) -> usize {
        self.bank.received().len() + self.received_by_shop.load(Ordering::Relaxed)
    }

    /// Returns how many orders or charges were carried out twice.
    pub(crate) fn twice(&self) -> u64 {
        let orders = self.layer.metrics().executed.saturating_sub(1);
        orders + u64::try_from(self.bank.report().by_key.twice).unwrap_or(u64::MAX)
    }
}

/// The settings of both clients.
fn client(url: &str, metrics: &ClientMetrics) -> ClientBuilder {
    let metrics = metrics.clone();
    let soon = Backoff::exponential(Duration::from_millis(5), Duration::from_millis(20));
    Client::builder()
        .base_url(url)
        .keys(KeyPolicy::standard())
        .retry(RetryPolicy::new().backoff(soon))
        .on_event(move |event| metrics.observe(event))
        .on_attempt(steadfast_otel::propagate())
}

/// A bank that is slow, has moved, fails, and works in the end.
async fn bank() -> FaultServer {
    FaultServer::play([
        // It makes the charge, and says too late that something went wrong.
        FaultStep::execute(Answer::new(503).delay(Duration::from_millis(150))),
        // The request beside it is sent elsewhere, and fails there.
        FaultStep::answer(Answer::new(307).header("location", "/eu/charges?sig=a-secret")),
        FaultStep::answer(503),
        // The charge exists under this key, so the bank replays its response.
        FaultStep::ok(),
    ])
    .await
}

#[derive(Clone)]
struct Bank {
    client: Client,
    late: HedgePolicy,
}

/// The shop's handler: charges the card under a key that it derives from the order's.
async fn order(State(bank): State<Bank>, Extension(order): Extension<OperationKey>) -> Response {
    let charge = bank.client.post("/charges").json(&json!({ "amount": 1200 })).template("/charges");
    let charge = charge.idempotency_key(order.child_key("charge")).hedge(bank.late);
    match charge.fetch::<Value>().await {
        Ok(charge) => (StatusCode::CREATED, charge.to_string()).into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

/// Refuses a request whose token has expired, before its key is claimed.
async fn authenticated(request: Request, next: Next) -> Response {
    let token = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if token == Some(&format!("Bearer {FRESH}")) {
        return next.run(request).await;
    }
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"")]).into_response()
}

/// Gives each request a span of kind SERVER in the caller's trace, with the fields that the layer
/// fills in. In your program the middleware of your tracing crate does this.
async fn traced(State(received): State<Arc<AtomicUsize>>, request: Request, next: Next) -> Response {
    received.fetch_add(1, Ordering::Relaxed);
    let span = info_span!(
        target: "shop",
        "request",
        "otel.kind" = "server",
        "otel.name" = format!("{} {}", request.method(), request.uri().path()),
        "http.response.status_code" = Empty,
        "steadfast.idempotency.outcome" = Empty,
        "steadfast.idempotency.end" = Empty,
    );
    let caller = get_text_map_propagator(|propagator| propagator.extract(&HeaderExtractor(request.headers())));
    if let Err(error) = span.set_parent(caller) {
        eprintln!("the trace of the caller is lost: {error}");
    }
    let response = next.run(request).instrument(span.clone()).await;
    span.record("http.response.status_code", i64::from(response.status().as_u16()));
    response
}

/// Somebody who orders something.
pub(crate) struct Customer {
    client: Client,
    refreshes: Arc<AtomicUsize>,
}

impl Customer {
    pub(crate) fn new(services: &Services, metrics: &ClientMetrics) -> Result<Self> {
        let refreshes = Arc::new(AtomicUsize::new(0));
        let counted = refreshes.clone();
        // Your identity provider is asked here.
        let tokens = Refreshing::bearer(move |why| {
            let is_first = why == Why::First;
            counted.fetch_add(usize::from(!is_first), Ordering::Relaxed);
            async move { Ok::<_, Infallible>(Token::new(if is_first { "expired" } else { FRESH })) }
        });
        let client = client(&format!("http://{}", services.shop), metrics).credentials(tokens).build()?;
        Ok(Self { client, refreshes })
    }

    /// Orders once, and returns the receipt.
    pub(crate) async fn order(&self) -> Result<String> {
        let order = self.client.post("/orders").json(&json!({ "apples": 2 })).template("/orders");
        let receipt = order.fetch::<Value>().await?;
        Ok(format!("ordered and charged once: {receipt}"))
    }

    /// Returns how often the token was renewed.
    pub(crate) fn refreshes(&self) -> usize {
        self.refreshes.load(Ordering::Relaxed)
    }
}
