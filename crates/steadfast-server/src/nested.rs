//! A layer inside of another.
//!
//! A router and one of its routes may both have a layer, and a request then meets two. Where both
//! would claim one record, the inner one would find the claim of the outer, take it for another
//! request's, and answer "still running"; the outer one would store that as the operation's end. So
//! a request that runs under a key carries which record of which store that is.

use http::Extensions;

use super::child_key::OperationKey;
use super::shared_store::SharedStore;
use super::store::RecordId;

/// The operations around the one that is in the request's extensions as [`OperationKey`]. Rare, so
/// it has an extension of its own.
#[derive(Clone, Default)]
struct Enclosing(Vec<OperationKey>);

/// Marks a request that runs from now on under this record.
pub(super) fn enter<S>(extensions: &mut Extensions, id: RecordId, store: &SharedStore<S>) {
    if let Some(outer) = extensions.insert(OperationKey::claimed(id, store.address())) {
        extensions.get_or_insert_default::<Enclosing>().0.push(outer);
    }
}

/// Whether the request already runs under this record. Only the very same store counts: a record in
/// another one may be all that a request meets which comes in by another way.
pub(super) fn is_entered<S>(extensions: &Extensions, id: &RecordId, store: &SharedStore<S>) -> bool {
    let is_it = |operation: &OperationKey| operation.is_claimed(id, store.address());
    extensions.get().is_some_and(is_it)
        || extensions.get::<Enclosing>().is_some_and(|Enclosing(outer)| outer.iter().any(is_it))
}
