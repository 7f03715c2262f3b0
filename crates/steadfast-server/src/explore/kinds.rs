//! The kinds of steps, which are counted, and the responses to clients.

use std::sync::atomic::{AtomicU64, Ordering};

use steadfast_core::protocol::IdempotencyStatus;

use super::steps::Step;

/// Kinds of steps. If one of them never happens, the exploration proves nothing about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ClientAsks,
    ClientRepeats,
    ClientHangsUp,
    ClaimArrives,
    ClaimAnswered,
    ClaimReplyLost,
    ClaimDelayed,
    LateCallArrives,
    LateClaimRefused,
    ReplyTooLate,
    TakeOver,
    ClaimCancelled,
    CancelReplyLost,
    CancelLost,
    HandlerActs,
    HandlerAnswers,
    HandlerDeclines,
    HandlerFails,
    HookLooks,
    EndWritten,
    EndReplyLost,
    EndDelayed,
    EndGivenUp,
    ClientStopsWaiting,
    LeaseRenewed,
    LeaseLapses,
    RetentionEnds,
    TombstoneEnds,
    ProcessCrashes,
    ProcessStops,
    ProcessGoesOn,
    ZombieActs,
    ZombieEnds,
    TimePasses,
}

const KINDS: usize = Kind::TimePasses as usize + 1;

impl Kind {
    const ALL: [Self; KINDS] = [
        Self::ClientAsks,
        Self::ClientRepeats,
        Self::ClientHangsUp,
        Self::ClaimArrives,
        Self::ClaimAnswered,
        Self::ClaimReplyLost,
        Self::ClaimDelayed,
        Self::LateCallArrives,
        Self::LateClaimRefused,
        Self::ReplyTooLate,
        Self::TakeOver,
        Self::ClaimCancelled,
        Self::CancelReplyLost,
        Self::CancelLost,
        Self::HandlerActs,
        Self::HandlerAnswers,
        Self::HandlerDeclines,
        Self::HandlerFails,
        Self::HookLooks,
        Self::EndWritten,
        Self::EndReplyLost,
        Self::EndDelayed,
        Self::EndGivenUp,
        Self::ClientStopsWaiting,
        Self::LeaseRenewed,
        Self::LeaseLapses,
        Self::RetentionEnds,
        Self::TombstoneEnds,
        Self::ProcessCrashes,
        Self::ProcessStops,
        Self::ProcessGoesOn,
        Self::ZombieActs,
        Self::ZombieEnds,
        Self::TimePasses,
    ];

    pub(super) fn of(step: Step) -> Self {
        match step {
            Step::Ask(_) => Self::ClientAsks,
            Step::Arrive(_) => Self::ClaimArrives,
            Step::Hear(_) => Self::ClaimAnswered,
            Step::LoseReply(_) => Self::ClaimReplyLost,
            Step::Delay(_) => Self::ClaimDelayed,
            Step::ArriveLate(_) => Self::LateCallArrives,
            Step::Act(_) => Self::HandlerActs,
            Step::Answer(_) => Self::HandlerAnswers,
            Step::Decline(_) => Self::HandlerDeclines,
            Step::Fail(_) => Self::HandlerFails,
            Step::FindOut(_) => Self::HookLooks,
            Step::End(_) => Self::EndWritten,
            Step::LoseEnd(_) => Self::EndReplyLost,
            Step::DelayEnd(_) => Self::EndDelayed,
            Step::StopWaiting(_) => Self::ClientStopsWaiting,
            Step::GiveUp(..) => Self::EndGivenUp,
            Step::Cancel(_, true) => Self::ClaimCancelled,
            Step::Cancel(_, false) => Self::CancelReplyLost,
            Step::LoseCancel(_) => Self::CancelLost,
            Step::Renew(_) => Self::LeaseRenewed,
            Step::HangUp(_) => Self::ClientHangsUp,
            Step::Crash(_) => Self::ProcessCrashes,
            Step::Stop(_) => Self::ProcessStops,
            Step::GoOn(_) => Self::ProcessGoesOn,
            Step::Pass => Self::TimePasses,
        }
    }
}

/// The response to a client.
#[derive(Clone, Copy, Debug)]
pub(super) enum Said {
    /// 503.
    NothingExecuted,
    InProgress,
    OutcomeUnknown,
    OtherRequest,
    /// The stored response of this token's handler.
    Replayed(u16),
    /// The handler's response, with this status of the key.
    Answer(IdempotencyStatus),
    /// 500, with this status of the key.
    Failed(IdempotencyStatus),
}

/// The events of one step.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) kinds: Vec<Kind>,
    /// The response to the client, and whether the client was still there.
    pub(super) said: Option<(Said, bool)>,
}

/// How often each kind happened.
#[derive(Debug)]
pub(super) struct Counts([AtomicU64; KINDS]);

impl Default for Counts {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Counts {
    pub(super) fn add(&self, seen: &Seen) {
        for kind in &seen.kinds {
            self.0[*kind as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Kind, u64)> {
        Kind::ALL.into_iter().map(|kind| (kind, self.0[kind as usize].load(Ordering::Relaxed)))
    }
}
