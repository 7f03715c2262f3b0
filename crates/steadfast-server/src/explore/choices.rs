//! The steps that can happen next.

use super::steps::Step;
use super::world::{Claiming, Phase, Setup, World, bit};

/// Lists steps that may be possible. [`take`](super::steps::take) decides whether each of them is.
pub(super) fn possible(setup: &Setup, world: &World, steps: &mut Vec<Step>) {
    for (caller, state) in world.callers.iter().enumerate() {
        if !world.is_stopped(caller) {
            of_caller(setup, world, caller, steps);
        } else if let Phase::Claiming(Claiming { reply: None, .. }) = state.phase {
            steps.push(Step::Arrive(caller));
        }
    }
    steps.extend((0..world.late.len()).map(Step::ArriveLate));
    for (index, cancel) in world.cancels.iter().enumerate() {
        if !world.is_stopped[cancel.process] {
            steps.push(Step::Cancel(index, true));
        }
    }
    steps.extend((0..2).filter(|process| world.is_stopped[*process]).map(Step::GoOn));
    steps.push(Step::Pass);
    if world.faults > 0 {
        faults(world, steps);
    }
}

fn of_caller(setup: &Setup, world: &World, caller: usize, steps: &mut Vec<Step>) {
    let state = &world.callers[caller];
    match &state.phase {
        Phase::Idle => {
            let script = setup.scripts[usize::from(world.script)].asks;
            // Two callers with the same request in one process are interchangeable.
            let has_twin = caller == 1 && script[0] == script[1] && world.callers[0].asked == 0;
            if usize::from(state.asked) < script[caller].len() && !has_twin {
                steps.push(Step::Ask(caller));
            }
        }
        Phase::Claiming(Claiming { reply: None, .. }) => steps.push(Step::Arrive(caller)),
        Phase::Claiming(_) => steps.push(Step::Hear(caller)),
        Phase::FindingOut(_) => steps.extend([Step::FindOut(caller), Step::Renew(caller)]),
        Phase::Running(ticket) => {
            let has_acted = world.history.acted & bit(ticket.token) != 0;
            steps.extend([if has_acted { Step::Answer(caller) } else { Step::Act(caller) }, Step::Renew(caller)]);
        }
        Phase::Ending(_, ending) => {
            steps.extend([Step::End(caller), Step::Renew(caller)]);
            if ending.is_again {
                steps.push(Step::GiveUp(caller, true));
            }
            if ending.is_again && !ending.is_told {
                steps.push(Step::StopWaiting(caller));
            }
        }
    }
}

/// Lists the faults that may happen.
fn faults(world: &World, steps: &mut Vec<Step>) {
    for (caller, state) in world.callers.iter().enumerate().filter(|(caller, _)| !world.is_stopped(*caller)) {
        match &state.phase {
            Phase::Idle => continue,
            Phase::Claiming(Claiming { reply: None, .. }) => steps.push(Step::Delay(caller)),
            Phase::Claiming(_) => steps.push(Step::LoseReply(caller)),
            Phase::FindingOut(_) => steps.push(Step::Fail(caller)),
            Phase::Running(ticket) => {
                if world.history.acted & bit(ticket.token) == 0 {
                    steps.push(Step::Decline(caller));
                }
                steps.push(Step::Fail(caller));
            }
            Phase::Ending(_, ending) => {
                steps.extend([Step::LoseEnd(caller), Step::DelayEnd(caller)]);
                if ending.is_again {
                    steps.push(Step::GiveUp(caller, false));
                }
            }
        }
        if state.listens {
            steps.push(Step::HangUp(caller));
        }
    }
    for (index, cancel) in world.cancels.iter().enumerate() {
        if !world.is_stopped[cancel.process] {
            steps.extend([Step::Cancel(index, false), Step::LoseCancel(index)]);
        }
    }
    for process in 0..2 {
        steps.push(Step::Crash(process));
        if !world.is_stopped[process] {
            steps.push(Step::Stop(process));
        }
    }
}
