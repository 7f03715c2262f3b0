//! Claims that were released or cancelled, so that a late copy of one is refused.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::later;
use super::room::Usage;
use crate::store::{ClaimRef, ClaimToken, RecordId, TOMBSTONE};

/// The approximate size of a tombstone in its two collections, in bytes.
pub(super) const SIZE: usize = 192;
/// How many expired tombstones a claim removes at most.
const SWEEP: usize = 8;

/// The tombstones of one shard. All live equally long, so the oldest expires first.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    until: HashMap<ClaimRef, Instant>,
    /// Each tombstone with its end, in the order of burial. A claim that was buried again has a
    /// second, later place.
    by_age: VecDeque<(Instant, ClaimRef)>,
}

impl Tombstones {
    /// Returns whether this claim can no longer acquire the key.
    pub(super) fn contains(&self, id: &RecordId, token: ClaimToken, now: Instant) -> bool {
        // Most shards have no tombstones, and then no hash is computed.
        !self.until.is_empty() && self.until.get(&ClaimRef::new(*id, token)).is_some_and(|until| *until > now)
    }

    /// Buries a claim that has no tombstone now. Returns the room that the tombstone takes.
    pub(super) fn bury(&mut self, claim: ClaimRef, now: Instant) -> Usage {
        let until = later(now, TOMBSTONE);
        self.until.insert(claim, until);
        self.by_age.push_back((until, claim));
        Usage { records: 0, bytes: SIZE }
    }

    /// Removes some expired tombstones. Returns the room that they took.
    pub(super) fn sweep(&mut self, now: Instant) -> Usage {
        let mut gone = Usage::default();
        for _ in 0..SWEEP {
            let Some((until, oldest)) = self.by_age.front().copied().filter(|(until, _)| *until <= now) else { break };
            self.by_age.pop_front();
            if self.until.get(&oldest) == Some(&until) {
                self.until.remove(&oldest);
            }
            gone.bytes += SIZE;
        }
        gone
    }

    /// Returns the room that all tombstones take.
    #[cfg(test)]
    pub(super) fn held(&self) -> Usage {
        Usage { records: 0, bytes: self.by_age.len() * SIZE }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use steadfast_core::clock;

    fn claim(token: u8) -> ClaimRef {
        ClaimRef::new(RecordId::new("", "1"), ClaimToken::from_bytes([token; 16]))
    }

    fn contains(tombstones: &Tombstones, token: u8, now: Instant) -> bool {
        tombstones.contains(&claim(token).id, claim(token).token, now)
    }

    #[test]
    fn tombstone_lasts_its_time_and_is_counted() {
        let (mut tombstones, now) = (Tombstones::default(), clock::now());
        assert_eq!(tombstones.bury(claim(1), now).bytes, SIZE);
        let almost = now + TOMBSTONE - Duration::from_millis(1);
        assert!(contains(&tombstones, 1, almost) && !contains(&tombstones, 2, now));
        assert_eq!(tombstones.sweep(almost), Usage::default());
        assert!(!contains(&tombstones, 1, now + TOMBSTONE), "not swept yet, and over all the same");
        assert_eq!(tombstones.sweep(now + TOMBSTONE).bytes, SIZE);
        assert_eq!(tombstones.held(), Usage::default());
    }

    #[test]
    fn claim_buried_again_keeps_its_second_tombstone() {
        let (mut tombstones, now) = (Tombstones::default(), clock::now());
        tombstones.bury(claim(1), now);
        let second = now + TOMBSTONE;
        tombstones.bury(claim(1), second);
        assert_eq!(tombstones.sweep(second).bytes, SIZE, "the first one");
        assert!(contains(&tombstones, 1, second));
        assert_eq!(tombstones.sweep(second + TOMBSTONE).bytes, SIZE);
        assert_eq!(tombstones.held(), Usage::default());
    }
}
