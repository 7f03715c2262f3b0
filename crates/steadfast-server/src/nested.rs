//! A layer inside another layer.
//!
//! A router and one of its routes may both have a layer, and a request then meets two. If both
//! claimed one record, the inner layer would find the outer one's claim, take it for another
//! request's, and respond "in progress". The outer layer would store that as the operation's end.
//! So a request that runs under a key carries the record and the store of that key.

use http::Extensions;

use super::child_key::OperationKey;
use super::shared_store::SharedStore;
use super::store::RecordId;

/// The operations around the one that is in the request's extensions as [`OperationKey`]. They have
/// an extension of their own, because they are rare.
#[derive(Clone, Default)]
struct Enclosing(Vec<OperationKey>);

/// Marks a request that runs under this record from now on.
pub(super) fn enter<S>(extensions: &mut Extensions, id: RecordId, store: &SharedStore<S>) {
    if let Some(outer) = extensions.insert(OperationKey::claimed(id, store.address())) {
        extensions.get_or_insert_default::<Enclosing>().0.push(outer);
    }
}

/// Returns whether the request already runs under this record. Only the very same store counts: a
/// request that comes by another route may meet only the record in the other store.
pub(super) fn is_entered<S>(extensions: &Extensions, id: &RecordId, store: &SharedStore<S>) -> bool {
    let is_it = |operation: &OperationKey| operation.is_claimed(id, store.address());
    extensions.get().is_some_and(is_it)
        || extensions.get::<Enclosing>().is_some_and(|Enclosing(outer)| outer.iter().any(is_it))
}
