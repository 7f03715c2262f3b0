//! How far the request got: a body that notices when the transport takes it.
//!
//! When an attempt times out or the connection closes, the error alone does not say whether anything had left. The body does:
//! the transport asks for it only once it has a connection to write to. A body that was never asked for was never sent, and
//! nor was the request in front of it, so the attempt is `NotProcessed` for every method. The bytes on the wire are unchanged.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

const UNTOUCHED: u8 = 0;
const TAKEN: u8 = 1;
const FAILED: u8 = 2;

/// What the body of one attempt has seen.
#[derive(Clone, Debug)]
pub(super) struct Probe(Arc<AtomicU8>);

impl Probe {
    /// `body`, watched.
    pub(super) fn watch(body: reqwest::Body) -> (reqwest::Body, Self) {
        let probe = Self(Arc::new(AtomicU8::new(UNTOUCHED)));
        (reqwest::Body::wrap(Watched { body, probe: probe.clone() }), probe)
    }

    /// The transport has asked for the body: a part of the request may have left.
    pub(super) fn taken(&self) -> bool {
        self.0.load(Ordering::Acquire) != UNTOUCHED
    }

    /// The body itself failed, on our side.
    pub(super) fn failed(&self) -> bool {
        self.0.load(Ordering::Acquire) == FAILED
    }
}

struct Watched {
    body: reqwest::Body,
    probe: Probe,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
        // Release: whoever reads the mark after the transport's task has ended sees it.
        self.probe.0.store(TAKEN, Ordering::Release);
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(Some(Err(_)))) {
            self.probe.0.store(FAILED, Ordering::Release);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(body: &mut reqwest::Body) -> Option<Bytes> {
        let frame = Pin::new(body).poll_frame(&mut Context::from_waker(std::task::Waker::noop()));
        match frame {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
            _ => None,
        }
    }

    #[test]
    fn notices_when_it_is_taken_and_changes_nothing() {
        let (mut body, probe) = Probe::watch("hello".into());
        assert_eq!(body.size_hint().exact(), Some(5));
        assert!(!body.is_end_stream());
        assert!(!probe.taken());
        assert_eq!(poll(&mut body).as_deref(), Some(&b"hello"[..]));
        assert!(probe.taken() && !probe.failed());
        assert!(body.is_end_stream());
    }

    #[test]
    fn a_body_that_was_dropped_was_not_taken() {
        let (body, probe) = Probe::watch("hello".into());
        drop(body);
        assert!(!probe.taken());
    }
}
