//! The store whose claim is an open transaction, and a model of its own for it.
//!
//! It has the same calls but other guarantees:
//!
//! * A claim is its session, not its token.
//! * Other callers do not see which request holds a key.
//! * No lease ends a claim.
//! * Dropping a session cancels its claim.
//! * An end without a session is lost.
//! * There are no tombstones, since a claim that has not arrived yet has no session.
//!
//! Everything else is as in [`ModelStore`](steadfast_testing::ModelStore).

use std::collections::BTreeMap;
use std::time::Duration;

use steadfast::server::{FinishOutcome, Store, StoreError};
use steadfast_postgres::{PostgresSession, TransactionalPostgresStore};
use steadfast_testing::{ModelClaim, ModelClaimOutcome, ModelEnd, ModelRecordState};

use super::play::{Answer, Model, Restart, World};
use super::steps::Call;
use super::worlds::{Postgres, claim, claimed, end, record_id, reference, state};

/// A held key, as other callers see it: without a lease.
const HELD: ModelRecordState = ModelRecordState::InProgress { request: 0, lease_left: 0 };

#[derive(Clone, Debug, Default)]
pub(super) struct TransactionalModel {
    /// The open sessions by key: token, request, retention.
    held: BTreeMap<u8, (u16, u8, u64)>,
    /// The committed ends, with their retention.
    ended: BTreeMap<u8, (ModelRecordState, u64)>,
}

impl TransactionalModel {
    fn claim(&mut self, claim: ModelClaim) -> ModelClaimOutcome {
        let ModelClaim { id, token, request, retention, take_over, .. } = claim;
        match self.ended.get(&id) {
            Some((ModelRecordState::Unknown { request: of }, _)) if take_over && *of == request => {}
            Some((state, _)) => return ModelClaimOutcome::Existing(*state),
            None => {}
        }
        if self.held.contains_key(&id) {
            return ModelClaimOutcome::Existing(HELD);
        }
        self.held.insert(id, (token, request, retention));
        ModelClaimOutcome::Acquired
    }

    fn finish(&mut self, id: u8, token: u16, end: ModelEnd) -> FinishOutcome {
        let session = self.held.get(&id).copied().filter(|(of, ..)| *of == token);
        let Some((_, request, retention)) = session else {
            // Nothing runs under it.
            return if end == ModelEnd::Cancelled { FinishOutcome::Stored } else { FinishOutcome::Fenced };
        };
        self.held.remove(&id);
        match end {
            ModelEnd::Completed { answer, retention } => {
                self.ended.insert(id, (ModelRecordState::Completed { request, answer }, retention));
            }
            ModelEnd::Unknown => {
                self.ended.insert(id, (ModelRecordState::Unknown { request }, retention));
            }
            ModelEnd::Released => {
                self.ended.remove(&id);
            }
            // The operation that it would have taken over is unchanged.
            ModelEnd::Cancelled => {}
        }
        self.pass(0);
        FinishOutcome::Stored
    }

    fn get(&self, id: u8) -> Option<ModelRecordState> {
        match (self.held.get(&id), self.ended.get(&id)) {
            // It took over the existing record.
            (Some((_, request, _)), Some(_)) => Some(ModelRecordState::InProgress { request: *request, lease_left: 0 }),
            (Some(_), None) => Some(HELD),
            (None, ended) => ended.map(|(state, _)| *state),
        }
    }
}

impl Model for TransactionalModel {
    fn call(&mut self, call: Call) -> Answer {
        match call {
            Call::Claim(claim) => Answer::Claimed(self.claim(claim)),
            Call::Renew { .. } => Answer::Renewed(true),
            Call::Finish { id, token, end } => Answer::Finished(self.finish(id, token, end)),
            Call::Look { id } => Answer::Looked(self.get(id)),
            Call::Sweep => Answer::Swept,
        }
    }

    fn pass(&mut self, time: u64) {
        self.ended.values_mut().for_each(|(_, kept_for)| *kept_for = kept_for.saturating_sub(time));
        self.ended.retain(|_, (_, kept_for)| *kept_for > 0);
    }

    fn end_claims(&mut self) {
        self.held.clear();
    }

    fn lose(&mut self, call: Call) {
        if let Call::Claim(ModelClaim { id, token, .. }) = call {
            self.finish(id, token, ModelEnd::Cancelled);
        }
    }
}

/// The store, and its callers' sessions.
pub(super) struct Transactional {
    postgres: Postgres,
    store: TransactionalPostgresStore,
    sessions: BTreeMap<u8, (u16, PostgresSession)>,
}

impl Transactional {
    pub(super) async fn over(postgres: Postgres) -> Self {
        let new = Self { store: postgres.store.transactional(), postgres, sessions: BTreeMap::new() };
        // The previous sequence may have ended with open sessions.
        new.is_let_go(1).await;
        new.is_let_go(2).await;
        new
    }

    fn take(&mut self, id: u8, token: u16) -> Option<PostgresSession> {
        let (_, session) = self.sessions.extract_if(id..=id, |_, (of, _)| *of == token).next()?;
        Some(session.1)
    }

    /// Waits until the database has rolled back the dropped sessions.
    async fn is_let_go(&self, id: u8) {
        while matches!(
            self.store.get(&record_id(id)).await.unwrap().map(state),
            Some(ModelRecordState::InProgress { .. })
        ) {
            tokio::task::yield_now().await;
        }
    }
}

impl World for Transactional {
    const RESTART: Restart = Restart::EndsClaims;

    async fn call(&mut self, call: Call) -> Result<Answer, StoreError> {
        Ok(match call {
            Call::Claim(model) => {
                let (answer, session) = claimed(claim(&self.store, model).await)?;
                if let Some(session) = session {
                    self.sessions.insert(model.id, (model.token, session));
                }
                Answer::Claimed(answer)
            }
            Call::Renew { id, token, lease } => {
                Answer::Renewed(self.store.renew(reference(id, token), Duration::from_millis(lease)).await?)
            }
            Call::Finish { id, token, end: model } => {
                let session = self.take(id, token);
                let lets_go = session.is_some() && model == ModelEnd::Cancelled;
                let finished = self.store.finish(reference(id, token), session, &end(model)).await?;
                if lets_go {
                    self.is_let_go(id).await;
                }
                Answer::Finished(finished)
            }
            Call::Look { id } => Answer::Looked(self.store.get(&record_id(id)).await?.map(state)),
            Call::Sweep => {
                self.store.purge_expired(3).await?;
                Answer::Swept
            }
        })
    }

    async fn pass(&mut self, time: Duration) {
        self.postgres.pass(time).await;
    }

    async fn restart(&mut self) {
        let held: Vec<u8> = std::mem::take(&mut self.sessions).into_keys().collect();
        for id in held {
            self.is_let_go(id).await;
        }
    }

    async fn lose(&mut self, call: Call) {
        if let Call::Claim(ModelClaim { id, token, .. }) = call
            && self.take(id, token).is_some()
        {
            self.is_let_go(id).await;
        }
    }
}
