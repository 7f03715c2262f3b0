//! Every step that can happen, and its effect on a state.
//!
//! The layer's own functions ([`rules`]) make its decisions. The code here moves calls and replies,
//! and keeps the history that the properties need.

use super::kinds::{Kind, Said, Seen};
use super::world::{
    CALLERS, Cancel, Ending, HALF_LEASE, KeyHistory, LEASE, Late, Phase, RETENTION, Setup, TOMBSTONE, Ticket, World,
    Wrong, bit, process_of, token,
};
use super::{claims, ends};
use crate::rules;
use crate::store::model::{ModelClaimOutcome, ModelEnd, ModelRecordState};
use crate::{FinishOutcome, StoreError};

/// One step. Callers, processes and calls are named by their index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A client sends its next request.
    Ask(usize),
    /// The claim reaches the store.
    Arrive(usize),
    /// The store's reply reaches the caller.
    Hear(usize),
    /// The reply is lost.
    LoseReply(usize),
    /// The caller gives up the call, which is still on its way.
    Delay(usize),
    /// A call that was given up reaches the store.
    ArriveLate(usize),
    /// The handler has its effect.
    Act(usize),
    /// The handler responds.
    Answer(usize),
    /// The handler declares that it has executed nothing.
    Decline(usize),
    /// The handler panics, fails, or is cancelled.
    Fail(usize),
    /// The hook looks for the outcome of the operation.
    FindOut(usize),
    /// The end is written, and the reply arrives.
    End(usize),
    /// The end is written, and the reply is lost.
    LoseEnd(usize),
    /// The end is on its way when its writer gives up the call.
    DelayEnd(usize),
    /// The client has its response after the end wait.
    StopWaiting(usize),
    /// The end is given up; whether the final call about it reaches the store.
    GiveUp(usize, bool),
    /// The claim is cancelled; whether the reply arrives.
    Cancel(usize, bool),
    /// The call that cancels the claim never arrives.
    LoseCancel(usize),
    Renew(usize),
    HangUp(usize),
    Crash(usize),
    Stop(usize),
    GoOn(usize),
    /// Time passes: half a lease.
    Pass,
}

/// The state in which a step is taken.
pub(super) struct Scene<'a> {
    pub(super) setup: &'a Setup,
    pub(super) world: World,
    pub(super) seen: &'a mut Seen,
}

/// Takes a step. Returns `None` if it is not possible, or changes nothing.
pub(super) fn take(setup: &Setup, before: &World, step: Step, seen: &mut Seen) -> Option<World> {
    let mut scene = Scene { setup, world: before.clone(), seen };
    match step {
        Step::Ask(caller) => ask(&mut scene, caller),
        Step::Arrive(caller) => claims::arrive(&mut scene, caller)?,
        Step::Hear(caller) => claims::hear(&mut scene, caller)?,
        Step::LoseReply(caller) => {
            fault(&mut scene)?;
            claims::lose_reply(&mut scene, caller)?;
        }
        Step::Delay(caller) => {
            fault(&mut scene)?;
            claims::delay(&mut scene, caller)?;
        }
        Step::ArriveLate(index) => arrive_late(&mut scene, index),
        Step::Act(caller) => act(&mut scene, caller)?,
        Step::Answer(caller) => ends::answer(&mut scene, caller)?,
        Step::Decline(caller) => {
            fault(&mut scene)?;
            ends::decline(&mut scene, caller)?;
        }
        Step::Fail(caller) => {
            fault(&mut scene)?;
            ends::fail(&mut scene, caller)?;
        }
        Step::FindOut(caller) => ends::find_out(&mut scene, caller)?,
        Step::End(caller) => ends::end(&mut scene, caller)?,
        Step::LoseEnd(caller) => {
            fault(&mut scene)?;
            ends::lose_end(&mut scene, caller)?;
        }
        Step::DelayEnd(caller) => {
            fault(&mut scene)?;
            ends::delay_end(&mut scene, caller)?;
        }
        Step::StopWaiting(caller) => ends::stop_waiting(&mut scene, caller)?,
        Step::GiveUp(caller, arrives) => {
            if !arrives {
                fault(&mut scene)?;
            }
            ends::give_up(&mut scene, caller, arrives)?;
        }
        Step::Cancel(index, is_heard) => {
            if !is_heard {
                fault(&mut scene)?;
            }
            cancel(&mut scene, index, is_heard);
        }
        Step::LoseCancel(index) => {
            fault(&mut scene)?;
            let cancel = scene.world.cancels.remove(index);
            after_cancel(&mut scene, cancel, &Err(claims::lost()));
        }
        Step::Renew(caller) => renew(&mut scene, caller)?,
        Step::HangUp(caller) => hang_up(&mut scene, caller)?,
        Step::Crash(process) => crash(&mut scene, process)?,
        Step::Stop(process) => {
            // Otherwise no difference shows that it is stopped.
            scene.world.held().find(|(caller, _)| process_of(*caller) == process)?;
            fault(&mut scene)?;
            scene.world.is_stopped[process] = true;
        }
        Step::GoOn(process) => go_on(&mut scene, process)?,
        Step::Pass => pass(&mut scene)?,
    }
    let Scene { world, seen, .. } = scene;
    (world != *before).then(|| {
        note(before, step, &world, seen);
        world
    })
}

