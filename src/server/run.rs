//! One execution: from the claim that was won to the end that is recorded.
//!
//! It is part of a task that belongs to the operation and not to the connection: a client that hangs up does not stop it. Whatever
//! happens in it — an answer, an error, a panic — becomes an end in the store; what cannot be written there lapses, and is unknown.

use std::future::Future;
use std::ops::Deref;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use tokio::sync::{mpsc, oneshot};
use tower_service::Service;

use super::answer::{BodyError, Piece, Refusal, ResponseBody, Told};
use super::body::whole;
use super::layer::{IdempotencyLayer, Lapsed, Verdict};
use super::lease::{Lease, renewing};
use super::lent::Lent;
use super::lineage::OperationKey;
use super::metrics::{Counter, count};
use super::record::Record;
use super::store::{Completed, Completion, Store, StoreError};

/// A request that is under way, for [`drain`](IdempotencyLayer::drain).
pub(super) struct OneRunning<S>(Arc<IdempotencyLayer<S>>);

impl<S> OneRunning<S> {
    pub(super) fn of(layer: Arc<IdempotencyLayer<S>>) -> Self {
        layer.shared.counters.running.fetch_add(1, Ordering::SeqCst);
        Self(layer)
    }
}

impl<S> Deref for OneRunning<S> {
    type Target = IdempotencyLayer<S>;

    fn deref(&self) -> &IdempotencyLayer<S> {
        &self.0
    }
}

impl<S> Drop for OneRunning<S> {
    fn drop(&mut self) {
        let shared = &self.0.shared;
        if shared.counters.running.fetch_sub(1, Ordering::SeqCst) == 1 && shared.draining.load(Ordering::SeqCst) > 0 {
            shared.at_rest.notify_waiters();
        }
    }
}

/// A key that was won.
pub(super) struct Ticket<T> {
    pub(super) lease: Lease,
    pub(super) session: T,
}

pub(super) type Answer<R, E> = oneshot::Sender<Result<Response<ResponseBody<R>>, E>>;

/// How a handler has ended, and with it the session, unless the handler has not given it back.
enum End<R, E, T> {
    /// With an answer that can be handed out again.
    Kept(Response<R>, T, Option<Verdict>),
    /// With an answer that is too long for that, or as long as nobody knows.
    Streamed(Response<R>, T, Option<Verdict>),
    /// With an answer, and nothing was executed.
    Released(Response<R>, T),
    /// With an answer, and nobody knows how far it came.
    Unsure(Response<R>, T),
    /// With an error of the service's, and nobody knows how far it came.
    Failed(E, Option<T>),
    /// Without anything that could be sent, and nobody knows how far it came.
    Silent(Refusal, Option<T>),
}

/// An operation whose handler has been called.
pub(super) struct Execution<'a, S: Store, R: Body, E> {
    layer: &'a IdempotencyLayer<S>,
    lease: Lease,
    lent: Lent<S::Session>,
    answer: Option<Answer<R, E>>,
}

