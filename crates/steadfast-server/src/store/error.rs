//! The errors of a store.

use std::fmt;

use super::identity::IdentityMismatch;
use super::record::RecordError;

/// Why a call to a store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store cannot be reached. The call may have been carried out; repeating it is safe.
    #[error("the store cannot be reached: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store has no room, and no expired record to remove. The limit says how to raise it.
    #[error("the store is full: {0}")]
    Full(StoreLimit),
    /// The store has no free session: all were in use for as long as a call may wait. Nothing was
    /// claimed. The limit says how many there are, and how to raise it.
    #[error("no session of the store came free in time: {0}")]
    Busy(StoreLimit),
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

/// The limit that a full or busy store has reached, and how to raise it.
///
/// It is in the store's error, in the log, and in the `detail` of the layer's 503.
///
/// ```
/// use steadfast_server::{StoreError, StoreLimit};
///
/// let error = StoreError::Full(StoreLimit::new("quota", "order a larger plan").max(1000));
/// assert_eq!(
///     error.to_string(),
///     "the store is full: quota is reached (1000); order a larger plan"
/// );
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreLimit {
    /// The name of the setting.
    pub name: &'static str,
    /// Its value. `None` if the store does not know it.
    pub max: Option<usize>,
    /// How to raise it.
    pub advice: &'static str,
}

impl StoreLimit {
    /// Creates a limit from the name of its setting, and how to raise it.
    #[must_use]
    pub const fn new(name: &'static str, advice: &'static str) -> Self {
        Self { name, max: None, advice }
    }

    /// Sets the value of the limit. Default: not known.
    #[must_use]
    pub const fn max(mut self, max: usize) -> Self {
        self.max = Some(max);
        self
    }
}

impl fmt::Display for StoreLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, max, advice } = self;
        match max {
            Some(max) => write!(f, "{name} is reached ({max}); {advice}"),
            None => write!(f, "{name} is reached; {advice}"),
        }
    }
}
