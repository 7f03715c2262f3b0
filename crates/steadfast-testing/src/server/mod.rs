//! A server that breaks the wire on purpose, at an exact point, and counts what reached it.
//!
//! A mock server behaves: it reads requests whole, sends answers whole and closes in an orderly way. What a retry must be right
//! about is everything else, so this is plain TCP, HTTP/1.1 by hand and HTTP/2 by the `h2` crate with a few frames of its own.

mod act;
mod http1;
mod http2;
mod report;
mod shared;
mod wire;

use std::collections::HashMap;
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

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// A server on loopback, on the test's own runtime, that speaks HTTP/1.1 and HTTP/2 (prior knowledge) and breaks as it is told.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use serde_json::{Value, json};
/// use steadfast_testing::{FaultStep, FaultServer, FaultPoint, assert_attempts, assert_one_key, fast_retries};
/// use steadfast::{Client, KeyPolicy};
///
/// // The answer is lost after the charge was made; then the server is overloaded; then all is well.
/// let server = FaultServer::play([FaultStep::reset(FaultPoint::AfterExecuting), FaultStep::answer(503), FaultStep::ok()]).await;
///
/// let client = Client::builder().base_url(server.url("/v1")).keys(KeyPolicy::standard()).retry(fast_retries());
/// let charge: Value = client.build().unwrap().post_json("/charges", &json!({ "amount": 7 })).await.unwrap();
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
/// Each request takes a turn when its first bytes arrive (HTTP/2: its head), and so does a connection that is broken off
/// [on accept](FaultPoint::OnAccept). Requests that arrive at the same time take turns in the order of arrival, whatever that is.
///
/// # Its end
///
/// Dropped, it closes the port and every connection at its next await; nothing of it stays on the runtime.
pub struct FaultServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
    /// Holds the port while connections are refused: bound, and not listening.
    held: Mutex<Option<TcpSocket>>,
}

impl FaultServer {
    /// Plays `acts` in order, one a turn; the last one repeats.
    ///
    /// # Panics
    ///
    /// If there is no act, or loopback no free port.
    pub async fn play(acts: impl IntoIterator<Item = FaultStep>) -> Self {
        let acts: Vec<FaultStep> = acts.into_iter().collect();
        let Some(last) = acts.last().cloned() else { panic!("FaultServer: play needs an act") };
        Self::start(move |turn, _| acts.get(turn).unwrap_or(&last).clone()).await
    }

    /// Draws an act for each turn: each of `faults` with its share (0 to 1), and [`FaultStep::ok`]
    /// for the rest. The same `seed` draws the same acts.
    ///
    /// # Panics
    ///
    /// If a share is negative, or they add up to more than 1, or loopback has no free port.
    pub async fn random(seed: u64, faults: impl IntoIterator<Item = (f64, FaultStep)>) -> Self {
        let faults: Vec<(f64, FaultStep)> = faults.into_iter().collect();
        let sum: f64 = faults.iter().map(|(share, _)| share).sum();
        // Shares like 0.1 are not exact, and their sum may be off by a few last places.
        let are_shares = faults.iter().all(|(share, _)| *share >= 0.0) && sum <= 1.0 + 1e-9;
        assert!(are_shares, "FaultServer: shares are 0 or more, and 1 at most in all; these add up to {sum}");
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

    /// Asks `script` what to do. It is given the number of the turn, from 0, and the request; `None` while there is none yet: on
    /// accept and as the request begins, when only the acts at [`OnAccept`](FaultPoint::OnAccept) and
    /// [`AfterBytes`](FaultPoint::AfterBytes) have an effect. It may be asked more than once in a turn.
    ///
    /// # Panics
    ///
    /// If loopback has no free port.
    pub async fn start(script: impl Fn(usize, Option<&Received>) -> FaultStep + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared::new(Box::new(script)));
        let (address, listener) = must(listen(SocketAddr::from(([127, 0, 0, 1], 0))));
        let task = tokio::spawn(accept(listener, shared.clone()));
        Self { address, shared, task: Mutex::new(Some(task)), held: Mutex::new(None) }
    }

