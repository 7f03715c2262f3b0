//! The store on a disk that fails when it is told to, which no real disk can be asked to do.

use std::io;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

use super::*;
use crate::server::Fingerprint;

const HOUR: Duration = Duration::from_secs(3600);
const ONE: Fingerprint = Fingerprint::from_bytes([1; 32]);

/// A disk whose owner can see what it holds, and can make it fail.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    /// What a reader sees: the operating system's cache.
    seen: Vec<u8>,
    /// What is left after a power cut.
    kept: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    changes: usize,
    /// The changes that fail, counted from the first.
    failing: std::ops::Range<usize>,
    /// The power is gone: what was not synced may be on the disk or not.
    has_no_power: bool,
    reads_fail: bool,
    panics: bool,
    openings: usize,
    locks: usize,
    is_closed: bool,
}

impl Disk {
    fn holding(image: Vec<u8>) -> Self {
        let platter = Platter { seen: image.clone(), kept: image, ..Platter::default() };
        Self(Arc::new(Mutex::new(platter)))
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self) {
        self.platter().failing = 0..usize::MAX;
    }

    fn mend(&self) {
        self.platter().failing = 0..0;
    }

    fn open(&self) -> Result<RedbStore, OpenError> {
        let file = Arc::new(LockedFile::new(Path::new("keys.redb"), self.clone()));
        RedbStore::start(open::checked(&file)?, Some(file), false)
    }
}

impl Platter {
    fn keep(&mut self, offset: usize, data: &[u8]) {
        self.kept[offset..offset + data.len()].copy_from_slice(data);
    }

    /// What is on the disk after the power cut: of each write that was not synced nothing, the
    /// first half, or all.
    fn survivor(&mut self, seed: u64) -> Vec<u8> {
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
        // redb asks for its magic number once when it opens a file.
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
        // A journal keeps it.
        platter.kept.resize(len, 0);
        Ok(())
    }

    /// After a sync that fails, the cache shows pages that are on no disk and that no later sync
    /// writes, as Linux does.
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

fn id(name: &str) -> RecordId {
    RecordId::new("", name)
}

fn record() -> super::super::Record {
    super::super::Record::new(http::StatusCode::CREATED, &http::HeaderMap::new(), "done".into())
}

fn token() -> ClaimToken {
    ClaimToken::new().unwrap()
}

async fn claim(store: &RedbStore, id: &RecordId, token: ClaimToken, lease: Duration) -> Result<bool, StoreError> {
    let claimed = store.claim(&Claim::new(id, token, ONE, lease, HOUR).taking_over(true)).await?;
    Ok(matches!(claimed, Claimed::Won(())))
}

async fn complete(store: &RedbStore, id: &RecordId, token: ClaimToken) -> Result<Completed, StoreError> {
    store.complete(id, token, (), Completion::new(record(), HOUR)).await
}

#[allow(clippy::disallowed_methods, reason = "time has to pass for a store that waits")]
async fn clock_pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

#[tokio::test]
async fn power_cut_at_any_change_needs_no_repair() {
    let (mut cuts, mut ends) = (0, 0);
    for at in 1..150 {
        let disk = Disk::default();
        let store = disk.open().unwrap();
        {
            let mut platter = disk.platter();
            platter.has_no_power = true;
            platter.failing = platter.changes + at..usize::MAX;
        }
        let (mut claimed, mut ended) = (Vec::new(), Vec::new());
        for number in 0..6 {
            let (id, token) = (id(&number.to_string()), token());
            let Ok(won) = claim(&store, &id, token, HOUR).await else { break };
            assert!(won, "{at}: {number}");
            claimed.push(id);
            if complete(&store, &id, token).await.is_err() {
                break;
            }
            ended.push(id);
        }
        cuts += usize::from(ended.len() < 6);
        ends += ended.len();
        for seed in 0..4 {
            let image = disk.platter().survivor(seed);
            let store = Disk::holding(image).open().unwrap_or_else(|error| panic!("{at}, {seed}: {error}"));
            for id in &claimed {
                let state = store.look(id).await.unwrap();
                let done = matches!(state, Some(State::Done { .. }));
                assert!(state.is_some() && (done || !ended.contains(id)), "{at}, {seed}: {state:?}");
            }
        }
    }
    assert!(cuts > 50 && ends > 100, "{cuts} cuts, {ends} ends");
}

/// A store whose records are in many pages, none of which is in redb's cache.
async fn cold(disk: &Disk) -> RedbStore {
    let store = disk.open().unwrap();
    let ids: Vec<RecordId> = (0..200).map(|number| id(&number.to_string())).collect();
    let claims = ids.iter().map(|id| claim(&store, id, token(), HOUR));
    assert!(futures_util::future::join_all(claims).await.into_iter().all(|won| won.unwrap()));
    drop(store);
    disk.open().unwrap()
}

#[tokio::test]
async fn panic_in_a_reader_is_an_unreadable_record() {
    let disk = Disk::default();
    let store = cold(&disk).await;
    disk.platter().panics = true;
    assert!(matches!(store.look(&id("1")).await, Err(StoreError::Unreadable(RecordError::Damaged))));
}

#[tokio::test]
async fn panic_in_the_writer_makes_the_store_unavailable() {
    let disk = Disk::default();
    let store = disk.open().unwrap();
    let (held, first) = (token(), id("1"));
    assert!(claim(&store, &first, held, HOUR).await.unwrap());
    disk.platter().panics = true;
    let error = complete(&store, &first, held).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn database_of_the_program_stays_failed() {
    let disk = Disk::default();
    let store = RedbStore::over(Database::builder().create_with_backend(disk.clone()).unwrap()).unwrap();
    let held = token();
    assert!(claim(&store, &id("before"), held, HOUR).await.unwrap());
    disk.fail();
    claim(&store, &id("after"), token(), HOUR).await.unwrap_err();
    disk.mend();
    clock_pause(300).await;
    let error = store.release(&id("before"), held, ()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert!(matches!(store.look(&id("before")).await.unwrap(), Some(State::Running { .. })));
}
