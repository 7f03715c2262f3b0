//! Client and layer over a connection that is cut after the charge: charged once.
//!
//! ```text
//! cargo run --example round_trip
//! ```
//!
//! Three services run on loopback: a shop behind the idempotency layer, a proxy that drops the
//! first two responses, and a client. The client sees a lost connection and retries under the same
//! key. The layer knows the key and replays its stored response. The second round has no layer.
//! There the client does not retry a request that may have been processed, and says so.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use steadfast::policy::{Backoff, RetryPolicy};
use steadfast::{Client, EventKind, KeyPolicy};
use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Serialize, Deserialize)]
struct Charge {
    number: usize,
}

/// The shop: each execution is a charge.
async fn charge(State(charged): State<Arc<AtomicUsize>>) -> (StatusCode, Json<Charge>) {
    (StatusCode::CREATED, Json(Charge { number: charged.fetch_add(1, Ordering::SeqCst) + 1 }))
}

async fn serve(router: Router) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

/// Starts a proxy that forwards every request, and drops the first `swallows` responses.
async fn cut_wire(server: SocketAddr, swallows: usize) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((client, _)) = listener.accept().await else { return };
            tokio::spawn(async move {
                if let Err(error) = carry(client, server, number < swallows).await {
                    eprintln!("proxy: {error}");
                }
            });
        }
    });
    Ok(address)
}

async fn carry(mut client: TcpStream, server: SocketAddr, swallow: bool) -> std::io::Result<()> {
    let mut server = TcpStream::connect(server).await?;
    if !swallow {
        return tokio::io::copy_bidirectional(&mut client, &mut server).await.map(|_| ());
    }
    let (mut from_client, _) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let mut answer = [0; 1024];
    // Forwards everything until the server responds. Then it has charged, and the client does not
    // learn it.
    let request = async {
        let mut bytes = [0; 1024];
        while let Ok(length @ 1..) = from_client.read(&mut bytes).await {
            to_server.write_all(bytes.get(..length).unwrap_or_default()).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    tokio::select! {
        ended = request => ended,
        answered = from_server.read(&mut answer) => answered.map(|_| ()),
    }
}

/// Charges through the proxy and prints the client's view. Returns the number of charges on the
/// server.
async fn round(title: &str, layer: Option<IdempotencyLayer<MemoryStore>>, keys: KeyPolicy) -> Result<(bool, usize)> {
    println!("{title}");
    let charged = Arc::new(AtomicUsize::new(0));
    let mut router = Router::new().route("/charges", post(charge)).with_state(charged.clone());
    if let Some(layer) = layer {
        router = router.layer(layer);
    }
    let wire = cut_wire(serve(router).await?, 2).await?;
    let client = Client::builder()
        .base_url(format!("http://{wire}"))
        .keys(keys)
        .retry(RetryPolicy::new().backoff(Backoff::fixed(Duration::from_millis(20))))
        .on_event(|event| {
            if let EventKind::RetryScheduled { .. } = event.kind() {
                println!("  the response was lost; retrying with the same key");
            }
        })
        .build()?;
    let answer: steadfast::Result<Charge> = client.post_json("/charges", &serde_json::json!({ "amount": 1200 })).await;
    match &answer {
        Ok(Charge { number }) => println!("  response: charge {number}"),
        Err(error) => println!("  {error}"),
    }
    let times = charged.load(Ordering::SeqCst);
    println!("  the server has charged {times} time(s)\n");
    Ok((answer.is_ok(), times))
}

#[tokio::main]
async fn main() -> Result<()> {
    // The only caller is this process.
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).required();
    let with = round("with the layer, and keys declared:", Some(layer), KeyPolicy::standard()).await?;
    let without = round("without the layer, and no keys declared:", None, KeyPolicy::default()).await?;
    println!("with={} without={}", with.1, without.1);
    let right = with == (true, 1) && without == (false, 1);
    if right { Ok(()) } else { Err("a customer was charged twice, or not at all".into()) }
}
