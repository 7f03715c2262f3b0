//! The network: HTTP/1.1 on loopback, with faults on purpose.
//!
//! An HTTP library makes a server close connections in an orderly way, which must not happen here.
//! So this is plain TCP. The seed, the order and the number of its arrivals decide the fault of a
//! request. The faults depend neither on timing nor on the client.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use crate::bank::{Answer, Bank, Claim, Tally};
use crate::{Order, clock};

/// Duration of a stalled charge. The client has given up the attempt by then, and the charge
/// succeeds all the same.
const STALL: Duration = Duration::from_millis(900);

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Closes with the request unread. To the client this looks like
    /// [`HangUpAfter`](Self::HangUpAfter).
    HangUpBefore,
    /// Charges, then closes without a response.
    HangUpAfter,
    /// Charges, then closes in the middle of the response.
    HangUpMidAnswer,
    /// Responds 503 without charging.
    ErrorBefore,
    /// Charges, then responds 500: the handler has committed, and a layer above it failed. The bank
    /// has stored the charge and not this 500, so a repeat under the key gets the charge. (A stored
    /// 500 would be the final response of the key, and the client would rightly not retry.)
    ErrorAfter,
    /// Takes longer than any client waits, then charges. Meanwhile the bank responds 409 to a
    /// repeat.
    Stall,
    /// Responds 429 without charging.
    Throttle,
}

const FAULTS: [Fault; 7] = [
    Fault::HangUpBefore,
    Fault::HangUpAfter,
    Fault::HangUpMidAnswer,
    Fault::ErrorBefore,
    Fault::ErrorAfter,
    Fault::Stall,
    Fault::Throttle,
];

/// The share and the seed of the faults.
#[derive(Clone, Copy)]
pub(crate) struct Sabotage {
    /// Share of requests, from 0 to 1.
    pub(crate) share: f64,
    pub(crate) seed: u64,
}

impl Sabotage {
    fn draw(self, order: Order, arrival: u32) -> Option<Fault> {
        let request = u64::from(order.order) << 32 | u64::from(arrival);
        let (whether, which) = (scramble(self.seed ^ scramble(request)), scramble(self.seed ^ scramble(!request)));
        // A float between 0 and 1 holds 53 bits.
        let unit = (whether >> 11) as f64 / (1_u64 << 53) as f64;
        let fault = FAULTS[(which % FAULTS.len() as u64) as usize];
        (unit < self.share).then_some(fault)
    }
}

/// The finaliser of SplitMix64: neighbouring inputs give unrelated outputs.
fn scramble(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

pub(crate) struct Server {
    url: String,
    bank: Arc<Bank>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(sabotage: Sabotage, honours_keys: bool) -> io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let bank = Arc::new(Bank::new(honours_keys));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(listener, bank.clone(), sabotage, stopped));
        Ok(Self { url, bank, stop, task })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Returns the counts once every connection has ended: a stalled charge counts, although its
    /// client has gone. Drop the clients first, or this waits for them.
    pub(crate) async fn finish(self, charges: u32) -> Result<Tally, tokio::task::JoinError> {
        drop(self.stop);
        self.task.await?;
        Ok(self.bank.tally(charges))
    }
}

async fn accept(listener: TcpListener, bank: Arc<Bank>, sabotage: Sabotage, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => {
                // `accept` fails if the client has already left, which is no reason to stop.
                let Ok((stream, _)) = accepted else { continue };
                let bank = bank.clone();
                connections.spawn(async move { serve(Wire::new(stream), &bank, sabotage).await });
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

/// Serves one connection until either side closes it.
async fn serve(mut wire: Wire, bank: &Bank, sabotage: Sabotage) -> io::Result<()> {
    while let Some(request) = wire.look_ahead().await? {
        let fault = sabotage.draw(request.order, bank.arrived(request.order));
        if fault == Some(Fault::HangUpBefore) {
            return Ok(());
        }
        wire.read().await?;
        let answer = answer(&request, bank, fault).await;
        match fault {
            Some(Fault::HangUpAfter) => return Ok(()),
            Some(Fault::HangUpMidAnswer) => return wire.write_all_but(&answer, answer.body.len() / 2).await,
            _ => wire.write_all_but(&answer, 0).await?,
        }
    }
    Ok(())
}

async fn answer(request: &Request, bank: &Bank, fault: Option<Fault>) -> Answer {
    match fault {
        Some(Fault::ErrorBefore) => return Answer::error("503 Service Unavailable", ""),
        Some(Fault::Throttle) => return Answer::error("429 Too Many Requests", "retry-after: 1\r\n"),
        _ => {}
    }
    let claim = bank.claim(request.key.as_deref());
    if fault == Some(Fault::Stall) {
        clock::pause(STALL).await;
    }
    let answer = match claim {
        Claim::Granted => bank.execute(request.order, request.key.as_deref()),
        Claim::Answered(answer) => answer,
    };
    if fault == Some(Fault::ErrorAfter) { Answer::error("500 Internal Server Error", "") } else { answer }
}

/// A connection that can parse a request before it reads it.
struct Wire {
    stream: TcpStream,
    /// The beginning of a request that arrived in parts.
    begun: Vec<u8>,
    /// Number of unread bytes of the parsed request.
    unread: usize,
}

impl Wire {
    fn new(stream: TcpStream) -> Self {
        Self { stream, begun: Vec::new(), unread: 0 }
    }

    /// Returns the next request but leaves it unread, so that a server can close on it. Returns
    /// `None` if the client has closed.
    async fn look_ahead(&mut self) -> io::Result<Option<Request>> {
        loop {
            let mut ahead = [0; 4096];
            let length = self.stream.peek(&mut ahead).await?;
            if length == 0 {
                return Ok(None);
            }
            let so_far = [&self.begun, &ahead[..length]].concat();
            if let Some((request, whole)) = Request::parse(&so_far)? {
                self.unread = whole - self.begun.len();
                return Ok(Some(request));
            }
            // Takes the part: otherwise the next look would return at once with the same part.
            self.stream.read_exact(&mut ahead[..length]).await?;
            self.begun = so_far;
        }
    }

    /// Reads the request that was parsed.
    async fn read(&mut self) -> io::Result<()> {
        self.stream.read_exact(&mut vec![0; self.unread]).await?;
        self.begun.clear();
        Ok(())
    }

    /// Writes the response without its last `missing` bytes.
    async fn write_all_but(&mut self, answer: &Answer, missing: usize) -> io::Result<()> {
        let Answer { status, headers, body } = answer;
        let length = body.len();
        let text = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        );
        self.stream.write_all(&text.as_bytes()[..text.len() - missing]).await
    }
}

struct Request {
    order: Order,
    key: Option<String>,
}

impl Request {
    /// Parses the request at the start of `bytes` and its length, once it is whole. There is only
    /// one endpoint, so method and path are ignored.
    fn parse(bytes: &[u8]) -> io::Result<Option<(Self, usize)>> {
        let Some(head_length) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
        let head = std::str::from_utf8(&bytes[..head_length]).map_err(io::Error::other)?;
        let header = |wanted: &str| {
            let mut headers = head.lines().filter_map(|line| line.split_once(':'));
            headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
        };
        let body_length: usize = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let whole = head_length + 4 + body_length;
        let Some(body) = bytes.get(head_length + 4..whole) else { return Ok(None) };
        let order = serde_json::from_slice(body)?;
        Ok(Some((Self { order, key: header("idempotency-key").map(str::to_owned) }, whole)))
    }
}
