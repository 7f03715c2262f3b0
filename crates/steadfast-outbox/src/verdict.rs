//! What a round of an operation means: the end, another round, or a question. Pure.

use std::time::Duration;

use http::StatusCode;
use steadfast::policy::StopReason;
use steadfast::{Error, ErrorKind, Reach};

use crate::change::{Evidence, Refusal};
use crate::end::{Answer, Failed};

/// What follows from a round that brought no 2xx response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The server has carried it out, and the body of its response is lost.
    Answered(Answer),
    /// The server has not carried it out, and will not.
    Rejected(Failed),
    /// Another round may succeed.
    TryAgain { after: Option<Duration>, evidence: Evidence, error: String },
    /// It waits for a person.
    Hold { evidence: Evidence, reason: String },
    /// Nobody may send it again, unless somebody knows that the server has not carried it out.
    Ask(Failed),
    /// Another worker has it.
    Lost,
}

/// Why the outbox itself has stopped a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// The store has refused the mark of an attempt.
    Refused(Refusal),
    /// The lease was over before the request could leave.
    LeaseOver,
    /// The store has failed.
    Store(String),
}

/// The facts about a round that has failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) kind: Option<ErrorKind>,
    pub(crate) stop: Option<StopReason>,
    pub(crate) status: Option<StatusCode>,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) may_have_been_processed: bool,
    /// Nothing of this round was sent.
    pub(crate) is_unsent: bool,
    pub(crate) failed: Failed,
    /// An earlier process has submitted the operation.
    pub(crate) is_taken_up: bool,
    /// The API may have forgotten the key.
    pub(crate) is_key_old: bool,
    pub(crate) stopped: Option<Stopped>,
}

impl Facts {
    /// Reads the facts from an error of the client.
    pub(crate) fn of(error: &Error, answer: Option<Answer>) -> Self {
        Self {
            kind: Some(error.kind()),
            stop: error.stop_reason(),
            status: error.status(),
            retry_after: error.retry_after(),
            may_have_been_processed: error.may_have_been_processed(),
            is_unsent: error.attempts().iter().all(|attempt| attempt.reach() == Reach::NotSent),
            failed: Failed { message: error.to_string(), answer },
            ..Self::default()
        }
    }
}

