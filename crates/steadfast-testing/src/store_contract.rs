//! The contract of a store, as one test suite: a store must pass all of it.
//!
//! A store may be right in the ordinary case and wrong after one lost reply. That lets a payment
//! through twice. Such cases are rare in production and easy to stage, so this suite stages them
//! for any store.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use steadfast_core::clock;
use steadfast_server::{
    Claim, ClaimOutcome, ClaimToken, Completion, End, Fingerprint, FinishOutcome, Record, RecordId, RecordState, Store,
    StoreError,
};

const LONG: Duration = Duration::from_secs(600);
/// A lease or retention that a clause waits for.
const SHORT: Duration = Duration::from_millis(40);
/// Time limit of these waits: much longer than the lag of any store's clock.
const PATIENCE: Duration = Duration::from_secs(5);
/// Number of concurrent claims of one key.
const CROWD: usize = 200;
const ONE: Fingerprint = Fingerprint::from_bytes([1; 32]);
const OTHER: Fingerprint = Fingerprint::from_bytes([2; 32]);

/// Checks a [`Store`] against its contract.
///
/// `id` makes the identity of a record from the name of a clause. If the store outlives the run,
/// use identities that no other run used.
///
/// The clauses:
///
/// 1. one claim of a key wins, and its response is kept
/// 2. a call can be repeated after a lost reply
/// 3. a released key is free again
/// 4. an expired claim is unknown, and only the same request can take it over, if asked to
/// 5. a claim that ends as unknown stays unknown
/// 6. an owner whose claim was taken over cannot end it
/// 7. an operation ends once
/// 8. a renewed claim keeps its new lease
/// 9. a record past its retention is gone
/// 10. of many concurrent claims one wins
/// 11. a cancelled claim leaves no trace, however late it arrives
/// 12. a cancelled takeover leaves the record unknown
///
/// The suite takes a fraction of a second, mostly to let leases expire. Run it on a multi-threaded
/// runtime, or clause 10 proves little.
///
/// ```
/// use std::sync::Arc;
/// use steadfast_server::{MemoryStore, RecordId};
/// use steadfast_testing::store_contract;
///
/// # #[tokio::main(flavor = "multi_thread", worker_threads = 2)] async fn main() {
/// store_contract(Arc::new(MemoryStore::new()), |name| RecordId::new("contract", name)).await;
/// # }
/// ```
///
/// # Panics
///
/// Panics if the store breaks a clause. The message has the clause, the call and its result.
pub async fn store_contract<S: Store<Session: Default>>(store: Arc<S>, id: impl Fn(&str) -> RecordId) {
    let clause = |name, clause| Clause { name, store: &*store, id: id(clause) };
    is_won_once(&clause("1, one claim of a key wins, and its response is kept", "once")).await;
    can_be_repeated(&clause("2, a call can be repeated after a lost reply", "repeat")).await;
    is_as_new(&clause("3, a released key is free again", "release")).await;
    is_taken_over(&clause(
        "4, an expired claim is unknown, and only the same request can take it over, if asked to",
        "lapse",
    ))
    .await;
    is_unknown(&clause("5, a claim that ends as unknown stays unknown", "abandon")).await;
    is_fenced(&clause("6, an owner whose claim was taken over cannot end it", "zombie")).await;
    ends_once(&clause("7, an operation ends once", "ends")).await;
    holds(&clause("8, a renewed claim keeps its new lease", "renew")).await;
    is_gone(&clause("9, a record past its retention is gone", "retention")).await;
    one_of_many("10, of many concurrent claims one wins", store.clone(), id("many")).await;
    never_was(&clause("11, a cancelled claim leaves no trace, however late it arrives", "cancel")).await;
    is_unknown_again(&clause("12, a cancelled takeover leaves the record unknown", "cancel what took over")).await;
}

