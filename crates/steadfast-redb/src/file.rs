//! A new file that is whole from the first moment that its name exists.
//!
//! redb writes the number by which it knows its files last. A process that dies before that would
//! leave a file that no later one can open, and somebody would have to delete it by hand. So the
//! file is made under another name and then given its own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use std::sync::Arc;

use redb::Database;
use redb::backends::FileBackend;

use super::backend::{Backend, Gate, LockedFile};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Makes an empty database at `path`, unless another process is faster.
pub(super) fn create(path: &Path) -> Result<(), Error> {
    let new = beside(path);
    drop(new_database(&new)?);
    let named = publish(&new, path);
    fs::remove_file(&new)?;
    Ok(named?)
}

/// An empty database in a file that nobody else knows of yet.
pub(super) fn new_database(path: &Path) -> Result<Database, Error> {
    // A process that had this id before may have died here.
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    let file = Arc::new(LockedFile::new(path, FileBackend::new(file)?));
    Ok(Database::builder().create_with_backend(Backend::new(file, Gate::let_through()))?)
}

/// Where the file is made.
pub(super) fn beside(path: &Path) -> PathBuf {
    with_suffix(path, &format!(".new-{}", std::process::id()))
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(suffix);
    PathBuf::from(name)
}

/// A link, and not a rename, which would replace what another process has made meanwhile and uses
/// already.
fn publish(new: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(new, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(path),
    }
}

/// On Unix a name is durable once its folder is.
#[cfg(unix)]
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
pub(super) fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
