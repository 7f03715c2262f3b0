//! An axum server behind the idempotency layer, with the other layers in the right order.
//!
//! ```text
//! cargo run --example axum_server                 # records in memory
//! cargo run --example axum_server -- --store redb:keys.redb
//! cargo run --example axum_server -- --store redis://127.0.0.1:6379
//! cargo run --example axum_server -- --store postgres://localhost/shop
//! ```
//!
//! Then send this request twice:
//!
//! ```text
//! curl -i localhost:3000/charges -H 'Authorization: Bearer alice' \
//!     -H 'Idempotency-Key: "my-first-key"' \
//!     -H 'Content-Type: application/json' -d '{"amount":1200}'
//! ```
//!
//! The second response is the stored one, with `Idempotent-Replayed: true`. `GET /metrics` counts
//! keys by state. Ctrl-C stops accepting connections, waits until running operations have ended and
//! are stored, and exits.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderName, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use clap::Parser;
use serde::{Deserialize, Serialize};
use steadfast_axum::{Checked, NotExecuted, method_not_allowed, not_found};
use steadfast_server::{IdempotencyLayer, MemoryStore, Scope, Store};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_http::compression::CompressionLayer;
use tower_http::cors::{Any, CorsLayer};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
#[command(about = "An axum server behind the idempotency layer")]
struct Flags {
    /// Store of the records: memory, redb:FILE, redis://…, postgres://…
    #[arg(long, default_value = "memory")]
    store: String,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:3000")]
    listen: String,
    /// Run a short round against every reachable store, and exit
    #[arg(long)]
    self_test: bool,
}

/// The caller, as authenticated.
#[derive(Clone)]
struct Caller(String);

#[derive(Deserialize)]
struct NewCharge {
    amount: u64,
}

#[derive(Serialize)]
struct Charge {
    id: u64,
    amount: u64,
}

#[derive(Clone, Default)]
struct Shop {
    charges: Arc<AtomicU64>,
}

async fn charge(
    State(shop): State<Shop>,
    Extension(caller): Extension<Caller>,
    // Invalid JSON is rejected, and the key is released for the corrected request.
    Checked(Json(new)): Checked<Json<NewCharge>>,
) -> Response {
    if new.amount == 0 {
        // Nothing was charged, so the key is released: the caller may correct the request and use
        // the key again.
        return NotExecuted((StatusCode::BAD_REQUEST, "amount is zero")).into_response();
    }
    let id = shop.charges.fetch_add(1, Ordering::Relaxed) + 1;
    println!("charging {} {} cents, charge {id}", caller.0, new.amount);
    (StatusCode::CREATED, [("location", format!("/charges/{id}"))], Json(Charge { id, amount: new.amount }))
        .into_response()
}

/// In this example the token is the caller's name.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let Some(caller) = token.map(|name| Caller(name.to_owned())) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// The order matters. Layers outside the idempotency layer may refuse a request without consuming
/// its key, and they see replays. Layers inside run once per key.
fn router<S: Store>(layer: &IdempotencyLayer<S>) -> Router {
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_headers(["authorization", "content-type", "idempotency-key"].map(HeaderName::from_static))
        // A browser hides response headers that are not named here.
        .expose_headers(["idempotent-replayed", "idempotency-status", "retry-after"].map(HeaderName::from_static));
    let layers = ServiceBuilder::new()
        .layer(cors)
        .layer(CompressionLayer::new())
        .layer(middleware::from_fn(authenticate))
        .layer(layer.clone());
    let (counted, metrics) = (layer.clone(), Shop::default());
    Router::new()
        .route("/charges", post(charge))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(metrics)
        .layer(layers)
        .route("/metrics", get(move || async move { format!("{:#?}\n", counted.metrics()) }))
}

async fn serve<S: Store>(
    store: S,
    listener: TcpListener,
    until: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    // The scope is the caller's name, not the token: with a token that is refreshed between two
    // attempts, the second would be a new operation.
    let scope = Scope::from_extension(|Caller(name)| name.clone());
    let layer =
        IdempotencyLayer::new(store, scope).required().lease(Duration::from_secs(30)).advertise_scope("/charges");
    axum::serve(listener, router(&layer)).with_graceful_shutdown(until).await?;
    // A handler may still run after its client disconnected. Without this its operation would end
    // as unknown.
    layer.drain().await;
    Ok(())
}

/// Opens the store: the only line that differs between stores.
async fn serve_from(
    store: &str,
    listener: TcpListener,
    until: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    match store.split_once(':') {
        None if store == "memory" => serve(MemoryStore::new(), listener, until).await,
        Some(("redb", path)) => serve(steadfast_redb::RedbStore::open(path)?, listener, until).await,
        Some(("redis" | "rediss", _)) => {
            serve(steadfast_redis::RedisStore::connect(store).await?, listener, until).await
        }
        Some(("postgres" | "postgresql", _)) => {
            let store = steadfast_postgres::PostgresStore::new(sqlx::PgPool::connect(store).await?);
            store.create_table().await?;
            serve(store, listener, until).await
        }
        _ => Err(format!("--store {store}: expected memory, redb:FILE, redis://… or postgres://…").into()),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let flags = Flags::parse();
    if flags.self_test {
        return self_test().await;
    }
    let listener = TcpListener::bind(&flags.listen).await?;
    println!("http://{}/charges, records in {}; Ctrl-C ends", listener.local_addr()?, flags.store);
    let interrupted = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            eprintln!("cannot wait for Ctrl-C: {error}");
            std::future::pending::<()>().await;
        }
    };
    serve_from(&flags.store, listener, interrupted).await
}

async fn self_test() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = format!("redb:{}", folder.path().join("keys.redb").display());
    let mut stores = vec!["memory".to_owned(), file];
    for name in ["STEADFAST_REDIS_URL", "STEADFAST_POSTGRES_URL"] {
        match std::env::var(name) {
            Ok(url) => stores.push(url),
            Err(_) => println!("{name} is not set"),
        }
    }
    for store in stores {
        play(&store).await.map_err(|error| format!("{store}: {error}"))?;
        println!("{store}: charged once, then replayed");
    }
    Ok(())
}

async fn play(store: &str) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/charges", listener.local_addr()?);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let until = async {
        let _told_or_gone = stopped.await;
    };
    let play = async {
        let http = steadfast::reqwest::Client::new();
        // A new key in each run, because the servers may remember keys of an earlier one.
        let key = steadfast::IdempotencyKey::mint()?;
        let ask = |amount: u64| {
            let request = http.post(&url).header("idempotency-key", key.as_str()).bearer_auth("alice");
            request.json(&serde_json::json!({ "amount": amount })).send()
        };
        let refused = ask(0).await?;
        let (first, second) = (ask(1200).await?, ask(1200).await?);
        let statuses = [refused.status(), first.status(), second.status()].map(|status| status.as_u16());
        let replayed = second.headers().contains_key("idempotent-replayed");
        let same = first.bytes().await? == second.bytes().await?;
        let _served_is_waited_for = stop.send(());
        if statuses == [400, 201, 201] && replayed && same {
            Ok(())
        } else {
            Err(format!("{statuses:?} {replayed} {same}").into())
        }
    };
    let (served, played) = tokio::join!(serve_from(store, listener, until), play);
    served.and(played)
}
