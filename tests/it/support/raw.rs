//! A raw HTTP/1.1 server on loopback that breaks the wire on purpose, and counts what it received.
//!
//! It runs on the test's own runtime. A script says what it does with each request in turn.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What the server does with one request (or, for the first two, with one connection).
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Closes as soon as the connection is there, having read nothing.
    CloseOnAccept,
    /// The same with a reset.
    ResetOnAccept,
    /// Answers without acting.
    Answer(Answer),
    /// Acts, then answers.
    Execute(Answer),
    /// Acts unless the key was seen before, then answers.
    ExecuteOnce(Answer),
    /// Acts (once per key), then closes without an answer.
    ExecuteThenClose,
    /// Acts (once per key), then resets the connection.
    ExecuteThenReset,
    /// Acts (once per key), then answers 200 with the head and half of the body.
    ExecuteThenCutBody,
    /// Acts (once per key), then sends half of a head.
    ExecuteThenCutHead,
    /// Acts (once per key), then sends what is not HTTP.
    ExecuteThenGarbage,
    /// Acts (once per key), then says nothing more.
    ExecuteThenStall,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
    /// Waits before it answers.
    pub(crate) delay: Duration,
    /// Repeats the request's key in the answer.
    pub(crate) echo_key: bool,
}

pub(crate) fn answer(status: u16) -> Answer {
    let body = format!("{{\"status\":{status}}}");
    Answer { status, headers: Vec::new(), body, delay: Duration::ZERO, echo_key: false }
}

impl Answer {
    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    pub(crate) fn echo_key(mut self) -> Self {
        self.echo_key = true;
        self
    }
}

/// A request as it arrived, whole.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn key(&self) -> Option<&str> {
        self.header("idempotency-key")
    }
}

type Script = Arc<dyn Fn(usize, Option<&Received>) -> Act + Send + Sync>;

#[derive(Default)]
struct Log {
    connections: usize,
    received: Vec<Received>,
    executions: Vec<Received>,
    seen_keys: HashSet<String>,
}

/// A server with a script.
pub(crate) struct Server {
    address: SocketAddr,
    log: Arc<Mutex<Log>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Plays `acts` in order, one a request; the last one repeats.
    pub(crate) async fn play(acts: impl IntoIterator<Item = Act>) -> Self {
        let acts: Vec<Act> = acts.into_iter().collect();
        Self::start(move |turn, _| acts.get(turn).or(acts.last()).cloned().expect("a script has an act")).await
    }

    /// `script` is asked once per connection with no request (only the `…OnAccept` acts count there), and, if it lets the
    /// connection live, once per request. The number is that of the turn: a connection closed on accept and a whole request
    /// each take one.
    pub(crate) async fn start(script: impl Fn(usize, Option<&Received>) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let log = Arc::new(Mutex::new(Log::default()));
        let turns = Arc::new(Mutex::new(0));
        let script: Script = Arc::new(script);
        let shared = log.clone();
        let task = tokio::spawn(async move {
            // Connections end with the server.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                shared.lock().unwrap().connections += 1;
                connections.spawn(serve(stream, script.clone(), shared.clone(), turns.clone()));
            }
        });
        Self { address, log, task }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn connections(&self) -> usize {
        self.log.lock().unwrap().connections
    }

