//! The time of an outbox: one that never goes back, and says so if the wall clock did.

use serde::{Deserialize, Serialize};

/// The wall clock of a host may be wrong by this much without harm, in milliseconds.
const STEP_MS: u64 = 30_000;

/// A moment by the clock of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Now {
    /// Milliseconds since the Unix epoch.
    pub ms: u64,
    /// Of what was written down up to this moment, nobody knows how old it is.
    pub doubtful_until_ms: Option<u64>,
}

impl Now {
    /// Makes a moment by a clock that everybody relies on, such as that of a database.
    #[must_use]
    pub fn certain(ms: u64) -> Self {
        Self { ms, doubtful_until_ms: None }
    }
}

/// The high-water mark of a host's wall clock, which a store keeps beside its entries.
///
/// If the wall clock is set back, the time of the outbox goes on from the highest time that was
/// written. So a key seems older than by the wall clock, and never younger. After a step of more than
/// 30 s the age of the entries before it is not known at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HighWater {
    /// The latest time that was written.
    latest_ms: u64,
    /// How far the wall clock was set back so far.
    behind_ms: u64,
    doubtful_until_ms: Option<u64>,
}

impl HighWater {
    /// Returns the time of the outbox at this wall-clock time, and remembers it.
    pub fn tick(&mut self, wall_ms: u64) -> Now {
        let time = wall_ms.saturating_add(self.behind_ms);
        let step = self.latest_ms.saturating_sub(time);
        self.behind_ms = self.behind_ms.saturating_add(step);
        if step > STEP_MS {
            self.doubtful_until_ms = Some(self.latest_ms);
        }
        self.latest_ms = self.latest_ms.max(time);
        Now { ms: self.latest_ms, doubtful_until_ms: self.doubtful_until_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_set_back_never_makes_a_key_younger() {
        let mut clock = HighWater::default();
        assert_eq!(clock.tick(100_000), Now::certain(100_000));
        assert_eq!(clock.tick(90_000), Now::certain(100_000));
        // Ten seconds later by the wall clock, ten seconds later here.
        assert_eq!(clock.tick(100_000), Now::certain(110_000));
        assert_eq!(clock.tick(101_000), Now::certain(111_000));
    }

    #[test]
    fn large_step_back_makes_earlier_entries_doubtful() {
        let mut clock = HighWater::default();
        clock.tick(1_000_000);
        assert_eq!(clock.tick(1_000_000 - STEP_MS), Now::certain(1_000_000));
        let mut clock = HighWater::default();
        clock.tick(1_000_000);
        let after = Now { ms: 1_000_000, doubtful_until_ms: Some(1_000_000) };
        assert_eq!(clock.tick(1_000_000 - STEP_MS - 1), after);
        assert_eq!(clock.tick(1_000_000 - STEP_MS + 4_999), Now { ms: 1_005_000, ..after });
    }
}
