//! Servers that read a long upload slowly, or stop reading it. An upload that moves arrives once,
//! however long it takes. One that does not move is cut, and says how far it got.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use steadfast::policy::{Failure, RetryPolicy, StopReason};
use steadfast::{Attempt, Client, ClientBuilder, Error, ErrorKind, KeyPolicy, Reach, ResponseExt};
use steadfast_testing::fast_retries;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::peer::{Protocol, Wire};
use super::tls::Identity;

/// Many times what the buffers of a connection hold.
const TOTAL: usize = 32 * 1024 * 1024;
/// Bytes that a slow server reads in each hundredth of a second: 3.3 s for all.
const PACE: usize = 100 * 1024;
const STEP: Duration = Duration::from_millis(10);
const SHORT: Duration = Duration::from_millis(400);
/// A third of an upload.
const ATTEMPT: Duration = Duration::from_secs(1);

/// What a server does with one connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reading {
    Slowly,
    /// Stops after this number of bytes.
    Until(usize),
    /// HTTP/2: reads slowly, and is dead after this number of bytes: it answers no ping.
    Dies(usize),
    AtOnce,
}

#[derive(Debug, Default)]
struct Counts {
    /// Requests whose head has arrived.
    heads: AtomicUsize,
    /// Bytes of all bodies.
    bytes: AtomicUsize,
    /// Requests that have arrived whole.
    whole: AtomicUsize,
}

struct Server {
    address: SocketAddr,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts a server. Each connection is read in one of these ways, in turn; the last one repeats.
    async fn start(protocol: Protocol, tls: Option<&Identity>, ways: &[Reading]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (counts, ways) = (Arc::new(Counts::default()), ways.to_vec());
        let (shared, acceptor) = (counts.clone(), tls.map(|identity| identity.acceptor(protocol)));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            for turn in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let way = *ways.get(turn).or(ways.last()).unwrap();
                let (acceptor, counts) = (acceptor.clone(), shared.clone());
                connections.spawn(async move {
                    // The client may close the connection at any time.
                    let _broken = match acceptor {
                        None => serve(stream, protocol, way, &counts).await,
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => serve(stream, protocol, way, &counts).await,
                            Err(error) => Err(error),
                        },
                    };
                });
            }
        });
        Self { address, counts, task }
    }

    fn url(&self, tls: Option<&Identity>) -> String {
        let scheme = if tls.is_some() { "https" } else { "http" };
        format!("{scheme}://localhost:{}/", self.address.port())
    }

    /// Returns the number of heads, of bytes and of whole requests that have arrived.
    fn counts(&self) -> (usize, usize, usize) {
        let Counts { heads, bytes, whole } = &*self.counts;
        (heads.load(Ordering::SeqCst), bytes.load(Ordering::SeqCst), whole.load(Ordering::SeqCst))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: impl Wire + 'static, protocol: Protocol, way: Reading, counts: &Counts) -> io::Result<()> {
    match protocol {
        Protocol::Http1 => serve_http1(stream, way, counts).await,
        Protocol::Http2 => serve_http2(stream, way, counts).await.map_err(io::Error::other),
    }
}

/// Reads in one of the ways.
struct Pace {
    way: Reading,
    tick: tokio::time::Interval,
    read: usize,
}

impl Pace {
    fn new(way: Reading) -> Self {
        Self { way, tick: tokio::time::interval(STEP), read: 0 }
    }

    /// Waits until bytes after those that were read may be read.
    async fn after(&mut self, bytes: usize) {
        let before = self.read / PACE;
        self.read += bytes;
        match self.way {
            Reading::AtOnce => {}
            Reading::Until(limit) if self.read < limit => {}
            Reading::Until(_) => std::future::pending().await,
            Reading::Slowly | Reading::Dies(_) => {
                for _ in before..self.read / PACE {
                    self.tick.tick().await;
                }
            }
        }
    }
}

async fn serve_http1(mut stream: impl Wire, way: Reading, counts: &Counts) -> io::Result<()> {
    let mut buffer = Vec::new();
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    };
    counts.heads.fetch_add(1, Ordering::SeqCst);
    let (mut taken, mut pace) = (buffer.len() - end, Pace::new(way));
    counts.bytes.fetch_add(taken, Ordering::SeqCst);
    let mut piece = vec![0; 16 * 1024];
    while taken < TOTAL {
        let read = stream.read(&mut piece).await?;
        if read == 0 {
            return Ok(());
        }
        taken += read;
        counts.bytes.fetch_add(read, Ordering::SeqCst);
        pace.after(read).await;
    }
    counts.whole.fetch_add(1, Ordering::SeqCst);
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await?;
    stream.flush().await?;
    while stream.read(&mut piece).await? > 0 {}
    Ok(())
}

