//! What each change does to an entry: the contract of every store, as pure functions.
//!
//! A store reads an entry, calls a function of this file, and writes the result, in one transaction.
//! So all stores keep the same promises, and only persist.

use std::time::Duration;

use steadfast::adapter;

use crate::change::{Change, Evidence, Outcome, Refusal, Terms};
use crate::clock::Now;
use crate::end::{End, Failed};
use crate::entry::{Entry, State, StoredRequest};
use crate::id::OperationId;

/// An operation that is about to be written down for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewEntry {
    /// Its identifier.
    pub id: OperationId,
    /// The submitter's name for it.
    pub name: Option<String>,
    /// The request.
    pub request: StoredRequest,
    /// The principal in whose name it is sent.
    pub principal: Option<String>,
    /// When it expires, in milliseconds from now, unless an attempt of it was made.
    pub expires_in_ms: Option<u64>,
}

impl NewEntry {
    /// Makes an entry that has nothing but an identifier and a request.
    #[must_use]
    pub fn new(id: OperationId, request: StoredRequest) -> Self {
        Self { id, name: None, request, principal: None, expires_in_ms: None }
    }
}

/// Makes the entry that is written down at `now`. With `terms` a worker takes it at once, and its
/// first attempt is under way.
#[must_use]
pub fn open(new: NewEntry, terms: Option<Terms>, now: Now) -> Entry {
    let NewEntry { id, name, request, principal, expires_in_ms } = new;
    let mut entry = Entry {
        id,
        name,
        request,
        principal,
        submitted_ms: now.ms,
        expires_ms: expires_in_ms.map(|time| now.ms.saturating_add(time)),
        first_sent_ms: None,
        settles_ms: None,
        attempts: 0,
        rounds: 0,
        may_have_been_processed: false,
        last_error: None,
        fence: 0,
        state: State::Waiting { due_ms: now.ms },
    };
    if let Some(terms) = terms {
        entry.fence = 1;
        mark(&mut entry, terms, now);
    }
    entry
}

/// Returns whether a second submission of a name is the same operation.
#[must_use]
pub fn is_same(entry: &Entry, new: &NewEntry) -> bool {
    entry.request.asks_for_same(&new.request) && entry.principal == new.principal
}

/// Applies a change. A refused one leaves the entry as it is.
///
/// # Errors
///
/// The change is not allowed now.
pub fn apply(entry: &mut Entry, change: &Change, now: Now) -> Result<(), Refusal> {
    match change {
        Change::Claim(terms) => claim(entry, *terms, now),
        Change::Mark { fence, terms } => {
            check_fence(entry, *fence)?;
            check_age(entry, now)?;
            mark(entry, *terms, now);
            Ok(())
        }
        Change::Settle { fence, outcome } => {
            check_fence(entry, *fence)?;
            settle(entry, outcome, now);
            Ok(())
        }
        Change::Cancel => cancel(entry, now),
        Change::Release => match &entry.state {
            State::Held { .. } => {
                entry.state = State::Waiting { due_ms: now.ms };
                Ok(())
            }
            other => Err(Refusal::NotHeld(other.label())),
        },
        Change::Resolve(end) => resolve(entry, end, now),
        Change::Acknowledge => match &mut entry.state {
            State::Ended { acknowledged_ms, .. } => {
                acknowledged_ms.get_or_insert(now.ms);
                Ok(())
            }
            _ => Err(Refusal::NotEnded),
        },
    }
}

/// Removes what an entry does not need any more. Returns `false` if that is all of it.
#[must_use]
pub fn sweep(entry: &mut Entry, now: Now) -> bool {
    let remembered = entry.remembered_ms();
    let State::Ended { end, drop_body_ms, acknowledged_ms, .. } = &mut entry.state else { return true };
    if acknowledged_ms.is_some_and(|at| at.saturating_add(remembered) <= now.ms) {
        return false;
    }
    if drop_body_ms.is_some_and(|at| at <= now.ms) {
        end.drop_body();
    }
    true
}

/// Frees the claims of a process that is known to be gone: the next worker need not wait for the end
/// of their leases.
pub fn end_lease(entry: &mut Entry) {
    if let State::Running { lease_ends_ms, .. } = &mut entry.state {
        *lease_ends_ms = 0;
    }
}

