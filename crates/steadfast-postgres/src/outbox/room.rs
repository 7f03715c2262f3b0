//! How much an outbox may hold.
//!
//! Counting a large table takes a while, so the count is used for some time: until an eighth of what
//! was left has been added by this process, for a minute at most, and for a second if the limit was
//! reached.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use steadfast_core::clock;
use steadfast_outbox::Usage;

use super::table::Table;

/// Maximum number of operations that are swept when there is no room.
const SWEEP: usize = 256;
const COUNT_AT_LEAST_EVERY: Duration = Duration::from_secs(60);
const COUNT_WHEN_FULL_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Room {
    pub(super) max: Usage,
    known: Mutex<Option<Known>>,
}

#[derive(Clone, Copy)]
struct Known {
    counted: Usage,
    at: Instant,
    /// What this process has added since.
    added: Usage,
}

impl Room {
    pub(super) fn new(max: Usage) -> Self {
        Self { max, known: Mutex::default() }
    }

    /// Counts what this process has added.
    pub(super) fn add(&self, added: Usage) {
        self.with(|known| {
            if let Some(Known { added: sum, .. }) = known {
                *sum = Usage::new(sum.entries + added.entries, sum.bytes.saturating_add(added.bytes));
            }
        });
    }

    /// Forgets that the limit was reached, since there may be room now.
    pub(super) fn look_again(&self) {
        self.with(|known| *known = known.filter(|known| self.reached(known.counted).is_none()));
    }

    /// Returns the limit that is reached. Before that it sweeps. If nothing can be counted, it returns
    /// `None`: the statement that follows has the error.
    pub(super) async fn full(&self, table: &Table) -> Option<String> {
        let now = clock::now();
        if let Some(known) = self.with(|known| *known).filter(|known| self.is_good(known, now)) {
            return self.reached(known.counted);
        }
        let mut counted = table.usage().await.ok()?;
        if self.reached(counted).is_some() && table.sweep(SWEEP).await.is_ok_and(|swept| swept > 0) {
            counted = table.usage().await.ok()?;
        }
        self.with(|known| *known = Some(Known { counted, at: now, added: Usage::default() }));
        self.reached(counted)
    }

    fn is_good(&self, known: &Known, now: Instant) -> bool {
        let age = now.saturating_duration_since(known.at);
        let few = |added: u64, counted: u64, max: u64| added <= max.saturating_sub(counted) / 8;
        match self.reached(known.counted) {
            Some(_) => age < COUNT_WHEN_FULL_EVERY,
            None => {
                age < COUNT_AT_LEAST_EVERY
                    && few(known.added.entries, known.counted.entries, self.max.entries)
                    && few(known.added.bytes, known.counted.bytes, self.max.bytes)
            }
        }
    }

    fn reached(&self, usage: Usage) -> Option<String> {
        if usage.entries >= self.max.entries {
            Some(format!("max_entries {}", self.max.entries))
        } else if usage.bytes >= self.max.bytes {
            Some(format!("max_bytes {}", self.max.bytes))
        } else {
            None
        }
    }

    fn with<T>(&self, call: impl FnOnce(&mut Option<Known>) -> T) -> T {
        call(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_is_used_until_an_eighth_of_the_room_is_taken() {
        let room = Room::new(Usage::new(1_000, 1_000_000));
        let at = clock::now();
        let known = |entries, added| Known { counted: Usage::new(entries, 0), at, added: Usage::new(added, 0) };
        let is_good = |known: &Known, seconds| room.is_good(known, at + Duration::from_secs(seconds));
        assert!(is_good(&known(200, 100), 59) && !is_good(&known(200, 100), 60));
        assert!(!is_good(&known(200, 101), 0));
        // Nearly full: each submission counts.
        assert!(is_good(&known(995, 0), 0) && !is_good(&known(995, 1), 0));
        assert!(room.reached(Usage::new(1_000, 0)).is_some() && !is_good(&known(1_000, 0), 1));
        assert_eq!(room.reached(Usage::new(0, 1_000_000)).as_deref(), Some("max_bytes 1000000"));
    }
}
