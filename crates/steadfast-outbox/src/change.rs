//! The changes of an operation in its outbox, as plain values.

use crate::end::End;
use crate::id::OperationId;

/// What a worker reserves when it takes an operation, or makes an attempt. Times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Terms {
    /// How long the worker's lease is.
    pub lease_ms: u64,
    /// How long after its start the server may still act on an attempt whose worker has died.
    pub settling_ms: u64,
}

impl Terms {
    /// Makes terms of their two times.
    #[must_use]
    pub fn new(lease_ms: u64, settling_ms: u64) -> Self {
        Self { lease_ms, settling_ms }
    }
}

/// A change of one operation. [`rules::apply`](crate::rules::apply) is what each one does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A worker takes it. If the server cannot have carried it out yet, its next attempt is under way
    /// from now on.
    Claim(Terms),
    /// The worker under this fence is about to make an attempt.
    Mark {
        /// The fence of the claim.
        fence: u64,
        /// Its terms.
        terms: Terms,
    },
    /// The worker under this fence has finished a round.
    Settle {
        /// The fence of the claim.
        fence: u64,
        /// What has become of it.
        outcome: Outcome,
    },
    /// It is not to be sent. Refused once an attempt was made.
    Cancel,
    /// A held operation goes on.
    Release,
    /// A person says how it ended.
    Resolve(End),
    /// Its submitter has seen the end.
    Acknowledge,
}

/// What is known of the attempts of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Evidence {
    /// The server may have carried it out in any of them.
    pub may_have_been_processed: bool,
    /// Nothing of those under this claim has left, so the server has not seen the key.
    pub is_unsent: bool,
}

impl Evidence {
    /// Makes evidence of its two facts.
    #[must_use]
    pub fn new(may_have_been_processed: bool, is_unsent: bool) -> Self {
        Self { may_have_been_processed, is_unsent }
    }
}

/// What has become of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It is tried again.
    Postponed {
        /// After so many milliseconds.
        after_ms: u64,
        /// How long the server may still act on what was sent, in milliseconds.
        settling_ms: u64,
        /// What is known of its attempts.
        evidence: Evidence,
        /// Why.
        error: String,
    },
    /// It waits for a person.
    Held {
        /// What is known of its attempts.
        evidence: Evidence,
        /// Why.
        reason: String,
    },
    /// It was found not to have been carried out. It is sent as if for the first time.
    NotApplied,
    /// It has ended.
    Ended {
        /// How.
        end: End,
        /// For how many milliseconds the body of the answer is kept.
        keep_body_ms: Option<u64>,
    },
}

/// Why a change was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such operation.
    #[error("the outbox has no operation {0}; it may have been acknowledged and forgotten")]
    NotFound(OperationId),
    /// Another worker has it by now.
    #[error("another worker has taken the operation over")]
    Fenced,
    /// It is not due, or another worker has it.
    #[error("the operation is not due")]
    NotDue,
    /// The server may have forgotten the key by now, so a repeat could act twice.
    #[error("the server may have forgotten the key by now")]
    KeyForgotten,
    /// The clock is behind the time of an earlier attempt, so the age of the key is not known.
    #[error("the clock went backwards since the first attempt, so the age of the key is not known")]
    ClockBehind,
    /// An attempt was made, so it cannot be cancelled.
    #[error("an attempt was made, so the operation cannot be cancelled; wait for its end")]
    WasSent,
    /// It has no end that could be acknowledged.
    #[error("the operation has not ended, so there is nothing to acknowledge; wait for its end")]
    NotEnded,
    /// It has ended already.
    #[error("the operation has ended already: {0}")]
    HasEnded(&'static str),
    /// It is not held.
    #[error("the operation is not held: it is {0}")]
    NotHeld(&'static str),
    /// A worker has it.
    #[error("a worker is carrying the operation out; stop the process, or wait until the lease ends")]
    Running,
}
