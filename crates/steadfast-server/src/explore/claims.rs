//! From the request to the handler, or to the response to a repeat.

use http::StatusCode;

use super::kinds::{Kind, Said};
use super::steps::{Scene, tell};
use super::world::{Cancel, Claiming, HALF_LEASE, Late, Phase, TOMBSTONE, Ticket, World, Wrong, bit, process_of};
use crate::rules::{self, AfterClaim, Repeat, UnknownHere};
use crate::store::model::{ModelClaimOutcome, ModelRecordState};
use crate::{ClaimOutcome, Fingerprint, Record, RecordState, StoreError, StoreLimit};

pub(super) fn lost() -> StoreError {
    StoreError::Unavailable("lost".into())
}

/// Begins a claim that is on its way, as `Claiming::ask` does.
pub(super) fn begin(scene: &Scene<'_>, caller: usize, ticket: Ticket, finds_out: bool) -> Claiming {
    let wanted = rules::reruns(scene.setup.on_unknown, scene.setup.reconciles) || finds_out;
    let ran_here = wanted && scene.world.runs_here(process_of(caller), ticket.key);
    Claiming {
        ticket: Ticket { take_over: rules::takes_over(wanted, ran_here), ..ticket },
        finds_out,
        ran_here,
        was_open: false,
        is_open: true,
        is_second_call: false,
        late_claims: 0,
        age: 0,
        reply: None,
    }
}

/// Claims a key in the store.
pub(super) fn claim(scene: &mut Scene<'_>, ticket: Ticket) -> ModelClaimOutcome {
    let before = scene.world.store.holder(ticket.key);
    let claimed = scene.setup.design.claim(&mut scene.world, ticket);
    let Some(holder) = scene.world.store.holder(ticket.key).filter(|_| claimed == ModelClaimOutcome::Acquired) else {
        return claimed;
    };
    match before {
        // The same token may have taken the key over before, and has acquired it anew now.
        None => scene.world.history.took_over &= !bit(holder),
        Some(before) if before != holder => {
            scene.world.history.took_over |= bit(holder);
            scene.seen.kinds.push(Kind::TakeOver);
        }
        Some(_) => {}
    }
    claimed
}

pub(super) fn arrive(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    let Phase::Claiming(mut claiming) = scene.world.callers[caller].phase else { return None };
    let took_over = scene.world.history.took_over;
    let claimed = claim(scene, claiming.ticket);
    if claiming.ran_here && scene.world.history.took_over != took_over {
        scene.world.wrong(Wrong::TakenOverHere);
    }
    claiming.reply = Some(claimed);
    scene.world.callers[caller].phase = Phase::Claiming(claiming);
    Some(())
}

pub(super) fn hear(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    let Phase::Claiming(mut claiming) = scene.world.callers[caller].phase else { return None };
    let reply = claiming.reply?;
    if scene.setup.design.store_makes_token() && reply == ModelClaimOutcome::Acquired {
        claiming.ticket.token = scene.world.store.holder(claiming.ticket.key)?;
    }
    handle(scene, caller, claiming, reply_of(reply));
    Some(())
}

pub(super) fn lose_reply(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    let Phase::Claiming(claiming) = scene.world.callers[caller].phase else { return None };
    handle(scene, caller, claiming, Err(lost()));
    Some(())
}

pub(super) fn delay(scene: &mut Scene<'_>, caller: usize) -> Option<()> {
    let Phase::Claiming(claiming) = scene.world.callers[caller].phase else { return None };
    scene.world.add_late(Late { ticket: claiming.ticket, end: None, left: TOMBSTONE });
    handle(scene, caller, claiming, Err(lost()));
    Some(())
}

/// Handles a reply, as `Claiming::win` and `Claiming::ask` do, and the loop around them in
/// `decide.rs`.
fn handle(scene: &mut Scene<'_>, caller: usize, mut claiming: Claiming, reply: Result<ClaimOutcome<()>, StoreError>) {
    if !claiming.is_second_call {
        claiming.is_open = rules::may_be_ours(claiming.was_open, &reply);
        if rules::is_lost(&reply) {
            (claiming.is_second_call, claiming.reply) = (true, None);
            scene.world.callers[caller].phase = Phase::Claiming(claiming);
            return;
        }
    }
    match rules::after_claim(reply, || claiming.age >= HALF_LEASE) {
        AfterClaim::Run(()) => {
            let ticket = claiming.ticket;
            let runs_here = || scene.world.runs_here(process_of(caller), ticket.key);
            if rules::gives_way(ticket.take_over, runs_here) {
                let running = RecordState::in_progress(fingerprint(ticket.request), std::time::Duration::ZERO);
                return known(scene, caller, claiming, running);
            }
            let took_over = scene.world.history.took_over & bit(ticket.token) != 0;
            if took_over && scene.world.runs_here(process_of(caller), ticket.key) {
                scene.world.wrong(Wrong::TakenOverHere);
            }
            scene.world.callers[caller].phase =
                if claiming.finds_out { Phase::FindingOut(ticket) } else { Phase::Running(ticket) };
        }
        AfterClaim::ClaimAgain => claim_again(scene, caller, claiming),
        AfterClaim::Refuse(_) => refuse(scene, caller, &claiming),
        AfterClaim::Tell(state) => known(scene, caller, claiming, state),
    }
}

