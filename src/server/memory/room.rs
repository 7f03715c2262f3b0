//! How much a store in memory may hold, and how much it does.

use std::ops::Add;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::server::apart::Apart;
use crate::server::store::StoreError;

/// The bounds, and what is held within them.
///
/// Every claim of every core counts here, so that it touches as little as it can: one that sweeps as many records as it adds leaves their
/// number alone.
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

    /// Takes room for what comes, some of it in the place of what has gone and of what it replaces; where there is no room, what has gone
    /// is room all the same, and what would have been replaced stays.
    pub(super) fn replace(&self, gone: Held, replaced: Held, comes: Held) -> Result<(), StoreError> {
        let room = gone + replaced;
        let Apart(taken) = &self.taken;
        // Where there is no room for one more, none has gone and none is replaced.
        trade(&taken.records, room.records, comes.records, self.max_records)?;
        trade(&taken.bytes, room.bytes, comes.bytes, self.max_bytes).inspect_err(|_| {
            self.give_back(Held { records: comes.records - replaced.records, bytes: gone.bytes });
        })
    }

    /// What a record takes changes to what it must, within the bounds or not.
    pub(super) fn resize(&self, bytes: usize, now_bytes: usize) {
        let _fits = trade(&self.taken.0.bytes, bytes, now_bytes, usize::MAX);
    }

    pub(super) fn give_back(&self, held: Held) {
        let Apart(taken) = &self.taken;
        taken.records.fetch_sub(held.records, Ordering::Relaxed);
        taken.bytes.fetch_sub(held.bytes, Ordering::Relaxed);
    }
}

/// `comes` in the place of `gone`, within `most`.
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
