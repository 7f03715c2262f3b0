//! What came back: the head, and as much of the body as belongs to the attempt.
//!
//! A body that was asked for is read inside the attempt, up to a limit; of an error's body the beginning is kept. What is not kept
//! is read away, so that the connection can carry the next attempt.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};

use super::ending;
use crate::clock::{self, Deadline};
use crate::error::BoxError;
use crate::policy::Failure;

/// As much of an error's body is kept for the error, or read away to keep the connection.
const ERROR_BODY: usize = 64 * 1024;
/// As long may an error's body take.
const ERROR_BODY_TIME: Duration = Duration::from_millis(500);

/// How much of the answer belongs to the attempt.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "json"), allow(dead_code, reason = "only `fetch` reads whole bodies"))]
pub(super) enum Read {
    /// The head; the body is the caller's stream.
    Head,
    /// The head and the whole body, at most `limit` decoded bytes.
    Whole { limit: usize },
}

/// What the server answered.
#[cfg_attr(not(feature = "json"), allow(dead_code, reason = "only `fetch` reads whole bodies"))]
pub(super) enum AttemptResponse {
    /// `begun`: the beginning of the body, where the assessment depends on it.
    Head {
        response: reqwest::Response,
        begun: Bytes,
    },
    Whole {
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
        over_limit: bool,
    },
}

impl AttemptResponse {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Head { response, .. } => response.status(),
            Self::Whole { status, .. } => *status,
        }
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        match self {
            Self::Head { response, .. } => response.headers(),
            Self::Whole { headers, .. } => headers,
        }
    }

    /// As much of the body as was read inside the attempt.
    pub(super) fn begun(&self) -> &[u8] {
        match self {
            Self::Head { begun, .. } => begun,
            Self::Whole { body, .. } => body,
        }
    }
}

/// How the attempt failed.
pub(super) struct AttemptError {
    pub(super) failure: Failure,
    pub(super) timed_out: bool,
    /// The head of the answer, where it had arrived.
    pub(super) head: Option<Box<(StatusCode, HeaderMap)>>,
    /// Whether the transport had taken a part of the request's body; `None` where there was none to watch.
    pub(super) taken: Option<bool>,
    pub(super) source: Option<BoxError>,
}

/// The head of the answer, if it arrived; a body that was cut later had one.
pub(super) fn head(attempted: &Result<AttemptResponse, AttemptError>) -> Option<(StatusCode, &HeaderMap)> {
    match attempted {
        Ok(answer) => Some((answer.status(), answer.headers())),
        Err(failed) => failed.head.as_deref().map(|(status, headers)| (*status, headers)),
    }
}

// A future keeps what it is given for as long as it lives, so a response that is passed on by value is kept at every floor. Here
// it is lent.

/// The body that belongs to the attempt: of a success the whole, at most `limit` bytes of it, and cut short it is a failure; of an
/// error what [`read_error`] would read.
#[allow(
    clippy::manual_async_fn,
    reason = "an async fn holds each argument twice, and this is held by every operation in flight"
)]
pub(super) fn read(
    response: &mut reqwest::Response,
    has_body: bool,
    until: &mut Deadline<'_>,
    limit: usize,
) -> impl Future<Output = Result<AttemptResponse, AttemptError>> {
    async move {
        let is_error = !response.status().is_success();
        if is_error {
            until.set(soon(until.at()));
        }
        let mut collected = collect(response, until, if is_error { ERROR_BODY } else { limit }).await;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        if let Collected::Whole(body) = &mut collected
            && ending::is_cut(response, has_body)
        {
            let (body, source) = (std::mem::take(body), Some(ending::cut_short()));
            collected = Collected::Cut { body, timed_out: false, source };
        }
        match collected {
            Collected::Whole(body) => Ok(AttemptResponse::Whole { status, headers, body, over_limit: false }),
            Collected::OverLimit(body) => Ok(AttemptResponse::Whole { status, headers, body, over_limit: !is_error }),
            Collected::Cut { body, .. } if is_error => {
                Ok(AttemptResponse::Whole { status, headers, body, over_limit: false })
            }
            Collected::Cut { timed_out, source, .. } => Err(AttemptError {
                failure: Failure::BodyCut,
                timed_out,
                head: Some(Box::new((status, headers))),
                taken: None,
                source,
            }),
        }
    }
}

fn soon(until: Option<Instant>) -> Option<Instant> {
    clock::earlier(until, clock::now().checked_add(ERROR_BODY_TIME))
}

