//! Errors of opening the file of an outbox, and what to do about them.

use std::path::{Path, PathBuf};

use steadfast_redb::OpenError;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// The reason why a file cannot be used as an outbox. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxOpenError {
    /// Another process, or another outbox of this one, has the file open.
    #[error(
        "the outbox {} is in use by another process; stop that process, or ask it by its own `Outbox`",
        path.display()
    )]
    #[non_exhaustive]
    InUse {
        /// The path of the file.
        path: PathBuf,
    },
    /// The content of the file is not what was written.
    ///
    /// A crash of the process or of the machine does not cause this. Possible causes are a failing
    /// disk, a copy made while the file was in use, or another program that wrote to the file.
    #[error(
        "the outbox {} is damaged: {source}. Keep the file, and move it away to start with an empty one: look up at the \
         server what became of the operations that it held, since they are not sent again",
        path.display()
    )]
    #[non_exhaustive]
    Damaged {
        /// The path of the file.
        path: PathBuf,
        /// The damage that was found.
        source: Source,
    },
    /// The file is a database of another kind, such as one with idempotency records.
    #[error("{} is a database, but no outbox: {reason}; choose another file", path.display())]
    #[non_exhaustive]
    NotAnOutbox {
        /// The path of the file.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// A later version of this crate, or another version of redb, has written the file.
    #[error("the outbox {} has another format: {source}; use the version that has written it", path.display())]
    #[non_exhaustive]
    Format {
        /// The path of the file.
        path: PathBuf,
        /// The two formats.
        source: Source,
    },
    /// There is no file at the path, and none was to be created.
    #[error("there is no outbox at {}; check the path", path.display())]
    #[non_exhaustive]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused to read or write the file, or to start a thread.
    #[error("the outbox {} cannot be opened: {source}", path.display())]
    #[non_exhaustive]
    System {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: Source,
    },
}

impl OutboxOpenError {
    pub(super) fn of(path: &Path, error: OpenError) -> Self {
        let path = path.to_owned();
        match error {
            OpenError::InUse { .. } => Self::InUse { path },
            OpenError::Damaged { source, .. } | OpenError::BeyondRepair { source, .. } => {
                Self::Damaged { path, source }
            }
            OpenError::Format { source, .. } => Self::Format { path, source },
            OpenError::System { source, .. } => Self::System { path, source },
            other => Self::System { path, source: other.into() },
        }
    }

    pub(super) fn damaged(path: &Path, source: impl Into<Source>) -> Self {
        Self::Damaged { path: path.to_owned(), source: source.into() }
    }

    pub(super) fn system(path: &Path, source: impl Into<Source>) -> Self {
        Self::System { path: path.to_owned(), source: source.into() }
    }
}
