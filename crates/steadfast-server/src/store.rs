//! What a store must do: remember, for each key, who claimed it, and how it ended. The contract is
//! in the documentation of [`Store`].

use std::fmt;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use sha2::{Digest, Sha256};
use steadfast_core::key::KeyError;

use super::identity::IdentityMismatch;
use super::record::Record;

/// A place where records of operations are kept.
///
/// The one trait that a stranger implements. Methods take `&self` and are called concurrently.
///
/// A store that outlives its process keeps [`IDENTITY_VERSION`](super::IDENTITY_VERSION) beside its
/// records, and refuses to be opened, or every claim, where it finds another
/// ([`StoreError::IdentityMismatch`]).
///
/// # The contract
///
/// Each clause names the function of the [model](#the-contract-as-code) that says it exactly.
///
/// * **The caller names the claim.** It makes the [`ClaimToken`], so every call can be repeated. A
///   claim whose reply was lost is made again under the same token, for the same request, and is won
///   again (`claim`). A call that is repeated is told what the first one was told.
/// * **Lease and retention are two durations.** A claim holds for its lease, and a renewal starts the
///   lease anew (`renew`). What is known of a key is kept for the lease and the retention, and from
///   an end on for the retention (`kept_for`). So a crash neither wedges the key for a day nor
///   forgets that it may have run.
/// * **A claim whose lease ran out is [`RecordState::Unknown`]** (`Record::state`), and so is one that was
///   ended as such. It is still its token's until another claim takes it over: it can be renewed and
///   ended (`running`).
/// * **A key is taken over on demand alone**: by a claim that asks for it, for the same request, where
///   the outcome is unknown (`gives_way_to`). Under one key there is one request.
/// * **Ends are fenced.** Only the token that holds the claim can renew or finish it. One that was
///   overtaken is told [`FinishOutcome::Fenced`]. A claim ends once: another end after the first is lost
///   too, and the same one repeated is told what it was told (`finish`).
/// * **A token wins one claim of a key.** After its end it wins nothing, however late a copy of its
///   claim arrives. A token that was released or cancelled leaves no record behind to say so, so the
///   store keeps a [tombstone](TOMBSTONE) of it and its key (`bury`).
/// * **What may have run is never free**, unless its owner says that nothing was executed. A claim that
///   took over and is cancelled is unknown again (`took_over`, `keep_as_unknown`).
/// * **Nothing live is evicted**: neither a running claim nor a record inside its retention nor a
///   tombstone. A store that is full says so, after it has made room from what has gone (`has_room`).
///
/// Calls that make no sense have an answer as well, so that no two stores differ:
///
/// | call | answer |
/// | --- | --- |
/// | `renew` under a token that holds no claim of the key | `false` |
/// | an end under such a token | `Lost`; but `Cancelled` is `Stored`, and leaves a tombstone |
/// | an end after another end | `Lost`, `Cancelled` included |
/// | `Released` or `Cancelled` under a token with a tombstone | `Stored`, until the tombstone is over |
/// | a claim under the token of a running one, for another request | what is known of the key |
/// | a claim under the token of one that has ended | what is known of the key; won, once nothing is and no tombstone is kept |
/// | a token on two keys | two claims, with nothing in common |
/// | a lease of zero | the claim is won, and unknown at once |
/// | a retention of zero | the call is answered as ever, and what it is of is forgotten at once: repeated, it is a call about nothing |
///
/// This is a store's own affair:
///
/// * A tombstone may be kept longer than [`TOMBSTONE`]: for as long as any other one of its key
///   (PostgreSQL does so). It may count against a bound on records (redb does so), or not.
/// * How many records a [purge](Self::purge_expired) finds, and when what has expired is removed. A store
///   that is full may be a little late to see that a record has gone (memory: by an eighth of its
///   retention).
/// * Durations are exact to a millisecond.
/// * What a restart leaves. Where the claims' owners end with the store's process, their claims are
///   unknown afterwards (`restart`). The store in memory forgets everything.
///
/// A store that [holds the effects](Self::TRANSACTIONAL) differs in this: a claim is its session, so
/// it needs no lease and no tombstone. `renew` returns `true`; a session that is dropped is
/// cancelled; an end without its session is lost; what was taken over and is cancelled is as it was.
///
/// # The contract as code
///
/// `steadfast_testing::ModelStore` (feature `server`) is the contract as a value: without
/// clock, threads or failures. The crate's own stores give the same answers to random sequences of
/// calls. `steadfast_testing::store_contract` holds a store of yours to the clauses;
/// [the guide](https://docs.rs/steadfast/latest/steadfast/guide/testing/#6-a-store-of-your-own) shows both at work.
///
#[doc = "```rust,ignore"]
#[doc = include_str!("model_store.rs")]
#[doc = "```"]
pub trait Store: Send + Sync + 'static {
    /// What a claim opens and its completion closes: a transaction, where claim, business rows and record are one; `()` elsewhere.
    type Session: Send + 'static;

    /// Whether what the handler does is done in the session, and stays only if the completion succeeds.
    ///
    /// The layer then lends the session to the handler
    /// ([`TransactionHandle`](super::TransactionHandle)), sends no answer whose completion failed,
    /// since it would tell of what was rolled back, and reruns by default
    /// ([`OnUnknown`](super::OnUnknown)): an owner that vanished has left nothing.
    const TRANSACTIONAL: bool = false;

    /// A name for a claim that is about to be made, which no other claim in this store has, had or will have.
    ///
    /// Every claim of this crate takes its name from here, and a claim that is made by hand should too. By default it is random. A store that
    /// outlives its process, or in which another process claims, must not count instead: a process that is forked or restored from a
    /// snapshot would give the same name to a claim of its own, and both would run. A store that wraps another may ask that one.
    ///
    /// # Errors
    ///
    /// The operating system has no randomness to give. Nothing is claimed.
    fn token(&self) -> Result<ClaimToken, KeyError> {
        ClaimToken::new()
    }

    /// Claims a key, or says what is known of it. Repeated with the same token, it is won again.
    ///
    /// # Errors
    ///
    /// The store cannot be reached, is full or busy, or holds a record that it cannot read. Nothing
    /// was claimed, or the claim lapses.
    fn claim(&self, claim: &Claim<'_>) -> impl Future<Output = Result<ClaimOutcome<Self::Session>, StoreError>> + Send;

    /// Starts the lease of a claim anew. Returns `false` if the claim is no longer this token's.
    ///
    /// # Errors
    ///
    /// The store cannot be reached.
    fn renew(&self, claim: ClaimRef, lease: Duration) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Ends a claim and closes its session.
    ///
    /// `session` is what the claim opened. It is `None` where nobody has it any more: the handler
    /// kept it, or an earlier call with this end consumed it. A store that [holds the
    /// effects](Self::TRANSACTIONAL) has lost the claim then; any other one ends it all the same,
    /// so that a call whose reply was lost can be repeated.
    ///
    /// A repeated call returns what the first one did.
    ///
    /// # Errors
    ///
    /// The store cannot be reached. The claim may have been ended; otherwise it stays, and lapses.
    /// Or it has rolled the session back ([`StoreError::RolledBack`]): a store that holds the effects
    /// says so where that is certain.
    fn finish(
        &self,
        claim: ClaimRef,
        session: Option<Self::Session>,
        end: &End,
    ) -> impl Future<Output = Result<FinishOutcome, StoreError>> + Send;

    /// What is known of a key; `None` if nothing is, or no longer.
    ///
    /// # Errors
    ///
    /// As [`claim`](Self::claim).
    fn get(&self, id: &RecordId) -> impl Future<Output = Result<Option<RecordState>, StoreError>> + Send;

    /// Removes what is past its retention, `most` records at most; returns how many it removed. Stores also do this on the way.
    ///
    /// # Errors
    ///
    /// The store cannot be reached.
    fn purge_expired(&self, most: usize) -> impl Future<Output = Result<usize, StoreError>> + Send;
}