fn claim(entry: &mut Entry, terms: Terms, now: Now) -> Result<(), Refusal> {
    let was_marked = match &entry.state {
        _ if entry.due_ms().is_none_or(|due| due > now.ms) => return Err(Refusal::NotDue),
        State::Running { is_marked, .. } => *is_marked,
        _ => false,
    };
    // The worker of the last attempt is gone, and nobody knows how far that got.
    entry.may_have_been_processed |= was_marked;
    if entry.is_unsent() && entry.expires_ms.is_some_and(|expires| expires <= now.ms) {
        let never_sent = Failed::new("the operation has expired before it was sent");
        end(entry, End::Rejected(never_sent), None, now);
        return Ok(());
    }
    entry.fence = entry.fence.saturating_add(1);
    let lease_ends_ms = now.ms.saturating_add(terms.lease_ms);
    entry.state = State::Running { lease_ends_ms, is_marked: false, is_first_send: false };
    // Saves a commit. What may be a repeat is marked only when the client has found it licensed.
    if !entry.may_have_been_processed {
        mark(entry, terms, now);
    }
    Ok(())
}

fn check_fence(entry: &Entry, fence: u64) -> Result<(), Refusal> {
    // A lease that has ended, but that nobody has taken over, is still the worker's.
    let is_ours = matches!(entry.state, State::Running { .. }) && entry.fence == fence;
    if is_ours { Ok(()) } else { Err(Refusal::Fenced) }
}

/// Checks that the API still knows the key. Otherwise a repeat would be another operation.
fn check_age(entry: &Entry, now: Now) -> Result<(), Refusal> {
    let is_repeat = entry.may_have_been_processed || matches!(entry.state, State::Running { is_marked: true, .. });
    let (Some(first), true, true) = (entry.first_sent_ms, is_repeat, entry.request.key.is_some()) else {
        return Ok(());
    };
    if now.doubtful_until_ms.is_some_and(|until| first <= until) {
        return Err(Refusal::ClockBehind);
    }
    if is_key_old(entry, now) { Err(Refusal::KeyForgotten) } else { Ok(()) }
}

fn mark(entry: &mut Entry, terms: Terms, now: Now) {
    let is_first_send = entry.first_sent_ms.is_none() || is_first_send(entry);
    entry.attempts = entry.attempts.saturating_add(1);
    entry.first_sent_ms.get_or_insert(now.ms);
    entry.settles_ms = Some(now.ms.saturating_add(terms.settling_ms));
    let lease_ends_ms = now.ms.saturating_add(terms.lease_ms);
    entry.state = State::Running { lease_ends_ms, is_marked: true, is_first_send };
}

fn settle(entry: &mut Entry, outcome: &Outcome, now: Now) {
    match outcome {
        Outcome::Postponed { after_ms, settling_ms, evidence, error } => {
            learn(entry, *evidence);
            if evidence.may_have_been_processed && matches!(entry.state, State::Running { is_marked: true, .. }) {
                entry.settles_ms = Some(now.ms.saturating_add(*settling_ms));
            }
            entry.rounds = entry.rounds.saturating_add(1);
            entry.last_error = Some(error.clone());
            entry.state = State::Waiting { due_ms: now.ms.saturating_add(*after_ms) };
        }
        Outcome::Held { evidence, reason } => {
            learn(entry, *evidence);
            entry.state = State::Held { since_ms: now.ms, reason: reason.clone() };
        }
        Outcome::NotApplied => {
            learn(entry, Evidence::new(false, false));
            entry.state = State::Waiting { due_ms: now.ms };
        }
        Outcome::Ended { end: how, keep_body_ms } => end(entry, how.clone(), *keep_body_ms, now),
    }
}

/// Takes over what is known by now. A key that the server has not seen is as good as new, so its age
/// counts from the next attempt. One that it has seen ages on: it may keep a key from its first sight.
fn learn(entry: &mut Entry, evidence: Evidence) {
    entry.may_have_been_processed = evidence.may_have_been_processed;
    if evidence.may_have_been_processed {
        return;
    }
    entry.settles_ms = None;
    if evidence.is_unsent && is_first_send(entry) {
        entry.first_sent_ms = None;
    }
}

fn is_first_send(entry: &Entry) -> bool {
    matches!(entry.state, State::Running { is_first_send: true, .. })
}

