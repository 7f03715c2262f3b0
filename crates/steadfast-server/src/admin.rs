//! Tools for operators: they release a key whose outcome is unknown.
//!
//! To look at a record first, call [`Store::get`] with the operation's
//! [`record_id`](OperationKey::record_id).

use std::time::Duration;

use super::child_key::OperationKey;
use super::claiming::{Answer, Claiming, Won};
use super::shared_store::SharedStore;
use super::store::{Claim, End, FinishOutcome, RecordState, Store, StoreError};

/// Longer than a release takes. The claim of the release ends with it.
const HOLD: Duration = Duration::from_secs(60);
/// If the process dies during a release, the record is kept this long, so that an operator can look
/// again.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why a key was not released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The store has no record of the key.
    #[error("there is no record of this key")]
    NotFound,
    /// A request still runs under the key, or its lease has not ended yet.
    #[error("a request still runs under this key")]
    Running,
    /// The operation has completed, and its response is replayed. To execute it once more, use
    /// another key.
    #[error("the operation has completed; use another key to execute it again")]
    Ended,
    /// Another claim took the key meanwhile.
    #[error("another claim took the key meanwhile")]
    Lost,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Releases a key whose outcome is unknown, so that the next request under it runs. `reason` is
/// logged at warn level.
///
/// Call it after you have found out that nothing happened, or have undone it. Use the handle of the
/// layer that serves the key ([`IdempotencyLayer::store`](crate::IdempotencyLayer::store)). That
/// handle knows which operations still run in this process, even after their lease has expired.
///
/// ```
/// use steadfast_server::admin::{ReleaseError, release};
/// use steadfast_server::{IdempotencyLayer, MemoryStore, OperationKey, Scope};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
/// // The key that the client reports, in the caller's scope.
/// let operation = OperationKey::new("", "order-1042");
/// let released = release(layer.store(), &operation, "the bank has no such charge").await;
/// assert!(matches!(released, Err(ReleaseError::NotFound)));
/// # }
/// ```
///
/// # Errors
///
/// Returns a [`ReleaseError`] if the outcome of the operation is not unknown. If the store fails
/// during the release, the outcome is unknown as before.
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
    // The takeover keeps out a second operator, and a request that comes at this moment.
    let token = store.token().map_err(|error| StoreError::Unavailable(error.into()))?;
    let claim = Claim::new(id, token, fingerprint, HOLD, RETENTION);
    let mut claiming = Claiming::new(store, claim);
    let session = match claiming.ask(true).await? {
        Answer::Won(Won { session, .. }) => session,
        Answer::Known(RecordState::InProgress { .. }) => return Err(ReleaseError::Running),
        Answer::Known(_) => return Err(ReleaseError::Lost),
    };
    // If this fails, the claim is cancelled: the outcome is unknown at once, instead of when the
    // lease of the claim expires.
    let released = match store.finish(claim.reference(), Some(session), &End::Released).await? {
        FinishOutcome::Stored => Ok(()),
        FinishOutcome::Fenced => Err(ReleaseError::Lost),
    };
    claiming.begins();
    tracing::warn!(target: "steadfast", ?id, reason, released = released.is_ok(), "an operator released a key");
    released
}
