//! Rejections and fallbacks for axum that release the idempotency key.
//!
//! axum rejects many requests before your handler runs. Examples are unreadable JSON (400, 422), a
//! body that is too large (413) or has another media type (415), an unknown path (404) and a method
//! that is not allowed (405). A layer around axum cannot tell these responses from others, so it
//! stores them. It then rejects the corrected request with 422, because the key belongs to the
//! faulty one.
//!
//! In all these cases nothing was executed. This crate marks such responses, so that the layer
//! releases the key:
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
//! // If the JSON is rejected, the caller can send the corrected order under the same key.
//! async fn order(Checked(Json(order)): Checked<Json<NewOrder>>) -> (StatusCode, String) {
//!     (StatusCode::CREATED, order.item)
//! }
//!
//! let app: Router = Router::new()
//!     .route("/orders", post(order))
//!     // After the routes: it applies to the routes that exist already.
//!     .method_not_allowed_fallback(method_not_allowed)
//!     .fallback(not_found)
//!     .layer(IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).required());
//! ```
//!
//! A layer added by `Router::route_layer` sees only requests to existing paths. It needs everything
//! above except [`not_found`].
//!
//! # Requirements
//!
//! A rejection says that your handler has not run. It says nothing about the code before it:
//! extractors to the left of this one, and middleware inside the layer. **That code must have no
//! effects that must not happen twice.** Place an extractor that writes, for example one that
//! counts against a quota, to the right of those that can reject, or outside the layer.

use axum_core::extract::{FromRequest, FromRequestParts, Request};
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use steadfast_server::ExecutionOutcome;

/// A response after which the layer releases the key, because nothing was executed. Adds
/// [`ExecutionOutcome::NotExecuted`] to the response's extensions.
///
/// ```
/// use axum::http::StatusCode;
/// use axum::response::{IntoResponse, Response};
/// use steadfast_axum::NotExecuted;
/// use steadfast_server::ExecutionOutcome;
///
/// fn charge(amount: u64) -> Response {
///     if amount == 0 {
///         return NotExecuted((StatusCode::BAD_REQUEST, "amount is zero")).into_response();
///     }
///     (StatusCode::CREATED, "charged").into_response()
/// }
///
/// assert_eq!(charge(0).status(), StatusCode::BAD_REQUEST);
/// assert_eq!(charge(0).extensions().get(), Some(&ExecutionOutcome::NotExecuted));
/// assert_eq!(charge(5).extensions().get::<ExecutionOutcome>(), None);
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

/// An extractor whose rejection releases the key: `Checked<Json<T>>`, `Checked<Path<T>>`.
///
/// For rejections in your own format, wrap an extractor of yours: derive it with axum's macro
/// `#[derive(FromRequest)]` and `#[from_request(via(axum::Json), rejection(ApiError))]`.
///
/// The rejection is that of `E`, wrapped in [`NotExecuted`]. Code that runs before this extractor
/// must have no effects: see [Requirements](self#requirements).
///
/// ```
/// use axum::body::Body;
/// use axum::extract::{FromRequest, Json, Request};
/// use axum::response::IntoResponse;
/// use steadfast_axum::Checked;
/// use steadfast_server::ExecutionOutcome;
///
/// # #[tokio::main]
/// # async fn main() {
/// let request = Request::post("/orders")
///     .header("content-type", "application/json")
///     .body(Body::from(r#""three""#))
///     .unwrap();
/// let rejection = Checked::<Json<u32>>::from_request(request, &()).await.unwrap_err();
/// let response = rejection.into_response();
///
/// assert_eq!(response.status(), 422);
/// assert_eq!(response.extensions().get(), Some(&ExecutionOutcome::NotExecuted));
/// # }
/// ```
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

/// Returns 404 and releases the key. A handler for `Router::fallback`.
///
/// ```
/// use axum::{Router, routing::post};
/// use steadfast_axum::not_found;
///
/// let app: Router = Router::new()
///     .route("/orders", post(|| async { "ordered" }))
///     .fallback(not_found);
/// ```
pub async fn not_found() -> NotExecuted<StatusCode> {
    NotExecuted(StatusCode::NOT_FOUND)
}

/// Returns 405 and releases the key. A handler for `Router::method_not_allowed_fallback`; axum adds
/// `Allow` (RFC 9110 §15.5.6).
///
/// ```
/// use axum::{Router, routing::post};
/// use steadfast_axum::method_not_allowed;
///
/// let app: Router = Router::new()
///     .route("/orders", post(|| async { "ordered" }))
///     // After the routes: it applies to the routes that exist already.
///     .method_not_allowed_fallback(method_not_allowed);
/// ```
pub async fn method_not_allowed() -> NotExecuted<StatusCode> {
    NotExecuted(StatusCode::METHOD_NOT_ALLOWED)
}
