//! Detects whether a request was sent, by watching when the transport reads its body.
//!
//! After a timeout or a closed connection, the error alone does not tell whether anything was sent.
//! The body does, because the transport reads it only once it has a connection to write to. Over
//! HTTP/1 the head and the first part of the body are written together. So if the body was never
//! read, nothing was sent, and the attempt is `NotProcessed` for every method. The bytes on the
//! wire are unchanged.
//!
//! A long body is handed out in small pieces, so that its progress can be seen. The transport asks
//! for a further piece once it has written most of the earlier ones, and the system has taken them.
//!
//! "Not read, not sent" does not hold over HTTP/2, where the transport takes the head first and sends it some
//! microseconds before it reads the body. A request that waits for a free stream
//! (`SETTINGS_MAX_CONCURRENT_STREAMS`) sends its head when there is one, even if its caller has
//! left.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

use crate::clock;
use crate::error::BoxError;

/// The longest piece of a body that is handed out at once: the payload of an HTTP/2 frame (RFC 9113
/// §6.5.2), and a sixteenth of what hyper queues before it waits for a write.
pub(super) const PIECE: usize = 16 * 1024;

/// The transport has not read the body.
const UNREAD: u8 = 0;
/// The transport has read a part of the body, or may send the request without reading it.
const TAKEN: u8 = 1;
/// The body itself has failed.
const FAILED: u8 = 2;
/// The attempt has ended before the body was read. Reading it now is an error.
const SEALED: u8 = 3;
/// The transport has read a long body to its end.
const WHOLE: u8 = 4;

/// Watches the body of one attempt.
#[derive(Clone, Debug)]
pub(super) struct SendProbe {
    // One word, because each operation in flight holds it.
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: AtomicU8,
    /// The connection can only be HTTP/1.
    is_http1: bool,
    /// `None` if the body does not know its length.
    total: Option<u64>,
    /// The end of the operation.
    deadline: Option<Instant>,
    /// Set at the first piece of a long body, as are the others.
    began: OnceLock<Instant>,
    bytes: AtomicU64,
    /// Microseconds from `began` to the last piece.
    moved: AtomicU64,
}

/// How much of a long body the transport has taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) bytes: u64,
    pub(super) total: Option<u64>,
    pub(super) began: Instant,
    /// When the last piece was taken.
    pub(super) last: Instant,
    pub(super) is_whole: bool,
}

impl SendProbe {
    /// Wraps a body. `headers` are those of its request, and `deadline` is the end of its operation.
    pub(super) fn watch(
        body: reqwest::Body,
        headers: &HeaderMap,
        is_http1: bool,
        deadline: Option<Instant>,
    ) -> (reqwest::Body, Self) {
        let initial = if is_sure_to_be_read(&body, headers) { UNREAD } else { TAKEN };
        let shared = Shared {
            state: AtomicU8::new(initial),
            is_http1,
            total: body.size_hint().exact().or_else(|| said_length(headers)),
            deadline,
            began: OnceLock::new(),
            bytes: AtomicU64::new(0),
            moved: AtomicU64::new(0),
        };
        let probe = Self { shared: Arc::new(shared) };
        (reqwest::Body::wrap(Watched { body, probe: probe.clone(), rest: Bytes::new() }), probe)
    }

    /// Returns whether the body is more than one piece, or may be.
    pub(super) fn is_long(&self) -> bool {
        self.shared.total.is_none_or(|total| total > PIECE as u64)
    }

    /// Returns how much of a long body the transport has taken. Returns `None` before the first
    /// piece, and for a short body.
    pub(super) fn sent(&self) -> Option<Sent> {
        let began = *self.shared.began.get()?;
        let moved = Duration::from_micros(self.shared.moved.load(Ordering::Acquire));
        let bytes = self.shared.bytes.load(Ordering::Relaxed);
        // Over HTTP/1 hyper asks no more once the announced length is there.
        let has_all = self.shared.total.is_some_and(|total| bytes >= total);
        Some(Sent {
            bytes,
            total: self.shared.total,
            began,
            last: began.checked_add(moved).unwrap_or(began),
            is_whole: has_all || self.state() == WHOLE,
        })
    }

    /// Records that the transport has taken a piece of a long body.
    fn moved(&self, bytes: usize) {
        let now = clock::now();
        let began = *self.shared.began.get_or_init(|| now);
        let time = now.saturating_duration_since(began).as_micros();
        self.shared.bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.shared.moved.store(u64::try_from(time).unwrap_or(u64::MAX), Ordering::Release);
    }

    fn state(&self) -> u8 {
        self.shared.state.load(Ordering::Acquire)
    }

    /// Returns whether the transport has read from the body, so that a part of the request may have
    /// been sent.
    pub(super) fn taken(&self) -> bool {
        matches!(self.state(), TAKEN | FAILED | WHOLE)
    }

    /// Returns whether the connection can only be HTTP/1. Then an unread body means that the head
    /// was not sent either.
    pub(super) fn is_http1(&self) -> bool {
        self.shared.is_http1
    }

