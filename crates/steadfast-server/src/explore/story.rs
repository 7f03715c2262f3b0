//! A path through the states, as numbered lines.

use stateright::Path;
use steadfast_core::protocol::IdempotencyStatus;

use super::kinds::{Said, Seen};
use super::steps::{self, Step};
use super::world::{Phase, Setup, Ticket, World};
use crate::store::model::{ModelClaimOutcome, ModelRecordState};

/// Describes how a property is broken.
pub(super) fn story(setup: &Setup, path: Path<World, Step>) -> String {
    let mut lines = String::new();
    let steps = path.into_vec().into_iter().filter_map(|(world, step)| Some((world, step?)));
    for (number, (before, step)) in steps.enumerate() {
        let mut seen = Seen::default();
        let Some(after) = steps::take(setup, &before, step, &mut seen) else { continue };
        let told = seen.said.map(|(said, listens)| told(step, said, listens)).unwrap_or_default();
        lines += &format!("{}. {}{told}\n", number + 1, line(&before, step, &after));
    }
    lines
}

fn line(before: &World, step: Step, after: &World) -> String {
    let ticket = |caller: usize| match after.callers[caller].phase {
        Phase::Claiming(claiming) => Some(claiming.ticket),
        Phase::FindingOut(ticket) | Phase::Running(ticket) | Phase::Ending(ticket, _) => Some(ticket),
        Phase::Idle => None,
    };
    match step {
        Step::Ask(caller) => {
            let Ticket { key, request, .. } = ticket(caller).unwrap_or_else(|| unreachable!());
            let again = if after.callers[caller].asked > 1 { "again " } else { "" };
            let process = super::world::process_of(caller) + 1;
            let (who, key, request) = (name(caller), key + 1, request + 1);
            format!("Client {who} {again}sends request {request} under key {key} to process {process}.")
        }
        Step::Arrive(caller) => arrival(caller, after),
        Step::Hear(caller) => match after.callers[caller].phase {
            Phase::Running(_) => format!("{}'s handler starts.", name(caller)),
            Phase::FindingOut(_) => format!("{}'s hook is asked.", name(caller)),
            Phase::Claiming(_) => format!("The reply comes too late for {}, which claims again.", name(caller)),
            _ => format!("The reply reaches {}.", name(caller)),
        },
        Step::LoseReply(caller) => format!("The store's reply to {} is lost.", name(caller)),
        Step::Delay(caller) => format!("{}'s claim is held up on its way, and {0} gives the call up.", name(caller)),
        Step::ArriveLate(index) => late(before, index, after),
        Step::Act(caller) => {
            let key = before.held().find(|(held, _)| *held == caller).map_or(0, |(_, ticket)| ticket.key);
            let executions = after.history.keys[usize::from(key)].executions;
            format!("{}'s handler acts: execution {executions} under key {}.", name(caller), key + 1)
        }
        Step::Answer(caller) => format!("{}'s handler answers.", name(caller)),
        Step::Decline(caller) => format!("{}'s handler says that it has executed nothing.", name(caller)),
        Step::Fail(caller) => format!("{}'s handler panics.", name(caller)),
        Step::FindOut(caller) => format!("{}'s hook looks into the books.", name(caller)),
        Step::End(caller) => format!("{}'s end reaches the store.", name(caller)),
        Step::LoseEnd(caller) => format!("{}'s end reaches the store, and the reply is lost.", name(caller)),
        Step::DelayEnd(caller) => format!("{}'s end is held up on its way.", name(caller)),
        Step::StopWaiting(caller) => format!("Client {} has waited for the end for long enough.", name(caller)),
        Step::GiveUp(caller, _) => format!("{}'s end is given up.", name(caller)),
        Step::Cancel(index, is_heard) => {
            let who = name_of(before.cancels[index].ticket.token);
            let lost = if is_heard { "" } else { " The reply is lost." };
            format!("{who}'s claim is cancelled in the store.{lost}")
        }
        Step::LoseCancel(index) => {
            format!("The call that cancels {}'s claim is lost.", name_of(before.cancels[index].ticket.token))
        }
        Step::Renew(caller) => format!("{}'s lease is renewed.", name(caller)),
        Step::HangUp(caller) => {
            let ends = if after.callers[caller].phase == Phase::Idle {
                " Its handler is dropped, its key released."
            } else {
                ""
            };
            format!("Client {} hangs up.{ends}", name(caller))
        }
        Step::Crash(process) => format!("Process {} crashes.", process + 1),
        Step::Stop(process) => format!("Process {} is stopped.", process + 1),
        Step::GoOn(process) => format!("Process {} goes on.", process + 1),
        Step::Pass => passed(before, after),
    }
}