async fn serve_http2(stream: impl Wire + 'static, way: Reading, counts: &Counts) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    let Some(accepted) = connection.accept().await else { return Ok(()) };
    let (request, mut respond) = accepted?;
    counts.heads.fetch_add(1, Ordering::SeqCst);
    let reading = async {
        let (mut body, mut pace) = (request.into_body(), Pace::new(way));
        while let Some(piece) = body.data().await {
            let read = piece?.len();
            counts.bytes.fetch_add(read, Ordering::SeqCst);
            pace.after(read).await;
            if matches!(way, Reading::Dies(limit) if pace.read >= limit) {
                return Ok(());
            }
            body.flow_control().release_capacity(read)?;
        }
        counts.whole.fetch_add(1, Ordering::SeqCst);
        let mut answer = respond.send_response(http::Response::new(()), false)?;
        answer.send_data(bytes::Bytes::from_static(b"{}"), true)
    };
    let mut reading = std::pin::pin!(reading);
    let mut read = None;
    // The connection moves only while it is polled here.
    while read.is_none() || !matches!(way, Reading::Dies(_)) {
        tokio::select! {
            ended = &mut reading, if read.is_none() => read = Some(ended?),
            next = connection.accept() => if next.is_none() { return Ok(()) },
        }
    }
    std::future::pending().await
}

fn client(protocol: Protocol, tls: Option<&Identity>) -> ClientBuilder {
    let authority = tls.map(Identity::authority);
    Client::builder().keys(KeyPolicy::off()).retry(fast_retries()).attempt_timeout(ATTEMPT).http(|http| {
        let http = match protocol {
            Protocol::Http2 if tls.is_none() => http.http2_prior_knowledge(),
            _ => http,
        };
        match authority {
            Some(authority) => http.tls_certs_only([authority]),
            None => http,
        }
    })
}

fn body() -> Vec<u8> {
    vec![b'x'; TOTAL]
}

const ON_EVERY_WIRE: [(Protocol, bool); 3] =
    [(Protocol::Http1, false), (Protocol::Http2, false), (Protocol::Http1, true)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steady_upload_outlasts_attempt_timeout() {
    let identity = Identity::new("localhost", |_| {});
    for (protocol, has_tls) in ON_EVERY_WIRE {
        let tls = has_tls.then_some(&identity);
        let server = Server::start(protocol, tls, &[Reading::Slowly]).await;
        let client = client(protocol, tls).build().unwrap();
        let response = client.put(server.url(tls)).body(body()).send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.attempts().len()), (200, 1), "{protocol:?}, TLS {has_tls}");
        assert!(response.elapsed() > ATTEMPT * 5 / 2, "{:?}", response.elapsed());
        assert_eq!(server.counts(), (1, TOTAL, 1), "{protocol:?}, TLS {has_tls}");
    }
}