/// Judges a round that has failed.
pub(crate) fn judge(facts: Facts) -> Verdict {
    let Facts { may_have_been_processed, failed, .. } = facts;
    let evidence = Evidence::new(may_have_been_processed, facts.is_unsent);
    let again = |after: Option<Duration>, error: String| Verdict::TryAgain { after, evidence, error };
    let finally =
        |failed: Failed| if may_have_been_processed { Verdict::Ask(failed) } else { Verdict::Rejected(failed) };
    match facts.stopped {
        Some(Stopped::Refused(refusal @ (Refusal::KeyForgotten | Refusal::ClockBehind))) => {
            let failed = Failed { message: refusal.to_string(), ..failed };
            return if may_have_been_processed { Verdict::Ask(failed) } else { again(None, failed.message) };
        }
        Some(Stopped::Refused(_)) => return Verdict::Lost,
        Some(Stopped::LeaseOver) => {
            return again(Some(Duration::ZERO), "the lease was over before the attempt".to_owned());
        }
        Some(Stopped::Store(error)) => return again(None, error),
        None => {}
    }
    let is_success = facts.status.is_some_and(|status| status.is_success());
    let is_body_lost = matches!(facts.kind, Some(ErrorKind::TooLarge | ErrorKind::ResponseBody));
    if matches!(facts.kind, Some(ErrorKind::Credentials | ErrorKind::AttemptHook)) {
        return Verdict::Hold { evidence, reason: failed.message };
    }
    // A deployment that has lost its credentials would end everything that it takes up.
    let is_refused = matches!(facts.status, Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN));
    if is_refused && facts.is_taken_up {
        return Verdict::Hold { evidence, reason: failed.message };
    }
    let answer = failed.answer.clone();
    let verdict = match facts.stop {
        Some(StopReason::NotRepeatable | StopReason::KeyNotTrusted | StopReason::OutcomeUnknown) => finally(failed),
        Some(StopReason::DeadlineExceeded) if facts.is_unsent && facts.is_key_old => finally(failed),
        Some(
            StopReason::AttemptsExhausted
            | StopReason::RetryAfterTooLong
            | StopReason::DeadlineExceeded
            | StopReason::CircuitOpen
            | StopReason::BudgetExhausted
            | StopReason::Nested,
        ) => again(facts.retry_after, failed.message),
        _ => finally(failed),
    };
    match (verdict, answer) {
        (Verdict::Ask(_), Some(answer)) if is_success && is_body_lost => Verdict::Answered(answer.without_body()),
        (verdict, _) => verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Failed {
        Failed::new("the reason")
    }

    fn facts(stop: StopReason, may_have_been_processed: bool) -> Facts {
        Facts { stop: Some(stop), may_have_been_processed, failed: failed(), ..Facts::default() }
    }

    #[test]
    fn only_what_was_never_processed_is_rejected() {
        assert_eq!(judge(facts(StopReason::Permanent, false)), Verdict::Rejected(failed()));
        assert_eq!(judge(facts(StopReason::Permanent, true)), Verdict::Ask(failed()));
        assert_eq!(judge(facts(StopReason::Replayed, true)), Verdict::Ask(failed()));
        assert_eq!(judge(facts(StopReason::KeyNotTrusted, true)), Verdict::Ask(failed()));
    }

    #[test]
    fn success_without_its_body_is_an_answer() {
        let answer = Answer::new(StatusCode::CREATED, "");
        let cut = Failed { answer: Some(answer.clone()), ..failed() };
        let facts = Facts { status: Some(StatusCode::CREATED), failed: cut, ..facts(StopReason::NotRepeatable, true) };
        let with = |kind| judge(Facts { kind: Some(kind), ..facts.clone() });
        assert_eq!(with(ErrorKind::ResponseBody), Verdict::Answered(answer.without_body()));
        // A classifier of the user's has called it a failure.
        assert!(matches!(with(ErrorKind::Status), Verdict::Ask(_)));
    }

    #[test]
    fn passing_reasons_are_tried_again() {
        for stop in [StopReason::AttemptsExhausted, StopReason::CircuitOpen, StopReason::BudgetExhausted] {
            let after = Some(Duration::from_secs(7));
            let verdict = judge(Facts { retry_after: after, ..facts(stop, true) });
            assert_eq!(
                verdict,
                Verdict::TryAgain { after, evidence: Evidence::new(true, false), error: "the reason".into() }
            );
        }
    }

    #[test]
    fn refused_credentials_hold_what_was_taken_up() {
        let refused = Facts { status: Some(StatusCode::FORBIDDEN), ..facts(StopReason::Permanent, false) };
        assert_eq!(judge(refused.clone()), Verdict::Rejected(failed()));
        let hold = Verdict::Hold { evidence: Evidence::new(false, false), reason: "the reason".into() };
        assert_eq!(judge(Facts { is_taken_up: true, ..refused }), hold);
        let missing = Facts { kind: Some(ErrorKind::Credentials), ..facts(StopReason::Permanent, false) };
        assert_eq!(judge(missing), hold);
    }

    #[test]
    fn key_that_is_forgotten_leads_to_a_question() {
        let old = Stopped::Refused(Refusal::KeyForgotten);
        let stopped = |may| judge(Facts { stopped: Some(old.clone()), ..facts(StopReason::Permanent, may) });
        assert!(matches!(stopped(true), Verdict::Ask(_)) && matches!(stopped(false), Verdict::TryAgain { .. }));
        let late = Facts { is_unsent: true, is_key_old: true, ..facts(StopReason::DeadlineExceeded, true) };
        assert_eq!(judge(late), Verdict::Ask(failed()));
    }

    #[test]
    fn worker_that_was_fenced_writes_nothing() {
        let fenced = Some(Stopped::Refused(Refusal::Fenced));
        assert_eq!(judge(Facts { stopped: fenced, ..facts(StopReason::Permanent, true) }), Verdict::Lost);
    }
}
