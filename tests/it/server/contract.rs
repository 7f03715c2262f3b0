//! What every store must do, as one suite: a store passes all of it or is no store.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use steadfast::server::{
    Claim, ClaimToken, Claimed, Completed, Completion, Fingerprint, MemoryStore, Record, RecordId, State, Store,
    StoreError,
};

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(40);
const ONE: Fingerprint = Fingerprint::from_bytes([1; 32]);
const OTHER: Fingerprint = Fingerprint::from_bytes([2; 32]);

fn record(body: &'static str) -> Record {
    let headers: HeaderMap = [(http::header::LOCATION, "/1".parse().unwrap())].into_iter().collect();
    Record::new(StatusCode::CREATED, &headers, body.into())
}

fn token() -> ClaimToken {
    ClaimToken::new().unwrap()
}

async fn win<S: Store>(store: &S, claim: &Claim<'_>) -> S::Session {
    match store.claim(claim).await.unwrap() {
        Claimed::Won(session) => session,
        other => panic!("{:?}", describe(&other)),
    }
}

async fn lose<S: Store>(store: &S, claim: &Claim<'_>) -> State {
    match store.claim(claim).await.unwrap() {
        Claimed::Known(state) => state,
        _ => panic!("the claim was won"),
    }
}

fn describe<S>(claimed: &Claimed<S>) -> String {
    match claimed {
        Claimed::Won(_) => "won".to_owned(),
        Claimed::Known(state) => format!("{state:?}"),
        _ => "new".to_owned(),
    }
}

/// Until `condition` holds: what is waited for is a lease or a retention of the store's own clock.
async fn eventually<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let holds = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), holds).await.expect("it never came");
}

/// Runs every case against a store. `id` makes identities that no other run uses.
pub(super) async fn suite<S: Store<Session: Default>>(store: Arc<S>, id: impl Fn(&str) -> RecordId) {
    a_claim_is_won_once_and_its_answer_is_kept(&*store, id("once")).await;
    a_call_can_be_repeated(&*store, id("repeat")).await;
    a_released_key_is_as_new(&*store, id("release")).await;
    a_lapsed_claim_is_unknown_and_is_taken_over_only_on_demand(&*store, id("lapse")).await;
    an_abandoned_claim_is_unknown(&*store, id("abandon")).await;
    a_zombie_cannot_overwrite_its_successor(&*store, id("zombie")).await;
    an_operation_ends_once(&*store, id("ends")).await;
    a_renewed_claim_holds(&*store, id("renew")).await;
    what_is_past_its_retention_is_gone(&*store, id("retention")).await;
    of_many_claims_one_is_won(store, id("many")).await;
}

async fn a_claim_is_won_once_and_its_answer_is_kept<S: Store>(store: &S, id: RecordId) {
    assert_eq!(store.look(&id).await.unwrap(), None);
    let first = Claim::new(&id, token(), ONE, LONG, LONG);
    let session = win(store, &first).await;
    let second = Claim::new(&id, token(), OTHER, LONG, LONG);
    match lose(store, &second).await {
        State::Running { fingerprint, lease_left, .. } => {
            assert_eq!(fingerprint, Some(ONE));
            assert!(lease_left <= LONG && lease_left > LONG / 2, "{lease_left:?}");
        }
        other => panic!("{other:?}"),
    }
    let completed = store.complete(&id, first.token, session, Completion::new(record("done"), LONG)).await.unwrap();
    assert_eq!(completed, Completed::Stored);
    let done = State::done(ONE, record("done"));
    assert_eq!(lose(store, &second).await, done);
    assert_eq!(store.look(&id).await.unwrap(), Some(done));
    assert_eq!(store.sweep(1000).await.unwrap(), 0, "nothing live is swept");
}

async fn a_call_can_be_repeated<S: Store>(store: &S, id: RecordId) {
    let claim = Claim::new(&id, token(), ONE, LONG, LONG);
    // A reply that was lost: the session of the first claim is dropped with it.
    drop(win(store, &claim).await);
    let session = win(store, &claim).await;
    assert!(store.renew(&id, claim.token, LONG).await.unwrap());
    assert!(store.renew(&id, claim.token, LONG).await.unwrap());
    store.complete(&id, claim.token, session, Completion::new(record("done"), LONG)).await.unwrap();
    assert_eq!(store.look(&id).await.unwrap(), Some(State::done(ONE, record("done"))));
    assert!(!store.renew(&id, claim.token, LONG).await.unwrap(), "there is nothing to renew");
}

