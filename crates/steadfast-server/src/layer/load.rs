//! The settings that limit what runs at a time, and how long a client may hold it up.

use std::time::Duration;

use super::IdempotencyLayer;
use crate::concurrency::Concurrency;
use crate::store::Store;

/// # Load
impl<S: Store> IdempotencyLayer<S> {
    /// Sets how many handlers may run under keys at the same time. Default: no limit. At least 1.
    ///
    /// If all places are taken, a request with a new key gets 503 of the type `too-many-running`
    /// with `Retry-After`. Its key is not claimed, and nothing is executed. A repeat of a running
    /// or completed request needs no place. With
    /// [`concurrency_wait`](Self::concurrency_wait), a request waits for a place first.
    ///
    /// # Why not a `ConcurrencyLimitLayer`?
    ///
    /// Because that layer counts requests whose client still waits. A handler under a key goes on
    /// when its client disconnects, and the outer layer counts it no longer. Under an outer limit
    /// of 2, clients that gave up after 50 ms had 11 to 18 handlers running at once. This setting
    /// counts a handler until it has responded. If the end of the operation waits for the body, it
    /// counts until the body is read. A timeout layer outside has the same effect as a client that
    /// gives up. An outer limit is still useful for requests
    /// without a key, which end with their client.
    ///
    /// Clones of the layer share the limit. Set it on one layer and clone it; two layers have two
    /// limits, even over one store.
    ///
    /// ```
    /// use axum::{Router, body::Body, http::Request, routing::post};
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    /// use tower::ServiceExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .max_concurrency(1);
    /// let hangs = async || std::future::pending::<&str>().await;
    /// let app: Router = Router::new().route("/reports", post(hangs)).layer(layer.clone());
    /// let ask = |key| Request::post("/reports").header("idempotency-key", key).body(Body::empty());
    /// tokio::spawn(app.clone().oneshot(ask("1")?));
    /// while layer.metrics().executed == 0 {
    ///     tokio::task::yield_now().await;
    /// }
    /// let refused = app.oneshot(ask("2")?).await?;
    /// assert_eq!(refused.status(), 503);
    /// assert_eq!(layer.metrics().executed, 1);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn max_concurrency(mut self, handlers: usize) -> Self {
        self.state.config.concurrency = Some(Concurrency::new(handlers));
        self
    }

    /// Sets how long a request waits for a place under [`max_concurrency`](Self::max_concurrency).
    /// Default: zero. The request is refused at once.
    ///
    /// Requests get places in the order in which they came. A request whose client disconnects
    /// stops waiting and never runs. Keep the wait below the timeout of your clients.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// // Eight handlers at a time. A burst waits for up to two seconds.
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .max_concurrency(8)
    ///     .concurrency_wait(Duration::from_secs(2));
    /// ```
    #[must_use]
    pub fn concurrency_wait(mut self, wait: Duration) -> Self {
        self.state.config.concurrency_wait = wait;
        self
    }

    /// Sets how long a streamed response waits for a client that does not read. Default: 30 s.
    ///
    /// The time starts anew with each piece of the body that the client takes, as nginx's
    /// [`send_timeout`](https://nginx.org/en/docs/http/ngx_http_core_module.html#send_timeout)
    /// does. A client that reads slowly is not cut off.
    ///
    /// A client that exceeds it is treated as one that has disconnected: it gets no more of the
    /// body. The rest is read from the handler, and the end is recorded as usual. A repeat gets
    /// 410, because streamed responses are not kept. Without this limit, such a client would hold
    /// the claim of its key and keep [`drain`](Self::drain) from ending.
    ///
    /// To limit the whole time, set [`max_handler_time`](Self::max_handler_time), which includes
    /// the body. A response within [`max_response`](Self::max_response) waits for no reader.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    ///
    /// // The orchestrator kills the process 20 s after it has asked it to stop.
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
    ///     .max_reader_wait(Duration::from_secs(10));
    /// ```
    #[must_use]
    pub fn max_reader_wait(mut self, wait: Duration) -> Self {
        self.state.config.max_reader_wait = wait;
        self
    }
}
