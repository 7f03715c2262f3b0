//! When to send a second request beside the first, instead of waiting for it.
//!
//! The slowest one of a hundred answers is often slow for no reason of its own: a pause, a queue, a bad host. A second request, sent once
//! the first is later than nearly all of them, is answered at the usual speed. What it costs is what is sent twice, so the policy says
//! after how long, and how much that may come to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::settings::InvalidPolicy;

/// When to hedge, and how much of it there may be.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::HedgePolicy;
///
/// // What is later than 98 of 100 answers of this origin is asked for again; at most 3 % of the requests are.
/// let tail = HedgePolicy::quantile(0.98).max_extra_load(0.03);
/// // A fixed time.
/// let fixed = HedgePolicy::after(Duration::from_millis(50));
/// # assert!(tail.validate().is_ok() && fixed.validate().is_ok());
/// ```
///
/// The lower the quantile, the more is sent twice, and the shorter is the tail. Simulated with answers of p50 10 ms and p95 18 ms of which 1 %
/// take a second: p95 with a limit of 2 % leaves p99.9 at 1,000 ms, since the limit is used up by answers that were nearly there; p98
/// with 3 % brings it to 39 ms, at 2.4 % more requests. So a limit under the quantile's own rate is an error when the client is built.
#[derive(Clone, Copy, Debug)]
pub struct HedgePolicy {
    when: HedgeAt,
    max_extra_load: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
#[doc(hidden)]
pub enum HedgeAt {
    After(Duration),
    Quantile(f64),
}

impl HedgePolicy {
    /// After this long; not zero. At most a tenth more requests, unless [`max_extra_load`](Self::max_extra_load) says otherwise.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        Self { when: HedgeAt::After(time), max_extra_load: 0.1 }
    }

    /// Once it is later than this share of the origin's answers, over 0 and under 1, in the last minute or so. Until 100 are known there
    /// are no hedges. At most half as much again as 1 − `share` in more requests, unless [`max_extra_load`](Self::max_extra_load)
    /// says otherwise.
    #[must_use]
    pub fn quantile(share: f64) -> Self {
        Self { when: HedgeAt::Quantile(share), max_extra_load: ((1.0 - share) * 1.5).min(1.0) }
    }

    /// The most requests that hedging may add, as a share of the operations that may be hedged: over 0, at most 1, and for a quantile
    /// not under 1 − that quantile. Ten may go out in a burst.
    #[must_use]
    pub fn max_extra_load(mut self, share: f64) -> Self {
        self.max_extra_load = share;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// Names the first setting that makes no sense, and why.
    pub fn validate(&self) -> Result<(), InvalidPolicy> {
        let invalid = |setting, reason| Err(InvalidPolicy { setting, reason });
        // 1 - 0.98 is a little more than 0.02.
        let own_rate = match self.when {
            HedgeAt::After(time) if time.is_zero() => return invalid("after", "zero sends everything twice"),
            HedgeAt::Quantile(share) if !(share > 0.0 && share < 1.0) => {
                return invalid("quantile", "it is over 0 and under 1");
            }
            HedgeAt::After(_) => 0.0,
            HedgeAt::Quantile(share) => 1.0 - share - 1e-9,
        };
        if !(self.max_extra_load > 0.0 && self.max_extra_load <= 1.0) {
            return invalid("max_extra_load", "it is over 0 and at most 1");
        }
        if self.max_extra_load < own_rate {
            let reason = "it is under 1 - quantile, the share of answers that are this late, so it would be spent on those that are \
                          nearly there and leave the slowest alone";
            return invalid("max_extra_load", reason);
        }
        Ok(())
    }

    #[doc(hidden)]
    pub fn at(&self) -> HedgeAt {
        self.when
    }

    #[doc(hidden)]
    pub fn limit(&self) -> f64 {
        self.max_extra_load
    }
}

/// What one hedge costs, in millionths: an operation earns its share of it.
const HEDGE: u64 = 1_000_000;
/// The most that is saved up, and so the largest burst.
const MOST: u64 = 10 * HEDGE;

/// How many hedges an origin may be sent now.
#[derive(Debug)]
#[doc(hidden)]
pub struct HedgeAllowance(AtomicU64);

impl Default for HedgeAllowance {
    /// One, so that the first slow answer need not be waited for.
    fn default() -> Self {
        Self(AtomicU64::new(HEDGE))
    }
}

impl HedgeAllowance {
    /// An operation that may be hedged starts.
    #[doc(hidden)]
    pub fn earn(&self, share: f64) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float cast saturates; NaN is 0")]
        self.put((share * 1_000_000.0).round() as u64);
    }

    /// Takes one, if there is one.
    #[doc(hidden)]
    pub fn spend(&self) -> bool {
        // Relaxed: the number is the only thing that is shared.
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| saved.checked_sub(HEDGE)).is_ok()
    }

    /// Puts back what was not sent.
    #[doc(hidden)]
    pub fn give_back(&self) {
        self.put(HEDGE);
    }

    fn put(&self, millionths: u64) {
        let add = |saved: u64| Some(saved.saturating_add(millionths).min(MOST));
        // Cannot fail: `add` always answers `Some`.
        let _previous = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_make_no_sense() {
        let setting = |policy: HedgePolicy| policy.validate().map_err(|error| error.setting());
        let quantile = HedgePolicy::quantile;
        assert_eq!(setting(quantile(0.98)), Ok(()));
        assert_eq!(setting(quantile(0.98).max_extra_load(0.02)), Ok(()), "its own rate");
        assert_eq!(setting(quantile(0.1)), Ok(()), "the default limit is bounded");
        assert_eq!(setting(quantile(0.95).max_extra_load(0.02)), Err("max_extra_load"));
        for share in [0.0, 1.0, -0.5, 98.0, f64::NAN] {
            assert_eq!(setting(quantile(share)), Err("quantile"), "{share}");
        }
        let after = HedgePolicy::after;
        assert_eq!(setting(after(Duration::ZERO)), Err("after"));
        for share in [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(setting(after(Duration::from_secs(1)).max_extra_load(share)), Err("max_extra_load"), "{share}");
        }
    }

    #[test]
    fn an_allowance_binds_in_the_long_run_and_is_bounded() {
        let allowance = HedgeAllowance::default();
        let sent = (0..10_000).filter(|_| {
            allowance.earn(0.03);
            allowance.spend()
        });
        assert_eq!(sent.count(), 301, "three in a hundred, and the one to begin with");
        for _ in 0..1000 {
            allowance.earn(1.0);
        }
        assert_eq!((0..20).filter(|_| allowance.spend()).count(), 10);
        allowance.give_back();
        assert!(allowance.spend() && !allowance.spend());
        allowance.earn(f64::NAN);
        assert!(!allowance.spend());
    }
}
