//! Errors of opening a file or a database, and what to do about them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use redb::{DatabaseError, StorageError};
use steadfast_server::IdentityMismatch;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// The reason why a file or a database cannot be used as a store.
///
/// The file was not changed. A database that you opened yourself may have been: redb repairs what
/// it can while it opens and checks it.
///
/// ```
/// use steadfast_redb::{OpenError, RedbStore};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("keys.redb");
/// std::fs::write(&path, "not a database")?;
/// let error = RedbStore::open(&path).unwrap_err();
///
/// assert!(matches!(error, OpenError::Damaged { .. }));
/// assert_eq!(error.path(), Some(path.as_path()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The content of the file is not what redb wrote.
    ///
    /// A crash of the process or of the machine does not cause this. Possible causes are a failing
    /// disk, a copy made while the file was in use, or another program that wrote to the file.
    ///
    /// The file may lack an operation, which would run a second time if you used the store.
    /// [`RedbOptions::accept_repair`](super::RedbOptions::accept_repair) keeps the readable
    /// records. An older copy of the file is no better: it lacks every operation since the copy was
    /// made.
    #[error(
        "{} is damaged: {source}.{} Opening it with `RedbStore::options().accept_repair(true)` keeps the records that can still be \
         read; operations whose records are lost can then run a second time",
        Named(path),
        Unchanged(path)
    )]
    #[non_exhaustive]
    Damaged {
        /// The path of the file. `None` for a database that you opened.
        path: Option<PathBuf>,
        /// The damage that was found.
        source: Source,
    },
    /// The file is damaged, you accepted a repair, and no repair is possible.
    #[error(
        "{} is damaged and cannot be repaired: {source}.{} Move it away to start with an empty store: every operation that it held \
         can then run a second time",
        Named(path),
        Unchanged(path)
    )]
    #[non_exhaustive]
    BeyondRepair {
        /// The path of the file. `None` for a database that you opened.
        path: Option<PathBuf>,
        /// The damage that was found.
        source: Source,
    },
    /// Another store has the file open, in this process or in another one.
    #[error("{} is in use by another store, in this process or in another", Named(path))]
    #[non_exhaustive]
    InUse {
        /// The path of the file.
        path: Option<PathBuf>,
    },
    /// Another version of redb wrote the file, in a format that this version does not read.
    #[error("{} cannot be read by this version of redb: {source}", Named(path))]
    #[non_exhaustive]
    Format {
        /// The path of the file.
        path: Option<PathBuf>,
        /// The error of redb.
        source: Source,
    },
    /// The records have another [`IDENTITY_VERSION`](steadfast_server::IDENTITY_VERSION) than this
    /// build. The store would find none of them, and every repeat would run again.
    #[error("{} cannot be used by this version of steadfast-redb: {source}", Named(path))]
    #[non_exhaustive]
    Identity {
        /// The path of the file. `None` for a database that you opened.
        path: Option<PathBuf>,
        /// The two versions.
        source: IdentityMismatch,
    },
    /// The operating system refused a request: to read or write the file, to start a thread, or to
    /// give random bytes.
    #[error("{} cannot be opened: {source}", Named(path))]
    #[non_exhaustive]
    System {
        /// The path of the file. `None` for a database that you opened.
        path: Option<PathBuf>,
        /// The error of the operating system.
        source: Source,
    },
}

impl OpenError {
    /// Returns the path of the file. `None` for a database that you opened.
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

    /// Turns damage into damage without repair, for a database that only redb could repair.
    pub(super) fn without_repair(self) -> Self {
        match self {
            Self::Damaged { path, source } => Self::BeyondRepair { path, source },
            other => other,
        }
    }

    /// Classifies an error of redb. Only known kinds of damage count as damage, since only those
    /// offer a repair.
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

/// Returns whether an I/O error is about the content: bytes that redb did not write, or too few.
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
        f.write_str(if self.0.is_some() { " The file was not changed." } else { "" })
    }
}
