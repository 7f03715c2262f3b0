//! The bucket, shared by interleaved operations that are dropped at any point.

mod model;

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use steadfast::policy::{Backoff, Class, Decision, Hint, Idempotency, Operation, RetryPolicy, StopReason};

use self::model::{Bucket, Kind, Model, SLOTS};
use super::cases;
use super::scenario::classes;
use crate::support::clock;

#[derive(Clone, Copy, Debug)]
enum Act {
    Start,
    Begin,
    Decide(Class),
    Drop,
}

fn acts() -> impl Strategy<Value = Vec<(usize, Act)>> {
    let act = prop_oneof![
        2 => Just(Act::Start),
        3 => Just(Act::Begin),
        6 => classes().prop_map(Act::Decide),
        1 => Just(Act::Drop),
    ];
    vec((0..SLOTS, act), 1..60)
}

fn buckets() -> impl Strategy<Value = Bucket> {
    let ratio = prop_oneof![
        4 => 0.0..2.0,
        1 => any::<f64>(),
        1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::MAX, -0.1]),
    ];
    let kind = prop_oneof![3 => Just(Kind::Standard), 2 => ratio.prop_map(Kind::Ratio), 1 => Just(Kind::Unlimited)];
    let tokens = || {
        let some = prop_oneof![8 => 0_u32..100, 1 => any::<u32>(), 1 => Just(u32::MAX)];
        proptest::option::weighted(0.6, some)
    };
    (kind, tokens(), tokens(), tokens(), tokens(), tokens()).prop_map(
        |(kind, capacity, initial, cost, throttle_cost, first_try_refund)| Bucket {
            kind,
            capacity,
            initial,
            cost,
            throttle_cost,
            first_try_refund,
        },
    )
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn shared_bucket_keeps_bounds_and_gets_refunds(bucket in buckets(), acts in acts()) {
        let policy = RetryPolicy::new().max_attempts(u32::MAX).deadline(None).backoff(Backoff::fixed(Duration::ZERO));
        let (budget, mut model, now) = (bucket.budget(), Model::of(&bucket), clock::now());
        let unlimited = bucket.kind == Kind::Unlimited;
        let mut operations: [Option<Operation<'_>>; SLOTS] = [const { None }; SLOTS];
        for (slot, act) in acts.into_iter().chain((0..SLOTS).map(|slot| (slot, Act::Drop))) {
            match (act, &mut operations[slot]) {
                (Act::Start, running) => {
                    *running = None;
                    *running = Some(Operation::start(&policy, &budget, Idempotency::Natural, now));
                    model.start(slot);
                }
                (Act::Begin, Some(operation)) => {
                    operation.begin_attempt();
                    model.begin(slot);
                }
                (Act::Decide(class), Some(operation)) => {
                    let stop = match operation.decide(class, &Hint::default(), now, 0.5) {
                        Decision::Retry { .. } => None,
                        Decision::Stop(reason) => Some(reason),
                    };
                    let expected = model.decide(slot, class);
                    let ignored = unlimited && expected == Some(StopReason::BudgetExhausted);
                    prop_assert_eq!(stop, if ignored { None } else { expected });
                    if stop.is_some() {
                        operations[slot] = None;
                        model.end(slot);
                    }
                }
                (Act::Drop, running) => {
                    *running = None;
                    model.end(slot);
                }
                (Act::Begin | Act::Decide(_), None) => {}
            }
            if unlimited {
                prop_assert_eq!(budget.tokens(), u64::MAX);
            } else {
                prop_assert!(u128::from(budget.tokens()) * 1000 <= model.capacity);
                prop_assert_eq!(u128::from(budget.tokens()), model.tokens / 1000, "{:?}", budget);
            }
        }
    }
}
