//! A record as it is kept in memory.
//!
//! An unpacked record is about five allocations: a map of headers and its index, a body, and the
//! box that shares them. One core makes it, and any other may forget it after it has expired. Each
//! allocation that moves between cores costs time (`guide/performance.md`, "Memory records in one
//! piece"). So a small record is packed. A large one is not copied, because the cost of a copy is
//! its length.

use bytes::Bytes;

use crate::store::{Record, RecordError};

/// The longest body that is copied, in bytes.
const SMALL: usize = 4096;

#[derive(Clone, Debug)]
pub(super) enum Kept {
    Packed(Bytes),
    Whole(Record),
}

impl Kept {
    pub(super) fn of(record: &Record) -> Self {
        let is_small = record.body().is_none_or(|body| body.len() <= SMALL);
        if is_small { Self::Packed(record.pack()) } else { Self::Whole(record.clone()) }
    }

    /// Returns the approximate size, in bytes.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.len(),
            Self::Whole(record) => record.size(),
        }
    }

    pub(super) fn into_record(self) -> Result<Record, RecordError> {
        match self {
            Self::Packed(packed) => Record::unpack(&packed),
            Self::Whole(record) => Ok(record),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;

    #[test]
    fn only_small_body_is_copied() {
        for length in [1, SMALL, SMALL + 1] {
            let body = Bytes::from(vec![b'x'; length]);
            let record = Record::new(StatusCode::OK, &HeaderMap::new(), body.clone());
            let kept = Kept::of(&record);
            assert!(kept.size() >= length, "{length}");
            let back = kept.into_record().unwrap();
            assert_eq!(back, record, "{length}");
            let is_shared = back.body().unwrap().as_ptr() == body.as_ptr();
            assert_eq!(is_shared, length > SMALL, "{length}");
        }
    }
}
