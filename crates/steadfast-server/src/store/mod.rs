//! What a store must do: remember, for each key, who claimed it, and how it ended. The contract is
//! in the documentation of [`Store`].

mod claim;
mod codec;
mod error;
mod id;
mod identity;
mod memory;
#[doc(hidden)]
pub mod model;
mod record;
mod rules;

use std::future::Future;
use std::time::Duration;

use steadfast_core::key::KeyError;

pub use self::claim::{Claim, ClaimOutcome, ClaimRef, Completion, End, FinishOutcome, RecordState, TOMBSTONE};
pub use self::codec::{CodecError, RecordCodec};
pub use self::error::StoreError;
pub use self::id::{ClaimToken, Fingerprint, RecordId};
pub use self::identity::{IDENTITY_VERSION, IdentityMismatch, verify_identity};
pub use self::memory::MemoryStore;
pub use self::record::{Record, RecordError, seal, unseal};
pub use self::rules::KeyHolder;

/// A place where records of operations are kept.
///
/// The one trait that a stranger implements. Methods take `&self` and are called concurrently.
///
/// A store that outlives its process keeps [`IDENTITY_VERSION`] beside its
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
#[doc = include_str!("model.rs")]
#[doc = "```"]
pub trait Store: Send + Sync + 'static {
    /// What a claim opens and its completion closes: a transaction, where claim, business rows and record are one; `()` elsewhere.
    type Session: Send + 'static;

    /// Whether what the handler does is done in the session, and stays only if the completion succeeds.
    ///
    /// The layer then lends the session to the handler
    /// ([`TransactionHandle`](super::TransactionHandle)), sends no answer whose completion failed,
    /// since it would tell of what was rolled back, and reruns by default
    /// ([`OnUnknown`](crate::OnUnknown)): an owner that vanished has left nothing.
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
