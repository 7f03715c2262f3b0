//! The inbox of a queue's consumer: every event is handled once, however often it is delivered.
//!
//! A queue delivers at least once. The consumer claims the event, handles it, and marks it *after* that; in one transaction where the
//! store has one. Marking first would lose the event whose handler failed.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::layer::Lapsed;
use super::lease::{Lease, renewing};
use super::lent::Lent;
use super::record::Record;
use super::store::{
    Claim, ClaimToken, Claimed, Completed, Completion, Fingerprint, RecordId, State, Store, StoreError, claim_or_repeat,
};
use crate::clock;

pub(super) const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// Events that were handled, for consumers that may get them twice.
///
/// ```
/// use steadfast::server::{Delivery, Fingerprint, Inbox, MemoryStore};
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
///     let expected = if delivery == 0 { Delivery::Handled("charged") } else { Delivery::AlreadyHandled };
///     assert_eq!(handled, expected);
/// }
/// # Ok(())
/// # }
/// ```
///
/// With a store that [holds the effects](Store::HOLDS_EFFECTS) the handler writes through the session, mark and effect are one
/// transaction, and each event has one effect whatever dies. With any other, a process that dies after the effect and before the mark
/// handles the event once more: the price of never losing one.
///
/// | setting | default |
/// | --- | --- |
/// | [`retention`](Self::retention) | 7 days |
/// | [`lease`](Self::lease) | 30 s, renewed while the handler runs |
/// | [`lapsed`](Self::lapsed) | [`Lapsed::Rerun`] |
pub struct Inbox<S> {
    store: Arc<S>,
    retention: Duration,
    lease: Duration,
    lapsed: Lapsed,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery<T> {
    /// It was handled now, and is marked.
    Handled(T),
    /// It had been handled before. Acknowledge it.
    AlreadyHandled,
}

/// Why a delivery was not handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InboxError<E> {
    /// The handler failed. Nothing is marked: the next delivery runs.
    #[error("the event could not be handled: {0}")]
    Handler(#[source] E),
    /// Another delivery of it is being handled now. Do not acknowledge this one: the other may fail.
    #[error("another delivery of the event is being handled")]
    InProgress,
    /// The id belongs to another payload. Somebody has to look: one of the two will never be handled.
    #[error("the event's id belongs to another payload")]
    OtherPayload,
    /// An earlier handler may have acted, nobody knows, and the inbox was told to [refuse](Lapsed::Refuse).
    #[error("an earlier handler may have acted on the event, and nobody knows")]
    OutcomeUnknown,
    /// The handler still holds the session that was lent to it, or the mark was not written. Where the store holds the effects, nothing
    /// was kept; elsewhere the handler has acted, and the next delivery meets what [`Inbox::lapsed`] says.
    #[error("the event was handled and could not be marked: {0}")]
    NotMarked(#[source] StoreError),
    /// The store cannot say. The handler was not run.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl<S> Clone for Inbox<S> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), ..*self }
    }
}

impl<S: Store> Inbox<S> {
    /// An inbox over this store.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self::shared(Arc::new(store))
    }

    /// An inbox over a store that others use too.
    #[must_use]
    pub fn shared(store: Arc<S>) -> Self {
        Self { store, retention: RETENTION, lease: Duration::from_secs(30), lapsed: Lapsed::Rerun }
    }

    /// How long it is remembered that an event was handled: longer than the queue may deliver it again.
    #[must_use]
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// How long a claim holds without being renewed, and so how long an event waits after a crash. At least 3 ms.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(3));
        self
    }

    /// What a delivery meets where an earlier handler may have acted and nobody knows.
    #[must_use]
    pub fn lapsed(mut self, lapsed: Lapsed) -> Self {
        self.lapsed = lapsed;
        self
    }

    /// Handles the event, unless it was handled before. `payload` tells this event from another that has its id by mistake.
    ///
    /// An error of `handler` gives the event back. If this future is dropped or `handler` panics, the event stays claimed until its lease
    /// ends; in a transaction, it is given back at once.
    ///
    /// # Errors
    ///
    /// See [`InboxError`]. After any of them the event is not to be acknowledged.
    pub async fn process<T, E, F>(
        &self,
        consumer: &str,
        event_id: &str,
        payload: Fingerprint,
        handler: impl FnOnce(Lent<S::Session>) -> F,
    ) -> Result<Delivery<T>, InboxError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let id = RecordId::of_event(consumer, event_id);
        let token = self.store.token().map_err(|error| StoreError::Unavailable(error.into()))?;
        let claim =
            Claim::new(&id, token, payload, self.lease, self.retention).taking_over(self.lapsed == Lapsed::Rerun);
        let lease = Lease::of(&claim, clock::now());
        let session = match claim_or_repeat(&*self.store, &claim).await? {
            Claimed::Won(session) => session,
            Claimed::Known(state) => return known(&state, payload, id),
        };
        let lent = Lent::new(session);
        let handling = pin!(handler(lent.clone()));
        let handled = renewing(&self.store, &lease, handling).await;
        let Some(session) = lent.take() else {
            if let Err(lapses) = self.store.abandon(&id, token, None).await {
                tracing::warn!(target: "steadfast", ?id, error = %lapses, "an event that was handled is blocked until its lease ends");
            }
            return Err(InboxError::NotMarked(StoreError::Unavailable("the handler still holds the session".into())));
        };
        match handled {
            Ok(value) => self.mark(id, token, session).await.map(|()| Delivery::Handled(value)),
            Err(error) => {
                if let Err(lapses) = self.store.release(&id, token, session).await {
                    tracing::warn!(target: "steadfast", ?id, error = %lapses, "a failed event is blocked until its lease ends");
                }
                Err(InboxError::Handler(error))
            }
        }
    }

    async fn mark<E>(&self, id: RecordId, token: ClaimToken, session: S::Session) -> Result<(), InboxError<E>> {
        let completion = Completion::new(Record::not_kept(StatusCode::NO_CONTENT), self.retention);
        match self.store.complete(&id, token, session, completion).await {
            Ok(Completed::Stored) => Ok(()),
            Ok(Completed::Lost) => {
                Err(InboxError::NotMarked(StoreError::Unavailable("the claim has lapsed meanwhile".into())))
            }
            Err(error) => Err(InboxError::NotMarked(error)),
        }
    }
}

fn known<T, E>(state: &State, payload: Fingerprint, id: RecordId) -> Result<Delivery<T>, InboxError<E>> {
    if state.fingerprint().is_some_and(|fingerprint| fingerprint != payload) {
        tracing::warn!(target: "steadfast", ?id, "an event's id belongs to another payload");
        return Err(InboxError::OtherPayload);
    }
    match state {
        State::Done { .. } => Ok(Delivery::AlreadyHandled),
        State::Running { .. } => Err(InboxError::InProgress),
        State::Unknown { .. } => Err(InboxError::OutcomeUnknown),
    }
}

impl<S> fmt::Debug for Inbox<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("retention", &self.retention)
            .field("lease", &self.lease)
            .field("lapsed", &self.lapsed)
            .finish_non_exhaustive()
    }
}
