//! A worker's lease, as the worker sees it.

use std::time::{Duration, Instant, SystemTime};

use steadfast_core::clock;

/// A lease that a store has given. It counts from the moment before the store was asked, so the
/// worker takes it for ended before anybody else does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    began: Instant,
    began_wall: SystemTime,
    length: Duration,
}

impl Lease {
    /// Counts a lease of this length from now.
    pub(crate) fn from_now(length: Duration) -> Self {
        Self { began: clock::now(), began_wall: clock::wall(), length }
    }

    /// Returns when an attempt has to end that starts now, or `None` if the lease is over.
    ///
    /// The steady clock stands still while the machine sleeps, and the wall clock can be set. Both
    /// must say that the lease holds.
    pub(crate) fn end_if_held(&self, now: Instant, wall: SystemTime) -> Option<Instant> {
        // A twentieth to spare, since clocks are corrected, and those of two hosts differ in their rate.
        let spare = self.length / 20;
        let by_wall = match wall.duration_since(self.began_wall) {
            Ok(passed) => passed,
            Err(back) if back.duration() <= spare => Duration::ZERO,
            Err(_) => return None,
        };
        let passed = now.saturating_duration_since(self.began).max(by_wall);
        let left = (self.length - spare).checked_sub(passed)?;
        now.checked_add(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn both_clocks_must_say_that_a_lease_holds() {
        let lease = Lease::from_now(20 * SECOND);
        let at = |steady: u32, wall: u32| {
            let end = lease.end_if_held(lease.began + steady * SECOND, lease.began_wall + wall * SECOND);
            end.map(|end| end - lease.began)
        };
        assert_eq!(at(0, 0), Some(19 * SECOND));
        assert_eq!(at(5, 5), Some(19 * SECOND));
        // The machine has slept for 12 s: so much less is left.
        assert_eq!(at(2, 14), Some(7 * SECOND));
        assert_eq!((at(20, 0), at(0, 20), at(19, 20)), (None, None, None));
        // The wall clock was set back, so it tells nothing.
        let back = |time| lease.end_if_held(lease.began + SECOND, lease.began_wall - time);
        assert_eq!((back(2 * SECOND), back(SECOND)), (None, Some(lease.began + 19 * SECOND)));
    }
}
