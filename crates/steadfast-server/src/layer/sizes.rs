//! The settings for size: of a key, of a request and of a stored response.

use super::IdempotencyLayer;
use crate::store::Store;

/// # Size
impl<S: Store> IdempotencyLayer<S> {
    /// Sets the maximum length of a key, in characters. Default: 255. A longer key is refused with
    /// 400.
    #[must_use]
    pub fn max_key(mut self, characters: usize) -> Self {
        self.state.config.max_key = characters;
        self
    }

    /// Sets the maximum body of a keyed request, in bytes. Default: 1 MiB. A longer body is refused
    /// with 413.
    ///
    /// The body is read before the key is claimed, because it is part of the fingerprint.
    ///
    /// ```
    /// use axum::{Router, body::Body, http::Request, routing::post};
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    /// use tower::ServiceExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .max_body(4);
    /// let app: Router = Router::new().route("/notes", post(async || "noted")).layer(layer);
    /// let request = Request::post("/notes").header("idempotency-key", "1");
    /// let response = app.oneshot(request.body(Body::from("12345"))?).await?;
    /// assert_eq!(response.status(), 413);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.state.config.max_body = bytes;
        self
    }

    /// Sets the maximum length of a response that is kept, in bytes. Default: 1 MiB.
    ///
    /// A longer response, or one of unknown length, is streamed to the client and not kept. A
    /// repeat then gets 410.
    ///
    /// ```
    /// use axum::{Router, body::Body, http::Request, routing::post};
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    /// use tower::ServiceExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .max_response(4);
    /// let app: Router =
    ///     Router::new().route("/reports", post(async || "a long report")).layer(layer);
    /// let request =
    ///     || Request::post("/reports").header("idempotency-key", "1").body(Body::empty());
    /// let first = app.clone().oneshot(request()?).await?;
    /// assert_eq!(first.status(), 200);
    /// let report = axum::body::to_bytes(first.into_body(), 100).await?;
    /// assert_eq!(report, "a long report");
    /// // The operation has completed, and does not run again.
    /// assert_eq!(app.oneshot(request()?).await?.status(), 410);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn max_response(mut self, bytes: usize) -> Self {
        self.state.config.max_response = bytes;
        self
    }
}
