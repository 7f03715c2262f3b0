//! The retry budget: how many retries an origin gets.
//!
//! Without a limit shared by all operations, an outage turns every call into `max_attempts` calls.
//! The server cannot recover under that load. A budget is a bucket of tokens per origin: retries
//! take tokens out, successes put tokens back. While it is empty, first attempts still go out, but
//! nothing is retried.
//!
//! [`RetryBudget`] has the settings, and [`TokenBucket`] is the running state.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::class::Class;

/// Tokens are kept in thousandths, so that a ratio such as 0.1 can be put in without a float in the
/// bucket.
const TOKEN: u64 = 1000;

/// The settings of a bucket of retry tokens.
///
/// [`RetryBudget::standard`] follows the standard retry mode that AWS's SDKs ship in 2026 (version
/// 2.1):
///
/// | setting | standard |
/// | --- | --- |
/// | [`capacity`](Self::capacity) | 500 tokens |
/// | [`initial`](Self::initial) | as many as the capacity |
/// | [`cost`](Self::cost) of a retry | 14 |
/// | [`throttle_cost`](Self::throttle_cost) of a retry after throttling | 5 |
/// | [`first_try_refund`](Self::first_try_refund) of a success on the first try | 1 |
/// | [`refund_last_cost`](Self::refund_last_cost): a success after retries returns the cost of the last one | yes |
/// | [`deposit`](Self::deposit) of an operation that starts | 0 |
///
/// A failure returns nothing. A client keeps one bucket per origin with these settings.
///
/// 500 tokens limit a client that makes about ten calls a second or more. Most clients make fewer:
/// size the budget down for them. [The
/// simulation](https://docs.rs/steadfast/latest/steadfast/guide/simulation/) shows the effect on a
/// server.
///
/// ```
/// use steadfast_core::{RetryBudget, TokenBucket};
///
/// // For a client that makes one call a second: 500 tokens would pay for 35 retries in a row.
/// let budget = RetryBudget::standard().capacity(42);
/// assert_eq!(TokenBucket::new(budget).tokens(), 42);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RetryBudget {
    /// The most tokens that the bucket holds.
    pub capacity: u32,
    /// The tokens that the bucket starts with, at most its capacity. `None`: it starts full.
    pub initial: Option<u32>,
    /// The cost of a retry, in tokens.
    pub cost: u32,
    /// The cost of a retry after a throttled attempt, in tokens.
    pub throttle_cost: u32,
    /// The tokens that a success on the first try returns.
    pub first_try_refund: u32,
    /// Whether a success after retries returns the cost of the last one.
    pub refund_last_cost: bool,
    /// The tokens that an operation puts in when it starts, rounded to thousandths. Not negative.
    pub deposit: f64,
    /// Whether retries need no tokens at all, whatever the other settings.
    pub unlimited: bool,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::standard()
    }
}