/// Repeats a claim whose reply came late, unless it was the last try.
fn claim_again(scene: &mut Scene<'_>, caller: usize, mut claiming: Claiming) {
    scene.seen.kinds.push(Kind::ReplyTooLate);
    claiming.late_claims += 1;
    if usize::from(claiming.late_claims) >= rules::MAX_LATE_CLAIMS {
        return refuse(scene, caller, &claiming);
    }
    claiming.was_open = claiming.is_open;
    (claiming.is_open, claiming.is_second_call, claiming.age, claiming.reply) = (true, false, 0, None);
    scene.world.callers[caller].phase = Phase::Claiming(claiming);
}

/// Responds 503: nothing was executed.
fn refuse(scene: &mut Scene<'_>, caller: usize, claiming: &Claiming) {
    scene.world.history.refused |= bit(claiming.ticket.token);
    leave(scene, caller, claiming);
    tell(scene, caller, Said::NothingExecuted, true);
}

/// Drops the `Claiming`.
fn leave(scene: &mut Scene<'_>, caller: usize, claiming: &Claiming) {
    if claiming.is_open {
        scene.world.add_cancel(Cancel { process: process_of(caller), ticket: claiming.ticket });
    }
    scene.world.callers[caller].phase = Phase::Idle;
}

fn known(scene: &mut Scene<'_>, caller: usize, claiming: Claiming, state: RecordState) {
    let Ticket { key, request, .. } = claiming.ticket;
    let runs_here = scene.world.runs_here(process_of(caller), key);
    let state = match state {
        RecordState::Unknown { fingerprint } => match rules::unknown_here(claiming.ran_here, runs_here) {
            UnknownHere::InProgress => RecordState::in_progress(fingerprint, std::time::Duration::ZERO),
            UnknownHere::Unknown => RecordState::unknown(fingerprint),
            UnknownHere::ClaimAgain => return ask_again(scene, caller, &claiming, claiming.finds_out),
        },
        state => state,
    };
    let can_find_out = scene.setup.reconciles && !claiming.finds_out;
    let ours = fingerprint(request);
    let is_other = state.fingerprint().is_some_and(|fingerprint| fingerprint != ours);
    match rules::repeat(&state, ours, can_find_out, || None::<()>) {
        Repeat::FindOut => ask_again(scene, caller, &claiming, true),
        // No client waits here.
        Repeat::Wait(()) => scene.world.wrong(Wrong::Untrue),
        Repeat::OtherRequest => {
            leave(scene, caller, &claiming);
            tell(scene, caller, Said::OtherRequest, is_other);
        }
        Repeat::Tell => {
            leave(scene, caller, &claiming);
            let (said, is_true) = said_of(&scene.world, &claiming, &state, runs_here);
            tell(scene, caller, said, is_true);
        }
    }
}

/// Returns the response to a repeat, and whether it is true.
fn said_of(world: &World, claiming: &Claiming, state: &RecordState, runs_here: bool) -> (Said, bool) {
    let is_ours = state.fingerprint() == Some(fingerprint(claiming.ticket.request));
    match state {
        RecordState::Completed { record, .. } => {
            let answer = answer_of(record);
            // True if it is the response of a handler that has acted on this very request.
            (Said::Replayed(answer), is_ours && world.history.acted & bit(answer) != 0)
        }
        RecordState::InProgress { .. } => {
            let runs = matches!(claiming.reply, Some(ModelClaimOutcome::Existing(ModelRecordState::InProgress { .. })));
            (Said::InProgress, is_ours && (runs || runs_here))
        }
        RecordState::Unknown { .. } => (Said::OutcomeUnknown, is_ours && !runs_here),
    }
}

/// Claims again under the same token, as `Claiming::ask` does.
fn ask_again(scene: &mut Scene<'_>, caller: usize, claiming: &Claiming, finds_out: bool) {
    let again = begin(scene, caller, claiming.ticket, finds_out);
    scene.world.callers[caller].phase = Phase::Claiming(Claiming { was_open: claiming.is_open, ..again });
}

pub(super) fn fingerprint(request: u8) -> Fingerprint {
    Fingerprint::from_bytes([request; 32])
}

/// Encodes the token whose handler responded in the status of the record.
pub(super) fn record(answer: u8) -> Record {
    Record::not_kept(StatusCode::from_u16(200 + u16::from(answer)).unwrap_or_default())
}

fn answer_of(record: &Record) -> u16 {
    record.status().as_u16() - 200
}

/// Translates the model's reply into the layer's types.
fn reply_of(claimed: ModelClaimOutcome) -> Result<ClaimOutcome<()>, StoreError> {
    match claimed {
        ModelClaimOutcome::Acquired => Ok(ClaimOutcome::Acquired(())),
        ModelClaimOutcome::Existing(state) => Ok(ClaimOutcome::Existing(state_of(state))),
        ModelClaimOutcome::Cancelled => Ok(ClaimOutcome::Cancelled),
        ModelClaimOutcome::Full => Err(StoreError::Full(StoreLimit::new("max_records", ""))),
    }
}

fn state_of(state: ModelRecordState) -> RecordState {
    match state {
        ModelRecordState::InProgress { request, lease_left } => {
            RecordState::in_progress(fingerprint(request), std::time::Duration::from_millis(lease_left))
        }
        ModelRecordState::Completed { request, answer } => RecordState::completed(fingerprint(request), record(answer)),
        ModelRecordState::Unknown { request } => RecordState::unknown(fingerprint(request)),
    }
}
