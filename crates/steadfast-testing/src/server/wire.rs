//! A connection that counts its bytes, has two writers, and can end in ways that an HTTP library
//! avoids.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::act::How;
#[cfg(feature = "tls")]
use super::tls::Encrypted;

/// The first bytes of every HTTP/2 connection (RFC 9113 §3.4). No HTTP/1.1 method begins with these
/// four.
const PREFACE: &[u8] = b"PRI ";

/// Byte counts over all connections of a server, without what TLS adds.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub(super) read: AtomicU64,
    pub(super) written: AtomicU64,
}

/// A handle to a connection, which ends when its last handle is dropped.
#[derive(Clone)]
pub(super) struct Wire {
    stream: Stream,
    meter: Arc<Meter>,
    /// Bytes read in advance, to detect the protocol.
    ahead: Vec<u8>,
}

#[derive(Clone)]
enum Stream {
    Plain(Arc<TcpStream>),
    #[cfg(feature = "tls")]
    Tls(Encrypted),
}

impl Wire {
    pub(super) fn new(stream: TcpStream, meter: Arc<Meter>) -> Self {
        Self { stream: Stream::Plain(Arc::new(stream)), meter, ahead: Vec::new() }
    }

    /// Makes the handshake of TLS. Returns an error if the client refuses the certificate.
    #[cfg(feature = "tls")]
    pub(super) async fn encrypted(self, acceptor: &tokio_rustls::TlsAcceptor) -> io::Result<Self> {
        let Stream::Plain(stream) = self.stream else { return Ok(self) };
        let stream = Arc::into_inner(stream).ok_or(io::ErrorKind::ResourceBusy)?;
        let stream = Stream::Tls(Encrypted::accept(acceptor, stream).await?);
        Ok(Self { stream, meter: self.meter, ahead: Vec::new() })
    }

    /// Whether the client speaks HTTP/2, by its first bytes.
    pub(super) async fn speaks_http2(&mut self) -> io::Result<bool> {
        let mut first = Vec::new();
        while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
            let missing = PREFACE.len() - first.len();
            if (&mut *self).take(missing as u64).read_buf(&mut first).await? == 0 {
                break;
            }
        }
        let http2 = first.starts_with(PREFACE);
        self.ahead = first;
        Ok(http2)
    }

    /// Ends the connection in the middle of a request, without reading another byte.
    pub(super) async fn end_early(self, how: How) {
        if how == How::Stall {
            return std::future::pending().await;
        }
        self.end(how).await;
    }

    /// Ends the connection. The owners of other handles must drop them.
    pub(super) async fn end(mut self, how: How) {
        match how {
            How::Close | How::Garbage => self.stream.close().await,
            How::Reset => {
                // If the socket is already gone, there is nothing to reset.
                let _gone = self.stream.reset_when_dropped();
            }
            How::Stall => {
                let mut nothing = [0; 4096];
                while matches!(self.read(&mut nothing).await, Ok(read) if read > 0) {}
            }
        }
    }
}

impl Stream {
    /// Announces the end, where a protocol has a word for it. The last handle closes the socket.
    async fn close(&mut self) {
        match self {
            Self::Plain(_) => {}
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.close().await,
        }
    }

    fn reset_when_dropped(&self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.set_zero_linger(),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.reset_when_dropped(),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = match self {
            Self::Plain(stream) => stream,
            #[cfg(feature = "tls")]
            Self::Tls(stream) => return stream.poll_read(cx, buffer),
        };
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = match self {
            Self::Plain(stream) => stream,
            #[cfg(feature = "tls")]
            Self::Tls(stream) => return stream.poll_write(cx, bytes),
        };
        loop {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let length = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..length]);
            self.ahead.drain(..length);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(self.stream.poll_read(cx, buffer))?;
        self.meter.read.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(self.stream.poll_write(cx, bytes))?;
        self.meter.written.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    #[cfg_attr(not(feature = "tls"), allow(unused_variables, unused_mut, reason = "only TLS has a buffer"))]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(_) => Poll::Ready(Ok(())),
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.poll_flush(cx),
        }
    }

    /// Does nothing: the connection closes when its last handle is dropped.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
