//! Creates a file that is complete from the moment its name exists.
//!
//! redb writes its magic number last. If the process died before that, no later process could open
//! the file, and you would have to delete it by hand. So the file is created under a temporary
//! name first.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use std::sync::Arc;

use redb::Database;
use redb::backends::FileBackend;

use super::backend::{Backend, Gate, LockedFile};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Creates an empty database at `path`, unless another process is faster.
pub(super) fn create(path: &Path) -> Result<(), Error> {
    let new = beside(path);
    drop(new_database(&new)?);
    let named = publish(&new, path);
    fs::remove_file(&new)?;
    Ok(named?)
}

/// Creates an empty database in a file that no other process knows yet.
pub(super) fn new_database(path: &Path) -> Result<Database, Error> {
    // An earlier process with the same id may have died here and left its file.
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    let file = Arc::new(LockedFile::new(path, FileBackend::new(file)?));
    Ok(Database::builder().create_with_backend(Backend::new(file, Gate::let_through()))?)
}

/// Returns the temporary name.
pub(super) fn beside(path: &Path) -> PathBuf {
    with_suffix(path, &format!(".new-{}", std::process::id()))
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(suffix);
    PathBuf::from(name)
}

/// Links the new file to its final name. A rename would replace a file that another process has
/// created meanwhile and already uses.
fn publish(new: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(new, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(path),
    }
}

/// Syncs the folder: on Unix a name is durable only after that.
#[cfg(unix)]
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
pub(super) fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
