//! A value on cache lines of its own, so that two cores at two of them do not wait for one line.

/// Two lines: a processor may fetch the neighbour of one along with it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Apart<T>(pub(super) T);
