//! The identifiers of a record, a request and a claim.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU64;

use sha2::{Digest, Sha256};
use steadfast_core::key::KeyError;

/// A record's identity: the hash of scope and key. Equal keys of two tenants are two records, and
/// no store holds a raw key.
///
/// The hash is part of [`IDENTITY_VERSION`](crate::IDENTITY_VERSION).
///
/// ```
/// use steadfast_server::RecordId;
///
/// let id = RecordId::new("tenant-7", "order-1042");
/// assert_eq!(id, RecordId::new("tenant-7", "order-1042"));
/// assert_ne!(id, RecordId::new("tenant-8", "order-1042"));
/// // An event with the same id is another record.
/// assert_ne!(id, RecordId::of_event("tenant-7", "order-1042"));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordId([u8; 32]);

// Eight bytes are spread as evenly as all 32. An attacker can make ids that collide here under
// every seed of a table, but not many: two take 2³² hashes, four take 2⁴⁸, and each further one
// more. A pair costs one comparison, and a long chain is out of reach.
impl Hash for RecordId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
    }
}

impl RecordId {
    /// Creates the identity of `key` in `scope` (a tenant, a caller). The scope is empty for
    /// [`Scope::single_caller`](crate::Scope::single_caller).
    #[must_use]
    pub fn new(scope: &str, key: &str) -> Self {
        let mut hash = Sha256::new();
        // The length keeps ("a", "bc") and ("ab", "c") apart.
        hash.update(u64::try_from(scope.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(scope);
        hash.update(key);
        Self(hash.finalize().into())
    }

    /// Creates the identity of an event that this consumer handles. It never equals the identity of
    /// a key.
    #[must_use]
    pub fn of_event(consumer: &str, event_id: &str) -> Self {
        let mut hash = Sha256::new();
        // No scope is this long.
        hash.update(u64::MAX.to_be_bytes());
        hash.update(Self::new(consumer, event_id).0);
        Self(hash.finalize().into())
    }

    /// Returns the bytes of the hash, which are evenly spread.
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

/// A hash of a request: of its method, host name, target with query, and body, or of what
/// [`BodyFingerprint`](crate::BodyFingerprint) leaves of the body. Under one key there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub(crate) [u8; 32]);

impl Fingerprint {
    /// Creates the fingerprint of a payload: its SHA-256.
    ///
    /// ```
    /// use steadfast_server::Fingerprint;
    ///
    /// assert_eq!(Fingerprint::of("pay 10"), Fingerprint::of("pay 10"));
    /// assert_ne!(Fingerprint::of("pay 10"), Fingerprint::of("pay 20"));
    /// ```
    #[must_use]
    pub fn of(payload: impl AsRef<[u8]>) -> Self {
        Self(Sha256::digest(payload).into())
    }

    /// Hashes parts, with their lengths first, so that no part can be shifted into another.
    pub(crate) fn of_parts<const N: usize>(parts: [&[u8]; N]) -> Self {
        // All lengths in one piece, because each update of a hash costs time.
        let lengths = parts.map(|part| u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        let mut hash = Sha256::new_with_prefix(lengths.as_flattened());
        parts.iter().for_each(|part| hash.update(part));
        Self(hash.finalize().into())
    }

    /// Restores a fingerprint from the bytes that a store kept.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, for a store to keep.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A scope, as a store counts what it holds of each: see [`Store::limits_scopes`]. It is a hash, so
/// no store holds the name.
///
/// [`Store::limits_scopes`]: super::Store::limits_scopes
///
/// ```
/// use steadfast_server::ScopeId;
///
/// assert_eq!(ScopeId::of("tenant-7"), ScopeId::of("tenant-7"));
/// assert_ne!(ScopeId::of("tenant-7"), ScopeId::of("tenant-8"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScopeId(NonZeroU64);

impl ScopeId {
    /// Creates the identity of a scope.
    #[must_use]
    pub fn of(scope: &str) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(Sha256::digest(scope));
        let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        Self(NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN))
    }

    /// Returns the number that stands for the scope.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

/// The name of one claim. Its maker can repeat every call about the claim, and nobody else can.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClaimToken([u8; 16]);

impl ClaimToken {
    /// Creates a token from the operating system's randomness. For a claim in a store, call
    /// [`Store::token`](super::Store::token) instead.
    ///
    /// # Errors
    ///
    /// Returns an error if the operating system has no randomness.
    pub fn new() -> Result<Self, KeyError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| KeyError::NoRandomness(error.to_string()))?;
        Ok(Self(bytes))
    }

    /// Restores a token from the bytes that a store kept.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, for a store to keep.
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
