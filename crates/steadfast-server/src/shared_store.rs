//! A store together with what this process knows of it: the claims that it holds, and the ends that
//! it still has to write.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::cancel_queue::Cancels;
use super::held::{Charge, HeldClaims, HeldGuard};
use super::keepers::Keepers;
use super::pending_ends::Pending;
use super::store::{ClaimRef, Store};

/// A handle to one store, for all layers and inboxes of a process that use it. Its clones share the
/// store.
///
/// The handle knows which operations run in this process. They are never taken over here, even if
/// their lease has expired in the store. It knows only the operations that use the same handle, so
/// make one handle for each store, and clone it.
/// ```
/// use steadfast_server::{IdempotencyLayer, Inbox, MemoryStore, Scope, SharedStore};
///
/// let store = SharedStore::new(MemoryStore::new());
/// let layer = IdempotencyLayer::with_shared_store(store.clone(), Scope::single_caller());
/// let inbox = Inbox::with_shared_store(store);
/// ```
pub struct SharedStore<S>(Arc<Parts<S>>);

pub(super) struct Parts<S> {
    store: Arc<S>,
    pub(super) claims: Arc<HeldClaims>,
    pub(super) keepers: Keepers,
    pub(super) cancels: Cancels,
    pub(super) pending: Pending,
    background: watch::Sender<usize>,
}

impl<S: Store> SharedStore<S> {
    /// Creates a handle to this store.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self::from(Arc::new(store))
    }

    /// Waits until no call to the store is left to make: the ends of handled events, and the
    /// cancellations of claims under which nothing runs.
    ///
    /// [`IdempotencyLayer::drain`](super::IdempotencyLayer::drain) includes this. The handle
    /// repeats its calls to an unreachable store until it replies, so bound the wait if the process
    /// must end.
    pub async fn drain(&self) {
        // The sender is in `self`, so the channel cannot be closed.
        let mut background = self.0.background.subscribe();
        let _closed = background.wait_for(|tasks| *tasks == 0).await;
    }

    /// Lists a claim as held by this process and renews its lease, until the guard is dropped.
    pub(super) fn hold(&self, claim: ClaimRef, lease: Duration, asked: Instant) -> HeldGuard<&HeldClaims> {
        self.listed(&*self.0.claims, claim, lease, asked)
    }

    /// Does the same, with a guard that a task of its own can own.
    pub(super) fn hold_on(&self, claim: ClaimRef, lease: Duration, asked: Instant) -> HeldGuard<Arc<HeldClaims>> {
        self.listed(self.0.claims.clone(), claim, lease, asked)
    }

    fn listed<C>(&self, claims: C, claim: ClaimRef, lease: Duration, asked: Instant) -> HeldGuard<C>
    where
        C: Deref<Target = HeldClaims>,
    {
        let runtime = Handle::try_current().ok();
        let charge = Charge { runtime: runtime.as_ref().map(Handle::id), lease };
        let held = HeldGuard::new(claims, claim, charge, asked);
        if let Some(runtime) = runtime {
            self.keep(charge, &runtime);
        }
        held
    }
}

impl<S> SharedStore<S> {
    pub(super) fn parts(&self) -> &Parts<S> {
        &self.0
    }

    pub(super) fn from_parts(parts: Arc<Parts<S>>) -> Self {
        Self(parts)
    }

    /// Returns a number that identifies the store, whichever handle leads to it. A store neither
    /// moves nor goes away while one of its layers serves a request.
    pub(super) fn address(&self) -> usize {
        Arc::as_ptr(&self.0.store).addr()
    }

    pub(super) fn downgrade(&self) -> Weak<Parts<S>> {
        Arc::downgrade(&self.0)
    }

    /// Counts a background task, for which [`drain`](SharedStore::drain) waits, until the guard is
    /// dropped.
    pub(super) fn in_background(&self) -> Background<S> {
        self.0.background.send_modify(|tasks| *tasks += 1);
        Background(self.downgrade())
    }
}

/// A task for which a drain waits. It does not keep the store alive.
pub(super) struct Background<S>(Weak<Parts<S>>);

impl<S> Drop for Background<S> {
    fn drop(&mut self) {
        if let Some(parts) = self.0.upgrade() {
            parts.background.send_modify(|tasks| *tasks -= 1);
        }
    }
}

impl<S> From<Arc<S>> for SharedStore<S> {
    /// Creates a handle to this store. It knows nothing of other handles to the same store: convert
    /// once, and clone the result.
    fn from(store: Arc<S>) -> Self {
        Self(Arc::new(Parts {
            store,
            claims: Arc::new(HeldClaims::new()),
            keepers: Keepers::default(),
            cancels: Cancels::default(),
            pending: Pending::default(),
            background: watch::Sender::new(0),
        }))
    }
}

impl<S> Clone for SharedStore<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Deref for SharedStore<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0.store
    }
}

impl<S: fmt::Debug> fmt::Debug for SharedStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedStore").field(&self.0.store).finish()
    }
}
