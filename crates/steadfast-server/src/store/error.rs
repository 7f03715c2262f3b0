//! The errors of a store.

use super::identity::IdentityMismatch;
use super::record::RecordError;

/// Why a call to a store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store cannot be reached. The call may have been carried out; repeating it is safe.
    #[error("the store cannot be reached: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store has no room, and no expired record to remove.
    #[error("the store is full")]
    Full,
    /// The store has no free session: all were in use for as long as a call may wait. Nothing was
    /// claimed.
    #[error("the store is busy: no session came free in time")]
    Busy,
    /// The session was certainly rolled back. Nothing of the operation is kept, and its key is as
    /// it was before the claim. Repeating the request is safe.
    #[error("the operation was rolled back: {0}")]
    RolledBack(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The record is damaged, or of a newer version. The layer refuses it: it neither replays the
    /// record nor reruns the operation.
    #[error("the record cannot be read: {0}")]
    Unreadable(#[source] RecordError),
    /// The store's records have another identity version, so this build could not find them again.
    /// Nothing is claimed.
    #[error("the store cannot be used: {0}")]
    IdentityMismatch(#[source] IdentityMismatch),
}

impl From<IdentityMismatch> for StoreError {
    fn from(mismatch: IdentityMismatch) -> Self {
        Self::IdentityMismatch(mismatch)
    }
}
