//! The file beneath the database: its lock, its header, and control over writes.
//!
//! redb repairs a file while it opens it, but a damaged file must stay unchanged until a person has
//! decided about it. So redb's writes are held back until the whole file has passed its check. A
//! database that has failed must not write while it closes.

use std::borrow::Cow;
use std::io;
use std::ops::{Bound, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{BackendError, StorageBackend};
use sha2::{Digest, Sha256};

/// The part of redb's header that redb's own checksums do not cover: the choice of the current
/// commit, and the layout of the file. A single wrong bit can make redb open the commit before the
/// last. Two commits with their own checksums follow. (Format 3 of redb's `docs/design.md`.)
const UNCHECKED: Range<usize> = 0..56;
/// Unused by redb, and in the same sector as the part that it protects, so both are written
/// together.
const STAMP: Range<usize> = 56..64;
/// The byte that names the current commit.
const FLAGS: usize = 9;
/// The bits of that byte: the slot of the current commit; set while the file is open; the commit
/// was synced before it became current; one of several processes made it current and has not synced
/// it since.
const SLOT: u8 = 1;
const IN_USE: u8 = 2;
const TWO_PHASE: u8 = 4;
const UNSYNCED: u8 = 8;

/// A file whose lock the store holds for its whole life, whatever happens to the database in it.
///
/// If another process got the lock, it would mistake this process's claims for those of a dead
/// process and run their operations again.
#[derive(Debug)]
pub struct LockedFile {
    path: PathBuf,
    file: Box<dyn StorageBackend>,
    is_locked: AtomicBool,
}

impl LockedFile {
    /// Wraps a file.
    #[doc(hidden)]
    pub fn new(path: &Path, file: impl StorageBackend) -> Self {
        Self { path: path.to_owned(), file: Box::new(file), is_locked: AtomicBool::new(false) }
    }

    /// Returns the file for reading, without the gate.
    pub(super) fn backend(&self) -> &dyn StorageBackend {
        &*self.file
    }

    /// Returns its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes that a database has locked the file. Later databases skip the lock.
    pub(super) fn keep_lock(&self) {
        self.is_locked.store(true, Ordering::Release);
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        // Closing the descriptor also releases the lock, unless a child process has inherited it.
        let _unlocked = self.file.close();
    }
}

/// Decides whether a database may write to its file.
#[derive(Debug)]
pub(super) struct Gate(RwLock<Passage>);

#[derive(Debug)]
enum Passage {
    /// Changes are kept in memory, in order. The check of a file makes only a few pages of them.
    NotAdmitted(Vec<Change>),
    Open,
    Shut,
}

#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

impl Change {
    fn make(&self, file: &dyn StorageBackend) -> io::Result<()> {
        match self {
            Self::Write(offset, data) => file.write(*offset, data),
            Self::Length(length) => file.set_len(*length),
            Self::Sync => file.sync_data(),
        }
    }

    /// Applies this change to bytes that were read at `offset`.
    fn show(&self, offset: u64, out: &mut [u8]) {
        match self {
            Self::Write(at, data) => {
                let start = (*at).max(offset);
                let end = (at + data.len() as u64).min(offset + out.len() as u64);
                if let (Some(to), Some(from)) = (part(out, offset, start, end), slice(data, *at, start, end)) {
                    to.copy_from_slice(from);
                }
            }
            Self::Length(length) => {
                let end = offset + out.len() as u64;
                if let Some(gone) = part(out, offset, (*length).max(offset), end) {
                    gone.fill(0);
                }
            }
            Self::Sync => {}
        }
    }
}

/// Returns the bytes `start..end` of a file from a piece that begins at `offset`.
fn slice(piece: &[u8], offset: u64, start: u64, end: u64) -> Option<&[u8]> {
    piece.get(usize::try_from(start.checked_sub(offset)?).ok()?..usize::try_from(end.checked_sub(offset)?).ok()?)
}

fn part(piece: &mut [u8], offset: u64, start: u64, end: u64) -> Option<&mut [u8]> {
    piece.get_mut(usize::try_from(start.checked_sub(offset)?).ok()?..usize::try_from(end.checked_sub(offset)?).ok()?)
}

impl Gate {
    pub(super) fn hold_back() -> Arc<Self> {
        Arc::new(Self(RwLock::new(Passage::NotAdmitted(Vec::new()))))
    }

    /// Creates a gate for a new file, which has nothing to lose.
    pub(super) fn let_through() -> Arc<Self> {
        Arc::new(Self(RwLock::new(Passage::Open)))
    }

    /// Writes the changes that were held back, in redb's order and with redb's syncs. Later changes
    /// go straight to the file.
    ///
    /// # Errors
    ///
    /// The file cannot be written. It is in the state that a crash would have left, and the gate is
    /// shut.
    pub(super) fn open(&self, file: &LockedFile) -> io::Result<()> {
        let mut passage = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let made = match &*passage {
            Passage::NotAdmitted(changes) => changes.iter().try_for_each(|change| change.make(&*file.file)),
            Passage::Open => Ok(()),
            Passage::Shut => Err(shut()),
        };
        *passage = if made.is_ok() { Passage::Open } else { Passage::Shut };
        made
    }

    /// Stops all writes, including those that redb makes while it closes.
    pub(super) fn shut(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Passage::Shut;
    }
}

fn shut() -> io::Error {
    io::Error::other("the database in this file has failed")
}

/// The storage that redb uses: the file behind the gate.
#[derive(Debug)]
pub(super) struct Backend {
    file: Arc<LockedFile>,
    gate: Arc<Gate>,
}

impl Backend {
    pub(super) fn new(file: Arc<LockedFile>, gate: Arc<Gate>) -> Self {
        Self { file, gate }
    }

    /// Makes a change `now`, or keeps `later` for the moment when the gate opens.
    fn change(
        &self,
        now: impl FnOnce(&dyn StorageBackend) -> io::Result<()>,
        later: impl FnOnce() -> Change,
    ) -> io::Result<()> {
        match &*self.gate.0.read().unwrap_or_else(PoisonError::into_inner) {
            Passage::Open => return now(&*self.file.file),
            Passage::Shut => return Err(shut()),
            Passage::NotAdmitted(_) => {}
        }
        if let Passage::NotAdmitted(changes) = &mut *self.gate.0.write().unwrap_or_else(PoisonError::into_inner) {
            changes.push(later());
        }
        Ok(())
    }

    /// Reads from the disk and applies the changes that were held back.
    fn read_both(&self, changes: &[Change], offset: u64, out: &mut [u8]) -> io::Result<()> {
        let length = self.file.file.len()?;
        if offset.saturating_add(out.len() as u64) > length_after(length, changes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.fill(0);
        if let Some(there) = part(out, offset, offset, length.clamp(offset, offset + out.len() as u64)) {
            self.file.file.read(offset, there)?;
        }
        if offset == 0 {
            trust_last_commit_alone(out)?;
        }
        for change in changes {
            change.show(offset, out);
        }
        Ok(())
    }
}

fn length_after(length: u64, changes: &[Change]) -> u64 {
    changes.iter().fold(length, |length, change| match change {
        Change::Write(offset, data) => length.max(offset + data.len() as u64),
        Change::Length(length) => *length,
        Change::Sync => length,
    })
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        let length = self.file.file.len()?;
        match &*self.gate.0.read().unwrap_or_else(PoisonError::into_inner) {
            Passage::NotAdmitted(changes) => Ok(length_after(length, changes)),
            Passage::Open | Passage::Shut => Ok(length),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match &*self.gate.0.read().unwrap_or_else(PoisonError::into_inner) {
            Passage::NotAdmitted(changes) => self.read_both(changes, offset, out),
            Passage::Open | Passage::Shut => self.file.file.read(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|file| file.set_len(len), || Change::Length(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(|file| file.sync_data(), || Change::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let data = if offset == 0 { stamped(data) } else { Cow::Borrowed(data) };
        self.change(|file| file.write(offset, &data), || Change::Write(offset, data.to_vec()))
    }

    // The lock belongs to the file, which closes when the store is dropped.
    fn close(&self) -> io::Result<()> {
        Ok(())
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        if self.file.is_locked.load(Ordering::Acquire) { Ok(true) } else { self.file.file.try_lock_range(start, end) }
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        if self.file.is_locked.load(Ordering::Acquire) { Ok(()) } else { self.file.file.unlock_range(start, end) }
    }
}

fn stamp(header: &[u8]) -> Option<[u8; 8]> {
    let hash = Sha256::digest(header.get(UNCHECKED)?);
    hash.first_chunk().copied()
}

/// Returns the header with its checksum, provided that redb has left the place empty.
fn stamped(header: &[u8]) -> Cow<'_, [u8]> {
    match (header.get(STAMP), stamp(header)) {
        (Some(room), Some(stamp)) if room.iter().all(|byte| *byte == 0) => {
            let mut header = header.to_vec();
            if let Some(room) = header.get_mut(STAMP) {
                room.copy_from_slice(&stamp);
            }
            Cow::Owned(header)
        }
        _ => Cow::Borrowed(header),
    }
}

/// Checks the header, and makes redb open the current commit or none.
///
/// A file that plain redb wrote has no checksum there. It may also say that its last commit was
/// synced together with the header. If that commit were damaged, redb would silently fall back to
/// the one before.
fn trust_last_commit_alone(header: &mut [u8]) -> io::Result<()> {
    let Some(written) = header.get(STAMP) else { return Ok(()) };
    if written.iter().any(|byte| *byte != 0) && stamp(header).as_ref().map(<[u8; 8]>::as_slice) != Some(written) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the header does not match its checksum"));
    }
    if let Some(flags) = header.get_mut(FLAGS) {
        *flags |= TWO_PHASE;
    }
    Ok(())
}

/// Makes this commit the current one in a header, as if the file had been closed after it.
pub(super) fn choose_commit(header: &mut [u8], slot: u8) {
    if let Some(flags) = header.get_mut(FLAGS) {
        *flags = *flags & !(SLOT | IN_USE | UNSYNCED) | slot & SLOT;
    }
}
