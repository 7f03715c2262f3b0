//! The inbox of a queue's consumer: each event is handled once, however often it is delivered.
//!
//! A queue delivers at least once. The consumer claims the event, handles it, and *then* marks it
//! as handled; with a transactional store, in one transaction. If it marked the event first, an
//! event whose handler failed would be lost.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use http::StatusCode;
use steadfast_core::clock;

use super::claiming::{Answer, Claiming, Won};
use super::ending::{Ending, WonClaim};
use super::outcome::OnUnknown;
use super::pending_ends::PendingEnds;
use super::rules::Written;
use super::shared_store::SharedStore;
use super::store::Record;
use super::store::{Claim, Completion, End, Fingerprint, RecordId, RecordState, ScopeId, Store, StoreError};
use super::transaction::TransactionHandle;

pub(super) const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// A record of handled events, for consumers that may receive an event twice.
///
/// ```
/// use steadfast_server::{Delivery, Fingerprint, Inbox, MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let inbox = Inbox::new(MemoryStore::new());
/// let payload = br#"{"order":7}"#;
/// for delivery in 0..2 {
///     let handled = inbox
///         .process("billing", "evt_1", Fingerprint::of(payload), |_session| async {
///             // Charge, write, send.
///             Ok::<_, std::io::Error>("charged")
///         })
///         .await?;
///     let expected = match delivery {
///         0 => Delivery::Handled("charged"),
///         _ => Delivery::AlreadyHandled,
///     };
///     assert_eq!(handled, expected);
/// }
/// # Ok(())
/// # }
/// ```
///
/// With a [transactional](Store::TRANSACTIONAL) store the handler writes through the session. Mark
/// and effect are then one transaction, so each event has exactly one effect, whichever process
/// dies.
///
/// With any other store, a process that dies after the effect and before the mark handles the event
/// once more. That is the price of never losing one.
///
/// | setting | default |
/// | --- | --- |
/// | [`retention`](Self::retention) | 7 days |
/// | [`lease`](Self::lease) | 30 s, renewed while the handler runs |
/// | [`on_unknown`](Self::on_unknown) | [`OnUnknown::Rerun`] |
/// | [`end_wait`](Self::end_wait) | 1 s for the store to take the mark |
/// | [`pending_ends`](Self::pending_ends) | 10,000 marks wait for an unavailable store, each for 10 min |
pub struct Inbox<S> {
    store: SharedStore<S>,
    retention: Duration,
    lease: Duration,
    on_unknown: OnUnknown,
    end_wait: Duration,
    pending_ends: PendingEnds,
}

/// The outcome of a delivery that needs no repetition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery<T> {
    /// The handler has run now, and the event is marked.
    Handled(T),
    /// The event was handled before. Acknowledge it.
    AlreadyHandled,
}

/// Why a delivery was not handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InboxError<E> {
    /// The handler failed. Nothing is marked, so the next delivery runs the handler again.
    #[error("the event could not be handled: {0}")]
    Handler(#[source] E),
    /// Another delivery of the event is being handled now. Do not acknowledge this one: the other
    /// may fail.
    #[error("another delivery of the event is being handled")]
    InProgress,
    /// The id belongs to another payload. This needs an operator: one of the two is never handled.
    #[error("the event's id belongs to another payload")]
    OtherPayload,
    /// An earlier handler may have acted, and the inbox is set to [reject](OnUnknown::Reject) such
    /// an event.
    #[error("an earlier handler may have acted on the event; its outcome is unknown")]
    OutcomeUnknown,
    /// The handler still holds the session, or the mark was not written in time.
    ///
    /// With a [transactional](Store::TRANSACTIONAL) store, the next delivery finds out: either
    /// effects and mark exist, or the handler runs again.
    ///
    /// With any other store the handler has acted, and the mark is still being written. Until it
    /// is, a delivery gets [`InProgress`](Self::InProgress); afterwards,
    /// [`Delivery::AlreadyHandled`]. If the mark is given up, or this process ends first, the next
    /// delivery is treated as [`Inbox::on_unknown`] is set.
    #[error("the event was handled and could not be marked: {0}")]
    NotMarked(#[source] StoreError),
    /// The store failed. The handler was not run.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl<S> Clone for Inbox<S> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), ..*self }
    }
}

