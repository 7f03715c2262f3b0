//! The request's body, kept so that it can be sent again, or known to be gone.
//!
//! Bytes are kept and given to each attempt anew. A stream or a plain multipart form exists once: such a request gets exactly
//! one attempt, which says so, instead of a second one that is silently empty.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::Body;

#[derive(Default)]
pub(super) enum Payload {
    #[default]
    Empty,
    Bytes(Bytes),
    /// `None` once it was sent.
    Once(Option<reqwest::Body>),
}

impl Payload {
    /// Whether it can be sent a second time.
    pub(super) fn is_replayable(&self) -> bool {
        !matches!(self, Self::Once(_))
    }

    /// What a resume token compares; `None` for a stream.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Empty => Some(&[]),
            Self::Bytes(bytes) => Some(bytes),
            Self::Once(_) => None,
        }
    }

    /// The body of the next attempt.
    pub(super) fn next(&mut self) -> Option<reqwest::Body> {
        match self {
            Self::Empty => None,
            Self::Bytes(bytes) => Some(bytes.clone().into()),
            Self::Once(body) => body.take(),
        }
    }
}

impl From<reqwest::Body> for Payload {
    fn from(mut body: reqwest::Body) -> Self {
        match body.as_bytes() {
            None => Self::Once(Some(body)),
            Some([]) => Self::Empty,
            // Its one frame is the bytes themselves: taken out this way they are not copied.
            Some(_) => match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(Ok(frame))) => frame.into_data().map_or(Self::Empty, Self::Bytes),
                _ => Self::Once(Some(body)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_kept_without_a_copy_and_streams_are_sent_once() {
        let bytes = Bytes::from_static(b"hello");
        let mut payload = Payload::from(reqwest::Body::from(bytes.clone()));
        assert!(payload.is_replayable());
        assert_eq!(payload.bytes().map(<[u8]>::as_ptr), Some(bytes.as_ptr()));
        for _ in 0..3 {
            assert_eq!(payload.next().as_ref().and_then(reqwest::Body::as_bytes), Some(&b"hello"[..]));
        }

        let mut stream = Payload::from(reqwest::Body::wrap(reqwest::Body::from("hello")));
        assert!(!stream.is_replayable() && stream.bytes().is_none());
        assert!(stream.next().is_some() && stream.next().is_none());

        assert!(matches!(Payload::from(reqwest::Body::from("")), Payload::Empty));
    }
}
