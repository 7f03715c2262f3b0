//! The embedded store: the contract, reopening, damage, and `kill -9` at any instant.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use steadfast::server::{
    Claim, ClaimOutcome, ClaimRef, ClaimToken, Completion, End, Fingerprint, FinishOutcome, Record, RecordId,
    RecordState, Store, StoreError,
};
use steadfast_redb::{OpenError, RedbStore};

use super::contract;

const HOUR: Duration = Duration::from_secs(3600);
const ONE: Fingerprint = Fingerprint::from_bytes([1; 32]);
const CHILD: &str = "STEADFAST_TEST_REDB_CHILD";

fn record() -> Record {
    Record::new(StatusCode::CREATED, &HeaderMap::new(), "done".into())
}

async fn win(store: &RedbStore, id: &RecordId) -> ClaimToken {
    let token = ClaimToken::new().unwrap();
    assert!(matches!(store.claim(&Claim::new(id, token, ONE, HOUR, HOUR)).await.unwrap(), ClaimOutcome::Acquired(())));
    token
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn contract_holds() {
    let folder = tempfile::tempdir().unwrap();
    let store = RedbStore::open(folder.path().join("keys.redb")).unwrap();
    contract::suite(Arc::new(store), |name| RecordId::new("contract", name)).await;
}

#[tokio::test]
async fn reopened_file_keeps_ends_and_claims_are_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.redb");
    let (done, running) = (RecordId::new("", "done"), RecordId::new("", "running"));
    let store = RedbStore::open(&path).unwrap();
    let token = win(&store, &done).await;
    store.finish(ClaimRef::new(done, token), Some(()), &End::Completed(Completion::new(record(), HOUR))).await.unwrap();
    win(&store, &running).await;
    let second = RedbStore::open(&path).unwrap_err();
    assert!(matches!(second, OpenError::InUse { .. }), "one process at a time: {second}");
    drop(store);

    let store = RedbStore::open(&path).unwrap();
    assert_eq!(store.get(&done).await.unwrap(), Some(RecordState::completed(ONE, record())));
    // The lease has an hour left, but its owner is gone.
    assert_eq!(store.get(&running).await.unwrap(), Some(RecordState::unknown(ONE)));
    let again = Claim::new(&running, ClaimToken::new().unwrap(), ONE, HOUR, HOUR);
    assert!(matches!(store.claim(&again).await.unwrap(), ClaimOutcome::Existing(RecordState::Unknown { .. })));
    assert!(matches!(store.claim(&again.allow_takeover(true)).await.unwrap(), ClaimOutcome::Acquired(())));
}

#[tokio::test]
async fn damaged_record_is_not_replayed_or_rerun() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.redb");
    let id = RecordId::new("", "k");
    let store = RedbStore::open(&path).unwrap();
    let token = win(&store, &id).await;
    store.finish(ClaimRef::new(id, token), Some(()), &End::Completed(Completion::new(record(), HOUR))).await.unwrap();
    drop(store);
    let database = redb::Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let table = redb::TableDefinition::<&[u8], &[u8]>::new("steadfast_records");
        let mut records = transaction.open_table(table).unwrap();
        records.insert(id.as_bytes().as_slice(), b"\x01not what was written".as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);

    let store = RedbStore::open(&path).unwrap();
    assert!(matches!(store.get(&id).await, Err(StoreError::Unreadable(_))));
    let claim = Claim::new(&id, ClaimToken::new().unwrap(), ONE, HOUR, HOUR).allow_takeover(true);
    assert!(matches!(store.claim(&claim).await, Err(StoreError::Unreadable(_))));
}

#[tokio::test]
async fn store_over_max_records_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let store = RedbStore::open(folder.path().join("keys.redb")).unwrap().max_records(1);
    win(&store, &RecordId::new("", "1")).await;
    let second = RecordId::new("", "2");
    let claim = Claim::new(&second, ClaimToken::new().unwrap(), ONE, HOUR, HOUR);
    assert!(matches!(store.claim(&claim).await, Err(StoreError::Full(_))));
}

