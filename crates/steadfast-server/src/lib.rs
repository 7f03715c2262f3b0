//! The server half: a layer that recognises an operation by its key, runs it once, and answers every repeat from its record.
//!
//! A retried POST is safe only if the server can tell that it is the same one. A handler cannot do that alone: two requests under
//! one key may arrive at once, the process may die between the charge and the answer, the client may hang up while the handler
//! runs. [`IdempotencyLayer`] is a [tower](https://docs.rs/tower) layer over `http` types (axum's, and any whose request body can be made
//! from bytes) that takes care of all three.
//!
//! ```
//! use axum::{Router, routing::post};
//! use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
//! use tower::ServiceBuilder;
//!
//! async fn charge() -> (axum::http::StatusCode, &'static str) {
//!     (axum::http::StatusCode::CREATED, "charged")
//! }
//!
//! /// The caller, as authentication has verified it.
//! #[derive(Clone)]
//! struct Caller {
//!     subject: String,
//! }
//!
//! // Whose keys they are: a stable principal, never the bytes of a token.
//! let scope = Scope::from_extension(|caller: &Caller| caller.subject.clone());
//! // From the outside in: TLS, CORS, rate limit, compression, authentication, authorisation; then idempotency; then the handler. What
//! // stands outside may refuse a request without burning its key.
//! let layers = ServiceBuilder::new()
//!     // .layer(rate_limit).layer(compression).layer(authentication)
//!     .layer(IdempotencyLayer::new(MemoryStore::new(), scope).required());
//! let app: Router = Router::new().route("/charges", post(charge)).layer(layers);
//! ```
//!
//! # What it answers
//!
//! | situation | answer |
//! | --- | --- |
//! | first request under a key | the handler's, with `Idempotency-Status: stored` |
//! | the same again | the stored one, with `Idempotent-Replayed: true`: status and body as they were, and the headers without [those of the exchange](IdempotencyLayer::omit_headers) |
//! | the same again, and the answer was too long to keep, or of unknown length | 410: it is done, and its answer is gone |
//! | the same, while the first still runs | 409 with `Retry-After`; with `Prefer: wait=N`, the first one's answer |
//! | another request under the key | 422, whose `detail` says so if a stored 4xx holds the key |
//! | no key where one is required, a malformed key, two keys | 400 |
//! | a request whose [`Scope`] cannot be told | 403 |
//! | an earlier attempt may have run, and nobody knows how it ended | 409 of the type `…/outcome-unknown`; or rerun, see [`OnUnknown`] |
//! | body over the cap | 413, before any claim |
//! | the store cannot be reached, is full, or has no transaction to lend | 503 with `Retry-After`, nothing executed |
//! | the database rolled the handler's transaction back | 503 with `Retry-After` and `Idempotency-Status: released`; the handler's own answer, if it is a 5xx |
//! | the handler panicked or took too long, its transaction was lost, or a record cannot be read | 500 |
//!
//! [`DeadlineLayer`] is a layer of its own, for outside of it: it refuses, before a key is claimed, what its caller no longer waits for.
//!
//! Its own answers are `application/problem+json` with distinct types and `Cache-Control: no-store`. Sources:
//! draft-ietf-httpapi-idempotency-key-header-07, RFC 9110, RFC 9457, and what Stripe publishes of its API.
//!
//! # What a handler can say
//!
//! An unmarked answer is stored, whatever its status. A handler that knows better puts a
//! [`ExecutionOutcome`] into the response's extensions: [`ExecutionOutcome::NotExecuted`] gives the key back. A
//! panic, an error of the inner service and a process that dies end as "unknown". For axum, the
//! crate [`steadfast-axum`](https://docs.rs/steadfast-axum) marks
//! rejections, 404 and 405. (Elsewhere other rules hold: [`WebhookLayer`], [`OnUnknown::Rerun`], and a
//! store that is one transaction with the handler's rows.)
//!
//! The handler runs on a task of its own, in the caller's tracing span: a client that disconnects
//! does not cancel it. Task-locals do not follow it there. Its lease is renewed meanwhile;
//! [`HeldClaim`], in the request's extensions, tells whether the claim still holds.
//!
//! # What else is here
//!
//! * [`WebhookLayer`] and [`Inbox`]: events that are delivered more than once, and handled once.
//! * [`OperationKey`] and [`OperationKey::child_key`]: keys for the calls that a handler makes.
//! * [`IdempotencyLayer::reconcile`] and [`admin`]: for operations whose outcome nobody knows.
//! * [`SharedStore`]: one store for several layers and inboxes.
//! * [`RecordCodec`]: answers that no store can read. Without one they are stored unencrypted.
//! * [`DeadlineLayer`]: refuses what its caller no longer waits for, before a key is claimed.
//!
//! Which store promises what when a process, a machine or a primary dies:
//! [the guide](https://docs.rs/steadfast/latest/steadfast/guide/server/).

// Floor 2 of the house: it may import `clock`, `deadline`, `key` and `problem`. The tests over real sockets are in `tests/it/server/`.

pub mod admin;
mod apart;
mod body;
mod cancel;
mod cancel_queue;
mod child_key;
mod claiming;
mod config;
mod deadline;
mod decide;
mod ending;
mod event_id;
mod execution;
#[cfg(test)]
mod explore;
mod held;
mod host;
mod inbox;
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
mod transaction;
mod wait;
mod webhook;

pub use self::child_key::OperationKey;
pub use self::deadline::{DeadlineLayer, DeadlineService};
pub use self::event_id::EventId;
pub use self::held::HeldClaim;
pub use self::inbox::{Delivery, Inbox, InboxError};
pub use self::layer::IdempotencyLayer;
pub use self::metrics::Metrics;
pub use self::outcome::{ExecutionOutcome, OnUnknown};
pub use self::pending_ends::PendingEnds;
pub use self::reconcile::{Reconciliation, UnknownOperation};
pub use self::response_body::{BodyError, ResponseBody};
pub use self::scope::Scope;
pub use self::service::IdempotencyService;
pub use self::shared_store::SharedStore;
#[doc(hidden)]
pub use self::store::model as model_store;
pub use self::store::{
    Claim, ClaimOutcome, ClaimRef, ClaimToken, CodecError, Completion, End, Fingerprint, FinishOutcome,
    IDENTITY_VERSION, IdentityMismatch, KeyHolder, MemoryStore, Record, RecordCodec, RecordError, RecordId,
    RecordState, Store, StoreError, TOMBSTONE, verify_identity,
};
pub use self::transaction::{TransactionGuard, TransactionHandle};
pub use self::webhook::WebhookLayer;
// For `steadfast-redb`, whose entries have the same envelope. No promise is made of them.
#[doc(hidden)]
pub use self::store::{seal, unseal};
