//! A server that breaks at an exact point of the exchange, and counts what had reached it by then.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::tls::Identity;

/// Where redirects lead.
pub(super) const ELSEWHERE: &str = "http://other.invalid/";

/// Where the exchange breaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// Closed as soon as the connection is there (after the TLS handshake, where there is one), nothing read.
    CloseOnAccept,
    /// Closed in the middle of the upload.
    CloseMidUpload,
    /// The whole request was read and carried out; then closed.
    CloseAfterRequest,
    /// Carried out, then half of a head and a close.
    CutHead,
    /// Carried out, then bytes that are not HTTP.
    Garbage,
    /// An answer while the upload still runs, then a close.
    EarlyAnswer(u16),
    /// Carried out and answered.
    Answer(u16),
    /// Answered by a redirect to another origin; carried out, unless it is a 307.
    Redirect(u16),
    /// HTTP/1.1: carried out and answered as if the connection stayed open, then closed.
    AnswerThenClose,
    /// 100 Continue, then carried out and answered.
    InterimThenAnswer,
    /// 100 Continue, then a close.
    InterimThenClose,
    /// The connection is there and nothing is ever read.
    NeverRead,
    /// Carried out, then silence.
    StallAfterRequest,
    /// Carried out, then the head of a 200, half of its body, and silence.
    StallMidBody,
    /// Carried out, then a 200 whose body is shorter than its `Content-Length`.
    CutLength,
    /// Carried out, then a 200 whose chunked body (or HTTP/2 stream) does not end.
    CutChunked,
    /// Carried out, then a whole 200 that is not JSON.
    BadJson,
    /// HTTP/2: the stream is reset with this code after the whole request was read; `acted`: it was carried out.
    ResetStream { code: u32, acted: bool },
    /// HTTP/2: `GOAWAY` that names this as the last stream, then a close. Ours is 1.
    GoAway { last: u32 },
    /// HTTP/2: one stream at a time (`SETTINGS_MAX_CONCURRENT_STREAMS`), and the second request holds it until it is [set free](Counts::free).
    OneStream,
    /// HTTP/2: no window for a body. The first request, which needs none, is answered; of later ones only the head arrives.
    NoWindow,
}

/// What reached the server.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) connections: Arc<AtomicUsize>,
    /// HTTP/2: requests whose head arrived.
    pub(super) heads: Arc<AtomicUsize>,
    /// Requests that arrived whole.
    pub(super) received: Arc<AtomicUsize>,
    pub(super) executed: Arc<AtomicUsize>,
    /// HTTP/2: told of every head.
    pub(super) head: Arc<Notify>,
    pub(super) free: Arc<Notify>,
}

impl Counts {
    pub(super) fn received(&self) -> usize {
        self.received.load(Ordering::SeqCst)
    }

    pub(super) fn executed(&self) -> usize {
        self.executed.load(Ordering::SeqCst)
    }

    /// Waits until so many heads have arrived.
    pub(super) async fn heads(&self, number: usize) {
        while self.heads.load(Ordering::SeqCst) < number {
            self.head.notified().await;
        }
    }

    pub(super) fn arrived(&self) {
        self.received.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn acted(&self) {
        self.executed.fetch_add(1, Ordering::SeqCst);
    }
}

/// The bytes of a connection, encrypted or not.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// How a broken connection ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Ending {
    Fin,
    Rst,
}

pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) counts: Counts,
    task: JoinHandle<()>,
}

impl Peer {
    /// A server that meets its connections with `faults` in turn; the last one repeats.
    pub(super) async fn start(protocol: Protocol, tls: Option<&Identity>, ending: Ending, faults: &[Fault]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let counts = Counts::default();
        let (shared, faults) = (counts.clone(), faults.to_vec());
        let acceptor = tls.map(|identity| identity.acceptor(protocol));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let turn = shared.connections.fetch_add(1, Ordering::SeqCst);
                let fault = faults.get(turn).or(faults.last()).copied().expect("there is a fault");
                let (acceptor, counts) = (acceptor.clone(), shared.clone());
                connections.spawn(async move {
                    if ending == Ending::Rst {
                        // From here on, whoever closes it sends a reset.
                        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger can be set");
                    }
                    match acceptor {
                        None => serve(stream, protocol, fault, &counts).await,
                        // A handshake that fails is the client's refusal: nothing more to do.
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, protocol, fault, &counts).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, counts, task }
    }

    pub(super) fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: impl Wire, protocol: Protocol, fault: Fault, counts: &Counts) {
    // A write to a connection that the client has closed fails, and that is no fault of the test.
    let _broken = match protocol {
        Protocol::Http1 => super::http1::serve(stream, fault, counts).await,
        Protocol::Http2 => super::http2::serve(stream, fault, counts).await,
    };
}

/// A listener whose queue is full: connecting to it hangs.
pub(super) struct Full {
    pub(super) address: SocketAddr,
    _listener: socket2::Socket,
    _queued: Vec<TcpStream>,
}

impl Full {
    pub(super) async fn start() -> Self {
        use socket2::{Domain, Socket, Type};

        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("loopback has a free port");
        listener.listen(0).expect("it listens");
        let address = listener.local_addr().expect("an address").as_socket().expect("an IP address");
        let mut queued = Vec::new();
        // The kernel takes one or two; the first that hangs proves that the queue is full.
        while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
            queued.push(stream);
            assert!(queued.len() < 10, "the queue does not fill");
        }
        Self { address, _listener: listener, _queued: queued }
    }
}
