//! What names a record, a request and a claim.

use std::fmt;
use std::hash::{Hash, Hasher};

use sha2::{Digest, Sha256};
use steadfast_core::key::KeyError;

/// A record's identity: scope and key, hashed. Two tenants' equal keys are two records, and no store holds a raw key.
///
/// How it is hashed is part of [`IDENTITY_VERSION`](crate::IDENTITY_VERSION).
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
    /// A new one, from the operating system's randomness. For a claim in a store, ask [`Store::token`](super::Store::token).
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
