//! A layer that refuses a request whose caller no longer waits, before any work is done for it.
//!
//! An overloaded server works through requests whose callers have long left. Each of them delays
//! the next, so the overload outlives its cause. If clients send how long they wait, the server can
//! drop late requests.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Request, Response};
use http_body::Body;
use steadfast_core::deadline::{Deadline, with_deadline};
use steadfast_core::protocol;
use tower_service::Service;

use super::rejection::Rejection;
use super::rejection_format::RejectionFormat;
use super::response_body::ResponseBody;

/// A [tower](https://docs.rs/tower) layer that refuses a request if its caller waits for less time
/// than the work takes.
///
/// # The header
///
/// The header holds whole milliseconds in digits, counted from the moment the request was sent.
/// This project's client sends it with
/// [`deadline_header`](https://docs.rs/steadfast/latest/steadfast/struct.ClientBuilder.html#method.deadline_header),
/// and Envoy sends it as `x-envoy-expected-rq-timeout-ms`. A missing header, or one with any other
/// value, sets no deadline.
///
/// # The refusal
///
/// A refusal is a 503 problem of the type `deadline-passed`. Nothing was executed, so the client
/// classifies it as not processed.
///
/// It is not a 408, which means an incomplete request (RFC 9110 §15.5.9). It is not a 504, which a
/// gateway sends about another server (§15.6.5). By §15.6.4, a 503 means that the server cannot
/// handle the request at present.
///
/// # Position
///
/// Place it outside [`IdempotencyLayer`](super::IdempotencyLayer), so that it refuses before a key
/// is claimed. You can add a second one further in, behind a queue or a concurrency limit. It
/// continues with the deadline of the first, and refuses a request that is too late by then.
///
/// # In the handler
///
/// The [`Deadline`] is in the request's extensions. It is also the task's ([`with_deadline`]), so
/// calls with this project's client in the handler end in time.
/// [`IdempotencyLayer`](super::IdempotencyLayer) runs handlers on a task of its own, where the
/// deadline is in the extensions only.
///
/// ```
/// use std::time::Duration;
/// use axum::{Router, routing::post};
/// use steadfast::http::HeaderName;
/// use steadfast_server::{DeadlineLayer, IdempotencyLayer, MemoryStore, Scope};
///
/// let header = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
/// let app: Router = Router::new()
///     .route("/charges", post(async || "charged"))
///     .layer(IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()))
///     // The last layer is the outermost.
///     .layer(DeadlineLayer::new(header).min_remaining(Duration::from_millis(20)));
/// ```
#[derive(Clone, Debug)]
pub struct DeadlineLayer {
    header: HeaderName,
    least: Duration,
    format: Option<RejectionFormat>,
}

impl DeadlineLayer {
    /// Creates a layer that reads the deadline from this header.
    #[must_use]
    pub fn new(header: HeaderName) -> Self {
        Self { header, least: Duration::ZERO, format: None }
    }

    /// Sets the time that the work takes at least. A request with no more time left is refused.
    /// Default: zero.
    ///
    /// Behind a queue, include the way back. Otherwise an overloaded server begins each request
    /// just in time to be late: see [the
    /// simulation](https://docs.rs/steadfast/latest/steadfast/guide/overload/#in-the-simulation).
    ///
    /// ```
    /// use std::time::Duration;
    /// use axum::{Router, body::Body, http::Request, routing::post};
    /// use http::HeaderName;
    /// use steadfast_server::DeadlineLayer;
    /// use tower::ServiceExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let header = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
    /// let layer = DeadlineLayer::new(header).min_remaining(Duration::from_millis(50));
    /// let app: Router = Router::new().route("/charges", post(async || "charged")).layer(layer);
    /// let request = |left: &'static str| {
    ///     let request = Request::post("/charges").header("x-envoy-expected-rq-timeout-ms", left);
    ///     request.body(Body::empty())
    /// };
    /// assert_eq!(app.clone().oneshot(request("5000")?).await?.status(), 200);
    /// assert_eq!(app.oneshot(request("20")?).await?.status(), 503);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn min_remaining(mut self, time: Duration) -> Self {
        self.least = time;
        self
    }

    /// Sets the format of the refusal, as
    /// [`IdempotencyLayer::rejection_format`](super::IdempotencyLayer::rejection_format) does.
    /// Default: a problem.
    ///
    /// This project's client recognises a refusal by its problem type. In another format it calls
    /// the 503 ambiguous, because it cannot tell that nothing was executed.
    #[must_use]
    pub fn rejection_format(mut self, format: RejectionFormat) -> Self {
        self.format = Some(format);
        self
    }

    /// Returns the deadline of this request, or an error if it is too near.
    fn deadline<B>(&self, request: &Request<B>) -> Result<Option<Deadline>, Rejection> {
        let known = request.extensions().get::<Deadline>().copied();
        let told = || request.headers().get(&self.header).and_then(protocol::deadline_from_header).map(Deadline::from);
        match known.or_else(told) {
            Some(deadline) if deadline.time_left() <= self.least => Err(Rejection::DeadlinePassed),
            deadline => Ok(deadline),
        }
    }
}

impl<Inner> tower_layer::Layer<Inner> for DeadlineLayer {
    type Service = DeadlineService<Inner>;

    fn layer(&self, inner: Inner) -> Self::Service {
        DeadlineService { inner, layer: self.clone() }
    }
}

/// The service that [`DeadlineLayer`] makes.
#[derive(Clone)]
pub struct DeadlineService<I> {
    inner: I,
    layer: DeadlineLayer,
}

impl<I: fmt::Debug> fmt::Debug for DeadlineService<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineService").field("inner", &self.inner).field("layer", &self.layer).finish()
    }
}

impl<I, B, R> Service<Request<B>> for DeadlineService<I>
where
    I: Service<Request<B>, Response = Response<R>>,
    I::Future: Send + 'static,
    R: Body<Data = Bytes>,
{
    type Response = Response<ResponseBody<R>>;
    type Error = I::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, I::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let deadline = match self.layer.deadline(&request) {
            Ok(deadline) => deadline,
            Err(refusal) => {
                let format = self.layer.format.clone();
                return Box::pin(async move { Ok(refusal.response(format.as_ref())) });
            }
        };
        let passed = |response: Response<R>| response.map(ResponseBody::passed);
        let Some(deadline) = deadline else {
            let inner = self.inner.call(request);
            return Box::pin(async move { inner.await.map(passed) });
        };
        request.extensions_mut().insert(deadline);
        let inner = self.inner.call(request);
        Box::pin(async move { with_deadline(deadline, inner).await.map(passed) })
    }
}
