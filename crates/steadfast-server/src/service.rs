//! One request through the layer: read, claimed, and run, replayed or refused.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use steadfast_core::clock;
use steadfast_core::protocol::IdempotencyStatus;
use tokio::sync::oneshot;
use tower_service::Service;

use super::answer::{self, Rejection, ResponseBody};
use super::child_key::OperationKey;
use super::claiming::{self, Claiming, Won};
use super::ending::WonClaim;
use super::layer::IdempotencyLayer;
use super::metrics::count;
use super::poll::{caught, poll_once};
use super::reconcile::{Reconcile, Reconciliation, UnknownOperation};
use super::request::{Operation, Read};
use super::rules::{self, Repeat};
use super::run::{AcquiredClaim, Execution};
use super::running::OneRunning;
use super::store::{Claim, RecordState, Store, StoreError};

/// The service that [`IdempotencyLayer`] makes.
pub struct IdempotencyService<I, S> {
    pub(super) inner: I,
    pub(super) layer: Arc<IdempotencyLayer<S>>,
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
        // The one that is ready goes with the request; its clone will be asked anew.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        if !self.layer.config.covers(request.method()) {
            return Box::pin(pass_by(inner.call(request)));
        }
        Box::pin(handle(self.layer.clone(), inner, request))
    }
}

/// A covered request, from its body to its answer.
///
/// Not an async function: one has room for its arguments twice, and every request in flight would take it.
fn handle<I, S, B, R>(
    layer: Arc<IdempotencyLayer<S>>,
    mut inner: I,
    request: Request<B>,
) -> impl Future<Output = Result<Response<ResponseBody<R>>, I::Error>> + Send
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
    async move {
        let operation = match layer.config.read(&parts, body, &layer.shared.store).await {
            Ok(Read::Operation(operation)) => operation,
            Ok(Read::NotAsked(body)) => return Box::pin(pass_by(inner.call(Request::from_parts(parts, body)))).await,
            Err(refusal) => return Ok(refused(&layer, refusal)),
        };
        let running = OneRunning::of(layer);
        let (answer, answered) = oneshot::channel();
        let mut work = Box::pin(async move {
            let acquired = match decide(&running, &operation, &parts).await {
                Decided::Run(acquired) => acquired,
                Decided::Answer(response) => {
                    // Whoever asked may have hung up.
                    let _hung_up = answer.send(Ok(response));
                    return;
                }
                Decided::Found(acquired, found) => {
                    let mut execution = Execution::<_, _, I::Error>::new(&running, acquired, answer);
                    return Box::pin(execution.found(found)).await;
                }
            };
            let request = Request::from_parts(parts, operation.body.into());
            let (mut execution, called) = Execution::begin(&running, inner, request, acquired, answer);
            execution.run(pin!(called)).await;
        });
        // What is not answered by now goes on as a task of its own, without a pause in between: a client that hangs up while the key is
        // being claimed must not leave a claim that nobody runs.
        if poll_once(work.as_mut()).await.is_pending() {
            tokio::spawn(tracing::Instrument::instrument(work, tracing::Span::current()));
        }
        // The task always answers, unless the runtime drops it.
        answered.await.unwrap_or_else(|_| Ok(Rejection::HandlerFailed.response()))
    }
}

async fn pass_by<R, E>(answer: impl Future<Output = Result<Response<R>, E>>) -> Result<Response<ResponseBody<R>>, E>
where
    R: Body<Data = Bytes>,
{
    answer.await.map(|response| response.map(ResponseBody::passed))
}

/// Once everything is found out.
enum Decided<'a, T, R: Body> {
    Answer(Response<ResponseBody<R>>),
    Run(AcquiredClaim<'a, T>),
    /// An earlier request under the key may have run, and the hook says what came of it.
    Found(AcquiredClaim<'a, T>, Reconciliation),
}

/// Whether the operation runs, and what is answered if not.
///
/// The first poll begins the claim, and answers what a store knows at once; in all other cases it ends as pending, even though the next one
/// goes on at once. So whoever polled it has to hand it to a task of its own, which polls again without being woken.
async fn decide<'a, S: Store, R: Body<Data = Bytes>>(
    layer: &'a IdempotencyLayer<S>,
    operation: &Operation,
    parts: &Parts,
) -> Decided<'a, S::Session, R> {
    let mut settling = pin!(settle(layer, operation));
    let settled = match poll_once(settling.as_mut()).await {
        Poll::Ready(Settled::Answer(response)) => return Decided::Answer(response),
        settled => settled,
    };
    let mut handed_over = false;
    std::future::poll_fn(|_| if std::mem::replace(&mut handed_over, true) { Poll::Ready(()) } else { Poll::Pending })
        .await;
    let settled = match settled {
        Poll::Ready(settled) => settled,
        Poll::Pending => settling.await,
    };
    match settled {
        Settled::Answer(response) => Decided::Answer(response),
        Settled::Run(acquired) => Decided::Run(acquired),
        // Boxed, as what is rare is elsewhere: every operation in flight has room for it.
        Settled::FindOut(acquired, reconcile) => Box::pin(reconciled(operation, parts, acquired, &reconcile)).await,
    }
}

