//! What can fail: one call, or the database for all callers. A panic of redb is such a failure.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use steadfast_server::{RecordError, StoreError};

use super::error::OpenError;

/// A failure that makes the database unusable for all callers until its file is opened again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// An error of redb.
    #[error("{0}")]
    Redb(#[source] redb::Error),
    /// A record where no single call can fail alone.
    #[error("{0}")]
    Record(#[source] StoreError),
    /// redb has panicked.
    #[error("redb panicked; see the panic message on standard error")]
    Panic,
    /// The file belongs to `steadfast-outbox`.
    #[error("it is an outbox, whose operations would be lost among the records; choose another file")]
    Outbox,
    /// The file is closed.
    #[error("the file is closed after a failure")]
    Closed,
    /// The file cannot be opened again.
    #[error("the store failed and could not be reopened: {0}")]
    Reopen(#[source] OpenError),
    /// A database that the program has opened has failed.
    #[error("the database has failed: {0}. Your program opened it, so your program must open it again")]
    NotOurs(#[source] Arc<Failure>),
}

impl Failure {
    /// Returns whether the file is damaged, rather than out of reach.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Panic | Self::Redb(redb::Error::Corrupted(_)))
    }
}

/// Calls redb and turns its panic into an error.
pub(super) fn catch_panic<T>(call: impl FnOnce() -> T) -> Result<T, Failure> {
    // The state that a panic leaves inside redb is not trusted. The writer closes the database
    // without letting it write, and the next opening checks the file. Until then readers may still
    // use records: each has a checksum of its own.
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| Failure::Panic)
}

/// A failure of one piece of work.
#[derive(Debug)]
#[non_exhaustive]
pub enum Failed {
    /// The transaction and the database are unusable, for all callers.
    Database(Failure),
    /// Only this call has failed.
    Call(StoreError),
}

impl Failed {
    pub(super) fn into_store_error(self) -> StoreError {
        match self {
            Self::Database(failure) => StoreError::Unavailable(failure.into()),
            Self::Call(error) => error,
        }
    }

    /// Converts the error where no single call can fail alone.
    #[must_use]
    pub fn into_failure(self) -> Failure {
        match self {
            Self::Database(failure) => failure,
            Self::Call(error) => Failure::Record(error),
        }
    }
}

impl<E: Into<redb::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Database(Failure::Redb(error.into()))
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self::Database(failure)
    }
}

/// Reports an unreadable record: the call fails, the database does not.
pub(super) fn unreadable(error: RecordError) -> Failed {
    Failed::Call(StoreError::Unreadable(error))
}
