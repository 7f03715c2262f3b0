//! Reading bodies: as one piece, for a fingerprint or a record; or frame by frame, on to the
//! client.

use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use steadfast_core::clock;
use tokio::sync::mpsc;

use super::poll::poll_once;
use super::response_body::{BodyError, Piece};

/// The trailers of a body. Boxed, because few bodies have any.
pub(super) type Trailers = Option<Box<HeaderMap>>;

/// Why a body is not whole.
#[derive(Debug)]
pub(super) enum Cut {
    /// It is longer than the limit.
    TooLong,
    /// It failed before its end.
    Failed,
}

/// Reads a whole body and its trailers, up to `most` bytes.
///
/// A single piece is kept without a copy. Several are copied, because each may be one byte that
/// keeps a whole buffer alive. Memory is allocated for received bytes, not for an announced length:
/// a peer can announce anything.
pub(super) async fn whole<B: Body>(mut body: Pin<&mut B>, most: usize) -> Result<(Bytes, Trailers), Cut> {
    let (mut first, mut all) = (Bytes::new(), Vec::new());
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        let mut data = match frame.map_err(|_| Cut::Failed)?.into_data() {
            Ok(data) => data,
            Err(other) => {
                trailers = joined(trailers, other);
                continue;
            }
        };
        let (so_far, length) = (first.len() + all.len(), data.remaining());
        if length > most - so_far {
            return Err(Cut::TooLong);
        }
        match length {
            0 => {}
            _ if so_far == 0 => first = data.copy_to_bytes(length),
            _ => {
                all.extend_from_slice(&std::mem::take(&mut first));
                all.put(data);
            }
        }
    }
    // Boxed, the allocation is exactly as long as the body. A record keeps it for a day.
    Ok((if all.is_empty() { first } else { all.into_boxed_slice().into() }, trailers))
}

fn joined<D>(trailers: Trailers, frame: Frame<D>) -> Trailers {
    let Ok(more) = frame.into_trailers() else { return trailers };
    let mut all = trailers.unwrap_or_default();
    all.extend(more);
    Some(all)
}

/// The handler's body failed before its end.
pub(super) struct BodyFailed;

/// The client's end of a streamed body. A client that does not read is cut off: it would hold the
/// claim of its key, and keep a shutdown waiting.
pub(super) struct Reader {
    /// `None` after the client was cut off.
    pieces: Option<mpsc::Sender<Piece>>,
    patience: Duration,
}

impl Reader {
    pub(super) fn new(pieces: mpsc::Sender<Piece>, patience: Duration) -> Self {
        Self { pieces: Some(pieces), patience }
    }

    /// Waits until there is place for a piece, and passes it on. A client that has disconnected
    /// gets nothing.
    pub(super) async fn send(&mut self, piece: Piece) {
        let Some(pieces) = &self.pieces else { return };
        let patience = self.patience;
        let in_time = {
            let mut sending = pin!(pieces.send(piece));
            // Most clients read, and need no timer.
            match poll_once(sending.as_mut()).await {
                Poll::Ready(_hung_up) => true,
                Poll::Pending => clock::until(clock::now().checked_add(patience), sending).await.is_ok(),
            }
        };
        if !in_time {
            tracing::warn!(target: "steadfast", ?patience, "a client did not read its response, and was cut off");
            self.pieces = None;
        }
    }
}

