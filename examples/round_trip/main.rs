//! Our client and our layer over a wire that is cut after the charge: charged once.
//!
//! ```text
//! cargo run --example round_trip
//! ```
//!
//! Three services on loopback: a shop's charges behind the idempotency layer, a wire that swallows the first two answers, and a
//! client that is told nothing about the server. It sees a connection that is lost and asks again under the same key; the layer
//! knows the key and answers from its record. Then the same without a layer, where the client does not repeat what may have been
//! carried out, and says so.

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
use steadfast::server::{IdempotencyLayer, MemoryStore, Scope};
use steadfast::{Client, EventKind, KeyPolicy};
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

/// A wire that lets every request through, and swallows the answers of the first `swallows`.
async fn cut_wire(server: SocketAddr, swallows: usize) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((client, _)) = listener.accept().await else { return };
            tokio::spawn(async move {
                if let Err(error) = carry(client, server, number < swallows).await {
                    eprintln!("wire: {error}");
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
    // Everything goes through until the server answers: then it has charged, and nobody will hear of it.
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

/// Charges through the wire and tells what the client sees; returns how often the server has charged.
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
                println!("  the answer was lost; the same key goes out again");
            }
        })
        .build()?;
    let answer: steadfast::Result<Charge> = client.post_json("/charges", &serde_json::json!({ "amount": 1200 })).await;
    match &answer {
        Ok(Charge { number }) => println!("  answer: charge {number}"),
        Err(error) => println!("  {error}"),
    }
    let times = charged.load(Ordering::SeqCst);
    println!("  the server has charged {times} time(s)\n");
    Ok((answer.is_ok(), times))
}

#[tokio::main]
async fn main() -> Result<()> {
    // This process is the only caller.
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).required();
    let with = round("behind the layer, and the client knows it:", Some(layer), KeyPolicy::standard()).await?;
    let without = round("no layer, and nobody has vouched for keys:", None, KeyPolicy::default()).await?;
    println!("with={} without={}", with.1, without.1);
    let right = with == (true, 1) && without == (false, 1);
    if right { Ok(()) } else { Err("somebody was charged twice, or not at all".into()) }
}