impl<'a, S, R, E> Execution<'a, S, R, E>
where
    S: Store,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    E: Send + 'static,
{
    /// Hands `request` to the handler under the key that was won. `None` instead of the handler's future: it panicked at once. (An option can
    /// be pinned, and emptied where it is.)
    pub(super) fn begin<I, B>(
        layer: &'a IdempotencyLayer<S>,
        mut inner: I,
        mut request: Request<B>,
        ticket: Ticket<S::Session>,
        answer: Answer<R, E>,
    ) -> (Self, Option<I::Future>)
    where
        I: Service<Request<B>, Response = Response<R>, Error = E>,
    {
        let Ticket { lease, session } = ticket;
        let lent = Lent::new(session);
        request.extensions_mut().insert(OperationKey::of(lease.id));
        if S::HOLDS_EFFECTS {
            request.extensions_mut().insert(lent.clone());
        }
        count(&layer.shared.counters.executed);
        // The service goes with the call: what it holds is not to be held until the answer has been read.
        let called = std::panic::catch_unwind(AssertUnwindSafe(move || inner.call(request)));
        (Self { layer, lease, lent, answer: Some(answer) }, called.ok())
    }

    /// To the end that is recorded.
    pub(super) async fn run(&mut self, mut called: Pin<&mut Option<impl Future<Output = Result<Response<R>, E>>>>) {
        let &mut Self { layer, lease, .. } = self;
        let worked = {
            // The answer's body is part of the work: it may take longer than the handler, and whoever reads it may be slow.
            let work = pin!(async {
                let handled = match called.as_mut().as_pin_mut() {
                    Some(handling) => caught(handling).await,
                    None => Err(Panicked),
                };
                // What the handler still holds is given back before its end is recorded: the session, a permit.
                called.set(None);
                let end = self.end_of(handled);
                self.end(end).await;
            });
            renewing(&layer.shared.store, &lease, pin!(caught(work))).await
        };
        // Destructors panic too: the handler's, and those of what it has answered.
        if let Err(Panicked) = worked {
            self.give_up(self.lent.take(), Refusal::HandlerFailed).await;
        }
        layer.shared.waits.ended(&lease.id);
    }

    async fn end(&mut self, end: End<R, E, S::Session>) {
        match end {
            End::Kept(response, session, verdict) => self.keep(response, session, verdict).await,
            // Boxed, as what is rare is: every operation in flight has room for what is awaited here.
            End::Streamed(response, session, verdict) => Box::pin(self.stream(response, session, verdict)).await,
            End::Released(response, session) => self.release(response, session).await,
            End::Unsure(response, session) => self.unsure(response, session).await,
            End::Failed(error, session) => {
                self.abandon(session).await;
                self.reply(Err(error));
            }
            End::Silent(refusal, session) => self.give_up(session, refusal).await,
        }
    }

    /// What it means for the key that the handler has ended like this.
    fn end_of(&self, handled: Result<Result<Response<R>, E>, Panicked>) -> End<R, E, S::Session> {
        let (response, session) = match (handled, self.lent.take()) {
            (Err(Panicked), session) => return End::Silent(Refusal::HandlerFailed, session),
            (Ok(Err(error)), session) => return End::Failed(error, session),
            (Ok(Ok(_)), None) => return End::Silent(Refusal::TransactionLost, None),
            (Ok(Ok(response)), Some(session)) => (response, session),
        };
        match response.extensions().get::<Verdict>().copied() {
            Some(Verdict::NotExecuted) => End::Released(response, session),
            Some(Verdict::Unknown) => End::Unsure(response, session),
            None if self.layer.config.failures_run_again && !is_success(response.status()) => {
                End::Released(response, session)
            }
            verdict if self.can_keep(response.body()) => End::Kept(response, session, verdict),
            verdict => End::Streamed(response, session, verdict),
        }
    }

    /// Its length is known and within the cap.
    fn can_keep(&self, body: &R) -> bool {
        let most = u64::try_from(self.layer.config.max_response).unwrap_or(u64::MAX);
        body.size_hint().exact().is_some_and(|length| length <= most)
    }

    async fn release(&mut self, response: Response<R>, session: S::Session) {
        let released = self.layer.shared.store.release(&self.lease.id, self.lease.token, session).await;
        self.written(&released, &self.layer.shared.counters.released);
        let is_free = matches!(released, Ok(Completed::Stored) | Err(StoreError::RolledBack(_)));
        self.pass(response, if is_free { Told::Released } else { Told::Unknown });
    }

    async fn unsure(&mut self, response: Response<R>, session: S::Session) {
        self.abandon(Some(session)).await;
        let told = self.unsure_means();
        self.pass(response, told);
    }

    /// What an end that nobody knows is to the client: a key that it may ask under again where a repeat runs, and else nothing of use.
    fn unsure_means(&self) -> Told {
        let runs_again = self.layer.config.lapsed == Lapsed::Rerun || self.layer.config.reconcile.is_some();
        if runs_again { Told::Released } else { Told::Unknown }
    }

    async fn abandon(&self, session: Option<S::Session>) {
        let abandoned = self.layer.shared.store.abandon(&self.lease.id, self.lease.token, session).await;
        self.written(&abandoned, &self.layer.shared.counters.abandoned);
    }

    async fn give_up(&mut self, session: Option<S::Session>, refusal: Refusal) {
        self.abandon(session).await;
        let mut response = refusal.response();
        self.unsure_means().on(&mut response, &self.layer.config.terms);
        self.reply(Ok(response));
    }

    async fn keep(&mut self, response: Response<R>, session: S::Session, verdict: Option<Verdict>) {
        let (parts, body) = response.into_parts();
        // It has said that it is short enough. One that turns out longer is kept as well: the handler has acted, and here is its answer.
        let Ok(Ok((body, trailers))) = caught(pin!(whole(pin!(body), usize::MAX))).await else {
            return self.give_up(Some(session), Refusal::HandlerFailed).await;
        };
        let record = match &trailers {
            None => Record::new(parts.status, &parts.headers, body.clone()),
            // A record has no place for them, and half an answer is none.
            Some(_) => Record::not_kept(parts.status),
        };
        let told = self.complete(record, session, verdict, &self.layer.shared.counters.stored).await;
        if S::HOLDS_EFFECTS && !may_be_told(told, parts.status) {
            return self.undone(told);
        }
        let mut response = Response::from_parts(parts, ResponseBody::with_trailers(body, trailers));
        told.on(&mut response, &self.layer.config.terms);
        self.reply(Ok(response));
    }

    /// What the handler did was rolled back, or nobody knows: its answer would be a lie.
    fn undone(&mut self, told: Told) {
        let (refusal, told) = match told {
            Told::Released => (Refusal::RolledBack, told),
            _ => (Refusal::TransactionLost, self.unsure_means()),
        };
        let mut response = refusal.response();
        told.on(&mut response, &self.layer.config.terms);
        self.reply(Ok(response));
    }

    /// An answer that reaches the client before it ends. What is stored is that it ended.
    async fn stream(&mut self, response: Response<R>, session: S::Session, verdict: Option<Verdict>) {
        if S::HOLDS_EFFECTS {
            return self.stream_committed(response, session, verdict).await;
        }
        let (parts, body) = response.into_parts();
        let status = parts.status;
        let (pieces, pumped) = mpsc::channel(8);
        let body_out = ResponseBody::pumped(pumped, body.size_hint());
        self.reply(Ok(Response::from_parts(parts, body_out)));
        // The end is stored before the client can see it, so that whoever asks again after it finds the record.
        match caught(pin!(pump(body, &pieces))).await {
            Ok(Ok(last)) => {
                let record = Record::not_kept(status);
                self.complete(record, session, verdict, &self.layer.shared.counters.not_kept).await;
                for frame in last.into_iter().map(Some).chain([None]) {
                    let _hung_up = pieces.send(Ok(frame)).await;
                }
            }
            // Nothing says "end", so the client sees that it is cut.
            Ok(Err(BodyFailed)) | Err(Panicked) => self.abandon(Some(session)).await,
        }
    }

    /// An answer that tells of a transaction: that ends before the first byte of it leaves, since no byte could be called back.
    async fn stream_committed(&mut self, response: Response<R>, session: S::Session, verdict: Option<Verdict>) {
        let record = Record::not_kept(response.status());
        let told = self.complete(record, session, verdict, &self.layer.shared.counters.not_kept).await;
        if may_be_told(told, response.status()) { self.pass(response, told) } else { self.undone(told) }
    }

    async fn complete(&self, record: Record, session: S::Session, verdict: Option<Verdict>, counter: &Counter) -> Told {
        let mut completion = Completion::new(record, self.layer.config.retention);
        completion.keep_effects = verdict == Some(Verdict::Executed) || is_success(completion.record.status());
        let completed = self.layer.shared.store.complete(&self.lease.id, self.lease.token, session, completion).await;
        self.written(&completed, counter);
        match completed {
            Ok(Completed::Stored) => Told::Stored,
            Err(StoreError::RolledBack(_)) => Told::Released,
            // What could not be written lapses: the caller has its answer, and a repeat will be
            // told that nobody knows.
            _ => Told::Unknown,
        }
    }

    fn written(&self, completed: &Result<Completed, StoreError>, counter: &Counter) {
        match completed {
            Ok(Completed::Stored) => count(counter),
            Ok(Completed::Lost) => {
                count(&self.layer.shared.counters.lost);
                tracing::warn!(target: "steadfast", id = ?self.lease.id, "the claim was no longer ours at its end");
            }
            Err(StoreError::RolledBack(error)) => {
                count(&self.layer.shared.counters.released);
                tracing::warn!(target: "steadfast", id = ?self.lease.id, %error, "an operation was rolled back");
            }
            Err(error) => {
                count(&self.layer.shared.counters.lost);
                tracing::error!(target: "steadfast", id = ?self.lease.id, %error, "the end of an operation could not be stored");
            }
        }
    }

    /// The handler's answer as it is, read by this task.
    fn pass(&mut self, response: Response<R>, told: Told) {
        let mut response = response.map(ResponseBody::passed);
        told.on(&mut response, &self.layer.config.terms);
        self.reply(Ok(response));
    }

    fn reply(&mut self, answer: Result<Response<ResponseBody<R>>, E>) {
        if let Some(sender) = self.answer.take() {
            // Whoever asked has hung up; the operation goes on.
            let _hung_up = sender.send(answer);
        }
    }
}

