//! The body of a response that has passed the layer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::sync::mpsc;

pin_project! {
    /// The body of a response that has passed the layer.
    #[derive(Debug)]
    pub struct ResponseBody<B: Body> {
        #[pin]
        kind: BodyKind<B>,
    }
}

pin_project! {
    #[project = Projected]
    #[derive(Debug)]
    enum BodyKind<B: Body> {
        /// Bytes in memory.
        Whole { bytes: Bytes, trailers: Option<Box<HeaderMap>> },
        /// The inner service's body, of a request that passed through.
        Passed { #[pin] body: B },
        /// The inner service's body, read by the operation's task, which continues if the client
        /// disconnects.
        Pumped { pieces: mpsc::Receiver<Piece>, ended: bool, size: SizeHint },
    }
}

/// A frame of a body on its way from the operation's task to the connection. `None` is the end.
/// Without it, a task that is gone would look like one that has finished.
pub(super) type Piece = Result<Option<Frame<Bytes>>, BodyError>;

/// A response body failed before its end.
#[derive(Debug, thiserror::Error)]
#[error("the response body failed before its end: {0}")]
pub struct BodyError(#[source] pub(super) Box<dyn std::error::Error + Send + Sync>);

impl<B: Body> ResponseBody<B> {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self::with_trailers(bytes, None)
    }

    pub(super) fn with_trailers(bytes: Bytes, trailers: Option<Box<HeaderMap>>) -> Self {
        Self { kind: BodyKind::Whole { bytes, trailers } }
    }

    pub(super) fn passed(body: B) -> Self {
        Self { kind: BodyKind::Passed { body } }
    }

    pub(super) fn pumped(pieces: mpsc::Receiver<Piece>, size: SizeHint) -> Self {
        Self { kind: BodyKind::Pumped { pieces, ended: false, size } }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.project().kind.project() {
            Projected::Whole { bytes, trailers } if bytes.is_empty() => {
                Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(*trailers))))
            }
            Projected::Whole { bytes, .. } => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Projected::Passed { body } => body.poll_frame(cx).map_err(|error| BodyError(error.into())),
            Projected::Pumped { ended: true, .. } => Poll::Ready(None),
            Projected::Pumped { pieces, ended, .. } => {
                let piece = ready!(pieces.poll_recv(cx)).unwrap_or_else(|| {
                    Err(BodyError("its task is gone, or the client did not read for too long".into()))
                });
                *ended = !matches!(piece, Ok(Some(_)));
                Poll::Ready(piece.transpose())
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            BodyKind::Whole { bytes, trailers } => bytes.is_empty() && trailers.is_none(),
            BodyKind::Passed { body } => body.is_end_stream(),
            BodyKind::Pumped { ended, .. } => *ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            BodyKind::Whole { bytes, .. } => SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            BodyKind::Passed { body } => body.size_hint(),
            // Frames that were already taken are not subtracted: the length is announced once, and
            // not read again.
            BodyKind::Pumped { size, .. } => *size,
        }
    }
}