/// The child of the next test: claims and completes until it is killed, and prints each
/// acknowledged end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn child_that_is_killed() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let (path, round) = arguments.split_once('#').unwrap();
    let store = Arc::new(RedbStore::open(path).unwrap());
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let (store, round) = (store.clone(), round.to_owned());
        workers.spawn(async move {
            for number in 0.. {
                let key = format!("{round}-{worker}-{number}");
                let id = RecordId::new("", &key);
                let token = win(&store, &id).await;
                println!("claimed {key}");
                store
                    .finish(ClaimRef::new(id, token), Some(()), &End::Completed(Completion::new(record(), HOUR)))
                    .await
                    .unwrap();
                println!("done {key}");
            }
        });
    }
    workers.join_all().await;
}

#[tokio::test]
async fn kill_at_any_instant_keeps_acknowledged_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.redb");
    let (mut done, mut claimed) = (Vec::new(), Vec::new());
    for round in 0..20_usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server::redb::child_that_is_killed", "--nocapture"])
            .env(CHILD, format!("{}#{round}", path.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The number of lines read decides about the instant, and differs from round to round.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let enough = 5 + round * 7;
        let mut read: Vec<String> = lines.by_ref().filter(|line| line.contains(' ')).take(enough).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        // Lines that were printed before the death count too.
        read.extend(lines);
        let words =
            |word: &str| read.iter().filter_map(|line| line.strip_prefix(word)).map(str::to_owned).collect::<Vec<_>>();
        done.extend(words("done "));
        claimed.extend(words("claimed "));

        let store = RedbStore::open(&path).unwrap();
        for key in &done {
            let state = store.get(&RecordId::new("", key)).await.unwrap();
            assert_eq!(state, Some(RecordState::completed(ONE, record())), "round {round}: {key} was acknowledged");
        }
        for key in &claimed {
            let state = store.get(&RecordId::new("", key)).await.unwrap();
            assert!(state.is_some(), "round {round}: the claim of {key} was acknowledged and is forgotten");
        }
    }
    assert!(done.len() > 20 && claimed.len() > done.len(), "{} done, {} claimed", done.len(), claimed.len());
}

/// The child of the next test: creates one file after another until it is killed.
#[test]
fn child_that_creates_files() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    for number in 0.. {
        RedbStore::open(format!("{folder}/{number}.redb")).unwrap();
        println!("made {number}");
    }
}

#[test]
fn kill_during_creation_leaves_no_partial_file() {
    for round in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server::redb::child_that_creates_files", "--nocapture"])
            .env(CHILD, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let made = lines.by_ref().filter(|line| line.contains("made ")).take(1 + round).count();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(made, 1 + round);
        let files = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path());
        let whole = files.filter(|file| file.extension().is_some_and(|extension| extension == "redb"));
        let opened =
            whole.map(|file| RedbStore::open(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())));
        assert!(opened.count() >= made);
    }
}

/// Repeats a call until the store is available, as the layer does.
async fn until_available<T>(call: impl AsyncFn() -> Result<T, StoreError>) -> T {
    let mut pause = tokio::time::interval(Duration::from_millis(10));
    loop {
        match call().await {
            Err(StoreError::Unavailable(error)) => println!("failed {error}"),
            answer => return answer.unwrap(),
        }
        pause.tick().await;
    }
}