fn failures(error: &Error) -> Vec<Option<Failure>> {
    error.attempts().iter().map(Attempt::failure).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_upload_is_cut_and_says_where() {
    let identity = Identity::new("localhost", |_| {});
    for (protocol, has_tls) in ON_EVERY_WIRE {
        let tls = has_tls.then_some(&identity);
        let server = Server::start(protocol, tls, &[Reading::Until(PACE)]).await;
        let client = client(protocol, tls).attempt_timeout(Duration::from_millis(400)).build().unwrap();
        let error = client.post(server.url(tls)).body(body()).send().await.unwrap_err();
        let line = error.to_string();
        assert_eq!((error.kind(), failures(&error)), (ErrorKind::Timeout, vec![Some(Failure::UploadTimeout)]));
        assert!(line.contains("still sending, ") && line.contains(" of 33.6 MB: no byte was taken for 4"), "{line}");
        assert!(error.may_have_been_processed() && error.attempts()[0].reach() == Reach::Sent, "{line}");
        assert_eq!(error.stop_reason(), Some(StopReason::NotRepeatable));
        let (heads, _, whole) = server.counts();
        assert_eq!((heads, whole), (1, 0), "{protocol:?}, TLS {has_tls}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_upload_is_repeated_if_harmless() {
    let server = Server::start(Protocol::Http1, None, &[Reading::Until(PACE), Reading::AtOnce]).await;
    let client = client(Protocol::Http1, None).attempt_timeout(Duration::from_millis(400)).build().unwrap();
    let response = client.put(server.url(None)).body(body()).send().await.unwrap();
    let failures: Vec<_> = response.attempts().iter().map(Attempt::failure).collect();
    assert_eq!(failures, [Some(Failure::UploadTimeout), None]);
    let (heads, _, whole) = server.counts();
    assert_eq!((heads, whole), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_below_its_rate_is_not_repeated() {
    let server = Server::start(Protocol::Http1, None, &[Reading::Slowly]).await;
    let client = client(Protocol::Http1, None).build().unwrap();
    let request = client.put(server.url(None)).body(body());
    let error = request.min_upload_rate(30_000_000, Duration::from_millis(500)).send().await.unwrap_err();
    let line = error.to_string();
    assert!(line.contains("under the min_upload_rate of 30.0 MB in 500 ms"), "{line}");
    assert_eq!(error.stop_reason(), Some(StopReason::UploadTooSlow), "{line}");
    assert!(error.is_timeout() && error.may_have_been_processed(), "{line}");
    let (heads, _, whole) = server.counts();
    assert_eq!((heads, whole), (1, 0));

    // A rate that is kept replaces the attempt timeout.
    let response = client.put(server.url(None)).body(body()).attempt_timeout(Duration::from_millis(900));
    let response = response.min_upload_rate(1_000_000, Duration::from_millis(900)).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len()), (200, 1));
    assert_eq!(server.counts().2, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operation_timeout_ends_steady_upload() {
    let server = Server::start(Protocol::Http1, None, &[Reading::Slowly]).await;
    let client = client(Protocol::Http1, None).timeout(ATTEMPT * 3 / 2).build().unwrap();
    let error = client.put(server.url(None)).body(body()).send().await.unwrap_err();
    let line = error.to_string();
    assert!(line.contains(" of 33.6 MB when the operation's time was up after 1 attempt in 1.5 s"), "{line}");
    assert_eq!(error.stop_reason(), Some(StopReason::DeadlineExceeded));
    let (heads, _, whole) = server.counts();
    assert_eq!((heads, whole), (1, 0));
}

/// reqwest's own timeouts are the same for each attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_cut_by_transport_is_not_repeated() {
    let server = Server::start(Protocol::Http1, None, &[Reading::Slowly]).await;
    let client = Client::builder().retry(fast_retries()).http(|http| http.timeout(ATTEMPT)).build().unwrap();
    let error = client.put(server.url(None)).body(body()).send().await.unwrap_err();
    let line = error.to_string();
    assert!(line.contains(" of 33.6 MB when a time limit of the HTTP client ended it"), "{line}");
    assert_eq!(error.stop_reason(), Some(StopReason::UploadTooSlow), "{line}");
    assert_eq!(server.counts().0, 1);
}

/// A connection that does not answer a ping is lost, and not too slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_on_dead_connection_is_repeated() {
    let server = Server::start(Protocol::Http2, None, &[Reading::Dies(PACE * 100), Reading::AtOnce]).await;
    let ping = Duration::from_millis(100);
    let client = Client::builder()
        .keys(KeyPolicy::off())
        .retry(fast_retries())
        .http(|http| http.http2_prior_knowledge().http2_keep_alive_interval(ping).http2_keep_alive_timeout(ping));
    let response = client.build().unwrap().put(server.url(None)).body(body()).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len()), (200, 2), "{:?}", response.attempts());
    let (heads, _, whole) = server.counts();
    assert_eq!((heads, whole), (2, 1));
}

/// The wait for the response begins when the body has been taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_response_to_upload_is_no_upload_error() {
    let server = Server::start(Protocol::Http1, None, &[Reading::AtOnce]).await;
    let client = client(Protocol::Http1, None).retry(RetryPolicy::never()).build().unwrap();
    // The server waits for the rest.
    let request = client.put(server.url(None)).body(vec![b'x'; TOTAL / 64]);
    let error = request.attempt_timeout(Duration::from_millis(200)).send().await.unwrap_err();
    assert_eq!(failures(&error), [Some(Failure::Timeout)], "{error}");
    assert_eq!(server.counts(), (1, TOTAL / 64, 0));
}

/// With a rate, only an upload that runs is measured by it. hyper does not ask for the end of a body
/// of which it has the announced length, as with a form.
#[tokio::test]
async fn whole_upload_is_measured_by_attempt_timeout() {
    let server = Server::start(Protocol::Http1, None, &[Reading::Until(100_000)]).await;
    let form = || {
        let part = steadfast::reqwest::multipart::Part::bytes(vec![7; 100_000]);
        steadfast::reqwest::multipart::Form::new().part("file", part)
    };
    // Two bounds that would end the wait too early and too late.
    for window in [SHORT / 4, Duration::from_secs(3600)] {
        let client = client(Protocol::Http1, None).attempt_timeout(SHORT).min_upload_rate(50_000, window);
        let client = client.retry(RetryPolicy::never()).build().unwrap();
        let error = client.put(server.url(None)).multipart_factory(form).send().await.unwrap_err();
        assert_eq!(failures(&error), [Some(Failure::Timeout)], "{error}");
        assert!(error.may_have_been_processed());
    }
    assert_eq!(server.counts().0, 2);
}
