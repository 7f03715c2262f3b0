//! The embedded store, stopped at every single write to its disk: once by the death of the process,
//! once by a power failure.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use redb::StorageBackend;
use redb::backends::FileBackend;
use steadfast_redb::RedbStore;

use super::disk::Disk;
use super::*;
use crate::server::support::Executions;

/// A file whose process dies at the nth change.
#[derive(Debug)]
struct DeadlyFile {
    file: FileBackend,
    left: AtomicUsize,
}

impl DeadlyFile {
    fn change(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            die();
        }
    }
}

impl StorageBackend for DeadlyFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change();
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change();
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change();
        self.file.write(offset, data)
    }
}

#[tokio::test]
async fn child() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let (folder, nth) = arguments.split_once('#').unwrap();
    let folder = Path::new(folder);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(folder.join("keys.redb")).unwrap();
    let file = DeadlyFile { file: FileBackend::new(file).unwrap(), left: AtomicUsize::new(nth.parse().unwrap()) };
    let store = RedbStore::from_database(redb::Database::builder().create_with_backend(file).unwrap()).unwrap();
    ask(charging(&folder.join("log"), "").layer(layer(store, ""))).await;
}

#[tokio::test]
async fn crash_at_any_write_charges_at_most_once() {
    let mut told = std::collections::BTreeMap::<(u16, usize), usize>::new();
    for nth in 1.. {
        let folder = tempfile::tempdir().unwrap();
        // Another test covers the creation of a file.
        drop(RedbStore::open(folder.path().join("keys.redb")).unwrap());
        let died = dies("server::crash::writes::child", &format!("{}#{nth}", folder.path().display())).is_ok();
        let log = folder.path().join("log");
        let before = effects(&log);
        let store = RedbStore::open(folder.path().join("keys.redb")).unwrap();
        let router = charging(&log, "").layer(layer(store, ""));
        let (status, body) = ask_again(&router).await;
        let after = effects(&log);
        match (status, before, after) {
            // The operation had not run and runs now; or it had, and the record shows it.
            (201, 0 | 1, 1) => {}
            (409, 0 | 1, _) if after == before && body.contains("outcome-unknown") => {}
            _ => panic!("write {nth}: {status} {body}, charged {before} times before and {after} after"),
        }
        *told.entry((status, before)).or_default() += 1;
        if !died {
            break;
        }
    }
    // Every kind of death has occurred: before the claim; before or after the effect, without a
    // record; after the record.
    for kind in [(201, 0), (409, 1), (201, 1)] {
        assert!(told.contains_key(&kind), "{kind:?} never happened: {told:?}");
    }
}

/// A handler whose effect is counted outside the store.
fn counting(executions: &Executions) -> Router {
    let executions = executions.clone();
    Router::new().route("/charges", post(move || async move { (StatusCode::CREATED, executions.add().to_string()) }))
}

fn over(disk: &Disk) -> Option<RedbStore> {
    RedbStore::from_database(redb::Database::builder().create_with_backend(disk.clone()).ok()?).ok()
}

#[tokio::test]
async fn power_loss_at_any_write_charges_at_most_once() {
    let new = Disk::new(Vec::new(), 0);
    drop(over(&new).unwrap());
    let mut cuts = 0;
    for nth in 1.. {
        let mut cut = false;
        for seed in 0..6 {
            let executions = Executions::default();
            let disk = Disk::new(new.synced(), nth);
            let answer = match over(&disk) {
                Some(store) => Some(ask(counting(&executions).layer(layer(store, ""))).await),
                None => None,
            };
            cut |= disk.was_cut();
            let stored = answer.as_ref().is_some_and(|(status, _)| *status == 201) && !disk.was_cut();

            let mut chance = fastrand::Rng::with_seed(seed);
            let image = disk.survivor(|| chance.u8(..));
            let store =
                over(&Disk::new(image, 0)).unwrap_or_else(|| panic!("write {nth}, seed {seed}: the file is lost"));
            let before = executions.count();
            let (status, body) = ask_again(&counting(&executions).layer(layer(store, ""))).await;
            let after = executions.count();
            assert!(after <= 1, "write {nth}, seed {seed}: charged {after} times");
            match (status, before, after) {
                (201, 0 | 1, 1) => {}
                (409, ..) if after == before && body.contains("outcome-unknown") => {}
                _ => {
                    panic!("write {nth}, seed {seed}: {status} {body}, charged {before} times before and {after} after")
                }
            }
            assert!(!stored || status == 201, "write {nth}, seed {seed}: an end that was stored is lost");
        }
        if !cut {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 10, "the power went only {cuts} times");
}
