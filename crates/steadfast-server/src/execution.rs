//! One execution: from the acquired claim to the stored end.
//!
//! It runs on a task that belongs to the operation and not to the connection, so a client that
//! disconnects does not stop it. Whatever happens in it (a response, an error, a panic) becomes an
//! end in the store. If the end cannot be written, its lease expires and the outcome is unknown.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use steadfast_core::clock;
use steadfast_core::protocol::IdempotencyStatus;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tower_service::Service;

use super::body::{Reader, pump, whole};
use super::ending::{Ending, WonClaim};
use super::held::{HeldClaim, HeldClaims, HeldGuard};
use super::layer_state::LayerState;
use super::metrics::{Counter, Route, count};
use super::nested;
use super::outcome::ExecutionOutcome;
use super::poll::{Panicked, caught, poll_once};
use super::reconcile::Reconciliation;
use super::rejection::Rejection;
use super::response::{replay, respond_to_repeat};
use super::response_body::ResponseBody;
use super::rules::{self, AfterAnswer, CompletionAnswer, Written};
use super::store::{Completion, End, RecordState, Store};
use super::store::{Record, RecordId};
use super::transaction::TransactionHandle;

/// A claim that acquired its key.
pub(super) struct AcquiredClaim<'a, T> {
    pub(super) won: WonClaim,
    pub(super) held: HeldGuard<&'a HeldClaims>,
    pub(super) session: T,
    /// Its place under the limit of running handlers.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

pub(super) type ResponseSender<R, E> = oneshot::Sender<Result<Response<ResponseBody<R>>, E>>;

/// How a handler has ended. Each variant has the session, unless the handler has not returned it.
enum Handled<R, E, T> {
    /// With a response that can be replayed.
    Kept(Response<R>, T, Option<ExecutionOutcome>),
    /// With a response that is too long to keep, or of unknown length.
    Streamed(Response<R>, T, Option<ExecutionOutcome>),
    /// With a response, and nothing was executed.
    Released(Response<R>, T),
    /// With a response, and an unknown outcome.
    Unsure(Response<R>, T),
    /// With an error of the service, and an unknown outcome.
    Failed(E, Option<T>),
    /// Without a response, and with an unknown outcome.
    Silent(Rejection, Option<T>),
}

/// An operation whose handler has been called.
pub(super) struct Execution<'a, S: Store, R: Body, E> {
    layer: &'a LayerState<S>,
    won: WonClaim,
    _held: HeldGuard<&'a HeldClaims>,
    transaction: TransactionHandle<S::Session>,
    route: Route,
    answer: Option<ResponseSender<R, E>>,
    /// Given back when the handler has responded and its body is read.
    place: Option<OwnedSemaphorePermit>,
    /// When the handler is cancelled.
    until: Option<Instant>,
}

