//! Every store against the published contract, and the contract against stores that break it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use steadfast::KeyError;
use steadfast::server::{
    Claim, ClaimOutcome, ClaimRef, ClaimToken, Completion, End, Fingerprint, FinishOutcome, MemoryStore, Record,
    RecordId, RecordState, Store, StoreError,
};

pub(super) use steadfast_testing::store_contract as suite;

use crate::kit::panic_of;

const LONG: Duration = Duration::from_secs(600);
const ONE: Fingerprint = Fingerprint::from_bytes([1; 32]);

fn record(body: &'static str) -> Record {
    Record::new(StatusCode::CREATED, &HeaderMap::new(), body.into())
}

fn token() -> ClaimToken {
    ClaimToken::new().unwrap()
}

async fn win<S: Store>(store: &S, claim: &Claim<'_>) -> S::Session {
    match store.claim(claim).await.unwrap() {
        ClaimOutcome::Acquired(session) => session,
        _ => panic!("the claim is lost"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_store_fulfils_contract() {
    suite(Arc::new(MemoryStore::new()), |name| RecordId::new("contract", name)).await;
}

#[tokio::test]
async fn full_store_refuses_claims_and_evicts_nothing_live() {
    let store = MemoryStore::new().max_records(2);
    let ids: Vec<RecordId> = (0..3).map(|number| RecordId::new("", &number.to_string())).collect();
    let running = Claim::new(&ids[0], token(), ONE, LONG, LONG);
    win(&store, &running).await;
    let done = Claim::new(&ids[1], token(), ONE, LONG, LONG);
    win(&store, &done).await;
    store.finish(done.reference(), Some(()), &End::Completed(Completion::new(record("done"), LONG))).await.unwrap();
    let third = Claim::new(&ids[2], token(), ONE, LONG, LONG);
    assert!(matches!(store.claim(&third).await, Err(StoreError::Full(_))));
    assert!(store.get(&ids[0]).await.unwrap().is_some() && store.get(&ids[1]).await.unwrap().is_some());
    store.finish(running.reference(), Some(()), &End::Released).await.unwrap();
    win(&store, &third).await;
}

#[tokio::test]
async fn claim_reserves_room_for_response() {
    let store = MemoryStore::new().max_bytes(10_000).max_reserved(usize::MAX);
    let (first, second) = (RecordId::new("", "1"), RecordId::new("", "2"));
    let claim = Claim::new(&first, token(), ONE, LONG, LONG).reserve(8_000);
    win(&store, &claim).await;
    let other = Claim::new(&second, token(), ONE, LONG, LONG).reserve(8_000);
    assert!(matches!(store.claim(&other).await, Err(StoreError::Full(_))));
    // The room that the response does not need becomes free.
    store.finish(claim.reference(), Some(()), &End::Completed(Completion::new(record("small"), LONG))).await.unwrap();
    win(&store, &other).await;
}

#[tokio::test]
async fn takeover_without_room_keeps_record() {
    let store = MemoryStore::new().max_bytes(5_000);
    let id = RecordId::new("", "1");
    let claim = Claim::new(&id, token(), ONE, LONG, LONG);
    win(&store, &claim).await;
    store.finish(claim.reference(), None, &End::Unknown).await.unwrap();
    let greedy = Claim::new(&id, token(), ONE, LONG, LONG).allow_takeover(true).reserve(10_000);
    assert!(matches!(store.claim(&greedy).await, Err(StoreError::Full(_))));
    assert_eq!(store.get(&id).await.unwrap(), Some(RecordState::unknown(ONE)));
    win(&store, &Claim::new(&id, token(), ONE, LONG, LONG).allow_takeover(true).reserve(1_000)).await;
}

#[tokio::test]
async fn purge_removes_expired_records_up_to_limit() {
    let store = MemoryStore::new();
    let tokens: Vec<_> = (0..100).map(|_| token()).collect();
    let id = |number: usize| RecordId::new("", &number.to_string());
    for (number, token) in tokens.iter().enumerate() {
        win(&store, &Claim::new(&id(number), *token, ONE, LONG, LONG)).await;
    }
    assert_eq!(store.purge_expired(1000).await.unwrap(), 0, "none has expired");
    for (number, token) in tokens.iter().enumerate() {
        store
            .finish(
                ClaimRef::new(id(number), *token),
                Some(()),
                &End::Completed(Completion::new(record("x"), Duration::ZERO)),
            )
            .await
            .unwrap();
    }
    assert_eq!(store.len(), 100);
    assert_eq!(store.purge_expired(10).await.unwrap(), 10);
    // Claims remove a few expired records.
    for number in 100..200 {
        win(&store, &Claim::new(&id(number), token(), ONE, LONG, LONG)).await;
    }
    let left = store.len() - 100;
    assert!(left < 80, "{left}");
    assert_eq!(store.purge_expired(1000).await.unwrap(), left);
    assert_eq!(store.len(), 100);
}

/// The possible defects of a store. The number is that of the broken clause.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Defect {
    WinsTwice = 1,
    KnowsNoToken,
    KeepsWhatIsReleased,
    TakesOverUnasked,
    ForgetsWhatIsAbandoned,
    HasNoFence,
    EndsTwice,
    RenewsTooShort,
    ForgetsNothing,
    Races,
    LetsTheDeadWin,
    FreesWhatTookOver,
    GivesANameTwice,
}

/// A store with one defect.
struct Broken {
    store: MemoryStore,
    defect: Defect,
    seen: Mutex<HashSet<[u8; 16]>>,
}

impl Broken {
    /// Returns whether the store has this defect and has seen the token before.
    fn again(&self, defect: Defect, token: ClaimToken) -> bool {
        self.defect == defect && !self.seen.lock().unwrap().insert(*token.as_bytes())
    }
}

impl Store for Broken {
    type Session = ();

    fn token(&self) -> Result<ClaimToken, KeyError> {
        let same = self.defect == Defect::GivesANameTwice;
        if same { Ok(ClaimToken::from_bytes([1; 16])) } else { self.store.token() }
    }

    async fn claim(&self, claim: &Claim<'_>) -> Result<ClaimOutcome<()>, StoreError> {
        let free = self.get(claim.id).await?.is_none();
        if self.defect == Defect::Races {
            tokio::task::yield_now().await;
        }
        let claim = claim.allow_takeover(claim.take_over || self.defect == Defect::TakesOverUnasked);
        let claimed = self.store.claim(&claim).await?;
        let wins = self.defect == Defect::WinsTwice || (self.defect == Defect::Races && free);
        if matches!(claimed, ClaimOutcome::Acquired(())) && self.again(Defect::KnowsNoToken, claim.token) {
            return Ok(ClaimOutcome::Existing(RecordState::in_progress(claim.fingerprint, claim.lease)));
        }
        Ok(if wins { ClaimOutcome::Acquired(()) } else { claimed })
    }

    async fn renew(&self, claim: ClaimRef, lease: Duration) -> Result<bool, StoreError> {
        let short = self.defect == Defect::RenewsTooShort;
        self.store.renew(claim, if short { lease / 10_000 } else { lease }).await
    }

    async fn finish(&self, claim: ClaimRef, session: Option<()>, end: &End) -> Result<FinishOutcome, StoreError> {
        let mut end = end.clone();
        match (self.defect, &mut end) {
            (Defect::ForgetsNothing, End::Completed(completion)) => completion.retention = LONG,
            (Defect::EndsTwice, End::Completed(_)) if self.again(Defect::EndsTwice, claim.token) => {
                return Ok(FinishOutcome::Fenced);
            }
            (Defect::KeepsWhatIsReleased, End::Released) => return Ok(FinishOutcome::Stored),
            (Defect::ForgetsWhatIsAbandoned, End::Unknown) => end = End::Released,
            (Defect::LetsTheDeadWin, End::Cancelled) => {
                // A missing claim leaves no tombstone.
                let released = self.store.finish(claim, session, &End::Released).await?;
                let is_there = self.get(&claim.id).await?.is_some();
                return Ok(if is_there { released } else { FinishOutcome::Stored });
            }
            (Defect::FreesWhatTookOver, End::Cancelled) => {
                self.store.finish(claim, session, &End::Released).await?;
            }
            _ => {}
        }
        let completed = self.store.finish(claim, session, &end).await?;
        let unfenced = self.defect == Defect::HasNoFence && matches!(end, End::Completed(_));
        Ok(if unfenced { FinishOutcome::Stored } else { completed })
    }

    async fn get(&self, id: &RecordId) -> Result<Option<RecordState>, StoreError> {
        self.store.get(id).await
    }

    async fn purge_expired(&self, most: usize) -> Result<usize, StoreError> {
        self.store.purge_expired(most).await
    }
}

#[tokio::test]
async fn contract_names_clause_that_defect_breaks() {
    use Defect::*;
    let defects = [
        WinsTwice,
        KnowsNoToken,
        KeepsWhatIsReleased,
        TakesOverUnasked,
        ForgetsWhatIsAbandoned,
        HasNoFence,
        EndsTwice,
        RenewsTooShort,
        ForgetsNothing,
        Races,
        LetsTheDeadWin,
        FreesWhatTookOver,
    ];
    for defect in defects {
        let store = Arc::new(Broken { store: MemoryStore::new(), defect, seen: Mutex::default() });
        let message = panic_of(suite(store, |name| RecordId::new("", name))).await;
        assert!(message.starts_with(&format!("store_contract, clause {}, ", defect as u8)), "{defect:?}: {message}");
    }
}

#[tokio::test]
async fn repeated_token_lets_two_claims_succeed() {
    let store = Broken { store: MemoryStore::new(), defect: Defect::GivesANameTwice, seen: Mutex::default() };
    let message = panic_of(suite(Arc::new(store), |name| RecordId::new("", name))).await;
    assert!(message.starts_with("store_contract, clause 1, "), "{message}");
}
