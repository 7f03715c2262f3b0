//! A value on cache lines of its own, so that two cores that use two such values do not wait for
//! one line.

/// Two lines, because a processor may fetch the neighbour of a line along with it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Apart<T>(pub(super) T);
