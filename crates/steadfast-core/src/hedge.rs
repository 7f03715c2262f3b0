//! When to send a second request beside the first, instead of waiting for it.
//!
//! The slowest of a hundred responses is often slow for no reason of its own: a pause, a queue, a
//! bad host. A second request, sent once the first is later than nearly all of them, is answered at
//! the usual speed. Its price is the requests that are sent twice. So a policy says after how long,
//! and how many.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// When to hedge, and how much of it there may be.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::HedgePolicy;
///
/// // A request that is later than 98 of 100 is sent again; at most 3 % of the requests are.
/// let tail = HedgePolicy::quantile(0.98).max_extra_load(0.03);
/// // A fixed time.
/// let fixed = HedgePolicy::after(Duration::from_millis(50));
/// # assert!(tail.validate().is_ok() && fixed.validate().is_ok());
/// ```
///
/// The lower the quantile, the more is sent twice, and the shorter is the tail. In a simulation,
/// responses took 10 ms (p50) and 18 ms (p95), and 1 % of them a second:
///
/// | policy | p99.9 | more requests |
/// | --- | --- | --- |
/// | p95, at most 2 % | 1,000 ms: responses that were nearly there use the limit up | at most 2 % |
/// | p98, at most 3 % | 39 ms | 2.4 % |
///
/// So a limit under the quantile's own rate is an error when the client is built.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct HedgePolicy {
    /// When the first request is late.
    pub at: HedgeAt,
    /// The most requests that hedging may add, as a share of the operations that may be hedged.
    pub max_extra_load: f64,
}

/// When a request is late, so that a second one goes out beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum HedgeAt {
    /// After this long. Not zero.
    After(Duration),
    /// Once it is later than this share of the origin's responses: over 0 and under 1.
    Quantile(f64),
}

impl HedgePolicy {
    /// Hedges a request after this long. Not zero.
    ///
    /// At most a tenth more requests are sent, unless [`max_extra_load`](Self::max_extra_load) says
    /// otherwise.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        Self { at: HedgeAt::After(time), max_extra_load: 0.1 }
    }

    /// Hedges a request once it is later than this share, over 0 and under 1, of the origin's
    /// responses in the last minute or so. Until 100 are known there are no hedges.
    ///
    /// At most 1.5 × (1 − `share`) more requests are sent, unless
    /// [`max_extra_load`](Self::max_extra_load) says otherwise.
    #[must_use]
    pub fn quantile(share: f64) -> Self {
        Self { at: HedgeAt::Quantile(share), max_extra_load: ((1.0 - share) * 1.5).min(1.0) }
    }

    /// Sets the most requests that hedging may add, as a share of the operations that may be hedged.
    /// Over 0, at most 1, and for a quantile not under 1 − that quantile. Ten may go out in a burst.
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
    /// One, so that the first slow answer need not be waited for.
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
        // Cannot fail: `add` always answers `Some`.
        let _previous = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedge_allowance_is_bounded() {
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
