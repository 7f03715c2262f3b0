//! Reads the part of a response's body that belongs to the attempt.
//!
//! `fetch` reads the whole body inside the attempt, up to a limit. The beginning of an error body
//! is kept. A body without a reader is drained, so that its connection can carry the next attempt.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};

use super::attempt_result::{AttemptError, AttemptResponse, AttemptResult};
use super::ending;
use crate::clock::{self, SharedTimer};
use crate::error::BoxError;
use crate::policy::Failure;

/// Maximum number of bytes of an error body that are kept, or drained to keep the connection.
const MAX_ERROR_BODY: usize = 64 * 1024;
/// Time limit for reading an error body.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_millis(500);

const ERROR_LIMITS: ReadLimits<'_> = ReadLimits { bytes: MAX_ERROR_BODY, pause: None };

/// How much of the response belongs to the attempt.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReadMode {
    /// The head. The body is a stream for the caller.
    Head,
    /// The head and the whole body, at most `limit` decoded bytes.
    Whole { limit: usize },
}

/// The limits of reading one body.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadLimits<'a> {
    pub(super) bytes: usize,
    /// The longest pause.
    pub(super) pause: Option<&'a Duration>,
}

/// Reads the body of a response: at most `limits.bytes` of a success, and of an error what
/// [`read_error`] reads. A success that is cut short is a failure.
// The response is borrowed, since each future that owns an argument makes those around it larger.
pub(super) async fn read_whole(
    response: &mut reqwest::Response,
    has_body: bool,
    until: &mut SharedTimer<'_>,
    limits: ReadLimits<'_>,
) -> Result<AttemptResponse, AttemptError> {
    let is_error = !response.status().is_success();
    if is_error {
        until.set(error_body_deadline(until.at()));
    }
    let limits = if is_error { ERROR_LIMITS } else { limits };
    let mut collected = collect(response, until, limits).await;
    let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
    if let Collected::Whole(body) = &mut collected
        && ending::is_cut(response, has_body)
    {
        let (body, source) = (std::mem::take(body), Some(ending::cut_error()));
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
            body_was_taken: None,
            source,
        }),
    }
}

fn error_body_deadline(until: Option<Instant>) -> Option<Instant> {
    clock::earlier(until, clock::now().checked_add(ERROR_BODY_TIMEOUT))
}

/// Reads the body of an error as far as it arrives soon, since the status has already decided.
pub(super) async fn read_error(response: &mut reqwest::Response, until: &mut SharedTimer<'_>) -> AttemptResponse {
    let end = until.at();
    until.set(error_body_deadline(end));
    let (Collected::Whole(body) | Collected::OverLimit(body) | Collected::Cut { body, .. }) =
        collect(response, until, ERROR_LIMITS).await;
    until.set(end);
    let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
    AttemptResponse::Whole { status, headers, body, over_limit: false }
}

/// Reads the body of an error, as [`read_error`] does, after the attempt has ended.
pub(super) async fn read_error_of(mut response: reqwest::Response, until: Option<Instant>) -> AttemptResponse {
    let timer = pin!(clock::timer(until));
    read_error(&mut response, &mut SharedTimer::new(until, timer)).await
}

enum Collected {
    Whole(Bytes),
    OverLimit(Bytes),
    Cut { body: Bytes, timed_out: bool, source: Option<BoxError> },
}

async fn collect(response: &mut reqwest::Response, until: &mut SharedTimer<'_>, limits: ReadLimits<'_>) -> Collected {
    let ReadLimits { bytes: limit, pause } = limits;
    let mut body = Chunks::default();
    loop {
        let next = match pause {
            None => until.bound(response.chunk()).await,
            // Boxed, because few operations have this limit.
            Some(pause) => match Box::pin(chunk_without_pause(response, until, *pause)).await {
                Ok(next) => next,
                Err(Paused) => {
                    return Collected::Cut { body: body.into_bytes(), timed_out: true, source: Some(PAUSED.into()) };
                }
            },
        };
        match next {
            Ok(Ok(Some(chunk))) if body.len() + chunk.len() > limit => {
                body.push(chunk.slice(..limit - body.len()));
                return Collected::OverLimit(body.into_bytes());
            }
            Ok(Ok(Some(chunk))) => {
                body.push(chunk);
                if is_fully_read(response) {
                    return Collected::Whole(body.into_bytes());
                }
            }
            Ok(Ok(None)) => return Collected::Whole(body.into_bytes()),
            Ok(Err(error)) => {
                let timed_out = error.is_timeout();
                return Collected::Cut { body: body.into_bytes(), timed_out, source: Some(error.without_url().into()) };
            }
            Err(clock::TimedOut) => {
                return Collected::Cut { body: body.into_bytes(), timed_out: true, source: None };
            }
        }
    }
}

