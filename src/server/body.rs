//! A body in one piece: what a fingerprint is taken of, and what a record keeps.

use std::pin::Pin;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};
use http_body_util::BodyExt;

/// A body is not whole.
#[derive(Debug)]
pub(super) enum Cut {
    /// It is longer than it may be.
    TooLong,
    /// It failed before its end.
    Failed,
}

/// All of it, and what follows it, up to so many bytes.
///
/// One piece is kept as it came. More are copied, since each may be a byte that keeps a whole buffer.
pub(super) async fn whole<B: Body>(mut body: Pin<&mut B>, most: usize) -> Result<(Bytes, Option<HeaderMap>), Cut> {
    let (mut first, mut all) = (Bytes::new(), BytesMut::new());
    let mut trailers: Option<HeaderMap> = None;
    while let Some(frame) = body.frame().await {
        let mut data = match frame.map_err(|_| Cut::Failed)?.into_data() {
            Ok(data) => data,
            Err(other) => {
                trailers = joined(trailers, other);
                continue;
            }
        };
        let length = data.remaining();
        let so_far = first.len() + all.len();
        if length > most - so_far {
            return Err(Cut::TooLong);
        }
        if so_far == 0 {
            first = data.copy_to_bytes(length);
            continue;
        }
        if all.is_empty() {
            let rest = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
            // A record keeps what is reserved here, so that it is to be as long as the body where that is known.
            all.reserve(so_far + length + rest.min(most - so_far - length));
            all.put(std::mem::take(&mut first));
        }
        all.put(data);
    }
    Ok((if all.is_empty() { first } else { all.freeze() }, trailers))
}

fn joined<D>(trailers: Option<HeaderMap>, frame: Frame<D>) -> Option<HeaderMap> {
    let Ok(more) = frame.into_trailers() else { return trailers };
    let mut all = trailers.unwrap_or_default();
    all.extend(more);
    Some(all)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::pin;

    use futures_util::stream;
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

    async fn of(pieces: Vec<Piece>, most: usize) -> Result<(Bytes, Option<HeaderMap>), Cut> {
        whole(pin!(StreamBody::new(stream::iter(pieces))), most).await
    }

    #[tokio::test]
    async fn pieces_become_one_and_trailers_come_with_it() {
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
    async fn one_byte_more_than_may_be_is_too_long_in_whatever_piece_it_is() {
        for pieces in [vec![data("abcde")], vec![data("abcd"), data("e")], vec![data("a"), data("bcd"), data("e")]] {
            assert!(matches!(of(pieces, 4).await, Err(Cut::TooLong)));
        }
    }

    #[tokio::test]
    async fn one_piece_is_not_copied() {
        let piece = Bytes::from(vec![1; 100]);
        let (body, _) = of(vec![Ok(Frame::data(piece.clone()))], 100).await.unwrap();
        assert_eq!(body.as_ptr(), piece.as_ptr());
    }
}
