//! What every store must do, as one suite: a store passes all of it or is no store.
//!
//! A store that is right in the ordinary case and wrong once in a lost reply lets a payment through twice. Those cases are rare in
//! production and easy to stage, so they are staged here, for any store.

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
/// A lease or a retention that is waited for.
const SHORT: Duration = Duration::from_millis(40);
/// As long is waited for it: much longer than any clock of a store lags behind.
const PATIENCE: Duration = Duration::from_secs(5);
/// Claims of one key at the same time.
const CROWD: usize = 200;
const ONE: Fingerprint = Fingerprint::from_bytes([1; 32]);
const OTHER: Fingerprint = Fingerprint::from_bytes([2; 32]);

/// Holds a [`Store`] to its contract. `id` makes a record's identity from the name of a clause; a store that outlives the run needs
/// identities that no other run used.
///
/// The clauses:
///
/// 1. a claim is won once, and its answer is kept
/// 2. a call whose reply was lost can be repeated
/// 3. a released key is as new
/// 4. a lapsed claim is unknown, and is taken over on demand, by the same request
/// 5. an abandoned claim is unknown
/// 6. an owner whose claim was taken over cannot end it
/// 7. an operation ends once
/// 8. a renewed claim holds
/// 9. what is past its retention is gone
/// 10. of many claims at the same time one is won
/// 11. a cancelled claim never was, however late it arrives
/// 12. a cancelled claim that took over is unknown again
///
/// It takes a fraction of a second, most of which is leases that run out; give it a multi-threaded
/// runtime, or clause 10 proves little.
///
/// ```
/// # #[tokio::main(flavor = "multi_thread", worker_threads = 2)] async fn main() {
/// use std::sync::Arc;
/// use steadfast_server::{MemoryStore, RecordId};
/// use steadfast_testing::store_contract;
///
/// store_contract(Arc::new(MemoryStore::new()), |name| RecordId::new("contract", name)).await;
/// # }
/// ```
///
/// # Panics
///
/// If the store breaks a clause, with the clause, the call and what came of it.
pub async fn store_contract<S: Store<Session: Default>>(store: Arc<S>, id: impl Fn(&str) -> RecordId) {
    let clause = |name, clause| Clause { name, store: &*store, id: id(clause) };
    is_won_once(&clause("1, a claim is won once, and its answer is kept", "once")).await;
    can_be_repeated(&clause("2, a call whose reply was lost can be repeated", "repeat")).await;
    is_as_new(&clause("3, a released key is as new", "release")).await;
    is_taken_over(&clause("4, a lapsed claim is unknown, and is taken over on demand, by the same request", "lapse"))
        .await;
    is_unknown(&clause("5, an abandoned claim is unknown", "abandon")).await;
    is_fenced(&clause("6, an owner whose claim was taken over cannot end it", "zombie")).await;
    ends_once(&clause("7, an operation ends once", "ends")).await;
    holds(&clause("8, a renewed claim holds", "renew")).await;
    is_gone(&clause("9, what is past its retention is gone", "retention")).await;
    one_of_many("10, of many claims at the same time one is won", store.clone(), id("many")).await;
    never_was(&clause("11, a cancelled claim never was, however late it arrives", "cancel")).await;
    is_unknown_again(&clause("12, a cancelled claim that took over is unknown again", "cancel what took over")).await;
}

