//! One request through the layer: read, claimed, and run, replayed or refused.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use tokio::sync::oneshot;
use tower_service::Service;

use super::answer::{self, Refusal, ResponseBody, Told};
use super::layer::{Config, Lapsed, Shared};
use super::metrics::count;
use super::request::fingerprint;
use super::run::{self, Ticket};
use super::store::{Claim, ClaimToken, Claimed, Fingerprint, RecordId, State, Store, StoreError};
use crate::clock;

/// The service that [`IdempotencyLayer`](super::IdempotencyLayer) makes.
pub struct IdempotencyService<I, S> {
    pub(super) inner: I,
    pub(super) config: Arc<Config>,
    pub(super) shared: Arc<Shared<S>>,
}

impl<I: Clone, S> Clone for IdempotencyService<I, S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), config: self.config.clone(), shared: self.shared.clone() }
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
    R::Error: Send,
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
        let inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(handle(self.config.clone(), self.shared.clone(), inner, request))
    }
}

async fn handle<I, S, B, R>(
    config: Arc<Config>,
    shared: Arc<Shared<S>>,
    mut inner: I,
    request: Request<B>,
) -> Result<Response<ResponseBody<R>>, I::Error>
where
    S: Store,
    I: Service<Request<B>, Response = Response<R>> + Send + 'static,
    I::Future: Send,
    I::Error: Send + 'static,
    B: Body + From<Bytes> + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Send,
{
    if !config.covers(request.method()) {
        return pass_by(&mut inner, request).await;
    }
    let (parts, body) = request.into_parts();
    let key = match config.key(&parts.headers) {
        Ok(Some(key)) => key,
        Ok(None) => return pass_by(&mut inner, Request::from_parts(parts, body)).await,
        Err(refusal) => return Ok(refused(&shared, refusal)),
    };
    let operation = async {
        let id = config.record_id(&parts, &key)?;
        let body = config.body(&parts.headers, body).await?;
        Ok(Operation { id, fingerprint: fingerprint(&parts, &body), wait: config.wait(&parts.headers), body })
    };
    let operation = match operation.await {
        Ok(operation) => operation,
        Err(refusal) => return Ok(refused(&shared, refusal)),
    };
    let running = shared.running.one();
    let mut settling = Box::pin({
        let (config, shared) = (config.clone(), shared.clone());
        async move { (settle(&config, &shared, &operation).await, operation.body) }
    });
    // A store that answers at once needs no task to tell what it knows.
    let settled = match std::future::poll_fn(|cx| Poll::Ready(settling.as_mut().poll(cx))).await {
        Poll::Ready((Settled::Answer(response), _)) => return Ok(response),
        Poll::Ready(settled) => Some(settled),
        Poll::Pending => None,
    };
    // From here on, without a pause in between, a task of its own: a client that hangs up while the key is being claimed must not
    // leave a claim that nobody runs.
    let (answer, answered) = oneshot::channel();
    let work = async move {
        let _running = running;
        let (settled, body) = match settled {
            Some(settled) => settled,
            None => settling.await,
        };
        match settled {
            Settled::Answer(response) => {
                let _hung_up = answer.send(Ok(response));
            }
            Settled::Run(ticket) => {
                let request = Request::from_parts(parts, body.into());
                run::execute(config, shared, inner, request, ticket, answer).await;
            }
        }
    };
    tokio::spawn(tracing::Instrument::instrument(work, tracing::Span::current()));
    // The task always answers, unless the runtime drops it.
    answered.await.unwrap_or_else(|_| Ok(Refusal::HandlerFailed.response()))
}

async fn pass_by<I, B, R>(inner: &mut I, request: Request<B>) -> Result<Response<ResponseBody<R>>, I::Error>
where
    I: Service<Request<B>, Response = Response<R>>,
    R: Body<Data = Bytes>,
{
    let (parts, body) = inner.call(request).await?.into_parts();
    Ok(Response::from_parts(parts, ResponseBody::Passed { body }))
}

