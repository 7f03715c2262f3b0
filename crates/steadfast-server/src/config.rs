//! The settings of a layer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Body;
use steadfast_core::protocol::IdempotencyStatus;

use super::body_fingerprint::BodyFingerprint;
use super::concurrency::Concurrency;
use super::event_id::EventId;
use super::outcome::OnUnknown;
use super::pending_ends::PendingEnds;
use super::reconcile::Reconcile;
use super::rejection::Rejection;
use super::rejection_format::RejectionFormat;
use super::response_body::ResponseBody;
use super::scope::Scope;
use super::status_terms::StatusTerms;
use super::store::{Record, RecordCodec, RecordId, RecordState, StoreError};
use super::stored_headers::StoredHeaders;

pub(super) type Host = Arc<dyn Fn(&Parts) -> Option<String> + Send + Sync>;
pub(super) type Target = Arc<dyn Fn(&Parts) -> String + Send + Sync>;

#[derive(Clone)]
pub(super) struct Config {
    pub(super) required: bool,
    pub(super) methods: Vec<Method>,
    pub(super) scope: Scope,
    pub(super) host: Option<Host>,
    pub(super) target: Option<Target>,
    pub(super) body_fingerprint: BodyFingerprint,
    pub(super) on_unknown: OnUnknown,
    pub(super) lease: Duration,
    pub(super) max_handler_time: Option<Duration>,
    pub(super) end_wait: Duration,
    pub(super) pending_ends: PendingEnds,
    pub(super) retention: Duration,
    pub(super) max_key: usize,
    pub(super) max_body: usize,
    pub(super) max_response: usize,
    pub(super) max_wait: Duration,
    pub(super) concurrency: Option<Concurrency>,
    pub(super) concurrency_wait: Duration,
    pub(super) max_reader_wait: Duration,
    pub(super) terms: StatusTerms,
    pub(super) rejection_format: Option<RejectionFormat>,
    pub(super) stored_headers: StoredHeaders,
    pub(super) codec: Option<Arc<dyn RecordCodec>>,
    pub(super) reconcile: Option<Reconcile>,
    /// For events: where their id is. The operation is then the handling of an event, and not a
    /// request with a key.
    pub(super) event: Option<EventId>,
    /// Whether every unmarked response that is no success releases the key.
    pub(super) failures_run_again: bool,
    /// Statuses whose unmarked responses also release the key.
    pub(super) release_on: Vec<StatusCode>,
}

impl Config {
    /// Returns the record of a response.
    pub(super) fn record(&self, status: StatusCode, headers: &HeaderMap, body: Bytes) -> Record {
        Record::of(status, self.stored_headers.of(headers), Some(body))
    }

    /// Returns the response to a request that is rejected.
    pub(super) fn reject<B: Body>(&self, rejection: Rejection) -> Response<ResponseBody<B>> {
        rejection.response(self.rejection_format.as_ref())
    }

    /// Sets `Idempotency-Status` on a response, and the header that the format adds.
    pub(super) fn put_status<B>(&self, status: IdempotencyStatus, response: &mut Response<B>) {
        self.terms.put(status, response);
        if let Some(format) = &self.rejection_format {
            format.add_header(status, response);
        }
    }

    /// Returns whether an unmarked response with this status, which is no success, releases the
    /// key.
    pub(super) fn gives_back(&self, status: StatusCode) -> bool {
        self.failures_run_again || self.release_on.contains(&status)
    }

    /// Returns the record in the form that a store gets: sealed, if there is a codec.
    pub(super) fn sealed(&self, id: &RecordId, record: Record) -> Record {
        match &self.codec {
            Some(codec) => record.sealed(id, &**codec),
            None => record,
        }
    }

    /// Opens the record in a state that a store returned.
    pub(super) fn open(&self, id: &RecordId, state: &mut RecordState) -> Result<(), StoreError> {
        if let RecordState::Completed { record, .. } = state
            && (self.codec.is_some() || record.is_sealed())
        {
            *record = record.clone().opened(id, self.codec.as_deref()).map_err(StoreError::Unreadable)?;
        }
        Ok(())
    }
}
