//! The responses that the layer gives in the handler's place, as one table.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use steadfast_core::protocol::problem_type;

use super::outcome::ExecutionOutcome;
use super::store::StoreLimit;

const RETRY_AFTER_TIME: Duration = Duration::from_secs(1);

/// Why a layer responds in the handler's place.
///
/// A [`RejectionFormat`](crate::RejectionFormat) writes the response from it. [The
/// guide](https://docs.rs/steadfast/latest/steadfast/guide/problems/) has a section for each.
///
/// ```
/// use steadfast_server::Rejection;
///
/// let rejection = Rejection::InProgress;
/// assert_eq!(rejection.status(), 409);
/// assert!(rejection.problem_type().ends_with("#in-progress"));
/// assert!(rejection.retry_after().is_some());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// A key is required, and the request has none.
    KeyMissing,
    /// The key cannot be read, or there are two.
    #[non_exhaustive]
    KeyMalformed {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A delivery has no event id.
    EventIdMissing,
    /// The body ended before its length.
    BodyBroken,
    /// The [`Scope`](crate::Scope) found no caller.
    NoCaller,
    /// The first request under the key is still running.
    InProgress,
    /// A request under the key may have been executed, and its outcome is unknown.
    OutcomeUnknown,
    /// The operation has completed, and its response was not kept.
    #[non_exhaustive]
    AnswerNotKept {
        /// The status of the response.
        status: StatusCode,
    },
    /// The body is longer than [`max_body`](crate::IdempotencyLayer::max_body).
    #[non_exhaustive]
    BodyTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The key belongs to another request.
    #[non_exhaustive]
    OtherRequest {
        /// The status that is stored under the key, if it is a 4xx.
        stored_4xx: Option<StatusCode>,
    },
    /// The record of the key cannot be read.
    RecordUnreadable,
    /// The handler panicked or failed. Its outcome is unknown.
    HandlerFailed,
    /// The handler exceeded [`max_handler_time`](crate::IdempotencyLayer::max_handler_time). Its
    /// outcome is unknown.
    HandlerTimedOut,
    /// The outcome of the handler's transaction is unknown.
    TransactionLost,
    /// The store cannot be reached. Nothing was executed.
    StoreUnavailable,
    /// The store has no room or no free transaction. Nothing was executed.
    #[non_exhaustive]
    StoreFull {
        /// The limit that the store has reached.
        limit: StoreLimit,
    },
    /// As many handlers run as [`max_concurrency`](crate::IdempotencyLayer::max_concurrency)
    /// permits. Nothing was executed.
    #[non_exhaustive]
    TooManyRunning {
        /// The number of handlers that may run at a time.
        limit: usize,
    },
    /// The database rolled the handler's transaction back. Nothing was kept.
    RolledBack,
    /// Too little time is left before the deadline: see [`DeadlineLayer`](crate::DeadlineLayer).
    /// Nothing was executed.
    DeadlinePassed,
}

/// One row of the table.
struct Row {
    status: StatusCode,
    problem_type: &'static str,
    title: &'static str,
    /// What an idempotency layer outside of this one reads. It would store an unmarked response.
    outcome: Option<ExecutionOutcome>,
    /// Whether `Retry-After` asks the client to repeat the request.
    retry: bool,
}

impl Row {
    const fn not_executed(status: StatusCode, problem_type: &'static str, title: &'static str) -> Self {
        Self { status, problem_type, title, outcome: Some(ExecutionOutcome::NotExecuted), retry: false }
    }

    const fn unknown(status: StatusCode, problem_type: &'static str, title: &'static str) -> Self {
        Self { outcome: Some(ExecutionOutcome::Unknown), ..Self::not_executed(status, problem_type, title) }
    }

    const fn retry(self) -> Self {
        Self { retry: true, ..self }
    }
}

