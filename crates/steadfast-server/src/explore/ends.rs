//! From the handler's end to the end that is stored.

use steadfast_core::protocol::IdempotencyStatus;

use super::claims::lost;
use super::kinds::Said;
use super::steps::{Scene, completed, ending, finish, tell};
use super::world::{Ending, Late, Phase, TOMBSTONE, Ticket, bit};
use crate::rules::{self, AfterAnswer, AfterFinish, CompletionAnswer, Written};
use crate::store::model::{ModelEnd, ModelRecordState};
use crate::{End, ExecutionOutcome, StoreError};

pub(super) fn answer(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    let Phase::Running(ticket) = scene.world.callers[caller].phase else { return None };
    let end = end_after(rules::after_answer(None, true, || false), ticket);
    scene.world.callers[caller].phase = Phase::Ending(ticket, ending(end));
    Some(())
}

pub(super) fn decline(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    let Phase::Running(ticket) = scene.world.callers[caller].phase else { return None };
    let end = end_after(rules::after_answer(Some(ExecutionOutcome::NotExecuted), false, || false), ticket);
    scene.world.callers[caller].phase = Phase::Ending(ticket, ending(end));
    Some(())
}

fn end_after(answer: AfterAnswer, ticket: Ticket) -> ModelEnd {
    match answer {
        AfterAnswer::Complete => completed(ticket),
        AfterAnswer::Release => ModelEnd::Released,
        AfterAnswer::Unknown => ModelEnd::Unknown,
    }
}

pub(super) fn fail(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    let (Phase::Running(ticket) | Phase::FindingOut(ticket)) = scene.world.callers[caller].phase else { return None };
    let end = model_end(&rules::end_without_answer(), ticket);
    scene.world.callers[caller].phase = Phase::Ending(ticket, ending(end));
    Some(())
}

fn model_end(end: &End, ticket: Ticket) -> ModelEnd {
    match end {
        End::Completed(_) => completed(ticket),
        End::Released => ModelEnd::Released,
        End::Unknown => ModelEnd::Unknown,
        End::Cancelled => ModelEnd::Cancelled,
    }
}

/// The hook reads the books, which are right at this moment.
pub(super) fn find_out(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    let Phase::FindingOut(ticket) = scene.world.callers[caller].phase else { return None };
    let found = scene.world.history.keys[usize::from(ticket.key)].answer;
    scene.world.callers[caller].phase = match found {
        Some(answer) => Phase::Ending(ticket, ending(completed(Ticket { token: answer, ..ticket }))),
        None => Phase::Running(ticket),
    };
    Some(())
}

/// The end is written, and the reply arrives.
pub(super) fn end(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    let Phase::Ending(ticket, ending) = scene.world.callers[caller].phase else { return None };
    let reply = Ok(finish(scene, ticket, ending.end));
    settle(scene, caller, reply)
}

pub(super) fn lose_end(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    let Phase::Ending(ticket, ending) = scene.world.callers[caller].phase else { return None };
    finish(scene, ticket, ending.end);
    settle(scene, caller, Err(lost()))
}

pub(super) fn delay_end(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    let Phase::Ending(ticket, ending) = scene.world.callers[caller].phase else { return None };
    scene.world.add_late(Late { ticket, end: Some(ending.end), left: TOMBSTONE });
    settle(scene, caller, Err(lost()))
}

/// Handles the reply to an end, as `Ending::write` does.
fn settle(scene: &mut Scene<'_>, caller: usize, reply: Result<crate::FinishOutcome, StoreError>) -> Option<()> {
    let Phase::Ending(ticket, ending) = scene.world.callers[caller].phase else { return None };
    let written = match rules::after_finish(reply) {
        AfterFinish::Stored => Written::Stored,
        AfterFinish::Lost => Written::Lost,
        AfterFinish::RolledBack(_) => Written::RolledBack,
        AfterFinish::Again(error) if rules::may_pass(&error) => {
            scene.world.callers[caller].phase = Phase::Ending(ticket, Ending { is_again: true, ..ending });
            return Some(());
        }
        AfterFinish::Again(_) => Written::GivenUp,
    };
    if !ending.is_told {
        tell_end(scene, caller, (ticket, ending.end), Some(written));
    }
    scene.world.callers[caller].phase = Phase::Idle;
    Some(())
}

/// The client has its response after the end wait, while the end is still being written.
pub(super) fn stop_waiting(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    let Phase::Ending(ticket, ending) = scene.world.callers[caller].phase else { return None };
    tell_end(scene, caller, (ticket, ending.end), None);
    scene.world.callers[caller].phase = Phase::Ending(ticket, Ending { is_told: true, ..ending });
    Some(())
}

pub(super) fn give_up(scene: &mut Scene<'_>, caller: usize, arrives: bool) -> Option<()> {
    let Phase::Ending(ticket, ending) = scene.world.callers[caller].phase else { return None };
    if let Some(end) = rules::last_word(false) {
        if arrives {
            finish(scene, ticket, model_end(&end, ticket));
        } else {
            scene.world.history.abandoned |= bit(ticket.token);
        }
    }
    if !ending.is_told {
        tell_end(scene, caller, (ticket, ending.end), Some(Written::GivenUp));
    }
    scene.world.callers[caller].phase = Phase::Idle;
    Some(())
}

/// Responds to the client at the end, as `completed_answer` and its siblings do, and checks whether
/// the response is true.
fn tell_end(scene: &mut Scene<'_>, caller: usize, (ticket, end): (Ticket, ModelEnd), by_then: Option<Written>) {
    let told = match end {
        ModelEnd::Completed { .. } => match rules::response_after_completion(by_then, false, false) {
            CompletionAnswer::WithStatus(told) => told,
            // Nothing is ever rolled back here.
            _ => return tell(scene, caller, Said::Answer(IdempotencyStatus::Released), false),
        },
        ModelEnd::Released => rules::status_after_release(by_then),
        ModelEnd::Unknown | ModelEnd::Cancelled => {
            rules::status_after_unknown(scene.setup.on_unknown, scene.setup.reconciles)
        }
    };
    let acted = scene.world.history.acted & bit(ticket.token) != 0;
    let is_true = match (told, end) {
        (IdempotencyStatus::Stored, ModelEnd::Completed { answer, .. }) => {
            let is_there = matches!(scene.world.store.get(ticket.key), Some(ModelRecordState::Completed { answer: kept, .. }) if kept == answer);
            is_there && scene.world.store.holder(ticket.key) == Some(ticket.token)
        }
        (IdempotencyStatus::Released, ModelEnd::Released) => {
            !acted && scene.world.store.holder(ticket.key) != Some(ticket.token)
        }
        // The user has declared that a repeat may run, and it will.
        (IdempotencyStatus::Released, ModelEnd::Unknown) => {
            scene.setup.reconciles || scene.setup.on_unknown == crate::OnUnknown::Rerun
        }
        (IdempotencyStatus::Unknown, _) => true,
        _ => false,
    };
    let said = if end == ModelEnd::Unknown { Said::Failed(told) } else { Said::Answer(told) };
    tell(scene, caller, said, is_true);
}
