//! A server that breaks the connection on purpose, at an exact point, and counts its requests and
//! executions.
//!
//! A mock server behaves well: it reads whole requests, sends whole responses and closes in an
//! orderly way. A retry must be right about everything else. So this server is plain TCP, with
//! HTTP/1.1 by hand and HTTP/2 by the `h2` crate with a few frames of its own.

mod act;
mod http1;
mod http2;
mod report;
mod shared;
#[cfg(feature = "tls")]
mod tls;
mod wire;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

pub use act::{Answer, FaultPoint, FaultStep, StreamError};
pub use report::{Report, Tally};

use super::Received;
use shared::Shared;
use wire::Wire;

/// Length of the queue of connections that wait for `accept`.
const BACKLOG: u32 = 1024;

/// A server on loopback that breaks where you tell it to. It speaks HTTP/1.1 and HTTP/2 (prior
/// knowledge), on the test's own runtime. With the feature `tls` it can also speak both over TLS:
/// see `FaultServer::tls`.
///
/// ```
/// use serde_json::{Value, json};
/// use steadfast::{Client, KeyPolicy};
/// use steadfast_testing::{
///     FaultPoint, FaultServer, FaultStep, assert_attempts, assert_one_key, fast_retries,
/// };
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let server = FaultServer::play([
///     // The charge is made, and its response is lost.
///     FaultStep::reset(FaultPoint::AfterExecuting),
///     FaultStep::answer(503),
///     FaultStep::ok(),
/// ])
/// .await;
///
/// let client = Client::builder()
///     .base_url(server.url("/v1"))
///     .keys(KeyPolicy::standard())
///     .retry(fast_retries())
///     .build()
///     .unwrap();
/// let charge: Value = client.post_json("/charges", &json!({ "amount": 7 })).await.unwrap();
///
/// assert_eq!(charge["execution"], 1);
/// assert_attempts(&server, 3).await;
/// assert_one_key(&server).await;
/// assert_eq!(server.report().by_key.twice, 0, "{}", server.report());
/// # }
/// ```
///
/// # Turns
///
/// A request takes a turn when its first bytes arrive (HTTP/2: its head). A connection that breaks
/// [on accept](FaultPoint::OnAccept) also takes one. Concurrent requests take turns in the order of
/// arrival, which your test does not control.
///
/// # Drop
///
/// When dropped, the server closes its port, and every connection at its next await. Nothing stays
/// on the runtime.
pub struct FaultServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
    /// Holds the port while the server refuses connections: bound, but not listening.
    held: Mutex<Option<TcpSocket>>,
}

impl FaultServer {
    /// Starts a server that plays `acts` in order, one for each turn. The last one repeats.
    ///
    /// For an example, see [`FaultServer`].
    ///
    /// # Panics
    ///
    /// Panics if `acts` is empty or loopback has no free port.
    pub async fn play(acts: impl IntoIterator<Item = FaultStep>) -> Self {
        let acts: Vec<FaultStep> = acts.into_iter().collect();
        let Some(last) = acts.last().cloned() else { panic!("FaultServer: play needs at least one step") };
        Self::start(move |turn, _| acts.get(turn).unwrap_or(&last).clone()).await
    }

    /// Starts a server that draws a step for each turn: each of `faults` with its share (0 to 1),
    /// and [`FaultStep::ok`] for the rest. The same `seed` draws the same steps.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::{Client, KeyPolicy};
    /// use steadfast_testing::{FaultPoint, FaultServer, FaultStep, fast_retries};
    ///
    /// let lost = FaultStep::close(FaultPoint::AfterExecuting);
    /// let server = FaultServer::random(7, [(0.1, lost), (0.1, FaultStep::answer(503))]).await;
    ///
    /// let builder = Client::builder().base_url(server.url("")).keys(KeyPolicy::standard());
    /// let client = builder.retry(fast_retries()).build().unwrap();
    /// for _ in 0..50 {
    ///     // A few of them may fail after all retries. None is executed twice.
    ///     let _outcome = client.post("/charges").send().await;
    /// }
    /// assert_eq!(server.report().by_key.twice, 0, "{}", server.report());
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if a share is negative, if the shares add up to more than 1, or if loopback has no
    /// free port.
    pub async fn random(seed: u64, faults: impl IntoIterator<Item = (f64, FaultStep)>) -> Self {
        let faults: Vec<(f64, FaultStep)> = faults.into_iter().collect();
        let sum: f64 = faults.iter().map(|(share, _)| share).sum();
        // Shares like 0.1 are inexact, so their sum may be slightly above 1.
        let are_shares = faults.iter().all(|(share, _)| *share >= 0.0) && sum <= 1.0 + 1e-9;
        assert!(are_shares, "FaultServer: shares must not be negative or exceed 1 in total; these add up to {sum}");
        Self::start(move |turn, _| {
            let mut unit = draw(seed, turn);
            for (share, act) in &faults {
                if unit < *share {
                    return act.clone();
                }
                unit -= share;
            }
            FaultStep::ok()
        })
        .await
    }

    /// Starts a server that calls `script` for each step, with the number of the turn (from 0) and
    /// the request.
    ///
    /// The request is `None` on accept and when a request begins. Only the steps at
    /// [`OnAccept`](FaultPoint::OnAccept) and [`AfterBytes`](FaultPoint::AfterBytes) have an effect
    /// then. The server may call `script` more than once in a turn.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::Client;
    /// use steadfast_testing::{FaultServer, FaultStep};
    ///
    /// let server = FaultServer::start(|_turn, request| match request {
    ///     Some(request) if request.target == "/refunds" => FaultStep::answer(404),
    ///     _ => FaultStep::ok(),
    /// })
    /// .await;
    ///
    /// let client = Client::builder().base_url(server.url("")).build().unwrap();
    /// assert_eq!(client.get("/refunds").send().await.unwrap().status(), 404);
    /// assert_eq!(client.get("/charges").send().await.unwrap().status(), 200);
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if loopback has no free port.
    pub async fn start(script: impl Fn(usize, Option<&Received>) -> FaultStep + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared::new(Box::new(script)));
        let (address, listener) = must(listen(SocketAddr::from(([127, 0, 0, 1], 0))));
        let task = tokio::spawn(accept(listener, shared.clone()));
        Self { address, shared, task: Mutex::new(Some(task)), held: Mutex::new(None) }
    }

    /// Makes the server execute every request, whatever its key.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::{Client, KeyPolicy};
    /// use steadfast_testing::{FaultPoint, FaultServer, FaultStep, fast_retries};
    ///
    /// // This API ignores keys, so the declaration is wrong and the charge is made twice.
    /// let lost = FaultStep::close(FaultPoint::AfterExecuting);
    /// let server = FaultServer::play([lost, FaultStep::ok()]).await.ignoring_keys();
    ///
    /// let builder = Client::builder().base_url(server.url("")).keys(KeyPolicy::standard());
    /// let client = builder.retry(fast_retries()).build().unwrap();
    /// client.post("/charges").send().await.unwrap();
    /// assert_eq!(server.report().by_key.twice, 1);
    /// # }
    /// ```
    #[must_use]
    pub fn ignoring_keys(self) -> Self {
        self.shared.honours_keys.store(false, Ordering::Relaxed);
        self
    }

    /// Refuses connections from now on, and breaks open ones. The server keeps its port, so that no
    /// other process gets it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::{Client, ErrorKind};
    /// use steadfast_testing::{FaultServer, FaultStep, fast_retries};
    ///
    /// let server = FaultServer::play([FaultStep::ok()]).await;
    /// let client = Client::builder().retry(fast_retries()).build().unwrap();
    ///
    /// server.refuse_connections().await;
    /// let error = client.post(server.url("/charges")).send().await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Connect);
    ///
    /// server.accept_connections();
    /// assert_eq!(client.post(server.url("/charges")).send().await.unwrap().status(), 200);
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if the operating system does not give the port back.
    pub async fn refuse_connections(&self) {
        let task = lock(&self.task).take();
        if let Some(task) = task {
            task.abort();
            // The abort is no failure. It closes the listener.
            let _aborted = task.await;
            *lock(&self.held) = Some(must(bind(self.address)));
        }
    }

    /// Accepts connections again, after [`refuse_connections`](Self::refuse_connections).
    ///
    /// # Panics
    ///
    /// Panics if the operating system does not allow listening on the port again.
    pub fn accept_connections(&self) {
        if let Some(socket) = lock(&self.held).take() {
            let listener = must(socket.listen(BACKLOG));
            *lock(&self.task) = Some(tokio::spawn(accept(listener, self.shared.clone())));
        }
    }

    /// Returns `http://127.0.0.1:PORT` followed by `path`. With TLS the scheme is `https`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.has_tls() { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.address)
    }

    fn has_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.shared.tls.get().is_some();
        #[cfg(not(feature = "tls"))]
        false
    }

    /// Returns the address of the server.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        // The task owns the listener and, in a set, every connection.
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }
}