/// Checks a [`Store`] that [commits your rows with the record](Store::TRANSACTIONAL) against its
/// contract.
///
/// It differs from [`store_contract`] because a claim is an open transaction. Others cannot read
/// its fingerprint, no lease ends it, and dropping it gives the key back. `id` is as for
/// [`store_contract`].
///
/// The clauses:
///
/// 1. one claim of a key wins, and its response is kept
/// 2. a dropped claim leaves no trace
/// 3. a released key is free again
/// 4. a claim that ends as unknown stays unknown, and only the same request can take it over, if
///    asked to
/// 5. a key that was taken over and released is free again
/// 6. a record past its retention is gone
/// 7. of many concurrent claims one wins, and the others do not wait for it
/// 8. a cancelled claim leaves no trace
///
/// Test in your own suite that rows and record are committed together: only you know your rows.
///
/// # Panics
///
/// Panics if the store breaks a clause. The message has the clause, the call and its result.
pub async fn transactional_store_contract<S: Store>(store: Arc<S>, id: impl Fn(&str) -> RecordId) {
    let clause = |name, clause| Clause { name, store: &*store, id: id(clause) };
    is_held_once(&clause("1, one claim of a key wins, and its response is kept", "once")).await;
    is_let_go(&clause("2, a dropped claim leaves no trace", "let go")).await;
    is_as_new(&clause("3, a released key is free again", "release")).await;
    is_unknown(&clause(
        "4, a claim that ends as unknown stays unknown, and only the same request can take it over, if asked to",
        "abandon",
    ))
    .await;
    is_released_after_all(&clause("5, a key that was taken over and released is free again", "take over")).await;
    is_gone(&clause("6, a record past its retention is gone", "retention")).await;
    let name = "7, of many concurrent claims one wins, and the others do not wait for it";
    one_of_many(name, store.clone(), id("many")).await;
    is_cancelled(&clause("8, a cancelled claim leaves no trace", "cancel")).await;
}

/// One clause. Its calls panic with its name if the store returns a wrong result.
struct Clause<'a, S> {
    name: &'static str,
    store: &'a S,
    id: RecordId,
}

impl<S: Store> Clause<'_, S> {
    fn claim(&self, fingerprint: Fingerprint, lease: Duration) -> Claim<'_> {
        Claim::new(&self.id, token(self.name, self.store), fingerprint, lease, LONG)
    }

    async fn win(&self, claim: &Claim<'_>) -> S::Session {
        match said(self.name, "claim", self.store.claim(claim).await) {
            ClaimOutcome::Acquired(session) => session,
            ClaimOutcome::Existing(state) => panic!("{self}: the claim should win, but the record is {state:?}"),
            _ => panic!("{self}: the claim should win, but it is refused"),
        }
    }

    async fn is_refused(&self, claim: &Claim<'_>) {
        match said(self.name, "claim", self.store.claim(claim).await) {
            ClaimOutcome::Cancelled => {}
            ClaimOutcome::Acquired(_) => panic!("{self}: the claim should be refused, but it wins"),
            ClaimOutcome::Existing(state) => panic!("{self}: the claim should be refused, but the record is {state:?}"),
            _ => panic!("{self}: the claim should be refused"),
        }
    }

    async fn lose(&self, claim: &Claim<'_>) -> RecordState {
        match said(self.name, "claim", self.store.claim(claim).await) {
            ClaimOutcome::Existing(state) => state,
            ClaimOutcome::Acquired(_) => panic!("{self}: the claim wins, but it should not"),
            _ => panic!("{self}: the claim is refused, but it should return the state of the record"),
        }
    }

    /// Checks that the record's state is `state`.
    async fn is_known_as(&self, state: Option<RecordState>) {
        self.same("get", said(self.name, "get", self.store.get(&self.id).await), state);
    }

    /// Waits until the state is `state`, for a lease or a retention on the store's own clock.
    async fn becomes(&self, state: Option<RecordState>) {
        let becomes = async {
            while said(self.name, "get", self.store.get(&self.id).await) != state {
                clock::sleep(SHORT / 8).await;
            }
        };
        let came = clock::until(clock::now().checked_add(PATIENCE), becomes).await;
        assert!(came.is_ok(), "{self}: after {PATIENCE:?} the record is still not {state:?}");
    }

    async fn renew(&self, claim: &Claim<'_>, renewed: bool) {
        let outcome = self.store.renew(claim.reference(), LONG).await;
        self.same("renew", said(self.name, "renew", outcome), renewed);
    }

    async fn complete(
        &self,
        claim: &Claim<'_>,
        session: Option<S::Session>,
        end: Completion,
        completed: FinishOutcome,
    ) {
        self.finish(claim, session, &End::Completed(end), completed).await;
    }

    async fn finish(&self, claim: &Claim<'_>, session: Option<S::Session>, end: &End, completed: FinishOutcome) {
        let call = match end {
            End::Completed(_) => "finish as completed",
            End::Released => "finish as released",
            End::Unknown => "finish as unknown",
            End::Cancelled => "finish as cancelled",
        };
        let outcome = self.store.finish(claim.reference(), session, end).await;
        self.same(call, said(self.name, call, outcome), completed);
    }

    /// Checks that the claim is in progress, with a lease left between `least` and `most`.
    fn is_running(&self, state: &RecordState, least: Duration, most: Duration) {
        let right = matches!(state, RecordState::InProgress { fingerprint, lease_left, .. } if *fingerprint == Some(ONE)
            && (least..=most).contains(lease_left));
        assert!(
            right,
            "{self}: the claim should be in progress with {least:?} to {most:?} left of its lease, but is {state:?}"
        );
    }

    fn same<T: PartialEq + Debug>(&self, call: &str, got: T, expected: T) {
        assert!(got == expected, "{self}: {call} should return {expected:?}, but returns {got:?}");
    }
}