/// Holds a [`Store`] that [holds the effects](Store::TRANSACTIONAL) to its contract, which differs
/// where a claim is an open transaction: others may not see what it is for, no lease ends it, and
/// whoever lets go of it has given it back. `id` as for [`store_contract`].
///
/// The clauses:
///
/// 1. a claim is won once, and its answer is kept
/// 2. what is let go was never claimed
/// 3. a released key is as new
/// 4. an abandoned claim is unknown, and is taken over on demand, by the same request
/// 5. what was taken over and is released is as new
/// 6. what is past its retention is gone
/// 7. of many claims at the same time one is won, and nobody waits for it
/// 8. a cancelled claim never was
///
/// That rows and record are committed together is for the store's own tests: only they know what a row is.
///
/// # Panics
///
/// If the store breaks a clause, with the clause, the call and what came of it.
pub async fn transactional_store_contract<S: Store>(store: Arc<S>, id: impl Fn(&str) -> RecordId) {
    let clause = |name, clause| Clause { name, store: &*store, id: id(clause) };
    is_held_once(&clause("1, a claim is won once, and its answer is kept", "once")).await;
    is_let_go(&clause("2, what is let go was never claimed", "let go")).await;
    is_as_new(&clause("3, a released key is as new", "release")).await;
    is_unknown(&clause(
        "4, an abandoned claim is unknown, and is taken over on demand, by the same request",
        "abandon",
    ))
    .await;
    is_released_after_all(&clause("5, what was taken over and is released is as new", "take over")).await;
    is_gone(&clause("6, what is past its retention is gone", "retention")).await;
    let name = "7, of many claims at the same time one is won, and nobody waits for it";
    one_of_many(name, store.clone(), id("many")).await;
    is_cancelled(&clause("8, a cancelled claim never was", "cancel")).await;
}

/// One clause: its calls panic with its name if the store answers what it must not.
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
            ClaimOutcome::Existing(state) => panic!("{self}: the claim should be won, and is known as {state:?}"),
            _ => panic!("{self}: the claim should be won, and is refused"),
        }
    }

    async fn is_refused(&self, claim: &Claim<'_>) {
        match said(self.name, "claim", self.store.claim(claim).await) {
            ClaimOutcome::Cancelled => {}
            ClaimOutcome::Acquired(_) => panic!("{self}: the claim should be refused, and is won"),
            ClaimOutcome::Existing(state) => panic!("{self}: the claim should be refused, and is known as {state:?}"),
            _ => panic!("{self}: the claim should be refused"),
        }
    }

    async fn lose(&self, claim: &Claim<'_>) -> RecordState {
        match said(self.name, "claim", self.store.claim(claim).await) {
            ClaimOutcome::Existing(state) => state,
            ClaimOutcome::Acquired(_) => panic!("{self}: the claim is won, and should not be"),
            _ => panic!("{self}: the claim is refused, and should be told what is known"),
        }
    }

    /// That what is known is `state`.
    async fn is_known_as(&self, state: Option<RecordState>) {
        self.same("look", said(self.name, "look", self.store.get(&self.id).await), state);
    }

    /// Until it is known as `state`: what is waited for is a lease or a retention of the store's own clock.
    async fn becomes(&self, state: Option<RecordState>) {
        let becomes = async {
            while said(self.name, "look", self.store.get(&self.id).await) != state {
                clock::sleep(SHORT / 8).await;
            }
        };
        let came = clock::until(clock::now().checked_add(PATIENCE), becomes).await;
        assert!(came.is_ok(), "{self}: after {PATIENCE:?} it is still not known as {state:?}");
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

    /// That it is running, with a lease between these.
    fn is_running(&self, state: &RecordState, least: Duration, most: Duration) {
        let right = matches!(state, RecordState::InProgress { fingerprint, lease_left, .. } if *fingerprint == Some(ONE)
            && (least..=most).contains(lease_left));
        assert!(right, "{self}: it should run with {least:?} to {most:?} left of its lease, and is {state:?}");
    }

    fn same<T: PartialEq + Debug>(&self, call: &str, got: T, expected: T) {
        assert!(got == expected, "{self}: {call} should say {expected:?}, and says {got:?}");
    }
}

impl<S> std::fmt::Display for Clause<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "store_contract, clause {}", self.name)
    }
}

/// What a call answered; a store that fails has not kept its contract.
fn said<T>(name: &str, call: &str, outcome: Result<T, StoreError>) -> T {
    match outcome {
        Ok(value) => value,
        Err(error) => panic!("store_contract, clause {name}: {call} fails: {error}"),
    }
}

