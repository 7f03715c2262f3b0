//! Plays one sequence against a model and a store. Compares every reply, and prints it as a line.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use steadfast::server::{FinishOutcome, StoreError};
use steadfast_testing::{ModelClaimOutcome, ModelRecordState, ModelStore};

use super::steps::{Call, Sequence, Step};

/// Maximum delay of a store in another process, and so the longest duration of one sequence.
const DRIFT: u64 = 25_000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Answer {
    Claimed(ModelClaimOutcome),
    Renewed(bool),
    Finished(FinishOutcome),
    Looked(Option<ModelRecordState>),
    /// The store decides about the number of removed records.
    Swept,
}

/// The expected behaviour of a store.
pub(super) trait Model: Clone {
    fn call(&mut self, call: Call) -> Answer;
    fn pass(&mut self, time: u64);
    /// Ends the process that owns the claims.
    fn end_claims(&mut self);
    /// Loses the reply to this call.
    fn lose(&mut self, _: Call) {}
}

impl Model for ModelStore {
    fn call(&mut self, call: Call) -> Answer {
        match call {
            Call::Claim(claim) => Answer::Claimed(self.claim(claim)),
            Call::Renew { id, token, lease } => Answer::Renewed(self.renew(id, token, lease)),
            Call::Finish { id, token, end } => Answer::Finished(self.finish(id, token, end)),
            Call::Look { id } => Answer::Looked(self.get(id)),
            Call::Sweep => Answer::Swept,
        }
    }

    fn pass(&mut self, time: u64) {
        Self::pass(self, time);
    }

    fn end_claims(&mut self) {
        self.restart();
    }
}

/// The effect of a restart of the store's process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Restart {
    ForgetsAll,
    EndsClaims,
    KeepsAll,
}

/// A store, and control over its clock.
pub(super) trait World {
    const RESTART: Restart;

    async fn call(&mut self, call: Call) -> Result<Answer, StoreError>;
    async fn pass(&mut self, time: Duration);
    async fn restart(&mut self);
    /// Loses the reply to this call.
    async fn lose(&mut self, _: Call) {}
}

/// Counts of each kind of call and of each kind of reply.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) calls: BTreeMap<&'static str, u64>,
    pub(super) answers: BTreeMap<&'static str, u64>,
    /// Events between the calls.
    pub(super) events: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub(super) fn total(&self) -> u64 {
        self.calls.values().sum()
    }
}

/// The story of a sequence, one line per step.
#[derive(Debug, Default)]
pub(super) struct Story(Vec<String>);

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().zip(1..).try_for_each(|(line, number)| writeln!(f, "{number}. {line}"))
    }
}

/// Plays a sequence. The error is the story up to the first different reply.
pub(super) async fn play<M: Model, W: World>(
    fresh: M,
    world: &mut W,
    sequence: &Sequence,
    tally: &mut Tally,
) -> Result<(), Story> {
    let mut play = Play { model: fresh.clone(), fresh, world, tally, story: Story::default() };
    for step in &sequence.steps {
        if let Err(Differs) = play.step(*step).await {
            return Err(play.story);
        }
    }
    Ok(())
}

struct Play<'a, M, W> {
    fresh: M,
    model: M,
    world: &'a mut W,
    tally: &'a mut Tally,
    story: Story,
}

/// The replies differ.
struct Differs;

