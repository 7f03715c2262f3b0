//! What the layer does next: each decision between a reply of the store and an answer to the client.
//!
//! There is no I/O here, no clock and no session. The async code calls these functions and carries
//! out what they return. So does the exploration (`explore`), which plays every order of replies,
//! crashes and lapses against the model of a store. What it proves holds for this file.

use steadfast_core::protocol::IdempotencyStatus;

use super::outcome::{ExecutionOutcome, OnUnknown};
use super::store::{ClaimOutcome, End, Fingerprint, FinishOutcome, RecordState, StoreError};

/// How often a store may take half a lease to answer a claim.
pub(super) const MAX_LATE_CLAIMS: usize = 3;

type Reply<T> = Result<ClaimOutcome<T>, StoreError>;

/// Returns whether the key may be the caller's after this reply, although nobody runs under it. If
/// the caller goes away then, the claim is cancelled.
#[inline]
pub(super) fn may_be_ours<T>(was_before: bool, reply: &Reply<T>) -> bool {
    was_before || is_lost(reply) || matches!(reply, Ok(ClaimOutcome::Acquired(_)))
}

/// Returns whether the reply was lost, so that the claim is made once more under its token.
#[inline]
pub(super) fn is_lost<T>(reply: &Reply<T>) -> bool {
    matches!(reply, Err(StoreError::Unavailable(_)))
}

/// What a caller does with the reply to its claim.
pub(super) enum AfterClaim<T> {
    Run(T),
    ClaimAgain,
    Tell(RecordState),
    Refuse(StoreError),
}

/// Returns what to do with the reply to a claim. It came too late if half of the lease was over.
#[inline]
pub(super) fn after_claim<T>(reply: Reply<T>, too_late: impl FnOnce() -> bool) -> AfterClaim<T> {
    match reply {
        // A lease that is half over may be over before its handler begins. The same claim, repeated,
        // starts it anew.
        Ok(ClaimOutcome::Acquired(_)) if too_late() => AfterClaim::ClaimAgain,
        Ok(ClaimOutcome::Acquired(session)) => AfterClaim::Run(session),
        Ok(ClaimOutcome::Existing(state)) => AfterClaim::Tell(state),
        Ok(ClaimOutcome::Cancelled) => AfterClaim::Refuse(StoreError::Unavailable("the claim was cancelled".into())),
        Err(error) => AfterClaim::Refuse(error),
    }
}

/// Returns whether a claim takes over: not what runs in this process, whatever became of its lease.
#[inline]
pub(super) fn takes_over(wanted: bool, runs_here: bool) -> bool {
    wanted && !runs_here
}

/// Returns whether a claim that was won is given up again: it may have taken over what has begun in
/// this process while it was on its way.
#[inline]
pub(super) fn gives_way(took_over: bool, runs_here: impl FnOnce() -> bool) -> bool {
    took_over && runs_here()
}

/// What an outcome that the store does not know is to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnknownHere {
    /// A handler of this process runs, or its end is being written.
    InProgress,
    Unknown,
    /// It ran here when the claim was made, and has ended since.
    ClaimAgain,
}

/// Returns what an unknown outcome is. `ran_here`: it did when the claim was made, which therefore did
/// not take over.
#[inline]
pub(super) fn unknown_here(ran_here: bool, runs_here: bool) -> UnknownHere {
    match (ran_here, runs_here) {
        (_, true) => UnknownHere::InProgress,
        (true, false) => UnknownHere::ClaimAgain,
        (false, false) => UnknownHere::Unknown,
    }
}

/// Returns whether a repeat of an unknown operation takes it over without asking anybody.
#[inline]
pub(super) fn reruns(on_unknown: OnUnknown, reconciles: bool) -> bool {
    // Whoever finds out comes before whoever runs it again.
    on_unknown == OnUnknown::Rerun && !reconciles
}

/// What a repeat meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat<T> {
    /// The outcome is unknown, and the hook can find it out: claim again, taking over.
    FindOut,
    /// The first request runs, and the client waits for it.
    Wait(T),
    /// The client is told what is known.
    Tell,
    /// The key belongs to another request, which is all that the client is told.
    OtherRequest,
}

/// Returns what a repeat meets. `can_find_out`: there is a hook, and the claim did not take over.
/// `wait`: for how long the client still waits.
#[inline]
pub(super) fn repeat<T>(
    state: &RecordState,
    ours: Fingerprint,
    can_find_out: bool,
    wait: impl FnOnce() -> Option<T>,
) -> Repeat<T> {
    // What cannot be seen yet is taken for the same: it is told "in progress", and the truth at its end.
    let is_same = state.fingerprint().is_none_or(|fingerprint| fingerprint == ours);
    match state {
        _ if !is_same => Repeat::OtherRequest,
        RecordState::Unknown { .. } if can_find_out => Repeat::FindOut,
        RecordState::InProgress { .. } => wait().map_or(Repeat::Tell, Repeat::Wait),
        _ => Repeat::Tell,
    }
}

/// How the key ends after an answer of the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterAnswer {
    Complete,
    Release,
    /// The outcome is unknown, although there is an answer.
    Unknown,
}

