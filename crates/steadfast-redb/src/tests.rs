//! Tests of the store over a disk that fails on demand, as no real disk can.

mod disk;

use std::collections::BTreeMap;

use steadfast_core::clock;
use steadfast_server::{Completion, Fingerprint};

use self::disk::Disk;
use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const ONE: Fingerprint = Fingerprint::from_bytes([1; 32]);

impl Disk {
    fn open(&self) -> Result<RedbStore, OpenError> {
        let file = Arc::new(LockedFile::new(Path::new("keys.redb"), self.clone()));
        RedbStore::start(open::checked(&file)?, Some(file), false)
    }
}

fn id(name: &str) -> RecordId {
    RecordId::new("", name)
}

fn record() -> steadfast_server::Record {
    steadfast_server::Record::new(http::StatusCode::CREATED, &http::HeaderMap::new(), "done".into())
}

fn token() -> ClaimToken {
    ClaimToken::new().unwrap()
}

async fn claim(store: &RedbStore, id: &RecordId, token: ClaimToken, lease: Duration) -> Result<bool, StoreError> {
    let claimed = store.claim(&Claim::new(id, token, ONE, lease, HOUR).allow_takeover(true)).await?;
    Ok(matches!(claimed, ClaimOutcome::Acquired(())))
}

async fn complete(store: &RedbStore, id: &RecordId, token: ClaimToken) -> Result<FinishOutcome, StoreError> {
    store.finish(ClaimRef::new(*id, token), Some(()), &End::Completed(Completion::new(record(), HOUR))).await
}

/// Repeats a call until the store is available, as the layer does. Seven attempts to open the file
/// again take 12.7 s.
async fn until_available<T>(call: impl AsyncFn() -> Result<T, StoreError>) -> T {
    for _ in 0..6000 {
        match call().await {
            Err(StoreError::Unavailable(_)) => clock_pause(10).await,
            answer => return answer.unwrap(),
        }
    }
    panic!("the store does not come back");
}

#[allow(clippy::disallowed_methods, reason = "time has to pass for a store that waits")]
async fn clock_pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

#[tokio::test]
async fn failed_sync_fails_claim_and_store_recovers() {
    let disk = Disk::default();
    let store = disk.open().unwrap();
    let (before, after) = (id("before"), id("after"));
    let (held, second) = (token(), token());
    assert!(claim(&store, &before, held, HOUR).await.unwrap());
    disk.platter().openings = 0;
    let locks = disk.platter().locks;

    disk.fail();
    let error = claim(&store, &after, second, HOUR).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)) && error.to_string().contains("no disk"), "{error}");
    // Durable records can be read until the first attempt to reopen.
    assert!(matches!(store.get(&before).await.unwrap(), Some(RecordState::InProgress { .. })));
    assert_eq!(store.get(&after).await.unwrap(), None);

    disk.mend();
    assert!(until_available(async || claim(&store, &after, second, HOUR).await).await, "the same claim");
    assert!(!claim(&store, &before, token(), HOUR).await.unwrap(), "it is held by a handler of this process");
    assert_eq!(complete(&store, &before, held).await.unwrap(), FinishOutcome::Stored);
    let seen = |disk: &Disk| {
        let platter = disk.platter();
        (platter.openings, platter.locks, platter.is_closed)
    };
    assert_eq!(seen(&disk), (1, locks, false), "opened again, under the lock that was taken first");
    drop(store);
    assert_eq!(seen(&disk), (1, locks, true));
}