/// Uses up one fault, if one may still happen.
fn fault(scene: &mut Scene<'_>) -> Option<()> {
    scene.world.faults = scene.world.faults.checked_sub(1)?;
    Some(())
}

fn ask(scene: &mut Scene<'_>, caller: usize) {
    let asked = scene.world.callers[caller].asked;
    let (key, request) = scene.setup.scripts[usize::from(scene.world.script)].asks[caller][usize::from(asked)];
    if asked > 0 {
        scene.seen.kinds.push(Kind::ClientRepeats);
    }
    scene.world.callers[caller].asked += 1;
    scene.world.callers[caller].listens = true;
    let ticket = Ticket { key, token: token(caller, asked), request, take_over: false };
    scene.world.callers[caller].phase = Phase::Claiming(claims::begin(scene, caller, ticket, false));
}

fn act(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    let Phase::Running(ticket) = scene.world.callers[caller].phase else { return None };
    scene.world.history.acted |= bit(ticket.token);
    // After the retention of its claim, an action of a process belongs to a forgotten operation.
    if scene.world.history.outlived & bit(ticket.token) == 0 {
        let key = &mut scene.world.history.keys[usize::from(ticket.key)];
        key.executions += 1;
        key.requests |= 1 << ticket.request;
        key.answer = Some(ticket.token);
    }
    Some(())
}

fn renew(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    let (_, ticket) = scene.world.held().find(|(held, _)| *held == caller)?;
    scene.world.store.renew(ticket.key, ticket.token, LEASE).then_some(())
}

/// The client disconnects. The work belongs to the operation, and continues.
fn hang_up(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    fault(scene)?;
    scene.world.callers[caller].listens = false;
    if let (true, Phase::Running(ticket)) =
        (scene.setup.design.releases_on_hang_up(), scene.world.callers[caller].phase)
    {
        finish(scene, ticket, ModelEnd::Released);
        scene.world.callers[caller].phase = Phase::Idle;
    }
    Some(())
}

/// A stopped process continues. Before one of its claims has lapsed it has missed nothing.
fn go_on(scene: &mut Scene<'_>, process: usize) -> Option<()> {
    let has_lapsed = |(caller, ticket): (usize, Ticket)| {
        let holds = is_running(&scene.world, ticket.key) && scene.world.store.holder(ticket.key) == Some(ticket.token);
        process_of(caller) == process && !holds
    };
    let goes_on = scene.world.held().any(has_lapsed);
    scene.world.is_stopped[process] &= !goes_on;
    goes_on.then_some(())
}

