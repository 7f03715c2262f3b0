//! Random operations, extremes included, and the decisions of the policy.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use steadfast::policy::{Backoff, Class, Decision, Hint, Idempotency, Jitter, Operation, RetryPolicy, TokenBucket};

use super::oracle;
use crate::support::clock;

/// The settings of one operation, readable by an oracle.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) max_attempts: u32,
    /// As in `RetryPolicy::never`.
    pub(super) no_free_repeats: bool,
    pub(super) shape: Shape,
    pub(super) jitter: Jitter,
    pub(super) throttle_base: Duration,
    pub(super) deadline: Option<Duration>,
    pub(super) max_retry_after: Duration,
    pub(super) throttled_is_ambiguous: bool,
    pub(super) idempotency: Idempotency,
    pub(super) body_replayable: bool,
    pub(super) is_nested: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Shape {
    Exponential { base: Duration, cap: Duration },
    Fixed(Duration),
    Schedule(Vec<Duration>),
}

impl Terms {
    pub(super) fn policy(&self) -> RetryPolicy {
        let backoff = match self.shape.clone() {
            Shape::Exponential { base, cap } => Backoff::exponential(base, cap),
            Shape::Fixed(wait) => Backoff::fixed(wait),
            Shape::Schedule(waits) => Backoff::schedule(move || waits.clone()),
        };
        let policy = if self.no_free_repeats { RetryPolicy::never() } else { RetryPolicy::new() };
        policy
            .max_attempts(self.max_attempts)
            .backoff(backoff.jitter(self.jitter).throttle_base(self.throttle_base))
            .deadline(self.deadline)
            .max_retry_after(self.max_retry_after)
            .throttled_is_ambiguous(self.throttled_is_ambiguous)
    }
}

/// The outcome of one attempt, and the driver's inputs to the decision.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) class: Class,
    pub(super) hint: Hint,
    pub(super) key_trusted: bool,
    /// Duration of the attempt.
    pub(super) took: Duration,
    pub(super) unit: f64,
}

/// One decision, and everything that led to it.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    pub(super) number: u32,
    pub(super) step: &'a Step,
    pub(super) now: Instant,
    pub(super) deadline: Option<Instant>,
    /// Free repeats before this attempt, including itself.
    pub(super) free_before: u32,
    pub(super) repeats_free: bool,
    /// Whether an earlier attempt was misdirected too.
    pub(super) misdirected_before: bool,
    /// Whether an earlier attempt may have been processed.
    pub(super) acted_before: bool,
    pub(super) tokens_before: u64,
    pub(super) tokens_after: u64,
    pub(super) decision: Decision,
}

/// Runs one operation until it ends or the steps do. Attempts and decided waits advance the clock.
pub(super) fn play<'a>(terms: &Terms, budget: &TokenBucket, steps: &'a [Step]) -> Vec<Turn<'a>> {
    let (policy, started) = (terms.policy(), clock::now());
    let mut operation = Operation::start(&policy, budget, terms.idempotency, started);
    operation.set_body_replayable(terms.body_replayable);
    if terms.is_nested {
        operation.set_nested();
    }
    let deadline = terms.deadline.and_then(|time| started.checked_add(time));
    let (mut now, mut misdirected_before, mut acted_before, mut turns) = (started, false, false, Vec::new());
    let mut free_before = 0;
    for (number, step) in (1..).zip(steps) {
        now = now.checked_add(step.took).unwrap_or(now);
        operation.begin_attempt();
        operation.set_key_trusted(step.key_trusted);
        let tokens_before = budget.tokens();
        let decision = operation.decide(step.class, &step.hint, now, step.unit);
        let tokens_after = budget.tokens();
        let repeats_free = operation.repeats_free();
        let turn = Turn {
            number,
            step,
            now,
            deadline,
            free_before,
            repeats_free,
            misdirected_before,
            acted_before,
            tokens_before,
            tokens_after,
            decision,
        };
        turns.push(turn);
        free_before += u32::from(repeats_free);
        misdirected_before |= step.hint.misdirected;
        acted_before |= oracle::effective(terms, step.class, &step.hint) == Class::Ambiguous;
        match decision {
            Decision::Retry { after } => now = now.checked_add(after).unwrap_or(now),
            Decision::Stop(_) => break,
        }
    }
    turns
}

pub(super) fn durations() -> impl Strategy<Value = Duration> + Clone {
    prop_oneof![
        4 => (0_u64..5000).prop_map(Duration::from_millis),
        2 => (0_u64..90).prop_map(Duration::from_secs),
        2 => Just(Duration::ZERO),
        1 => Just(Duration::from_nanos(1)),
        1 => any::<u64>().prop_map(Duration::from_nanos),
        1 => Just(Duration::MAX),
    ]
}

