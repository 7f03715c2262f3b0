//! The database, and the layer around it. A session holds the key until it ends, and its rows and
//! its record are committed together or not at all.

use std::time::Duration;

use steadfast_core::protocol::IdempotencyStatus;

use super::super::claims::{fingerprint, lost, record};
use super::{CALLERS, Step, Transactions};
use crate::outcome::OnUnknown;
use crate::rules::{self, AfterAnswer, AfterClaim, AfterFinish, CompletionAnswer, LookedUp, Repeat, Written};
use crate::{ClaimOutcome, Completion, End, ExecutionOutcome, FinishOutcome, RecordState, StoreError};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in super::super) struct Database {
    pub(super) callers: [Phase; CALLERS as usize],
    /// The session that holds the key.
    pub(super) session: Option<Session>,
    /// The token whose record is committed; `Some(None)` for an unknown outcome.
    pub(super) record: Option<Option<u8>>,
    /// The tokens whose rows are committed, as bits.
    pub(super) effects: u8,
    faults: u8,
    pub(super) told_untruth: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Idle,
    Claiming {
        is_second_call: bool,
    },
    Running {
        acted: bool,
    },
    Ending {
        acted: bool,
        end: Ends,
        /// The COMMIT was sent, and its reply is lost.
        is_again: bool,
        is_told: bool,
    },
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ends {
    Complete,
    Release,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Session {
    pub(super) token: u8,
    pub(super) state: SessionState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum SessionState {
    TransactionHandle,
    /// Its connection is lost, and the database has not noticed yet.
    Orphaned,
    /// The COMMIT is in progress.
    Committing {
        acted: bool,
        end: Ends,
    },
}

impl Database {
    pub(super) fn new(faults: u8) -> Self {
        Self {
            callers: [Phase::Idle; CALLERS as usize],
            session: None,
            record: None,
            effects: 0,
            faults,
            told_untruth: false,
        }
    }

    pub(super) fn take(&mut self, model: &Transactions, step: Step) -> Option<()> {
        match step {
            Step::Ask(caller) => self.set(caller, Phase::Claiming { is_second_call: false }),
            Step::Claim(caller) => {
                let reply = self.claim(caller);
                self.hear(caller, Ok(reply));
            }
            Step::LoseClaim(caller) => {
                self.fault()?;
                if matches!(self.claim(caller), ClaimOutcome::Acquired(())) {
                    self.session = Some(Session { token: caller, state: SessionState::Orphaned });
                }
                self.hear(caller, Err(lost()));
            }
            Step::Act(caller) => self.set(caller, Phase::Running { acted: true }),
            Step::Answer(caller) => self.answer(caller, None),
            // All its effects are rolled back.
            Step::Decline(caller) => {
                self.fault()?;
                self.answer(caller, Some(ExecutionOutcome::NotExecuted));
            }
            Step::Fail(caller) => {
                self.fault()?;
                self.ends(caller, ends_of(&rules::end_without_answer()));
            }
            Step::Commit(caller) => {
                let Phase::Ending { acted, end, .. } = self.phase(caller) else { return None };
                self.commit(caller, acted, end);
                self.settle(model, caller, Ok(FinishOutcome::Stored));
            }
            Step::Conflict(caller) => {
                self.fault()?;
                self.session = None;
                self.settle(model, caller, Err(StoreError::RolledBack("a conflict".into())));
            }
            Step::LoseCommit(caller) => {
                self.fault()?;
                let Phase::Ending { acted, end, .. } = self.phase(caller) else { return None };
                self.session = Some(Session { token: caller, state: SessionState::Committing { acted, end } });
                self.settle(model, caller, Err(lost()));
            }
            Step::Resolve(commits) => self.resolve(commits)?,
            Step::LookUp(caller) => self.look_up(model, caller)?,
            Step::StopWaiting(caller) => {
                let Phase::Ending { acted, end, is_again, .. } = self.phase(caller) else { return None };
                self.tell_end(caller, acted, end, None);
                self.set(caller, Phase::Ending { acted, end, is_again, is_told: true });
            }
            Step::GiveUp(caller) => {
                // A final end would be a second one.
                self.told_untruth |= rules::last_word(true).is_some();
                self.over(caller, Written::GivenUp);
            }
            Step::Crash(caller) => self.crash(caller)?,
        }
        Some(())
    }

    fn fault(&mut self) -> Option<()> {
        self.faults = self.faults.checked_sub(1)?;
        Some(())
    }

    fn phase(&self, caller: u8) -> Phase {
        self.callers[usize::from(caller)]
    }

    fn set(&mut self, caller: u8, phase: Phase) {
        self.callers[usize::from(caller)] = phase;
    }

    /// Acquires the key, or returns its state. An unknown outcome is taken over, as by default.
    fn claim(&mut self, token: u8) -> ClaimOutcome<()> {
        match (self.session, self.record) {
            (Some(_), _) => ClaimOutcome::Existing(RecordState::in_progress(None, Duration::ZERO)),
            (None, Some(Some(answer))) => {
                ClaimOutcome::Existing(RecordState::completed(fingerprint(0), record(answer)))
            }
            (None, None | Some(None)) => {
                self.session = Some(Session { token, state: SessionState::TransactionHandle });
                ClaimOutcome::Acquired(())
            }
        }
    }

    fn hear(&mut self, caller: u8, reply: Result<ClaimOutcome<()>, StoreError>) {
        let Phase::Claiming { is_second_call } = self.phase(caller) else { return };
        if !is_second_call && rules::is_lost(&reply) {
            return self.set(caller, Phase::Claiming { is_second_call: true });
        }
        let next = match rules::after_claim(reply, || false) {
            AfterClaim::Run(()) => Phase::Running { acted: false },
            AfterClaim::ClaimAgain => Phase::Claiming { is_second_call: false },
            AfterClaim::Refuse(_) => Phase::Over,
            AfterClaim::Tell(state) => {
                let is_told = matches!(rules::repeat(&state, fingerprint(0), false, || None::<()>), Repeat::Tell);
                // The replayed response must belong to rows that exist.
                let is_true = !matches!(state, RecordState::Completed { .. })
                    || self.record.flatten().is_some_and(|t| self.has(t));
                self.told_untruth |= !is_told || !is_true;
                Phase::Over
            }
        };
        self.set(caller, next);
    }

    fn has(&self, token: u8) -> bool {
        self.effects & (1 << token) != 0
    }

    fn answer(&mut self, caller: u8, verdict: Option<ExecutionOutcome>) {
        let end = match rules::after_answer(verdict, verdict.is_none(), || false) {
            AfterAnswer::Complete => Ends::Complete,
            AfterAnswer::Release => Ends::Release,
            AfterAnswer::Unknown => Ends::Unknown,
        };
        self.ends(caller, end);
    }

    fn ends(&mut self, caller: u8, end: Ends) {
        if let Phase::Running { acted } = self.phase(caller) {
            self.set(caller, Phase::Ending { acted, end, is_again: false, is_told: false });
        }
    }

    /// The transaction ends, with its rows and its record.
    fn commit(&mut self, token: u8, acted: bool, end: Ends) {
        self.session = None;
        match end {
            Ends::Complete => {
                self.record = Some(Some(token));
                self.effects |= u8::from(acted) << token;
            }
            Ends::Release => self.record = None,
            Ends::Unknown => self.record = Some(None),
        }
    }

    fn resolve(&mut self, commits: bool) -> Option<()> {
        match self.session? {
            Session { token, state: SessionState::Committing { acted, end } } if commits => {
                self.commit(token, acted, end)
            }
            Session { state: SessionState::TransactionHandle, .. } => return None,
            Session { .. } if !commits => self.session = None,
            Session { .. } => return None,
        }
        Some(())
    }

    /// Handles the reply to an end, as `Ending::write` does.
    fn settle(&mut self, model: &Transactions, caller: u8, reply: Result<FinishOutcome, StoreError>) {
        match rules::after_finish(reply) {
            AfterFinish::Stored => self.over(caller, Written::Stored),
            AfterFinish::Lost => self.over(caller, Written::Lost),
            AfterFinish::RolledBack(_) => self.rolled_back(model, caller),
            AfterFinish::Again(error) => {
                if let (true, Phase::Ending { acted, end, is_told, .. }) = (rules::may_pass(&error), self.phase(caller))
                {
                    self.set(caller, Phase::Ending { acted, end, is_again: true, is_told });
                } else {
                    self.over(caller, Written::GivenUp);
                }
            }
        }
    }

    fn rolled_back(&mut self, model: &Transactions, caller: u8) {
        if model.writes_again {
            // In a transaction of its own, without the handler's rows.
            self.record = Some(Some(caller));
            return self.over(caller, Written::Stored);
        }
        self.over(caller, Written::RolledBack);
    }

    fn look_up(&mut self, model: &Transactions, caller: u8) -> Option<()> {
        let Phase::Ending { end, .. } = self.phase(caller) else { return None };
        let was = self.session;
        let claimed = self.claim(caller);
        self.session = was;
        match rules::looked_up(claimed, &end_of(caller, end)) {
            LookedUp::NotYet => return None,
            LookedUp::Written(Written::RolledBack) => self.rolled_back(model, caller),
            LookedUp::Written(written) => self.over(caller, written),
            LookedUp::WriteUnknown(()) => {
                self.record = Some(None);
                self.over(caller, Written::Stored);
            }
        }
        Some(())
    }

    fn over(&mut self, caller: u8, written: Written) {
        if let Phase::Ending { acted, end, is_told: false, .. } = self.phase(caller) {
            self.tell_end(caller, acted, end, Some(written));
        }
        self.set(caller, Phase::Over);
    }

    /// Responds to the client at the end, and checks whether the response is true.
    fn tell_end(&mut self, caller: u8, acted: bool, end: Ends, by_then: Option<Written>) {
        let is_under_way = self.session.is_some_and(|session| session.token == caller);
        let left_nothing = !self.has(caller) && self.record != Some(Some(caller)) && !is_under_way;
        let is_true = match end {
            Ends::Complete => match rules::response_after_completion(by_then, false, true) {
                CompletionAnswer::WithStatus(_) => acted && self.has(caller) && self.record == Some(Some(caller)),
                CompletionAnswer::NotExecuted | CompletionAnswer::RolledBack => left_nothing,
                CompletionAnswer::TransactionLost => true,
            },
            Ends::Release => match rules::status_after_release(by_then) {
                IdempotencyStatus::Released => left_nothing,
                _ => true,
            },
            // A repeat may run, and will: none of this one's effects remain.
            Ends::Unknown => {
                matches!(rules::status_after_unknown(OnUnknown::Rerun, false), IdempotencyStatus::Released)
                    && !self.has(caller)
            }
        };
        self.told_untruth |= !is_true;
    }

    /// The process ends. The database rolls back its sessions; a COMMIT that was sent continues.
    fn crash(&mut self, caller: u8) -> Option<()> {
        self.fault()?;
        if self.session == Some(Session { token: caller, state: SessionState::TransactionHandle }) {
            self.session = None;
        }
        self.set(caller, Phase::Over);
        Some(())
    }
}

fn end_of(token: u8, end: Ends) -> End {
    match end {
        Ends::Complete => End::Completed(Completion::new(record(token), Duration::ZERO)),
        Ends::Release => End::Released,
        Ends::Unknown => End::Unknown,
    }
}

fn ends_of(end: &End) -> Ends {
    match end {
        End::Completed(_) => Ends::Complete,
        End::Released | End::Cancelled => Ends::Release,
        End::Unknown => Ends::Unknown,
    }
}
