//! The decisions of the layer: from a reply of the store to the next call or the response.
//!
//! There is no I/O here, no clock and no session. The async code calls these functions and carries
//! out their results. So does the exploration (`explore`), which runs every order of replies,
//! crashes and expired leases against the model of a store. Its proof holds for this file.

use steadfast_core::protocol::IdempotencyStatus;

use super::outcome::{ExecutionOutcome, OnUnknown};
use super::store::{ClaimOutcome, End, Fingerprint, FinishOutcome, RecordState, StoreError};

/// How often a store may take half a lease to reply to a claim.
pub(super) const MAX_LATE_CLAIMS: usize = 3;

type Reply<T> = Result<ClaimOutcome<T>, StoreError>;

/// Returns whether the key may be the caller's after this reply, although no handler runs under it.
/// If the caller goes away then, the claim is cancelled.
#[inline]
pub(super) fn may_be_ours<T>(was_before: bool, reply: &Reply<T>) -> bool {
    was_before || is_lost(reply) || matches!(reply, Ok(ClaimOutcome::Acquired(_)))
}

/// Returns whether the reply was lost, so that the claim is repeated under its token.
#[inline]
pub(super) fn is_lost<T>(reply: &Reply<T>) -> bool {
    matches!(reply, Err(StoreError::Unavailable(_)))
}

/// The caller's next step after the reply to its claim.
pub(super) enum AfterClaim<T> {
    Run(T),
    ClaimAgain,
    Tell(RecordState),
    Refuse(StoreError),
}

/// Returns the next step after the reply to a claim. It came too late if half of the lease was
/// over.
#[inline]
pub(super) fn after_claim<T>(reply: Reply<T>, too_late: impl FnOnce() -> bool) -> AfterClaim<T> {
    match reply {
        // If half of the lease is over, all of it may be over before the handler begins. The same
        // claim, repeated, restarts it.
        Ok(ClaimOutcome::Acquired(_)) if too_late() => AfterClaim::ClaimAgain,
        Ok(ClaimOutcome::Acquired(session)) => AfterClaim::Run(session),
        Ok(ClaimOutcome::Existing(state)) => AfterClaim::Tell(state),
        Ok(ClaimOutcome::Cancelled) => AfterClaim::Refuse(StoreError::Unavailable("the claim was cancelled".into())),
        Err(error) => AfterClaim::Refuse(error),
    }
}

/// Returns whether a claim takes over. It never takes over an operation that runs in this process,
/// whatever its lease.
#[inline]
pub(super) fn takes_over(wanted: bool, runs_here: bool) -> bool {
    wanted && !runs_here
}

/// Returns whether an acquired claim is given up again. While it was on its way, this process may
/// have begun the operation that the claim took over.
#[inline]
pub(super) fn gives_way(took_over: bool, runs_here: impl FnOnce() -> bool) -> bool {
    took_over && runs_here()
}

/// What an outcome that the store does not know means in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnknownHere {
    /// A handler of this process runs, or its end is being written.
    InProgress,
    Unknown,
    /// It ran here when the claim was made, and has ended since.
    ClaimAgain,
}

/// Returns what an unknown outcome means here. `ran_here`: the operation ran here when the claim
/// was made, so the claim did not take over.
#[inline]
pub(super) fn unknown_here(ran_here: bool, runs_here: bool) -> UnknownHere {
    match (ran_here, runs_here) {
        (_, true) => UnknownHere::InProgress,
        (true, false) => UnknownHere::ClaimAgain,
        (false, false) => UnknownHere::Unknown,
    }
}

/// Returns whether a repeat of an unknown operation takes it over without calling the hook.
#[inline]
pub(super) fn reruns(on_unknown: OnUnknown, reconciles: bool) -> bool {
    // The hook comes before a rerun.
    on_unknown == OnUnknown::Rerun && !reconciles
}

/// How a repeat is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat<T> {
    /// The outcome is unknown, and the hook can find it out: claim again, taking over.
    FindOut,
    /// The first request runs, and the client waits for it.
    Wait(T),
    /// The client gets the state of the key.
    Tell,
    /// The key belongs to another request, and the client learns only that.
    OtherRequest,
}

/// Returns how a repeat is treated. `can_find_out`: there is a hook, and the claim did not take
/// over. `wait`: for how long the client still waits.
#[inline]
pub(super) fn repeat<T>(
    state: &RecordState,
    ours: Fingerprint,
    can_find_out: bool,
    wait: impl FnOnce() -> Option<T>,
) -> Repeat<T> {
    // A request that is not visible yet counts as the same one: its client gets "in progress", and
    // the truth at the end.
    let is_same = state.fingerprint().is_none_or(|fingerprint| fingerprint == ours);
    match state {
        _ if !is_same => Repeat::OtherRequest,
        RecordState::Unknown { .. } if can_find_out => Repeat::FindOut,
        RecordState::InProgress { .. } => wait().map_or(Repeat::Tell, Repeat::Wait),
        _ => Repeat::Tell,
    }
}

/// How the key ends after a response of the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterAnswer {
    Complete,
    Release,
    /// The outcome is unknown, although there is a response.
    Unknown,
}

/// Returns how the key ends after a response. `gives_back`: whether the user has listed its status
/// as not executed.
#[inline]
pub(super) fn after_answer(
    outcome: Option<ExecutionOutcome>,
    is_success: bool,
    gives_back: impl FnOnce() -> bool,
) -> AfterAnswer {
    match outcome {
        Some(ExecutionOutcome::NotExecuted) => AfterAnswer::Release,
        Some(ExecutionOutcome::Unknown) => AfterAnswer::Unknown,
        None if !is_success && gives_back() => AfterAnswer::Release,
        Some(ExecutionOutcome::Executed) | None => AfterAnswer::Complete,
    }
}