fn units() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => 0.0..=1.0,
        2 => prop::sample::select(vec![0.0, 1.0, 1.0 - f64::EPSILON, -0.0, -1.0, 2.0]),
        1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE, f64::MAX]),
    ]
}

/// Strategy for classes; most of them leave something to decide.
pub(super) fn classes() -> impl Strategy<Value = Class> {
    prop_oneof![
        5 => Just(Class::Ambiguous),
        4 => Just(Class::NotProcessed),
        4 => Just(Class::Throttled),
        1 => Just(Class::Permanent),
        1 => Just(Class::Success),
    ]
}

fn hints() -> impl Strategy<Value = Hint> {
    let rarely = || prop::bool::weighted(0.05);
    let directive = option::weighted(0.2, prop::bool::weighted(0.8));
    let rare = (rarely(), rarely(), rarely(), rarely(), rarely(), rarely());
    (option::weighted(0.3, durations()), directive, rare, prop::bool::weighted(0.2)).prop_map(
        |(
            after,
            retry,
            (replayed, outcome_unknown, misdirected, local, upload_too_slow, response_too_large),
            refused,
        )| {
            let mut hint = Hint::from(after);
            (hint.retry, hint.replayed) = (retry, replayed);
            (hint.outcome_unknown, hint.misdirected) = (outcome_unknown, misdirected);
            (hint.local, hint.refused, hint.upload_too_slow) = (local, refused, upload_too_slow);
            hint.response_too_large = response_too_large;
            hint
        },
    )
}

/// Strategy for steps: arbitrary ones, and calm ones that let an operation use up its attempts, on
/// the right or on the wrong connection.
pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let took = prop_oneof![6 => short(), 1 => durations()];
    let wild = (classes(), hints(), prop::bool::weighted(0.7), took, units());
    let wild = wild.prop_map(|(class, hint, key_trusted, took, unit)| Step { class, hint, key_trusted, took, unit });
    let misdirected = |hint: &mut Hint| hint.misdirected = true;
    let refused = |hint: &mut Hint| hint.refused = true;
    prop_oneof![
        6 => vec(wild, 1..14),
        3 => vec(calm(0.0, refused), 10..14),
        1 => vec(calm(0.5, misdirected), 2..6),
        2 => vec(calm(0.7, refused), 12..16),
    ]
}

/// Strategy for calm steps, of which a share is marked.
fn calm(share: f64, mark: fn(&mut Hint)) -> impl Strategy<Value = Step> {
    let class = prop::sample::select(vec![Class::NotProcessed, Class::Throttled, Class::Ambiguous]);
    (class, prop::bool::weighted(share), short(), units()).prop_map(move |(class, is_marked, took, unit)| {
        let mut hint = Hint::default();
        if is_marked {
            mark(&mut hint);
        }
        Step { class, hint, key_trusted: true, took, unit }
    })
}

fn short() -> impl Strategy<Value = Duration> {
    (0_u64..500).prop_map(Duration::from_millis)
}

pub(super) fn terms() -> impl Strategy<Value = Terms> {
    let shape = prop_oneof![
        4 => (durations(), durations()).prop_map(|(base, cap)| Shape::Exponential { base, cap }),
        1 => durations().prop_map(Shape::Fixed),
        2 => vec(durations(), 0..10).prop_map(Shape::Schedule),
    ];
    let waits = (shape, prop::sample::select(vec![Jitter::Full, Jitter::Equal, Jitter::None]), durations());
    let limits = (prop_oneof![3 => 1_u32..=10, 1 => 1_u32..=2, 1 => Just(10)], option::of(durations()), durations());
    let idempotency = prop_oneof![
        3 => Just(Idempotency::Natural),
        3 => Just(Idempotency::Keyed),
        2 => Just(Idempotency::Absent),
    ];
    let licence = (idempotency, prop::bool::weighted(0.3), prop::bool::weighted(0.8), prop::bool::weighted(0.1));
    (limits, waits, licence, prop::bool::weighted(0.2)).prop_map(|(limits, waits, licence, no_free_repeats)| {
        let (max_attempts, deadline, max_retry_after) = limits;
        let (shape, jitter, throttle_base) = waits;
        let (idempotency, throttled_is_ambiguous, body_replayable, is_nested) = licence;
        Terms {
            max_attempts,
            no_free_repeats,
            shape,
            jitter,
            throttle_base,
            deadline,
            max_retry_after,
            throttled_is_ambiguous,
            idempotency,
            body_replayable,
            is_nested,
        }
    })
}
