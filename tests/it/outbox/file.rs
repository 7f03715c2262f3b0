//! The store in a file: in lockstep with the model, over a disk that loses power, with flipped bits,
//! and with every mistake that a person can make with a file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fastrand::Rng;
use redb::backends::FileBackend;
use redb::{Database, StorageBackend, TableDefinition};
use steadfast_outbox::model::Model;
use steadfast_outbox::{
    Applied, Change, Entry, HighWater, Now, OperationId, OutboxOpenError, OutboxStore, OutboxStoreError, RedbOutbox,
    Submitted,
};
use steadfast_redb::engine::{LockedFile, checked};
use tempfile::TempDir;

use super::lockstep::{self, Maker, World, answered, lockstep, settle, terms};
use crate::server::crash::disk::Disk;

/// A wall clock that the test sets.
#[derive(Clone, Default)]
struct Wall(Arc<AtomicU64>);

impl Wall {
    fn at(ms: u64) -> Self {
        Self(Arc::new(AtomicU64::new(ms)))
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn open(&self, path: &Path) -> RedbOutbox {
        let wall = self.clone();
        RedbOutbox::open_with(path, true, Arc::new(move || wall.read())).unwrap()
    }

    fn open_disk(&self, disk: Disk) -> Result<RedbOutbox, Box<dyn std::error::Error>> {
        let wall = self.clone();
        let file = Arc::new(LockedFile::new(Path::new("operations.redb"), disk));
        Ok(RedbOutbox::start(checked(&file)?, file, Arc::new(move || wall.read()))?)
    }
}

/// A file whose wall clock the test sets.
struct FileWorld {
    _folder: TempDir,
    path: PathBuf,
    wall: Wall,
    store: Option<RedbOutbox>,
    clock: HighWater,
    /// The clock as the last writer has saved it.
    saved: HighWater,
}

impl FileWorld {
    fn new() -> Self {
        let (folder, wall) = (TempDir::new().unwrap(), Wall::at(lockstep::START));
        let path = folder.path().join("operations.redb");
        let (store, mut clock) = (wall.open(&path), HighWater::default());
        clock.tick(wall.read());
        Self { _folder: folder, path, wall, store: Some(store), clock, saved: clock }
    }
}

impl World for FileWorld {
    type Store = RedbOutbox;

    fn store(&self) -> &RedbOutbox {
        self.store.as_ref().unwrap()
    }

    async fn set_clock(&mut self, ms: u64) {
        self.wall.0.store(ms, Ordering::SeqCst);
    }

    fn now(&mut self) -> Now {
        self.clock.tick(self.wall.read())
    }

    /// Readers move the clock of the store on too, and only writers save it.
    fn has_written(&mut self) {
        self.saved = self.clock;
    }

