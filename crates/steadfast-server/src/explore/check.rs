//! The model as Stateright explores it, and the properties that must hold in every state.

use std::sync::Arc;

use stateright::{Model, Property};

use super::choices;
use super::kinds::{Counts, Seen};
use super::steps::{self, Step};
use super::world::{LEASE, Phase, Setup, World, Wrong, bit};
use crate::outcome::OnUnknown;
use crate::store::model::{ModelClaimOutcome, ModelRecordState};

pub(super) const FENCED: &str = "a token that does not hold the key changes nothing";
pub(super) const UNCHANGED: &str = "a completed record does not change inside its retention";
pub(super) const NOT_FORGOTTEN: &str = "a claim that took over and is cancelled does not free its key";
pub(super) const TRUE: &str = "what the client is told is true";
pub(super) const EXECUTED_ONCE: &str = "an operation is executed once, and once more for each lapse if it is rerun";
pub(super) const ONE_REQUEST: &str = "under one key one request is executed";
pub(super) const NOT_HERE: &str = "what runs in a process is not taken over there";
pub(super) const NOT_WEDGED: &str = "a key that nobody works on is in progress for no longer than a lease";
pub(super) const NOT_ORPHANED: &str = "a claim that holds has somebody who ends it, or lost its process";
pub(super) const NOT_EXECUTED: &str = "whoever is told that nothing was executed left no effect and no record";

#[derive(Clone, Debug)]
pub(super) struct Exploration {
    pub(super) setup: Setup,
    /// Explores only this property, if any: the first state that breaks it ends the search.
    pub(super) only: Option<&'static str>,
    pub(super) counts: Arc<Counts>,
}

impl Exploration {
    pub(super) fn of(setup: Setup) -> Self {
        Self { setup, only: None, counts: Arc::default() }
    }
}

impl Model for Exploration {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let scripts = (0_u8..).zip(self.setup.scripts);
        scripts.map(|(number, script)| World::new(number, self.setup.design.tombstone(), script.faults)).collect()
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        choices::possible(&self.setup, world, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut seen = Seen::default();
        let next = steps::take(&self.setup, world, step, &mut seen)?;
        self.counts.add(&seen);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(FENCED, |_, world: &World| world.history.wrong != Some(Wrong::Unfenced)),
            Property::always(UNCHANGED, |_, world: &World| world.history.wrong != Some(Wrong::Changed)),
            Property::always(NOT_FORGOTTEN, |_, world: &World| world.history.wrong != Some(Wrong::Forgotten)),
            Property::always(TRUE, |_, world: &World| world.history.wrong != Some(Wrong::Untrue)),
            Property::always(EXECUTED_ONCE, |model: &Self, world: &World| executed_once(&model.setup, world)),
            Property::always(ONE_REQUEST, |_, world: &World| {
                world.history.keys.iter().all(|key| key.requests.count_ones() <= 1)
            }),
            Property::always(NOT_HERE, |_, world: &World| world.history.wrong != Some(Wrong::TakenOverHere)),
            Property::always(NOT_WEDGED, |_, world: &World| [0, 1].into_iter().all(|key| is_not_wedged(world, key))),
            Property::always(NOT_ORPHANED, |_, world: &World| [0, 1].into_iter().all(|key| has_owner(world, key))),
            Property::always(NOT_EXECUTED, |_, world: &World| {
                world.history.refused & world.history.acted == 0
                    && [0, 1].into_iter().all(|key| leaves_nothing(world, key))
            }),
        ];
        all.retain(|property| self.only.is_none_or(|only| only == property.name));
        all
    }
}

/// Counts executions by stopped processes too, except after the retention of their claim.
fn executed_once(setup: &Setup, world: &World) -> bool {
    let runs_again = setup.on_unknown == OnUnknown::Rerun || setup.reconciles;
    world.history.keys.iter().all(|key| key.executions <= 1 + if runs_again { key.lapses } else { 0 })
}

/// Returns whether a process, or one of its calls, still works on the key.
fn works_on(world: &World, key: u8) -> bool {
    let at_it = world.callers.iter().any(|caller| match caller.phase {
        Phase::Idle => false,
        Phase::Claiming(claiming) => claiming.ticket.key == key,
        Phase::FindingOut(ticket) | Phase::Running(ticket) | Phase::Ending(ticket, _) => ticket.key == key,
    });
    at_it
        || world.late.iter().any(|late| late.ticket.key == key)
        || world.cancels.iter().any(|cancel| cancel.ticket.key == key)
}

fn is_not_wedged(world: &World, key: u8) -> bool {
    if works_on(world, key) {
        return true;
    }
    let mut store = world.store.clone();
    store.pass(LEASE);
    !matches!(store.get(key), Some(ModelRecordState::InProgress { .. }))
}

fn has_owner(world: &World, key: u8) -> bool {
    let Some(holder) = world.store.holder(key) else { return true };
    !steps::is_running(world, key)
        || world.history.abandoned & bit(holder) != 0
        || world.cancels.iter().any(|cancel| cancel.ticket.token == holder)
        || world.callers.iter().any(|caller| match caller.phase {
            Phase::Idle => false,
            Phase::Claiming(claiming) => {
                let is_told = claiming.ticket.key == key && claiming.reply == Some(ModelClaimOutcome::Acquired);
                // A store that names claims itself returns the name in its reply.
                claiming.ticket.token == holder || is_told
            }
            Phase::FindingOut(ticket) | Phase::Running(ticket) | Phase::Ending(ticket, _) => ticket.token == holder,
        })
}

fn leaves_nothing(world: &World, key: u8) -> bool {
    let Some(holder) = world.store.holder(key) else { return true };
    let excused = world.history.abandoned | world.history.took_over;
    world.history.refused & !excused & bit(holder) == 0
        || world.cancels.iter().any(|cancel| cancel.ticket.token == holder)
}
