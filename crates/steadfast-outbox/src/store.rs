//! The trait of a store, and its errors.

use std::future::Future;
use std::time::Duration;

use crate::change::{Change, Refusal, Terms};
use crate::codec::CodecError;
use crate::entry::Entry;
use crate::id::OperationId;
use crate::rules::NewEntry;

/// A place where operations are kept.
///
/// A store persists, and decides nothing: every change goes through [`rules`](crate::rules), in one
/// transaction that is durable before the method returns. The time of a change is the store's own.
/// Methods take `&self` and are called concurrently.
pub trait OutboxStore: Send + Sync + 'static {
    /// Whether another process may use the store at the same time. Otherwise opening it proves that
    /// earlier owners are gone, and [`rules::end_lease`](crate::rules::end_lease) frees their claims.
    const IS_SHARED: bool;

    /// Writes an operation down. With `terms` its first attempt is under way ([`rules::open`]).
    ///
    /// [`rules::open`]: crate::rules::open
    ///
    /// # Errors
    ///
    /// The name belongs to another operation, the store is full, or it cannot be written.
    fn submit(
        &self,
        new: NewEntry,
        terms: Option<Terms>,
    ) -> impl Future<Output = Result<Submitted, OutboxStoreError>> + Send;

    /// Applies a change to an operation ([`rules::apply`](crate::rules::apply)).
    ///
    /// # Errors
    ///
    /// The store cannot be read or written.
    fn apply(&self, id: OperationId, change: Change) -> impl Future<Output = Result<Applied, OutboxStoreError>> + Send;

    /// Claims up to `limit` operations that are due, those first that have been due for longest, but
    /// none to the origins in `except`. An operation that has expired is returned with its end.
    ///
    /// # Errors
    ///
    /// The store cannot be read or written.
    fn claim_due(
        &self,
        terms: Terms,
        limit: usize,
        except: Vec<String>,
    ) -> impl Future<Output = Result<Vec<Entry>, OutboxStoreError>> + Send;

    /// Returns the time until an operation is due, zero if one is. `None` if there is none.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    fn next_due(&self, except: Vec<String>) -> impl Future<Output = Result<Option<Duration>, OutboxStoreError>> + Send;

    /// Returns an operation.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    fn get(&self, id: OperationId) -> impl Future<Output = Result<Option<Entry>, OutboxStoreError>> + Send;

    /// Returns the operation of this name.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    fn find(&self, name: &str) -> impl Future<Output = Result<Option<Entry>, OutboxStoreError>> + Send;

    /// Returns up to `limit` operations behind `after`, in the order of their identifiers, which is
    /// that of their submission.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    fn list(
        &self,
        after: Option<OperationId>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Entry>, OutboxStoreError>> + Send;

    /// Returns what the store holds.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    fn usage(&self) -> impl Future<Output = Result<Usage, OutboxStoreError>> + Send;

    /// Removes what up to `limit` entries do not need any more
    /// ([`rules::sweep`](crate::rules::sweep)). Returns the number of entries that it has changed.
    ///
    /// # Errors
    ///
    /// The store cannot be written.
    fn sweep(&self, limit: usize) -> impl Future<Output = Result<usize, OutboxStoreError>> + Send;
}

/// What has become of a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a submission is new, or it is not")]
pub enum Submitted {
    /// It was written down.
    New(Entry),
    /// An operation of the same name and content is there already, or one of the same identifier.
    Existing(Entry),
}

/// What has become of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a change is applied, or it is not")]
#[allow(clippy::large_enum_variant, reason = "nearly all are applied")]
pub enum Applied {
    /// The entry after the change.
    Done(Entry),
    /// The change was refused, and nothing was written.
    Refused(Refusal),
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Number of entries, with those that have ended.
    pub entries: u64,
    /// Their size as they are stored, in bytes, without the store's own overhead.
    pub bytes: u64,
}

impl Usage {
    /// Makes a usage of its two numbers.
    #[must_use]
    pub fn new(entries: u64, bytes: u64) -> Self {
        Self { entries, bytes }
    }
}

/// The reason why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxStoreError {
    /// The name belongs to an operation with another request or another principal.
    #[error("the name `{name}` belongs to operation {id}, which has another request; choose a name for each operation")]
    #[non_exhaustive]
    NameTaken {
        /// The name.
        name: String,
        /// The operation that has it.
        id: OperationId,
    },
    /// A limit of the store is reached. Nothing was written.
    #[error("the outbox is full: {what}; acknowledge operations that have ended, or raise the limit")]
    #[non_exhaustive]
    Full {
        /// The limit that is reached, with its value.
        what: String,
    },
    /// An entry is not what was written.
    #[error("an entry of the outbox cannot be read: {0}")]
    Unreadable(#[from] CodecError),
    /// The store cannot be read or written now. A change that was under way may have been written.
    #[error("the outbox cannot be reached: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl OutboxStoreError {
    /// Makes the error of a name that belongs to another operation.
    #[must_use]
    pub fn name_taken(name: impl Into<String>, id: OperationId) -> Self {
        Self::NameTaken { name: name.into(), id }
    }

    /// Makes the error of a limit that is reached.
    #[must_use]
    pub fn full(what: impl Into<String>) -> Self {
        Self::Full { what: what.into() }
    }
}

/// A store that several outboxes of one process use.
impl<S: OutboxStore> OutboxStore for std::sync::Arc<S> {
    const IS_SHARED: bool = true;

    fn submit(
        &self,
        new: NewEntry,
        terms: Option<Terms>,
    ) -> impl Future<Output = Result<Submitted, OutboxStoreError>> + Send {
        S::submit(self, new, terms)
    }

    fn apply(&self, id: OperationId, change: Change) -> impl Future<Output = Result<Applied, OutboxStoreError>> + Send {
        S::apply(self, id, change)
    }

    fn claim_due(
        &self,
        terms: Terms,
        limit: usize,
        except: Vec<String>,
    ) -> impl Future<Output = Result<Vec<Entry>, OutboxStoreError>> + Send {
        S::claim_due(self, terms, limit, except)
    }

    fn next_due(&self, except: Vec<String>) -> impl Future<Output = Result<Option<Duration>, OutboxStoreError>> + Send {
        S::next_due(self, except)
    }

    fn get(&self, id: OperationId) -> impl Future<Output = Result<Option<Entry>, OutboxStoreError>> + Send {
        S::get(self, id)
    }

    fn find(&self, name: &str) -> impl Future<Output = Result<Option<Entry>, OutboxStoreError>> + Send {
        S::find(self, name)
    }

    fn list(
        &self,
        after: Option<OperationId>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Entry>, OutboxStoreError>> + Send {
        S::list(self, after, limit)
    }

    fn usage(&self) -> impl Future<Output = Result<Usage, OutboxStoreError>> + Send {
        S::usage(self)
    }

    fn sweep(&self, limit: usize) -> impl Future<Output = Result<usize, OutboxStoreError>> + Send {
        S::sweep(self, limit)
    }
}
