//! The responses that the layer gives in the handler's place, as one table.

use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body::Body;
use steadfast_core::protocol::problem_type;

use super::outcome::ExecutionOutcome;
use super::response_body::ResponseBody;
use super::store::StoreLimit;

/// Why the layer responds itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rejection {
    KeyMissing,
    KeyMalformed(&'static str),
    EventIdMissing,
    BodyBroken,
    NoCaller,
    InProgress,
    OutcomeUnknown,
    /// With the status of the response that was not kept.
    AnswerNotKept(StatusCode),
    /// With the limit in bytes.
    BodyTooLarge(usize),
    /// With the status that is stored under the key, if it is a 4xx.
    OtherRequest(Option<StatusCode>),
    RecordUnreadable,
    HandlerFailed,
    HandlerTimedOut,
    TransactionLost,
    StoreUnavailable,
    /// With the limit that the store has reached, if it names one.
    StoreFull(Option<StoreLimit>),
    /// With the number of handlers that may run at a time.
    TooManyRunning(usize),
    RolledBack,
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
            Self::KeyMalformed(_) => Row::not_executed(S::BAD_REQUEST, p::KEY_MALFORMED, "The Idempotency-Key cannot be read"),
            Self::EventIdMissing => Row::not_executed(S::BAD_REQUEST, p::EVENT_ID_MISSING, "The delivery has no event id"),
            Self::BodyBroken => Row::not_executed(S::BAD_REQUEST, p::BODY_BROKEN, "The body ended before its length"),
            Self::NoCaller => Row::not_executed(S::FORBIDDEN, p::NO_CALLER, "Keys belong to a caller, and this request has none"),
            Self::InProgress => Row::not_executed(S::CONFLICT, p::IN_PROGRESS, "The first request under this key is still running").retry(),
            Self::OutcomeUnknown => Row::unknown(S::CONFLICT, p::OUTCOME_UNKNOWN, "A request under this key may have been executed; its outcome is unknown"),
            // It was executed. This is all that is left to say of it, and may be stored.
            Self::AnswerNotKept(_) => Row { outcome: None, ..Row::not_executed(S::GONE, p::ANSWER_NOT_KEPT, "The operation has completed, and its response was not kept") },
            Self::BodyTooLarge(_) => Row::not_executed(S::PAYLOAD_TOO_LARGE, p::BODY_TOO_LARGE, "The body is too large for a request with a key"),
            Self::OtherRequest(_) => Row::not_executed(S::UNPROCESSABLE_ENTITY, p::OTHER_REQUEST, "The Idempotency-Key belongs to another request"),
            Self::RecordUnreadable => Row::unknown(S::INTERNAL_SERVER_ERROR, p::RECORD_UNREADABLE, "The record of this key cannot be read"),
            Self::HandlerFailed => Row::unknown(S::INTERNAL_SERVER_ERROR, p::HANDLER_FAILED, "The handler failed; its outcome is unknown"),
            Self::HandlerTimedOut => Row::unknown(S::INTERNAL_SERVER_ERROR, p::HANDLER_TIMED_OUT, "The handler exceeded its time limit; its outcome is unknown"),
            Self::TransactionLost => Row::unknown(S::INTERNAL_SERVER_ERROR, p::TRANSACTION_LOST, "The outcome of the handler's transaction is unknown; a repeat under this key replays it or runs it"),
            Self::StoreUnavailable => Row::not_executed(S::SERVICE_UNAVAILABLE, p::STORE_UNAVAILABLE, "Keys cannot be checked now; nothing was executed").retry(),
            Self::StoreFull(_) => Row::not_executed(S::SERVICE_UNAVAILABLE, p::STORE_UNAVAILABLE, "No more keys can be stored now; nothing was executed").retry(),
            Self::TooManyRunning(_) => Row::not_executed(S::SERVICE_UNAVAILABLE, p::TOO_MANY_RUNNING, "Too many operations are running now; nothing was executed").retry(),
            Self::RolledBack => Row::not_executed(S::SERVICE_UNAVAILABLE, p::ROLLED_BACK, "The database rolled the transaction back; nothing was kept").retry(),
            Self::DeadlinePassed => Row::not_executed(S::SERVICE_UNAVAILABLE, p::DEADLINE_PASSED, "Too little time is left before the deadline; nothing was executed"),
        }
    }

    fn detail(self) -> Option<String> {
        match self {
            Self::KeyMalformed(reason) => Some(reason.to_owned()),
            Self::BodyTooLarge(limit) => Some(format!("at most {limit} bytes")),
            Self::AnswerNotKept(status) => Some(format!("its status was {}", status.as_u16())),
            Self::StoreFull(Some(limit)) => Some(limit.to_string()),
            Self::TooManyRunning(limit) => Some(format!("at most {limit} at a time (max_concurrency)")),
            // A client that corrects a rejected request and keeps its key reads this.
            Self::OtherRequest(Some(status)) => Some(format!(
                "a stored 4xx holds this key: its request was answered {}; send the corrected one under a new key",
                status.as_u16()
            )),
            _ => None,
        }
    }

    pub(super) fn response<B: Body>(self) -> Response<ResponseBody<B>> {
        let Row { status, problem_type, title, outcome, retry } = self.row();
        let mut members = serde_json::json!({ "type": problem_type, "title": title, "status": status.as_u16() });
        if let (Some(detail), Some(members)) = (self.detail(), members.as_object_mut()) {
            members.insert("detail".to_owned(), detail.into());
        }
        let mut response = Response::new(ResponseBody::whole(members.to_string().into()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if retry {
            // Seconds.
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(outcome) = outcome {
            response.extensions_mut().insert(outcome);
        }
        response
    }
}