/// The error of a body that paused for longer than the `read_timeout`.
pub(super) const PAUSED: &str = "no part of the response body arrived within the read_timeout";

/// The longest pause has passed, before the end of the attempt.
struct Paused;

type Chunk = reqwest::Result<Option<Bytes>>;

/// Reads the next part of a body, if it arrives before the longest pause.
async fn chunk_without_pause(
    response: &mut reqwest::Response,
    until: &mut SharedTimer<'_>,
    pause: Duration,
) -> Result<Result<Chunk, clock::TimedOut>, Paused> {
    let end = until.at();
    let pause_ends = clock::now().checked_add(pause);
    until.set(clock::earlier(end, pause_ends));
    let next = until.bound(response.chunk()).await;
    until.set(end);
    let is_pause = pause_ends.is_some_and(|pause| end.is_none_or(|end| pause < end));
    if next.is_err() && is_pause { Err(Paused) } else { Ok(next) }
}

/// Returns whether all bytes of an announced length have arrived, so that there is no end to wait
/// for. With HTTP/2 the end is a frame of its own.
fn is_fully_read(response: &reqwest::Response) -> bool {
    response.version() <= Version::HTTP_11 && response.content_length() == Some(0)
}

/// Collects a body. One that arrives in one piece, as most do, is not copied.
#[derive(Default)]
pub(super) struct Chunks {
    single: Bytes,
    joined: Vec<u8>,
}

impl Chunks {
    pub(super) fn len(&self) -> usize {
        self.single.len() + self.joined.len()
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        if self.len() == 0 {
            self.single = chunk;
            return;
        }
        if self.joined.is_empty() {
            self.joined.extend_from_slice(&std::mem::take(&mut self.single));
        }
        self.joined.extend_from_slice(&chunk);
    }

    pub(super) fn into_bytes(self) -> Bytes {
        if self.joined.is_empty() { self.single } else { self.joined.into() }
    }
}

/// Drains the body of a response before the next attempt, so that the connection can carry that
/// one. A long or slow body is left, and costs the connection.
// It takes the whole result by value, which keeps the loop's future smaller.
pub(super) async fn drain(result: AttemptResult, deadline: Option<Instant>) {
    if let Ok(AttemptResponse::Head { response, .. }) = result.outcome {
        let _drained = Box::pin(read_error_of(response, deadline)).await;
    }
}

/// Reads the beginning of a body, and puts it back in front of the rest: the caller may still get
/// the response.
pub(super) async fn peek(response: reqwest::Response, until: Option<Instant>) -> AttemptResponse {
    let soon = error_body_deadline(until);
    let (parts, mut rest) = ending::into_parts(response);
    let (mut prefix, mut error) = (Chunks::default(), None);
    while prefix.len() < MAX_ERROR_BODY && error.is_none() {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx));
        match clock::until(soon, frame).await {
            Ok(Some(Ok(frame))) => prefix.push(frame.into_data().unwrap_or_default()),
            Ok(Some(Err(failed))) => error = Some(failed),
            Ok(None) | Err(clock::TimedOut) => break,
        }
    }
    let prefix = prefix.into_bytes();
    let body = reqwest::Body::wrap(Peeked { prefix: prefix.clone(), error, rest });
    AttemptResponse::Head { response: http::Response::from_parts(parts, body).into(), prefix }
}

/// A body whose first bytes were read ahead.
struct Peeked {
    prefix: Bytes,
    error: Option<reqwest::Error>,
    rest: reqwest::Body,
}

impl Body for Peeked {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
        if !self.prefix.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.prefix)))));
        }
        if let Some(error) = self.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.prefix.is_empty() && self.error.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let prefix = u64::try_from(self.prefix.len()).unwrap_or(u64::MAX);
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(prefix));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(prefix)) {
            hint.set_upper(upper);
        }
        hint
    }
}
