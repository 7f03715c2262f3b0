//! A limit of the handlers that run under keys at the same time.
//!
//! A limit outside of the layer does not hold: it counts clients that wait, and a handler goes on
//! after its client has disconnected. So this limit counts handlers.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http_body::Body;
use steadfast_core::clock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::execution::ResponseSender;
use super::layer::IdempotencyLayer;
use super::layer_state::LayerState;
use super::request::Operation;
use super::store::{RecordState, Store, StoreError};

/// The limit, and the places that are free.
#[derive(Clone)]
pub(super) struct Concurrency {
    pub(super) max: usize,
    places: Arc<Semaphore>,
}

/// What a request finds that needs a place.
pub(super) enum Entry {
    Place(OwnedSemaphorePermit),
    /// Every place is taken, and the request needs none: this is the state of its key.
    Known(RecordState),
    /// No place came free in time.
    Full,
    /// The client disconnected before a place came free.
    Gone,
}

impl Concurrency {
    fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        Self { max, places: Arc::new(Semaphore::new(max)) }
    }

    /// Returns a place for the handler of this operation. `reruns`: an operation with an unknown
    /// outcome runs again, so it needs a place too.
    pub(super) async fn enter<S: Store, R: Body, E>(
        &self,
        layer: &LayerState<S>,
        operation: &Operation,
        reruns: bool,
        client: &mut ResponseSender<R, E>,
    ) -> Result<Entry, StoreError> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(Entry::Place(place));
        }
        if let Some(known) = known(layer, operation, reruns).await? {
            return Ok(Entry::Known(known));
        }
        let wait = layer.config.concurrency_wait;
        if wait.is_zero() {
            return Ok(Entry::Full);
        }
        let mut free = pin!(self.places.clone().acquire_owned());
        let entering = poll_fn(|cx| {
            // Nothing is claimed yet, so nothing is lost: the next repeat runs.
            if client.poll_closed(cx).is_ready() {
                return Poll::Ready(Entry::Gone);
            }
            free.as_mut().poll(cx).map(|place| place.map_or(Entry::Full, Entry::Place))
        });
        Ok(clock::until(clock::now().checked_add(wait), entering).await.unwrap_or(Entry::Full))
    }
}

/// Returns the state of a key that needs no handler. A repeat is served without a place.
async fn known<S: Store>(
    layer: &LayerState<S>,
    operation: &Operation,
    reruns: bool,
) -> Result<Option<RecordState>, StoreError> {
    let store = &layer.shared.store;
    Ok(match store.get(&operation.id).await? {
        Some(RecordState::Unknown { fingerprint }) if store.parts().claims.is_held(&operation.id) => {
            Some(RecordState::in_progress(fingerprint, layer.config.lease))
        }
        Some(RecordState::Unknown { fingerprint }) if reruns && fingerprint == operation.fingerprint => None,
        state => state,
    })
}

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
    /// counts handlers until they have responded and their body is read. A timeout layer outside
    /// has the same effect as a client that gives up. An outer limit is still useful for requests
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
