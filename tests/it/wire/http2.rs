//! A hand-written HTTP/2 server (RFC 9113), frame by frame: a library would not send these frames.

use std::io;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::peer::{Counts, ELSEWHERE, Fault, Wire};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const ACK: u8 = 1;

/// Bytes of a body to read before the exchange breaks in its middle.
const PART: usize = 32 * 1024;

pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    payload: Vec<u8>,
}

pub(super) async fn serve(mut wire: impl Wire, fault: Fault, counts: &Counts) -> io::Result<()> {
    match fault {
        Fault::CloseOnAccept => return Ok(()),
        Fault::NeverRead => return std::future::pending().await,
        _ => {}
    }
    let mut preface = [0; 24];
    wire.read_exact(&mut preface).await?;
    // SETTINGS_MAX_CONCURRENT_STREAMS is 3, SETTINGS_INITIAL_WINDOW_SIZE is 4.
    let settings: &[u8] = match fault {
        Fault::OneStream => &[0, 3, 0, 0, 0, 1],
        Fault::NoWindow => &[0, 4, 0, 0, 0, 0],
        _ => &[],
    };
    send(&mut wire, SETTINGS, 0, 0, settings).await?;
    let mut body = 0;
    loop {
        let frame = read(&mut wire).await?;
        match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => send(&mut wire, SETTINGS, ACK, 0, &[]).await?,
            PING if frame.flags & ACK == 0 => send(&mut wire, PING, ACK, 0, &frame.payload).await?,
            DATA => body += frame.payload.len(),
            HEADERS => {
                counts.heads.fetch_add(1, Ordering::SeqCst);
                counts.head.notify_one();
                if fault == Fault::ActOnHead {
                    counts.acted();
                    return Ok(());
                }
            }
            _ => {}
        }
        let begun = matches!(frame.kind, DATA | HEADERS);
        if begun && body >= PART && early(&mut wire, fault, frame.stream).await? {
            return Ok(());
        }
        if begun && frame.flags & END_STREAM != 0 {
            counts.arrived();
            if fault == Fault::OneStream && counts.received() == 2 {
                counts.free.notified().await;
            }
            if acts(fault) {
                counts.acted();
            }
            if answer(&mut wire, fault, frame.stream).await? {
                return Ok(());
            }
        }
    }
}