#[tokio::test]
async fn outage_is_not_counted_against_leases() {
    let disk = Disk::default();
    let store = disk.open().unwrap();
    let (running, lapsed) = (id("running"), id("on_unknown"));
    let (held, dead) = (token(), token());
    assert!(claim(&store, &lapsed, dead, Duration::from_millis(1)).await.unwrap());
    assert!(claim(&store, &running, held, Duration::from_millis(1500)).await.unwrap());
    clock_pause(10).await;
    disk.fail();
    store.renew(ClaimRef::new(running, held), Duration::from_millis(1500)).await.unwrap_err();
    // Longer than the lease.
    clock_pause(2000).await;
    disk.mend();
    let state = until_available(async || store.get(&running).await).await;
    assert!(matches!(state, Some(RecordState::InProgress { .. })), "{state:?}");
    assert!(matches!(store.get(&lapsed).await.unwrap(), Some(RecordState::Unknown { .. })));
    assert!(store.renew(ClaimRef::new(running, held), Duration::from_millis(100)).await.unwrap());
    // A claim without renewals lapses as usual.
    clock_pause(200).await;
    assert!(matches!(store.get(&running).await.unwrap(), Some(RecordState::Unknown { .. })));
}

#[tokio::test]
async fn failing_disk_is_reopened_with_pauses() {
    let disk = Disk::default();
    let store = disk.open().unwrap();
    disk.fail();
    disk.platter().openings = 0;
    let began = clock::now();
    claim(&store, &id("1"), token(), HOUR).await.unwrap_err();
    // After 100, 300, 700, 1500 and 3100 ms.
    while disk.platter().openings < 5 {
        claim(&store, &id("2"), token(), HOUR).await.unwrap_err();
        clock_pause(10).await;
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(3100), "{took:?}");
    // The next pause is 3.2 s; the drop cuts it short.
    let began = clock::now();
    tokio::task::spawn_blocking(move || drop(store)).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn failed_database_writes_nothing_on_close() {
    let disk = Disk::default();
    let store = disk.open().unwrap();
    assert!(claim(&store, &id("1"), token(), HOUR).await.unwrap());
    let before = disk.platter().seen.clone();
    // The disk works, but redb's state in memory is not trusted.
    store.writer.write(|_| Err::<(), _>(failure::Failure::Panic.into())).await.unwrap_err();
    disk.platter().reads_fail = true;
    while disk.platter().openings < 2 {
        clock_pause(10).await;
    }
    assert!(disk.platter().seen == before);
    disk.platter().reads_fail = false;
    assert!(matches!(until_available(async || store.get(&id("1")).await).await, Some(RecordState::InProgress { .. })));
}

/// Uses a store whose disk fails at one change and once more, and loses power at the end.
async fn work_through_failure(at: usize, length: usize) {
    let disk = Disk::default();
    let store = disk.open().unwrap();
    let from = disk.platter().changes + at;
    disk.platter().failing = from..from + length;
    let mut ended = BTreeMap::new();
    for number in 0..6 {
        let (id, token) = (id(&number.to_string()), token());
        assert!(until_available(async || claim(&store, &id, token, HOUR).await).await, "{at}: {number} is new");
        let stored = until_available(async || complete(&store, &id, token).await).await;
        assert_eq!(stored, FinishOutcome::Stored, "{at}: {number}");
        ended.insert(number, id);
        // No finished operation can be claimed again, whatever the store has reread.
        for id in ended.values() {
            assert!(!until_available(async || claim(&store, id, self::token(), HOUR).await).await, "{at}: {number}");
        }
    }
    let kept = Disk::holding(disk.platter().kept.clone());
    drop(store);
    let store = kept.open().unwrap_or_else(|error| panic!("{at}: {error}"));
    for (number, id) in ended {
        assert_eq!(
            store.get(&id).await.unwrap(),
            Some(RecordState::completed(ONE, record())),
            "{at}: {number} is lost"
        );
    }
}

#[tokio::test]
async fn failure_at_any_change_keeps_acknowledged_ends() {
    // All at once, since pauses take most of the time.
    let runs = (1..60).flat_map(|at| [1, 2, 7].map(|length| work_through_failure(at, length)));
    futures_util::future::join_all(runs).await;
}

/// Returns a store whose records fill many pages, none of them in redb's cache.
async fn cold(disk: &Disk) -> RedbStore {
    let store = disk.open().unwrap();
    let ids: Vec<RecordId> = (0..200).map(|number| id(&number.to_string())).collect();
    let claims = ids.iter().map(|id| claim(&store, id, token(), HOUR));
    assert!(futures_util::future::join_all(claims).await.into_iter().all(|won| won.unwrap()));
    drop(store);
    disk.open().unwrap()
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
                let state = store.get(id).await.unwrap();
                let done = matches!(state, Some(RecordState::Completed { .. }));
                assert!(state.is_some() && (done || !ended.contains(id)), "{at}, {seed}: {state:?}");
            }
        }
    }
    assert!(cuts > 50 && ends > 100, "{cuts} cuts, {ends} ends");
}

