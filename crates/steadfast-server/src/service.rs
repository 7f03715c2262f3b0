//! One request through the layer: read it, claim its key, run its handler, respond.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use tokio::sync::oneshot;
use tower_service::Service;
use tracing::Instrument;

use super::decide::{Step, decide};
use super::execution::{Execution, ResponseSender};
use super::layer_state::LayerState;
use super::metrics::Route;
use super::rejection::Rejection;
use super::request::{Operation, ReadRequest};
use super::response::reject;
use super::response_body::ResponseBody;
use super::store::Store;

/// The service that [`IdempotencyLayer`](super::IdempotencyLayer) wraps around yours.
/// [`WebhookLayer`](super::WebhookLayer) makes the same one.
pub struct IdempotencyService<I, S> {
    pub(super) inner: I,
    pub(super) layer: Arc<LayerState<S>>,
}

impl<I: Clone, S> Clone for IdempotencyService<I, S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<I: fmt::Debug, S> fmt::Debug for IdempotencyService<I, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<I, S, B, R> Service<Request<B>> for IdempotencyService<I, S>
where
    S: Store,
    I: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    I::Future: Send,
    I::Error: Send + 'static,
    B: Body + From<Bytes> + Send + 'static,
    B::Data: Send,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    type Response = Response<ResponseBody<R>>;
    type Error = I::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, I::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The instance that is ready takes the request, and its clone is polled for the next one.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        if !self.layer.config.covers(request.method()) {
            return Box::pin(pass_through(inner.call(request)));
        }
        Box::pin(serve(self.layer.clone(), inner, request))
    }
}

async fn pass_through<R, E>(call: impl Future<Output = Result<Response<R>, E>>) -> Result<Response<ResponseBody<R>>, E>
where
    R: Body<Data = Bytes>,
{
    call.await.map(|response| response.map(ResponseBody::passed))
}

/// Serves a request of a covered method.
async fn serve<I, S, B, R>(
    layer: Arc<LayerState<S>>,
    mut inner: I,
    request: Request<B>,
) -> Result<Response<ResponseBody<R>>, I::Error>
where
    S: Store,
    I: Service<Request<B>, Response = Response<R>> + Send + 'static,
    I::Future: Send,
    I::Error: Send + 'static,
    B: Body + From<Bytes> + Send + 'static,
    B::Data: Send,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let (parts, body) = request.into_parts();
    let operation = match layer.config.read(&parts, body, &layer.shared.store).await {
        Ok(ReadRequest::Operation(operation)) => operation,
        Ok(ReadRequest::NotAsked(body)) => {
            return Box::pin(pass_through(inner.call(Request::from_parts(parts, body)))).await;
        }
        Err(rejection) => return Ok(reject(&layer, (None, &Route::of(&parts)), rejection)),
    };
    let format = layer.config.rejection_format.clone();
    let (sender, response) = oneshot::channel();
    // The operation gets a task of its own before it claims the key. A client that disconnects must
    // leave neither a claim without a handler, nor a handler that stops half way.
    let running = layer.shared.running.clone();
    // Boxed, so that the task gets a pointer and not the whole operation.
    let work = Box::pin(run_operation(layer, inner, parts, operation, sender));
    tokio::spawn(running.track_future(work.in_current_span()));
    // The task always responds, unless the runtime drops it.
    response.await.unwrap_or_else(|_| Ok(Rejection::HandlerFailed.response(format.as_ref())))
}

/// Claims the key of an operation, runs its handler if the key is free, and responds.
async fn run_operation<I, S, B, R>(
    layer: Arc<LayerState<S>>,
    inner: I,
    parts: Parts,
    operation: Operation,
    mut sender: ResponseSender<R, I::Error>,
) where
    S: Store,
    I: Service<Request<B>, Response = Response<R>>,
    I::Error: Send + 'static,
    B: From<Bytes>,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    match decide(&layer, &operation, &parts, &mut sender).await {
        Step::Gone => {}
        Step::Respond(response) => {
            let _disconnected = sender.send(Ok(response));
        }
        Step::Run(acquired) => {
            let request = Request::from_parts(parts, operation.body.into());
            let (mut execution, called) = Execution::begin(&layer, inner, request, acquired, sender);
            execution.run(pin!(called)).await;
        }
        Step::Reconciled(acquired, reconciliation) => {
            let mut execution = Execution::<_, _, I::Error>::new(&layer, acquired, Route::of(&parts), sender);
            Box::pin(execution.reconciled(reconciliation)).await;
        }
    }
}
