//! How many retries an origin may be asked to bear.
//!
//! Retries are charity that a client asks of a server in trouble. Without a limit shared by all operations, an outage turns
//! every call into `max_attempts` calls, and the server cannot come back under that load. A budget is a bucket of tokens per
//! origin: retries take out, successes put back, and when it is empty the first attempts still go but nobody retries.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::class::Class;
use super::settings::InvalidPolicy;

/// Tokens are kept in thousandths, so that a ratio such as 0.1 can be put in without a float in the bucket.
const TOKEN: u64 = 1000;

/// A bucket of retry tokens.
///
/// [`RetryBudget::standard`] follows the standard retry mode that AWS's SDKs ship in 2026 (version 2.1): 500 tokens; a retry
/// costs 14, or 5 after throttling; a success on the first try returns 1; a success after retries returns what the last retry
/// cost; a failure returns nothing. All of it can be set:
///
/// ```
/// use steadfast_core::RetryBudget;
///
/// // For a client that makes one call a second: 500 tokens would pay for 35 retries in a row.
/// let budget = RetryBudget::standard().capacity(42);
/// assert_eq!(budget.tokens(), 42);
/// ```
///
/// 500 tokens hold a client back that makes about ten calls a second or more. For quieter ones, of which there are usually many,
/// size it down: [the simulation](https://docs.rs/steadfast/latest/steadfast/guide/simulation/) shows what they do to a server, and by how much.
///
/// A client keeps one bucket per origin, each made from the settings that it was given ([`RetryBudget::fresh`]).
///
/// Putting back and taking out are lock-free: no lock, no clock, no background refill.
pub struct RetryBudget {
    settings: Settings,
    tokens: AtomicU64,
}

#[derive(Clone, Copy)]
struct Settings {
    capacity: u64,
    initial: Option<u64>,
    cost: u64,
    throttle_cost: u64,
    first_try_refund: u64,
    refund_last_cost: bool,
    /// Put in when an operation starts.
    deposit: u64,
    ratio_is_sound: bool,
    unlimited: bool,
}

const STANDARD: Settings = Settings {
    capacity: 500 * TOKEN,
    initial: None,
    cost: 14 * TOKEN,
    throttle_cost: 5 * TOKEN,
    first_try_refund: TOKEN,
    refund_last_cost: true,
    deposit: 0,
    ratio_is_sound: true,
    unlimited: false,
};

impl Default for RetryBudget {
    fn default() -> Self {
        Self::standard()
    }
}

impl RetryBudget {
    /// AWS's standard mode of 2026: 500 tokens, a retry costs 14, after throttling 5.
    #[must_use]
    pub fn standard() -> Self {
        Self::from(STANDARD)
    }

    /// At most `ratio` retries per operation in the long run: 0.1 is one retry for ten operations.
    ///
    /// Every operation puts `ratio` tokens in when it starts and a retry takes 1 out. The bucket starts with 10 tokens, so that
    /// a client that has just started may retry, and holds at most 100; both can be set. A ratio that is negative or not a
    /// number is reported by [`ClientBuilder::build`](https://docs.rs/steadfast/latest/steadfast/struct.ClientBuilder.html#method.build), and until then counts as 0.
    #[must_use]
    pub fn ratio(ratio: f64) -> Self {
        let ratio_is_sound = ratio.is_finite() && ratio >= 0.0;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float cast saturates; NaN is 0")]
        let deposit = if ratio_is_sound { (ratio * 1000.0).round() as u64 } else { 0 };
        Self::from(Settings {
            capacity: 100 * TOKEN,
            initial: Some(10 * TOKEN),
            cost: TOKEN,
            throttle_cost: TOKEN,
            first_try_refund: 0,
            refund_last_cost: false,
            deposit,
            ratio_is_sound,
            unlimited: false,
        })
    }

