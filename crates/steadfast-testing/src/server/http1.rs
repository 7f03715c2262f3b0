//! The server's side of HTTP/1.1, written by hand so that it can break at any point.

use std::io;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use steadfast_core::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::act::{Answer, Early, FaultPoint, FaultStep, How, Kind};
use super::shared::{Execution, Shared};
use super::wire::Wire;
use crate::Received;

/// Serves one connection until either side ends it.
pub(super) async fn serve(mut wire: Wire, shared: &Shared) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        // Reads one byte only: a fault may depend on how many bytes are read.
        if buffer.is_empty() && (&mut wire).take(1).read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let (turn, early) = shared.begun();
        if let Some((point, how)) = early {
            if let Early::AfterBytes(bytes) = point {
                read_part(&mut wire, &mut buffer, bytes).await?;
            }
            wire.end_early(how).await;
            return Ok(());
        }
        let request = read_request(&mut wire, &mut buffer).await?;
        let (index, act) = shared.whole(turn, &request);
        let outcome = perform(&mut wire, shared, &request, index, act).await?;
        if let Some(how) = outcome {
            wire.end(how).await;
            return Ok(());
        }
    }
}

/// Performs the step for a whole request. Returns how the connection ends, if it does.
async fn perform(
    wire: &mut Wire,
    shared: &Shared,
    request: &Received,
    index: usize,
    FaultStep(kind): FaultStep,
) -> io::Result<Option<How>> {
    if matches!(kind, Kind::ResetStream(..) | Kind::GoAway(_)) {
        let answer = Answer::new(501).body("FaultServer: this step needs HTTP/2, and the connection speaks HTTP/1.1");
        return respond(wire, request, &answer).await;
    }
    let execution = kind.executes().then(|| shared.execute(index));
    match (kind, execution) {
        (Kind::Answer { answer, .. }, _) => respond(wire, request, &answer).await,
        (Kind::Break(phase, how), Some(execution)) => {
            let text = if how == How::Garbage { b"I am not HTTP\r\n\r\n".to_vec() } else { part(execution, phase) };
            wire.write_all(&text).await?;
            wire.flush().await?;
            Ok(Some(how))
        }
        (Kind::Break(_, how), None) => Ok(Some(how)),
        (_, Some(execution)) => respond(wire, request, &execution.answer()).await,
        (_, None) => Ok(None),
    }
}

/// The part of the execution's response that is sent before the fault at `phase`.
fn part(execution: Execution, phase: FaultPoint) -> Vec<u8> {
    let answer = execution.answer();
    let mut text = head(&answer, None);
    match phase {
        FaultPoint::MidHead => text.truncate(text.len() / 2),
        FaultPoint::MidBody => text.extend_from_slice(&answer.body[..answer.body.len() / 2]),
        _ => text.clear(),
    }
    text
}

async fn respond(wire: &mut Wire, request: &Received, answer: &Answer) -> io::Result<Option<How>> {
    clock::sleep(answer.delay).await;
    let mut text = Vec::new();
    if let Some(status) = answer.interim {
        text.extend_from_slice(format!("HTTP/1.1 {status} {}\r\n\r\n", reason(status)).as_bytes());
    }
    text.extend_from_slice(&head(answer, request.key().filter(|_| answer.echo_key)));
    if answer.has_body(&request.method) {
        text.extend_from_slice(&answer.body);
    }
    match answer.drip {
        None => wire.write_all(&text).await?,
        Some(pause) => drip(wire, &text, pause).await?,
    }
    wire.flush().await?;
    Ok(answer.length.map(|_| How::Close))
}

async fn drip(wire: &mut Wire, text: &[u8], pause: Duration) -> io::Result<()> {
    for byte in text {
        wire.write_all(&[*byte]).await?;
        wire.flush().await?;
        clock::sleep(pause).await;
    }
    Ok(())
}

fn head(answer: &Answer, key: Option<&str>) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
    // A response to HEAD names the length that the body would have.
    if answer.has_body(&Method::GET) {
        text.push_str(&format!("content-length: {}\r\n", answer.length.unwrap_or(answer.body.len())));
    }
    if !answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        text.push_str("content-type: application/json\r\n");
    }
    if let Some(key) = key {
        text.push_str(&format!("idempotency-key: {key}\r\n"));
    }
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

fn reason(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Status")
}

/// Reads up to `bytes` bytes of a request.
async fn read_part(wire: &mut Wire, buffer: &mut Vec<u8>, bytes: usize) -> io::Result<()> {
    let mut part = wire.take(bytes.saturating_sub(buffer.len()) as u64);
    while part.read_buf(buffer).await? > 0 {}
    Ok(())
}

/// Reads one whole request. Returns an error if the connection ends before that.
async fn read_request(wire: &mut Wire, buffer: &mut Vec<u8>) -> io::Result<Received> {
    let end = read_until(wire, buffer, b"\r\n\r\n").await?;
    let text = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end + 4);
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target) = words.next().zip(words.next()).ok_or(io::ErrorKind::InvalidData)?;
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| io::ErrorKind::InvalidData)?;
    let headers: HeaderMap = lines.filter_map(read_header).collect();
    let is_chunked = headers.get(http::header::TRANSFER_ENCODING).is_some_and(|coding| coding == "chunked");
    let body = if is_chunked {
        read_chunked(wire, buffer).await?
    } else {
        let length = headers.get(http::header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        read_exact(wire, buffer, length.unwrap_or(0)).await?
    };
    Ok(Received { method, target: target.to_owned(), headers, body })
}

fn read_header(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    Some((name.parse().ok()?, HeaderValue::from_str(value.trim()).ok()?))
}

async fn read_chunked(wire: &mut Wire, buffer: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = read_until(wire, buffer, b"\r\n").await?;
        let size = std::str::from_utf8(&buffer[..end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        buffer.drain(..end + 2);
        let size = size.ok_or(io::ErrorKind::InvalidData)?;
        body.extend(read_exact(wire, buffer, size).await?);
        read_exact(wire, buffer, 2).await?;
        if size == 0 {
            return Ok(body);
        }
    }
}

/// Returns the position of `mark` in the buffer.
async fn read_until(wire: &mut Wire, buffer: &mut Vec<u8>, mark: &[u8]) -> io::Result<usize> {
    loop {
        if let Some(at) = buffer.windows(mark.len()).position(|window| window == mark) {
            return Ok(at);
        }
        if wire.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn read_exact(wire: &mut Wire, buffer: &mut Vec<u8>, length: usize) -> io::Result<Vec<u8>> {
    read_part(wire, buffer, length).await?;
    if buffer.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(buffer.drain(..length).collect())
}