/// Claims bear the names that the store gives: one that gives a name twice lets two claims win.
fn token<S: Store>(name: &str, store: &S) -> ClaimToken {
    match store.token() {
        Ok(token) => token,
        Err(error) => panic!("store_contract, clause {name}: no claim can be made: {error}"),
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
    // Nothing that lives is swept. (Others may share the store, so their number says nothing.)
    said(clause.name, "sweep", clause.store.purge_expired(1000).await);
    clause.is_known_as(Some(done)).await;
}

async fn is_held_once<S: Store>(clause: &Clause<'_, S>) {
    clause.is_known_as(None).await;
    let first = clause.claim(ONE, LONG);
    let session = clause.win(&first).await;
    let second = clause.claim(ONE, LONG);
    for state in [Some(clause.lose(&second).await), said(clause.name, "look", clause.store.get(&clause.id).await)] {
        let held = matches!(state, Some(RecordState::InProgress { fingerprint, .. }) if fingerprint.is_none_or(|of| of == ONE));
        assert!(held, "{clause}: it should be held, and is {state:?}");
    }
    clause.complete(&first, Some(session), end("done"), FinishOutcome::Stored).await;
    let done = RecordState::completed(ONE, record("done"));
    clause.same("claim", clause.lose(&second).await, done.clone());
    clause.same("claim", clause.lose(&clause.claim(OTHER, LONG)).await, done.clone());
    said(clause.name, "sweep", clause.store.purge_expired(1000).await);
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
    // A reply that was lost: the session of the first claim is dropped with it.
    drop(clause.win(&claim).await);
    let session = clause.win(&claim).await;
    clause.renew(&claim, true).await;
    clause.renew(&claim, true).await;
    clause.complete(&claim, Some(session), end("done"), FinishOutcome::Stored).await;
    clause.is_known_as(Some(RecordState::completed(ONE, record("done")))).await;
    // There is nothing left to renew.
    clause.renew(&claim, false).await;
}

async fn is_as_new<S: Store>(clause: &Clause<'_, S>) {
    let claim = clause.claim(ONE, LONG);
    let session = clause.win(&claim).await;
    clause.finish(&claim, Some(session), &End::Released, FinishOutcome::Stored).await;
    clause.is_known_as(None).await;
    // Another request may have it now.
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

    // Cancelled before it arrives. Whoever comes meanwhile is not disturbed by either.
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

    // A released token wins nothing, either, and its release can be repeated.
    clause.finish(&other, Some(session), &End::Released, FinishOutcome::Stored).await;
    clause.finish(&other, None, &End::Released, FinishOutcome::Stored).await;
    clause.is_refused(&other).await;
    clause.is_known_as(None).await;
    let abandoned = clause.claim(ONE, LONG);
    let session = clause.win(&abandoned).await;
    clause.is_refused(&other).await;

    // An end that nobody knows is not disturbed, either.
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
    // It took over, also when it is asked once more.
    drop(clause.win(&second).await);
    clause.finish(&second, None, &End::Cancelled, FinishOutcome::Stored).await;
    clause.is_known_as(Some(RecordState::unknown(ONE))).await;
    clause.is_refused(&second).await;

    // What takes over that, and so on.
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

    // What it would have taken over is still unknown.
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
    // Not unless it is asked for, and never by another request.
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
    // That was its end, which can be repeated: nobody has it now, its owner neither.
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
    // A reply that was lost, and then whatever else a confused owner may say.
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
    // And another request may have the key.
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
    // Kept until all have been told: a session that is dropped may give the key back.
    let claimed = claims.join_all().await;
    let won = claimed.iter().filter(|claimed| matches!(claimed, ClaimOutcome::Acquired(_))).count();
    assert!(won == 1, "store_contract, clause {name}: of {CROWD}, {won} are won");
}
