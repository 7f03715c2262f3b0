//! What the layer answers: the handler's answer, the stored one, or a problem of its own.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use steadfast_core::protocol::{IDEMPOTENCY_STATUS, IDEMPOTENT_REPLAYED, IdempotencyStatus, problem_type};
use tokio::sync::mpsc;

use super::layer::ExecutionOutcome;
use super::store::Record;

pin_project! {
    /// The body of an answer that has passed the layer.
    #[derive(Debug)]
    pub struct ResponseBody<B: Body> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = Projected]
    #[derive(Debug)]
    enum Kind<B: Body> {
        /// Bytes in memory.
        Whole { bytes: Bytes, trailers: Option<Box<HeaderMap>> },
        /// The inner service's own, for requests that pass by.
        Passed { #[pin] body: B },
        /// The inner service's own, read by the operation's task, so that it goes on if the client hangs up.
        Pumped { pieces: mpsc::Receiver<Piece>, ended: bool, size: SizeHint },
    }
}

/// A frame of a body on its way from the operation's task to the connection; `None` is its end, so that a task that is gone cannot
/// pass for one that has finished.
pub(super) type Piece = Result<Option<Frame<Bytes>>, BodyError>;

/// A body failed before its end.
#[derive(Debug, thiserror::Error)]
#[error("the answer's body failed before its end: {0}")]
pub struct BodyError(#[source] pub(super) Box<dyn std::error::Error + Send + Sync>);

impl<B: Body> ResponseBody<B> {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self::with_trailers(bytes, None)
    }

    pub(super) fn with_trailers(bytes: Bytes, trailers: Option<Box<HeaderMap>>) -> Self {
        Self { kind: Kind::Whole { bytes, trailers } }
    }

    pub(super) fn passed(body: B) -> Self {
        Self { kind: Kind::Passed { body } }
    }

    pub(super) fn pumped(pieces: mpsc::Receiver<Piece>, size: SizeHint) -> Self {
        Self { kind: Kind::Pumped { pieces, ended: false, size } }
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
                let piece = ready!(pieces.poll_recv(cx)).unwrap_or_else(|| Err(BodyError("its task is gone".into())));
                *ended = !matches!(piece, Ok(Some(_)));
                Poll::Ready(piece.transpose())
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole { bytes, trailers } => bytes.is_empty() && trailers.is_none(),
            Kind::Passed { body } => body.is_end_stream(),
            Kind::Pumped { ended, .. } => *ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole { bytes, .. } => SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            Kind::Passed { body } => body.size_hint(),
            // What was taken out since is not known here; a length that is announced once is not asked for again.
            Kind::Pumped { size, .. } => *size,
        }
    }
}

/// Puts the status on an answer: `stored;retention=86400;scope="/v1"`.
pub(super) fn put_status<B>(status: IdempotencyStatus, response: &mut Response<B>, terms: &Terms) {
    // A prefix that is no header value is not told.
    let value = HeaderValue::try_from([status.word(), &terms.retention, &terms.scope].concat());
    response.headers_mut().insert(IDEMPOTENCY_STATUS, value.unwrap_or(HeaderValue::from_static(status.word())));
}

/// What is told beside each word, and is the same for all: for how long a key is kept, and for which paths. Written once per layer.
#[derive(Clone)]
pub(super) struct Terms {
    retention: String,
    scope: String,
}

impl Terms {
    pub(super) fn new(retention: Duration) -> Self {
        Self { retention: format!(";retention={}", retention.as_secs()), scope: String::new() }
    }

    pub(super) fn covering(&mut self, prefix: &str) {
        self.scope = format!(";scope=\"{prefix}\"");
    }

    pub(super) fn keeping(&mut self, retention: Duration) {
        self.retention = Self::new(retention).retention;
    }
}

