//! A claim, what comes of it, and how it ends.

use std::time::Duration;

use super::id::{ClaimToken, Fingerprint, RecordId};
use super::record::Record;

/// A request for a key.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Claim<'a> {
    /// The record.
    pub id: &'a RecordId,
    /// The name of this claim.
    pub token: ClaimToken,
    /// What the request is.
    pub fingerprint: Fingerprint,
    /// How long the claim holds unless it is renewed.
    pub lease: Duration,
    /// How long what is known of the key is kept.
    pub retention: Duration,
    /// Whether to take over a claim of the same request whose outcome is unknown.
    pub take_over: bool,
    /// The most bytes that the answer will take; a bounded store reserves them now, so that completion cannot fail for want of
    /// room.
    pub reserve: usize,
}

impl<'a> Claim<'a> {
    /// A claim that does not take over, and reserves nothing.
    #[must_use]
    pub fn new(
        id: &'a RecordId,
        token: ClaimToken,
        fingerprint: Fingerprint,
        lease: Duration,
        retention: Duration,
    ) -> Self {
        Self { id, token, fingerprint, lease, retention, take_over: false, reserve: 0 }
    }

    /// The same claim, which takes over what is unknown.
    #[must_use]
    pub fn allow_takeover(mut self, yes: bool) -> Self {
        self.take_over = yes;
        self
    }

    /// The claim's name.
    #[must_use]
    pub fn reference(&self) -> ClaimRef {
        ClaimRef::new(*self.id, self.token)
    }

    /// The same claim, with `bytes` reserved for its answer.
    #[must_use]
    pub fn reserve(mut self, bytes: usize) -> Self {
        self.reserve = bytes;
        self
    }
}

/// The name of a claim that was made: its record and its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ClaimRef {
    /// The record.
    pub id: RecordId,
    /// The token that the claim was made under.
    pub token: ClaimToken,
}

impl ClaimRef {
    /// The claim of this record under this token.
    #[must_use]
    pub fn new(id: RecordId, token: ClaimToken) -> Self {
        Self { id, token }
    }
}

/// What came of a claim.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClaimOutcome<S> {
    /// The key is this token's: run the request.
    Acquired(S),
    /// It is, or was, another's.
    Existing(RecordState),
    /// The token was cancelled or released before. It never wins again: this claim was late.
    Cancelled,
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RecordState {
    /// A claim that holds.
    #[non_exhaustive]
    InProgress {
        /// The request that claimed it; `None` where it cannot be seen before it ends, as in another's open transaction.
        fingerprint: Option<Fingerprint>,
        /// How long its lease still lasts.
        lease_left: Duration,
    },
    /// It ended, and this was the answer.
    #[non_exhaustive]
    Completed {
        /// The request that was answered.
        fingerprint: Fingerprint,
        /// The answer.
        record: Record,
    },
    /// It may have run, and nobody knows how it ended.
    #[non_exhaustive]
    Unknown {
        /// The request that may have run.
        fingerprint: Fingerprint,
    },
}

impl RecordState {
    /// A claim that holds.
    #[must_use]
    pub fn in_progress(fingerprint: impl Into<Option<Fingerprint>>, lease_left: Duration) -> Self {
        Self::InProgress { fingerprint: fingerprint.into(), lease_left }
    }

    /// An operation that has ended.
    #[must_use]
    pub fn completed(fingerprint: Fingerprint, record: Record) -> Self {
        Self::Completed { fingerprint, record }
    }

    /// An operation that may have run.
    #[must_use]
    pub fn unknown(fingerprint: Fingerprint) -> Self {
        Self::Unknown { fingerprint }
    }

    /// The request that the key belongs to, where that can be seen.
    #[must_use]
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Self::InProgress { fingerprint, .. } => *fingerprint,
            Self::Completed { fingerprint, .. } | Self::Unknown { fingerprint } => Some(*fingerprint),
        }
    }
}

/// How a claim ends: see [`Store::finish`](super::Store::finish).
#[derive(Clone, Debug)]
#[allow(
    clippy::exhaustive_enums,
    reason = "a store must say what it does with each: a new one is for its author to see"
)]
pub enum End {
    /// The operation is done, and this is its answer.
    ///
    /// Repeated, it is stored once. The answer stays for its retention, whatever else is asked for under the token.
    Completed(Completion),
    /// Nothing was executed. The key is as if it had never been claimed, and nothing of the session stays.
    ///
    /// The token leaves a [tombstone](TOMBSTONE).
    Released,
    /// The operation may have run, and nobody knows how it ended. Nothing of the session stays.
    Unknown,
    /// Nobody runs anything under this claim, and nobody knows whether it was made: its reply was lost.
    ///
    /// If the claim is there it ends: as if it had never been made, or as unknown if it took over
    /// an operation that may have run. Whether it is there or not, the token leaves a
    /// [tombstone](TOMBSTONE), so that a claim which is still on its way is refused
    /// ([`ClaimOutcome::Cancelled`]). A claim that has ended otherwise is left alone
    /// ([`FinishOutcome::Fenced`]).
    Cancelled,
}

/// How long a store remembers that a token was released or cancelled, by the store's own clock: ten
/// minutes. A claim that a network, a queue or a stopped process has held up is refused for as
/// long.
pub const TOMBSTONE: Duration = Duration::from_secs(600);

/// The end of an operation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Completion {
    /// The answer.
    pub record: Record,
    /// How long it is kept, from now.
    pub retention: Duration,
    /// Whether what the handler did in the session stays. Where not, the record alone is kept.
    pub keep_effects: bool,
}

impl Completion {
    /// An end that keeps what the handler did.
    #[must_use]
    pub fn new(record: Record, retention: Duration) -> Self {
        Self { record, retention, keep_effects: true }
    }
}

/// What came of the end of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a fence lets through, or it does not")]
pub enum FinishOutcome {
    /// It is written.
    Stored,
    /// The claim is no longer this token's: it lapsed and was taken over, or forgotten.
    Fenced,
}
