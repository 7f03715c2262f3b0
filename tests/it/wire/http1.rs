//! A hand-written HTTP/1.1 server, up to the point where it breaks.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::peer::{Counts, ELSEWHERE, Fault, Wire};

/// Bytes of a body to read before the exchange breaks in its middle.
const PART: usize = 32 * 1024;

pub(super) async fn serve(mut stream: impl Wire, fault: Fault, counts: &Counts) -> io::Result<()> {
    match fault {
        Fault::CloseOnAccept => return Ok(()),
        Fault::NeverRead => return std::future::pending().await,
        _ => {}
    }
    let mut buffer = Vec::new();
    let length = read_head(&mut stream, &mut buffer).await?;
    match fault {
        Fault::ActOnHead => {
            counts.acted();
            return Ok(());
        }
        Fault::CloseMidUpload => return read_body(&mut stream, &mut buffer, PART.min(length / 2)).await,
        Fault::EarlyAnswer(status) => {
            read_body(&mut stream, &mut buffer, PART.min(length / 2)).await?;
            let head = format!("HTTP/1.1 {status} Early\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
            stream.write_all(head.as_bytes()).await?;
            stream.flush().await?;
            // Closing with unread bytes would send a reset, which may overtake the response. So
            // read until the client stops.
            return drain(&mut stream).await;
        }
        Fault::InterimThenAnswer | Fault::InterimThenClose => {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        _ => {}
    }
    read_body(&mut stream, &mut buffer, length).await?;
    counts.arrived();
    if fault != Fault::Redirect(307) {
        counts.acted();
    }
    answer(&mut stream, fault).await
}

async fn answer(stream: &mut impl Wire, fault: Fault) -> io::Result<()> {
    let json = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let text = match fault {
        Fault::Answer(status) => format!("HTTP/1.1 {status} Status\r\ncontent-length: 2\r\n\r\n{{}}"),
        Fault::Redirect(status) => {
            format!("HTTP/1.1 {status} Status\r\nlocation: {ELSEWHERE}\r\ncontent-length: 2\r\n\r\n{{}}")
        }
        Fault::InterimThenAnswer | Fault::AnswerThenClose => format!("{json}content-length: 2\r\n\r\n{{}}"),
        Fault::BadJson => format!("{json}content-length: 4\r\n\r\n{{no}}"),
        Fault::CutLength | Fault::StallMidBody => format!("{json}content-length: 10\r\n\r\n{{\"a\":"),
        Fault::CutChunked => format!("{json}transfer-encoding: chunked\r\n\r\n5\r\n{{\"a\":\r\n"),
        Fault::CutHead => "HTTP/1.1 200 OK\r\ncontent-le".to_owned(),
        Fault::Garbage => "I am not HTTP\r\n\r\n".to_owned(),
        _ => String::new(),
    };
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await?;
    match fault {
        Fault::StallAfterRequest | Fault::StallMidBody => std::future::pending().await,
        // The connection stays open until the client closes it.
        Fault::Answer(_) | Fault::Redirect(_) | Fault::InterimThenAnswer | Fault::BadJson => drain(stream).await,
        // Over TLS, an orderly end; the socket is closed right after.
        _ => stream.shutdown().await,
    }
}

/// Reads to the end of the head, and returns the length of the body.
async fn read_head(stream: &mut impl Wire, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).to_lowercase();
    buffer.drain(..end);
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    Ok(length.map_or(0, |length| length.parse().expect("a length is a number")))
}

async fn read_body(stream: &mut impl Wire, buffer: &mut Vec<u8>, length: usize) -> io::Result<()> {
    while buffer.len() < length {
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

async fn drain(stream: &mut impl Wire) -> io::Result<()> {
    let mut buffer = vec![0; PART];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}