fn arrival(caller: usize, after: &World) -> String {
    let Phase::Claiming(claiming) = after.callers[caller].phase else { unreachable!() };
    let key = claiming.ticket.key + 1;
    let reply = match claiming.reply {
        Some(ModelClaimOutcome::Acquired) => {
            let holder = after.store.holder(claiming.ticket.key).unwrap_or_default();
            let named = if holder == claiming.ticket.token { "" } else { ", under a token that the store has made" };
            format!("key {key} is {}'s{named}", name(caller))
        }
        Some(ModelClaimOutcome::Existing(ModelRecordState::InProgress { .. })) => format!("key {key} is in progress"),
        Some(ModelClaimOutcome::Existing(ModelRecordState::Completed { .. })) => format!("key {key} is done"),
        Some(ModelClaimOutcome::Existing(ModelRecordState::Unknown { .. })) => {
            format!("the outcome of key {key} is unknown")
        }
        Some(ModelClaimOutcome::Cancelled) => "it was cancelled before".to_owned(),
        Some(ModelClaimOutcome::Full) | None => "there is no room".to_owned(),
    };
    format!("{}'s claim reaches the store: {reply}.", name(caller))
}

fn late(before: &World, index: usize, after: &World) -> String {
    let late = before.late[index];
    let what = if late.end.is_some() { "end" } else { "claim" };
    let (who, key) = (name_of(late.ticket.token), late.ticket.key);
    let is_new = before.store.get(key) != after.store.get(key);
    let effect = if is_new { format!(": key {} is {who}'s", key + 1) } else { " and changes nothing".to_owned() };
    format!("{who}'s late {what} reaches the store{effect}.")
}

fn passed(before: &World, after: &World) -> String {
    let mut line = "Half a lease passes.".to_owned();
    for key in 0..2 {
        let holder = before.store.holder(key).map(name_of).unwrap_or_default();
        match (before.store.get(key), after.store.get(key)) {
            (Some(ModelRecordState::InProgress { .. }), Some(ModelRecordState::Unknown { .. })) => {
                line += &format!(" {holder}'s lease is over.");
            }
            (Some(_), None) => line += &format!(" Nothing is known of key {} any more.", key + 1),
            _ => {}
        }
    }
    line
}

fn told(step: Step, said: Said, listens: bool) -> String {
    let (Step::Hear(caller)
    | Step::LoseReply(caller)
    | Step::Delay(caller)
    | Step::End(caller)
    | Step::StopWaiting(caller)
    | Step::GiveUp(caller, _)
    | Step::LoseEnd(caller)
    | Step::DelayEnd(caller)) = step
    else {
        return String::new();
    };
    if !listens {
        return String::new();
    }
    let words = match said {
        Said::NothingExecuted => "503, nothing was executed".to_owned(),
        Said::InProgress => "409, in progress".to_owned(),
        Said::OutcomeUnknown => "409, outcome unknown".to_owned(),
        Said::OtherRequest => "422, another request has the key".to_owned(),
        Said::Replayed(token) => format!("the stored answer of {}", name_of(token)),
        Said::Answer(IdempotencyStatus::Stored) => "the answer, which is stored".to_owned(),
        Said::Answer(IdempotencyStatus::Released) => "the answer, and that the key is released".to_owned(),
        Said::Answer(_) => "the answer, whose end is unknown".to_owned(),
        Said::Failed(IdempotencyStatus::Released) => "500, and a repeat will run".to_owned(),
        Said::Failed(_) => "500, outcome unknown".to_owned(),
    };
    format!(" Client {} is told: {words}.", name(caller))
}

fn name(caller: usize) -> &'static str {
    ["A", "B", "C"][caller]
}

fn name_of(token: u16) -> &'static str {
    // Two tokens for each caller, and then the tokens that the store makes.
    ["A", "A", "B", "B", "C", "C"].get(usize::from(token)).copied().unwrap_or("nobody")
}