impl<S> std::fmt::Display for Clause<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "store_contract, clause {}", self.name)
    }
}

/// Returns the result of a call. An error breaks the contract.
fn said<T>(name: &str, call: &str, outcome: Result<T, StoreError>) -> T {
    match outcome {
        Ok(value) => value,
        Err(error) => panic!("store_contract, clause {name}: {call} failed: {error}"),
    }
}

/// The store makes the tokens: if it makes one twice, two claims win.
fn token<S: Store>(name: &str, store: &S) -> ClaimToken {
    match store.token() {
        Ok(token) => token,
        Err(error) => panic!("store_contract, clause {name}: cannot make a claim token: {error}"),
    }
}

fn record(body: &'static str) -> Record {
    let headers: HeaderMap = [(http::header::LOCATION, HeaderValue::from_static("/1"))].into_iter().collect();
    Record::new(StatusCode::CREATED, &headers, body.into())
}

fn end(body: &'static str) -> Completion {
    Completion::new(record(body), LONG)
}

async fn is_won_once<S: Store>(clause: &Clause<'_, S>) {
    clause.is_known_as(None).await;
    let first = clause.claim(ONE, LONG);
    let session = clause.win(&first).await;
    let second = clause.claim(OTHER, LONG);
    for repeat in [clause.claim(ONE, LONG), second] {
        clause.is_running(&clause.lose(&repeat).await, LONG / 2, LONG);
    }
    clause.complete(&first, Some(session), end("done"), FinishOutcome::Stored).await;
    let done = RecordState::completed(ONE, record("done"));
    clause.same("claim", clause.lose(&second).await, done.clone());
    // No live record is purged. Others may share the store, so the number is not checked.
    said(clause.name, "purge_expired", clause.store.purge_expired(1000).await);
    clause.is_known_as(Some(done)).await;
}