    /// No limit: only `max_attempts` and the deadline hold a retry back.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::from(Settings { unlimited: true, ..STANDARD })
    }

    /// The most tokens that the bucket holds. Unless [`initial`](Self::initial) says otherwise it starts full.
    #[must_use]
    pub fn capacity(self, tokens: u32) -> Self {
        Self::from(Settings { capacity: u64::from(tokens) * TOKEN, ..self.settings })
    }

    /// The tokens that the bucket starts with; at most its capacity.
    #[must_use]
    pub fn initial(self, tokens: u32) -> Self {
        Self::from(Settings { initial: Some(u64::from(tokens) * TOKEN), ..self.settings })
    }

    /// What a retry costs, in tokens. Standard: 14.
    #[must_use]
    pub fn cost(self, tokens: u32) -> Self {
        Self::from(Settings { cost: u64::from(tokens) * TOKEN, ..self.settings })
    }

    /// What a retry after a throttled attempt costs, in tokens. Standard: 5.
    #[must_use]
    pub fn throttle_cost(self, tokens: u32) -> Self {
        Self::from(Settings { throttle_cost: u64::from(tokens) * TOKEN, ..self.settings })
    }

    /// What a success on the first try returns, in tokens. Standard: 1.
    #[must_use]
    pub fn first_try_refund(self, tokens: u32) -> Self {
        Self::from(Settings { first_try_refund: u64::from(tokens) * TOKEN, ..self.settings })
    }

    /// The whole tokens that are in the bucket now; [`u64::MAX`] if it is unlimited.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        if self.settings.unlimited { u64::MAX } else { self.tokens.load(Ordering::Relaxed) / TOKEN }
    }

    /// A new bucket with the same settings and its initial tokens.
    #[must_use]
    pub fn fresh(&self) -> Self {
        Self::from(self.settings)
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// A ratio that is negative or not a number.
    pub fn validate(&self) -> Result<(), InvalidPolicy> {
        if self.settings.ratio_is_sound {
            return Ok(());
        }
        Err(InvalidPolicy { setting: "budget", reason: "the ratio must be a number that is not negative" })
    }

    /// An operation starts.
    pub(super) fn deposit(&self) {
        self.put(self.settings.deposit);
    }

    /// Takes the price of one retry after an attempt of this class. Returns what was taken, or `None` if it is not there.
    pub(super) fn charge(&self, class: Class) -> Option<u64> {
        if self.settings.unlimited {
            return Some(0);
        }
        let cost = if class == Class::Throttled { self.settings.throttle_cost } else { self.settings.cost };
        // Relaxed: the number is the only thing that is shared.
        let taken = self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tokens| tokens.checked_sub(cost));
        taken.ok().map(|_| cost)
    }

    /// Puts back a charge whose retry was never sent.
    pub(super) fn give_back(&self, charge: u64) {
        self.put(charge);
    }

    /// An operation succeeded; `last_charge` is what its last retry cost, if it had one.
    pub(super) fn succeeded(&self, last_charge: Option<u64>) {
        match last_charge {
            None => self.put(self.settings.first_try_refund),
            Some(charge) if self.settings.refund_last_cost => self.put(charge),
            Some(_) => {}
        }
    }

    fn put(&self, tokens: u64) {
        // A healthy client's bucket is full: it is read and left alone, so that cores do not fight over the cache line.
        let capacity = self.settings.capacity;
        if tokens == 0 || self.settings.unlimited || self.tokens.load(Ordering::Relaxed) >= capacity {
            return;
        }
        let add = |now: u64| Some(now.saturating_add(tokens).min(capacity));
        // Cannot fail: `add` always answers `Some`.
        let _previous = self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

impl From<Settings> for RetryBudget {
    fn from(settings: Settings) -> Self {
        let tokens = settings.initial.unwrap_or(settings.capacity).min(settings.capacity);
        Self { settings, tokens: AtomicU64::new(tokens) }
    }
}

/// Charged for what has not been sent yet.
#[derive(Clone, Copy)]
pub(super) enum Pending {
    Nothing,
    /// A retry that was decided on.
    Retry(u64),
    /// A wait for the origin's sake.
    Wait(u64),
}

impl Pending {
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Nothing)
    }

    pub(super) fn charge(self) -> Option<u64> {
        match self {
            Self::Nothing => None,
            Self::Retry(charge) | Self::Wait(charge) => Some(charge),
        }
    }
}

impl fmt::Debug for RetryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.settings.unlimited {
            return f.write_str("RetryBudget(unlimited)");
        }
        let Settings { capacity, cost, throttle_cost, .. } = self.settings;
        f.debug_struct("RetryBudget")
            .field("tokens", &self.tokens())
            .field("capacity", &(capacity / TOKEN))
            .field("cost", &(cost / TOKEN))
            .field("throttle_cost", &(throttle_cost / TOKEN))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_charges_and_refunds_as_published() {
        let budget = RetryBudget::standard();
        let charge = budget.charge(Class::Ambiguous);
        assert_eq!((charge, budget.tokens()), (Some(14 * TOKEN), 486));
        budget.succeeded(charge);
        assert_eq!(budget.tokens(), 500);
        assert_eq!((budget.charge(Class::Throttled), budget.tokens()), (Some(5 * TOKEN), 495));
        budget.succeeded(None);
        assert_eq!(budget.tokens(), 496);
    }

    #[test]
    fn never_below_zero_and_never_above_capacity() {
        let budget = RetryBudget::standard().capacity(20).initial(99);
        assert_eq!(budget.tokens(), 20);
        assert!(budget.charge(Class::Ambiguous).is_some());
        assert_eq!((budget.charge(Class::Ambiguous), budget.tokens()), (None, 6));
        budget.give_back(u64::MAX);
        assert_eq!(budget.tokens(), 20);
    }

    #[test]
    fn a_ratio_binds_in_the_long_run() {
        let budget = RetryBudget::ratio(0.1).initial(0);
        let mut retries = 0;
        for _ in 0..1000 {
            budget.deposit();
            retries += u32::from(budget.charge(Class::Ambiguous).is_some());
        }
        assert_eq!(retries, 100);
        for ratio in [f64::NAN, -0.1, f64::INFINITY] {
            assert!(RetryBudget::ratio(ratio).validate().is_err(), "{ratio}");
        }
        assert!(RetryBudget::ratio(f64::MAX).validate().is_ok());
    }

    #[test]
    fn unlimited_is_never_empty_and_a_fresh_bucket_is_full() {
        let budget = RetryBudget::unlimited();
        assert!((0..10_000).all(|_| budget.charge(Class::Ambiguous).is_some()));
        let budget = RetryBudget::standard().capacity(28);
        assert!(budget.charge(Class::Ambiguous).is_some());
        assert_eq!((budget.tokens(), budget.fresh().tokens()), (14, 28));
    }
}