    /// The same server, which executes every request whatever its key.
    #[must_use]
    pub fn ignoring_keys(self) -> Self {
        self.shared.honours_keys.store(false, Ordering::Relaxed);
        self
    }

    /// Refuses connections from now on, and breaks off those that there are. The port stays taken, so that nobody else gets it.
    ///
    /// # Panics
    ///
    /// If the operating system does not give the port back to us.
    pub async fn refuse_connections(&self) {
        let task = lock(&self.task).take();
        if let Some(task) = task {
            task.abort();
            // It ends by the abort, which is no failure; then its listener is closed.
            let _aborted = task.await;
            *lock(&self.held) = Some(must(bind(self.address)));
        }
    }

    /// Accepts connections again.
    ///
    /// # Panics
    ///
    /// If the operating system does not let us listen on the port again.
    pub fn accept_connections(&self) {
        if let Some(socket) = lock(&self.held).take() {
            let listener = must(socket.listen(BACKLOG));
            *lock(&self.task) = Some(tokio::spawn(accept(listener, self.shared.clone())));
        }
    }

    /// `http://127.0.0.1:PORT`, and `path`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every request that arrived whole, in order.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.shared.log().received.clone()
    }

    /// The keys that arrived, in order; `None` for a request without one.
    #[must_use]
    pub fn keys(&self) -> Vec<Option<String>> {
        self.shared.log().received.iter().map(|request| request.key().map(str::to_owned)).collect()
    }

    /// How many connections were accepted.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.log().connections
    }

    /// How often it executed.
    #[must_use]
    pub fn executions(&self) -> usize {
        self.shared.log().executions.len()
    }

    /// How often it executed, by the request's body.
    #[must_use]
    pub fn executions_by_body(&self) -> HashMap<Vec<u8>, usize> {
        self.shared.log().count_executions(|request| request.body.clone())
    }

    /// How often it executed, by key; `None` for requests without one.
    #[must_use]
    pub fn executions_by_key(&self) -> HashMap<Option<String>, usize> {
        self.shared.log().count_executions(|request| request.key().map(str::to_owned))
    }

    /// All of it, as numbers and as a table.
    #[must_use]
    pub fn report(&self) -> Report {
        let log = self.shared.log();
        let (received, executions) = (&log.received, &log.executions);
        let by_key = |index: usize, request: &Received| request.key().map_or(Err(index), |key| Ok(key.to_owned()));
        let by_body =
            |_: usize, request: &Received| (request.method.to_string(), request.target.clone(), request.body.clone());
        Report {
            connections: log.connections,
            requests: received.len(),
            executions: executions.len(),
            by_key: Tally::count(received, executions, by_key),
            by_body: Tally::count(received, executions, by_body),
            bytes_in: self.shared.meter.read.load(Ordering::Relaxed),
            bytes_out: self.shared.meter.written.load(Ordering::Relaxed),
        }
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
    // Connections end with the server.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Those that have ended are forgotten, or a long soak would keep them all.
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => {
                // It fails if the client has gone again, which is no reason to stop.
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
    // What a client does with a broken connection is what is tested, so a read or a write that fails is no failure here.
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
    // Or the connections that have just ended would keep the port from us.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn listen(address: SocketAddr) -> std::io::Result<(SocketAddr, TcpListener)> {
    let listener = bind(address)?.listen(BACKLOG)?;
    Ok((listener.local_addr()?, listener))
}

/// A test that cannot have its server cannot go on.
fn must<T>(outcome: std::io::Result<T>) -> T {
    match outcome {
        Ok(value) => value,
        Err(error) => panic!("FaultServer: no port on loopback: {error}"),
    }
}

/// A number from 0 to 1, the same for the same seed and turn (SplitMix64, whose neighbouring inputs give unrelated outputs).
fn draw(seed: u64, turn: usize) -> f64 {
    let mut x = seed.wrapping_add((turn as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // 53 bits are what a float between 0 and 1 holds.
    ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}