/// Returns the end of an operation whose handler gave no response: it panicked, failed, was
/// cancelled, or kept the session. It may have acted.
#[inline]
pub(super) fn end_without_answer() -> End {
    End::Unknown
}

/// What became of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The end is in the store.
    Stored,
    /// The claim belonged to another token by then.
    Lost,
    /// The transaction was rolled back: none of its effects remain, and the key is free.
    RolledBack,
    /// The end was given up, and the outcome is unknown.
    GivenUp,
}

/// The next step after a call of `finish`.
pub(super) enum AfterFinish {
    Stored,
    Lost,
    RolledBack(Box<dyn std::error::Error + Send + Sync>),
    /// The state is not known yet: the end is written again, or looked up.
    Again(StoreError),
}

/// Returns the next step after a call of `finish`.
#[inline]
pub(super) fn after_finish(reply: Result<FinishOutcome, StoreError>) -> AfterFinish {
    match reply {
        Ok(FinishOutcome::Stored) => AfterFinish::Stored,
        Ok(FinishOutcome::Fenced) => AfterFinish::Lost,
        Err(StoreError::RolledBack(error)) => AfterFinish::RolledBack(error),
        Err(error) => AfterFinish::Again(error),
    }
}

/// Returns whether an error may be temporary, so that the end is written again.
pub(super) fn may_pass(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(_) | StoreError::Full(_) | StoreError::Busy(_))
}

/// What became of a transaction with a lost end, when its key was claimed under its token.
pub(super) enum LookedUp<T> {
    /// It may still be in progress.
    NotYet,
    Written(Written),
    /// It left no effects, and "unknown" is written again, in this session.
    WriteUnknown(T),
}

/// Returns what became of a transaction. `end` is the end that it was to write.
pub(super) fn looked_up<T>(claimed: ClaimOutcome<T>, end: &End) -> LookedUp<T> {
    match (claimed, end) {
        // The key could be acquired, so nothing was committed. An end as unknown can be written
        // again.
        (ClaimOutcome::Acquired(session), End::Unknown) => LookedUp::WriteUnknown(session),
        // The handler's effects are gone, so its response must not be stored. Dropping the session
        // leaves the record as it was: an operation that was taken over is still unknown.
        (ClaimOutcome::Acquired(_), _) => LookedUp::Written(Written::RolledBack),
        (ClaimOutcome::Existing(RecordState::InProgress { .. }), _) => LookedUp::NotYet,
        (ClaimOutcome::Existing(RecordState::Completed { record, .. }), End::Completed(ours))
            if ours.record == record =>
        {
            LookedUp::Written(Written::Stored)
        }
        (
            ClaimOutcome::Existing(RecordState::Completed { .. } | RecordState::Unknown { .. })
            | ClaimOutcome::Cancelled,
            _,
        ) => LookedUp::Written(Written::Lost),
    }
}

/// Returns the final end of a claim whose own end is given up. A transaction needs none: it has
/// ended.
pub(super) fn last_word(holds_effects: bool) -> Option<End> {
    (!holds_effects).then_some(End::Unknown)
}

/// Returns whether the store has replied to a cancellation. If not, the call is repeated.
pub(super) fn is_cancelled(reply: &Result<FinishOutcome, StoreError>) -> bool {
    match reply {
        Err(StoreError::RolledBack(_)) => false,
        // A record that cannot be read stays as it is: that is a reply, too.
        Err(error) => !may_pass(error),
        Ok(_) => true,
    }
}

/// The client's response after a handler's response that completes the operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum CompletionAnswer {
    /// The handler's response, with the state of the key.
    WithStatus(IdempotencyStatus),
    /// The handler's response, which reports no effects.
    NotExecuted,
    /// Another response: the handler's effects were rolled back.
    RolledBack,
    /// Another response: the handler's effects may have been rolled back.
    TransactionLost,
}

/// Returns the client's response after a response whose end became `by_then`. `None`: not known
/// yet.
#[inline]
pub(super) fn response_after_completion(
    by_then: Option<Written>,
    is_server_error: bool,
    holds_effects: bool,
) -> CompletionAnswer {
    match by_then {
        Some(Written::Stored) => CompletionAnswer::WithStatus(IdempotencyStatus::Stored),
        // A server error reports no effects, so it is true even after a rollback.
        Some(Written::RolledBack) if is_server_error => CompletionAnswer::NotExecuted,
        Some(Written::RolledBack) => CompletionAnswer::RolledBack,
        _ if holds_effects => CompletionAnswer::TransactionLost,
        _ => CompletionAnswer::WithStatus(IdempotencyStatus::Unknown),
    }
}

/// Returns the status that the client gets for a key that its handler released.
#[inline]
pub(super) fn status_after_release(by_then: Option<Written>) -> IdempotencyStatus {
    match by_then {
        Some(Written::Stored | Written::RolledBack) => IdempotencyStatus::Released,
        None | Some(Written::Lost | Written::GivenUp) => IdempotencyStatus::Unknown,
    }
}

/// Returns the status that the client gets for an unknown end. If a repeat would run, the status
/// invites one.
#[inline]
pub(super) fn status_after_unknown(on_unknown: OnUnknown, reconciles: bool) -> IdempotencyStatus {
    if on_unknown == OnUnknown::Rerun || reconciles { IdempotencyStatus::Released } else { IdempotencyStatus::Unknown }
}