/// Passes on every frame, to the end even if the client has disconnected. If the length is known,
/// the frame that completes it is returned instead, with all frames after it: from that frame the
/// client sees the end.
pub(super) async fn pump<R>(body: R, reader: &mut Reader) -> Result<Vec<Frame<Bytes>>, BodyFailed>
where
    R: Body<Data = Bytes>,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut left = body.size_hint().exact();
    let mut body = pin!(body);
    let mut last = Vec::new();
    while let Some(frame) = body.frame().await {
        let length = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
        left = left.map(|left| left.saturating_sub(u64::try_from(length).unwrap_or(u64::MAX)));
        match frame {
            Ok(frame) if left == Some(0) => last.push(frame),
            Ok(frame) => reader.send(Ok(Some(frame))).await,
            Err(error) => {
                reader.send(Err(BodyError(error.into()))).await;
                return Err(BodyFailed);
            }
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::pin;
    use std::task::{Context, Poll};

    use futures_util::stream;
    use http_body::SizeHint;
    use http_body_util::StreamBody;

    use super::*;

    type Piece = Result<Frame<Bytes>, Infallible>;

    fn data(text: &'static str) -> Piece {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    fn trailer(name: &'static str, value: &'static str) -> Piece {
        let mut trailers = HeaderMap::new();
        trailers.insert(name, value.parse().unwrap());
        Ok(Frame::trailers(trailers))
    }

    async fn of(pieces: Vec<Piece>, most: usize) -> Result<(Bytes, Trailers), Cut> {
        whole(pin!(StreamBody::new(stream::iter(pieces))), most).await
    }

    /// A body that announces more bytes than any memory holds.
    struct Boastful<B>(B);

    impl<B: Body + Unpin> Body for Boastful<B> {
        type Data = B::Data;
        type Error = B::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
            Pin::new(&mut self.0).poll_frame(cx)
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(u64::MAX)
        }
    }

    #[tokio::test]
    async fn pieces_are_joined_and_trailers_kept() {
        for (pieces, expected) in [
            (vec![], ""),
            (vec![data("")], ""),
            (vec![data("abc")], "abc"),
            (vec![data(""), data("a"), data(""), data("bc"), data("d")], "abcd"),
        ] {
            let (body, trailers) = of(pieces, 4).await.unwrap();
            assert_eq!((&body[..], trailers), (expected.as_bytes(), None));
        }
        let (body, trailers) = of(vec![data("a"), trailer("x", "1"), trailer("y", "2")], 4).await.unwrap();
        let trailers = trailers.unwrap();
        assert_eq!(
            (&body[..], trailers.len(), &trailers["x"], &trailers["y"]),
            (&b"a"[..], 2, &"1".parse().unwrap(), &"2".parse().unwrap())
        );
    }

    #[tokio::test]
    async fn body_over_the_limit_is_too_long() {
        for pieces in [vec![data("abcde")], vec![data("abcd"), data("e")], vec![data("a"), data("bcd"), data("e")]] {
            assert!(matches!(of(pieces, 4).await, Err(Cut::TooLong)));
        }
    }

    #[tokio::test]
    async fn limit_of_zero_allows_an_empty_body() {
        assert!(of(vec![data(""), trailer("x", "1")], 0).await.unwrap().0.is_empty());
        assert!(matches!(of(vec![data("a")], 0).await, Err(Cut::TooLong)));
    }

    #[tokio::test]
    async fn announced_length_allocates_nothing() {
        let body = Boastful(StreamBody::new(stream::iter([data("a"), data("b")])));
        assert_eq!(&whole(pin!(body), usize::MAX).await.unwrap().0[..], b"ab");
    }

    #[tokio::test]
    async fn failed_piece_fails_the_body() {
        let pieces = stream::iter([Ok(Frame::data(Bytes::from_static(b"a"))), Err("cut")]);
        assert!(matches!(whole(pin!(StreamBody::new(pieces)), 4).await, Err(Cut::Failed)));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_reader_that_stands_still_is_cut_off() {
        let (sender, mut pieces) = mpsc::channel(1);
        let mut reader = Reader::new(sender, Duration::from_secs(10));
        let slow = tokio::spawn(async move {
            for number in 0..10 {
                assert!(pieces.recv().await.is_some(), "{number}");
                clock::sleep(Duration::from_secs(9)).await;
            }
            (pieces.recv().await, pieces)
        });
        for _ in 0..11 {
            reader.send(Ok(None)).await;
        }
        let (last, mut pieces) = slow.await.unwrap();
        assert!(last.is_some() && reader.pieces.is_some());
        let begun = clock::now();
        for _ in 0..3 {
            reader.send(Ok(None)).await;
        }
        assert_eq!(clock::now() - begun, Duration::from_secs(10), "it waits once");
        assert!(pieces.recv().await.is_some() && pieces.recv().await.is_none(), "one was sent before");
    }

    #[tokio::test]
    async fn single_piece_is_not_copied() {
        let piece = Bytes::from(vec![1; 100]);
        for after in [vec![], vec![data("")]] {
            let pieces = [data(""), Ok(Frame::data(piece.clone()))].into_iter().chain(after).collect();
            let (body, _) = of(pieces, 100).await.unwrap();
            assert_eq!(body.as_ptr(), piece.as_ptr());
        }
    }
}