/// The body of an error: kept as far as it arrives soon, since the status has already decided.
pub(super) async fn read_error(response: &mut reqwest::Response, until: &mut Deadline<'_>) -> AttemptResponse {
    let end = until.at();
    until.set(soon(end));
    let (Collected::Whole(body) | Collected::OverLimit(body) | Collected::Cut { body, .. }) =
        collect(response, until, ERROR_BODY).await;
    until.set(end);
    let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
    AttemptResponse::Whole { status, headers, body, over_limit: false }
}

/// As [`read_error`], of a response that has left its attempt.
pub(super) async fn read_error_of(mut response: reqwest::Response, until: Option<Instant>) -> AttemptResponse {
    let timer = pin!(clock::timer(until));
    read_error(&mut response, &mut Deadline::new(until, timer)).await
}

enum Collected {
    Whole(Bytes),
    OverLimit(Bytes),
    Cut { body: Bytes, timed_out: bool, source: Option<BoxError> },
}

#[allow(
    clippy::manual_async_fn,
    reason = "an async fn holds each argument twice, and this is held by every operation in flight"
)]
fn collect(
    response: &mut reqwest::Response,
    until: &mut Deadline<'_>,
    limit: usize,
) -> impl Future<Output = Collected> {
    async move {
        let mut body = Chunks::default();
        loop {
            match until.bound(response.chunk()).await {
                Ok(Ok(Some(chunk))) if body.len() + chunk.len() > limit => {
                    body.push(chunk.slice(..limit - body.len()));
                    return Collected::OverLimit(body.into_bytes());
                }
                Ok(Ok(Some(chunk))) => {
                    body.push(chunk);
                    if is_read(response) {
                        return Collected::Whole(body.into_bytes());
                    }
                }
                Ok(Ok(None)) => return Collected::Whole(body.into_bytes()),
                Ok(Err(error)) => {
                    let timed_out = error.is_timeout();
                    return Collected::Cut {
                        body: body.into_bytes(),
                        timed_out,
                        source: Some(error.without_url().into()),
                    };
                }
                Err(clock::TimedOut) => {
                    return Collected::Cut { body: body.into_bytes(), timed_out: true, source: None };
                }
            }
        }
    }
}

/// The length was announced and all of it is here, so there is no end to be waited for. With HTTP/2 the end is a frame of its own.
fn is_read(response: &reqwest::Response) -> bool {
    response.version() <= Version::HTTP_11 && response.content_length() == Some(0)
}

/// Most bodies arrive in one piece, which is then kept as it is.
#[derive(Default)]
struct Chunks {
    only: Bytes,
    many: Vec<u8>,
}

impl Chunks {
    fn len(&self) -> usize {
        self.only.len() + self.many.len()
    }

    fn push(&mut self, chunk: Bytes) {
        if self.len() == 0 {
            self.only = chunk;
            return;
        }
        if self.many.is_empty() {
            self.many.extend_from_slice(&std::mem::take(&mut self.only));
        }
        self.many.extend_from_slice(&chunk);
    }

    fn into_bytes(self) -> Bytes {
        if self.many.is_empty() { self.only } else { self.many.into() }
    }
}

/// Reads away the body of an answer that will be asked for again, so that its connection can carry the next attempt. What is
/// long or slow is left, and costs the connection.
pub(super) async fn discard(attempted: Result<AttemptResponse, AttemptError>, deadline: Option<Instant>) {
    if let Ok(AttemptResponse::Head { response, .. }) = attempted {
        let _answer = Box::pin(read_error_of(response, deadline)).await;
    }
}

/// Looks at the beginning of a body whose response the caller may still get: what was read is put in front of the rest.
pub(super) async fn peek(response: reqwest::Response, until: Option<Instant>) -> AttemptResponse {
    let soon = soon(until);
    let (parts, mut rest) = ending::apart(response);
    let (mut begun, mut error) = (Chunks::default(), None);
    while begun.len() < ERROR_BODY && error.is_none() {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx));
        match clock::until(soon, frame).await {
            Ok(Some(Ok(frame))) => begun.push(frame.into_data().unwrap_or_default()),
            Ok(Some(Err(failed))) => error = Some(failed),
            Ok(None) | Err(clock::TimedOut) => break,
        }
    }
    let begun = begun.into_bytes();
    let body = reqwest::Body::wrap(Begun { begun: begun.clone(), error, rest });
    AttemptResponse::Head { response: http::Response::from_parts(parts, body).into(), begun }
}

/// A body of which a part was read.
struct Begun {
    begun: Bytes,
    error: Option<reqwest::Error>,
    rest: reqwest::Body,
}

impl Body for Begun {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
        if !self.begun.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.begun)))));
        }
        if let Some(error) = self.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.begun.is_empty() && self.error.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let begun = u64::try_from(self.begun.len()).unwrap_or(u64::MAX);
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(begun));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(begun)) {
            hint.set_upper(upper);
        }
        hint
    }
}
