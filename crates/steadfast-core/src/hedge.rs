//! Hedging: when to send a second request beside a late first one, instead of waiting for it.
//!
//! The slowest of a hundred responses is often slow by accident: a pause, a queue, a bad host. If a
//! second request goes out once the first is later than nearly all others, its response comes at
//! the usual speed. The price is the requests that are sent twice. So a policy sets the delay, and
//! a limit on the extra requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// When to send a hedge, and how many hedges to send at most.
///
/// The lower the quantile, the more is sent twice, and the shorter is the tail. In a simulation,
/// responses took 10 ms (p50) and 18 ms (p95), and 1 % of them a second:
///
/// | policy | p99.9 | more requests |
/// | --- | --- | --- |
/// | p95, at most 2 % | 1,000 ms: responses that were nearly there use up the limit | at most 2 % |
/// | p98, at most 3 % | 39 ms | 2.4 % |
///
/// So a limit under the quantile's own rate is an error when you build the client.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::HedgePolicy;
///
/// // Hedges a request that is later than 98 of 100 responses; adds at most 3 % more requests.
/// let tail = HedgePolicy::quantile(0.98).max_extra_load(0.03);
/// assert!(tail.validate().is_ok());
///
/// // Hedges after a fixed time.
/// let fixed = HedgePolicy::after(Duration::from_millis(50));
/// assert!(fixed.validate().is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct HedgePolicy {
    /// When the first request counts as late.
    pub at: HedgeAt,
    /// The most requests that hedging may add, as a share of the operations that may be hedged.
    pub max_extra_load: f64,
}

/// When a first request counts as late, so that a second one goes out beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum HedgeAt {
    /// After this long. Not zero.
    After(Duration),
    /// Once it is later than this share of the origin's responses: over 0 and under 1.
    Quantile(f64),
}

impl HedgePolicy {
    /// Creates a policy that hedges a request after this time. Not zero.
    ///
    /// It adds at most a tenth more requests, unless you set
    /// [`max_extra_load`](Self::max_extra_load).
    #[must_use]
    pub fn after(time: Duration) -> Self {
        Self { at: HedgeAt::After(time), max_extra_load: 0.1 }
    }

    /// Creates a policy that hedges a request once it is later than this share of the origin's
    /// recent responses: those of the last minute or so. The share is over 0 and under 1. There are
    /// no hedges before 100 responses are known.
    ///
    /// It adds at most 1.5 × (1 − `share`) more requests, unless you set
    /// [`max_extra_load`](Self::max_extra_load).
    #[must_use]
    pub fn quantile(share: f64) -> Self {
        Self { at: HedgeAt::Quantile(share), max_extra_load: ((1.0 - share) * 1.5).min(1.0) }
    }

    /// Sets the most requests that hedging may add, as a share of the operations that may be
    /// hedged. Over 0, at most 1, and for a quantile not under 1 − that quantile. A burst may have
    /// ten hedges.
    ///
    /// ```
    /// use steadfast_core::HedgePolicy;
    ///
    /// let error = HedgePolicy::quantile(0.95).max_extra_load(0.02).validate().unwrap_err();
    /// assert_eq!(error.setting, "max_extra_load"); // 5 % of the responses are that late
    /// ```
    #[must_use]
    pub fn max_extra_load(mut self, share: f64) -> Self {
        self.max_extra_load = share;
        self
    }
}

/// The price of one hedge, in millionths. An operation earns its share of it.
const HEDGE: u64 = 1_000_000;
/// The most that can be saved up, and so the largest burst.
const MOST: u64 = 10 * HEDGE;

/// How many hedges an origin may be sent now: the state behind [`HedgePolicy::max_extra_load`].
#[derive(Debug)]
pub(super) struct HedgeAllowance(AtomicU64);

impl Default for HedgeAllowance {
    /// Starts with one hedge, so that the first slow response can be hedged.
    fn default() -> Self {
        Self(AtomicU64::new(HEDGE))
    }
}

impl HedgeAllowance {
    /// Earns the share of an operation that may be hedged.
    pub(super) fn earn(&self, share: f64) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float cast saturates; NaN is 0")]
        self.put((share * 1_000_000.0).round() as u64);
    }

    /// Takes one hedge, if one is saved up.
    pub(super) fn spend(&self) -> bool {
        // Relaxed: the number is the only thing that is shared.
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| saved.checked_sub(HEDGE)).is_ok()
    }

    /// Puts back a hedge that was not sent.
    pub(super) fn give_back(&self) {
        self.put(HEDGE);
    }

    fn put(&self, millionths: u64) {
        let add = |saved: u64| Some(saved.saturating_add(millionths).min(MOST));
        // Cannot fail: `add` always returns `Some`.
        let _previous = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowance_limits_hedges_and_is_bounded() {
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