/// Whether the handler's answer is true although a store that holds the effects may have rolled
/// them back. A server error is: it tells of nothing that was done.
fn may_be_told(told: Told, status: StatusCode) -> bool {
    matches!(told, Told::Stored) || matches!(told, Told::Released) && status.is_server_error()
}

/// Statuses after which what the handler did stays: 2xx and 3xx.
fn is_success(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

/// The handler's body failed before its end.
struct BodyFailed;

/// Hands on every frame, to the end even if nobody listens any more. Where the length is known, the frame that completes it is not
/// handed on but returned, with what comes after it: by it the client sees the end.
async fn pump<R>(body: R, pieces: &mpsc::Sender<Piece>) -> Result<Vec<Frame<Bytes>>, BodyFailed>
where
    R: Body<Data = Bytes>,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut left = body.size_hint().exact();
    let mut body = pin!(body);
    let mut last = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let length = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
        left = left.map(|left| left.saturating_sub(u64::try_from(length).unwrap_or(u64::MAX)));
        match frame {
            Ok(frame) if left == Some(0) => last.push(frame),
            Ok(frame) => {
                let _hung_up = pieces.send(Ok(Some(frame))).await;
            }
            Err(error) => {
                let _hung_up = pieces.send(Err(BodyError(error.into()))).await;
                return Err(BodyFailed);
            }
        }
    }
    Ok(last)
}

/// A handler has panicked; the panic has been reported by the panic hook.
pub(super) struct Panicked;

pub(super) async fn caught<F: Future>(mut future: Pin<&mut F>) -> Result<F::Output, Panicked> {
    std::future::poll_fn(|cx| {
        // Nothing of a future that has panicked is looked at again.
        match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}