async fn a_released_key_is_as_new<S: Store>(store: &S, id: RecordId) {
    let claim = Claim::new(&id, token(), ONE, LONG, LONG);
    let session = win(store, &claim).await;
    assert_eq!(store.release(&id, claim.token, session).await.unwrap(), Completed::Stored);
    assert_eq!(store.look(&id).await.unwrap(), None);
    // Another request may have it now.
    let next = Claim::new(&id, token(), OTHER, LONG, LONG);
    win(store, &next).await;
}

async fn a_lapsed_claim_is_unknown_and_is_taken_over_only_on_demand<S: Store>(store: &S, id: RecordId) {
    let claim = Claim::new(&id, token(), ONE, SHORT, LONG);
    drop(win(store, &claim).await);
    eventually(|| async { store.look(&id).await.unwrap() == Some(State::unknown(ONE)) }).await;
    let again = Claim::new(&id, token(), ONE, LONG, LONG);
    assert_eq!(lose(store, &again).await, State::unknown(ONE), "refused by default");
    let another = Claim::new(&id, token(), OTHER, LONG, LONG).taking_over(true);
    assert_eq!(lose(store, &another).await, State::unknown(ONE), "another request takes nothing over");
    win(store, &again.taking_over(true)).await;
    assert!(matches!(store.look(&id).await.unwrap(), Some(State::Running { .. })));
}

async fn an_abandoned_claim_is_unknown<S: Store<Session: Default>>(store: &S, id: RecordId) {
    let claim = Claim::new(&id, token(), ONE, LONG, LONG);
    let session = win(store, &claim).await;
    assert_eq!(store.abandon(&id, claim.token, Some(session)).await.unwrap(), Completed::Stored);
    assert_eq!(store.look(&id).await.unwrap(), Some(State::unknown(ONE)));
    // Nobody has it now, its owner neither.
    assert!(!store.renew(&id, claim.token, LONG).await.unwrap());
    let late = store.complete(&id, claim.token, S::Session::default(), Completion::new(record("late"), LONG)).await;
    assert_eq!(late.unwrap(), Completed::Lost);
    assert_eq!(store.release(&id, claim.token, S::Session::default()).await.unwrap(), Completed::Lost);
    assert_eq!(lose(store, &claim).await, State::unknown(ONE));
    win(store, &Claim::new(&id, token(), ONE, LONG, LONG).taking_over(true)).await;
}

async fn a_zombie_cannot_overwrite_its_successor<S: Store>(store: &S, id: RecordId) {
    let zombie = Claim::new(&id, token(), ONE, SHORT, LONG);
    let old = win(store, &zombie).await;
    eventually(|| async { store.look(&id).await.unwrap() == Some(State::unknown(ONE)) }).await;
    let successor = Claim::new(&id, token(), ONE, LONG, LONG).taking_over(true);
    let new = win(store, &successor).await;
    assert!(!store.renew(&id, zombie.token, LONG).await.unwrap());
    let late = store.complete(&id, zombie.token, old, Completion::new(record("late"), LONG)).await.unwrap();
    assert_eq!(late, Completed::Lost);
    store.complete(&id, successor.token, new, Completion::new(record("done"), LONG)).await.unwrap();
    assert_eq!(store.abandon(&id, zombie.token, None).await.unwrap(), Completed::Lost);
    assert_eq!(store.look(&id).await.unwrap(), Some(State::done(ONE, record("done"))));
}

async fn an_operation_ends_once<S: Store<Session: Default>>(store: &S, id: RecordId) {
    let claim = Claim::new(&id, token(), ONE, LONG, LONG);
    let session = win(store, &claim).await;
    let end = || Completion::new(record("done"), LONG);
    assert_eq!(store.complete(&id, claim.token, session, end()).await.unwrap(), Completed::Stored);
    // A reply that was lost, and then whatever else a confused owner may say.
    let again = store.complete(&id, claim.token, S::Session::default(), end()).await.unwrap();
    assert_eq!(again, Completed::Stored);
    assert_eq!(store.abandon(&id, claim.token, None).await.unwrap(), Completed::Lost);
    assert_eq!(store.release(&id, claim.token, S::Session::default()).await.unwrap(), Completed::Lost);
    assert_eq!(store.look(&id).await.unwrap(), Some(State::done(ONE, record("done"))));
}

async fn a_renewed_claim_holds<S: Store>(store: &S, id: RecordId) {
    let claim = Claim::new(&id, token(), ONE, SHORT, LONG);
    drop(win(store, &claim).await);
    assert!(store.renew(&id, claim.token, LONG).await.unwrap());
    match lose(store, &Claim::new(&id, token(), ONE, LONG, LONG)).await {
        State::Running { lease_left, .. } => assert!(lease_left > SHORT * 2, "{lease_left:?}"),
        other => panic!("{other:?}"),
    }
}

