//! The bank: a separate service behind its own layer. It stays alive and counts its charges.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
use tokio::task::JoinHandle;

use crate::Result;

pub(crate) struct Bank {
    address: SocketAddr,
    charges: Arc<AtomicI64>,
    task: JoinHandle<std::io::Result<()>>,
}

async fn charge(State(charges): State<Arc<AtomicI64>>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", charges.fetch_add(1, Ordering::SeqCst) + 1))
}

impl Bank {
    pub(crate) async fn open() -> Result<Self> {
        let charges = Arc::<AtomicI64>::default();
        // The shop is the only caller.
        let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).required();
        let router = Router::new().route("/charges", post(charge)).with_state(charges.clone()).layer(layer);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, charges, task })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn charges(&self) -> i64 {
        self.charges.load(Ordering::SeqCst)
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        self.task.abort();
    }
}
