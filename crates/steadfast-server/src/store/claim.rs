//! A claim, its result, and its end.

use std::time::Duration;

use super::id::{ClaimToken, Fingerprint, RecordId, ScopeId};
use super::record::Record;

/// A claim of a key: the argument of [`Store::claim`](super::Store::claim).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Claim<'a> {
    /// The record.
    pub id: &'a RecordId,
    /// The name of this claim.
    pub token: ClaimToken,
    /// The fingerprint of the request.
    pub fingerprint: Fingerprint,
    /// How long the claim holds without renewal.
    pub lease: Duration,
    /// How long the record is kept: after the lease, or from the end of the claim.
    pub retention: Duration,
    /// Whether to take over a claim of the same request whose outcome is unknown.
    pub take_over: bool,
    /// The maximum size of the response, in bytes. A bounded store acquires the key only if it has
    /// this room now. It may reserve less: see [`reserve`](Self::reserve).
    pub reserve: usize,
    /// The scope of the key, if the store [asks for it](super::Store::limits_scopes).
    pub scope: Option<ScopeId>,
}

impl<'a> Claim<'a> {
    /// Creates a claim that takes over nothing, and reserves no room.
    #[must_use]
    pub fn new(
        id: &'a RecordId,
        token: ClaimToken,
        fingerprint: Fingerprint,
        lease: Duration,
        retention: Duration,
    ) -> Self {
        Self { id, token, fingerprint, lease, retention, take_over: false, reserve: 0, scope: None }
    }

    /// Sets whether the claim takes over an operation whose outcome is unknown. Default: `false`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{Claim, ClaimOutcome, ClaimToken, Fingerprint};
    /// use steadfast_server::{MemoryStore, RecordId, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (store, id) = (MemoryStore::new(), RecordId::new("", "1"));
    /// let request = Fingerprint::of("pay");
    /// let claim = |token: ClaimToken, lease| {
    ///     Claim::new(&id, token, request, lease, Duration::from_secs(3600))
    /// };
    /// // The lease of the first claim is over at once, so its outcome is unknown.
    /// store.claim(&claim(store.token()?, Duration::ZERO)).await?;
    /// let second = claim(store.token()?, Duration::from_secs(30));
    /// assert!(matches!(store.claim(&second).await?, ClaimOutcome::Existing(_)));
    /// let takeover = second.allow_takeover(true);
    /// assert!(matches!(store.claim(&takeover).await?, ClaimOutcome::Acquired(())));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn allow_takeover(mut self, yes: bool) -> Self {
        self.take_over = yes;
        self
    }

    /// Returns the name of this claim: its record and its token.
    #[must_use]
    pub fn reference(&self) -> ClaimRef {
        ClaimRef::new(*self.id, self.token)
    }

    /// Sets the scope of the key, for a store that [limits scopes](super::Store::limits_scopes).
    /// Default: `None`.
    #[must_use]
    pub fn in_scope(mut self, scope: impl Into<Option<ScopeId>>) -> Self {
        self.scope = scope.into();
        self
    }

    /// Asks for this many bytes of room for the response. Default: 0.
    ///
    /// A store without this room returns [`StoreError::Full`](super::StoreError::Full). A store may
    /// reserve less than it was asked for. If a long response then finds no room at its end, the
    /// end is stored without the response, and a repeat gets 410.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{Claim, Fingerprint, MemoryStore, RecordId, Store, StoreError};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (store, id) = (MemoryStore::new().max_bytes(1000), RecordId::new("", "1"));
    /// let (lease, retention) = (Duration::from_secs(30), Duration::from_secs(3600));
    /// let claim = Claim::new(&id, store.token()?, Fingerprint::of("pay"), lease, retention);
    /// // Refused now, instead of after the operation has run.
    /// assert!(matches!(store.claim(&claim.reserve(1001)).await, Err(StoreError::Full(_))));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn reserve(mut self, bytes: usize) -> Self {
        self.reserve = bytes;
        self
    }
}

/// The name of a claim: its record and its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ClaimRef {
    /// The record.
    pub id: RecordId,
    /// The token of the claim.
    pub token: ClaimToken,
}

