//! The server's side of HTTP/2 (RFC 9113): the `h2` crate, and hand-written frames that a library
//! would not send.

use std::future::{pending, poll_fn};
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use steadfast_core::clock;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::act::{Answer, Early, FaultPoint, FaultStep, How, Kind, StreamError};
use super::lock;
use super::shared::{Execution, Shared};
use super::wire::Wire;
use crate::Received;

const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;
const END_HEADERS: u8 = 4;

/// A message from a stream to its connection.
enum Word {
    /// Report when all queued frames have been sent.
    Flush(oneshot::Sender<()>),
    End(End),
}

/// The end of a connection, and the bytes to send before it.
struct End {
    how: How,
    bytes: Vec<u8>,
}

/// Serves one connection until either side ends it.
pub(super) async fn serve(wire: Wire, shared: Arc<Shared>) -> io::Result<()> {
    let mut raw = wire.clone();
    let mut connection = h2::server::handshake(wire).await.map_err(io::Error::other)?;
    let (tell, mut told) = unbounded_channel();
    let (mut streams, done) = (JoinSet::new(), Arc::new(Mutex::new(Done::default())));
    let End { how, bytes } = loop {
        let (accepted, word) = tokio::select! {
            biased;
            accepted = connection.accept() => (Some(accepted), None),
            // One more poll sends the frames that were queued before. It may bring one more
            // request.
            Some(word) = told.recv() => (poll_once(|cx| connection.poll_accept(cx)).await, Some(word)),
        };
        match accepted {
            Some(Some(Ok((request, respond)))) => {
                let (shared, done, tell) = (shared.clone(), done.clone(), tell.clone());
                streams.spawn(Exchange { respond, shared, done, tell }.run(request));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        match word {
            Some(Word::End(end)) => break end,
            Some(Word::Flush(done)) => drop(done),
            None => {}
        }
    };
    raw.write_all(&bytes).await?;
    raw.flush().await?;
    drop((connection, streams));
    raw.end(how).await;
    Ok(())
}

async fn poll_once<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Option<T> {
    poll_fn(|cx| match poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// One request. If a frame cannot be sent, nobody is left to get the error: the client must cope.
struct Exchange {
    respond: SendResponse<Bytes>,
    shared: Arc<Shared>,
    done: Arc<Mutex<Done>>,
    tell: UnboundedSender<Word>,
}

impl Exchange {
    async fn run(mut self, request: Request<RecvStream>) {
        let (turn, early) = self.shared.begun();
        let (parts, mut body) = request.into_parts();
        if let Some((point, how)) = early {
            let bytes = if let Early::AfterBytes(bytes) = point { bytes } else { 0 };
            let part = read_body(&mut body, bytes).await;
            if part.is_some_and(|part| part.len() < bytes) {
                return pending().await;
            }
            return self.end(how, Vec::new()).await;
        }
        let Some(body) = read_body(&mut body, usize::MAX).await else { return };
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        let request = Received { method: parts.method, target, headers: parts.headers, body };
        let (index, FaultStep(kind)) = self.shared.whole(turn, &request);
        let mut execution = None;
        if kind.executes() {
            execution = lock(&self.done).execute(self.stream(), || self.shared.execute(index));
            if execution.is_none() {
                // The connection sent a `GOAWAY` with a promise about this stream.
                return pending().await;
            }
        }
        self.perform(kind, execution, &request).await;
    }

    async fn perform(&mut self, kind: Kind, execution: Option<Execution>, request: &Received) {
        let half_of = execution.filter(|_| kind.phase() == Some(FaultPoint::MidBody));
        match kind {
            Kind::Own => {
                if let Some(execution) = execution {
                    self.answer(&execution.answer(), request).await;
                }
            }
            Kind::Answer { answer, .. } => self.answer(&answer, request).await,
            Kind::Break(phase, how) => {
                // Held, because a drop would reset the stream.
                let _half = half_of.and_then(|execution| self.half(execution));
                let bytes = match (phase, how) {
                    (_, How::Garbage) => b"I am not HTTP, and long enough for a frame header\r\n\r\n".to_vec(),
                    // The frame announces ten bytes of head, and one is sent.
                    (FaultPoint::MidHead, _) => [&frame(HEADERS, END_HEADERS, self.stream(), 10)[..], &[0x88]].concat(),
                    _ => Vec::new(),
                };
                self.end(how, bytes).await;
            }
            Kind::ResetStream(error, _) => {
                let half = half_of.and_then(|execution| self.half(execution));
                // A reset discards frames that are still queued.
                self.flush().await;
                match half {
                    Some(mut stream) => stream.send_reset(error.reason()),
                    None => self.respond.send_reset(error.reason()),
                }
            }
            Kind::GoAway(_) => {
                let this = self.stream();
                let wanted = if execution.is_some() { this } else { this.saturating_sub(2) };
                let last = lock(&self.done).go_away(wanted);
                let mut bytes = frame(GOAWAY, 0, 0, 8);
                bytes.extend_from_slice(&last.to_be_bytes());
                bytes.extend_from_slice(&u32::from(Reason::NO_ERROR).to_be_bytes());
                self.end(How::Close, bytes).await;
            }
        }
    }

    fn stream(&self) -> u32 {
        self.respond.stream_id().into()
    }

    async fn answer(&mut self, answer: &Answer, request: &Received) {
        clock::sleep(answer.delay).await;
        if let Some(status) = answer.interim.and_then(|status| StatusCode::from_u16(status).ok()) {
            let mut interim = Response::new(());
            *interim.status_mut() = status;
            let _gone = self.respond.send_informational(interim);
        }
        let has_body = answer.has_body(&request.method);
        let Ok(mut stream) = self.respond.send_response(head(answer, request.key()), !has_body) else { return };
        if !has_body {
            return;
        }
        let is_whole = answer.length.is_none();
        match answer.drip {
            None => {
                let _gone = stream.send_data(Bytes::copy_from_slice(&answer.body), is_whole);
            }
            Some(pause) => {
                for byte in &answer.body {
                    let _gone = stream.send_data(Bytes::copy_from_slice(&[*byte]), false);
                    clock::sleep(pause).await;
                }
                let _gone = stream.send_data(Bytes::new(), is_whole);
            }
        }
        if !is_whole {
            self.end(How::Close, Vec::new()).await;
        }
    }

    /// Sends the head and half of the body of the execution's response.
    fn half(&mut self, execution: Execution) -> Option<SendStream<Bytes>> {
        let answer = execution.answer();
        let mut stream = self.respond.send_response(head(&answer, None), false).ok()?;
        stream.send_data(Bytes::copy_from_slice(&answer.body[..answer.body.len() / 2]), false).ok()?;
        Some(stream)
    }

    /// Asks the connection to end, and this stream with it. A stall that leaves no frame unfinished
    /// ends this stream alone.
    async fn end(&self, how: How, bytes: Vec<u8>) {
        if how != How::Stall || !bytes.is_empty() {
            // If the receiver is gone, the connection has already ended.
            let _ended = self.tell.send(Word::End(End { how, bytes }));
        }
        pending().await
    }

    /// Waits until all queued frames have been sent.
    async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        let _ended = self.tell.send(Word::Flush(done));
        // The connection drops the sender: that error is the signal.
        let _flushed = flushed.await;
    }
}

/// The executions on a connection, so that its `GOAWAY` is true: no stream above the one that it
/// names was executed, and none will be.
#[derive(Default)]
struct Done {
    highest: u32,
    gone: Option<u32>,
}

impl Done {
    fn execute(&mut self, stream: u32, execute: impl FnOnce() -> Execution) -> Option<Execution> {
        if self.gone.is_some_and(|last| stream > last) {
            return None;
        }
        self.highest = self.highest.max(stream);
        Some(execute())
    }

    /// Returns the stream that a `GOAWAY` can name truthfully; `last` is the preferred one.
    fn go_away(&mut self, last: u32) -> u32 {
        let last = self.gone.unwrap_or(last.max(self.highest));
        self.gone = Some(last);
        last
    }
}

impl StreamError {
    fn reason(self) -> Reason {
        match self {
            Self::Internal => Reason::INTERNAL_ERROR,
            Self::Refused => Reason::REFUSED_STREAM,
            Self::Cancel => Reason::CANCEL,
        }
    }
}

/// Reads the body up to `most` bytes. Returns `None` if it breaks off.
async fn read_body(body: &mut RecvStream, most: usize) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    while content.len() < most {
        let Some(chunk) = body.data().await else { break };
        let chunk = chunk.ok()?;
        content.extend_from_slice(&chunk);
        // The window stays closed for bytes that are never read.
        if content.len() < most {
            let _ended = body.flow_control().release_capacity(chunk.len());
        }
    }
    Some(content)
}

fn head(answer: &Answer, key: Option<&str>) -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let headers = head.headers_mut();
    if let Some(length) = answer.length {
        headers.insert(http::header::CONTENT_LENGTH, length.into());
    }
    if let Some(key) = key.filter(|_| answer.echo_key).and_then(|key| HeaderValue::from_str(key).ok()) {
        headers.insert(HeaderName::from_static("idempotency-key"), key);
    }
    for (name, value) in &answer.headers {
        // A connection header makes a message malformed (RFC 9113 §8.2.2).
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value))
            && name != http::header::CONNECTION
        {
            headers.append(name, value);
        }
    }
    headers.entry(http::header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
    head
}

/// The first nine bytes of a frame.
fn frame(kind: u8, flags: u8, stream: u32, length: u8) -> Vec<u8> {
    let mut frame = vec![0, 0, length, kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goaway_names_the_last_executed_stream() {
        let execution = || Execution { number: 1, replayed: false };
        let mut done = Done::default();
        assert!(done.execute(5, execution).is_some());
        // Stream 5 was executed, so a `GOAWAY` that names stream 1 would be false.
        assert_eq!(done.go_away(1), 5);
        // The promise of the first `GOAWAY` holds.
        assert!(done.execute(7, execution).is_none() && done.execute(3, execution).is_some());
        assert_eq!(done.go_away(9), 5);
        assert_eq!(Done::default().go_away(1), 1);
    }
}
