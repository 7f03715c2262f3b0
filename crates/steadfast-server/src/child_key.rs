//! Keys that follow from the operation that is being served, for the calls that its handler makes.
//!
//! A handler that is run again repeats its own calls. If it minted a key for each of them, the
//! services behind it would see new operations: one order and two charges. So the keys of its calls
//! are derived from what it serves, and stay the same.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use steadfast_core::key::IdempotencyKey;
use uuid::Uuid;

use super::store::RecordId;

/// The operation that a handler serves: in the request's extensions of every request that the layer runs under a key.
///
/// ```
/// use steadfast_server::OperationKey;
///
/// let order = OperationKey::new("tenant-7", "the client's key");
/// let charge = order.child_key("charge-card");
/// assert_eq!(charge, order.child_key("charge-card"));
/// assert_ne!(charge, order.child_key("send-receipt"));
/// // Another tenant's equal key is another operation, and so are its calls.
/// assert_ne!(charge, OperationKey::new("tenant-8", "the client's key").child_key("charge-card"));
/// ```
#[derive(Clone, Copy)]
pub struct OperationKey {
    id: RecordId,
    /// Where its claim is held: the address of the store, or 0 if that is not known. It is no part
    /// of what the operation is.
    store: usize,
}

impl PartialEq for OperationKey {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for OperationKey {}

impl OperationKey {
    /// The operation of this key in this scope; empty for
    /// [`Scope::single_caller`](super::Scope::single_caller).
    #[must_use]
    pub fn new(scope: &str, key: &str) -> Self {
        Self::of(RecordId::new(scope, key))
    }

    /// The handling of this event by this consumer.
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

    /// Derives the key of one call that the handler makes. `label` names the call: one name for each
    /// call that is to be made once.
    ///
    /// HMAC-SHA256 (RFC 2104) of the label, keyed by the SHA-256 of the parent's scope and key; its
    /// first 16 bytes as a UUID of version 8 (RFC 9562 §5.8). So equal parents and labels give
    /// equal keys in every process, different ones never do, and nobody who sees a child's key can
    /// tell the parent's or a sibling's.
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

    /// The record's identity.
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
    fn a_derived_key_is_what_the_documentation_says() {
        // By another implementation: HMAC-SHA256 over the label, keyed by SHA-256(u64be(len(scope))
        // ‖ scope ‖ key), as a UUIDv8.
        let child = OperationKey::new("tenant-7", "order-1").child_key("charge-card");
        assert_eq!(child.as_str(), "c878ba45-f7ba-8753-b188-cefe06310d77");
    }

    #[test]
    fn an_event_is_no_key_of_the_same_name() {
        assert_ne!(OperationKey::new("billing", "evt_1"), OperationKey::of_event("billing", "evt_1"));
    }
}