impl fmt::Debug for FaultServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultServer")
            .field("address", &self.address)
            .field("report", &self.report())
            .finish_non_exhaustive()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // A set, so that connections end with the server.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Forgets ended connections; a long soak test would otherwise keep them all.
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => {
                // `accept` fails if the client has already left, which is no reason to stop.
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(serve(stream, shared.clone()));
            }
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let mut wire = Wire::new(stream, shared.meter.clone());
    if let Some(how) = shared.accepted() {
        return wire.end_early(how).await;
    }
    #[cfg(feature = "tls")]
    if let Some(identity) = shared.tls.get() {
        // In a failed handshake the client has refused the certificate: nothing more to do.
        let Ok(encrypted) = wire.encrypted(&identity.acceptor).await else { return };
        wire = encrypted;
    }
    // The subject of the test is the client on a broken connection, so a failed read or write is no
    // failure here.
    let _broken = match wire.speaks_http2().await {
        Ok(true) => http2::serve(wire, shared).await,
        Ok(false) => http1::serve(wire, &shared).await,
        Err(_) => return,
    };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bind(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    // Without it, connections that have just ended would keep the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn listen(address: SocketAddr) -> std::io::Result<(SocketAddr, TcpListener)> {
    let listener = bind(address)?.listen(BACKLOG)?;
    Ok((listener.local_addr()?, listener))
}

/// Panics on an error: a test without its server cannot continue.
fn must<T>(outcome: std::io::Result<T>) -> T {
    match outcome {
        Ok(value) => value,
        Err(error) => panic!("FaultServer: cannot listen on loopback: {error}"),
    }
}

/// Returns a number from 0 to 1, the same for the same seed and turn. The generator is SplitMix64:
/// neighbouring inputs give unrelated outputs.
fn draw(seed: u64, turn: usize) -> f64 {
    let mut x = seed.wrapping_add((turn as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // A float between 0 and 1 holds 53 bits.
    ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}
