//! What a case can break from outside: the store, the rate limiter, a tenant's access, and the process itself.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use steadfast::server::{Claim, ClaimToken, Claimed, Completed, Completion, RecordId, State, Store, StoreError};

use crate::Result;

/// Where the process kills itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failpoint {
    /// The claim is made, the handler has not started.
    AfterClaim,
    /// The record is durable, nothing was sent.
    AfterComplete,
}

impl Failpoint {
    pub(crate) fn new(name: &str) -> Result<Self> {
        match name {
            "after_claim" => Ok(Self::AfterClaim),
            "after_complete" => Ok(Self::AfterComplete),
            other => Err(format!("FAILPOINT={other} is not offered").into()),
        }
    }
}

/// No clean-up, no answer: SIGKILL, and nothing more is done until it arrives.
async fn die() {
    let pid = std::process::id().to_string();
    if std::process::Command::new("kill").args(["-9", &pid]).status().is_err() {
        std::process::abort();
    }
    std::future::pending::<()>().await;
}

/// A store that can be unplugged, lose a reply, and take the process down.
pub(crate) struct Controlled<S> {
    inner: S,
    failpoint: Option<Failpoint>,
    down: AtomicBool,
    drop_reply: AtomicBool,
}

impl<S> Controlled<S> {
    pub(crate) fn new(inner: S, failpoint: Option<Failpoint>) -> Self {
        Self { inner, failpoint, down: AtomicBool::new(false), drop_reply: AtomicBool::new(false) }
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    pub(crate) fn drop_one_reply(&self) {
        self.drop_reply.store(true, Ordering::SeqCst);
    }

    fn up(&self) -> std::result::Result<(), StoreError> {
        if self.down.load(Ordering::SeqCst) { Err(StoreError::Unavailable("unplugged".into())) } else { Ok(()) }
    }

    async fn at(&self, failpoint: &Failpoint) {
        if self.failpoint.as_ref() == Some(failpoint) {
            die().await;
        }
    }
}

impl<S: Store> Store for Controlled<S> {
    type Session = S::Session;

    async fn claim(&self, claim: &Claim<'_>) -> std::result::Result<Claimed<S::Session>, StoreError> {
        self.up()?;
        let claimed = self.inner.claim(claim).await?;
        if self.drop_reply.swap(false, Ordering::SeqCst) {
            return Err(StoreError::Unavailable("the reply was lost".into()));
        }
        if matches!(claimed, Claimed::Won(_)) {
            self.at(&Failpoint::AfterClaim).await;
        }
        Ok(claimed)
    }

    async fn renew(&self, id: &RecordId, token: ClaimToken, lease: Duration) -> std::result::Result<bool, StoreError> {
        self.up()?;
        self.inner.renew(id, token, lease).await
    }

    async fn complete(
        &self,
        id: &RecordId,
        token: ClaimToken,
        session: S::Session,
        completion: Completion,
    ) -> std::result::Result<Completed, StoreError> {
        self.up()?;
        let completed = self.inner.complete(id, token, session, completion).await?;
        self.at(&Failpoint::AfterComplete).await;
        Ok(completed)
    }

    async fn release(
        &self,
        id: &RecordId,
        token: ClaimToken,
        session: S::Session,
    ) -> std::result::Result<Completed, StoreError> {
        self.up()?;
        self.inner.release(id, token, session).await
    }

    async fn abandon(
        &self,
        id: &RecordId,
        token: ClaimToken,
        session: Option<S::Session>,
    ) -> std::result::Result<Completed, StoreError> {
        self.up()?;
        self.inner.abandon(id, token, session).await
    }

    async fn look(&self, id: &RecordId) -> std::result::Result<Option<State>, StoreError> {
        self.up()?;
        self.inner.look(id).await
    }

    async fn sweep(&self, most: usize) -> std::result::Result<usize, StoreError> {
        self.inner.sweep(most).await
    }
}

#[derive(Clone, Default)]
pub(crate) struct Limiter(Arc<AtomicBool>);

impl Limiter {
    pub(crate) fn set_drained(&self, drained: bool) {
        self.0.store(drained, Ordering::SeqCst);
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

#[derive(Clone, Default)]
pub(crate) struct Tenants(Arc<Mutex<HashSet<String>>>);

impl Tenants {
    pub(crate) fn revoke(&self, tenant: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant);
    }

    pub(crate) fn is_revoked(&self, tenant: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(tenant)
    }
}
