//! A disk that loses power: unsynced changes are there, or not, or half.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

/// A disk in memory that knows which bytes survive a power cut.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    synced: Vec<u8>,
    now: Vec<u8>,
    unsynced: Vec<Change>,
    changes: usize,
    /// The change at which the power fails; 0 for never.
    cut_at: usize,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn make(&self, image: &mut Vec<u8>) {
        match self {
            Self::Length(length) => image.resize(*length, 0),
            Self::Write(offset, data) => {
                let end = offset + data.len();
                if image.len() < end {
                    image.resize(end, 0);
                }
                image[*offset..end].copy_from_slice(data);
            }
        }
    }
}

impl Disk {
    /// Creates a disk with this content, whose power fails at the change number `cut_at`.
    pub(crate) fn new(image: Vec<u8>, cut_at: usize) -> Self {
        let platter = Platter { synced: image.clone(), now: image, cut_at, ..Platter::default() };
        Self(Arc::new(Mutex::new(platter)))
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    pub(crate) fn was_cut(&self) -> bool {
        let platter = self.platter();
        platter.cut_at > 0 && platter.changes >= platter.cut_at
    }

    pub(crate) fn synced(&self) -> Vec<u8> {
        self.platter().synced.clone()
    }

    /// Returns the content after the power cut. For each unsynced change, `chance` decides between
    /// none of it, all and half.
    pub(crate) fn survivor(&self, mut chance: impl FnMut() -> u8) -> Vec<u8> {
        let platter = self.platter();
        let mut image = platter.synced.clone();
        for change in &platter.unsynced {
            match (chance() % 3, change) {
                (0, _) => {}
                (1, Change::Write(offset, data)) => {
                    Change::Write(*offset, data[..data.len() / 2].to_vec()).make(&mut image);
                }
                _ => change.make(&mut image),
            }
        }
        image
    }
}

impl Platter {
    fn powered(&mut self) -> io::Result<()> {
        self.changes += 1;
        if self.cut_at > 0 && self.changes >= self.cut_at {
            return Err(io::Error::other("the power is gone"));
        }
        Ok(())
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        self.powered()?;
        change.make(&mut self.now);
        self.unsynced.push(change);
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter();
        let start = usize::try_from(offset).unwrap();
        let data = platter.now.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(data);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.platter().change(Change::Length(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.platter();
        platter.powered()?;
        platter.synced = platter.now.clone();
        platter.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.platter().change(Change::Write(usize::try_from(offset).unwrap(), data.to_vec()))
    }
}