/// Returns how the key ends after an answer. `gives_back`: its status does, by the user's word.
#[inline]
pub(super) fn after_answer(
    verdict: Option<ExecutionOutcome>,
    is_success: bool,
    gives_back: impl FnOnce() -> bool,
) -> AfterAnswer {
    match verdict {
        Some(ExecutionOutcome::NotExecuted) => AfterAnswer::Release,
        Some(ExecutionOutcome::Unknown) => AfterAnswer::Unknown,
        None if !is_success && gives_back() => AfterAnswer::Release,
        Some(ExecutionOutcome::Executed) | None => AfterAnswer::Complete,
    }
}

/// Returns the end of an operation whose handler gave no answer: it panicked, failed, was cancelled,
/// or kept the session. It may have acted.
#[inline]
pub(super) fn end_without_answer() -> End {
    End::Unknown
}

/// What became of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It is in the store.
    Stored,
    /// The claim was another's by then.
    Lost,
    /// The transaction was rolled back: nothing of it is there, and the key is free.
    RolledBack,
    /// It was given up, and the claim lapses.
    GivenUp,
}

/// What is done after a call of `finish`.
pub(super) enum AfterFinish {
    Stored,
    Lost,
    RolledBack(Box<dyn std::error::Error + Send + Sync>),
    /// Nobody knows yet: the end is written again, or looked up.
    Again(StoreError),
}

/// Returns what to do after a call of `finish`.
#[inline]
pub(super) fn after_finish(reply: Result<FinishOutcome, StoreError>) -> AfterFinish {
    match reply {
        Ok(FinishOutcome::Stored) => AfterFinish::Stored,
        Ok(FinishOutcome::Fenced) => AfterFinish::Lost,
        Err(StoreError::RolledBack(error)) => AfterFinish::RolledBack(error),
        Err(error) => AfterFinish::Again(error),
    }
}

/// Returns whether an error may pass, so that the end is written again.
pub(super) fn may_pass(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(_) | StoreError::Full | StoreError::Busy)
}

/// What became of a transaction whose end nobody knows, when its key was claimed under its token.
pub(super) enum LookedUp<T> {
    /// It may still be under way.
    NotYet,
    Written(Written),
    /// It left nothing behind, and that the outcome is unknown is written anew, in this session.
    WriteUnknown(T),
}

/// Returns what became of a transaction. `end` is what it was to write.
pub(super) fn looked_up<T>(claimed: ClaimOutcome<T>, end: &End) -> LookedUp<T> {
    match (claimed, end) {
        // Whoever gets the key finds that nothing was committed. A word of caution can be written again.
        (ClaimOutcome::Acquired(session), End::Unknown) => LookedUp::WriteUnknown(session),
        // What the handler did is gone, so its answer must not be written. Letting go leaves all as it
        // was: what was taken over is still unknown.
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

/// Returns the last word about a claim whose end is given up. A transaction needs none: it has ended.
pub(super) fn last_word(holds_effects: bool) -> Option<End> {
    (!holds_effects).then_some(End::Unknown)
}

/// Returns whether the store has answered a cancellation. If not, it is repeated.
pub(super) fn is_cancelled(reply: &Result<FinishOutcome, StoreError>) -> bool {
    match reply {
        Err(StoreError::RolledBack(_)) => false,
        // A record that cannot be read is left alone: that is an answer, too.
        Err(error) => !may_pass(error),
        Ok(_) => true,
    }
}

/// What the client gets with an answer of the handler that completes the operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum CompletionAnswer {
    /// The handler's, with what became of the key.
    WithStatus(IdempotencyStatus),
    /// The handler's, which tells of nothing that was done.
    NotExecuted,
    /// Another one: what the handler did was rolled back.
    RolledBack,
    /// Another one: what the handler did may have been rolled back.
    TransactionLost,
}

/// Returns what the client gets with an answer whose end became `by_then`; `None`: nobody knows yet.
#[inline]
pub(super) fn told_of_completion(
    by_then: Option<Written>,
    is_server_error: bool,
    holds_effects: bool,
) -> CompletionAnswer {
    match by_then {
        Some(Written::Stored) => CompletionAnswer::WithStatus(IdempotencyStatus::Stored),
        // A server error tells of nothing that was done, so it is true all the same.
        Some(Written::RolledBack) if is_server_error => CompletionAnswer::NotExecuted,
        Some(Written::RolledBack) => CompletionAnswer::RolledBack,
        _ if holds_effects => CompletionAnswer::TransactionLost,
        _ => CompletionAnswer::WithStatus(IdempotencyStatus::Unknown),
    }
}

/// Returns what the client is told of a key that its handler gave back.
#[inline]
pub(super) fn told_of_release(by_then: Option<Written>) -> IdempotencyStatus {
    match by_then {
        Some(Written::Stored | Written::RolledBack) => IdempotencyStatus::Released,
        None | Some(Written::Lost | Written::GivenUp) => IdempotencyStatus::Unknown,
    }
}

/// Returns what the client is told of an unknown end: that it may ask again where a repeat runs, and
/// else nothing of use.
#[inline]
pub(super) fn told_of_unknown(on_unknown: OnUnknown, reconciles: bool) -> IdempotencyStatus {
    if on_unknown == OnUnknown::Rerun || reconciles { IdempotencyStatus::Released } else { IdempotencyStatus::Unknown }
}