    /// Every request that arrived whole.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.log.lock().unwrap().received.clone()
    }

    /// How often the server acted.
    pub(crate) fn executions(&self) -> usize {
        self.log.lock().unwrap().executions.len()
    }

    /// How often the server acted, by request body.
    pub(crate) fn executions_by_body(&self) -> HashMap<Vec<u8>, usize> {
        let mut count = HashMap::new();
        for request in &self.log.lock().unwrap().executions {
            *count.entry(request.body.clone()).or_default() += 1;
        }
        count
    }

    /// The keys that arrived, in order.
    pub(crate) fn keys(&self) -> Vec<Option<String>> {
        self.received().iter().map(|request| request.key().map(str::to_owned)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn next_turn(turns: &Mutex<usize>) -> usize {
    let mut turns = turns.lock().unwrap();
    *turns += 1;
    *turns - 1
}

async fn serve(mut stream: TcpStream, script: Script, log: Arc<Mutex<Log>>, turns: Arc<Mutex<usize>>) {
    let upcoming = *turns.lock().unwrap();
    match script(upcoming, None) {
        Act::CloseOnAccept => {
            next_turn(&turns);
            return;
        }
        Act::ResetOnAccept => {
            next_turn(&turns);
            return reset(stream);
        }
        _ => {}
    }
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer).await {
        let turn = next_turn(&turns);
        let act = script(turn, Some(&request));
        log.lock().unwrap().received.push(request.clone());
        let execute = |once: bool| {
            let mut log = log.lock().unwrap();
            let fresh = request.key().is_none_or(|key| log.seen_keys.insert(key.to_owned()));
            if fresh || !once {
                log.executions.push(request.clone());
            }
        };
        match act {
            Act::Answer(answer) => respond(&mut stream, &request, &answer).await,
            Act::Execute(answer) => {
                execute(false);
                respond(&mut stream, &request, &answer).await;
            }
            Act::ExecuteOnce(answer) => {
                execute(true);
                respond(&mut stream, &request, &answer).await;
            }
            Act::CloseOnAccept | Act::ResetOnAccept => panic!("the connection is already accepted"),
            broken => {
                execute(true);
                return break_off(stream, &broken).await;
            }
        }
    }
}

async fn break_off(mut stream: TcpStream, act: &Act) {
    let half_body = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 40\r\n\r\n{\"status\":200,";
    match act {
        Act::ExecuteThenReset => reset(stream),
        Act::ExecuteThenCutBody => write(&mut stream, half_body).await,
        Act::ExecuteThenCutHead => write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-le").await,
        Act::ExecuteThenGarbage => write(&mut stream, "I am not HTTP\r\n\r\n").await,
        // Until the client hangs up.
        Act::ExecuteThenStall => while matches!(stream.read(&mut [0; 1024]).await, Ok(read) if read > 0) {},
        _ => {}
    }
}

/// What a client does with a broken connection is what is tested, so a failed write is no failure here.
async fn write(stream: &mut TcpStream, text: &str) {
    let _hung_up = stream.write_all(text.as_bytes()).await;
    let _hung_up = stream.flush().await;
}

/// Closes with RST instead of FIN.
pub(crate) fn reset(stream: TcpStream) {
    let stream = stream.into_std().expect("a tokio stream is a std stream");
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger can be set");
}

#[allow(clippy::disallowed_methods, reason = "a slow server is what is staged")]
async fn respond(stream: &mut TcpStream, request: &Received, answer: &Answer) {
    if !answer.delay.is_zero() {
        tokio::time::sleep(answer.delay).await;
    }
    let mut text = format!("HTTP/1.1 {} Status\r\n", answer.status);
    if answer.status != 204 && answer.status != 304 {
        text.push_str(&format!("content-length: {}\r\n", answer.body.len()));
    }
    if !answer.headers.iter().any(|(name, _)| *name == "content-type") {
        text.push_str("content-type: application/json\r\n");
    }
    if let Some(key) = request.key().filter(|_| answer.echo_key) {
        text.push_str(&format!("idempotency-key: {key}\r\n"));
    }
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    if request.method != "HEAD" && answer.status != 204 && answer.status != 304 {
        text.push_str(&answer.body);
    }
    write(stream, &text).await;
}

/// One whole request, or `None` if the connection ended before it was whole.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Received> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    buffer.drain(..head_end);
    let find = |wanted: &str| {
        headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.clone())
    };
    let body = if find("transfer-encoding").is_some_and(|coding| coding == "chunked") {
        read_chunked(stream, buffer).await?
    } else {
        let length = find("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        read_exact(stream, buffer, length).await?
    };
    Some(Received { method, target, headers, body })
}

async fn read_chunked(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line_end = loop {
            if let Some(at) = buffer.windows(2).position(|window| window == b"\r\n") {
                break at;
            }
            if stream.read_buf(buffer).await.ok()? == 0 {
                return None;
            }
        };
        let size = usize::from_str_radix(std::str::from_utf8(&buffer[..line_end]).ok()?, 16).ok()?;
        buffer.drain(..line_end + 2);
        body.extend(read_exact(stream, buffer, size).await?);
        read_exact(stream, buffer, 2).await?;
        if size == 0 {
            return Some(body);
        }
    }
}

async fn read_exact(stream: &mut TcpStream, buffer: &mut Vec<u8>, length: usize) -> Option<Vec<u8>> {
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    Some(buffer.drain(..length).collect())
}
