//! Servers that act on the head of a request and break the connection before its body arrives.
//!
//! A handler that needs no body does that, and so does one that is cancelled half-way. The client
//! must not report "not sent" then. Between sending the head over HTTP/2 and reading the body lie a
//! few microseconds. So the tests try it thousands of times, eight at once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use steadfast::policy::RetryPolicy;
use steadfast::{Client, ClientBuilder, KeyPolicy};
use steadfast_testing::fast_retries;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::peer::{Ending, Fault, Peer, Protocol};
use super::tls::Identity;

const AT_ONCE: usize = 8;
/// The authority that the child process trusts.
const CHILD: &str = "STEADFAST_TEST_AUTHORITY";

/// The results of all requests of one kind.
#[derive(Debug, Default)]
struct Tally {
    requests: AtomicUsize,
    acted: AtomicUsize,
    /// Requests on which the server acted, but which the client reported as not processed.
    denied: AtomicUsize,
    /// Requests on which the server acted more than once.
    doubled: AtomicUsize,
}

impl Tally {
    fn assert_is_honest(&self, name: &str) {
        let of = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        assert!(of(&self.acted) > 0, "{name}: {self:?}: nothing was staged");
        assert_eq!((of(&self.denied), of(&self.doubled)), (0, 0), "{name}: {self:?}");
    }
}

/// Sends `times` POSTs without a key, eight at once. Each connection breaks once the server has
/// acted on the head.
async fn send(protocol: Protocol, tls: Option<&Identity>, times: usize, client: &dyn Fn() -> ClientBuilder) -> Tally {
    let tally = Arc::new(Tally::default());
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..AT_ONCE {
        let ending = if number % 2 == 0 { Ending::Fin } else { Ending::Rst };
        // One server for each task, so that its count belongs to one request at a time.
        let peer = Peer::start(protocol, tls, ending, &[Fault::ActOnHead]).await;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://localhost:{}/", peer.address.port());
        let clients = [RetryPolicy::never(), fast_retries()]
            .map(|policy| client().keys(KeyPolicy::off()).retry(policy).build().unwrap());
        let tally = tally.clone();
        tasks.spawn(async move {
            for turn in 0..times / AT_ONCE {
                let before = peer.counts.executed();
                let error = clients[turn % 2].post(&url).body("hello").send().await.unwrap_err();
                let acted = peer.counts.executed() - before;
                tally.requests.fetch_add(1, Ordering::SeqCst);
                tally.acted.fetch_add(acted, Ordering::SeqCst);
                tally.denied.fetch_add(usize::from(acted > 0 && !error.may_have_been_processed()), Ordering::SeqCst);
                tally.doubled.fetch_add(usize::from(acted > 1), Ordering::SeqCst);
            }
        });
    }
    tasks.join_all().await;
    Arc::into_inner(tally).expect("every task has ended")
}

fn in_the_clear(protocol: Protocol) -> ClientBuilder {
    let client = Client::builder();
    if protocol == Protocol::Http2 { client.http(|http| http.http2_prior_knowledge()) } else { client }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn heads_acted_on_in_the_clear_are_ambiguous() {
    for (protocol, times) in [(Protocol::Http1, 2_000), (Protocol::Http2, 8_000)] {
        let tally = send(protocol, None, times, &|| in_the_clear(protocol)).await;
        tally.assert_is_honest(&format!("{protocol:?}"));
    }
}

/// The default client, without any configuration, over TLS. It trusts the certificates of its
/// process, so it runs in a child process.
#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn heads_acted_on_over_tls_are_ambiguous() {
    let Ok(authority) = std::env::var(CHILD) else {
        return in_a_child_that_trusts_an_authority("wire::head::heads_acted_on_over_tls_are_ambiguous");
    };
    let identity = Identity::new("localhost", |_| {});
    std::fs::write(authority, identity.authority_pem()).unwrap();
    for (protocol, times) in [(Protocol::Http1, 400), (Protocol::Http2, 2_000)] {
        let tally = send(protocol, Some(&identity), times, &Client::builder).await;
        tally.assert_is_honest(&format!("{protocol:?} over TLS"));
    }
}

/// Eight requests on one connection. It breaks after the server has acted on some of their heads,
/// and so does the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn heads_acted_on_eight_at_once_are_ambiguous() {
    const ROUNDS: usize = 600;
    let server = Streams::start().await;
    let clients = [RetryPolicy::never(), fast_retries()]
        .map(|policy| in_the_clear(Protocol::Http2).keys(KeyPolicy::off()).retry(policy).build().unwrap());
    for round in 0..ROUNDS {
        let mut requests = tokio::task::JoinSet::new();
        for number in 0..AT_ONCE {
            let path = format!("/{round}/{number}");
            let (client, url) = (clients[round % 2].clone(), format!("http://{}{path}", server.address));
            requests.spawn(async move { (path, client.post(url).body("hello").send().await.unwrap_err()) });
        }
        for (path, error) in requests.join_all().await {
            let acted = server.acted_on(&path);
            assert!(acted <= 1, "{path}: acted on {acted} times: {error:#}");
            assert!(acted == 0 || error.may_have_been_processed(), "{path}: acted on: {error:#}");
        }
    }
    assert!(server.acted.lock().unwrap().len() > ROUNDS, "heads arrived in every round");
}

/// An HTTP/2 server that acts on the heads of one to seven requests, and then breaks the
/// connection.
struct Streams {
    address: SocketAddr,
    acted: Arc<Mutex<HashMap<String, usize>>>,
    task: JoinHandle<()>,
}

impl Streams {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acted = Arc::new(Mutex::new(HashMap::new()));
        let shared = acted.clone();
        let task = tokio::spawn(async move {
            for turn in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let acted: Arc<Mutex<HashMap<String, usize>>> = shared.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    for _ in 0..=turn % 7 {
                        let Some(Ok((request, _respond))) = connection.accept().await else { return };
                        *acted.lock().unwrap().entry(request.uri().path().to_owned()).or_default() += 1;
                    }
                });
            }
        });
        Self { address, acted, task }
    }

    fn acted_on(&self, path: &str) -> usize {
        self.acted.lock().unwrap().get(path).copied().unwrap_or(0)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn in_a_child_that_trusts_an_authority(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let authority: PathBuf = folder.path().join("authority.pem");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("SSL_CERT_FILE", &authority)
        .env(CHILD, &authority)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[child.stdout, child.stderr].concat()).into_owned();
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}
