//! The outcome of an operation: what the server has done, and what the caller learns.

use std::time::Duration;

use http::StatusCode;

use super::server::Fate;
use crate::error::Error;
use crate::journal::OperationReport;
use crate::policy::StopReason;

/// The state of an operation after a history, and what was observed on the way.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) phase: Phase,
    /// How often the server has carried out the operation.
    pub(super) executions: u8,
    /// Attempts that were sent.
    pub(super) sends: u8,
    /// Repeats that were free, and repeats after a lack of resources in this process.
    pub(super) free: u8,
    pub(super) local: u8,
    /// Repeats with a fresh token.
    pub(super) renewed: u8,
    /// Redirects followed in the current attempt.
    pub(super) hops: u8,
    /// Whether the next request differs from the caller's, and how.
    pub(super) is_result: bool,
    pub(super) is_elsewhere: bool,
    pub(super) is_moved: bool,
    /// The server has a record of the key of the next request.
    pub(super) is_known: bool,
    /// The operation has waited for a retry.
    pub(super) waited: bool,
    pub(super) broken: Broken,
    pub(super) end: Option<End>,
    /// The last decision, for the counts and the stories.
    pub(super) decided: Decided,
}

impl Seen {
    /// The client repeats the request after this fate.
    pub(super) fn repeat(&mut self, after: Duration, is_free: bool, fate: Fate) {
        let is_renewed = is_free && fate.status() == Some(StatusCode::UNAUTHORIZED);
        self.free = self.free.saturating_add(u8::from(is_free && !is_renewed));
        self.renewed = self.renewed.saturating_add(u8::from(is_renewed));
        self.local = self.local.saturating_add(u8::from(fate == Fate::NoDescriptor));
        self.waited = !after.is_zero();
        self.decided = Decided::Retry { after, is_free };
        self.phase = Phase::Waiting;
    }
}

#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Waiting,
    Sending,
    Ended,
}

/// Violations that the requests themselves show.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub(super) struct Broken {
    /// An attempt before the time that the server has asked for.
    pub(super) early: bool,
    /// An attempt after the deadline.
    pub(super) late: bool,
    /// An attempt after a final response.
    pub(super) after_final: bool,
    /// An attempt while the circuit is open.
    pub(super) through_open_circuit: bool,
    /// Two attempts under two keys, or one without.
    pub(super) key_changed: bool,
    /// The key at another origin, or with the GET of the result.
    pub(super) key_leaked: bool,
}

/// What the caller learns at the end.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) struct End {
    pub(super) is_ok: bool,
    pub(super) may_have_been_processed: bool,
    /// The error line says "not processed", or that nothing was sent.
    pub(super) says_not_processed: bool,
    pub(super) stop: Option<StopReason>,
}

/// What the client decided in the last step.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub(super) enum Decided {
    #[default]
    Nothing,
    Hop,
    Retry {
        after: Duration,
        is_free: bool,
    },
    Stop(StopReason),
    /// The attempt was not admitted.
    Denied(StopReason),
    /// The operation was refused before its first attempt.
    Refused,
}

impl End {
    pub(super) fn of(ended: &std::result::Result<&OperationReport, &Error>) -> Self {
        match ended {
            Ok(report) => Self {
                is_ok: true,
                may_have_been_processed: report.may_have_been_processed,
                says_not_processed: false,
                stop: Some(report.stop),
            },
            Err(error) => {
                let line = error.to_string();
                Self {
                    is_ok: false,
                    may_have_been_processed: error.may_have_been_processed(),
                    says_not_processed: line.contains("not processed") || line.ends_with("(nothing was sent)"),
                    stop: error.stop_reason(),
                }
            }
        }
    }
}