/// A process ends at once, and another takes its place, without the state of the first.
fn crash(scene: &mut Scene<'_>, process: usize) -> Option<()> {
    fault(scene)?;
    let mut did_anything = false;
    for caller in (0..CALLERS).filter(|caller| process_of(*caller) == process) {
        let phase = std::mem::replace(&mut scene.world.callers[caller].phase, Phase::Idle);
        let ticket = match phase {
            Phase::Idle => continue,
            Phase::Claiming(claiming) => {
                if claiming.reply.is_none() {
                    scene.world.add_late(Late { ticket: claiming.ticket, end: None, left: TOMBSTONE });
                }
                claiming.ticket
            }
            Phase::FindingOut(ticket) | Phase::Running(ticket) | Phase::Ending(ticket, _) => ticket,
        };
        did_anything = true;
        scene.world.history.abandoned |= bit(ticket.token);
    }
    for cancel in scene.world.cancels.iter().filter(|cancel| cancel.process == process) {
        did_anything = true;
        scene.world.history.abandoned |= bit(cancel.ticket.token);
    }
    scene.world.cancels.retain(|cancel| cancel.process != process);
    scene.world.is_stopped[process] = false;
    did_anything.then_some(())
}

/// A running process renews its leases in time, so none of them lapses.
fn pass(scene: &mut Scene<'_>) -> Option<()> {
    let lapses_unseen = scene.world.held().any(|(caller, ticket)| {
        let state = scene.world.store.get(ticket.key);
        let is_last = matches!(state, Some(ModelRecordState::InProgress { lease_left: 1, .. }));
        is_last && scene.world.store.holder(ticket.key) == Some(ticket.token) && !scene.world.is_stopped(caller)
    });
    if lapses_unseen {
        return None;
    }
    // The store is slow, or does not reply.
    let waits = |caller: usize| matches!(scene.world.callers[caller].phase, Phase::Claiming(_) | Phase::Ending(..));
    let is_slow = (0..CALLERS).any(|caller| waits(caller) && !scene.world.is_stopped(caller));
    if is_slow || scene.world.cancels.iter().any(|cancel| !scene.world.is_stopped[cancel.process]) {
        fault(scene)?;
    }
    let holders = [0, 1].map(|key| scene.world.store.holder(key));
    let were_running = [0, 1].map(|key| is_running(&scene.world, key));
    scene.world.store.pass(1);
    for key in 0..2_u8 {
        let index = usize::from(key);
        if were_running[index] && matches!(scene.world.store.get(key), Some(ModelRecordState::Unknown { .. })) {
            scene.world.history.keys[index].lapses += 1;
        }
        if holders[index].is_some() && scene.world.store.holder(key).is_none() {
            is_over(scene, key);
        }
    }
    for caller in &mut scene.world.callers {
        if let Phase::Claiming(claiming) = &mut caller.phase {
            claiming.age = (claiming.age + 1).min(HALF_LEASE);
        }
    }
    scene.world.late.iter_mut().for_each(|late| late.left -= 1);
    scene.world.late.retain(|late| late.left > 0);
    Some(())
}

/// The key has no record any more: its next claim begins a new operation.
fn is_over(scene: &mut Scene<'_>, key: u8) {
    scene.world.history.keys[usize::from(key)] = KeyHistory::default();
    let held: Vec<_> = scene.world.held().filter(|(_, ticket)| ticket.key == key).collect();
    for (_, ticket) in held {
        scene.world.history.outlived |= bit(ticket.token);
    }
}

pub(super) fn is_running(world: &World, key: u8) -> bool {
    matches!(world.store.get(key), Some(ModelRecordState::InProgress { .. }))
}

