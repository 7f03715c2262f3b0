//! A server for black-box conformance cases: counting handlers behind the idempotency layer,
//! configured by environment variables.
//!
//! A test from outside needs a server that counts every execution, can be killed and restarted, and
//! can lose its store. `PORT` and its companions configure it for a case. Without `PORT` it runs a
//! short round against itself and exits. If several responses are lawful, `PROFILE` chooses between
//! them; those choices are not the layer's defaults.

mod control;
mod damage;
mod handlers;
mod postgres;
mod redb;
mod settings;

use std::error::Error;

use axum::extract::{Query, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use http::{Request, StatusCode};
use steadfast_server::{IdempotencyLayer, MemoryStore, Scope, SharedStore, Store, WebhookLayer};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;
use tower_http::cors::{Any, CorsLayer};

use crate::control::{Controlled, Limiter, Switches, Tenants};
use crate::damage::Damage;
use crate::handlers::Handlers;
use crate::settings::Settings;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The caller, as authenticated.
#[derive(Clone)]
struct Tenant(String);

#[derive(Clone)]
struct Target {
    handlers: Handlers,
    switches: Switches,
    damage: Damage,
    limiter: Limiter,
    tenants: Tenants,
    database: Option<postgres::Database>,
}

impl Target {
    fn new(settings: &Settings) -> Self {
        let switches = Switches::default();
        Self {
            handlers: Handlers::new(settings),
            damage: settings.damage(&switches),
            switches,
            limiter: Limiter::default(),
            tenants: Tenants::default(),
            database: None,
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    if std::env::var_os("PORT").is_none() {
        return self_test().await;
    }
    let settings = Settings::from_environment()?;
    let mut target = Target::new(&settings);
    match settings.store.as_str() {
        "memory" => {
            let (router, layers) =
                build(MemoryStore::new().max_records(settings.max_records), &settings, target.clone());
            serve(&settings, finish(router, &settings, target), &layers).await
        }
        "redb" => {
            let store = settings.redb()?;
            target.damage = Damage::Redb(store.clone());
            let (router, layers) = build(store, &settings, target.clone());
            serve(&settings, finish(router, &settings, target), &layers).await
        }
        "redis" => {
            let (router, layers) = build(settings.redis().await?, &settings, target.clone());
            serve(&settings, finish(router, &settings, target), &layers).await
        }
        "postgres" => serve_postgres(&settings, target).await,
        other => Err(format!("STORE={other} is not offered").into()),
    }
}

/// Serves most routes over the store with separate transactions, and `/tx` over the transactional
/// one.
async fn serve_postgres(settings: &Settings, mut target: Target) -> Result<()> {
    let database = settings.postgres().await?;
    let store = database.store().await?;
    let controlled = Controlled::new(store.transactional(), settings.failpoint.clone(), target.switches.clone());
    // The profile's choice for an expired claim concerns claims with leases; a transaction has
    // none.
    let controlled = SharedStore::new(controlled);
    let transactional =
        settings.layer(controlled.clone(), settings.scope()).on_unknown(steadfast_server::OnUnknown::Rerun);
    let events = settings.events(controlled);
    target.database = Some(database.clone());
    let (router, layers) = build(store, settings, target.clone());
    let router = router
        .merge(database.orders(target.handlers.clone()).layer(transactional.clone()))
        .merge(database.webhooks(target.handlers.clone()).layer(events.clone()));
    serve(settings, finish(router, settings, target), &layers).await?;
    transactional.drain().await;
    events.drain().await;
    Ok(())
}

async fn serve<S: Store>(settings: &Settings, router: Router, layers: &Layers<S>) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", settings.port)).await?;
    axum::serve(listener, router).with_graceful_shutdown(terminated()).await?;
    // Handlers whose clients have disconnected also end and are stored.
    layers.keys.drain().await;
    layers.tenants.drain().await;
    layers.events.drain().await;
    Ok(())
}

/// The layers over one store.
struct Layers<S> {
    keys: IdempotencyLayer<Controlled<S>>,
    tenants: IdempotencyLayer<Controlled<S>>,
    events: WebhookLayer<Controlled<S>>,
}

async fn terminated() {
    if let Ok(mut signal) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        signal.recv().await;
    }
}

/// Builds the routes behind the layer.
fn build<S: Store>(store: S, settings: &Settings, target: Target) -> (Router, Layers<S>) {
    let store = Controlled::new(store, settings.failpoint.clone(), target.switches.clone());
    let handlers = target.handlers.clone();
    let store = SharedStore::new(store);
    let layer = settings.layer(store.clone(), settings.scope());
    let scoped = settings.layer(store.clone(), Scope::from_extension(|Tenant(tenant)| tenant.clone()));
    let events = settings.events(store);
    let orders = || Router::new().route("/orders", any(handlers::order)).with_state(handlers.clone());

    let optional = handlers::routes(handlers.clone()).layer(layer.clone());
    let required = orders().layer(layer.clone().required());
    let authenticated =
        orders().layer(scoped.clone()).layer(middleware::from_fn_with_state(target.tenants.clone(), authenticate));
    let optional_tenant = orders().layer(scoped.clone());
    let limited = orders().layer(layer.clone()).layer(middleware::from_fn_with_state(target.limiter.clone(), limit));
    let router = Router::new()
        .merge(optional)
        .nest("/req", required)
        .nest("/auth", authenticated)
        .nest("/auth-optional", optional_tenant)
        .nest("/limited", limited);
    let router = if settings.store == "postgres" {
        router
    } else {
        router.merge(handlers::webhooks(handlers).layer(events.clone()))
    };
    (router, Layers { keys: layer, tenants: scoped, events })
}

/// Adds the layers outside, and the routes that the cases call directly.
fn finish(mut router: Router, settings: &Settings, target: Target) -> Router {
    if settings.compression {
        router = router.layer(CompressionLayer::new().gzip(true).compress_when(SizeAbove::new(1000)));
    }
    if settings.cors {
        let replayed = http::HeaderName::from_static("idempotent-replayed");
        let allowed = ["idempotency-key", "content-type", "authorization"].map(http::HeaderName::from_static);
        let cors =
            CorsLayer::new().allow_origin(Any).allow_methods(Any).allow_headers(allowed).expose_headers([replayed]);
        router = router.layer(cors);
    }
    let outside = Router::new()
        .route("/__ready", get(|| async { "ready" }))
        .route("/__count", get(count))
        .route("/__control", post(control))
        .with_state(target);
    router.merge(outside)
}

/// `Authorization: Bearer tenant-…`: 401 without one, 403 for a revoked one.
async fn authenticate(State(tenants): State<Tenants>, mut request: Request<axum::body::Body>, next: Next) -> Response {
    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let tenant = token.and_then(|token| token.split('.').next()).filter(|tenant| {
        let name = tenant.strip_prefix("tenant-").unwrap_or_default();
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    });
    match tenant.map(str::to_owned) {
        None => StatusCode::UNAUTHORIZED.into_response(),
        Some(tenant) if tenants.is_revoked(&tenant) => StatusCode::FORBIDDEN.into_response(),
        Some(tenant) => {
            request.extensions_mut().insert(Tenant(tenant));
            next.run(request).await
        }
    }
}

async fn limit(State(limiter): State<Limiter>, request: Request<axum::body::Body>, next: Next) -> Response {
    if limiter.is_drained() { StatusCode::TOO_MANY_REQUESTS.into_response() } else { next.run(request).await }
}

#[derive(serde::Deserialize)]
struct Tag {
    tag: String,
}

async fn count(State(target): State<Target>, Query(Tag { tag }): Query<Tag>) -> Response {
    let started = target.handlers.started(&tag);
    match rows(&target, &tag).await {
        Ok(rows) => {
            let effects: Vec<_> = rows.iter().flatten().collect();
            let counts =
                serde_json::json!({ "started": started, "rows": rows.len(), "effects": effects, "quarantined": 0 });
            Json(counts).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Returns the business rows of this tag, each with its event if it has one.
async fn rows(target: &Target, tag: &str) -> Result<Vec<Option<String>>> {
    if let Some(database) = &target.database {
        return database.rows(tag).await;
    }
    Ok(target.handlers.effects(tag).into_iter().map(Some).collect())
}

#[derive(serde::Deserialize)]
struct Control {
    op: String,
    tenant: Option<String>,
}

async fn control(State(target): State<Target>, Query(control): Query<Control>) -> StatusCode {
    match (control.op.as_str(), control.tenant) {
        ("store_down", _) => target.switches.set_down(true),
        ("store_up", _) => target.switches.set_down(false),
        ("store_drop_reply", _) => target.switches.drop_one_reply(),
        ("store_corrupt", _) => {
            if let Err(error) = target.damage.corrupt().await {
                eprintln!("cannot damage the records: {error}");
                return StatusCode::INTERNAL_SERVER_ERROR;
            }
        }
        ("limiter_drain", _) => target.limiter.set_drained(true),
        ("limiter_refill", _) => target.limiter.set_drained(false),
        ("revoke", Some(tenant)) => target.tenants.revoke(tenant),
        _ => return StatusCode::NOT_IMPLEMENTED,
    }
    StatusCode::NO_CONTENT
}

/// Runs a short round: one order, requested twice, executed once.
async fn self_test() -> Result<()> {
    let settings = Settings::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/orders", listener.local_addr()?);
    let target = Target::new(&settings);
    let (router, _layers) = build(MemoryStore::new(), &settings, target.clone());
    let router = finish(router, &settings, target);
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let http = steadfast::reqwest::Client::new();
    let ask = || http.post(&url).header("idempotency-key", "self-test").header("x-test-tag", "self").send();
    let (first, second) = (ask().await?, ask().await?);
    let replayed = second.headers().contains_key("idempotent-replayed");
    let same = first.bytes().await? == second.bytes().await?;
    server.abort();
    println!("replayed={replayed} same={same}");
    if replayed && same { Ok(()) } else { Err("the repeat was not answered from the record".into()) }
}