    /// Returns the end of the operation.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.shared.deadline
    }

    /// Seals the body, and returns whether the transport had not read it.
    ///
    /// The transport's task may be about to read it, on another thread. From now on that is an
    /// error, so that a request which was called "not sent" stays so.
    pub(super) fn seal(&self) -> bool {
        let sealed = self.shared.state.compare_exchange(UNREAD, SEALED, Ordering::AcqRel, Ordering::Acquire);
        matches!(sealed, Ok(_) | Err(SEALED))
    }

    /// Returns whether the body itself has failed, on this side.
    pub(super) fn failed(&self) -> bool {
        self.state() == FAILED
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

fn said_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

struct Watched {
    body: reqwest::Body,
    probe: SendProbe,
    /// The part of a frame that is not handed out yet.
    rest: Bytes,
}

impl Watched {
    /// Hands out the next piece of a long body.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => {
                    self.end();
                    return Poll::Ready(None);
                }
                Some(Err(error)) => {
                    self.probe.shared.state.store(FAILED, Ordering::Release);
                    return Poll::Ready(Some(Err(error.into())));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => {
                        self.end();
                        return Poll::Ready(Some(Ok(trailers)));
                    }
                },
            }
        }
        let piece = if self.rest.len() > PIECE { self.rest.split_to(PIECE) } else { std::mem::take(&mut self.rest) };
        if !piece.is_empty() {
            self.probe.moved(piece.len());
        }
        if self.is_end_stream() {
            self.end();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn end(&self) {
        self.probe.shared.state.store(WHOLE, Ordering::Release);
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // Release, so that it is seen by those who read it after the transport's task has ended.
        let before = self.probe.shared.state.compare_exchange(UNREAD, TAKEN, Ordering::AcqRel, Ordering::Acquire);
        if before == Err(SEALED) {
            return Poll::Ready(Some(Err("the attempt had ended before its body was asked for".into())));
        }
        if self.probe.is_long() {
            return self.poll_piece(cx);
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(Some(Err(_)))) {
            self.probe.shared.state.store(FAILED, Ordering::Release);
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.size_hint();
        if self.rest.is_empty() { hint } else { longer(&hint, self.rest.len()) }
    }
}

/// Returns the size hint of a body with `bytes` before it.
fn longer(hint: &SizeHint, bytes: usize) -> SizeHint {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    let mut longer = SizeHint::new();
    longer.set_lower(hint.lower().saturating_add(bytes));
    if let Some(upper) = hint.upper().and_then(|upper| upper.checked_add(bytes)) {
        longer.set_upper(upper);
    }
    longer
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
        let (mut body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), true, None);
        assert_eq!(body.size_hint().exact(), Some(5));
        assert!(!body.is_end_stream());
        assert!(!probe.taken());
        assert_eq!(poll(&mut body).as_deref(), Some(&b"hello"[..]));
        assert!(probe.taken() && !probe.failed());
        assert!(body.is_end_stream());
    }

    #[test]
    fn long_body_is_taken_in_pieces() {
        let bytes: Bytes = (0..PIECE * 2 + 5).map(|n| n.to_le_bytes()[0]).collect::<Vec<_>>().into();
        let (mut body, probe) = SendProbe::watch(bytes.clone().into(), &HeaderMap::new(), true, None);
        assert!(probe.is_long() && probe.sent().is_none() && !probe.taken());
        let mut taken = Vec::new();
        for (piece, is_whole) in [(PIECE, false), (PIECE, false), (5, true)] {
            assert_eq!(body.size_hint().exact(), Some((bytes.len() - taken.len()) as u64));
            assert!(!body.is_end_stream());
            let next = poll(&mut body).unwrap();
            taken.extend_from_slice(&next);
            let sent = probe.sent().unwrap();
            assert_eq!((next.len(), sent.bytes, sent.is_whole), (piece, taken.len() as u64, is_whole));
            assert_eq!(sent.total, Some(bytes.len() as u64));
        }
        assert!(body.is_end_stream() && probe.taken() && taken == bytes);
        assert_eq!(poll(&mut body), None);
    }

    #[test]
    fn short_body_has_no_progress() {
        let (mut body, probe) = SendProbe::watch(vec![0; PIECE].into(), &HeaderMap::new(), true, None);
        assert_eq!(poll(&mut body).map(|piece| piece.len()), Some(PIECE));
        assert!(!probe.is_long() && probe.taken() && probe.sent().is_none());
    }

    #[test]
    fn dropped_body_was_not_taken() {
        let (body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), true, None);
        drop(body);
        assert!(!probe.taken() && probe.seal());
    }

    #[test]
    fn dropped_attempt_seals_its_body() {
        let (mut body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), false, None);
        drop(SealOnDrop(None));
        drop(SealOnDrop(Some(&probe)));
        assert_eq!(poll(&mut body), None);
        assert!(!probe.taken() && !probe.failed());
    }

    #[test]
    fn sealed_body_is_not_sent_later() {
        let (mut body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), true, None);
        assert!(probe.seal() && probe.seal());
        assert_eq!(poll(&mut body), None);
        assert!(!probe.taken() && !probe.failed());

        let (mut body, probe) = SendProbe::watch("hello".into(), &HeaderMap::new(), true, None);
        assert!(poll(&mut body).is_some());
        assert!(!probe.seal(), "too late");
    }

    #[test]
    fn body_that_need_not_be_read_counts_as_taken() {
        for body in [reqwest::Body::from(""), reqwest::Body::wrap(Unmeasured)] {
            assert!(SendProbe::watch(body, &HeaderMap::new(), true, None).1.taken());
        }
        for (length, taken) in [("0", true), ("5", false), ("05", false), ("five", true)] {
            let headers = [(CONTENT_LENGTH, length.parse().unwrap())].into_iter().collect();
            assert_eq!(SendProbe::watch("hello".into(), &headers, true, None).1.taken(), taken, "{length}");
        }
    }
}
