//! The response to a repeat, from the state of its key.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use http_body::Body;
use steadfast_core::protocol::{IDEMPOTENT_REPLAYED, IdempotencyStatus};

use super::config::Config;
use super::layer_state::LayerState;
use super::metrics::{Route, count};
use super::rejection::Rejection;
use super::response_body::ResponseBody;
use super::store::{Record, RecordId, RecordState, StoreError};

/// Responds to a repeat of the same request. `waited`: it asked to wait for the first one.
pub(super) fn respond_to_repeat<S, R: Body>(
    layer: &LayerState<S>,
    (id, route): (&RecordId, &Route),
    state: RecordState,
    waited: bool,
) -> Response<ResponseBody<R>> {
    let counters = &layer.shared.counters;
    let (counter, mut response, status) = match state {
        RecordState::Completed { record, .. } => {
            let counter = if waited { &counters.waited } else { &counters.replayed };
            (counter, replay(&layer.config, record, layer.config.event.is_some()), IdempotencyStatus::Replayed)
        }
        RecordState::InProgress { .. } => {
            (&counters.in_progress, layer.config.reject(Rejection::InProgress), IdempotencyStatus::InProgress)
        }
        RecordState::Unknown { .. } => {
            (&counters.refused_unknown, layer.config.reject(Rejection::OutcomeUnknown), IdempotencyStatus::Unknown)
        }
    };
    count(counter, Some(id), route);
    layer.config.put_status(status, &mut response);
    if waited {
        response.headers_mut().insert("preference-applied", HeaderValue::from_static("wait"));
    }
    response
}

/// Responds to another request under a key that is taken.
pub(super) fn respond_to_other_request<S, R: Body>(
    layer: &LayerState<S>,
    (id, route): (&RecordId, &Route),
    state: &RecordState,
) -> Response<ResponseBody<R>> {
    count(&layer.shared.counters.mismatched, Some(id), route);
    let stored_4xx = match state {
        RecordState::Completed { record, .. } => Some(record.status()).filter(StatusCode::is_client_error),
        _ => None,
    };
    if layer.config.event.is_some() {
        tracing::warn!(target: "steadfast", "an event's id belongs to another payload; if its sender changes the payload with each delivery, set `fingerprint_body`");
    }
    layer.config.reject(Rejection::OtherRequest { stored_4xx })
}

/// Rejects a request, and counts it.
pub(super) fn reject<S, R: Body>(
    layer: &LayerState<S>,
    (id, route): (Option<&RecordId>, &Route),
    rejection: Rejection,
) -> Response<ResponseBody<R>> {
    let counters = &layer.shared.counters;
    let counter = match rejection {
        Rejection::StoreUnavailable | Rejection::StoreFull { .. } => &counters.store_down,
        Rejection::TooManyRunning { .. } => &counters.too_many_running,
        _ => &counters.refused,
    };
    count(counter, id, route);
    layer.config.reject(rejection)
}

/// Rejects a request whose key could not be claimed.
pub(super) fn reject_for_store<S, R: Body>(
    layer: &LayerState<S>,
    (id, route): (&RecordId, &Route),
    error: &StoreError,
) -> Response<ResponseBody<R>> {
    tracing::error!(target: "steadfast", ?id, %error, "a key could not be claimed");
    let rejection = match error {
        StoreError::Unavailable(_) | StoreError::RolledBack(_) | StoreError::IdentityMismatch(_) => {
            Rejection::StoreUnavailable
        }
        StoreError::Full(limit) | StoreError::Busy(limit) => Rejection::StoreFull { limit: *limit },
        StoreError::Unreadable(_) => Rejection::RecordUnreadable,
    };
    reject(layer, (Some(id), route), rejection)
}

/// Returns the stored response, or a 410 if it was not kept. The sender of an event only needs to
/// know that the event was handled, so it gets an empty response instead of the 410.
pub(super) fn replay<B: Body>(config: &Config, record: Record, is_event: bool) -> Response<ResponseBody<B>> {
    let (status, headers, body) = record.into_parts();
    let mut response = match body.or(is_event.then(Bytes::new)) {
        None => config.reject(Rejection::AnswerNotKept { status }),
        Some(body) => {
            let mut response = Response::new(ResponseBody::whole(body));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response
        }
    };
    response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    response
}