impl RetryBudget {
    /// Creates AWS's standard mode of 2026: 500 tokens; a retry costs 14, after throttling 5.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            capacity: 500,
            initial: None,
            cost: 14,
            throttle_cost: 5,
            first_try_refund: 1,
            refund_last_cost: true,
            deposit: 0.0,
            unlimited: false,
        }
    }

    /// Creates a budget of at most `ratio` retries per operation in the long run: 0.1 is one retry
    /// for ten operations.
    ///
    /// Every operation puts `ratio` tokens in when it starts, and a retry takes 1 out. The bucket
    /// starts with 10 tokens, so that a new client may retry, and holds at most 100. A ratio that
    /// is negative or not a number is an error when you build the client; a bucket takes it as 0.
    ///
    /// ```
    /// use steadfast_core::{RetryBudget, TokenBucket};
    ///
    /// let bucket = TokenBucket::new(RetryBudget::ratio(0.1));
    /// assert_eq!(bucket.tokens(), 10);
    /// ```
    #[must_use]
    pub fn ratio(ratio: f64) -> Self {
        Self {
            capacity: 100,
            initial: Some(10),
            cost: 1,
            throttle_cost: 1,
            first_try_refund: 0,
            refund_last_cost: false,
            deposit: ratio,
            unlimited: false,
        }
    }

    /// Creates a budget without a limit. Only `max_attempts` and the deadline then limit retries.
    #[must_use]
    pub fn unlimited() -> Self {
        Self { unlimited: true, ..Self::standard() }
    }

    /// Sets the most tokens that the bucket holds. Standard: 500. The bucket starts full, unless
    /// you set [`initial`](Self::initial).
    #[must_use]
    pub fn capacity(mut self, tokens: u32) -> Self {
        self.capacity = tokens;
        self
    }

    /// Sets the tokens that the bucket starts with, at most its capacity. Standard: it starts full.
    #[must_use]
    pub fn initial(mut self, tokens: u32) -> Self {
        self.initial = Some(tokens);
        self
    }

    /// Sets the cost of a retry, in tokens. Standard: 14.
    #[must_use]
    pub fn cost(mut self, tokens: u32) -> Self {
        self.cost = tokens;
        self
    }

    /// Sets the cost of a retry after a throttled attempt, in tokens. Standard: 5.
    #[must_use]
    pub fn throttle_cost(mut self, tokens: u32) -> Self {
        self.throttle_cost = tokens;
        self
    }

    /// Sets the tokens that a success on the first try returns. Standard: 1.
    #[must_use]
    pub fn first_try_refund(mut self, tokens: u32) -> Self {
        self.first_try_refund = tokens;
        self
    }
}

/// A running bucket of retry tokens, shared by all operations to one origin.
///
/// It is lock-free, and has no clock and no background refill.
///
/// ```
/// use std::time::Instant;
/// use steadfast_core::{Class, Hint, Idempotency, Operation, RetryBudget, RetryPolicy, TokenBucket};
///
/// let (policy, bucket) = (RetryPolicy::new(), TokenBucket::new(RetryBudget::standard()));
/// let now = Instant::now();
/// let mut operation = Operation::start(&policy, &bucket, Idempotency::Natural, now);
/// operation.decide(Class::Ambiguous, &Hint::default(), now, 1.0);
/// assert_eq!(bucket.tokens(), 486); // a retry that will be sent
/// drop(operation);
/// assert_eq!(bucket.tokens(), 500); // it was not sent
/// ```
pub struct TokenBucket {
    prices: Prices,
    tokens: AtomicU64,
}

/// The settings in thousandths of a token, computed once.
#[derive(Clone, Copy)]
struct Prices {
    capacity: u64,
    cost: u64,
    throttle_cost: u64,
    first_try_refund: u64,
    refund_last_cost: bool,
    deposit: u64,
    unlimited: bool,
}

impl Default for TokenBucket {
    fn default() -> Self {
        Self::new(RetryBudget::default())
    }
}

impl TokenBucket {
    /// Creates a bucket with these settings and its initial tokens.
    #[must_use]
    pub fn new(budget: RetryBudget) -> Self {
        let thousandths = |tokens: u32| u64::from(tokens) * TOKEN;
        let capacity = thousandths(budget.capacity);
        let deposit = if budget.deposit.is_finite() { budget.deposit } else { 0.0 };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float cast saturates")]
        let deposit = (deposit * 1000.0).round() as u64;
        let prices = Prices {
            capacity,
            cost: thousandths(budget.cost),
            throttle_cost: thousandths(budget.throttle_cost),
            first_try_refund: thousandths(budget.first_try_refund),
            refund_last_cost: budget.refund_last_cost,
            deposit,
            unlimited: budget.unlimited,
        };
        let initial = budget.initial.map_or(capacity, thousandths).min(capacity);
        Self { prices, tokens: AtomicU64::new(initial) }
    }