impl ClaimRef {
    /// Creates the name of the claim of this record under this token.
    #[must_use]
    pub fn new(id: RecordId, token: ClaimToken) -> Self {
        Self { id, token }
    }
}

/// The result of a claim.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClaimOutcome<S> {
    /// The key is this token's: run the request. It comes with the store's session.
    Acquired(S),
    /// The key has a record of another claim.
    Existing(RecordState),
    /// The token was cancelled or released before, and this copy of its claim is late. The token
    /// never acquires the key again.
    Cancelled,
}

/// The state of a key.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RecordState {
    /// A claim holds the key.
    #[non_exhaustive]
    InProgress {
        /// The request that claimed it. `None` if it is not visible before its end, as in another
        /// session's open transaction.
        fingerprint: Option<Fingerprint>,
        /// The rest of its lease.
        lease_left: Duration,
    },
    /// The operation has completed, with this response.
    #[non_exhaustive]
    Completed {
        /// The request that completed.
        fingerprint: Fingerprint,
        /// Its response.
        record: Record,
    },
    /// The operation may have run, and its outcome is unknown.
    #[non_exhaustive]
    Unknown {
        /// The request that may have run.
        fingerprint: Fingerprint,
    },
}

impl RecordState {
    /// Creates the state of a key that a claim holds.
    #[must_use]
    pub fn in_progress(fingerprint: impl Into<Option<Fingerprint>>, lease_left: Duration) -> Self {
        Self::InProgress { fingerprint: fingerprint.into(), lease_left }
    }

    /// Creates the state of a completed operation.
    #[must_use]
    pub fn completed(fingerprint: Fingerprint, record: Record) -> Self {
        Self::Completed { fingerprint, record }
    }

    /// Creates the state of an operation whose outcome is unknown.
    #[must_use]
    pub fn unknown(fingerprint: Fingerprint) -> Self {
        Self::Unknown { fingerprint }
    }

    /// Returns the request that the key belongs to. `None` if it is not visible yet.
    ///
    /// ```
    /// use steadfast_server::{Fingerprint, RecordState};
    ///
    /// let state = RecordState::unknown(Fingerprint::of("pay 10"));
    /// // The same key with another request: refuse it with 422.
    /// assert_ne!(state.fingerprint(), Some(Fingerprint::of("pay 20")));
    /// ```
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
    /// The operation has completed, with this response.
    ///
    /// Repeated, the response is stored once. It stays for its retention, whatever else is called
    /// under the token.
    Completed(Completion),
    /// Nothing was executed. The key is as if it had never been claimed, and the session's effects
    /// are undone.
    ///
    /// The token leaves a [tombstone](TOMBSTONE).
    Released,
    /// The operation may have run, and its outcome is unknown. The session's effects are undone.
    Unknown,
    /// Nothing runs under this claim, and its caller does not know whether it was made: the reply
    /// was lost.
    ///
    /// If the claim exists, it ends. The key is then as if the claim had never been made; but if
    /// the claim took over an operation that may have run, the outcome is unknown again.
    ///
    /// Whether the claim exists or not, the token leaves a [tombstone](TOMBSTONE), so that a claim
    /// still on its way is refused ([`ClaimOutcome::Cancelled`]). A claim that has ended otherwise
    /// is unchanged ([`FinishOutcome::Fenced`]).
    Cancelled,
}

/// How long a store remembers that a token was released or cancelled: ten minutes, by the store's
/// own clock. For this time it refuses a claim that was delayed by a network, a queue or a stopped
/// process.
pub const TOMBSTONE: Duration = Duration::from_secs(600);

/// The end of a completed operation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Completion {
    /// The response.
    pub record: Record,
    /// How long the response is kept, from now.
    pub retention: Duration,
    /// Whether the handler's effects in the session are kept. If not, only the record is.
    pub keep_effects: bool,
}

impl Completion {
    /// Creates an end that keeps the handler's effects.
    #[must_use]
    pub fn new(record: Record, retention: Duration) -> Self {
        Self { record, retention, keep_effects: true }
    }
}

/// The result of ending a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a fence lets through, or it does not")]
pub enum FinishOutcome {
    /// The end is stored.
    Stored,
    /// The claim is no longer this token's: it expired and was taken over, or forgotten.
    Fenced,
}