impl<S: Store> Inbox<S> {
    /// Creates an inbox over this store.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self::with_shared_store(SharedStore::new(store))
    }

    /// Creates an inbox over a store that other inboxes or layers also use.
    ///
    /// Give each a consumer name of its own. An event is handled once per name. If a webhook layer
    /// and an inbox share a name, the inbox returns [`Delivery::AlreadyHandled`] for each event that
    /// the layer has recorded, and **its handler never runs**.
    ///
    /// ```
    /// use steadfast_server::{EventId, Fingerprint, Inbox, MemoryStore, SharedStore, WebhookLayer};
    ///
    /// // One store for both: make one handle, and clone it.
    /// let store = SharedStore::new(MemoryStore::new());
    /// let webhooks = WebhookLayer::with_shared_store(store.clone(), "receive", EventId::stripe());
    /// let inbox = Inbox::with_shared_store(store);
    /// # async fn example(inbox: Inbox<MemoryStore>) {
    /// let payload = Fingerprint::of(b"{}");
    /// let charge = |_| async { Ok::<_, std::io::Error>(()) };
    /// // Another name than "receive": this is another stage.
    /// let handled = inbox.process("charge", "evt_1", payload, charge).await;
    /// # }
    /// ```
    #[must_use]
    pub fn with_shared_store(store: SharedStore<S>) -> Self {
        Self {
            store,
            retention: RETENTION,
            lease: Duration::from_secs(30),
            on_unknown: OnUnknown::Rerun,
            end_wait: Duration::from_secs(1),
            pending_ends: PendingEnds::default(),
        }
    }

    /// Sets how long a mark is kept. Default: 7 days. Choose longer than the queue may deliver an
    /// event again.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{Inbox, MemoryStore};
    ///
    /// // The queue keeps a message for 14 days.
    /// let inbox = Inbox::new(MemoryStore::new()).retention(Duration::from_secs(15 * 24 * 3600));
    /// ```
    #[must_use]
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Sets how long a claim holds without renewal, and so how long an event waits after a crash.
    /// Default: 30 s. Minimum: 3 ms.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(3));
        self
    }

    /// Sets how long [`process`](Self::process) waits for the store to take the mark of a handled
    /// event. Default: 1 s.
    ///
    /// If the store is slower, `process` returns [`InboxError::NotMarked`], and the mark is written
    /// in the background until the store takes it.
    #[must_use]
    pub fn end_wait(mut self, wait: Duration) -> Self {
        self.end_wait = wait;
        self
    }

    /// Sets how many marks may wait for a store that does not take them, and for how long. Default:
    /// 10,000 marks and 64 MiB, each for 10 min.
    #[must_use]
    pub fn pending_ends(mut self, most: PendingEnds) -> Self {
        self.pending_ends = most;
        self
    }

    /// Waits until no mark is left to write. Call it at shutdown, after the last
    /// [`process`](Self::process) has returned.
    ///
    /// The inbox repeats its calls to an unreachable store until it replies, so bound the wait if
    /// the process must end.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{Inbox, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let inbox = Inbox::new(MemoryStore::new());
    /// // After the consumer has stopped:
    /// let drained = tokio::time::timeout(Duration::from_secs(20), inbox.drain()).await;
    /// assert!(drained.is_ok());
    /// # }
    /// ```
    pub async fn drain(&self) {
        self.store.drain().await;
    }

    /// Sets how the inbox treats a delivery if an earlier handler may have acted. Default:
    /// [`OnUnknown::Rerun`].
    ///
    /// ```
    /// use steadfast_server::{Inbox, MemoryStore, OnUnknown};
    ///
    /// // Paying out twice is worse than paying late: an operator decides.
    /// let inbox = Inbox::new(MemoryStore::new()).on_unknown(OnUnknown::Reject);
    /// ```
    #[must_use]
    pub fn on_unknown(mut self, on_unknown: OnUnknown) -> Self {
        self.on_unknown = on_unknown;
        self
    }

    /// Handles the event, unless it was handled before. `payload` tells this event from another one
    /// that has the same id by mistake. If the sender changes the payload with each delivery, make
    /// it with [`BodyFingerprint::of_payload`](crate::BodyFingerprint::of_payload).
    ///
    /// If `handler` returns an error, the event is released. If you drop this future while
    /// `handler` runs, or `handler` panics, the event stays claimed until its lease ends; in a
    /// transaction, it is released at once. If you drop this future after `handler` has returned,
    /// the mark is written in the background.
    ///
    /// ```
    /// use steadfast_server::{Delivery, Fingerprint, Inbox, InboxError, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let inbox = Inbox::new(MemoryStore::new());
    /// let payload = Fingerprint::of("order 7");
    /// let fails = async { Err::<(), _>("no connection") };
    /// let failed = inbox.process("mail", "evt_1", payload, |_| fails).await;
    /// assert!(matches!(failed, Err(InboxError::Handler("no connection"))));
    ///
    /// // Nothing was marked, so the next delivery runs the handler.
    /// let sends = async { Ok::<_, &str>("sent") };
    /// let next = inbox.process("mail", "evt_1", payload, |_| sends).await;
    /// assert!(matches!(next, Ok(Delivery::Handled("sent"))));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`InboxError`]. Do not acknowledge the event after any of them.
    pub async fn process<T, E, F>(
        &self,
        consumer: &str,
        event_id: &str,
        payload: Fingerprint,
        handler: impl FnOnce(TransactionHandle<S::Session>) -> F,
    ) -> Result<Delivery<T>, InboxError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let id = RecordId::of_event(consumer, event_id);
        let token = self.store.token().map_err(|error| StoreError::Unavailable(error.into()))?;
        let scope = self.store.limits_scopes().then(|| ScopeId::of(consumer));
        let claim = Claim::new(&id, token, payload, self.lease, self.retention).in_scope(scope);
        let rerun = self.on_unknown == OnUnknown::Rerun;
        let mut claiming = Claiming::new(&self.store, claim);
        let Won { session, asked } = match claiming.ask(rerun).await? {
            Answer::Won(won) => won,
            Answer::Known(state) => return known(&state, payload, id),
        };
        let _held = self.store.hold(claim.reference(), self.lease, asked);
        claiming.begins();
        let lent = TransactionHandle::new(session);
        let handled = handler(lent.clone()).await;

        let session = lent.take();
        let end = match (&handled, &session) {
            (_, None) => End::Unknown,
            (Ok(_), Some(_)) => {
                End::Completed(Completion::new(Record::not_kept(StatusCode::NO_CONTENT), self.retention))
            }
            (Err(_), Some(_)) => End::Released,
        };
        let is_lost = session.is_none();
        let won = WonClaim::of(&claim.allow_takeover(rerun));
        let mark = Mark { store: &self.store, won, end, most: self.pending_ends, is_settled: false };
        let written = mark.write(session, self.end_wait).await;
        match handled {
            _ if is_lost => not_marked("the handler still holds the session"),
            Err(error) => Err(InboxError::Handler(error)),
            Ok(value) => match written {
                Some(Written::Stored) => Ok(Delivery::Handled(value)),
                Some(Written::Lost) => not_marked("the claim has expired meanwhile"),
                Some(Written::RolledBack) => Err(InboxError::NotMarked(StoreError::RolledBack(
                    "by the database, whose error is in the log".into(),
                ))),
                Some(Written::GivenUp) => not_marked("the store did not take the mark, and it was given up"),
                None => not_marked("the store has not taken the mark in time"),
            },
        }
    }
}

