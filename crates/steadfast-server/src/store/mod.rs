//! The [`Store`] trait: what a store remembers of each key, and the contract that it keeps.

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
pub use self::error::{StoreError, StoreLimit};
pub use self::id::{ClaimToken, Fingerprint, RecordId, ScopeId};
pub use self::identity::{IDENTITY_VERSION, IdentityMismatch, verify_identity};
pub use self::memory::MemoryStore;
pub use self::record::{Record, RecordError, seal, unseal};
pub use self::rules::KeyHolder;

/// A place where records of operations are kept.
///
/// This is the one trait that you implement to add a store. Methods take `&self` and are called
/// concurrently.
///
/// A store that outlives its process keeps [`IDENTITY_VERSION`] beside its
/// records. If it finds another version, it returns [`StoreError::IdentityMismatch`]: when it is
/// opened, or for every claim.
///
/// ```
/// use std::time::Duration;
/// use steadfast_server::{Claim, ClaimOutcome, Completion, End, Fingerprint, MemoryStore};
/// use steadfast_server::{Record, RecordId, RecordState, Store};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let id = RecordId::new("tenant-7", "order-1042");
/// let request = Fingerprint::of("charge 10");
/// let (lease, retention) = (Duration::from_secs(30), Duration::from_secs(86_400));
/// let claim = Claim::new(&id, store.token()?, request, lease, retention);
/// assert!(matches!(store.claim(&claim).await?, ClaimOutcome::Acquired(())));
///
/// let record = Record::not_kept(http::StatusCode::CREATED);
/// let end = End::Completed(Completion::new(record, retention));
/// store.finish(claim.reference(), Some(()), &end).await?;
/// assert!(matches!(store.get(&id).await?, Some(RecordState::Completed { .. })));
/// # Ok(())
/// # }
/// ```
///
/// # The contract
///
/// Each clause names the function of the [model](#the-contract-as-code) that defines it exactly.
///
/// * **The caller names the claim.** It makes the [`ClaimToken`], so it can repeat every call. If
///   the reply to a claim was lost, the caller claims again under the same token, for the same
///   request, and acquires the key again (`claim`). A repeated call returns what the first one
///   returned.
/// * **Lease and retention are two durations.** A claim holds for its lease, and a renewal restarts
///   the lease (`renew`). An open record is kept for the lease and the retention; after its end it
///   is kept for the retention (`kept_for`). So a crash neither blocks the key for a day, nor
///   forgets that the operation may have run.
/// * **After its lease, a claim is [`RecordState::Unknown`]** (`Record::state`). So is one that was
///   ended as unknown. The claim still belongs to its token until another claim takes it over: it
///   can be renewed and ended (`running`).
/// * **A key is taken over only on demand**: by a claim that allows it, for the same request, where
///   the outcome is unknown (`gives_way_to`). Under one key there is one request.
/// * **Ends are fenced.** Only the token that holds the claim can renew or finish it. After a
///   takeover the earlier token gets [`FinishOutcome::Fenced`]. A claim ends once: a different
///   second end is fenced too, and the same end repeated returns what it returned before
///   (`finish`).
/// * **A token acquires one claim of a key.** After the claim has ended, the token acquires
///   nothing, however late a copy of its claim arrives. A released or cancelled token leaves no
///   record, so the store keeps a [tombstone](TOMBSTONE) of the token and its key (`bury`).
/// * **An operation that may have run never frees its key**, unless its owner declares that nothing
///   was executed. If a claim took over and is cancelled, the outcome is unknown again
///   (`took_over`, `keep_as_unknown`).
/// * **Nothing live is evicted**: no running claim, no record within its retention, no tombstone. A
///   store removes expired records first. If there is still no room, it returns
///   [`StoreError::Full`] (`has_room`).
///
/// The results of unusual calls are fixed as well, so that no two stores differ:
///
/// | call | result |
/// | --- | --- |
/// | `renew` under a token that holds no claim of the key | `false` |
/// | an end under such a token | `Fenced`; but `Cancelled` is `Stored`, and leaves a tombstone |
/// | an end after another end | `Fenced`, `Cancelled` included |
/// | `Released` or `Cancelled` under a token with a tombstone | `Stored`, until the tombstone expires |
/// | a claim under the token of a running one, for another request | the state of the key |
/// | a claim under the token of one that has ended | the state of the key; acquired, once no record and no tombstone is kept |
/// | a token on two keys | two independent claims |
/// | a lease of zero | the claim is acquired, and unknown at once |
/// | a retention of zero | the usual result, and the record is forgotten at once: a repeated call finds nothing |
///
/// A store may choose these for itself:
///
/// * It may keep a tombstone longer than [`TOMBSTONE`]: as long as any other one of its key
///   (PostgreSQL does so). A tombstone may count against a bound on records (redb does so), or not.
/// * How many records a [purge](Self::purge_expired) finds, and when expired records are removed. A
///   full store may notice a little late that a record has expired (memory: by an eighth of its
///   retention).
/// * Durations are exact to a millisecond.
/// * What a restart leaves. If the owners of the claims end with the store's process, their claims
///   are unknown afterwards (`restart`). The store in memory forgets everything.
///
/// A [transactional](Self::TRANSACTIONAL) store differs: a claim is its session, so it needs no
/// lease and no tombstone. `renew` returns `true`. A dropped session is cancelled. An end without
/// its session is fenced. If a claim took over and is cancelled, the record is as it was before.
///
/// # The contract as code
///
/// `steadfast_testing::ModelStore` (feature `server`) is the contract as a value, without clock,
/// threads or failures. This project's stores return the same results for random sequences
/// of calls. `steadfast_testing::store_contract` checks your own store against the clauses. [The
/// guide](https://docs.rs/steadfast/latest/steadfast/guide/testing/#6-a-store-of-your-own) uses
/// both.
///
#[doc = "```rust,ignore"]
#[doc = include_str!("model.rs")]
#[doc = "```"]
pub trait Store: Send + Sync + 'static {
    /// The state that a claim opens and its end closes: a transaction, if claim, business rows and
    /// record are one; `()` elsewhere.
    type Session: Send + 'static;

    /// Whether the handler's effects belong to the session, and are kept only if the claim's end is
    /// stored.
    ///
    /// For a transactional store the layer differs in three ways:
    ///
    /// * It lends the session to the handler ([`TransactionHandle`](super::TransactionHandle)).
    /// * It sends no response whose end could not be stored, because that response would describe
    ///   effects that were rolled back.
    /// * It reruns by default ([`OnUnknown`](crate::OnUnknown)), because an owner that vanished has
    ///   left no effects.
    ///
    /// Default: `false`.
    const TRANSACTIONAL: bool = false;

    /// Returns a token for a new claim. No other claim in this store, past or future, may have it.
    ///
    /// Every claim of this crate takes its token from here. If you make a claim yourself, take one
    /// from here too. By default the token is random.
    ///
    /// Do not count instead if the store outlives its process, or if another process claims in it.
    /// A process that is forked or restored from a snapshot would reuse a token, and both would
    /// run. A store that wraps another may call that store's `token`.
    ///
    /// # Errors
    ///
    /// Returns an error if the operating system has no randomness. Nothing is claimed.
    fn token(&self) -> Result<ClaimToken, KeyError> {
        ClaimToken::new()
    }

    /// Returns whether the store limits what one scope may hold. The layer then names the scope in
    /// every [claim](Claim::scope). A store that wraps another returns that store's reply.
    ///
    /// Default: `false`, which saves hashing the scope.
    fn limits_scopes(&self) -> bool {
        false
    }

    /// Claims a key, or returns its state. Repeated with the same token, the claim is acquired
    /// again.
    ///
    /// # Errors
    ///
    /// Returns an error if the store cannot be reached, is full or busy, or holds a record that it
    /// cannot read. Either nothing was claimed, or the lease of the claim expires.
    fn claim(&self, claim: &Claim<'_>) -> impl Future<Output = Result<ClaimOutcome<Self::Session>, StoreError>> + Send;

    /// Restarts the lease of a claim. Returns `false` if the claim is no longer this token's.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{Claim, Fingerprint, MemoryStore, RecordId, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (store, id) = (MemoryStore::new(), RecordId::new("", "1"));
    /// let (lease, retention) = (Duration::from_secs(30), Duration::from_secs(3600));
    /// let claim = Claim::new(&id, store.token()?, Fingerprint::of("pay"), lease, retention);
    /// // Nothing was claimed yet.
    /// assert!(!store.renew(claim.reference(), lease).await?);
    /// store.claim(&claim).await?;
    /// assert!(store.renew(claim.reference(), lease).await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if the store cannot be reached.
    fn renew(&self, claim: ClaimRef, lease: Duration) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Ends a claim and closes its session. A repeated call returns what the first one did.
    ///
    /// `session` is the session that the claim opened. It is `None` if the handler kept it, or if
    /// an earlier call with this end consumed it. A [transactional](Self::TRANSACTIONAL) store has
    /// lost the claim then. Any other store ends it all the same, so that you can repeat a call
    /// whose reply was lost.
    ///
    /// # Errors
    ///
    /// Returns an error if the store cannot be reached. The claim may have ended; otherwise it
    /// stays until its lease expires. A transactional store returns [`StoreError::RolledBack`] if
    /// the session was certainly rolled back.
    fn finish(
        &self,
        claim: ClaimRef,
        session: Option<Self::Session>,
        end: &End,
    ) -> impl Future<Output = Result<FinishOutcome, StoreError>> + Send;

    /// Returns the state of a key. `None` if the store has no record of it, or no longer.
    ///
    /// # Errors
    ///
    /// As for [`claim`](Self::claim).
    fn get(&self, id: &RecordId) -> impl Future<Output = Result<Option<RecordState>, StoreError>> + Send;

    /// Removes at most `most` records that are past their retention, and returns how many it
    /// removed. Stores also remove expired records during other calls.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_server::{MemoryStore, SharedStore, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = SharedStore::new(MemoryStore::new());
    /// // In a task of its own: remove the records of an hour without traffic, in small steps.
    /// while store.purge_expired(1000).await? == 1000 {
    ///     tokio::time::sleep(Duration::from_millis(100)).await;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if the store cannot be reached.
    fn purge_expired(&self, most: usize) -> impl Future<Output = Result<usize, StoreError>> + Send;
}