async fn is_held_once<S: Store>(clause: &Clause<'_, S>) {
    clause.is_known_as(None).await;
    let first = clause.claim(ONE, LONG);
    let session = clause.win(&first).await;
    let second = clause.claim(ONE, LONG);
    for state in [Some(clause.lose(&second).await), said(clause.name, "get", clause.store.get(&clause.id).await)] {
        let held = matches!(state, Some(RecordState::InProgress { fingerprint, .. }) if fingerprint.is_none_or(|of| of == ONE));
        assert!(held, "{clause}: the claim should be in progress, but is {state:?}");
    }
    clause.complete(&first, Some(session), end("done"), FinishOutcome::Stored).await;
    let done = RecordState::completed(ONE, record("done"));
    clause.same("claim", clause.lose(&second).await, done.clone());
    clause.same("claim", clause.lose(&clause.claim(OTHER, LONG)).await, done.clone());
    said(clause.name, "purge_expired", clause.store.purge_expired(1000).await);
    clause.is_known_as(Some(done)).await;
}

async fn is_let_go<S: Store>(clause: &Clause<'_, S>) {
    drop(clause.win(&clause.claim(ONE, LONG)).await);
    clause.becomes(None).await;
    clause.win(&clause.claim(OTHER, LONG)).await;
}

async fn is_released_after_all<S: Store>(clause: &Clause<'_, S>) {
    let first = clause.claim(ONE, LONG);
    let session = clause.win(&first).await;
    clause.finish(&first, Some(session), &End::Unknown, FinishOutcome::Stored).await;
    clause.same("claim", clause.lose(&clause.claim(OTHER, LONG).allow_takeover(true)).await, RecordState::unknown(ONE));
    let next = clause.claim(ONE, LONG).allow_takeover(true);
    let session = clause.win(&next).await;
    clause.finish(&next, Some(session), &End::Released, FinishOutcome::Stored).await;
    clause.is_known_as(None).await;
}

async fn can_be_repeated<S: Store>(clause: &Clause<'_, S>) {
    let claim = clause.claim(ONE, LONG);
    // The reply to the first claim was lost, and its session is dropped with it.
    drop(clause.win(&claim).await);
    let session = clause.win(&claim).await;
    clause.renew(&claim, true).await;
    clause.renew(&claim, true).await;
    clause.complete(&claim, Some(session), end("done"), FinishOutcome::Stored).await;
    clause.is_known_as(Some(RecordState::completed(ONE, record("done")))).await;
    // A completed claim cannot be renewed.
    clause.renew(&claim, false).await;
}

async fn is_as_new<S: Store>(clause: &Clause<'_, S>) {
    let claim = clause.claim(ONE, LONG);
    let session = clause.win(&claim).await;
    clause.finish(&claim, Some(session), &End::Released, FinishOutcome::Stored).await;
    clause.is_known_as(None).await;
    // Another request can now use the key.
    clause.win(&clause.claim(OTHER, LONG)).await;
}

async fn never_was<S: Store<Session: Default>>(clause: &Clause<'_, S>) {
    let claim = clause.claim(ONE, LONG);
    drop(clause.win(&claim).await);
    clause.finish(&claim, None, &End::Cancelled, FinishOutcome::Stored).await;
    clause.is_known_as(None).await;
    clause.is_refused(&claim).await;
    clause.renew(&claim, false).await;
    clause.complete(&claim, Some(S::Session::default()), end("late"), FinishOutcome::Fenced).await;

    // Cancelled before it arrives. Neither call disturbs a claim that came in between.
    let late = clause.claim(ONE, LONG);
    clause.finish(&late, None, &End::Cancelled, FinishOutcome::Stored).await;
    clause.is_refused(&late).await;
    clause.is_known_as(None).await;
    let other = clause.claim(OTHER, LONG);
    let session = clause.win(&other).await;
    clause.is_refused(&late).await;
    clause.finish(&late, None, &End::Cancelled, FinishOutcome::Stored).await;
    let stranger = clause.claim(ONE, LONG);
    clause.finish(&stranger, None, &End::Cancelled, FinishOutcome::Stored).await;
    clause.is_refused(&stranger).await;
    clause.renew(&other, true).await;

    // A released token cannot claim again, and its release can be repeated.
    clause.finish(&other, Some(session), &End::Released, FinishOutcome::Stored).await;
    clause.finish(&other, None, &End::Released, FinishOutcome::Stored).await;
    clause.is_refused(&other).await;
    clause.is_known_as(None).await;
    let abandoned = clause.claim(ONE, LONG);
    let session = clause.win(&abandoned).await;
    clause.is_refused(&other).await;

    // Nor do they disturb an operation whose end is unknown.
    clause.finish(&abandoned, Some(session), &End::Unknown, FinishOutcome::Stored).await;
    let stranger = clause.claim(ONE, LONG);
    clause.finish(&stranger, None, &End::Cancelled, FinishOutcome::Stored).await;
    clause.renew(&abandoned, false).await;
    clause.is_known_as(Some(RecordState::unknown(ONE))).await;
}

