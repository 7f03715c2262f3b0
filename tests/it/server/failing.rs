//! A store whose server can be gone, slow to answer, or lose what it answers.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use steadfast::server::{
    Claim, ClaimToken, Claimed, Completed, Completion, MemoryStore, RecordId, State, Store, StoreError,
};
use tokio::sync::{Notify, Semaphore};

/// A store that fails where it is told to.
pub(super) struct Failing {
    pub(super) inner: MemoryStore,
    pub(super) claims: bool,
    pub(super) ends: bool,
    /// Claims whose reply is lost.
    pub(super) lost_replies: AtomicUsize,
    /// A claim that was made waits here before it is answered.
    pub(super) hold: Option<Arc<(Semaphore, Notify)>>,
    /// A claim that was made is answered so much later, and after so many polls more.
    pub(super) late: Duration,
    pub(super) polls: usize,
    /// Told of each renewal.
    pub(super) renewed: Notify,
    /// An end waits here before it is stored.
    pub(super) hold_end: Option<Arc<(Semaphore, Notify)>>,
}

impl Failing {
    pub(super) fn new(claims: bool, ends: bool, lost_replies: usize) -> Self {
        Self {
            inner: MemoryStore::new(),
            claims,
            ends,
            lost_replies: lost_replies.into(),
            hold: None,
            late: Duration::ZERO,
            polls: 0,
            renewed: Notify::new(),
            hold_end: None,
        }
    }

    fn down() -> StoreError {
        StoreError::Unavailable("unplugged".into())
    }
}

impl Store for Failing {
    type Session = ();

    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed<()>, StoreError> {
        let claimed = if self.claims { Err(Self::down()) } else { self.inner.claim(claim).await };
        if let Some(hold) = &self.hold {
            hold.0.add_permits(1);
            hold.1.notified().await;
        }
        if !self.late.is_zero() {
            let _late = tokio::time::timeout(self.late, std::future::pending::<()>()).await;
        }
        for _ in 0..self.polls {
            tokio::task::yield_now().await;
        }
        let lost = self.lost_replies.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        if lost { Err(Self::down()) } else { claimed }
    }

    async fn renew(&self, id: &RecordId, token: ClaimToken, lease: Duration) -> Result<bool, StoreError> {
        let renewed = self.inner.renew(id, token, lease).await;
        self.renewed.notify_one();
        renewed
    }

    async fn complete(
        &self,
        id: &RecordId,
        token: ClaimToken,
        (): (),
        end: Completion,
    ) -> Result<Completed, StoreError> {
        if let Some(hold) = &self.hold_end {
            hold.0.add_permits(1);
            hold.1.notified().await;
        }
        if self.ends { Err(Self::down()) } else { self.inner.complete(id, token, (), end).await }
    }

    async fn release(&self, id: &RecordId, token: ClaimToken, (): ()) -> Result<Completed, StoreError> {
        self.inner.release(id, token, ()).await
    }

    async fn abandon(&self, id: &RecordId, token: ClaimToken, session: Option<()>) -> Result<Completed, StoreError> {
        self.inner.abandon(id, token, session).await
    }

    async fn look(&self, id: &RecordId) -> Result<Option<State>, StoreError> {
        self.inner.look(id).await
    }

    async fn sweep(&self, most: usize) -> Result<usize, StoreError> {
        self.inner.sweep(most).await
    }
}
