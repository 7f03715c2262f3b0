//! For whoever is on call: a way to give back a key that nobody else can. What is known of it says
//! [`Store::get`], asked for the operation's [`record_id`](OperationKey::record_id).

use std::time::Duration;

use super::child_key::OperationKey;
use super::claiming::{Answer, Claiming, Won};
use super::shared_store::SharedStore;
use super::store::{Claim, End, FinishOutcome, RecordState, Store, StoreError};

/// Longer than a release takes; the claim that it is made by ends with it.
const HOLD: Duration = Duration::from_secs(60);
/// If it ends in between, what is known of the key is kept for somebody to look again.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why a key was not given back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// Nothing is known of it.
    #[error("there is no record of this key")]
    NotFound,
    /// Its request still runs, or its lease has not ended yet.
    #[error("a request still runs under this key")]
    Running,
    /// It has ended, and its answer is replayed. Whoever wants it to happen once more asks under another key.
    #[error("the operation has ended: what is to happen again needs another key")]
    Ended,
    /// Somebody else took the key meanwhile.
    #[error("the key changed hands meanwhile")]
    Lost,
    /// The store cannot say.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Gives back a key whose outcome is unknown, after somebody has found out that nothing has happened, or has undone it: the next
/// request under it runs. `reason` is logged, at warn level.
///
/// # Errors
///
/// Only an operation of unknown outcome can be given back: [`ReleaseError`] says what it is
/// instead. An operation that runs in this process is running, even if its lease ran out: ask with
/// the handle that its layer uses. If the store fails in between, the key is unknown again.
pub async fn release<S: Store>(
    store: &SharedStore<S>,
    operation: &OperationKey,
    reason: &str,
) -> Result<(), ReleaseError> {
    let id = operation.record_id();
    let fingerprint = match store.get(id).await? {
        None => return Err(ReleaseError::NotFound),
        Some(RecordState::InProgress { .. }) => return Err(ReleaseError::Running),
        Some(RecordState::Completed { .. }) => return Err(ReleaseError::Ended),
        Some(RecordState::Unknown { fingerprint }) => fingerprint,
    };
    // Taking it over is what keeps two of us, and a request that comes at this moment, apart.
    let token = store.token().map_err(|error| StoreError::Unavailable(error.into()))?;
    let claim = Claim::new(id, token, fingerprint, HOLD, RETENTION);
    let mut claiming = Claiming::new(store, claim);
    let session = match claiming.ask(true).await? {
        Answer::Won(Won { session, .. }) => session,
        Answer::Known(RecordState::InProgress { .. }) => return Err(ReleaseError::Running),
        Answer::Known(_) => return Err(ReleaseError::Lost),
    };
    // If this fails, the claim is cancelled: the key is as unknown as it was, at once instead of when the claim lapses.
    let released = match store.finish(claim.reference(), Some(session), &End::Released).await? {
        FinishOutcome::Stored => Ok(()),
        FinishOutcome::Fenced => Err(ReleaseError::Lost),
    };
    claiming.begins();
    tracing::warn!(target: "steadfast", ?id, reason, released = released.is_ok(), "a key was given back by hand");
    released
}