async fn is_unknown_again<S: Store>(clause: &Clause<'_, S>) {
    drop(clause.win(&clause.claim(ONE, SHORT)).await);
    clause.becomes(Some(RecordState::unknown(ONE))).await;
    let second = clause.claim(ONE, LONG).allow_takeover(true);
    drop(clause.win(&second).await);
    // A repeat of the takeover also wins.
    drop(clause.win(&second).await);
    clause.finish(&second, None, &End::Cancelled, FinishOutcome::Stored).await;
    clause.is_known_as(Some(RecordState::unknown(ONE))).await;
    clause.is_refused(&second).await;

    // A takeover of a takeover behaves the same.
    let third = clause.claim(ONE, LONG).allow_takeover(true);
    drop(clause.win(&third).await);
    clause.finish(&second, None, &End::Cancelled, FinishOutcome::Stored).await;
    clause.renew(&third, true).await;
    clause.finish(&third, None, &End::Cancelled, FinishOutcome::Stored).await;
    clause.is_known_as(Some(RecordState::unknown(ONE))).await;
}

async fn is_cancelled<S: Store>(clause: &Clause<'_, S>) {
    let claim = clause.claim(ONE, LONG);
    let session = clause.win(&claim).await;
    clause.finish(&claim, Some(session), &End::Cancelled, FinishOutcome::Stored).await;
    clause.becomes(None).await;
    let lost = clause.claim(ONE, LONG);
    clause.finish(&lost, None, &End::Cancelled, FinishOutcome::Stored).await;

    // A cancelled takeover leaves the record unknown.
    let first = clause.claim(ONE, LONG);
    let session = clause.win(&first).await;
    clause.finish(&first, Some(session), &End::Unknown, FinishOutcome::Stored).await;
    let second = clause.claim(ONE, LONG).allow_takeover(true);
    let session = clause.win(&second).await;
    clause.finish(&second, Some(session), &End::Cancelled, FinishOutcome::Stored).await;
    clause.becomes(Some(RecordState::unknown(ONE))).await;
}

async fn is_taken_over<S: Store>(clause: &Clause<'_, S>) {
    drop(clause.win(&clause.claim(ONE, SHORT)).await);
    clause.becomes(Some(RecordState::unknown(ONE))).await;
    let again = clause.claim(ONE, LONG);
    // Only on demand, and never by another request.
    clause.same("claim", clause.lose(&again).await, RecordState::unknown(ONE));
    let another = clause.claim(OTHER, LONG).allow_takeover(true);
    clause.same("claim", clause.lose(&another).await, RecordState::unknown(ONE));
    clause.win(&again.allow_takeover(true)).await;
    clause.is_running(&clause.lose(&clause.claim(ONE, LONG)).await, LONG / 2, LONG);
}

async fn is_unknown<S: Store>(clause: &Clause<'_, S>) {
    let claim = clause.claim(ONE, LONG);
    let session = clause.win(&claim).await;
    clause.finish(&claim, Some(session), &End::Unknown, FinishOutcome::Stored).await;
    clause.is_known_as(Some(RecordState::unknown(ONE))).await;
    clause.win(&clause.claim(ONE, LONG).allow_takeover(true)).await;
}