/// The stored answer, or what is left of it. Whoever delivers an event again wants to know that it was handled and not what was said.
pub(super) fn replay<B: Body>(record: Record, of_event: bool) -> Response<ResponseBody<B>> {
    let (status, headers, body) = record.into_parts();
    let Some(body) = body.or(of_event.then(Bytes::new)) else {
        let mut response = Rejection::AnswerNotKept(status).response();
        response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        return response;
    };
    let mut response = Response::new(ResponseBody::whole(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    response
}

/// Why the layer answers itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rejection {
    KeyMissing,
    KeyMalformed(&'static str),
    EventIdMissing,
    NoCaller,
    BodyTooLarge(usize),
    BodyBroken,
    /// With the status that is stored under the key, if it is a 4xx.
    OtherRequest(Option<StatusCode>),
    InProgress,
    OutcomeUnknown,
    AnswerNotKept(StatusCode),
    StoreUnavailable,
    StoreFull,
    RecordUnreadable,
    HandlerFailed,
    HandlerTimedOut,
    TransactionLost,
    RolledBack,
    DeadlinePassed,
}

impl Rejection {
    fn kind(self) -> &'static str {
        match self {
            Self::KeyMissing => problem_type::KEY_MISSING,
            Self::KeyMalformed(_) => problem_type::KEY_MALFORMED,
            Self::EventIdMissing => problem_type::EVENT_ID_MISSING,
            Self::NoCaller => problem_type::NO_CALLER,
            Self::BodyTooLarge(_) => problem_type::BODY_TOO_LARGE,
            Self::BodyBroken => problem_type::BODY_BROKEN,
            Self::OtherRequest(_) => problem_type::OTHER_REQUEST,
            Self::InProgress => problem_type::IN_PROGRESS,
            Self::OutcomeUnknown => problem_type::OUTCOME_UNKNOWN,
            Self::AnswerNotKept(_) => problem_type::ANSWER_NOT_KEPT,
            Self::StoreUnavailable | Self::StoreFull => problem_type::STORE_UNAVAILABLE,
            Self::RecordUnreadable => problem_type::RECORD_UNREADABLE,
            Self::HandlerFailed => problem_type::HANDLER_FAILED,
            Self::HandlerTimedOut => problem_type::HANDLER_TIMED_OUT,
            Self::TransactionLost => problem_type::TRANSACTION_LOST,
            Self::RolledBack => problem_type::ROLLED_BACK,
            Self::DeadlinePassed => problem_type::DEADLINE_PASSED,
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::KeyMissing | Self::KeyMalformed(_) | Self::EventIdMissing | Self::BodyBroken => {
                StatusCode::BAD_REQUEST
            }
            Self::NoCaller => StatusCode::FORBIDDEN,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::OtherRequest(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::InProgress | Self::OutcomeUnknown => StatusCode::CONFLICT,
            Self::AnswerNotKept(_) => StatusCode::GONE,
            Self::StoreUnavailable | Self::StoreFull | Self::RolledBack | Self::DeadlinePassed => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::RecordUnreadable | Self::HandlerFailed | Self::HandlerTimedOut | Self::TransactionLost => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::KeyMissing => "This request needs an Idempotency-Key",
            Self::KeyMalformed(_) => "The Idempotency-Key cannot be read",
            Self::EventIdMissing => "The delivery has no event id",
            Self::NoCaller => "Keys belong to a caller, and there is none",
            Self::BodyTooLarge(_) => "The body is too large for a request with a key",
            Self::BodyBroken => "The body did not arrive whole",
            Self::OtherRequest(_) => "The Idempotency-Key belongs to another request",
            Self::InProgress => "The first request under this key still runs",
            Self::OutcomeUnknown => "A request under this key may have run, and nobody knows how it ended",
            Self::AnswerNotKept(_) => "The operation has ended, and its answer was not kept",
            Self::StoreUnavailable => "Keys cannot be checked now; nothing was executed",
            Self::StoreFull => "No more keys can be taken now; nothing was executed",
            Self::RecordUnreadable => "The record of this key cannot be read",
            Self::HandlerFailed => "The handler failed, and it is not known how far it came",
            Self::HandlerTimedOut => "The handler took longer than it may, and it is not known how far it came",
            Self::DeadlinePassed => "The caller waits for less time than this takes; nothing was executed",
            Self::RolledBack => "The database rolled the transaction back; nothing of it was kept",
            Self::TransactionLost => {
                "The handler's transaction could not be ended; asked again under this key, it tells or runs"
            }
        }
    }

    fn detail(self) -> Option<String> {
        match self {
            Self::KeyMalformed(reason) => Some(reason.to_owned()),
            Self::BodyTooLarge(most) => Some(format!("at most {most} bytes")),
            Self::AnswerNotKept(status) => Some(format!("it was {}", status.as_u16())),
            // What a client runs into that corrects a request and keeps its key.
            Self::OtherRequest(Some(status)) => Some(format!(
                "a stored 4xx holds this key: its request was answered {}; send the corrected one under a new key",
                status.as_u16()
            )),
            _ => None,
        }
    }

    /// Seconds, where coming back helps.
    fn retry_after(self) -> Option<&'static str> {
        let helps = matches!(self, Self::InProgress | Self::StoreUnavailable | Self::StoreFull | Self::RolledBack);
        helps.then_some("1")
    }

    /// What an idempotency layer outside of this one is told. Unmarked, it would store this answer
    /// for a day.
    fn verdict(self) -> Option<ExecutionOutcome> {
        match self {
            Self::KeyMissing
            | Self::KeyMalformed(_)
            | Self::EventIdMissing
            | Self::NoCaller
            | Self::BodyTooLarge(_)
            | Self::BodyBroken
            | Self::OtherRequest(_)
            | Self::InProgress
            | Self::StoreUnavailable
            | Self::StoreFull
            | Self::RolledBack
            | Self::DeadlinePassed => Some(ExecutionOutcome::NotExecuted),
            Self::OutcomeUnknown
            | Self::RecordUnreadable
            | Self::HandlerFailed
            | Self::HandlerTimedOut
            | Self::TransactionLost => Some(ExecutionOutcome::Unknown),
            // It was executed, and this is what is left to be said of it.
            Self::AnswerNotKept(_) => None,
        }
    }

    pub(super) fn response<B: Body>(self) -> Response<ResponseBody<B>> {
        let status = self.status();
        let mut members = serde_json::json!({ "type": self.kind(), "title": self.title(), "status": status.as_u16() });
        if let (Some(detail), Some(members)) = (self.detail(), members.as_object_mut()) {
            members.insert("detail".to_owned(), detail.into());
        }
        let mut response = Response::new(ResponseBody::whole(members.to_string().into()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if let Some(verdict) = self.verdict() {
            response.extensions_mut().insert(verdict);
        }
        response
    }
}