impl Rejection {
    #[rustfmt::skip]
    const fn row(self) -> Row {
        use StatusCode as S;
        use problem_type as p;

        match self {
            Self::KeyMissing => Row::not_executed(S::BAD_REQUEST, p::KEY_MISSING, "This request needs an Idempotency-Key"),
            Self::KeyMalformed { .. } => Row::not_executed(S::BAD_REQUEST, p::KEY_MALFORMED, "The Idempotency-Key cannot be read"),
            Self::EventIdMissing => Row::not_executed(S::BAD_REQUEST, p::EVENT_ID_MISSING, "The delivery has no event id"),
            Self::BodyBroken => Row::not_executed(S::BAD_REQUEST, p::BODY_BROKEN, "The body ended before its length"),
            Self::NoCaller => Row::not_executed(S::FORBIDDEN, p::NO_CALLER, "Keys belong to a caller, and this request has none"),
            Self::InProgress => Row::not_executed(S::CONFLICT, p::IN_PROGRESS, "The first request under this key is still running").retry(),
            Self::OutcomeUnknown => Row::unknown(S::CONFLICT, p::OUTCOME_UNKNOWN, "A request under this key may have been executed; its outcome is unknown"),
            // It was executed. This is all that is left to say of it, and may be stored.
            Self::AnswerNotKept { .. } => Row { outcome: None, ..Row::not_executed(S::GONE, p::ANSWER_NOT_KEPT, "The operation has completed, and its response was not kept") },
            Self::BodyTooLarge { .. } => Row::not_executed(S::PAYLOAD_TOO_LARGE, p::BODY_TOO_LARGE, "The body is too large for a request with a key"),
            Self::OtherRequest { .. } => Row::not_executed(S::UNPROCESSABLE_ENTITY, p::OTHER_REQUEST, "The Idempotency-Key belongs to another request"),
            Self::RecordUnreadable => Row::unknown(S::INTERNAL_SERVER_ERROR, p::RECORD_UNREADABLE, "The record of this key cannot be read"),
            Self::HandlerFailed => Row::unknown(S::INTERNAL_SERVER_ERROR, p::HANDLER_FAILED, "The handler failed; its outcome is unknown"),
            Self::HandlerTimedOut => Row::unknown(S::INTERNAL_SERVER_ERROR, p::HANDLER_TIMED_OUT, "The handler exceeded its time limit; its outcome is unknown"),
            Self::TransactionLost => Row::unknown(S::INTERNAL_SERVER_ERROR, p::TRANSACTION_LOST, "The outcome of the handler's transaction is unknown; a repeat under this key replays it or runs it"),
            Self::StoreUnavailable => Row::not_executed(S::SERVICE_UNAVAILABLE, p::STORE_UNAVAILABLE, "Keys cannot be checked now; nothing was executed").retry(),
            Self::StoreFull { .. } => Row::not_executed(S::SERVICE_UNAVAILABLE, p::STORE_UNAVAILABLE, "No more keys can be stored now; nothing was executed").retry(),
            Self::TooManyRunning { .. } => Row::not_executed(S::SERVICE_UNAVAILABLE, p::TOO_MANY_RUNNING, "Too many operations are running now; nothing was executed").retry(),
            Self::RolledBack => Row::not_executed(S::SERVICE_UNAVAILABLE, p::ROLLED_BACK, "The database rolled the transaction back; nothing was kept").retry(),
            Self::DeadlinePassed => Row::not_executed(S::SERVICE_UNAVAILABLE, p::DEADLINE_PASSED, "Too little time is left before the deadline; nothing was executed"),
        }
    }

    /// Returns the status of the layer's own response.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        self.row().status
    }

    /// Returns the `type` of the layer's own problem response: a URL, the same for each occurrence
    /// (RFC 9457 §3.1.1).
    #[must_use]
    pub const fn problem_type(self) -> &'static str {
        self.row().problem_type
    }

    /// Returns a sentence that is the same for each occurrence.
    #[must_use]
    pub const fn title(self) -> &'static str {
        self.row().title
    }

    /// Returns an explanation of this occurrence. It never has a key in it. `None` if the title
    /// says all.
    #[must_use]
    pub fn detail(self) -> Option<String> {
        match self {
            Self::KeyMalformed { reason } => Some(reason.to_owned()),
            Self::BodyTooLarge { limit } => Some(format!("at most {limit} bytes")),
            Self::AnswerNotKept { status } => Some(format!("its status was {}", status.as_u16())),
            Self::StoreFull { limit } => Some(limit.to_string()),
            Self::TooManyRunning { limit } => Some(format!("at most {limit} at a time (max_concurrency)")),
            // A client that corrects a rejected request and keeps its key reads this.
            Self::OtherRequest { stored_4xx: Some(status) } => Some(format!(
                "a stored 4xx holds this key: its request was answered {}; send the corrected one under a new key",
                status.as_u16()
            )),
            _ => None,
        }
    }

    /// Returns the wait that `Retry-After` asks for. `None` if the layer does not invite a repeat.
    #[must_use]
    pub const fn retry_after(self) -> Option<Duration> {
        if self.row().retry { Some(RETRY_AFTER_TIME) } else { None }
    }

    /// Returns what an idempotency layer outside of this one reads.
    pub(super) fn outcome(self) -> Option<ExecutionOutcome> {
        self.row().outcome
    }

    pub(super) fn problem(self) -> Response<Bytes> {
        let Row { status, problem_type, title, .. } = self.row();
        let mut members = serde_json::json!({ "type": problem_type, "title": title, "status": status.as_u16() });
        if let (Some(detail), Some(members)) = (self.detail(), members.as_object_mut()) {
            members.insert("detail".to_owned(), detail.into());
        }
        let mut response = Response::new(members.to_string().into());
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}