/// The child of the next test: operations with long responses until it is killed. Its file has a
/// size limit.
#[tokio::test]
async fn child_whose_disk_is_full() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let store = RedbStore::open(path).unwrap();
    for number in 0.. {
        let id = RecordId::new("", &number.to_string());
        let token = ClaimToken::new().unwrap();
        let claim = Claim::new(&id, token, ONE, HOUR, HOUR);
        assert!(matches!(until_available(async || store.claim(&claim).await).await, ClaimOutcome::Acquired(())));
        let record = Record::new(StatusCode::CREATED, &HeaderMap::new(), vec![b'x'; 20_000].into());
        let completion = Completion::new(record, HOUR);
        let completed = until_available(async || {
            store.finish(ClaimRef::new(id, token), Some(()), &End::Completed(completion.clone())).await
        })
        .await;
        assert_eq!(completed, FinishOutcome::Stored);
        println!("done {number}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn store_recovers_from_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.redb");
    // A file beyond the limit is an I/O error, as on a full disk.
    let mut child = Command::new("bash")
        .args(["-c", r#"trap "" XFSZ && ulimit -S -f 1500 && exec "$0" "$@""#])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "server::redb::child_whose_disk_is_full", "--nocapture"])
        .env(CHILD, &path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let before: Vec<String> = lines.by_ref().take_while(|line| !line.starts_with("failed")).collect();
    let second = RedbStore::open(&path).unwrap_err();
    assert!(matches!(second, OpenError::InUse { .. }), "the file stays locked: {second}");
    let room = Command::new("prlimit").args(["--pid", &child.id().to_string(), "--fsize=unlimited"]).status().unwrap();
    assert!(room.success());
    let after: Vec<String> = lines.by_ref().filter(|line| line.starts_with("done")).take(20).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    let done = before.iter().chain(&after).filter_map(|line| line.strip_prefix("done ")).collect::<Vec<_>>();
    assert!(done.len() > 30 && after.len() == 20, "{} before, {} after", before.len(), after.len());
    let store = RedbStore::open(&path).unwrap();
    for key in done {
        let state = store.get(&RecordId::new("", key)).await.unwrap();
        assert!(matches!(state, Some(RecordState::Completed { .. })), "{key} was acknowledged: {state:?}");
    }
}

/// A disk in memory that a test can damage.
#[derive(Clone, Debug)]
struct Shared(Arc<redb::backends::InMemoryBackend>);

impl redb::StorageBackend for Shared {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }
}

/// Commits a value of the program's own, with redb's default durability.
fn write_own(database: &redb::Database, value: u64) {
    let transaction = database.begin_write().unwrap();
    transaction.open_table(redb::TableDefinition::<u64, u64>::new("own")).unwrap().insert(1, value).unwrap();
    transaction.commit().unwrap();
}

#[tokio::test]
async fn damaged_commit_of_plain_redb_is_refused() {
    const VALUE: u64 = 0x1122_3344_5566_7788;
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("keys.redb"), folder.path().join("copy.redb"));
    drop(RedbStore::open(&path).unwrap());
    let database = redb::Database::open(&path).unwrap();
    write_own(&database, 1);
    write_own(&database, VALUE);
    // The image that a kill leaves. With one sync per commit, redb would take the commit for one
    // that was cut short.
    let mut image = std::fs::read(&path).unwrap();
    std::fs::write(&copy, &image).unwrap();
    RedbStore::open(&copy).unwrap();
    for at in (0..image.len() - 8).filter(|&at| image[at..at + 8] == VALUE.to_le_bytes()).collect::<Vec<_>>() {
        image[at] ^= 1;
    }
    std::fs::write(&copy, &image).unwrap();
    let refused = RedbStore::open(&copy).unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
}

#[tokio::test]
async fn repaired_database_is_refused_until_accepted() {
    const VALUE: u64 = 0x1122_3344_5566_7788;
    let disk = Shared(Arc::new(redb::backends::InMemoryBackend::new()));
    let open = || redb::Database::builder().create_with_backend(disk.clone()).unwrap();
    drop(RedbStore::from_database(open()).unwrap());
    let database = open();
    write_own(&database, 1);
    write_own(&database, VALUE);
    let mut image = vec![0; usize::try_from(redb::StorageBackend::len(&disk).unwrap()).unwrap()];
    redb::StorageBackend::read(&disk, 0, &mut image).unwrap();
    for at in (0..image.len() - 8).filter(|&at| image[at..at + 8] == VALUE.to_le_bytes()) {
        redb::StorageBackend::write(&disk, at as u64, &[0]).unwrap();
    }
    // redb falls back to the commit before the last, and would not report this at the next opening.
    let refused = RedbStore::from_database(database).unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
    let refused = RedbStore::from_database(open()).unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
    drop(RedbStore::options().accept_repair(true).open_database(open()).unwrap());
    RedbStore::from_database(open()).unwrap();
}
