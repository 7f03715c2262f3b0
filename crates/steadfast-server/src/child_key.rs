//! Keys for the calls that a handler makes, derived from the operation that it serves.
//!
//! If a handler runs again, it repeats its own calls. If it minted a new key for each of them, the
//! services behind it would see new operations: one order and two charges. Derived keys stay the
//! same.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use steadfast_core::key::IdempotencyKey;
use uuid::Uuid;

use super::store::RecordId;

/// The operation that a handler serves. It is in the extensions of every request that the layer
/// runs under a key.
///
/// ```
/// use steadfast_server::OperationKey;
///
/// let order = OperationKey::new("tenant-7", "the client's key");
/// let charge = order.child_key("charge-card");
/// assert_eq!(charge, order.child_key("charge-card"));
/// assert_ne!(charge, order.child_key("send-receipt"));
/// // Another tenant's equal key is another operation, so its calls have other keys.
/// assert_ne!(charge, OperationKey::new("tenant-8", "the client's key").child_key("charge-card"));
/// ```
#[derive(Clone, Copy)]
pub struct OperationKey {
    id: RecordId,
    /// The address of the store that holds its claim, or 0 if that is not known. It is no part of
    /// the operation's identity.
    store: usize,
}

impl PartialEq for OperationKey {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for OperationKey {}

impl OperationKey {
    /// Creates the operation of this key in this scope. The scope is empty for
    /// [`Scope::single_caller`](super::Scope::single_caller).
    ///
    /// ```
    /// use steadfast_server::{OperationKey, RecordId};
    ///
    /// // In a tool, to look up what a caller reports: its scope and its key.
    /// let operation = OperationKey::new("tenant-7", "order-1042");
    /// assert_eq!(*operation.record_id(), RecordId::new("tenant-7", "order-1042"));
    /// ```
    #[must_use]
    pub fn new(scope: &str, key: &str) -> Self {
        Self::of(RecordId::new(scope, key))
    }

    /// Creates the operation in which this consumer handles this event.
    #[must_use]
    pub fn of_event(consumer: &str, event_id: &str) -> Self {
        Self::of(RecordId::of_event(consumer, event_id))
    }

    pub(super) fn of(id: RecordId) -> Self {
        Self { id, store: 0 }
    }

    pub(super) fn claimed(id: RecordId, store: usize) -> Self {
        Self { id, store }
    }

    pub(super) fn is_claimed(&self, id: &RecordId, store: usize) -> bool {
        self.store == store && self.id == *id
    }

    /// Derives the key of one call that the handler makes. `label` names the call: use one label
    /// for each call that is to be made once.
    ///
    /// Equal operations and labels give equal keys in every process; different ones give different
    /// keys. Nobody can derive the operation's key or a sibling's from a child key.
    ///
    /// The key is the HMAC-SHA256 (RFC 2104) of the label, keyed by the SHA-256 of the operation's
    /// scope and key. Its first 16 bytes are a UUID of version 8 (RFC 9562 §5.8).
    ///
    /// ```
    /// use axum::{Extension, http::StatusCode};
    /// use steadfast_server::OperationKey;
    ///
    /// async fn order(Extension(operation): Extension<OperationKey>) -> StatusCode {
    ///     // If this handler runs again, the payment service recognises the repeat.
    ///     let key = operation.child_key("charge-card");
    ///     // Send the charge with `key` in its Idempotency-Key header.
    ///     # let _ = key;
    ///     StatusCode::CREATED
    /// }
    /// ```
    #[must_use]
    pub fn child_key(&self, label: impl AsRef<[u8]>) -> IdempotencyKey {
        // HMAC takes a key of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.id.as_bytes()) else {
            return IdempotencyKey::from_custom(Uuid::nil());
        };
        mac.update(label.as_ref());
        let digest: [u8; 32] = mac.finalize().into_bytes().into();
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = digest;
        let first = [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p];
        IdempotencyKey::from_custom(uuid::Builder::from_custom_bytes(first).into_uuid())
    }

    /// Returns the identity of the operation's record, for [`Store::get`](super::Store::get).
    #[must_use]
    pub fn record_id(&self) -> &RecordId {
        &self.id
    }
}

impl fmt::Debug for OperationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OperationKey").field(&self.id).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_key_matches_its_documentation() {
        // Computed with another implementation: HMAC-SHA256 over the label, keyed by
        // SHA-256(u64be(len(scope)) ‖ scope ‖ key), as a UUIDv8.
        let child = OperationKey::new("tenant-7", "order-1").child_key("charge-card");
        assert_eq!(child.as_str(), "c878ba45-f7ba-8753-b188-cefe06310d77");
    }

    #[test]
    fn event_and_equal_key_are_two_operations() {
        assert_ne!(OperationKey::new("billing", "evt_1"), OperationKey::of_event("billing", "evt_1"));
    }
}
