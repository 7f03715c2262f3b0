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

/// Target of the redirects.
pub(super) const ELSEWHERE: &str = "http://other.invalid/";

/// Where the exchange breaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// Closes once the connection exists (after any TLS handshake), and reads nothing.
    CloseOnAccept,
    /// Reads the head and executes it, as a handler does that needs no body; then closes.
    ActOnHead,
    /// Closes in the middle of the upload.
    CloseMidUpload,
    /// Reads and executes the whole request, then closes.
    CloseAfterRequest,
    /// Executes, then sends half of a head and closes.
    CutHead,
    /// Executes, then sends bytes that are not HTTP.
    Garbage,
    /// Responds while the upload still runs, then closes.
    EarlyAnswer(u16),
    /// Executes and responds.
    Answer(u16),
    /// Redirects to another origin; executes, unless it is a 307.
    Redirect(u16),
    /// HTTP/1.1: executes and responds as if the connection stayed open, then closes.
    AnswerThenClose,
    /// Sends 100 Continue, then executes and responds.
    InterimThenAnswer,
    /// Sends 100 Continue, then closes.
    InterimThenClose,
    /// Accepts the connection, and never reads.
    NeverRead,
    /// Executes, then stays silent.
    StallAfterRequest,
    /// Executes, then sends the head of a 200 and half of its body, and stays silent.
    StallMidBody,
    /// Executes, then sends a 200 whose body is shorter than its `Content-Length`.
    CutLength,
    /// Executes, then sends a 200 whose chunked body (or HTTP/2 stream) does not end.
    CutChunked,
    /// HTTP/2: executes, then sends a 200 whose body is cut by RST_STREAM NO_ERROR, against its
    /// `content-length`.
    ResetBody,
    /// HTTP/2: executes, then sends a 200 whose body is cut by a `GOAWAY` NO_ERROR below the
    /// stream, against its `content-length`.
    GoAwayBody,
    /// Executes, then sends a whole 200 that is not JSON.
    BadJson,
    /// HTTP/2: resets the stream with this code after reading the whole request. `acted`: executes
    /// it first.
    ResetStream { code: u32, acted: bool },
    /// HTTP/2: sends a `GOAWAY` that names this as the last stream, then closes. The client's
    /// stream is 1.
    GoAway { last: u32 },
    /// HTTP/2: allows one stream at a time (`SETTINGS_MAX_CONCURRENT_STREAMS`). The second request
    /// holds it until it is [set free](Counts::free).
    OneStream,
    /// HTTP/2: gives no window for a body. It responds to the first request, which needs none; of
    /// later ones only the head arrives.
    NoWindow,
}

/// Counts of what reached the server.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) connections: Arc<AtomicUsize>,
    /// HTTP/2: number of heads that arrived.
    pub(super) heads: Arc<AtomicUsize>,
    /// Number of requests that arrived whole.
    pub(super) received: Arc<AtomicUsize>,
    pub(super) executed: Arc<AtomicUsize>,
    /// HTTP/2: notified of every head.
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

    /// Waits until `number` heads have arrived.
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
    /// Starts a server. Each connection meets one of `faults`, in turn; the last one repeats.
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
                        // From here on, closing the connection sends a reset.
                        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger can be set");
                    }
                    match acceptor {
                        None => serve(stream, protocol, fault, &counts).await,
                        // In a failed handshake the client has refused the certificate: nothing
                        // more to do.
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
    // A write to a connection that the client has closed fails, which is expected.
    let _broken = match protocol {
        Protocol::Http1 => super::http1::serve(stream, fault, counts).await,
        Protocol::Http2 => super::http2::serve(stream, fault, counts).await,
    };
}

/// A listener whose queue is full, so that connecting to it hangs.
pub(crate) struct Full {
    pub(crate) address: SocketAddr,
    _listener: socket2::Socket,
    _queued: Vec<TcpStream>,
}

impl Full {
    pub(crate) async fn start() -> Self {
        use socket2::{Domain, Socket, Type};

        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("loopback has a free port");
        listener.listen(0).expect("it listens");
        let address = listener.local_addr().expect("an address").as_socket().expect("an IP address");
        let mut queued = Vec::new();
        // The kernel accepts one or two; the first one that hangs proves that the queue is full.
        while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
            queued.push(stream);
            assert!(queued.len() < 10, "the queue does not fill");
        }
        Self { address, _listener: listener, _queued: queued }
    }
}