fn not_marked<T, E>(why: &'static str) -> Result<T, InboxError<E>> {
    Err(InboxError::NotMarked(StoreError::Unavailable(why.into())))
}

/// The end of an event. It is written even if nobody waits for it any more.
struct Mark<'a, S: Store> {
    store: &'a SharedStore<S>,
    won: WonClaim,
    end: End,
    most: PendingEnds,
    is_settled: bool,
}

impl<S: Store> Mark<'_, S> {
    /// Writes the end. Returns `None` if it was not written in time; the drop then continues in the
    /// background.
    async fn write(mut self, session: Option<S::Session>, wait: Duration) -> Option<Written> {
        let until = clock::now().checked_add(wait);
        let ending = Ending { store: self.store, won: self.won, most: self.most };
        let written = clock::until(until, ending.write(session, &self.end)).await.ok();
        self.is_settled = written.is_some();
        written
    }
}

impl<S: Store> Drop for Mark<'_, S> {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        let WonClaim { claim, lease, .. } = self.won;
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            tracing::warn!(target: "steadfast", id = ?claim.id, "the lease of an event's claim expires, because no runtime is available to end the claim");
            return;
        };
        let (store, won, end, most) = (self.store.clone(), self.won, self.end.clone(), self.most);
        // Listed before the caller's guard is dropped. The lease may be old by now, so it is
        // renewed at the next check.
        let due = clock::now().checked_sub(lease / 3).unwrap_or_else(clock::now);
        let (drained, held) = (store.in_background(), store.hold_on(claim, lease, due));
        runtime.spawn(async move {
            let (_drained, _held) = (drained, held);
            Ending { store: &store, won, most }.write_on(&end).await
        });
    }
}

fn known<T, E>(state: &RecordState, payload: Fingerprint, id: RecordId) -> Result<Delivery<T>, InboxError<E>> {
    if state.fingerprint().is_some_and(|fingerprint| fingerprint != payload) {
        tracing::warn!(target: "steadfast", ?id, "an event's id belongs to another payload");
        return Err(InboxError::OtherPayload);
    }
    match state {
        RecordState::Completed { .. } => Ok(Delivery::AlreadyHandled),
        RecordState::InProgress { .. } => Err(InboxError::InProgress),
        RecordState::Unknown { .. } => Err(InboxError::OutcomeUnknown),
    }
}

impl<S> fmt::Debug for Inbox<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("retention", &self.retention)
            .field("lease", &self.lease)
            .field("on_unknown", &self.on_unknown)
            .finish_non_exhaustive()
    }
}
