//! Tokens that were released or cancelled, so that a late copy of their claim is refused.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::room::Held;
use super::shard::later;
use crate::server::store::{ClaimToken, TOMBSTONE};

/// About what a tombstone takes in its two collections, in bytes.
pub(super) const SIZE: usize = 96;
/// A claim removes at most this many on its way.
const SWEEP: usize = 8;

/// The tombstones of one shard. All live equally long, so the oldest is the first to go.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    until: HashMap<ClaimToken, Instant>,
    by_age: VecDeque<ClaimToken>,
}

impl Tombstones {
    /// Whether this token may win nothing any more.
    pub(super) fn contains(&self, token: ClaimToken, now: Instant) -> bool {
        // Most shards have none, and then nothing is hashed.
        !self.until.is_empty() && self.until.get(&token).is_some_and(|until| *until > now)
    }

    /// Keeps a token. Returns what it takes; nothing if it is kept already.
    pub(super) fn bury(&mut self, token: ClaimToken, now: Instant) -> Held {
        if self.until.contains_key(&token) {
            return Held::default();
        }
        self.until.insert(token, later(now, TOMBSTONE));
        self.by_age.push_back(token);
        Held { records: 0, bytes: SIZE }
    }

    /// Forgets some whose time is over. Returns what they took.
    pub(super) fn sweep(&mut self, now: Instant) -> Held {
        let mut gone = Held::default();
        for _ in 0..SWEEP {
            let Some(oldest) = self.by_age.front() else { break };
            if self.contains(*oldest, now) {
                break;
            }
            self.until.remove(oldest);
            self.by_age.pop_front();
            gone.bytes += SIZE;
        }
        gone
    }

    /// What they take.
    #[cfg(test)]
    pub(super) fn held(&self) -> Held {
        Held { records: 0, bytes: self.by_age.len() * SIZE }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;

    #[test]
    fn a_tombstone_lasts_its_time_and_is_counted() {
        let (mut tombstones, now) = (Tombstones::default(), clock::now());
        let (one, other) = (ClaimToken::from_bytes([1; 16]), ClaimToken::from_bytes([2; 16]));
        assert_eq!(tombstones.bury(one, now).bytes, SIZE);
        assert_eq!(tombstones.bury(one, now).bytes, 0, "it is there already");
        let almost = now + TOMBSTONE - Duration::from_millis(1);
        assert!(tombstones.contains(one, almost) && !tombstones.contains(other, now));
        assert_eq!(tombstones.sweep(almost), Held::default());
        assert!(!tombstones.contains(one, now + TOMBSTONE), "not swept yet, and over all the same");
        assert_eq!(tombstones.sweep(now + TOMBSTONE).bytes, SIZE);
        assert_eq!(tombstones.held(), Held::default());
    }
}
