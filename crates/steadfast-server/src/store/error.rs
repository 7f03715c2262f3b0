//! Why a store cannot answer.

use super::identity::IdentityMismatch;
use super::record::RecordError;

/// Why a store cannot answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot be reached. The call may have been carried out; repeating it is safe.
    #[error("the store cannot be reached: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It has no room, and nothing that it may forget.
    #[error("the store is full")]
    Full,
    /// It has no session to lend: all were taken for as long as a call may wait. Nothing was
    /// claimed.
    #[error("the store is busy: no session came free in time")]
    Busy,
    /// The session was rolled back for certain: nothing of the operation is kept, and its key is as
    /// it was before the claim. Repeating the request is safe.
    #[error("the operation was rolled back: {0}")]
    RolledBack(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The record is damaged, or of a newer version: it is refused, not replayed, not rerun.
    #[error("the record cannot be read: {0}")]
    Unreadable(#[source] RecordError),
    /// The records that it holds could not be found again by this build. Nothing is claimed.
    #[error("the store cannot be used: {0}")]
    IdentityMismatch(#[source] IdentityMismatch),
}

impl From<IdentityMismatch> for StoreError {
    fn from(mismatch: IdentityMismatch) -> Self {
        Self::IdentityMismatch(mismatch)
    }
}