async fn is_fenced<S: Store>(clause: &Clause<'_, S>) {
    let zombie = clause.claim(ONE, SHORT);
    let old = clause.win(&zombie).await;
    clause.becomes(Some(RecordState::unknown(ONE))).await;
    let successor = clause.claim(ONE, LONG).allow_takeover(true);
    let new = clause.win(&successor).await;
    clause.renew(&zombie, false).await;
    clause.complete(&zombie, Some(old), end("late"), FinishOutcome::Fenced).await;
    clause.complete(&successor, Some(new), end("done"), FinishOutcome::Stored).await;
    clause.finish(&zombie, None, &End::Unknown, FinishOutcome::Fenced).await;
    clause.is_known_as(Some(RecordState::completed(ONE, record("done")))).await;
}

async fn ends_once<S: Store<Session: Default>>(clause: &Clause<'_, S>) {
    let no_session = || Some(S::Session::default());
    let abandoned = clause.claim(ONE, LONG);
    let session = clause.win(&abandoned).await;
    clause.finish(&abandoned, Some(session), &End::Unknown, FinishOutcome::Stored).await;
    // This end can be repeated. Nobody holds the claim now, not even its owner.
    clause.finish(&abandoned, None, &End::Unknown, FinishOutcome::Stored).await;
    clause.renew(&abandoned, false).await;
    clause.complete(&abandoned, no_session(), end("late"), FinishOutcome::Fenced).await;
    clause.finish(&abandoned, no_session(), &End::Released, FinishOutcome::Fenced).await;
    clause.finish(&abandoned, no_session(), &End::Cancelled, FinishOutcome::Fenced).await;
    // A late copy of its claim takes nothing over.
    for late in [abandoned, abandoned.allow_takeover(true)] {
        clause.same("claim", clause.lose(&late).await, RecordState::unknown(ONE));
    }

    let claim = clause.claim(ONE, LONG).allow_takeover(true);
    let session = clause.win(&claim).await;
    clause.complete(&claim, Some(session), end("done"), FinishOutcome::Stored).await;
    // The reply was lost: the same end can be repeated, and no other end is accepted.
    clause.complete(&claim, no_session(), end("done"), FinishOutcome::Stored).await;
    clause.complete(&claim, None, end("done"), FinishOutcome::Stored).await;
    clause.finish(&claim, None, &End::Unknown, FinishOutcome::Fenced).await;
    clause.finish(&claim, no_session(), &End::Released, FinishOutcome::Fenced).await;
    clause.finish(&claim, None, &End::Cancelled, FinishOutcome::Fenced).await;
    clause.is_known_as(Some(RecordState::completed(ONE, record("done")))).await;
}

async fn holds<S: Store>(clause: &Clause<'_, S>) {
    let claim = clause.claim(ONE, SHORT);
    drop(clause.win(&claim).await);
    clause.renew(&claim, true).await;
    clause.is_running(&clause.lose(&clause.claim(ONE, LONG)).await, SHORT * 2, LONG);
}

async fn is_gone<S: Store>(clause: &Clause<'_, S>) {
    let claim = clause.claim(ONE, LONG);
    let session = clause.win(&claim).await;
    clause.complete(&claim, Some(session), Completion::new(record("done"), SHORT), FinishOutcome::Stored).await;
    clause.becomes(None).await;
    // Another request can now use the key.
    clause.win(&clause.claim(OTHER, LONG)).await;
}

async fn one_of_many<S: Store>(name: &'static str, store: Arc<S>, id: RecordId) {
    let mut claims = tokio::task::JoinSet::new();
    for _ in 0..CROWD {
        let store = store.clone();
        claims.spawn(async move {
            let claim = Claim::new(&id, token(name, &*store), ONE, LONG, LONG);
            said(name, "claim", store.claim(&claim).await)
        });
    }
    // Kept until all claims have returned: a dropped session may give the key back.
    let claimed = claims.join_all().await;
    let won = claimed.iter().filter(|claimed| matches!(claimed, ClaimOutcome::Acquired(_))).count();
    assert!(won == 1, "store_contract, clause {name}: {won} of {CROWD} claims won");
}
