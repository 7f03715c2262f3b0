//! The faults that a case can cause: in the store, the rate limiter, a tenant's access, and the
//! process.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use steadfast_server::{
    Claim, ClaimOutcome, ClaimRef, End, FinishOutcome, Record, RecordId, RecordState, Store, StoreError,
};

use crate::Result;
use crate::damage::DAMAGE;

/// The point at which the process kills itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failpoint {
    /// The claim is made, and the handler has not started.
    AfterClaim,
    /// The record is durable, and nothing was sent.
    AfterComplete,
    /// The handler has written its row into the open transaction.
    AfterBusinessWrite,
    /// The transaction of claim, row and record is about to end.
    BeforeCommit,
    /// The transaction has ended, and nothing was sent.
    AfterCommit,
}

impl Failpoint {
    pub(crate) fn new(name: &str) -> Result<Self> {
        match name {
            "after_claim" => Ok(Self::AfterClaim),
            "after_complete" => Ok(Self::AfterComplete),
            "after_business_write" => Ok(Self::AfterBusinessWrite),
            "before_commit" => Ok(Self::BeforeCommit),
            "after_commit" => Ok(Self::AfterCommit),
            other => Err(format!("FAILPOINT={other} is not offered").into()),
        }
    }
}

/// Sends SIGKILL: no clean-up, no response, and nothing happens until the signal arrives.
pub(crate) async fn die() {
    let pid = std::process::id().to_string();
    if std::process::Command::new("kill").args(["-9", &pid]).status().is_err() {
        std::process::abort();
    }
    std::future::pending::<()>().await;
}

/// Faults that apply to all stores of this process.
#[derive(Clone, Default)]
pub(crate) struct Switches(Arc<Switched>);

#[derive(Default)]
struct Switched {
    down: AtomicBool,
    drops_reply: AtomicBool,
    records: Mutex<Records>,
}

/// The damaged records of a store whose bytes are out of reach.
#[derive(Default)]
struct Records {
    completed: HashSet<RecordId>,
    damaged: HashSet<RecordId>,
}

impl Switches {
    pub(crate) fn set_down(&self, down: bool) {
        self.0.down.store(down, Ordering::SeqCst);
    }

    pub(crate) fn drop_one_reply(&self) {
        self.0.drops_reply.store(true, Ordering::SeqCst);
    }

    /// Makes the completed records unreadable.
    pub(crate) fn damage_records(&self) {
        let records = &mut *self.records();
        records.damaged.extend(records.completed.drain());
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.0.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_down(&self) -> bool {
        self.0.down.load(Ordering::SeqCst)
    }

    fn drops_this_reply(&self) -> bool {
        self.0.drops_reply.swap(false, Ordering::SeqCst)
    }

    fn completed(&self, id: &RecordId) {
        let records = &mut *self.records();
        records.completed.insert(*id);
        records.damaged.remove(id);
    }

    /// Returns the state as the store would read it: damaged, if it is.
    fn read(&self, id: &RecordId, state: RecordState) -> std::result::Result<RecordState, StoreError> {
        if matches!(state, RecordState::Completed { .. }) && self.records().damaged.contains(id) {
            Record::decode(DAMAGE).map_err(StoreError::Unreadable)?;
        }
        Ok(state)
    }
}

/// A store that can be down, lose a reply, and kill the process.
pub(crate) struct Controlled<S> {
    inner: S,
    failpoint: Option<Failpoint>,
    switches: Switches,
}

impl<S> Controlled<S> {
    pub(crate) fn new(inner: S, failpoint: Option<Failpoint>, switches: Switches) -> Self {
        Self { inner, failpoint, switches }
    }

    fn up(&self) -> std::result::Result<(), StoreError> {
        if self.switches.is_down() { Err(StoreError::Unavailable("unplugged".into())) } else { Ok(()) }
    }

    async fn at(&self, failpoint: &Failpoint) {
        if self.failpoint.as_ref() == Some(failpoint) {
            die().await;
        }
    }
}

impl<S: Store> Store for Controlled<S> {
    type Session = S::Session;

    const TRANSACTIONAL: bool = S::TRANSACTIONAL;

    async fn claim(&self, claim: &Claim<'_>) -> std::result::Result<ClaimOutcome<S::Session>, StoreError> {
        self.up()?;
        let claimed = self.inner.claim(claim).await?;
        if self.switches.drops_this_reply() {
            return Err(StoreError::Unavailable("the reply was lost".into()));
        }
        match claimed {
            ClaimOutcome::Existing(state) => Ok(ClaimOutcome::Existing(self.switches.read(claim.id, state)?)),
            claimed => {
                self.at(&Failpoint::AfterClaim).await;
                Ok(claimed)
            }
        }
    }

    async fn renew(&self, claim: ClaimRef, lease: Duration) -> std::result::Result<bool, StoreError> {
        self.up()?;
        self.inner.renew(claim, lease).await
    }

    async fn finish(
        &self,
        claim: ClaimRef,
        session: Option<S::Session>,
        end: &End,
    ) -> std::result::Result<FinishOutcome, StoreError> {
        self.up()?;
        let completes = matches!(end, End::Completed(_));
        if completes && S::TRANSACTIONAL {
            self.at(&Failpoint::BeforeCommit).await;
        }
        let completed = self.inner.finish(claim, session, end).await?;
        if completes {
            self.switches.completed(&claim.id);
            self.at(if S::TRANSACTIONAL { &Failpoint::AfterCommit } else { &Failpoint::AfterComplete }).await;
        }
        Ok(completed)
    }

    async fn get(&self, id: &RecordId) -> std::result::Result<Option<RecordState>, StoreError> {
        self.up()?;
        self.inner.get(id).await?.map(|state| self.switches.read(id, state)).transpose()
    }

    async fn purge_expired(&self, most: usize) -> std::result::Result<usize, StoreError> {
        self.inner.purge_expired(most).await
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
