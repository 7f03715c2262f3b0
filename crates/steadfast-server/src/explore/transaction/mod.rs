//! The same for a store that shares one transaction with the handler's rows. It has no leases, and
//! it has rollbacks.

mod database;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stateright::{Model, Path, Property};

use self::database::{Database, Phase, SessionState};

pub(super) const ONE_EFFECT: &str = "an operation has one effect";
pub(super) const TOGETHER: &str = "the record and the rows of an operation are committed together";
pub(super) const TRUE: &str = "what the client is told is true";
pub(super) const NOT_STUCK: &str = "a session that holds the key has an owner, or is ended by the database";

const CALLERS: u8 = 3;

#[derive(Clone, Debug)]
pub(super) struct Transactions {
    pub(super) faults: u8,
    /// The broken design: an end that was rolled back is written again, in another transaction.
    pub(super) writes_again: bool,
    pub(super) only: Option<&'static str>,
    pub(super) counts: Arc<Counts>,
}

impl Transactions {
    pub(super) fn new(faults: u8) -> Self {
        Self { faults, writes_again: false, only: None, counts: Arc::default() }
    }
}

/// How often each kind of step happened.
#[derive(Debug, Default)]
pub(super) struct Counts([AtomicU64; KINDS.len()]);

const KINDS: [&str; 16] = [
    "Ask",
    "Claim",
    "LoseClaim",
    "Act",
    "Answer",
    "Decline",
    "Fail",
    "Commit",
    "Conflict",
    "LoseCommit",
    "Committed",
    "RolledBack",
    "LookUp",
    "StopWaiting",
    "GiveUp",
    "Crash",
];

impl Counts {
    fn add(&self, step: Step) {
        let kind = match step {
            Step::Ask(_) => 0,
            Step::Claim(_) => 1,
            Step::LoseClaim(_) => 2,
            Step::Act(_) => 3,
            Step::Answer(_) => 4,
            Step::Decline(_) => 5,
            Step::Fail(_) => 6,
            Step::Commit(_) => 7,
            Step::Conflict(_) => 8,
            Step::LoseCommit(_) => 9,
            Step::Resolve(true) => 10,
            Step::Resolve(false) => 11,
            Step::LookUp(_) => 12,
            Step::StopWaiting(_) => 13,
            Step::GiveUp(_) => 14,
            Step::Crash(_) => 15,
        };
        self.0[kind].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        KINDS.into_iter().zip(self.0.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Ask(u8),
    Claim(u8),
    LoseClaim(u8),
    Act(u8),
    Answer(u8),
    Decline(u8),
    Fail(u8),
    Commit(u8),
    /// The database rolls the transaction back, and replies so.
    Conflict(u8),
    LoseCommit(u8),
    /// The open COMMIT ends: it succeeds, or everything is rolled back.
    Resolve(bool),
    LookUp(u8),
    StopWaiting(u8),
    GiveUp(u8),
    Crash(u8),
}

impl Model for Transactions {
    type State = Database;
    type Action = Step;

    fn init_states(&self) -> Vec<Database> {
        vec![Database::new(self.faults)]
    }

    fn actions(&self, state: &Database, steps: &mut Vec<Step>) {
        for (caller, phase) in (0..CALLERS).zip(state.callers) {
            match phase {
                // These callers are interchangeable.
                Phase::Idle => {
                    if caller == 0 || state.callers[usize::from(caller) - 1] != Phase::Idle {
                        steps.push(Step::Ask(caller));
                    }
                }
                Phase::Claiming { .. } => steps.extend([Step::Claim(caller), Step::LoseClaim(caller)]),
                Phase::Running { acted } => steps.extend([
                    if acted { Step::Answer(caller) } else { Step::Act(caller) },
                    Step::Decline(caller),
                    Step::Fail(caller),
                ]),
                Phase::Ending { is_again: false, .. } => {
                    steps.extend([Step::Commit(caller), Step::Conflict(caller), Step::LoseCommit(caller)]);
                }
                Phase::Ending { is_told, .. } => {
                    steps.extend([Step::LookUp(caller), Step::GiveUp(caller)]);
                    if !is_told {
                        steps.push(Step::StopWaiting(caller));
                    }
                }
                Phase::Over => continue,
            }
            if phase != Phase::Idle {
                steps.push(Step::Crash(caller));
            }
        }
        steps.extend([Step::Resolve(true), Step::Resolve(false)]);
    }

    fn next_state(&self, before: &Database, step: Step) -> Option<Database> {
        let mut next = before.clone();
        next.take(self, step)?;
        (next != *before).then(|| {
            self.counts.add(step);
            next
        })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(ONE_EFFECT, |_, state: &Database| state.effects.count_ones() <= 1),
            Property::always(TOGETHER, |_, state: &Database| {
                state.effects == state.record.flatten().map_or(0, |token| 1 << token)
            }),
            Property::always(TRUE, |_, state: &Database| !state.told_untruth),
            Property::always(NOT_STUCK, |_, state: &Database| {
                state.session.is_none_or(|session| {
                    session.state != SessionState::TransactionHandle
                        || matches!(
                            state.callers[usize::from(session.token)],
                            Phase::Running { .. } | Phase::Ending { is_again: false, .. }
                        )
                })
            }),
        ];
        all.retain(|property| self.only.is_none_or(|only| only == property.name));
        all
    }
}

/// Describes how a property is broken.
pub(super) fn story(path: Path<Database, Step>) -> String {
    let steps = path.into_vec().into_iter().filter_map(|(state, step)| Some((state, step?)));
    steps.enumerate().map(|(number, (state, step))| format!("{}. {}\n", number + 1, line(&state, step))).collect()
}

fn line(before: &Database, step: Step) -> String {
    let name = |caller: u8| ["A", "B", "C"][usize::from(caller)];
    match step {
        Step::Ask(caller) => format!("Client {} sends the request.", name(caller)),
        Step::Claim(caller) if before.session.is_some() => {
            format!("{}'s claim: another transaction holds the key.", name(caller))
        }
        Step::Claim(caller) if before.record.is_some() => format!("{}'s claim: the key has a record.", name(caller)),
        Step::Claim(caller) => format!("{}'s transaction holds the key, and its handler starts.", name(caller)),
        Step::LoseClaim(caller) => format!("The reply to {}'s claim is lost.", name(caller)),
        Step::Act(caller) => format!("{}'s handler writes its rows.", name(caller)),
        Step::Answer(caller) => format!("{}'s handler answers.", name(caller)),
        Step::Decline(caller) => format!("{}'s handler says that it has executed nothing.", name(caller)),
        Step::Fail(caller) => format!("{}'s handler panics.", name(caller)),
        Step::Commit(caller) => format!("{}'s transaction is committed.", name(caller)),
        Step::Conflict(caller) => format!("The database rolls {}'s transaction back.", name(caller)),
        Step::LoseCommit(caller) => format!("{}'s COMMIT is sent, and its reply is lost.", name(caller)),
        Step::Resolve(true) => "The COMMIT succeeds.".to_owned(),
        Step::Resolve(false) => "The database rolls back what was under way.".to_owned(),
        Step::LookUp(caller) => format!("{}'s key is looked up.", name(caller)),
        Step::StopWaiting(caller) => format!("Client {} has waited for the end for long enough.", name(caller)),
        Step::GiveUp(caller) => format!("{}'s end is given up.", name(caller)),
        Step::Crash(caller) => format!("{}'s process crashes.", name(caller)),
    }
}
