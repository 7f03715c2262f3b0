//! Detects whether a request was sent, by watching when the transport reads its body.
//!
//! After a timeout or a closed connection, the error alone does not tell whether anything was sent.
//! The body does, because the transport reads it only once it has a connection to write to. Over
//! HTTP/1 the head and the first part of the body are written together. So if the body was never
//! read, nothing was sent, and the attempt is `NotProcessed` for every method. The bytes on the
//! wire are unchanged.
//!
//! This does not hold over HTTP/2, where the transport takes the head first and sends it some
//! microseconds before it reads the body. A request that waits for a free stream
//! (`SETTINGS_MAX_CONCURRENT_STREAMS`) sends its head when there is one, even if its caller has
//! left.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

use crate::error::BoxError;

/// The transport has not read the body.
const UNREAD: u8 = 0;
/// The transport has read a part of the body, or may send the request without reading it.
const TAKEN: u8 = 1;
/// The body itself has failed.
const FAILED: u8 = 2;
/// The attempt has ended before the body was read. Reading it now is an error.
const SEALED: u8 = 3;

/// Watches the body of one attempt.
#[derive(Clone, Debug)]
pub(super) struct SendProbe {
    state: Arc<AtomicU8>,
    /// The connection can only be HTTP/1.
    is_http1: bool,
}

impl SendProbe {
    /// Wraps a body. `headers` are those of its request.
    pub(super) fn watch(body: reqwest::Body, headers: &HeaderMap, is_http1: bool) -> (reqwest::Body, Self) {
        let initial = if is_sure_to_be_read(&body, headers) { UNREAD } else { TAKEN };
        let probe = Self { state: Arc::new(AtomicU8::new(initial)), is_http1 };
        (reqwest::Body::wrap(Watched { body, probe: probe.clone() }), probe)
    }

    /// Returns whether the transport has read from the body, so that a part of the request may have
    /// been sent.
    pub(super) fn taken(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), TAKEN | FAILED)
    }

    /// Returns whether the connection can only be HTTP/1. Then an unread body means that the head
    /// was not sent either.
    pub(super) fn is_http1(&self) -> bool {
        self.is_http1
    }

    /// Seals the body, and returns whether the transport had not read it.
    ///
    /// The transport's task may be about to read it, on another thread. From now on that is an
    /// error, so that a request which was called "not sent" stays so.
    pub(super) fn seal(&self) -> bool {
        let sealed = self.state.compare_exchange(UNREAD, SEALED, Ordering::AcqRel, Ordering::Acquire);
        matches!(sealed, Ok(_) | Err(SEALED))
    }

    /// Returns whether the body itself has failed, on this side.
    pub(super) fn failed(&self) -> bool {
        self.state.load(Ordering::Acquire) == FAILED
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

/// Returns whether the transport is sure to read this body. It does not read one that is empty, or
/// empty by its header. Nor does it read one of unknown length for a GET, or for a server of
/// HTTP/1.0. So only a body of known length is evidence.
fn is_sure_to_be_read(body: &reqwest::Body, headers: &HeaderMap) -> bool {
    let Some(length) = body.size_hint().exact().filter(|length| *length > 0) else { return false };
    let is_same = |value: &http::HeaderValue| value.to_str().is_ok_and(|value| value.parse() == Ok(length));
    !body.is_end_stream() && headers.get_all(CONTENT_LENGTH).iter().all(is_same)
}

struct Watched {
    body: reqwest::Body,
    probe: SendProbe,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // Release, so that it is seen by those who read it after the transport's task has ended.
        let before = self.probe.state.compare_exchange(UNREAD, TAKEN, Ordering::AcqRel, Ordering::Acquire);
        if before == Err(SEALED) {
            return Poll::Ready(Some(Err("the attempt had ended before its body was asked for".into())));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(Some(Err(_)))) {
            self.probe.state.store(FAILED, Ordering::Release);
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
    fn probe_notices_a_read_and_changes_no_bytes() {
        let (mut body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), true);
        assert_eq!(body.size_hint().exact(), Some(5));
        assert!(!body.is_end_stream());
        assert!(!probe.taken());
        assert_eq!(poll(&mut body).as_deref(), Some(&b"hello"[..]));
        assert!(probe.taken() && !probe.failed());
        assert!(body.is_end_stream());
    }

    #[test]
    fn dropped_body_was_not_taken() {
        let (body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), true);
        drop(body);
        assert!(!probe.taken() && probe.seal());
    }

    #[test]
    fn dropped_attempt_seals_its_body() {
        let (mut body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), false);
        drop(SealOnDrop(None));
        drop(SealOnDrop(Some(&probe)));
        assert_eq!(poll(&mut body), None);
        assert!(!probe.taken() && !probe.failed());
    }

    #[test]
    fn sealed_body_is_not_sent_later() {
        let (mut body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), true);
        assert!(probe.seal() && probe.seal());
        assert_eq!(poll(&mut body), None);
        assert!(!probe.taken() && !probe.failed());

        let (mut body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), true);
        assert!(poll(&mut body).is_some());
        assert!(!probe.seal(), "too late");
    }

    #[test]
    fn body_that_need_not_be_read_counts_as_taken() {
        for body in [reqwest::Body::from(""), reqwest::Body::wrap(Unmeasured)] {
            assert!(SendProbe::watch(body, &HeaderMap::new(), true).1.taken());
        }
        for (length, taken) in [("0", true), ("5", false), ("05", false), ("five", true)] {
            let headers = [(CONTENT_LENGTH, length.parse().unwrap())].into_iter().collect();
            assert_eq!(SendProbe::watch("hello".into(), &headers, true).1.taken(), taken, "{length}");
        }
    }
}