/// A covered request that has a key.
struct Operation {
    id: RecordId,
    fingerprint: Fingerprint,
    wait: Option<std::time::Duration>,
    body: Bytes,
}

enum Settled<T, R: Body> {
    Answer(Response<ResponseBody<R>>),
    Run(Ticket<T>),
}

/// Claims the key, waiting for the first request under it where the client asked for that.
async fn settle<S: Store, R: Body<Data = Bytes>>(
    config: &Config,
    shared: &Shared<S>,
    operation: &Operation,
) -> Settled<S::Session, R> {
    let Ok(token) = ClaimToken::new() else { return Settled::Answer(refused(shared, Refusal::StoreUnavailable)) };
    let claim = Claim::new(&operation.id, token, operation.fingerprint, config.lease, config.retention)
        .taking_over(config.lapsed == Lapsed::Rerun)
        .reserving(config.max_response);
    let until = operation.wait.and_then(|wait| clock::now().checked_add(wait));
    let mut waited = false;
    loop {
        let state = match claim_or_repeat(&*shared.store, &claim).await {
            Ok(Claimed::Won(session)) => return Settled::Run(Ticket { id: operation.id, token, session }),
            Ok(Claimed::Known(state)) => state,
            Err(error) => return Settled::Answer(refused(shared, of_store(&error))),
        };
        // What cannot be seen yet is taken for the same: it is told "in progress", and the truth at its end.
        let same = state.fingerprint().is_none_or(|fingerprint| fingerprint == operation.fingerprint);
        let running = matches!(state, State::Running { .. });
        if let (true, true, Some(until)) = (same, running, until.filter(|until| *until > clock::now())) {
            waited = true;
            shared.waits.wait(&shared.store, operation.id, until).await;
            continue;
        }
        return Settled::Answer(known(config, shared, &state, same, waited));
    }
}

/// A claim whose reply was lost may have been made, and would block the key until it lapses. Its token makes it safe to ask once
/// more.
async fn claim_or_repeat<S: Store>(store: &S, claim: &Claim<'_>) -> Result<Claimed<S::Session>, StoreError> {
    match store.claim(claim).await {
        Err(StoreError::Unavailable(_)) => store.claim(claim).await,
        claimed => claimed,
    }
}

/// The answer to a repeat.
fn known<S, R: Body>(
    config: &Config,
    shared: &Shared<S>,
    state: &State,
    same: bool,
    waited: bool,
) -> Response<ResponseBody<R>> {
    let counters = &shared.counters;
    let (counter, mut response, told) = match state {
        _ if !same => {
            count(&counters.mismatched);
            return Refusal::OtherRequest.response();
        }
        State::Done { record, .. } => {
            let counter = if waited { &counters.waited } else { &counters.replayed };
            (counter, answer::replay(record), Told::Replayed)
        }
        State::Running { .. } => (&counters.in_progress, Refusal::InProgress.response(), Told::InProgress),
        State::Unknown { .. } => (&counters.refused_unknown, Refusal::OutcomeUnknown.response(), Told::Unknown),
    };
    count(counter);
    told.on(&mut response, config.retention, config.covers.as_deref());
    if waited {
        response.headers_mut().insert("preference-applied", HeaderValue::from_static("wait"));
    }
    response
}

fn refused<S, R: Body>(shared: &Shared<S>, refusal: Refusal) -> Response<ResponseBody<R>> {
    let down = matches!(refusal, Refusal::StoreUnavailable | Refusal::StoreFull);
    count(if down { &shared.counters.store_down } else { &shared.counters.refused });
    refusal.response()
}

fn of_store(error: &StoreError) -> Refusal {
    tracing::error!(target: "steadfast", %error, "a key could not be claimed");
    match error {
        StoreError::Unavailable(_) => Refusal::StoreUnavailable,
        StoreError::Full => Refusal::StoreFull,
        StoreError::Unreadable(_) => Refusal::RecordUnreadable,
    }
}