impl<'a, S, R, E> Execution<'a, S, R, E>
where
    S: Store,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    E: Send + 'static,
{
    pub(super) fn new(
        layer: &'a LayerState<S>,
        acquired: AcquiredClaim<'a, S::Session>,
        route: Route,
        answer: ResponseSender<R, E>,
    ) -> Self {
        let AcquiredClaim { won, held, session, place } = acquired;
        let until = layer.config.max_handler_time.and_then(|time| clock::now().checked_add(time));
        let transaction = TransactionHandle::new(session);
        Self { layer, won, _held: held, transaction, route, answer: Some(answer), place, until }
    }

    /// Passes `request` to the handler, under the acquired key. Returns `None` instead of the
    /// handler's future if it panicked at once. (An option can be pinned, and emptied in place.)
    pub(super) fn begin<I, B>(
        layer: &'a LayerState<S>,
        mut inner: I,
        mut request: Request<B>,
        acquired: AcquiredClaim<'a, S::Session>,
        answer: ResponseSender<R, E>,
    ) -> (Self, Option<I::Future>)
    where
        I: Service<Request<B>, Response = Response<R>, Error = E>,
    {
        let execution = Self::new(layer, acquired, Route::of_request(&request), answer);
        let Self { won, transaction, route, .. } = &execution;
        let claims = layer.shared.store.parts().claims.clone();
        request.extensions_mut().insert(HeldClaim::new(claims, won.claim));
        nested::enter(request.extensions_mut(), won.claim.id, &layer.shared.store);
        if S::TRANSACTIONAL {
            request.extensions_mut().insert(transaction.clone());
        }
        count(&layer.shared.counters.executed, Some(&won.claim.id), route);
        // The service moves into the call, so that its resources are not held until the response
        // body has been read.
        let called = std::panic::catch_unwind(AssertUnwindSafe(move || inner.call(request)));
        (execution, called.ok())
    }

    /// Ends the operation with the result of the reconciliation, instead of the handler's.
    pub(super) async fn reconciled(&mut self, reconciliation: Reconciliation) {
        match reconciliation {
            Reconciliation::Applied(response) => self.applied(response).await,
            _ => {
                let response =
                    respond_to_repeat(self.layer, self.about(), RecordState::unknown(self.won.fingerprint), false);
                self.abandon(self.transaction.take(), Ok(response)).await;
            }
        }
        self.layer.shared.waits.ended(&self.won.claim.id);
    }

    /// Ends an operation that was carried out, with its response.
    async fn applied(&mut self, response: Response<Bytes>) {
        let WonClaim { fingerprint, lease, .. } = self.won;
        let (parts, body) = response.into_parts();
        let record = self.layer.config.record(parts.status, &parts.headers, body);
        let sealed = self.layer.config.sealed(&self.won.claim.id, record.clone());
        let end = End::Completed(Completion::new(sealed, self.layer.config.retention));
        let answer = |this: &Self, by_then| {
            Ok(match by_then {
                Some(Written::Stored) => {
                    respond_to_repeat(this.layer, this.about(), RecordState::completed(fingerprint, record), false)
                }
                Some(Written::Lost) => {
                    respond_to_repeat(this.layer, this.about(), RecordState::in_progress(fingerprint, lease), false)
                }
                // The response is true even if its end is not stored. The next repeat then calls
                // the hook again.
                Some(Written::RolledBack | Written::GivenUp) | None => {
                    this.with_status(replay(&this.layer.config, record, false), IdempotencyStatus::Unknown)
                }
            })
        };
        self.finish(self.transaction.take(), &end, &self.layer.shared.counters.stored, answer).await;
    }

    /// Runs the handler until its end is stored.
    pub(super) async fn run(&mut self, mut called: Pin<&mut Option<impl Future<Output = Result<Response<R>, E>>>>) {
        let worked = {
            // Reading the response body is part of the work: it may take longer than the handler,
            // and its reader may be slow.
            let work = pin!(async {
                let handled = match called.as_mut().as_pin_mut() {
                    Some(handling) => self.in_time(caught(handling)).await,
                    None => Ok(Err(Panicked)),
                };
                // The handler's resources, such as the session or a permit, are dropped before its
                // end is stored.
                called.set(None);
                let handled = self.end_of(handled);
                self.end(handled).await;
            });
            caught(work).await
        };
        // Destructors panic too: those of the handler and of its response.
        if let Err(Panicked) = worked {
            self.give_up(self.transaction.take(), Rejection::HandlerFailed).await;
        }
        self.layer.shared.waits.ended(&self.won.claim.id);
    }

    /// Runs `work` within the time limit of the handler.
    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, TookTooLong> {
        if self.until.is_none() {
            return Ok(work.await);
        }
        Box::pin(clock::until(self.until, work)).await.map_err(|clock::TimedOut| {
            tracing::error!(target: "steadfast", id = ?self.won.claim.id, "a handler was cancelled: it exceeded its time limit");
            TookTooLong
        })
    }

    async fn end(&mut self, handled: Handled<R, E, S::Session>) {
        match handled {
            Handled::Kept(response, session, outcome) => self.keep(response, session, outcome).await,
            // Boxed, because it is rare: every operation in flight would carry the room for it.
            Handled::Streamed(response, session, outcome) => Box::pin(self.stream(response, session, outcome)).await,
            Handled::Released(response, session) => self.release(response, session).await,
            Handled::Unsure(response, session) => {
                let response = self.with_status(response.map(ResponseBody::passed), self.unknown_status());
                self.abandon(Some(session), Ok(response)).await;
            }
            Handled::Failed(error, session) => self.abandon(session, Err(error)).await,
            Handled::Silent(refusal, session) => self.give_up(session, refusal).await,
        }
    }

    /// Returns what the handler's result means for the key.
    fn end_of(
        &self,
        handled: Result<Result<Result<Response<R>, E>, Panicked>, TookTooLong>,
    ) -> Handled<R, E, S::Session> {
        let (response, session) = match (handled, self.transaction.take()) {
            (Err(TookTooLong), session) => return Handled::Silent(Rejection::HandlerTimedOut, session),
            (Ok(Err(Panicked)), session) => return Handled::Silent(Rejection::HandlerFailed, session),
            (Ok(Ok(Err(error))), session) => return Handled::Failed(error, session),
            (Ok(Ok(Ok(_))), None) => return Handled::Silent(Rejection::TransactionLost, None),
            (Ok(Ok(Ok(response))), Some(session)) => (response, session),
        };
        let (outcome, status) = (response.extensions().get::<ExecutionOutcome>().copied(), response.status());
        match rules::after_answer(outcome, is_success(status), || self.layer.config.gives_back(status)) {
            AfterAnswer::Release => Handled::Released(response, session),
            AfterAnswer::Unknown => Handled::Unsure(response, session),
            AfterAnswer::Complete if self.can_keep(response.body()) => Handled::Kept(response, session, outcome),
            AfterAnswer::Complete => Handled::Streamed(response, session, outcome),
        }
    }

    /// Returns whether the body's length is known and within the limit.
    fn can_keep(&self, body: &R) -> bool {
        let most = u64::try_from(self.layer.config.max_response).unwrap_or(u64::MAX);
        body.size_hint().exact().is_some_and(|length| length <= most)
    }

    /// Ends the claim. Sends `answer` once the end is stored, or after the end wait; then it
    /// continues writing.
    async fn finish(
        &mut self,
        session: Option<S::Session>,
        end: &End,
        counter: &Counter,
        answer: impl FnOnce(&Self, Option<Written>) -> Result<Response<ResponseBody<R>>, E>,
    ) {
        let sender = self.answer.take();
        // The end may wait long for an unavailable store, and the handler has ended.
        self.place = None;
        let mut writing = pin!(self.write(session, end));
        let by_then = self.by_then(writing.as_mut(), counter).await;
        if let Some(sender) = sender {
            // The client disconnected; the operation goes on.
            let _hung_up = sender.send(answer(self, by_then));
        }
        self.write_on(by_then, writing, counter).await;
    }

    /// Writes the end, however long that takes.
    async fn write(&self, session: Option<S::Session>, end: &End) -> Written {
        let Self { layer, won, .. } = self;
        let ending = Ending { store: &layer.shared.store, won: *won, most: layer.config.pending_ends };
        ending.write(session, end).await
    }

    /// Returns the state of the end after the end wait. `None` if it is not known yet.
    async fn by_then(
        &self,
        mut writing: Pin<&mut impl Future<Output = Written>>,
        counter: &Counter,
    ) -> Option<Written> {
        let wait = self.layer.config.end_wait;
        let written = match poll_once(writing.as_mut()).await {
            // Most in-process stores reply at once, and need no timer.
            Poll::Ready(written) => written,
            Poll::Pending if wait.is_zero() => return None,
            Poll::Pending => Box::pin(clock::until(clock::now().checked_add(wait), writing)).await.ok()?,
        };
        self.count(written, counter);
        Some(written)
    }

    /// Continues writing an end after the caller has its response.
    async fn write_on(
        &self,
        by_then: Option<Written>,
        writing: Pin<&mut impl Future<Output = Written>>,
        counter: &Counter,
    ) {
        if by_then.is_none() {
            self.count(writing.await, counter);
        }
    }

    fn count(&self, written: Written, counter: &Counter) {
        let counter = match written {
            Written::Stored => counter,
            // Nothing of it remains and its key is free, as its caller is told.
            Written::RolledBack => &self.layer.shared.counters.released,
            Written::Lost | Written::GivenUp => &self.layer.shared.counters.lost,
        };
        count(counter, Some(&self.won.claim.id), &self.route);
    }

    /// Returns what a tracing event is about.
    fn about(&self) -> (&RecordId, &Route) {
        (&self.won.claim.id, &self.route)
    }

    async fn release(&mut self, response: Response<R>, session: S::Session) {
        let answer = |this: &Self, by_then| {
            let status = rules::status_after_release(by_then);
            Ok(this.with_status(response.map(ResponseBody::passed), status))
        };
        self.finish(Some(session), &End::Released, &self.layer.shared.counters.released, answer).await;
    }

    fn unknown_status(&self) -> IdempotencyStatus {
        rules::status_after_unknown(self.layer.config.on_unknown, self.layer.config.reconcile.is_some())
    }

    async fn abandon(&mut self, session: Option<S::Session>, response: Result<Response<ResponseBody<R>>, E>) {
        let end = rules::end_without_answer();
        self.finish(session, &end, &self.layer.shared.counters.abandoned, |_, _| response).await;
    }

    async fn give_up(&mut self, session: Option<S::Session>, refusal: Rejection) {
        let response = self.with_status(self.layer.config.reject(refusal), self.unknown_status());
        self.abandon(session, Ok(response)).await;
    }

    async fn keep(&mut self, response: Response<R>, session: S::Session, outcome: Option<ExecutionOutcome>) {
        let (parts, body) = response.into_parts();
        // The body announced an acceptable length. A longer one is kept as well, because the
        // handler has acted and this is its response.
        let (body, trailers) = match self.in_time(caught(pin!(whole(pin!(body), usize::MAX)))).await {
            Ok(Ok(Ok(collected))) => collected,
            Ok(_) => return self.give_up(Some(session), Rejection::HandlerFailed).await,
            Err(TookTooLong) => return self.give_up(Some(session), Rejection::HandlerTimedOut).await,
        };
        let record = match &trailers {
            None => self.layer.config.record(parts.status, &parts.headers, body.clone()),
            // A record has no place for trailers, and half a response is not replayed.
            Some(_) => Record::not_kept(parts.status),
        };
        let answer = |this: &Self, by_then| {
            let response = Response::from_parts(parts, ResponseBody::with_trailers(body, trailers));
            Ok(this.completed_answer(response, by_then))
        };
        let end = self.completed(record, outcome);
        self.finish(Some(session), &end, &self.layer.shared.counters.stored, answer).await;
    }

    /// Returns the handler's response with the state of its end. If its effects were or may have
    /// been rolled back, that response would be untrue, so the client gets another one.
    fn completed_answer(
        &self,
        response: Response<ResponseBody<R>>,
        by_then: Option<Written>,
    ) -> Response<ResponseBody<R>> {
        match rules::response_after_completion(by_then, response.status().is_server_error(), S::TRANSACTIONAL) {
            CompletionAnswer::WithStatus(status) => self.with_status(response, status),
            CompletionAnswer::NotExecuted => {
                let mut response = self.with_status(response, IdempotencyStatus::Released);
                // An outer layer then releases its key, too.
                response.extensions_mut().insert(ExecutionOutcome::NotExecuted);
                response
            }
            CompletionAnswer::RolledBack => {
                self.with_status(self.layer.config.reject(Rejection::RolledBack), IdempotencyStatus::Released)
            }
            CompletionAnswer::TransactionLost => {
                self.with_status(self.layer.config.reject(Rejection::TransactionLost), self.unknown_status())
            }
        }
    }

    /// Streams a response that reaches the client before it ends. Only its end is stored.
    async fn stream(&mut self, response: Response<R>, session: S::Session, outcome: Option<ExecutionOutcome>) {
        if S::TRANSACTIONAL {
            return self.stream_committed(response, session, outcome).await;
        }
        let (parts, body) = response.into_parts();
        let status = parts.status;
        let (pieces, pumped) = mpsc::channel(8);
        let mut reader = Reader::new(pieces, self.layer.config.max_reader_wait);
        let body_out = ResponseBody::pumped(pumped, body.size_hint());
        if let Some(sender) = self.answer.take() {
            // The client disconnected; the operation goes on.
            let _hung_up = sender.send(Ok(Response::from_parts(parts, body_out)));
        }
        // The end is stored before the client can see it, so that a repeat after that finds the
        // record.
        let pumped = self.in_time(caught(pin!(pump(body, &mut reader)))).await;
        self.place = None;
        let Ok(Ok(Ok(last))) = pumped else {
            // No frame marks the end, so the client sees that the body is cut.
            let end = rules::end_without_answer();
            let mut writing = pin!(self.write(Some(session), &end));
            return self.write_on(None, writing.as_mut(), &self.layer.shared.counters.abandoned).await;
        };
        let counter = &self.layer.shared.counters.not_kept;
        let end = self.completed(Record::not_kept(status), outcome);
        let mut writing = pin!(self.write(Some(session), &end));
        let by_then = self.by_then(writing.as_mut(), counter).await;
        // A client that does not read must not hold up the end, if that is still being written.
        let send_rest = async {
            for frame in last.into_iter().map(Some).chain([None]) {
                reader.send(Ok(frame)).await;
            }
            drop(reader);
        };
        tokio::join!(send_rest, self.write_on(by_then, writing, counter));
    }

    /// Streams a response of a transaction. The transaction ends before the first byte is sent,
    /// because a byte cannot be called back.
    async fn stream_committed(
        &mut self,
        response: Response<R>,
        session: S::Session,
        outcome: Option<ExecutionOutcome>,
    ) {
        let end = self.completed(Record::not_kept(response.status()), outcome);
        let answer = |this: &Self, by_then| Ok(this.completed_answer(response.map(ResponseBody::passed), by_then));
        self.finish(Some(session), &end, &self.layer.shared.counters.not_kept, answer).await;
    }

    fn completed(&self, record: Record, outcome: Option<ExecutionOutcome>) -> End {
        let record = self.layer.config.sealed(&self.won.claim.id, record);
        let mut completion = Completion::new(record, self.layer.config.retention);
        completion.keep_effects = outcome == Some(ExecutionOutcome::Executed) || is_success(completion.record.status());
        End::Completed(completion)
    }

    fn with_status<B>(&self, mut response: Response<B>, status: IdempotencyStatus) -> Response<B> {
        self.layer.config.put_status(status, &mut response);
        response
    }
}

/// The handler was cancelled at its time limit.
struct TookTooLong;

/// Returns whether the handler's effects stay after this status: 2xx and 3xx.
fn is_success(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}
