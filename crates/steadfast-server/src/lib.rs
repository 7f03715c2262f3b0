//! A tower layer that executes each idempotency key once and replays the response to repeats.
//!
//! A client may retry a POST only if the server recognises the repeat. A handler cannot do that
//! alone: two requests under one key may arrive at once. The process may die between the charge and
//! the response. The client may disconnect while the handler runs.
//!
//! [`IdempotencyLayer`] handles all three. It is a [tower](https://docs.rs/tower) layer over the
//! types of the `http` crate. It works with axum, and with any service whose request body can be
//! made from bytes.
//!
//! ```
//! use axum::{Extension, Router, body::Body, routing::post};
//! use axum::http::{Request, StatusCode};
//! use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! async fn charge() -> (StatusCode, &'static str) {
//!     (StatusCode::CREATED, "charged")
//! }
//!
//! /// The caller, as authentication has verified it.
//! #[derive(Clone)]
//! struct Caller {
//!     subject: String,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Two callers may send the same key. A stable principal keeps them apart.
//! let scope = Scope::from_extension(|caller: &Caller| caller.subject.clone());
//! let idempotency = IdempotencyLayer::new(MemoryStore::new(), scope).required();
//! let layers = ServiceBuilder::new()
//!     // Outermost first: TLS, CORS, rate limit, compression, authentication, authorisation.
//!     // These layers may refuse a request without consuming its key.
//!     .layer(Extension(Caller { subject: "alice".to_owned() }))
//!     .layer(idempotency.clone());
//! let app: Router = Router::new().route("/charges", post(charge)).layer(layers);
//!
//! let charge_once =
//!     || Request::post("/charges").header("idempotency-key", "order-1042").body(Body::empty());
//! let first = app.clone().oneshot(charge_once()?).await?;
//! assert_eq!(first.headers()["idempotency-status"], "stored;retention=86400");
//! let repeat = app.oneshot(charge_once()?).await?;
//! assert_eq!(repeat.status(), StatusCode::CREATED);
//! assert_eq!(repeat.headers()["idempotent-replayed"], "true");
//! assert_eq!(idempotency.metrics().executed, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Responses
//!
//! | situation | response |
//! | --- | --- |
//! | first request under a key | the handler's, with `Idempotency-Status: stored` |
//! | a repeat | the stored one, with `Idempotent-Replayed: true`. Status and body are unchanged; [headers of the exchange](IdempotencyLayer::omit_headers) are left out |
//! | a repeat, but the response was too long to keep, or of unknown length | 410: the operation has completed, and its response was not kept |
//! | a repeat while the first request still runs | 409 with `Retry-After`; with `Prefer: wait=N`, the first one's response |
//! | another request under the key ([`BodyFingerprint`]) | 422, whose `detail` says so if a stored 4xx holds the key |
//! | no key where one is required, a malformed key, two keys | 400 |
//! | no [`Scope`] can be found for the request | 403 |
//! | an earlier attempt may have run, and its outcome is unknown | 409 of the type `outcome-unknown`, or the handler runs again: see [`OnUnknown`] |
//! | a body over the limit | 413, before any claim |
//! | as many handlers run as [`max_concurrency`](IdempotencyLayer::max_concurrency) allows | 503 with `Retry-After`; nothing was executed |
//! | the store is unreachable, full, or has no free transaction | 503 with `Retry-After`; nothing was executed |
//! | the database rolled the handler's transaction back | 503 with `Retry-After` and `Idempotency-Status: released`; the handler's own response, if it is a 5xx |
//! | the handler panicked or took too long, its transaction was lost, or a record cannot be read | 500 |
//!
//! The layer's own responses are `application/problem+json` with distinct types and `Cache-Control:
//! no-store`. [`RejectionFormat`] writes them in the format of your API. Sources:
//! draft-ietf-httpapi-idempotency-key-header-07, RFC 9110, RFC 9457, and what Stripe publishes of
//! its API.
//!
//! # Handlers
//!
//! An unmarked response is stored, whatever its status. A handler that knows better puts an
//! [`ExecutionOutcome`] into the response's extensions. [`ExecutionOutcome::NotExecuted`] releases
//! the key. For axum, the crate [`steadfast-axum`](https://docs.rs/steadfast-axum) marks
//! rejections, 404 and 405.
//!
//! After a panic, an error of the inner service or the death of the process, the outcome is
//! *unknown*. Other rules hold for [`WebhookLayer`], for [`OnUnknown::Rerun`], and for a store that
//! shares one transaction with the handler's rows.
//!
//! The handler runs on a task of its own, in the caller's tracing span, so a client that
//! disconnects does not cancel it. Task-locals do not reach that task. The layer renews the lease
//! of the claim while the handler runs. [`HeldClaim`], in the request's extensions, shows whether
//! the claim still holds.
//!
//! # Also in this crate
//!
//! * [`WebhookLayer`] and [`Inbox`] handle each event once, however often it is delivered.
//! * [`OperationKey::child_key`] derives keys for the calls that a handler makes.
//! * [`BodyFingerprint`] selects what of a body tells a repeat from another request.
//! * [`IdempotencyLayer::reconcile`] and [`admin`] resolve operations whose outcome is unknown.
//! * [`SharedStore`] lets several layers and inboxes use one store.
//! * [`RecordCodec`] encrypts responses before they reach a store. Without a codec they are stored
//!   unencrypted.
//! * [`DeadlineLayer`] refuses a request whose caller no longer waits, before a key is claimed.
//!   Place it outside the [`IdempotencyLayer`].
//!
//! [The guide](https://docs.rs/steadfast/latest/steadfast/guide/server/) shows what each store
//! keeps when a process, a machine or a primary dies.