/// A record's identity: scope and key, hashed. Two tenants' equal keys are two records, and no store holds a raw key.
///
/// How it is hashed is part of [`IDENTITY_VERSION`](super::IDENTITY_VERSION).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordId([u8; 32]);

/// Eight of its bytes, which are spread as evenly as all of them. Keys that collide in a table whatever its seed could be made, two of them
/// with 2³² hashes: two cost a comparison, and a long chain is out of reach (four take 2⁴⁸ hashes, and more ever more).
impl Hash for RecordId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
    }
}

impl RecordId {
    /// The identity of `key` in `scope` (a tenant, a caller); empty for
    /// [`Scope::single_caller`](super::Scope::single_caller).
    #[must_use]
    pub fn new(scope: &str, key: &str) -> Self {
        let mut hash = Sha256::new();
        // The length keeps ("a", "bc") and ("ab", "c") apart.
        hash.update(u64::try_from(scope.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(scope);
        hash.update(key);
        Self(hash.finalize().into())
    }

    /// The identity of an event that this consumer handles; never that of a key.
    #[must_use]
    pub fn of_event(consumer: &str, event_id: &str) -> Self {
        let mut hash = Sha256::new();
        // No scope is that long.
        hash.update(u64::MAX.to_be_bytes());
        hash.update(Self::new(consumer, event_id).0);
        Self(hash.finalize().into())
    }

    /// Its bytes, which are evenly spread.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "RecordId({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// What a request is, hashed: method, host name, target with query, body. Under one key there is
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub(crate) [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a payload: its SHA-256.
    #[must_use]
    pub fn of(payload: impl AsRef<[u8]>) -> Self {
        Self(Sha256::digest(payload).into())
    }

    /// From its bytes, as a store kept them.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The name of one claim: whoever made it can repeat every call about it, and nobody else can.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClaimToken([u8; 16]);

impl ClaimToken {
    /// A new one, from the operating system's randomness. For a claim in a store, ask [`Store::token`].
    ///
    /// # Errors
    ///
    /// The operating system has none to give.
    pub fn new() -> Result<Self, KeyError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| KeyError::NoRandomness(error.to_string()))?;
        Ok(Self(bytes))
    }

    /// From its bytes, as a store kept them.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClaimToken(…)")
    }
}

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

/// How a claim ends: see [`Store::finish`].
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

/// Why a store cannot answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot be reached. The call may have been carried out; repeating it is safe.
    #[error("the store cannot be reached: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It has no room, and nothing that it may forget.
    #[error("the store is full")]
    Full,
    /// It has no session to lend: all were taken for as long as a call may wait. Nothing was
    /// claimed.
    #[error("the store is busy: no session came free in time")]
    Busy,
    /// The session was rolled back for certain: nothing of the operation is kept, and its key is as
    /// it was before the claim. Repeating the request is safe.
    #[error("the operation was rolled back: {0}")]
    RolledBack(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The record is damaged, or of a newer version: it is refused, not replayed, not rerun.
    #[error("the record cannot be read: {0}")]
    Unreadable(#[source] super::record::RecordError),
    /// The records that it holds could not be found again by this build. Nothing is claimed.
    #[error("the store cannot be used: {0}")]
    IdentityMismatch(#[source] IdentityMismatch),
}
