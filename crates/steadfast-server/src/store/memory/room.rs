//! The bounds of a store in memory, and the room that is taken.

use std::ops::Add;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::apart::Apart;
use crate::store::StoreError;

/// The bounds, and the room taken within them.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) max_records: usize,
    pub(super) max_bytes: usize,
    taken: Apart<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    records: AtomicUsize,
    bytes: AtomicUsize,
}

/// Records, and the bytes that are reserved or used for them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Held {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl Add for Held {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { records: self.records + other.records, bytes: self.bytes + other.bytes }
    }
}

impl Room {
    pub(super) fn new(max_records: usize, max_bytes: usize) -> Self {
        Self { max_records, max_bytes, taken: Apart::default() }
    }

    pub(super) fn taken(&self) -> Held {
        let Apart(taken) = &self.taken;
        Held { records: taken.records.load(Ordering::Relaxed), bytes: taken.bytes.load(Ordering::Relaxed) }
    }

    /// Takes room for a record that replaces another. Changes nothing if there is no room.
    pub(super) fn replace(&self, replaced: Held, bytes: usize) -> Result<(), StoreError> {
        let Apart(taken) = &self.taken;
        trade(&taken.records, replaced.records, 1, self.max_records)?;
        trade(&taken.bytes, replaced.bytes, bytes, self.max_bytes).inspect_err(|_| {
            let _fits = trade(&taken.records, 1, replaced.records, usize::MAX);
        })
    }

    /// Changes the size of a record, within the bounds or not.
    pub(super) fn resize(&self, bytes: usize, now_bytes: usize) {
        let _fits = trade(&self.taken.0.bytes, bytes, now_bytes, usize::MAX);
    }

    /// Takes room, within the bounds or not.
    pub(super) fn overrun(&self, held: Held) {
        let Apart(taken) = &self.taken;
        taken.records.fetch_add(held.records, Ordering::Relaxed);
        taken.bytes.fetch_add(held.bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, held: Held) {
        let Apart(taken) = &self.taken;
        taken.records.fetch_sub(held.records, Ordering::Relaxed);
        taken.bytes.fetch_sub(held.bytes, Ordering::Relaxed);
    }
}

/// Replaces `gone` by `comes` in a counter, within `most`.
fn trade(counter: &AtomicUsize, gone: usize, comes: usize, most: usize) -> Result<(), StoreError> {
    let more = comes.saturating_sub(gone);
    if more > 0 {
        let add = |now: usize| now.checked_add(more).filter(|sum| *sum <= most);
        return counter
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .map(|_| ())
            .map_err(|_| StoreError::Full);
    }
    if gone > comes {
        counter.fetch_sub(gone - comes, Ordering::Relaxed);
    }
    Ok(())
}