/// Acts in the middle of an upload. Returns `true` if the connection ends.
async fn early(wire: &mut impl Wire, fault: Fault, stream: u32) -> io::Result<bool> {
    match fault {
        Fault::CloseMidUpload => Ok(true),
        Fault::EarlyAnswer(status) => {
            send(wire, HEADERS, END_HEADERS | END_STREAM, stream, &status_line(status)).await?;
            // RFC 9113 §8.1: NO_ERROR may follow an early response, and means "stop sending".
            send(wire, RST_STREAM, 0, stream, &0_u32.to_be_bytes()).await?;
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// Returns whether the server executes the request before it breaks.
fn acts(fault: Fault) -> bool {
    match fault {
        Fault::ResetStream { acted, .. } => acted,
        Fault::GoAway { last } => last > 0,
        Fault::Redirect(status) => status != 307,
        _ => true,
    }
}

/// Acts on a whole request. Returns `true` if the connection ends.
async fn answer(wire: &mut impl Wire, fault: Fault, stream: u32) -> io::Result<bool> {
    let head = |status| status_line(status);
    match fault {
        Fault::Answer(_) | Fault::OneStream | Fault::NoWindow => {
            let status = if let Fault::Answer(status) = fault { status } else { 200 };
            send(wire, HEADERS, END_HEADERS, stream, &head(status)).await?;
            send(wire, DATA, END_STREAM, stream, b"{}").await?;
        }
        Fault::Redirect(status) => {
            let mut head = head(status);
            // `location`, literal without indexing; the name is number 46 of the static table.
            head.extend_from_slice(&[0x0f, 31, u8::try_from(ELSEWHERE.len()).expect("it is short")]);
            head.extend_from_slice(ELSEWHERE.as_bytes());
            send(wire, HEADERS, END_HEADERS, stream, &head).await?;
            send(wire, DATA, END_STREAM, stream, b"{}").await?;
        }
        Fault::BadJson => {
            send(wire, HEADERS, END_HEADERS, stream, &head(200)).await?;
            send(wire, DATA, END_STREAM, stream, b"{no}").await?;
        }
        Fault::InterimThenAnswer => {
            send(wire, HEADERS, END_HEADERS, stream, &head(100)).await?;
            send(wire, HEADERS, END_HEADERS, stream, &head(200)).await?;
            send(wire, DATA, END_STREAM, stream, b"{}").await?;
        }
        Fault::InterimThenClose => {
            send(wire, HEADERS, END_HEADERS, stream, &head(100)).await?;
            return Ok(true);
        }
        Fault::CutChunked | Fault::CutLength | Fault::StallMidBody => {
            let mut head = head(200);
            if fault == Fault::CutLength {
                head.extend(content_length(10));
            }
            send(wire, HEADERS, END_HEADERS, stream, &head).await?;
            send(wire, DATA, 0, stream, b"{\"a\":").await?;
            return if fault == Fault::StallMidBody { std::future::pending().await } else { Ok(true) };
        }
        Fault::CutHead => {
            // A HEADERS frame that announces more bytes than it has.
            wire.write_all(&[0, 0, 10, HEADERS, END_HEADERS, 0, 0, 0, 1, 0x88]).await?;
            wire.flush().await?;
            return Ok(true);
        }
        Fault::Garbage => {
            wire.write_all(b"I am not HTTP, and long enough for a frame header\r\n\r\n").await?;
            wire.flush().await?;
            return Ok(true);
        }
        Fault::ResetBody | Fault::GoAwayBody => {
            let head = [head(200), content_length(10)].concat();
            send(wire, HEADERS, END_HEADERS, stream, &head).await?;
            send(wire, DATA, 0, stream, b"{\"a\":").await?;
            if fault == Fault::GoAwayBody {
                // No stream was processed; 0 is NO_ERROR.
                send(wire, GOAWAY, 0, 0, &[0; 8]).await?;
                return Ok(true);
            }
            send(wire, RST_STREAM, 0, stream, &[0; 4]).await?;
        }
        Fault::ResetStream { code, .. } => send(wire, RST_STREAM, 0, stream, &code.to_be_bytes()).await?,
        Fault::GoAway { last } => {
            let payload = [last.to_be_bytes(), 0_u32.to_be_bytes()].concat();
            send(wire, GOAWAY, 0, 0, &payload).await?;
            return Ok(true);
        }
        Fault::StallAfterRequest => return std::future::pending().await,
        _ => return Ok(true),
    }
    Ok(false)
}

/// `:status`, HPACK-encoded as a literal without indexing; the name is number 8 of the static
/// table.
pub(super) fn status_line(status: u16) -> Vec<u8> {
    let mut line = vec![0x08, 3];
    line.extend_from_slice(status.to_string().as_bytes());
    line
}

/// `content-length`, HPACK-encoded as a literal without indexing; the name is number 28 of the
/// static table.
pub(super) fn content_length(length: usize) -> Vec<u8> {
    let digits = length.to_string();
    let mut line = vec![0x0f, 13, u8::try_from(digits.len()).expect("a short number")];
    line.extend_from_slice(digits.as_bytes());
    line
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("frames are short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

pub(super) async fn send(wire: &mut impl Wire, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
    wire.write_all(&frame(kind, flags, stream, payload)).await?;
    wire.flush().await
}

pub(super) async fn read(wire: &mut impl Wire) -> io::Result<Frame> {
    let mut head = [0; 9];
    wire.read_exact(&mut head).await?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let mut payload = vec![0; length];
    wire.read_exact(&mut payload).await?;
    let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
    Ok(Frame { kind: head[3], flags: head[4], stream, payload })
}
