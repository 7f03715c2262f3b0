//! A disk in memory that fails on demand.

use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

/// A disk whose content the test can see, and which it can make fail.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
pub(super) struct Platter {
    /// The bytes that a reader sees: the operating system's cache.
    pub(super) seen: Vec<u8>,
    /// The bytes that survive a power cut.
    pub(super) kept: Vec<u8>,
    pub(super) unsynced: Vec<(usize, Vec<u8>)>,
    pub(super) changes: usize,
    /// The changes that fail, counted from the first.
    pub(super) failing: std::ops::Range<usize>,
    /// The power is gone: changes that were not synced may or may not be on the disk.
    pub(super) has_no_power: bool,
    pub(super) reads_fail: bool,
    pub(super) panics: bool,
    pub(super) openings: usize,
    pub(super) locks: usize,
    pub(super) is_closed: bool,
}

impl Disk {
    pub(super) fn holding(image: Vec<u8>) -> Self {
        let platter = Platter { seen: image.clone(), kept: image, ..Platter::default() };
        Self(Arc::new(Mutex::new(platter)))
    }

    pub(super) fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fail(&self) {
        self.platter().failing = 0..usize::MAX;
    }

    pub(super) fn mend(&self) {
        self.platter().failing = 0..0;
    }
}

impl Platter {
    fn keep(&mut self, offset: usize, data: &[u8]) {
        self.kept[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Returns the content after the power cut. Of each unsynced write, nothing, the first half or
    /// all survives.
    pub(super) fn survivor(&mut self, seed: u64) -> Vec<u8> {
        let mut chance = fastrand::Rng::with_seed(seed);
        let synced = self.kept.clone();
        for (offset, data) in self.unsynced.clone() {
            self.keep(offset, &data[..data.len() * chance.usize(..3) / 2]);
        }
        std::mem::replace(&mut self.kept, synced)
    }

    fn change(&mut self) -> io::Result<()> {
        assert!(!self.panics, "the disk panics on purpose");
        self.changes += 1;
        if self.failing.contains(&self.changes) { Err(io::Error::other("no disk")) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut platter = self.platter();
        assert!(!platter.panics, "the disk panics on purpose");
        // redb reads its magic number once when it opens a file.
        platter.openings += usize::from(offset == 0 && out.len() == 9);
        if platter.reads_fail {
            return Err(io::Error::other("no disk"));
        }
        let start = usize::try_from(offset).unwrap();
        out.copy_from_slice(platter.seen.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.platter();
        platter.change()?;
        let len = usize::try_from(len).unwrap();
        platter.seen.resize(len, 0);
        // The file system's journal keeps the length.
        platter.kept.resize(len, 0);
        Ok(())
    }

    /// After a failed sync the cache shows pages that are on no disk and that no later sync writes,
    /// as on Linux.
    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.platter();
        let changed = platter.change();
        if changed.is_err() && platter.has_no_power {
            return changed;
        }
        let unsynced = std::mem::take(&mut platter.unsynced);
        changed?;
        for (offset, data) in unsynced {
            platter.keep(offset, &data);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.platter();
        platter.change()?;
        let start = usize::try_from(offset).unwrap();
        platter.seen[start..start + data.len()].copy_from_slice(data);
        platter.unsynced.push((start, data.to_vec()));
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.platter().is_closed = true;
        Ok(())
    }

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        self.platter().locks += 1;
        Ok(true)
    }
}
