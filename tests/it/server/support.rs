//! An axum server behind the layer, on a real socket, that counts its executions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use steadfast::reqwest::{Client, RequestBuilder, Response};
use steadfast::server::{IdempotencyLayer, Store};
use tokio::task::JoinHandle;

#[derive(Clone, Default)]
pub(super) struct Executions(Arc<AtomicUsize>);

impl Executions {
    pub(super) fn add(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
    pub(super) fn reset(&self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

pub(super) struct Served {
    pub(super) address: SocketAddr,
    pub(super) http: Client,
    task: JoinHandle<()>,
}

impl Served {
    pub(super) async fn start<S: Store>(router: Router, layer: IdempotencyLayer<S>) -> Self {
        Self::serve(router.layer(layer)).await
    }

    pub(super) async fn serve(router: Router) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let http = Client::builder().redirect(steadfast::reqwest::redirect::Policy::none()).build().unwrap();
        Self { address, http, task }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(super) fn post(&self, path: &str, key: &str) -> RequestBuilder {
        self.http.post(self.url(path)).header("idempotency-key", key)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

/// Returns the status and the kind of a problem response.
pub(super) async fn problem(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    assert_eq!(header(&response, "content-type"), Some("application/problem+json"));
    assert_eq!(header(&response, "cache-control"), Some("no-store"));
    let body: serde_json::Value = response.json().await.unwrap();
    assert_eq!(body["status"], status);
    (status, body["type"].as_str().unwrap().rsplit('#').next().unwrap().to_owned())
}