fn end(entry: &mut Entry, end: End, keep_body_ms: Option<u64>, now: Now) {
    let drop_body_ms = keep_body_ms.map(|time| now.ms.saturating_add(time));
    // The worker knows more than what was written down before its last attempt.
    entry.may_have_been_processed = !matches!(end, End::Rejected(_));
    entry.state = State::Ended { end, at_ms: now.ms, drop_body_ms, acknowledged_ms: None };
}

fn cancel(entry: &mut Entry, now: Now) -> Result<(), Refusal> {
    match &entry.state {
        State::Ended { end, .. } => return Err(Refusal::HasEnded(end.label())),
        _ if !entry.is_unsent() => return Err(Refusal::WasSent),
        _ => {}
    }
    end(entry, End::Rejected(Failed::new("the operation was cancelled before it was sent")), None, now);
    Ok(())
}

fn resolve(entry: &mut Entry, how: &End, now: Now) -> Result<(), Refusal> {
    match &entry.state {
        State::Running { lease_ends_ms, .. } if *lease_ends_ms > now.ms => return Err(Refusal::Running),
        State::Ended { end, .. } if !matches!(end, End::Unknown(_)) => return Err(Refusal::HasEnded(end.label())),
        _ => {}
    }
    end(entry, how.clone(), None, now);
    Ok(())
}

/// Returns whether the API may have forgotten the key.
#[must_use]
pub fn is_key_old(entry: &Entry, now: Now) -> bool {
    let age = entry.first_sent_ms.map(|first| Duration::from_millis(now.ms.saturating_sub(first)));
    entry.request.key.is_some() && age.is_some_and(|age| age >= adapter::usable(entry.request.retention()))
}

