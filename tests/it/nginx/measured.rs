//! The numbers of the guide's page on proxies. They take minutes, so they run only if asked for:
//!
//! ```text
//! ./scripts/with_servers.sh cargo test -p steadfast-tests nginx::measured -- --ignored --nocapture --test-threads 1
//! ```
//!
//! HAProxy is measured if the machine has one.

#![allow(clippy::disallowed_methods, reason = "pauses and delays are what is measured, by the real clock")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::any;
use steadfast::http::Method;
use steadfast::policy::{RetryBudget, RetryPolicy};
use steadfast::server::{IdempotencyLayer, MemoryStore, Scope};
use steadfast::{Client, Error, KeyPolicy};
use steadfast_testing::{FaultPoint, FaultServer, FaultStep, fast_retries};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::haproxy::Haproxy;
use super::server::{Nginx, Protocol};
use super::{CALLS, IN_FLIGHT, post, reloading, service};

/// What the service does with the first request. It executes each of them.
fn faults() -> [(&'static str, FaultStep); 4] {
    [
        ("executes, then closes", FaultStep::close(FaultPoint::AfterExecuting)),
        ("executes, then resets", FaultStep::reset(FaultPoint::AfterExecuting)),
        ("executes, then stays silent", FaultStep::stall(FaultPoint::AfterExecuting)),
        ("executes, then 503", FaultStep::execute(503)),
    ]
}

/// Sends one request with one attempt. Returns its outcome in the client's words.
async fn one_attempt(url: &str, method: &Method) -> String {
    let client = Client::builder().base_url(url).keys(KeyPolicy::off()).retry(RetryPolicy::never()).build().unwrap();
    match client.request(method.clone(), "/charges").body("12 EUR").send().await {
        Ok(response) if response.status().is_success() => "success".to_owned(),
        Ok(response) => response.status().as_u16().to_string(),
        Err(error) => format!("{:?}", error.kind()),
    }
}

async fn row(name: &str, fault: &str, method: &Method, server: &FaultServer, url: &str) {
    let outcome = one_attempt(url, method).await;
    let (received, executed) = (server.received().len(), server.executions());
    println!("| {name} | {fault} | {method} | {received} | {executed} | {outcome} |");
}

/// How often does a proxy repeat what its client has sent once?
#[tokio::test]
#[ignore = "a measurement for the guide"]
async fn requests_that_a_proxy_repeats() {
    println!("| proxy | the service | method | requests at it | executions | the client gets |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let nginx = [
        ("nginx, default", ""),
        ("nginx, http_503", "proxy_next_upstream error timeout http_503;"),
        ("nginx, non_idempotent", "proxy_next_upstream error timeout http_503 non_idempotent;"),
    ];
    let haproxy = [
        ("HAProxy, default", ""),
        ("HAProxy, retry-on", "retry-on all-retryable-errors"),
        ("HAProxy, disable-l7-retry", "retry-on all-retryable-errors\n http-request disable-l7-retry if METH_POST"),
    ];
    for method in [Method::POST, Method::PUT] {
        for (fault, step) in faults() {
            for (name, more) in nginx {
                let server = FaultServer::play([step.clone(), FaultStep::ok()]).await.ignoring_keys();
                let upstream = format!("server {0}; server {0};", server.address());
                let more = format!("proxy_read_timeout 1s; {more}");
                let nginx = Nginx::in_front_of(&upstream, Protocol::Http1, &more);
                row(name, fault, &method, &server, &nginx.url()).await;
            }
            for (name, more) in haproxy {
                let server = FaultServer::play([step.clone(), FaultStep::ok()]).await.ignoring_keys();
                let Some(proxy) = Haproxy::in_front_of(server.address().port(), more).await else { continue };
                row(name, fault, &method, &server, &proxy.url()).await;
            }
        }
    }
}

/// A key that the service honours makes the proxy's repeat harmless.
#[tokio::test]
#[ignore = "a measurement for the guide"]
async fn proxy_repeat_under_a_honoured_key() {
    for (fault, step) in faults() {
        let server = FaultServer::play([step, FaultStep::ok()]).await;
        let upstream = format!("server {0}; server {0};", server.address());
        let more = "proxy_read_timeout 1s; proxy_next_upstream error timeout http_503 non_idempotent;";
        let nginx = Nginx::in_front_of(&upstream, Protocol::Http1, more);
        let client = Client::builder().base_url(nginx.url()).keys(KeyPolicy::standard()).build().unwrap();
        client.post("/charges").body("12 EUR").send().await.unwrap();
        println!("{fault}: {} requests, {} executions", server.received().len(), server.executions());
    }
}

/// One way through the network, to and from the proxy.
const ONE_WAY: Duration = Duration::from_millis(10);
/// nginx's `keepalive_timeout` in the measurement, and the mean pause between two requests.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const CLIENTS: usize = 250;
const REQUESTS: usize = 40;

/// Starts a relay that holds every byte for [`ONE_WAY`]. Returns its address.
async fn relay(to: u16) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let (client_reads, client_writes) = client.into_split();
                let (server_reads, server_writes) = server.into_split();
                tokio::join!(carry(client_reads, server_writes), carry(server_reads, client_writes));
            });
        }
    });
    address
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let read = async move {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            // A reset ends the stream for the other side too.
            let read = from.read(&mut buffer).await.unwrap_or(0);
            let _gone = tell.send((Instant::now() + ONE_WAY, buffer[..read].to_vec()));
            if read == 0 {
                return;
            }
        }
    };
    let write = async move {
        while let Some((when, bytes)) = told.recv().await {
            tokio::time::sleep_until(when).await;
            if bytes.is_empty() || to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

/// The outcome of all requests of one run.
#[derive(Default)]
struct Races {
    failed: AtomicUsize,
    /// Failed, and `may_have_been_processed`.
    unsure: AtomicUsize,
    /// Attempts above one for each request.
    repeats: AtomicUsize,
}

impl Races {
    fn count(&self, outcome: &Result<steadfast::reqwest::Response, Error>) {
        use steadfast::ResponseExt as _;

        let attempts = match outcome {
            Ok(response) => response.attempts().len(),
            Err(error) => error.attempts().len(),
        };
        self.repeats.fetch_add(attempts - 1, Ordering::Relaxed);
        if let Err(error) = outcome {
            self.failed.fetch_add(1, Ordering::Relaxed);
            self.unsure.fetch_add(usize::from(error.may_have_been_processed()), Ordering::Relaxed);
        }
    }
}

async fn count(State(executed): State<Arc<AtomicUsize>>) {
    executed.fetch_add(1, Ordering::Relaxed);
}

/// Sends 10,000 POSTs with random pauses (exponential, with nginx's `keepalive_timeout` as mean).
async fn race(name: &str, idle: Duration, keys: KeyPolicy, protocol: Protocol) {
    let executed = Arc::<AtomicUsize>::default();
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
    let app = Router::new().fallback(any(count)).with_state(executed.clone()).layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("server {}; keepalive 300;", listener.local_addr().unwrap());
    let service = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let nginx = Nginx::in_front_of(&upstream, protocol, &format!("keepalive_timeout {}s;", KEEP_ALIVE.as_secs()));
    let url = format!("http://{}/charges", relay(nginx.port()).await);
    let races = Arc::<Races>::default();
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        let (url, races, keys) = (url.clone(), races.clone(), keys.clone());
        tasks.spawn(async move {
            let client = Client::builder().keys(keys).retry(fast_retries()).budget(RetryBudget::unlimited());
            // No certificates: to load them for each of the clients would take seconds.
            let client = client.http(move |http| {
                let http = http.tls_certs_only([]).pool_idle_timeout(idle);
                if protocol == Protocol::Http2 { http.http2_prior_knowledge() } else { http }
            });
            let client = client.build().unwrap();
            let mut random = fastrand::Rng::with_seed(number as u64);
            for _ in 0..REQUESTS {
                races.count(&client.post(&url).body("12 EUR").send().await);
                tokio::time::sleep(KEEP_ALIVE.mul_f64(-(1.0 - random.f64()).ln())).await;
            }
        });
    }
    tasks.join_all().await;
    service.abort();
    let Races { failed, unsure, repeats } = &*races;
    let all = CLIENTS * REQUESTS;
    println!(
        "{name}: {all} requests, {failed:?} failed, {unsure:?} unsure, {repeats:?} repeats, {executed:?} executed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement for the guide"]
async fn keep_alive_races_by_idle_limit() {
    let (above, below) = (KEEP_ALIVE * 4, KEEP_ALIVE.mul_f64(0.75));
    race("HTTP/1.1, idle limit above, no key", above, KeyPolicy::off(), Protocol::Http1).await;
    race("HTTP/1.1, idle limit above, key", above, KeyPolicy::standard(), Protocol::Http1).await;
    race("HTTP/1.1, idle limit below, no key", below, KeyPolicy::off(), Protocol::Http1).await;
    race("HTTP/2, idle limit above, no key", above, KeyPolicy::off(), Protocol::Http2).await;
    race("HTTP/2, idle limit below, no key", below, KeyPolicy::off(), Protocol::Http2).await;
}

/// Six reloads while 50 requests are in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement for the guide"]
async fn calls_that_fail_at_reloads() {
    let rows = [
        ("HTTP/1.1, no key", Protocol::Http1, KeyPolicy::off()),
        ("HTTP/1.1, key", Protocol::Http1, KeyPolicy::standard()),
        ("HTTP/2, no key", Protocol::Http2, KeyPolicy::off()),
        ("HTTP/2, key", Protocol::Http2, KeyPolicy::standard()),
    ];
    for (name, protocol, keys) in rows {
        let (app, executions) = service();
        let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
        let nginx = Nginx::start(protocol, app.layer(layer)).await;
        let client = super::client(&nginx, protocol).keys(keys).build().unwrap();
        let failed = post(&client, IN_FLIGHT, reloading(&nginx)).await;
        let executions = executions.lock().unwrap();
        let twice = executions.values().filter(|count| **count > 1).count();
        let unsure = failed.iter().filter(|(_, error)| error.may_have_been_processed()).count();
        println!(
            "{name}: {CALLS} calls, {} failed, {unsure} of them unsure, {twice} executed twice, {} workers retired",
            failed.len(),
            nginx.retired()
        );
    }
}
