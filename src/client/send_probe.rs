//! How far the request got: a body that notices when the transport takes it.
//!
//! When an attempt times out or the connection closes, the error alone does not say whether anything had left. The body does:
//! the transport asks for it only once it has a connection to write to. Over HTTP/1 the head and the first of the body are written together,
//! so where the body was never asked for nothing was sent, and the attempt is `NotProcessed` for every method. The bytes on the wire are
//! unchanged.
//!
//! Over HTTP/2 it is not so. The head is handed over first: it goes out some microseconds before
//! the body is asked for, and while the request waits for a free stream
//! (`SETTINGS_MAX_CONCURRENT_STREAMS`) it goes out when there is one, even if by then nobody waits
//! for the answer.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

use crate::error::BoxError;

const UNTOUCHED: u8 = 0;
const TAKEN: u8 = 1;
const FAILED: u8 = 2;
const SEALED: u8 = 3;

/// What the body of one attempt has seen.
#[derive(Clone, Debug)]
pub(super) struct SendProbe {
    mark: Arc<AtomicU8>,
    /// Nothing but HTTP/1 can be spoken here.
    is_http1: bool,
}

impl SendProbe {
    /// `body`, watched; `headers` are the request's.
    pub(super) fn watch(body: reqwest::Body, headers: &HeaderMap, is_http1: bool) -> (reqwest::Body, Self) {
        let at_first = if is_asked_for(&body, headers) { UNTOUCHED } else { TAKEN };
        let probe = Self { mark: Arc::new(AtomicU8::new(at_first)), is_http1 };
        (reqwest::Body::wrap(Watched { body, probe: probe.clone() }), probe)
    }

    /// The transport has asked for the body: a part of the request may have left.
    pub(super) fn taken(&self) -> bool {
        matches!(self.mark.load(Ordering::Acquire), TAKEN | FAILED)
    }

    /// Returns whether nothing but HTTP/1 can be spoken here: "the body was not asked for" then
    /// means that the head was not sent either.
    pub(super) fn is_http1(&self) -> bool {
        self.is_http1
    }

    /// The transport has not asked for the body, and from now on it would ask in vain: its task may be about to, on another
    /// thread, and what was called "not sent" must stay so.
    pub(super) fn seal(&self) -> bool {
        let sealed = self.mark.compare_exchange(UNTOUCHED, SEALED, Ordering::AcqRel, Ordering::Acquire);
        matches!(sealed, Ok(_) | Err(SEALED))
    }

    /// The body itself failed, on our side.
    pub(super) fn failed(&self) -> bool {
        self.mark.load(Ordering::Acquire) == FAILED
    }
}

/// Seals a body whose attempt is dropped, so that it is not sent afterwards.
pub(super) struct SealOnDrop<'a>(pub(super) Option<&'a SendProbe>);

impl Drop for SealOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(probe) = self.0 {
            probe.seal();
        }
    }
}

/// Whether the transport is sure to ask for this body. One that is empty, or is said to be, is never asked for: the head is the
/// whole request. Nor is one of unknown length by a GET or to a server of HTTP/1.0, so only a length can be relied on.
fn is_asked_for(body: &reqwest::Body, headers: &HeaderMap) -> bool {
    let Some(length) = body.size_hint().exact().filter(|length| *length > 0) else { return false };
    let as_long = |said: &http::HeaderValue| said.to_str().is_ok_and(|said| said.parse() == Ok(length));
    !body.is_end_stream() && headers.get_all(CONTENT_LENGTH).iter().all(as_long)
}

struct Watched {
    body: reqwest::Body,
    probe: SendProbe,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // Release: whoever reads the mark after the transport's task has ended sees it.
        let mark = self.probe.mark.compare_exchange(UNTOUCHED, TAKEN, Ordering::AcqRel, Ordering::Acquire);
        if mark == Err(SEALED) {
            return Poll::Ready(Some(Err("the attempt had ended before its body was asked for".into())));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(Some(Err(_)))) {
            self.probe.mark.store(FAILED, Ordering::Release);
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(BoxError::from)))
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

    /// A body that does not know its length.
    struct Unmeasured;

    impl Body for Unmeasured {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            Poll::Ready(None)
        }
    }

    #[test]
    fn notices_when_it_is_taken_and_changes_nothing() {
        let (mut body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), true);
        assert_eq!(body.size_hint().exact(), Some(5));
        assert!(!body.is_end_stream());
        assert!(!probe.taken());
        assert_eq!(poll(&mut body).as_deref(), Some(&b"hello"[..]));
        assert!(probe.taken() && !probe.failed());
        assert!(body.is_end_stream());
    }

    #[test]
    fn a_body_that_was_dropped_was_not_taken() {
        let (body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), true);
        drop(body);
        assert!(!probe.taken() && probe.seal());
    }

    #[test]
    fn a_body_whose_attempt_was_dropped_is_kept_back() {
        let (mut body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), false);
        drop(SealOnDrop(None));
        drop(SealOnDrop(Some(&probe)));
        assert_eq!(poll(&mut body), None);
        assert!(!probe.taken() && !probe.failed());
    }

    #[test]
    fn what_was_called_not_sent_is_not_sent_a_moment_later() {
        let (mut body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), true);
        assert!(probe.seal() && probe.seal());
        assert_eq!(poll(&mut body), None);
        assert!(!probe.taken() && !probe.failed());

        let (mut body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), true);
        assert!(poll(&mut body).is_some());
        assert!(!probe.seal(), "too late");
    }

    #[test]
    fn a_body_that_is_never_asked_for_tells_nothing() {
        for body in [reqwest::Body::from(""), reqwest::Body::wrap(Unmeasured)] {
            assert!(SendProbe::watch(body, &HeaderMap::new(), true).1.taken());
        }
        for (length, taken) in [("0", true), ("5", false), ("05", false), ("five", true)] {
            let headers = [(CONTENT_LENGTH, length.parse().unwrap())].into_iter().collect();
            assert_eq!(SendProbe::watch("hello".into(), &headers, true).1.taken(), taken, "{length}");
        }
    }
}
