//! A second implementation of the bucket, from its documentation.

use steadfast::policy::{Class, RetryBudget, StopReason, TokenBucket};

/// Number of concurrent operations.
pub(super) const SLOTS: usize = 4;

#[derive(Clone, Debug)]
pub(super) struct Bucket {
    pub(super) kind: Kind,
    pub(super) capacity: Option<u32>,
    pub(super) initial: Option<u32>,
    pub(super) cost: Option<u32>,
    pub(super) throttle_cost: Option<u32>,
    pub(super) first_try_refund: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Standard,
    Ratio(f64),
    Unlimited,
}

impl Bucket {
    pub(super) fn budget(&self) -> TokenBucket {
        let budget = match self.kind {
            Kind::Standard => RetryBudget::standard(),
            Kind::Ratio(ratio) => RetryBudget::ratio(ratio),
            Kind::Unlimited => RetryBudget::unlimited(),
        };
        let set = |budget: RetryBudget, value: Option<u32>, with: fn(RetryBudget, u32) -> RetryBudget| match value {
            Some(tokens) => with(budget, tokens),
            None => budget,
        };
        let budget = set(budget, self.capacity, RetryBudget::capacity);
        let budget = set(budget, self.initial, RetryBudget::initial);
        let budget = set(budget, self.cost, RetryBudget::cost);
        let budget = set(budget, self.throttle_cost, RetryBudget::throttle_cost);
        TokenBucket::new(set(budget, self.first_try_refund, RetryBudget::first_try_refund))
    }
}

/// The bucket as documented, in thousandths of a token.
pub(super) struct Model {
    pub(super) capacity: u128,
    pub(super) tokens: u128,
    cost: u128,
    throttle_cost: u128,
    first_try_refund: u128,
    refunds_last_cost: bool,
    deposit: u128,
    slots: [Option<Paid>; SLOTS],
}

/// What one operation has paid: for a retry that waits, and for the last one that was sent.
#[derive(Clone, Copy, Default)]
struct Paid {
    waiting: Option<u128>,
    sent: Option<u128>,
}

impl Model {
    pub(super) fn of(bucket: &Bucket) -> Self {
        let thousandths = |value: Option<u32>, default: u32| u128::from(value.unwrap_or(default)) * 1000;
        let (ratio, defaults) = match bucket.kind {
            Kind::Ratio(ratio) => (if ratio.is_finite() && ratio > 0.0 { ratio } else { 0.0 }, [100, 1, 1, 0]),
            _ => (0.0, [500, 14, 5, 1]),
        };
        let capacity = thousandths(bucket.capacity, defaults[0]);
        let starts_full = bucket.kind == Kind::Standard && bucket.initial.is_none();
        let initial = if starts_full { capacity } else { thousandths(bucket.initial, 10) };
        Self {
            capacity,
            tokens: initial.min(capacity),
            cost: thousandths(bucket.cost, defaults[1]),
            throttle_cost: thousandths(bucket.throttle_cost, defaults[2]),
            first_try_refund: thousandths(bucket.first_try_refund, defaults[3]),
            refunds_last_cost: bucket.kind == Kind::Standard,
            deposit: (ratio * 1000.0).round() as u128,
            slots: [None; SLOTS],
        }
    }

    fn put(&mut self, tokens: u128) {
        self.tokens = self.tokens.saturating_add(tokens).min(self.capacity);
    }

    pub(super) fn end(&mut self, slot: usize) {
        let paid = self.slots[slot].take().unwrap_or_default();
        self.put(paid.waiting.unwrap_or(0));
    }

    pub(super) fn start(&mut self, slot: usize) {
        self.end(slot);
        self.put(self.deposit);
        self.slots[slot] = Some(Paid::default());
    }

    pub(super) fn begin(&mut self, slot: usize) {
        let paid = self.slots[slot].as_mut().expect("a running operation");
        paid.sent = paid.waiting.take().or(paid.sent);
    }

    pub(super) fn decide(&mut self, slot: usize, class: Class) -> Option<StopReason> {
        self.begin(slot);
        let sent = self.slots[slot].and_then(|paid| paid.sent);
        let cost = if class == Class::Throttled { self.throttle_cost } else { self.cost };
        match class {
            Class::Success => {
                let last_cost = if self.refunds_last_cost { sent } else { Some(0) };
                self.put(if sent.is_some() { last_cost.unwrap_or(0) } else { self.first_try_refund });
                Some(StopReason::Done)
            }
            Class::Permanent => Some(StopReason::Permanent),
            _ if cost > self.tokens => Some(StopReason::BudgetExhausted),
            _ => {
                self.tokens -= cost;
                self.slots[slot].as_mut().expect("a running operation").waiting = Some(cost);
                None
            }
        }
    }
}
