//! The name of an operation in its outbox.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Identifies an operation in an outbox: a UUID v7 (RFC 9562 §5.7), so that later operations sort
/// behind earlier ones.
///
/// ```
/// use steadfast_outbox::OperationId;
///
/// let id: OperationId = "01935c7e-2b6a-7c3e-8f6d-2a4b6c8d0e1f".parse()?;
/// assert_eq!(id.to_string(), "01935c7e-2b6a-7c3e-8f6d-2a4b6c8d0e1f");
/// # Ok::<(), steadfast::uuid::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OperationId(Uuid);

impl OperationId {
    /// The identifier of no operation.
    #[cfg(feature = "redb")]
    pub(crate) const NONE: Self = Self(Uuid::nil());

    /// Makes an identifier at this time, in milliseconds since the Unix epoch. `None` if the
    /// operating system has no randomness to give.
    pub(crate) fn mint(now_ms: u64) -> Option<Self> {
        let mut random = [0; 10];
        getrandom::fill(&mut random).ok()?;
        Some(Self(uuid::Builder::from_unix_timestamp_millis(now_ms, &random).into_uuid()))
    }

    /// Returns the identifier as a UUID.
    #[must_use]
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl From<Uuid> for OperationId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl FromStr for OperationId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OperationId({})", self.0)
    }
}