/// Ends a claim in the store, and checks what must not happen there.
pub(super) fn finish(scene: &mut Scene<'_>, ticket: Ticket, end: ModelEnd) -> FinishOutcome {
    let before = (scene.world.store.get(ticket.key), scene.world.store.holder(ticket.key));
    let completed = scene.setup.design.finish(&mut scene.world, ticket, end);
    let after = (scene.world.store.get(ticket.key), scene.world.store.holder(ticket.key));
    if before != after && before.1.is_some_and(|holder| holder != ticket.token) {
        scene.world.wrong(Wrong::Unfenced);
    }
    if before != after && matches!(before.0, Some(ModelRecordState::Completed { .. })) {
        scene.world.wrong(Wrong::Changed);
    }
    let took_over = scene.world.history.took_over & bit(ticket.token) != 0;
    if end == ModelEnd::Cancelled && took_over && before.1.is_some() && after.1.is_none() {
        scene.world.wrong(Wrong::Forgotten);
    }
    let was_unknown = matches!(before.0, Some(ModelRecordState::Unknown { .. }));
    // A cancelled claim has not run. The operation that it took over had lapsed before.
    if !was_unknown && end != ModelEnd::Cancelled && matches!(after.0, Some(ModelRecordState::Unknown { .. })) {
        scene.world.history.keys[usize::from(ticket.key)].lapses += 1;
    }
    completed
}

fn cancel(scene: &mut Scene<'_>, index: usize, is_heard: bool) {
    let cancel = scene.world.cancels.remove(index);
    let completed = finish(scene, cancel.ticket, ModelEnd::Cancelled);
    after_cancel(scene, cancel, &if is_heard { Ok(completed) } else { Err(claims::lost()) });
}

fn after_cancel(scene: &mut Scene<'_>, cancel: Cancel, reply: &Result<FinishOutcome, StoreError>) {
    if !rules::is_cancelled(reply) {
        scene.world.add_cancel(cancel);
    }
}

fn arrive_late(scene: &mut Scene<'_>, index: usize) {
    let Late { ticket, end, .. } = scene.world.late.remove(index);
    match end {
        Some(end) => _ = finish(scene, ticket, end),
        None => {
            let claimed = claims::claim(scene, ticket);
            if claimed == ModelClaimOutcome::Cancelled {
                scene.seen.kinds.push(Kind::LateClaimRefused);
            }
        }
    }
}

/// Responds to the client, if it is still there, and checks whether the response is true.
pub(super) fn tell(scene: &mut Scene<'_>, caller: usize, said: Said, is_true: bool) {
    if !is_true {
        scene.world.wrong(Wrong::Untrue);
    }
    scene.seen.said = Some((said, scene.world.callers[caller].listens));
}

/// Returns the end of a handler that has responded.
pub(super) fn ending(end: ModelEnd) -> Ending {
    Ending { end, is_again: false, is_told: false }
}

pub(super) fn completed(ticket: Ticket) -> ModelEnd {
    ModelEnd::Completed { answer: u8::try_from(ticket.token).unwrap_or(u8::MAX), retention: RETENTION }
}

fn note(before: &World, step: Step, after: &World, seen: &mut Seen) {
    seen.kinds.push(Kind::of(step));
    if step == Step::Pass {
        for key in 0..2_u8 {
            let (was, is) = (before.store.get(key), after.store.get(key));
            match (was, is) {
                (Some(ModelRecordState::InProgress { .. }), Some(ModelRecordState::Unknown { .. })) => {
                    seen.kinds.push(Kind::LeaseLapses);
                }
                (Some(ModelRecordState::Completed { .. }), None) => seen.kinds.push(Kind::RetentionEnds),
                _ => {}
            }
        }
        if after.store.tombstones() < before.store.tombstones() {
            seen.kinds.push(Kind::TombstoneEnds);
        }
    }
    let zombie = match step {
        Step::Act(caller) | Step::End(caller) => before.held().find(|(held, _)| *held == caller),
        _ => None,
    };
    if zombie.is_some_and(|(_, ticket)| before.store.holder(ticket.key) != Some(ticket.token)) {
        seen.kinds.push(if matches!(step, Step::Act(_)) { Kind::ZombieActs } else { Kind::ZombieEnds });
    }
}
