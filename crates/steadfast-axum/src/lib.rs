//! For axum: rejections and fallbacks that give the key back.
//!
//! axum answers many requests before a handler runs: JSON that cannot be read (400, 422), a body
//! that is too large (413) or of another type (415), a path that is not there (404), a method that
//! is not allowed (405). To a layer around it these are answers like any other. It stores them, and
//! the corrected request is refused with 422, because its key belongs to the one with the mistake.
//!
//! Nothing was executed in any of these cases, and here is how to say so:
//!
//! ```
//! use axum::{Json, Router, http::StatusCode, routing::post};
//! use steadfast_axum::{Checked, method_not_allowed, not_found};
//! use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
//!
//! #[derive(serde::Deserialize)]
//! struct NewOrder {
//!     item: String,
//! }
//!
//! // Where the JSON is rejected, the same key may be used for the corrected order.
//! async fn order(Checked(Json(order)): Checked<Json<NewOrder>>) -> (StatusCode, String) {
//!     (StatusCode::CREATED, order.item)
//! }
//!
//! let app: Router = Router::new()
//!     .route("/orders", post(order))
//!     // After the routes: it is given to those that are there.
//!     .method_not_allowed_fallback(method_not_allowed)
//!     .fallback(not_found)
//!     .layer(IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).required());
//! ```
//!
//! A layer that is added by `Router::route_layer` sees only requests whose path is there. It needs
//! no [`not_found`], and the rest all the same.
//!
//! # What must be true
//!
//! A rejection says that the handler has not run. It says nothing of what ran before it. So
//! whatever stands between the layer and the extractor, other extractors to its left and middleware
//! inside of the layer, **must have no effects that are not to happen twice.** An extractor that
//! writes, for example one that counts against a quota, belongs to the right of those that can
//! reject, or outside of the layer.

// Made to move to a crate of its own with its only dependency, `axum-core`: it uses nothing
// private.

use axum_core::extract::{FromRequest, FromRequestParts, Request};
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use steadfast_server::ExecutionOutcome;

/// A response after which the key is given back: nothing was executed. It carries
/// [`ExecutionOutcome::NotExecuted`].
///
/// ```
/// use axum::http::StatusCode;
/// use axum::response::{IntoResponse, Response};
/// use steadfast_axum::NotExecuted;
///
/// async fn charge(amount: u64) -> Response {
///     if amount == 0 {
///         return NotExecuted((StatusCode::BAD_REQUEST, "amount is zero")).into_response();
///     }
///     (StatusCode::CREATED, "charged").into_response()
/// }
/// ```
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "a wrapper, to be made and taken apart")]
pub struct NotExecuted<R>(pub R);

impl<R: IntoResponse> IntoResponse for NotExecuted<R> {
    fn into_response(self) -> Response {
        let mut response = self.0.into_response();
        response.extensions_mut().insert(ExecutionOutcome::NotExecuted);
        response
    }
}

/// An extractor whose rejection gives the key back: `Checked<Json<T>>`, `Checked<Path<T>>`.
///
/// The rejection is that of `E`, as [`NotExecuted`]. What ran before this extractor must have no
/// effects: see the [module](self#what-must-be-true).
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a wrapper, to be taken apart in a handler's arguments")]
pub struct Checked<E>(pub E);

impl<E, S> FromRequest<S> for Checked<E>
where
    E: FromRequest<S>,
    S: Send + Sync,
{
    type Rejection = NotExecuted<E::Rejection>;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        E::from_request(request, state).await.map(Self).map_err(NotExecuted)
    }
}

impl<E, S> FromRequestParts<S> for Checked<E>
where
    E: FromRequestParts<S>,
    S: Send + Sync,
{
    type Rejection = NotExecuted<E::Rejection>;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        E::from_request_parts(parts, state).await.map(Self).map_err(NotExecuted)
    }
}

/// Answers 404 and gives the key back. A handler for `Router::fallback`.
pub async fn not_found() -> NotExecuted<StatusCode> {
    NotExecuted(StatusCode::NOT_FOUND)
}

/// Answers 405 and gives the key back. A handler for `Router::method_not_allowed_fallback`; axum
/// adds `Allow` (RFC 9110 §15.5.6).
pub async fn method_not_allowed() -> NotExecuted<StatusCode> {
    NotExecuted(StatusCode::METHOD_NOT_ALLOWED)
}