async fn what_is_past_its_retention_is_gone<S: Store>(store: &S, id: RecordId) {
    let claim = Claim::new(&id, token(), ONE, LONG, LONG);
    let session = win(store, &claim).await;
    store.complete(&id, claim.token, session, Completion::new(record("done"), SHORT)).await.unwrap();
    eventually(|| async { store.look(&id).await.unwrap().is_none() }).await;
    // And another request may have the key.
    win(store, &Claim::new(&id, token(), OTHER, LONG, LONG)).await;
}

async fn of_many_claims_one_is_won<S: Store>(store: Arc<S>, id: RecordId) {
    let mut claims = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let store = store.clone();
        claims.spawn(async move {
            let claim = Claim::new(&id, token(), ONE, LONG, LONG);
            matches!(store.claim(&claim).await.unwrap(), Claimed::Won(_))
        });
    }
    assert_eq!(claims.join_all().await.into_iter().filter(|won| *won).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory() {
    suite(Arc::new(MemoryStore::new()), |name| RecordId::new("contract", name)).await;
}

#[tokio::test]
async fn a_full_store_says_so_and_evicts_nothing_that_lives() {
    let store = MemoryStore::new().max_records(2);
    let ids: Vec<RecordId> = (0..3).map(|number| RecordId::new("", &number.to_string())).collect();
    let running = Claim::new(&ids[0], token(), ONE, LONG, LONG);
    win(&store, &running).await;
    let done = Claim::new(&ids[1], token(), ONE, LONG, LONG);
    win(&store, &done).await;
    store.complete(&ids[1], done.token, (), Completion::new(record("done"), LONG)).await.unwrap();
    let third = Claim::new(&ids[2], token(), ONE, LONG, LONG);
    assert!(matches!(store.claim(&third).await, Err(StoreError::Full)));
    assert!(store.look(&ids[0]).await.unwrap().is_some() && store.look(&ids[1]).await.unwrap().is_some());
    store.release(&ids[0], running.token, ()).await.unwrap();
    win(&store, &third).await;
}

#[tokio::test]
async fn the_room_for_an_answer_is_reserved_when_the_key_is_claimed() {
    let store = MemoryStore::new().max_bytes(10_000);
    let (first, second) = (RecordId::new("", "1"), RecordId::new("", "2"));
    let claim = Claim::new(&first, token(), ONE, LONG, LONG).reserving(8_000);
    win(&store, &claim).await;
    let other = Claim::new(&second, token(), ONE, LONG, LONG).reserving(8_000);
    assert!(matches!(store.claim(&other).await, Err(StoreError::Full)));
    // What the answer does not take is given back.
    store.complete(&first, claim.token, (), Completion::new(record("small"), LONG)).await.unwrap();
    win(&store, &other).await;
}

#[tokio::test]
async fn a_record_is_not_forgotten_for_want_of_room() {
    let store = MemoryStore::new().max_bytes(5_000);
    let id = RecordId::new("", "1");
    let claim = Claim::new(&id, token(), ONE, LONG, LONG);
    win(&store, &claim).await;
    store.abandon(&id, claim.token, None).await.unwrap();
    let greedy = Claim::new(&id, token(), ONE, LONG, LONG).taking_over(true).reserving(10_000);
    assert!(matches!(store.claim(&greedy).await, Err(StoreError::Full)));
    assert_eq!(store.look(&id).await.unwrap(), Some(State::unknown(ONE)));
    win(&store, &Claim::new(&id, token(), ONE, LONG, LONG).taking_over(true).reserving(1_000)).await;
}

#[tokio::test]
async fn a_sweep_removes_what_has_expired_and_no_more_than_it_is_told() {
    let store = MemoryStore::new();
    for number in 0..100 {
        let id = RecordId::new("", &number.to_string());
        let claim = Claim::new(&id, token(), ONE, LONG, LONG);
        win(&store, &claim).await;
        store.complete(&id, claim.token, (), Completion::new(record("x"), Duration::ZERO)).await.unwrap();
    }
    let before = store.len();
    assert!(before > 20, "claims sweep a few on their way: {before}");
    assert_eq!(store.sweep(10).await.unwrap(), 10);
    assert_eq!(store.sweep(1000).await.unwrap(), before - 10);
    assert!(store.is_empty());
}
