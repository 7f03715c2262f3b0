//! The embedded store's file with one flipped bit: no finished operation runs again, and nothing
//! panics.
//!
//! The store may refuse the file, or report a record as unreadable. It must not open the file with
//! an operation missing.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use steadfast::server::{OnUnknown, RecordId};
use steadfast_redb::{OpenError, RedbStore};

use super::*;
use crate::server::support::Executions;

const PAGE: usize = 4096;
const HEADER: usize = 320;
const OPERATIONS: usize = 40;

fn key(number: usize) -> String {
    format!("operation {number}")
}

/// Disk images of a process whose operations have all ended.
struct Images {
    folder: tempfile::TempDir,
    /// Before the last commit, which stored the end of the last operation.
    before: Vec<u8>,
    /// After the last commit, from a killed process.
    killed: Vec<u8>,
    /// After the last commit and the drop of the store.
    closed: Vec<u8>,
}

impl Images {
    async fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.redb");
        let before = Arc::new(Mutex::new(Vec::new()));
        let store = RedbStore::open(&path).unwrap();
        // The last claim is on the disk, but its end is not.
        let snapshot = {
            let (before, path) = (before.clone(), path.clone());
            move || *before.lock().unwrap() = std::fs::read(&path).unwrap()
        };
        let charge = move || async move {
            snapshot();
            (StatusCode::CREATED, "charged")
        };
        let router = Router::new().route("/charges", post(charge)).layer(layer(store, ""));
        for number in 0..OPERATIONS {
            assert_eq!(charge_under(&router, &key(number)).await, 201);
        }
        let killed = std::fs::read(&path).unwrap();
        drop(router);
        let closed = std::fs::read(&path).unwrap();
        let before = before.lock().unwrap().clone();
        Self { folder, before, killed, closed }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("damaged.redb")
    }

    /// Returns the bytes outside the header that the last commit wrote.
    fn last_commit(&self) -> Vec<usize> {
        let before = |at: usize| self.before.get(at).copied().unwrap_or_default();
        (HEADER..self.killed.len()).filter(|&at| self.killed[at] != before(at)).collect()
    }
}

async fn charge_under(router: &Router, key: &str) -> u16 {
    let request = Request::post("/charges").header("idempotency-key", key).body(Body::empty()).unwrap();
    router.clone().oneshot(request).await.unwrap().status().as_u16()
}

#[derive(Debug, Default, PartialEq)]
struct Tally {
    files: usize,
    refused: usize,
    /// Number of responses that reported an unreadable record or an unavailable store.
    unanswered: usize,
    panics: usize,
    executed_again: usize,
}

/// Opens the image with each of these bits flipped, and repeats every operation.
async fn flip_each(images: &Images, image: &[u8], bits: impl IntoIterator<Item = (usize, u8)>) -> Tally {
    let mut tally = Tally::default();
    for (at, bit) in bits {
        let mut damaged = image.to_vec();
        damaged[at] ^= 1 << bit;
        std::fs::write(images.path(), &damaged).unwrap();
        tally.files += 1;
        match catch_unwind(AssertUnwindSafe(|| RedbStore::open(images.path()))) {
            Err(_) => tally.panics += 1,
            Ok(Err(error)) => {
                assert!(
                    !matches!(error, OpenError::InUse { .. } | OpenError::System { .. }),
                    "byte {at}, bit {bit}: {error}"
                );
                assert!(
                    std::fs::read(images.path()).unwrap() == damaged,
                    "byte {at}, bit {bit}: a refused file was changed"
                );
                tally.refused += 1;
            }
            Ok(Ok(store)) => ask_for_all(store, &mut tally, &format!("byte {at}, bit {bit}")).await,
        }
    }
    tally
}

async fn ask_for_all(store: RedbStore, tally: &mut Tally, what: &str) {
    let executions = Executions::default();
    let handler = {
        let executions = executions.clone();
        move || async move { (StatusCode::CREATED, executions.add().to_string()) }
    };
    // This layer reruns where it may, so an operation that has become unknown would run again.
    let layer = layer(store, "").on_unknown(OnUnknown::Rerun);
    let router = Router::new().route("/charges", post(handler)).layer(layer);
    for number in 0..OPERATIONS {
        match charge_under(&router, &key(number)).await {
            201 => {}
            500 | 503 => tally.unanswered += 1,
            status => panic!("{what}: {status}"),
        }
    }
    tally.executed_again += executions.count();
}

fn random_bits(from: &[usize], count: usize, seed: u64) -> Vec<(usize, u8)> {
    let mut chance = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| (from[chance.usize(..from.len())], chance.u8(..8))).collect()
}

fn positions(range: Range<usize>) -> Vec<usize> {
    range.collect()
}

fn assert_safe(tally: &Tally) {
    assert_eq!((tally.panics, tally.executed_again), (0, 0), "{tally:?}");
}

#[tokio::test]
async fn whole_images_open_and_replay() {
    let images = Images::make().await;
    for image in [&images.killed, &images.closed] {
        std::fs::write(images.path(), image).unwrap();
        let mut tally = Tally::default();
        ask_for_all(RedbStore::open(images.path()).unwrap(), &mut tally, "whole").await;
        assert_eq!(tally, Tally::default());
    }
}

