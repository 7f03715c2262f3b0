//! Uses the probe as a library, for example in your own test suite.
//!
//! ```text
//! cargo run --example does_my_api_honour_keys
//! ```
//!
//! The example starts two APIs in this process: one stores keys, the other ignores them. It prints
//! the probe's report about each. For an API in staging, use the command:
//!
//! ```text
//! cargo run -p steadfast-probe -- https://api.staging.example.com/v1/charges \
//!     --header 'authorization: Bearer …'
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::json;
use steadfast_probe::{SampleRequest, probe};
use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};

type Error = Box<dyn std::error::Error>;

/// Serves the API on a free port. Returns the URL of its charges.
async fn start(api: Router) -> Result<String, Error> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/charges", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, api).await });
    Ok(url)
}

fn charges() -> Router {
    let count = Arc::new(AtomicU64::new(0));
    let charge = move || {
        let number = count.fetch_add(1, Ordering::Relaxed) + 1;
        async move { (StatusCode::CREATED, Json(json!({ "id": format!("ch_{number}") }))) }
    };
    Router::new().route("/charges", post(charge))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let keeps = charges().layer(IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()));
    for (name, api) in [("an API with the idempotency layer", keeps), ("an API that ignores keys", charges())] {
        let url = start(api).await?;
        let report = probe(&url, SampleRequest::json(&json!({ "amount": 100 }))).await?;
        println!("{name}\n{report}\n");
    }
    Ok(())
}