    async fn reopen(&mut self, model: &mut Model) {
        self.store = None;
        self.store = Some(self.wall.open(&self.path));
        model.reopen();
        self.clock = self.saved;
        self.clock.tick(self.wall.read());
        self.has_written();
    }
}

#[tokio::test]
async fn store_keeps_step_with_model() {
    for seed in 0..12 {
        lockstep(FileWorld::new(), seed, 120).await;
    }
}

#[tokio::test]
#[ignore = "ten minutes; the short form runs always"]
async fn store_keeps_step_with_model_for_long() {
    for seed in 100..1_100 {
        lockstep(FileWorld::new(), seed, 200).await;
    }
}

fn changes(fence: u64) -> [Change; 3] {
    [Change::Mark { fence, terms: terms() }, settle(fence, answered()), Change::Acknowledge]
}

/// Submits, marks and ends operations until the power fails. Returns what was acknowledged.
async fn work(store: &RedbOutbox, maker: &Maker) -> Vec<Entry> {
    let mut acknowledged: Vec<Entry> = Vec::new();
    for number in 0..4 {
        let new = maker.entry("/charges", Some(&format!("order-{number}")), "12 EUR");
        let Ok(Submitted::New(entry)) = store.submit(new, Some(terms())).await else { break };
        let (id, fence) = (entry.id, entry.fence);
        acknowledged.push(entry);
        for change in changes(fence).into_iter().take(number) {
            let Ok(Applied::Done(entry)) = store.apply(id, change).await else { return acknowledged };
            *acknowledged.last_mut().unwrap() = entry;
        }
    }
    acknowledged
}

/// Returns what is left of an entry when its process is gone.
fn freed(entry: &Entry) -> Entry {
    let mut entry = entry.clone();
    steadfast_outbox::rules::end_lease(&mut entry);
    entry
}

#[tokio::test]
async fn power_cut_loses_nothing_that_was_acknowledged() {
    let (maker, wall) = (Maker::new().await, Wall::at(1_700_000_000_000));
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("operations.redb");
    drop(wall.open(&path));
    let image = std::fs::read(&path).unwrap();
    let (mut cut_at, mut cuts) = (1, 0);
    loop {
        let disk = Disk::new(image.clone(), cut_at);
        let acknowledged = match wall.open_disk(disk.clone()) {
            Ok(store) => work(&store, &maker).await,
            Err(_) => Vec::new(),
        };
        if !disk.was_cut() {
            assert_eq!(acknowledged.len(), 4);
            break;
        }
        for seed in 0..3 {
            let mut chance = Rng::with_seed(seed);
            let survivor = disk.survivor(|| chance.u8(..));
            let store = wall.open_disk(Disk::new(survivor, 0)).unwrap_or_else(|error| panic!("cut {cut_at}: {error}"));
            let there = store.list(None, usize::MAX).await.unwrap();
            for entry in &acknowledged {
                let found = there.iter().find(|there| there.id == entry.id).unwrap();
                // Only the change of the last one may have been under way at the cut.
                let is_last = acknowledged.last().is_some_and(|last| last.id == entry.id);
                let next = changes(entry.fence).into_iter().filter(|_| is_last).map(|change| {
                    let mut after = entry.clone();
                    let now = HighWater::default().tick(wall.read());
                    let _refused = steadfast_outbox::rules::apply(&mut after, &change, now);
                    freed(&after)
                });
                let possible: Vec<Entry> = next.chain([freed(entry)]).collect();
                assert!(possible.contains(found), "cut {cut_at}, seed {seed}: {found:?} instead of {entry:?}");
            }
            assert!(there.len() <= acknowledged.len() + 1, "cut {cut_at}, seed {seed}");
        }
        cuts += 1;
        cut_at += 1;
    }
    assert!(cuts > 40, "{cuts} cuts");
}

#[tokio::test]
async fn flipped_bit_is_found_or_harmless() {
    let (maker, wall) = (Maker::new().await, Wall::at(1_700_000_000_000));
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("operations.redb");
    let store = wall.open(&path);
    work(&store, &maker).await;
    let killed = std::fs::read(&path).unwrap();
    let before: Vec<Entry> = store.list(None, usize::MAX).await.unwrap().iter().map(freed).collect();
    drop(store);
    let copy = folder.path().join("damaged.redb");
    let (mut chance, mut refused, mut opened) = (Rng::with_seed(7), 0, 0);
    let written: Vec<usize> = (0..killed.len()).filter(|&at| killed[at] != 0).collect();
    for _ in 0..300 {
        let at = written[chance.usize(0..written.len())];
        let mut damaged = killed.clone();
        damaged[at] ^= 1 << chance.u8(0..8);
        std::fs::write(&copy, &damaged).unwrap();
        let wall = wall.clone();
        match RedbOutbox::open_with(&copy, false, Arc::new(move || wall.read())) {
            Err(error) => {
                assert!(
                    !matches!(error, OutboxOpenError::InUse { .. } | OutboxOpenError::System { .. }),
                    "byte {at}: {error}"
                );
                assert!(std::fs::read(&copy).unwrap() == damaged, "byte {at}: a refused file was changed");
                refused += 1;
            }
            Ok(store) => {
                assert_eq!(store.list(None, usize::MAX).await.unwrap(), before, "byte {at}");
                opened += 1;
            }
        }
    }
    // Most of the file is of earlier commits.
    assert!(refused > 0 && opened > 0, "{refused} refused, {opened} opened");
}

/// A file whose disk can be full.
#[derive(Debug)]
struct FullDisk {
    file: FileBackend,
    is_full: Arc<AtomicBool>,
}

impl FullDisk {
    fn room(&self) -> io::Result<()> {
        if self.is_full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for FullDisk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.file.write(offset, data)
    }
}

#[tokio::test]
async fn full_disk_is_an_error_and_loses_nothing() {
    let maker = Maker::new().await;
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("operations.redb");
    drop(RedbOutbox::open(&path).unwrap());
    let is_full = Arc::new(AtomicBool::new(false));
    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let disk = FullDisk { file: FileBackend::new(file).unwrap(), is_full: is_full.clone() };
    let file = Arc::new(LockedFile::new(&path, disk));
    let store = RedbOutbox::start(checked(&file).unwrap(), file, Arc::new(|| 1_700_000_000_000)).unwrap();
    let Ok(Submitted::New(first)) = store.submit(maker.entry("/charges", None, "1 EUR"), None).await else { panic!() };

    is_full.store(true, Ordering::SeqCst);
    let error = store.submit(maker.entry("/charges", None, "2 EUR"), None).await.unwrap_err();
    assert!(matches!(error, OutboxStoreError::Unavailable(_)), "{error}");
    is_full.store(false, Ordering::SeqCst);
    // The file is opened again by itself.
    let second = loop {
        match store.submit(maker.entry("/charges", None, "3 EUR"), None).await {
            Ok(Submitted::New(second)) => break second,
            Ok(other) => panic!("{other:?}"),
            Err(OutboxStoreError::Unavailable(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(store.list(None, 9).await.unwrap(), [first, second]);
}

#[tokio::test]
async fn limits_refuse_and_forget_nothing() {
    let maker = Maker::new().await;
    let folder = TempDir::new().unwrap();
    let store = RedbOutbox::open(folder.path().join("operations.redb")).unwrap().max_entries(2);
    let new = || maker.entry("/charges", None, "12 EUR");
    let Ok(Submitted::New(first)) = store.submit(new(), Some(terms())).await else { panic!() };
    store.submit(new(), None).await.unwrap();
    let error = store.submit(new(), None).await.unwrap_err();
    assert!(matches!(error, OutboxStoreError::Full { .. }) && error.to_string().contains("max_entries 2"), "{error}");
    // An end that nobody has acknowledged stays.
    store.apply(first.id, settle(1, answered())).await.unwrap();
    assert!(store.submit(new(), None).await.is_err());
    store.apply(first.id, Change::Acknowledge).await.unwrap();
    store.submit(new(), None).await.unwrap();
    assert_eq!(store.get(first.id).await.unwrap(), None);
    let store = store.max_entries(9).max_bytes(1);
    let error = store.submit(new(), None).await.unwrap_err();
    assert!(error.to_string().contains("max_bytes 1"), "{error}");
}

#[tokio::test]
async fn wrong_files_are_refused_with_advice() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let refused = |name: &str, advice: &str| {
        let error = RedbOutbox::open_existing(path(name)).unwrap_err();
        assert!(error.to_string().contains(advice), "{error}");
        error
    };
    assert!(matches!(refused("missing", "there is no outbox"), OutboxOpenError::Missing { .. }));
    assert!(!path("missing").exists());
    std::fs::write(path("text"), "not a database").unwrap();
    assert!(matches!(refused("text", "look up at the server"), OutboxOpenError::Damaged { .. }));
    std::fs::write(path("empty"), "").unwrap();
    assert!(matches!(refused("empty", "is empty"), OutboxOpenError::Damaged { .. }));

    drop(steadfast_redb::RedbStore::open(path("records")).unwrap());
    assert!(matches!(refused("records", "choose another file"), OutboxOpenError::NotAnOutbox { .. }));
    drop(steadfast_redb::RedbStore::open(path("records")).unwrap());
    let database = Database::create(path("other")).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(TableDefinition::<&str, &str>::new("songs")).unwrap();
    write.commit().unwrap();
    drop(database);
    assert!(matches!(refused("other", "`songs`"), OutboxOpenError::NotAnOutbox { .. }));

    let store = RedbOutbox::open(path("ours")).unwrap();
    let error = RedbOutbox::open(path("ours")).unwrap_err();
    assert!(
        matches!(error, OutboxOpenError::InUse { .. }) && error.to_string().contains("stop that process"),
        "{error}"
    );
    drop(store);

    let error = steadfast_redb::RedbStore::open(path("ours")).unwrap_err();
    assert!(error.to_string().contains("it is an outbox"), "{error}");
    drop(RedbOutbox::open(path("ours")).unwrap());

    let database = Database::open(path("ours")).unwrap();
    let write = database.begin_write().unwrap();
    let meta = TableDefinition::<&str, &[u8]>::new("steadfast_outbox_meta");
    write.open_table(meta).unwrap().insert("format", 7_u32.to_be_bytes().as_slice()).unwrap();
    write.commit().unwrap();
    drop(database);
    assert!(matches!(RedbOutbox::open(path("ours")).unwrap_err(), OutboxOpenError::Format { .. }));
}

#[tokio::test]
async fn damaged_index_is_found() {
    let maker = Maker::new().await;
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("operations.redb");
    let store = RedbOutbox::open(&path).unwrap();
    store.submit(maker.entry("/charges", Some("order-1"), "12 EUR"), None).await.unwrap();
    drop(store);
    let database = Database::open(&path).unwrap();
    let write = database.begin_write().unwrap();
    let names = TableDefinition::<&str, &[u8]>::new("steadfast_outbox_names");
    write.open_table(names).unwrap().remove("order-1").unwrap();
    write.commit().unwrap();
    drop(database);
    let error = RedbOutbox::open(&path).unwrap_err();
    assert!(matches!(error, OutboxOpenError::Damaged { .. }) && error.to_string().contains("index"), "{error}");
}

#[test]
fn identifiers_sort_by_time() {
    let id: OperationId = "01935c7e-2b6a-7c3e-8f6d-2a4b6c8d0e1f".parse().unwrap();
    let later: OperationId = "01935c7e-2b6b-7000-8000-000000000000".parse().unwrap();
    assert!(id < later);
}