/// Once the key is claimed, or another's.
enum Settled<'a, T, R: Body> {
    Answer(Response<ResponseBody<R>>),
    Run(AcquiredClaim<'a, T>),
    /// The key is ours, and an earlier request under it may have run.
    FindOut(AcquiredClaim<'a, T>, Reconcile),
}

/// Claims the key, waiting for the first request under it where the client asked for that.
async fn settle<'a, S: Store, R: Body<Data = Bytes>>(
    layer: &'a IdempotencyLayer<S>,
    operation: &Operation,
) -> Settled<'a, S::Session, R> {
    let store = &layer.shared.store;
    let Ok(token) = store.token() else {
        return Settled::Answer(refused(layer, Rejection::StoreUnavailable));
    };
    let claim = Claim::new(&operation.id, token, operation.fingerprint, layer.config.lease, layer.config.retention)
        .reserve(layer.config.max_response);
    let reconciles = layer.config.reconcile.is_some();
    let rerun = rules::reruns(layer.config.on_unknown, reconciles);
    let acquired = |Won { session, asked }, take_over| AcquiredClaim {
        won: WonClaim::of(&claim.allow_takeover(take_over)),
        held: store.hold(claim.reference(), claim.lease, asked),
        session,
    };
    let mut claiming = Claiming::new(store, claim);
    let until = operation.wait.and_then(|wait| clock::now().checked_add(wait));
    let mut waited = false;
    // Whoever takes it over is the one who looks; what anybody else is told of it is true as well.
    let mut finds_out = false;
    loop {
        let take_over = rerun || finds_out;
        let mut state = match claiming.ask(take_over).await {
            Ok(claiming::Answer::Won(won)) => {
                claiming.begins();
                let acquired = acquired(won, take_over);
                return match &layer.config.reconcile {
                    Some(reconcile) if finds_out => Settled::FindOut(acquired, reconcile.clone()),
                    _ => Settled::Run(acquired),
                };
            }
            Ok(claiming::Answer::Known(state)) => state,
            Err(error) => return Settled::Answer(refused(layer, of_store(&error))),
        };
        let wait = || until.filter(|until| *until > clock::now());
        let same = match rules::repeat(&state, operation.fingerprint, reconciles && !finds_out, wait) {
            Repeat::FindOut => {
                finds_out = true;
                continue;
            }
            Repeat::Wait(until) => {
                (waited, finds_out) = (true, false);
                Box::pin(layer.shared.waits.wait(store, operation.id, until)).await;
                continue;
            }
            Repeat::OtherRequest => false,
            Repeat::Tell => true,
        };
        // Whoever asks for something else is told so, whatever the record holds.
        if same && let Err(error) = layer.config.open(&operation.id, &mut state) {
            return Settled::Answer(refused(layer, of_store(&error)));
        }
        return Settled::Answer(known(layer, state, same, waited));
    }
}

fn lapse(operation: &Operation, parts: &Parts) -> UnknownOperation {
    UnknownOperation {
        operation: OperationKey::of(operation.id),
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        headers: parts.headers.clone(),
        body: operation.body.clone(),
    }
}

/// Asks the hook, under the claim that it may make true.
async fn reconciled<'a, T, R: Body<Data = Bytes>>(
    operation: &Operation,
    parts: &Parts,
    acquired: AcquiredClaim<'a, T>,
    reconcile: &Reconcile,
) -> Decided<'a, T, R> {
    let lapse = lapse(operation, parts);
    // Called in the future, so that a hook that panics at once has found nothing out, either.
    let find = pin!(async { reconcile.find(lapse).await });
    match caught(find).await.unwrap_or(Reconciliation::Unknown) {
        Reconciliation::NotApplied => Decided::Run(acquired),
        found => Decided::Found(acquired, found),
    }
}

/// The answer to a repeat.
pub(super) fn known<S, R: Body>(
    layer: &IdempotencyLayer<S>,
    state: RecordState,
    same: bool,
    waited: bool,
) -> Response<ResponseBody<R>> {
    let counters = &layer.shared.counters;
    let (counter, mut response, told) = match state {
        _ if !same => {
            count(&counters.mismatched);
            return Rejection::OtherRequest(stored_4xx(&state)).response();
        }
        RecordState::Completed { record, .. } => {
            let counter = if waited { &counters.waited } else { &counters.replayed };
            (counter, answer::replay(record, layer.config.event.is_some()), IdempotencyStatus::Replayed)
        }
        RecordState::InProgress { .. } => {
            (&counters.in_progress, Rejection::InProgress.response(), IdempotencyStatus::InProgress)
        }
        RecordState::Unknown { .. } => {
            (&counters.refused_unknown, Rejection::OutcomeUnknown.response(), IdempotencyStatus::Unknown)
        }
    };
    count(counter);
    answer::put_status(told, &mut response, &layer.config.terms);
    if waited {
        response.headers_mut().insert("preference-applied", HeaderValue::from_static("wait"));
    }
    response
}

/// The status that is stored under a key, if the client has made a mistake.
fn stored_4xx(state: &RecordState) -> Option<StatusCode> {
    let RecordState::Completed { record, .. } = state else { return None };
    Some(record.status()).filter(StatusCode::is_client_error)
}

fn refused<S, R: Body>(layer: &IdempotencyLayer<S>, refusal: Rejection) -> Response<ResponseBody<R>> {
    let down = matches!(refusal, Rejection::StoreUnavailable | Rejection::StoreFull);
    count(if down { &layer.shared.counters.store_down } else { &layer.shared.counters.refused });
    refusal.response()
}

fn of_store(error: &StoreError) -> Rejection {
    tracing::error!(target: "steadfast", %error, "a key could not be claimed");
    match error {
        StoreError::Unavailable(_) | StoreError::RolledBack(_) | StoreError::IdentityMismatch(_) => {
            Rejection::StoreUnavailable
        }
        StoreError::Full | StoreError::Busy => Rejection::StoreFull,
        StoreError::Unreadable(_) => Rejection::RecordUnreadable,
    }
}
