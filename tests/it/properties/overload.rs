//! The effect of overload protection on an operation: hedges, an open circuit, a caller's deadline.

use std::time::Duration;

use proptest::prelude::*;
use steadfast::policy::{Class, Decision, Idempotency, Operation, RetryBudget, TokenBucket};

use super::cases;
use super::scenario::{steps, terms};
use crate::support::clock;

proptest! {
    #![proptest_config(cases(512))]

    /// A hedge repeats a request that has not failed. It needs the licence of an ambiguous attempt,
    /// an attempt and the price.
    #[test]
    fn hedge_needs_licence_attempt_and_tokens(
        terms in terms(),
        steps in steps(),
        capacity in prop_oneof![Just(500_u32), 0..60_u32],
        hedge_at in prop::collection::vec(any::<bool>(), 8),
    ) {
        let (policy, budget, mut now) = (terms.policy(), TokenBucket::new(RetryBudget::standard().capacity(capacity)), clock::now());
        let mut operation = Operation::start(&policy, &budget, terms.idempotency, now);
        operation.set_body_replayable(terms.body_replayable);
        if terms.is_nested {
            operation.set_nested();
        }
        let (mut sent, mut free) = (0_u32, 0_u32);
        for (step, wants_hedge) in steps.iter().zip(hedge_at) {
            operation.begin_attempt();
            sent += 1;
            operation.set_key_trusted(step.key_trusted);
            if wants_hedge {
                let before = budget.tokens();
                if operation.hedge() {
                    sent += 1;
                    let licensed = match terms.idempotency {
                        Idempotency::Natural => true,
                        Idempotency::Keyed => step.key_trusted,
                        Idempotency::Absent => false,
                    };
                    prop_assert!(licensed && terms.body_replayable && !terms.is_nested);
                    prop_assert_eq!(budget.tokens() + 14, before);
                } else {
                    prop_assert_eq!(budget.tokens(), before);
                }
            }
            prop_assert!(free <= 2 && sent <= terms.max_attempts + free, "{sent} requests, {free} of them free");
            now = now.checked_add(step.took).unwrap_or(now);
            let decision = operation.decide(step.class, &step.hint, now, step.unit);
            prop_assert_eq!(operation.attempts(), sent);
            free += u32::from(operation.repeats_free());
            match decision {
                Decision::Retry { after } => now = now.checked_add(after).unwrap_or(now),
                Decision::Stop(_) => break,
            }
        }
    }

    /// No wait ends while the circuit is known to be open, or at or after the caller's deadline.
    #[test]
    fn no_wait_outlasts_open_circuit_or_deadline(
        terms in terms(),
        steps in steps(),
        open_for in prop::collection::vec(0..20_000_u64, 8),
        left in 0..60_000_u64,
    ) {
        let (policy, budget, started) = (terms.policy(), TokenBucket::new(RetryBudget::unlimited()), clock::now());
        let deadline = started + Duration::from_millis(left);
        let mut operation = Operation::start(&policy, &budget, terms.idempotency, started);
        operation.end_by(deadline);
        prop_assert!(operation.deadline().is_some_and(|end| end <= deadline));
        let mut now = started;
        for (step, open_for) in steps.iter().zip(open_for) {
            let open_for = Duration::from_millis(open_for);
            operation.begin_attempt();
            operation.set_circuit_open_for(open_for);
            now = now.checked_add(step.took).unwrap_or(now);
            match operation.decide(step.class, &step.hint, now, step.unit) {
                Decision::Retry { after } => {
                    prop_assert!(after >= open_for, "{after:?}, and open for {open_for:?}");
                    now = now.checked_add(after).unwrap_or(now);
                    prop_assert!(now < deadline);
                }
                Decision::Stop(reason) => {
                    prop_assert!(step.class != Class::Success || reason == steadfast::policy::StopReason::Done);
                    break;
                }
            }
        }
    }
}