    /// Returns the whole tokens in the bucket now, or [`u64::MAX`] if it is unlimited.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        if self.prices.unlimited { u64::MAX } else { self.tokens.load(Ordering::Relaxed) / TOKEN }
    }

    /// Puts in the deposit of an operation that starts.
    #[inline]
    pub(super) fn deposit(&self) {
        self.put(self.prices.deposit);
    }

    /// Takes the cost of one retry after an attempt of this class. Returns it, or `None` if there
    /// are not enough tokens.
    pub(super) fn charge(&self, class: Class) -> Option<u64> {
        if self.prices.unlimited {
            return Some(0);
        }
        let cost = if class == Class::Throttled { self.prices.throttle_cost } else { self.prices.cost };
        // Relaxed: the number is the only thing that is shared.
        let taken = self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tokens| tokens.checked_sub(cost));
        taken.ok().map(|_| cost)
    }

    /// Puts back a charge whose retry was never sent.
    pub(super) fn give_back(&self, charge: u64) {
        self.put(charge);
    }

    /// Refunds an operation that succeeded. `last_charge` is the cost of its last retry, if it had
    /// one.
    #[inline]
    pub(super) fn succeeded(&self, last_charge: Option<u64>) {
        match last_charge {
            None => self.put(self.prices.first_try_refund),
            Some(charge) if self.prices.refund_last_cost => self.put(charge),
            Some(_) => {}
        }
    }

    #[inline]
    fn put(&self, tokens: u64) {
        // The bucket of a healthy client is full. Then it is only read, so that cores do not
        // compete for the cache line.
        let capacity = self.prices.capacity;
        if tokens == 0 || self.prices.unlimited || self.tokens.load(Ordering::Relaxed) >= capacity {
            return;
        }
        let add = |now: u64| Some(now.saturating_add(tokens).min(capacity));
        // Cannot fail: `add` always returns `Some`.
        let _previous = self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

/// The charge for a request that has not been sent yet.
#[derive(Clone, Copy)]
pub(super) enum Pending {
    Nothing,
    /// For a retry that was decided on.
    Retry(u64),
    /// For a wait in the origin's cooldown.
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

impl fmt::Debug for TokenBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prices.unlimited {
            return f.write_str("TokenBucket(unlimited)");
        }
        let Prices { capacity, cost, throttle_cost, .. } = self.prices;
        f.debug_struct("TokenBucket")
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

    fn bucket(budget: RetryBudget) -> TokenBucket {
        TokenBucket::new(budget)
    }

    #[test]
    fn standard_budget_charges_as_published() {
        let budget = bucket(RetryBudget::standard());
        let charge = budget.charge(Class::Ambiguous);
        assert_eq!((charge, budget.tokens()), (Some(14 * TOKEN), 486));
        budget.succeeded(charge);
        assert_eq!(budget.tokens(), 500);
        assert_eq!((budget.charge(Class::Throttled), budget.tokens()), (Some(5 * TOKEN), 495));
        budget.succeeded(None);
        assert_eq!(budget.tokens(), 496);
    }

    #[test]
    fn tokens_stay_between_zero_and_capacity() {
        let budget = bucket(RetryBudget::standard().capacity(20).initial(99));
        assert_eq!(budget.tokens(), 20);
        assert!(budget.charge(Class::Ambiguous).is_some());
        assert_eq!((budget.charge(Class::Ambiguous), budget.tokens()), (None, 6));
        budget.give_back(u64::MAX);
        assert_eq!(budget.tokens(), 20);
    }

    #[test]
    fn ratio_limits_retries_in_the_long_run() {
        let budget = bucket(RetryBudget::ratio(0.1).initial(0));
        let mut retries = 0;
        for _ in 0..1000 {
            budget.deposit();
            retries += u32::from(budget.charge(Class::Ambiguous).is_some());
        }
        assert_eq!(retries, 100);
    }

    #[test]
    fn unlimited_is_never_empty() {
        let budget = bucket(RetryBudget::unlimited());
        assert!((0..10_000).all(|_| budget.charge(Class::Ambiguous).is_some()));
        let settings = RetryBudget::standard().capacity(28);
        let budget = bucket(settings);
        assert!(budget.charge(Class::Ambiguous).is_some());
        assert_eq!((budget.tokens(), bucket(settings).tokens()), (14, 28));
    }
}