#[tokio::test]
async fn damaged_last_commit_is_refused() {
    let images = Images::make().await;
    let written = images.last_commit();
    let tally = flip_each(&images, &images.killed, random_bits(&written, 60, 1)).await;
    let closed = flip_each(&images, &images.closed, random_bits(&written, 60, 2)).await;
    assert_safe(&tally);
    assert_safe(&closed);
    // The other bytes are in the commit's pages, but in no record.
    assert!(tally.refused > 10, "{tally:?}");
}

#[tokio::test]
async fn damaged_keys_are_not_claimed_again() {
    let images = Images::make().await;
    for image in [&images.killed, &images.closed] {
        let ids = (0..OPERATIONS).map(|number| RecordId::new("", &key(number)));
        let places: Vec<(usize, u8)> = ids
            .flat_map(|id| {
                let found = image.windows(32).enumerate().filter(move |(_, bytes)| *bytes == id.as_bytes());
                found.map(|(at, _)| (at, 3)).collect::<Vec<_>>()
            })
            .collect();
        assert!(places.len() >= OPERATIONS * 2, "in the table and in the index");
        let tally = flip_each(&images, image, places).await;
        assert_safe(&tally);
        assert!(tally.refused > 0, "{tally:?}");
    }
}

#[tokio::test]
async fn damaged_header_never_opens_with_loss() {
    let images = Images::make().await;
    for image in [&images.killed, &images.closed] {
        let all = positions(0..64).into_iter().flat_map(|at| (0..8).map(move |bit| (at, bit)));
        let slots = random_bits(&positions(64..HEADER), 100, 3);
        let tally = flip_each(&images, image, all.chain(slots)).await;
        assert_safe(&tally);
    }
}

#[tokio::test]
async fn damage_anywhere_never_opens_with_loss() {
    let images = Images::make().await;
    for (image, seed) in [(&images.killed, 4), (&images.closed, 5)] {
        // Most pages of the file are free, so half of the flips go to used ones.
        let used: Vec<usize> =
            (0..image.len()).filter(|at| image[at - at % PAGE..][..PAGE].iter().any(|byte| *byte != 0)).collect();
        let bits = random_bits(&positions(0..image.len()), 75, seed).into_iter().chain(random_bits(&used, 75, seed));
        let tally = flip_each(&images, image, bits).await;
        assert_safe(&tally);
        assert!(tally.refused > 0, "{tally:?}");
    }
}

/// Counts the finished operations in a store.
async fn finished(store: &RedbStore) -> usize {
    let mut finished = 0;
    for number in 0..OPERATIONS {
        let state = store.get(&RecordId::new("", &key(number))).await.unwrap();
        finished += usize::from(matches!(state, Some(RecordState::Completed { .. })));
    }
    finished
}

#[tokio::test]
async fn accepted_repair_keeps_readable_records() {
    let images = Images::make().await;
    let kept = images.folder.path().join("damaged.redb.damaged-1");
    let (mut repaired, mut whole) = (0, 0);
    for (at, bit) in random_bits(&images.last_commit(), 60, 6) {
        let mut damaged = images.killed.clone();
        damaged[at] ^= 1 << bit;
        std::fs::write(images.path(), &damaged).unwrap();
        let refused = RedbStore::open(images.path()).is_err();
        let store = RedbStore::options().accept_repair(true).open(images.path()).unwrap();
        assert_eq!(kept.exists(), refused, "a whole file is not repaired");
        let left = finished(&store).await;
        // The page before the damaged one still has all records but the last.
        assert!(left >= OPERATIONS - 1, "byte {at}, bit {bit}: {left} of {OPERATIONS} are left");
        drop(store);
        assert_eq!(finished(&RedbStore::open(images.path()).unwrap()).await, left, "it is a whole file now");
        whole += usize::from(left == OPERATIONS);
        if refused {
            repaired += 1;
            assert!(std::fs::read(&kept).unwrap() == damaged, "the damaged file is kept as it was");
            std::fs::remove_file(&kept).unwrap();
        }
    }
    assert!(repaired > 10 && whole > 10, "{repaired} of 60 were repaired, {whole} have all records");
}

#[tokio::test]
async fn accepted_repair_keeps_records_beside_damage() {
    let images = Images::make().await;
    let first = RecordId::new("", &key(0));
    let mut damaged = images.closed.clone();
    let places = (0..damaged.len() - 32).filter(|&at| damaged[at..at + 32] == *first.as_bytes()).collect::<Vec<_>>();
    for at in places {
        // In every copy, so that neither of the two commits has the record.
        damaged[at] ^= 1;
    }
    std::fs::write(images.path(), &damaged).unwrap();
    let refused = RedbStore::open(images.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. }) && refused.path() == Some(&images.path()), "{refused}");
    let store = RedbStore::options().accept_repair(true).open(images.path()).unwrap();
    assert_eq!(finished(&store).await, OPERATIONS - 1);
}

#[tokio::test]
async fn file_without_readable_commit_is_beyond_repair() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [("empty", Vec::new()), ("text", b"no database, and longer than its magic number".to_vec())]
    {
        let path = folder.path().join(name);
        std::fs::write(&path, &content).unwrap();
        RedbStore::open(&path).unwrap_err();
        let error = RedbStore::options().accept_repair(true).open(&path).unwrap_err();
        assert!(matches!(error, OpenError::BeyondRepair { .. }), "{name}: {error}");
        assert_eq!(std::fs::read(&path).unwrap(), content, "{name}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside them");
}