/// Returns after which time the server can be asked whether it has acted on an earlier attempt.
#[must_use]
pub fn time_to_settle(entry: &Entry, now: Now) -> Duration {
    Duration::from_millis(entry.settles_ms.unwrap_or_default().saturating_sub(now.ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::end::Answer;
    use crate::entry::StoredKey;
    use crate::headers::StoredHeaders;

    const TERMS: Terms = Terms { lease_ms: 60_000, settling_ms: 100_000 };
    const DAY: u64 = 86_400_000;

    fn at(ms: u64) -> Now {
        Now::certain(ms)
    }

    fn new(key: bool) -> NewEntry {
        let key = key.then(|| StoredKey { text: "order-1".to_owned(), is_minted: false, spelling: None });
        let request = StoredRequest {
            method: "POST".to_owned(),
            url: "https://api.test/charges".to_owned(),
            headers: StoredHeaders::default(),
            body: b"12 EUR".to_vec(),
            key,
            retention_ms: DAY,
            idempotent: None,
        };
        NewEntry::new(steadfast::uuid::Uuid::nil().into(), request)
    }

    fn marked() -> Entry {
        open(new(true), Some(TERMS), at(0))
    }

    fn settle(fence: u64, outcome: Outcome) -> Change {
        Change::Settle { fence, outcome }
    }

    const LOST: Evidence = Evidence { may_have_been_processed: true, is_unsent: false };
    const REFUSED: Evidence = Evidence { may_have_been_processed: false, is_unsent: false };
    const UNSENT: Evidence = Evidence { may_have_been_processed: false, is_unsent: true };

    fn postponed(evidence: Evidence) -> Outcome {
        Outcome::Postponed { after_ms: 5_000, settling_ms: 9_000, evidence, error: "lost".to_owned() }
    }

    fn ended() -> Outcome {
        let end = End::Answer(Answer::new(http::StatusCode::OK, "ok"));
        Outcome::Ended { end, keep_body_ms: Some(1_000) }
    }

    fn apply_at(entry: &mut Entry, change: Change, ms: u64) -> Result<(), Refusal> {
        let before = entry.clone();
        let applied = apply(entry, &change, at(ms));
        assert!(applied.is_ok() || *entry == before, "a refused change has changed the entry");
        applied
    }

    #[test]
    fn claim_of_unsent_operation_marks_it() {
        let mut entry = open(new(true), None, at(7));
        assert!(entry.is_unsent() && entry.due_ms() == Some(7));
        apply_at(&mut entry, Change::Claim(TERMS), 7).unwrap();
        assert_eq!((entry.fence, entry.attempts, entry.first_sent_ms), (1, 1, Some(7)));
        assert_eq!(entry.state, State::Running { lease_ends_ms: 60_007, is_marked: true, is_first_send: true });
        assert_eq!(apply_at(&mut entry, Change::Claim(TERMS), 60_006), Err(Refusal::NotDue));
    }

    #[test]
    fn worker_that_was_taken_over_can_change_nothing() {
        let mut entry = marked();
        // Its lease is over, and nobody has taken over yet: it is still the owner.
        apply_at(&mut entry, Change::Mark { fence: 1, terms: TERMS }, 70_000).unwrap();
        apply_at(&mut entry, Change::Claim(TERMS), 130_000).unwrap();
        assert!(entry.may_have_been_processed && entry.fence == 2);
        assert_eq!(entry.state, State::Running { lease_ends_ms: 190_000, is_marked: false, is_first_send: false });
        for change in [settle(1, ended()), settle(1, postponed(REFUSED)), Change::Mark { fence: 1, terms: TERMS }] {
            assert_eq!(apply_at(&mut entry, change, 130_001), Err(Refusal::Fenced));
        }
        apply_at(&mut entry, settle(2, ended()), 130_001).unwrap();
        assert_eq!(apply_at(&mut entry, settle(2, postponed(REFUSED)), 130_002), Err(Refusal::Fenced));
    }

    #[test]
    fn key_that_the_server_has_not_seen_is_as_good_as_new() {
        let mut entry = marked();
        apply_at(&mut entry, Change::Mark { fence: 1, terms: TERMS }, 5).unwrap();
        apply_at(&mut entry, settle(1, postponed(UNSENT)), 10).unwrap();
        assert!(entry.is_unsent() && entry.due_ms() == Some(5_010) && entry.settles_ms.is_none());
        apply_at(&mut entry, Change::Claim(TERMS), 3 * DAY).unwrap();
        assert_eq!(entry.first_sent_ms, Some(3 * DAY));
    }

    #[test]
    fn key_that_the_server_has_refused_ages_on() {
        let mut entry = marked();
        apply_at(&mut entry, settle(1, postponed(REFUSED)), 10).unwrap();
        assert!(!entry.is_unsent() && !entry.may_have_been_processed);
        // A later round of which nothing leaves takes nothing back.
        apply_at(&mut entry, Change::Claim(TERMS), 6_000).unwrap();
        apply_at(&mut entry, settle(2, postponed(UNSENT)), 6_001).unwrap();
        assert_eq!(entry.first_sent_ms, Some(0));
        // It may still be sent, and not a second time.
        apply_at(&mut entry, Change::Claim(TERMS), 2 * DAY).unwrap();
        let again = Change::Mark { fence: 3, terms: TERMS };
        assert_eq!(apply_at(&mut entry, again, 2 * DAY), Err(Refusal::KeyForgotten));
    }

    #[test]
    fn repeat_is_refused_once_the_key_may_be_forgotten() {
        let last = DAY - DAY / 20 - 1;
        let mut entry = marked();
        apply_at(&mut entry, settle(1, postponed(LOST)), 10).unwrap();
        assert_eq!(entry.settles_ms, Some(9_010));
        apply_at(&mut entry, Change::Claim(TERMS), last).unwrap();
        let mark = || Change::Mark { fence: 2, terms: TERMS };
        assert_eq!(apply_at(&mut entry.clone(), mark(), last), Ok(()));
        assert_eq!(apply_at(&mut entry, mark(), last + 1), Err(Refusal::KeyForgotten));
        // Without a key the method has to license it, and the client sees to that.
        let mut keyless = open(new(false), Some(TERMS), at(0));
        assert_eq!(apply_at(&mut keyless, Change::Mark { fence: 1, terms: TERMS }, 9 * DAY), Ok(()));
    }

    #[test]
    fn repeat_is_refused_if_the_clock_went_back() {
        let mut entry = marked();
        let now = Now { ms: 1_000, doubtful_until_ms: Some(0) };
        let mark = Change::Mark { fence: 1, terms: TERMS };
        assert_eq!(apply(&mut entry, &mark, now), Err(Refusal::ClockBehind));
        // What is marked after the step is not in doubt.
        let mut later = open(new(true), Some(TERMS), at(1));
        assert_eq!(apply(&mut later, &mark, now), Ok(()));
    }

    #[test]
    fn end_says_whether_it_may_have_been_processed() {
        let answer = End::Answer(Answer::new(http::StatusCode::OK, "ok"));
        for (end, may) in [
            (answer, true),
            (End::Unknown(Failed::new("lost")), true),
            (End::Rejected(Failed::new("no such card")), false),
        ] {
            let mut entry = marked();
            apply_at(&mut entry, settle(1, Outcome::Ended { end, keep_body_ms: None }), 10).unwrap();
            assert_eq!(entry.may_have_been_processed, may, "{entry:?}");
        }
    }

    #[test]
    fn only_what_was_never_sent_expires_or_is_cancelled() {
        let fresh = || NewEntry { expires_in_ms: Some(1_000), ..new(true) };
        let mut entry = open(fresh(), None, at(0));
        apply_at(&mut entry, Change::Claim(TERMS), 1_000).unwrap();
        assert!(matches!(entry.end(), Some(End::Rejected(_))) && entry.attempts == 0);
        let mut entry = open(fresh(), Some(TERMS), at(0));
        apply_at(&mut entry, Change::Claim(TERMS), 60_000).unwrap();
        assert!(entry.end().is_none() && entry.may_have_been_processed);
        assert_eq!(apply_at(&mut entry, Change::Cancel, 60_001), Err(Refusal::WasSent));
        let mut entry = open(fresh(), None, at(0));
        apply_at(&mut entry, Change::Cancel, 1).unwrap();
        assert!(matches!(entry.end(), Some(End::Rejected(_))));
        assert_eq!(apply_at(&mut entry, Change::Claim(TERMS), 5_000), Err(Refusal::NotDue));
    }

    #[test]
    fn held_operation_waits_for_its_release() {
        let mut entry = marked();
        let held = Outcome::Held { evidence: REFUSED, reason: "status 401".to_owned() };
        apply_at(&mut entry, settle(1, held), 10).unwrap();
        assert_eq!((entry.due_ms(), apply_at(&mut entry, Change::Claim(TERMS), DAY)), (None, Err(Refusal::NotDue)));
        apply_at(&mut entry, Change::Release, DAY).unwrap();
        assert_eq!(apply_at(&mut entry, Change::Release, DAY), Err(Refusal::NotHeld("waiting")));
        apply_at(&mut entry, Change::Claim(TERMS), DAY).unwrap();
    }

    #[test]
    fn person_cannot_end_what_a_worker_carries_out() {
        let end = || Change::Resolve(End::Rejected(Failed::new("seen in the books")));
        let mut entry = marked();
        assert_eq!(apply_at(&mut entry, end(), 59_999), Err(Refusal::Running));
        apply_at(&mut entry, end(), 60_000).unwrap();
        assert_eq!(apply_at(&mut entry, settle(1, ended()), 60_001), Err(Refusal::Fenced));
        assert_eq!(apply_at(&mut entry, end(), 60_001), Err(Refusal::HasEnded("rejected")));
    }

    #[test]
    fn nothing_unacknowledged_is_forgotten() {
        let mut entry = marked();
        entry.name = Some("order-1".to_owned());
        assert_eq!(apply_at(&mut entry, Change::Acknowledge, 5), Err(Refusal::NotEnded));
        apply_at(&mut entry, settle(1, ended()), 10).unwrap();
        assert!(sweep(&mut entry, at(1_009)) && entry.end().unwrap().answer().unwrap().body().is_some());
        assert!(sweep(&mut entry, at(1_010)) && entry.end().unwrap().answer().unwrap().body().is_none());
        assert!(entry.sweep_ms().is_none() && sweep(&mut entry, at(100 * DAY)));
        apply_at(&mut entry, Change::Acknowledge, 20).unwrap();
        apply_at(&mut entry, Change::Acknowledge, 30).unwrap();
        // Its name is remembered for the retention of its key.
        assert_eq!(entry.sweep_ms(), Some(20 + DAY));
        assert!(sweep(&mut entry, at(19 + DAY)) && !sweep(&mut entry, at(20 + DAY)));
    }

    #[test]
    fn lease_of_dead_process_ends_at_once() {
        let mut entry = marked();
        end_lease(&mut entry);
        apply_at(&mut entry, Change::Claim(TERMS), 1).unwrap();
        assert!(entry.may_have_been_processed);
        // The server may still work on what the dead process has sent.
        assert_eq!(time_to_settle(&entry, at(1)), Duration::from_millis(99_999));
    }
}
