//! The decision for arbitrary policies, outcomes and clocks.

use std::collections::HashSet;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use steadfast::policy::{Class, Decision, Idempotency, RetryBudget, StopReason, TokenBucket};

use super::cases;
use super::oracle::{allowed_waits, first_reason, is_free, time_left};
use super::scenario::{Shape, Step, Terms, Turn, play, steps, terms};

/// Returns the turns after which the operation continues, each with its wait.
fn retries<'a>(turns: &'a [Turn<'a>]) -> impl Iterator<Item = (&'a Turn<'a>, Duration)> {
    turns.iter().filter_map(|turn| match turn.decision {
        Decision::Retry { after } => Some((turn, after)),
        Decision::Stop(_) => None,
    })
}

/// Plays a scenario with a driver that obeys every decision. The budget is unlimited, so only the
/// policy ends an operation.
fn play_freely<'a>(terms: &Terms, steps: &'a [Step]) -> Vec<Turn<'a>> {
    play(terms, &TokenBucket::new(RetryBudget::unlimited()), steps)
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn at_most_max_attempts_and_two_free_repeats(terms in terms(), steps in steps()) {
        let turns = play_freely(&terms, &steps);
        let free = turns.iter().filter(|turn| turn.repeats_free).count();
        prop_assert!(free <= if terms.no_free_repeats { 0 } else { 2 }, "{free} free repeats");
        prop_assert!(turns.len() <= terms.max_attempts as usize + free, "{} attempts, {free} free", turns.len());
    }

    #[test]
    fn every_wait_ends_before_deadline(terms in terms(), steps in steps()) {
        for (turn, after) in retries(&play_freely(&terms, &steps)) {
            if let Some(deadline) = turn.deadline {
                prop_assert!(turn.now.checked_add(after).is_some_and(|end| end < deadline), "{turn:?}");
            }
        }
    }

    #[test]
    fn ambiguous_attempt_needs_licence_to_repeat(terms in terms(), steps in steps()) {
        for (turn, _) in retries(&play_freely(&terms, &steps)) {
            let licence = match terms.idempotency {
                Idempotency::Natural => true,
                Idempotency::Keyed => turn.step.key_trusted,
                Idempotency::Absent => false,
            };
            let harmless = match turn.step.class {
                Class::NotProcessed => true,
                Class::Throttled => !terms.throttled_is_ambiguous,
                // A directive can ask for a retry, but is no licence.
                Class::Ambiguous | Class::Permanent | Class::Success => false,
            };
            prop_assert!(licence || (harmless && !turn.acted_before), "{turn:?}");
            prop_assert!(turn.step.class != Class::Permanent || turn.step.hint.retry == Some(true), "{turn:?}");
            prop_assert!(turn.step.class != Class::Success, "{turn:?}");
        }
    }

    #[test]
    fn wait_is_between_hint_and_hint_plus_cap(terms in terms(), steps in steps()) {
        for (turn, after) in retries(&play_freely(&terms, &steps)) {
            let floor = turn.step.hint.after.unwrap_or_default();
            let cap = match &terms.shape {
                Shape::Exponential { cap, .. } => *cap,
                Shape::Fixed(wait) => *wait,
                Shape::Schedule(_) if turn.repeats_free => Duration::ZERO,
                Shape::Schedule(waits) => waits[(turn.number - turn.free_before) as usize - 1],
            };
            prop_assert!(floor <= terms.max_retry_after, "{turn:?}");
            prop_assert!(after <= floor.saturating_add(cap), "{turn:?}");
            // A misdirected request is repeated at once, on another connection.
            prop_assert!(after >= floor || turn.step.hint.misdirected, "{turn:?}");
            prop_assert!(!turn.step.hint.misdirected || after.is_zero(), "{turn:?}");
        }
    }

    #[test]
    fn first_applicable_reason_is_given(
        terms in terms(),
        steps in steps(),
        tokens in prop_oneof![Just(500_u32), 0_u32..60],
    ) {
        let budget = TokenBucket::new(RetryBudget::standard().initial(tokens));
        for turn in play(&terms, &budget, &steps) {
            let is_local = turn.step.hint.local && turn.step.class == Class::NotProcessed;
            let cost = match turn.step.class {
                _ if is_local || is_free(&terms, &turn) => 0,
                Class::Throttled => 5,
                _ => 14,
            };
            let allowed = allowed_waits(&terms, &turn);
            // Between these two waits, the jitter decides whether the time is enough.
            let (fits_surely, fits_perhaps) = (*allowed.end() < time_left(&turn), *allowed.start() < time_left(&turn));
            let expected = first_reason(&terms, &turn);
            match turn.decision {
                Decision::Stop(StopReason::DeadlineExceeded) => {
                    prop_assert!(expected.is_none() && !fits_surely, "{turn:?}, expected {expected:?}");
                }
                Decision::Stop(StopReason::BudgetExhausted) => {
                    prop_assert!(expected.is_none() && fits_perhaps, "{turn:?}, expected {expected:?}");
                    prop_assert!(turn.tokens_before < cost, "{turn:?}");
                }
                Decision::Stop(reason) => prop_assert_eq!(Some(reason), expected, "{:?}", turn),
                Decision::Retry { after } => {
                    prop_assert_eq!(expected, None, "{:?}", turn);
                    prop_assert!(fits_perhaps && allowed.contains(&after), "{turn:?}, allowed {allowed:?}");
                    prop_assert_eq!(turn.tokens_before.checked_sub(cost), Some(turn.tokens_after), "{:?}", turn);
                    prop_assert_eq!(turn.repeats_free, is_free(&terms, &turn), "{:?}", turn);
                }
            }
            // Only a retry takes tokens.
            let is_retry = matches!(turn.decision, Decision::Retry { .. });
            prop_assert!(is_retry || turn.tokens_after >= turn.tokens_before, "{turn:?}");
        }
    }

    #[test]
    fn directive_changes_no_licence(terms in terms(), steps in steps()) {
        let told = |retry: Option<bool>| {
            let mut steps = steps.clone();
            steps.iter_mut().for_each(|step| step.hint.retry = retry);
            play_freely(&terms, &steps).iter().map(|turn| turn.decision).collect::<Vec<_>>()
        };
        let (untold, told_to_retry) = (told(None), told(Some(true)));
        // The directive changes nothing before the first class that it lifts.
        let same = steps.iter().position(|step| step.class == Class::Permanent).unwrap_or(steps.len());
        let upto = |decisions: &[Decision]| decisions[..same.min(decisions.len())].to_vec();
        prop_assert_eq!(upto(&untold), upto(&told_to_retry));
        prop_assert!(matches!(told(Some(false))[0], Decision::Stop(_)));
    }
}

/// The generators reach every reason and long operations. Otherwise the properties above would
/// prove little.
#[test]
fn scenarios_reach_every_reason() {
    let mut runner = TestRunner::new_with_rng(cases(0), TestRng::deterministic_rng(RngAlgorithm::default()));
    let (mut reasons, mut at_the_limit, mut repeats, mut free) = (HashSet::new(), 0, 0, 0);
    for _ in 0..1000 {
        let (terms, steps) = (terms(), steps()).new_tree(&mut runner).unwrap().current();
        let all_ten = terms.max_attempts == 10 && play_freely(&terms, &steps).len() == 10;
        at_the_limit += u32::from(all_ten);
        for turn in play(&terms, &TokenBucket::new(RetryBudget::standard().initial(40)), &steps) {
            match turn.decision {
                Decision::Retry { .. } => {
                    repeats += 1;
                    free += u32::from(turn.repeats_free);
                }
                Decision::Stop(reason) => {
                    reasons.insert(reason);
                }
            }
        }
    }
    assert_eq!(reasons.len(), 15, "{reasons:?}");
    assert!(at_the_limit >= 10 && repeats >= 500, "{at_the_limit} operations with 10 attempts, {repeats} repeats");
    assert!(free >= 50, "{free} free repeats");
}
