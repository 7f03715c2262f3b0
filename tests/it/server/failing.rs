//! A store whose server can be gone, slow to reply, or lose its replies.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use steadfast::server::{
    Claim, ClaimOutcome, ClaimRef, End, FinishOutcome, MemoryStore, RecordId, RecordState, Store, StoreError,
};
use tokio::sync::{Notify, Semaphore};

/// A store that fails on demand.
pub(super) struct Failing {
    pub(super) inner: MemoryStore,
    pub(super) claims: bool,
    pub(super) ends: bool,
    /// Number of claims whose reply is lost.
    pub(super) lost_replies: AtomicUsize,
    /// Holds back the reply to a successful claim.
    pub(super) hold: Option<Arc<(Semaphore, Notify)>>,
    /// Delays the reply to a successful claim, by this time and by as many polls as `polls`.
    pub(super) late: Duration,
    pub(super) polls: usize,
    /// Whether renewals are executed.
    pub(super) renews: AtomicBool,
    /// Notified of each renewal.
    pub(super) renewed: Notify,
    /// Number of ends that are not executed.
    pub(super) failing_ends: AtomicUsize,
    /// Number of ends whose reply is lost.
    pub(super) lost_ends: AtomicUsize,
    /// Number of ends so far.
    pub(super) asked_ends: AtomicUsize,
    /// Holds back an end before it is stored.
    pub(super) hold_end: Option<Arc<(Semaphore, Notify)>>,
    /// Number of reads that panic.
    pub(super) panicking_looks: AtomicUsize,
    /// Notified of each read that does not panic.
    pub(super) looked: Notify,
    /// Number of claims so far.
    pub(super) asked_claims: AtomicUsize,
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
            renews: AtomicBool::new(true),
            renewed: Notify::new(),
            failing_ends: AtomicUsize::new(0),
            lost_ends: AtomicUsize::new(0),
            asked_ends: AtomicUsize::new(0),
            hold_end: None,
            panicking_looks: AtomicUsize::new(0),
            looked: Notify::new(),
            asked_claims: AtomicUsize::new(0),
        }
    }

    fn down() -> StoreError {
        StoreError::Unavailable("unplugged".into())
    }
}

/// Decrements the counter. Returns `false` if it is zero.
fn one_less(left: &AtomicUsize) -> bool {
    left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl Store for Failing {
    type Session = ();

    async fn claim(&self, claim: &Claim<'_>) -> Result<ClaimOutcome<()>, StoreError> {
        self.asked_claims.fetch_add(1, SeqCst);
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
        if one_less(&self.lost_replies) { Err(Self::down()) } else { claimed }
    }

    async fn renew(&self, claim: ClaimRef, lease: Duration) -> Result<bool, StoreError> {
        if !self.renews.load(SeqCst) {
            return Err(Self::down());
        }
        let renewed = self.inner.renew(claim, lease).await;
        self.renewed.notify_one();
        renewed
    }

    async fn finish(&self, claim: ClaimRef, session: Option<()>, end: &End) -> Result<FinishOutcome, StoreError> {
        let completes = matches!(end, End::Completed(_));
        if let (true, Some(hold)) = (completes, &self.hold_end) {
            hold.0.add_permits(1);
            hold.1.notified().await;
        }
        self.asked_ends.fetch_add(1, SeqCst);
        if (completes && self.ends) || one_less(&self.failing_ends) {
            return Err(Self::down());
        }
        let finished = self.inner.finish(claim, session, end).await;
        if one_less(&self.lost_ends) { Err(Self::down()) } else { finished }
    }

    async fn get(&self, id: &RecordId) -> Result<Option<RecordState>, StoreError> {
        assert!(!one_less(&self.panicking_looks), "a look that panics on purpose");
        let known = self.inner.get(id).await;
        self.looked.notify_one();
        known
    }

    async fn purge_expired(&self, most: usize) -> Result<usize, StoreError> {
        self.inner.purge_expired(most).await
    }
}