// Of `steadfast-core` this crate uses `clock`, `deadline`, `key` and the vocabulary (`protocol.rs`).
// The tests over real sockets are in the workspace's `tests/it/server/`.

pub mod admin;
mod apart;
mod body;
mod body_fingerprint;
mod cancel;
mod cancel_queue;
mod child_key;
mod claiming;
mod concurrency;
mod config;
mod deadline;
mod decide;
mod ending;
mod entry;
mod event_id;
mod execution;
#[cfg(test)]
mod explore;
mod held;
mod host;
mod inbox;
mod json;
mod keeper;
mod keepers;
mod layer;
mod layer_state;
mod metrics;
mod nested;
mod outcome;
mod pending_ends;
mod poll;
mod reconcile;
mod rejection;
mod rejection_format;
mod request;
mod response;
mod response_body;
mod response_settings;
mod rules;
mod scope;
mod service;
mod shared_store;
mod status_terms;
mod store;
mod stored_headers;
mod stripe_errors;
mod transaction;
mod wait;
mod webhook;

pub use self::body_fingerprint::BodyFingerprint;
pub use self::child_key::OperationKey;
pub use self::deadline::{DeadlineLayer, DeadlineService};
pub use self::event_id::EventId;
pub use self::held::HeldClaim;
pub use self::inbox::{Delivery, Inbox, InboxError};
pub use self::layer::IdempotencyLayer;
pub use self::metrics::{Metric, Metrics};
pub use self::outcome::{ExecutionOutcome, OnUnknown};
pub use self::pending_ends::PendingEnds;
pub use self::reconcile::{Reconciliation, UnknownOperation};
pub use self::rejection::Rejection;
pub use self::rejection_format::RejectionFormat;
pub use self::response_body::{BodyError, ResponseBody};
pub use self::scope::Scope;
pub use self::service::IdempotencyService;
pub use self::shared_store::SharedStore;
#[doc(hidden)]
pub use self::store::model as model_store;
pub use self::store::{
    Claim, ClaimOutcome, ClaimRef, ClaimToken, CodecError, Completion, End, Fingerprint, FinishOutcome,
    IDENTITY_VERSION, IdentityMismatch, KeyHolder, MemoryStore, Record, RecordCodec, RecordError, RecordId,
    RecordState, ScopeId, Store, StoreError, StoreLimit, TOMBSTONE, verify_identity,
};
pub use self::transaction::{TransactionGuard, TransactionHandle};
pub use self::webhook::WebhookLayer;
pub use steadfast_core::protocol::IdempotencyStatus;
// For `steadfast-redb`, whose entries have the same envelope. They are not part of the public API.
#[doc(hidden)]
pub use self::store::{seal, unseal};