impl<M: Model, W: World> Play<'_, M, W> {
    async fn step(&mut self, step: Step) -> Result<(), Differs> {
        match step {
            Step::Pass(time) => {
                self.tell("time passes", format!("{} s pass", time / 1000));
                self.model.pass(time);
                self.world.pass(Duration::from_millis(time)).await;
            }
            Step::Restart => {
                self.tell("restart", "the store is closed and opened again".to_owned());
                match W::RESTART {
                    Restart::ForgetsAll => self.model = self.fresh.clone(),
                    Restart::EndsClaims => self.model.end_claims(),
                    Restart::KeepsAll => {}
                }
                self.world.restart().await;
            }
            Step::Call { caller, call, lost } => {
                let caller = ["A", "B", "C"][caller];
                self.call(call, format!("caller {caller} {call}")).await?;
                if lost {
                    self.tell("reply lost", format!("the reply is lost, and caller {caller} repeats the call:"));
                    self.model.lose(call);
                    self.world.lose(call).await;
                    self.call(call, format!("caller {caller} {call}")).await?;
                }
            }
        }
        Ok(())
    }

    fn tell(&mut self, event: &'static str, line: String) {
        *self.tally.events.entry(event).or_default() += 1;
        self.story.0.push(line);
    }

    async fn call(&mut self, call: Call, line: String) -> Result<(), Differs> {
        let expected = self.model.call(call);
        *self.tally.calls.entry(call.kind()).or_default() += 1;
        *self.tally.answers.entry(expected.kind()).or_default() += 1;
        let (answers, agrees) = match self.world.call(call).await {
            Ok(got) if agree(expected, got) => (expected.to_string(), true),
            Ok(got) => (format!("model: {expected}, store: {got}"), false),
            Err(error) => (format!("model: {expected}, store: error, {error}"), false),
        };
        self.story.0.push(format!("{line} → {answers}"));
        if agrees { Ok(()) } else { Err(Differs) }
    }
}

fn agree(expected: Answer, got: Answer) -> bool {
    match (expected.lease_left(), got.lease_left()) {
        (Some(expected_left), Some(left)) => {
            (expected_left.saturating_sub(DRIFT)..=expected_left).contains(&left)
                && got.with_lease_left(expected_left) == expected
        }
        _ => expected == got,
    }
}

impl Answer {
    fn state(self) -> Option<ModelRecordState> {
        match self {
            Self::Claimed(ModelClaimOutcome::Existing(state)) | Self::Looked(Some(state)) => Some(state),
            _ => None,
        }
    }

    fn lease_left(self) -> Option<u64> {
        self.state().and_then(|state| {
            if let ModelRecordState::InProgress { lease_left, .. } = state { Some(lease_left) } else { None }
        })
    }

    /// Returns the same reply with another remaining lease.
    fn with_lease_left(self, lease_left: u64) -> Self {
        match self {
            Self::Claimed(ModelClaimOutcome::Existing(ModelRecordState::InProgress { request, .. })) => {
                Self::Claimed(ModelClaimOutcome::Existing(ModelRecordState::InProgress { request, lease_left }))
            }
            Self::Looked(Some(ModelRecordState::InProgress { request, .. })) => {
                Self::Looked(Some(ModelRecordState::InProgress { request, lease_left }))
            }
            other => other,
        }
    }

    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Claimed(ModelClaimOutcome::Acquired) => "Acquired",
            Self::Claimed(ModelClaimOutcome::Cancelled) => "Cancelled",
            Self::Claimed(ModelClaimOutcome::Full) => "Full",
            Self::Claimed(ModelClaimOutcome::Existing(ModelRecordState::InProgress { .. })) => "Existing(InProgress)",
            Self::Claimed(ModelClaimOutcome::Existing(ModelRecordState::Completed { .. })) => "Existing(Completed)",
            Self::Claimed(ModelClaimOutcome::Existing(ModelRecordState::Unknown { .. })) => "Existing(Unknown)",
            Self::Renewed(true) => "renewed",
            Self::Renewed(false) => "not renewed",
            Self::Finished(FinishOutcome::Stored) => "Stored",
            Self::Finished(FinishOutcome::Fenced) => "Fenced",
            Self::Looked(None) => "nothing known",
            Self::Looked(Some(_)) => "looked up",
            Self::Swept => "swept",
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claimed(claimed) => write!(f, "{claimed:?}"),
            Self::Finished(completed) => write!(f, "{completed:?}"),
            Self::Looked(Some(state)) => write!(f, "{state:?}"),
            Self::Renewed(_) | Self::Looked(None) | Self::Swept => f.write_str(self.kind()),
        }
    }
}
