//! Why a file cannot be used as a store, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use redb::{DatabaseError, StorageError};
use steadfast_server::IdentityMismatch;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a file cannot be used as a store.
///
/// The file was not changed. (A database that the program opened itself may have been: redb repairs
/// what it can while it opens and while it checks.)
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file is not as redb has written it.
    ///
    /// A crash of the process or of the machine does not cause this. A failing disk does, or a copy
    /// of the file that was made while it was in use, or a program that wrote into it.
    ///
    /// An operation may be missing from the file, and would run a second time if the store were
    /// used. [`RedbOptions::accept_repair`](super::RedbOptions::accept_repair) keeps what can be
    /// read. An older copy of the file is no better: it lacks every operation since it was made.
    #[error(
        "{} is damaged: {source}.{} Opening it with `RedbStore::options().accept_repair(true)` keeps the records that can still be \
         read; operations whose records are lost can then run a second time",
        Named(path),
        Unchanged(path)
    )]
    #[non_exhaustive]
    Damaged {
        /// The file; `None` for a database that the program has opened.
        path: Option<PathBuf>,
        /// What was found.
        source: Source,
    },
    /// The file is damaged, and a repair was accepted and is not possible.
    #[error(
        "{} is damaged and cannot be repaired: {source}.{} Move it away to start with an empty store: every operation that it held \
         can then run a second time",
        Named(path),
        Unchanged(path)
    )]
    #[non_exhaustive]
    BeyondRepair {
        /// The file; `None` for a database that the program has opened.
        path: Option<PathBuf>,
        /// What was found.
        source: Source,
    },
    /// Another store has the file open, in this process or in another.
    #[error("{} is in use by another store, in this process or in another", Named(path))]
    #[non_exhaustive]
    InUse {
        /// The file.
        path: Option<PathBuf>,
    },
    /// The file was written by a version of redb whose format this one does not read.
    #[error("{} cannot be read by this version of redb: {source}", Named(path))]
    #[non_exhaustive]
    Format {
        /// The file.
        path: Option<PathBuf>,
        /// What redb says.
        source: Source,
    },
    /// The records are identified in another way than this version of the crate does it. It would
    /// find none of them, and every repeat would run again.
    #[error("{} cannot be used by this version of the crate: {source}", Named(path))]
    #[non_exhaustive]
    Identity {
        /// The file; `None` for a database that the program has opened.
        path: Option<PathBuf>,
        /// How they are identified.
        source: IdentityMismatch,
    },
    /// The operating system refused something: to read or write the file, to start a thread, to
    /// give randomness.
    #[error("{} cannot be opened: {source}", Named(path))]
    #[non_exhaustive]
    System {
        /// The file; `None` for a database that the program has opened.
        path: Option<PathBuf>,
        /// What it says.
        source: Source,
    },
}

impl OpenError {
    /// The file, unless the database was opened by the program.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Damaged { path, .. }
            | Self::BeyondRepair { path, .. }
            | Self::InUse { path }
            | Self::Format { path, .. }
            | Self::Identity { path, .. }
            | Self::System { path, .. } => path.as_deref(),
        }
    }

    pub(super) fn damaged(path: Option<&Path>, source: impl Into<Source>) -> Self {
        Self::Damaged { path: path.map(Path::to_owned), source: source.into() }
    }

    pub(super) fn identity(path: Option<&Path>, source: IdentityMismatch) -> Self {
        Self::Identity { path: path.map(Path::to_owned), source }
    }

    pub(super) fn beyond_repair(path: Option<&Path>, source: impl Into<Source>) -> Self {
        Self::BeyondRepair { path: path.map(Path::to_owned), source: source.into() }
    }

    pub(super) fn system(path: Option<&Path>, source: impl Into<Source>) -> Self {
        Self::System { path: path.map(Path::to_owned), source: source.into() }
    }

    /// The same, where redb has the file and nobody else can repair it.
    pub(super) fn without_repair(self) -> Self {
        match self {
            Self::Damaged { path, source } => Self::BeyondRepair { path, source },
            other => other,
        }
    }

    /// What redb's refusal means. What is not known is no damage: a repair is offered only for what
    /// is.
    pub(super) fn of(path: Option<&Path>, error: DatabaseError) -> Self {
        match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
                Self::InUse { path: path.map(Path::to_owned) }
            }
            DatabaseError::UpgradeRequired(_) => Self::Format { path: path.map(Path::to_owned), source: error.into() },
            DatabaseError::Storage(StorageError::Corrupted(_)) => Self::damaged(path, error),
            DatabaseError::Storage(StorageError::Io(ref io)) if is_content(io) => Self::damaged(path, error),
            error => Self::system(path, error),
        }
    }
}

/// An I/O error about what was read, and not about the reading: other bytes than redb's, or too
/// few.
fn is_content(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

struct Named<'a>(&'a Option<PathBuf>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(path) => write!(f, "the store's file {}", path.display()),
            None => f.write_str("the store's database"),
        }
    }
}

struct Unchanged<'a>(&'a Option<PathBuf>);

impl fmt::Display for Unchanged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { " Nothing in it was changed." } else { "" })
    }
}
