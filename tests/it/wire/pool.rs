//! Requests that hyper-util gives up before they have a connection. It dials for each of the first
//! requests to an origin, and keeps one connection once TLS has chosen HTTP/2.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use steadfast::policy::{Class, RetryPolicy};
use steadfast::{Client, Error, KeyPolicy};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::peer::Protocol;
use super::tls::Identity;

const AT_ONCE: usize = 48;
const ROUNDS: usize = 40;

/// A server that closes its first connection after the TLS handshake, and serves the others.
struct Server {
    address: SocketAddr,
    closed: watch::Receiver<bool>,
    /// The paths of the requests that it has received.
    received: Arc<Mutex<HashSet<String>>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(identity: &Identity) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, closed) = watch::channel(false);
        let received = Arc::new(Mutex::new(HashSet::new()));
        let (shared, acceptor) = (received.clone(), identity.acceptor(Protocol::Http2));
        let task = tokio::spawn(async move {
            let (first, _) = listener.accept().await.unwrap();
            drop(acceptor.accept(first).await.unwrap());
            tell.send(true).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, received) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        received.lock().unwrap().insert(request.uri().path().to_owned());
                        let _gone = respond.send_response(http::Response::new(()), true);
                    }
                });
            }
        });
        Self { address, closed, received, task }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Holds every connection back until it is opened: the first one at `1`, the others at `2`.
#[derive(Clone)]
struct Gate {
    open: watch::Receiver<usize>,
    connections: Arc<AtomicUsize>,
    /// Connections that are ready.
    waiting: watch::Sender<usize>,
}

impl<S> tower::Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, gate: self.clone() }
    }
}

#[derive(Clone)]
struct Gated<S> {
    inner: S,
    gate: Gate,
}

impl<R, S> tower::Service<R> for Gated<S>
where
    S: tower::Service<R>,
    S::Future: Send + 'static,
    S::Response: Send,
    S::Error: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let connecting = self.inner.call(request);
        let mut gate = self.gate.clone();
        let turn = if gate.connections.fetch_add(1, Ordering::SeqCst) == 0 { 1 } else { 2 };
        Box::pin(async move {
            let connection = connecting.await;
            gate.waiting.send_modify(|waiting| *waiting += 1);
            gate.open.wait_for(|open| *open >= turn).await.expect("the test opens the gate");
            connection
        })
    }
}

fn was_given_up(error: &Error) -> bool {
    let first: &dyn std::error::Error = error;
    std::iter::successors(Some(first), |cause| cause.source()).any(|cause| cause.to_string().contains("ALPN upgraded"))
}

/// The first connection is closed as HTTP/2 begins. Requests that were given it wait for their own,
/// which then all begin at once, and only one of them may.
async fn round(identity: &Identity) -> Vec<(String, Error)> {
    let server = Server::start(identity).await;
    let (open, opened) = watch::channel(0);
    let (waiting, mut waits) = watch::channel(0);
    let gate = Gate { open: opened, connections: Arc::default(), waiting };
    let client = Client::builder().keys(KeyPolicy::off()).retry(RetryPolicy::never());
    let client = client.http(|http| http.tls_certs_only([identity.authority()]).connector_layer(gate)).build().unwrap();
    let base = format!("https://localhost:{}", server.address.port());
    let send = |path: String| {
        let (client, url) = (client.clone(), format!("{base}{path}"));
        async move { (path, client.post(url).body("x").send().await) }
    };
    let first = tokio::spawn(send("/first".to_owned()));
    server.closed.clone().wait_for(|closed| *closed).await.unwrap();
    let others: tokio::task::JoinSet<_> = (0..AT_ONCE).map(|number| send(format!("/{number}"))).collect();
    waits.wait_for(|waiting| *waiting == AT_ONCE + 1).await.unwrap();
    open.send(1).unwrap();
    let (_, failed) = first.await.unwrap();
    assert!(failed.is_err());
    open.send(2).unwrap();
    let failed: Vec<_> =
        others.join_all().await.into_iter().filter_map(|(path, sent)| Some((path, sent.err()?))).collect();
    let received = server.received.lock().unwrap();
    for (path, error) in &failed {
        assert!(!received.contains(path) || error.may_have_been_processed(), "{path}: {error:#}");
    }
    failed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn request_given_up_by_pool_is_not_processed() {
    let identity = Identity::new("localhost", |_| {});
    let mut given_up = 0;
    for _ in 0..ROUNDS {
        for (path, error) in round(&identity).await {
            if was_given_up(&error) {
                given_up += 1;
                let class = error.attempts()[0].class();
                assert_eq!((class, error.may_have_been_processed()), (Class::NotProcessed, false), "{path}: {error:#}");
            }
        }
        if given_up > 0 {
            return;
        }
    }
    panic!("nothing was staged in {ROUNDS} rounds");
}