#[tokio::test]
async fn failed_read_reopens_store() {
    let disk = Disk::default();
    let store = cold(&disk).await;
    disk.platter().reads_fail = true;
    assert!(matches!(store.get(&id("1")).await, Err(StoreError::Unavailable(_))));
    disk.platter().reads_fail = false;
    assert!(until_available(async || claim(&store, &id("new"), token(), HOUR).await).await);
}

#[tokio::test]
async fn panic_in_reader_is_unreadable_record() {
    let disk = Disk::default();
    let store = cold(&disk).await;
    disk.platter().panics = true;
    assert!(matches!(store.get(&id("1")).await, Err(StoreError::Unreadable(RecordError::Damaged))));
    disk.platter().panics = false;
    assert!(until_available(async || claim(&store, &id("new"), token(), HOUR).await).await);
}

#[tokio::test]
async fn panic_in_writer_makes_store_unavailable() {
    let disk = Disk::default();
    let store = disk.open().unwrap();
    let (held, first) = (token(), id("1"));
    assert!(claim(&store, &first, held, HOUR).await.unwrap());
    disk.platter().panics = true;
    let error = complete(&store, &first, held).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    disk.platter().panics = false;
    assert_eq!(until_available(async || complete(&store, &first, held).await).await, FinishOutcome::Stored);
}

#[tokio::test]
async fn damage_found_while_reopening_ends_attempts() {
    let disk = Disk::default();
    let store = disk.open().unwrap();
    let (first, held) = (id("1"), token());
    assert!(claim(&store, &first, held, HOUR).await.unwrap());
    assert_eq!(complete(&store, &first, held).await.unwrap(), FinishOutcome::Stored);
    disk.fail();
    claim(&store, &id("2"), token(), HOUR).await.unwrap_err();
    {
        let mut platter = disk.platter();
        let key = platter.seen.windows(32).position(|bytes| bytes == first.as_bytes()).unwrap();
        for at in (0..platter.seen.len() - 32)
            .filter(|&at| platter.seen[at..at + 32] == *first.as_bytes())
            .collect::<Vec<_>>()
        {
            platter.seen[at] ^= 1;
        }
        assert!(key > 0);
        platter.openings = 0;
    }
    disk.mend();
    for _ in 0..100 {
        let again = claim(&store, &first, token(), HOUR).await;
        assert!(!matches!(again, Ok(true)), "a finished operation was claimed again");
        clock_pause(10).await;
    }
    let error = claim(&store, &first, token(), HOUR).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert_eq!(disk.platter().openings, 1, "damage does not mend itself");
}

#[tokio::test]
async fn database_of_program_stays_failed() {
    let disk = Disk::default();
    let store = RedbStore::from_database(Database::builder().create_with_backend(disk.clone()).unwrap()).unwrap();
    let held = token();
    assert!(claim(&store, &id("before"), held, HOUR).await.unwrap());
    disk.fail();
    claim(&store, &id("after"), token(), HOUR).await.unwrap_err();
    disk.mend();
    clock_pause(300).await;
    let error = store.finish(ClaimRef::new(id("before"), held), Some(()), &End::Released).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)) && error.to_string().contains("open it again"), "{error}");
    assert!(matches!(store.get(&id("before")).await.unwrap(), Some(RecordState::InProgress { .. })));
}
