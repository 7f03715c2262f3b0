//! A second implementation of the decision, from the documentation of `StopReason`, `Backoff` and
//! `RetryPolicy`.
//!
//! The oracle is exact about the reasons. It knows only the range of a wait with jitter.

use std::ops::RangeInclusive;
use std::time::Duration;

use steadfast::policy::{Class, Hint, Idempotency, Jitter, StopReason};

use super::scenario::{Shape, Terms, Turn};

/// Returns the first reason to stop that depends neither on the length of the backoff nor on the
/// budget.
pub(super) fn first_reason(terms: &Terms, turn: &Turn<'_>) -> Option<StopReason> {
    use StopReason::{
        AttemptsExhausted, BodyNotReplayable, Done, KeyNotTrusted, Nested, NotRepeatable, OutcomeUnknown, Permanent,
        Replayed, ResponseTooLarge, RetryAfterTooLong, ServerSaidStop, UploadTooSlow,
    };
    let (class, hint) = (turn.step.class, &turn.step.hint);
    let class_in_force = effective(terms, class, hint);
    let unsafe_without_licence = class_in_force == Class::Ambiguous || turn.acted_before;
    let too_long = hint.after.is_some_and(|after| after > terms.max_retry_after || after >= time_left(turn));
    let is_paid = !is_free(terms, turn);
    // In the order of the type's documentation.
    let asked = [
        (class == Class::Success, Done),
        (hint.replayed, Replayed),
        (hint.retry == Some(false), ServerSaidStop),
        (hint.outcome_unknown, OutcomeUnknown),
        (class_in_force == Class::Permanent, Permanent),
        (hint.misdirected && turn.misdirected_before, Permanent),
        (unsafe_without_licence && terms.idempotency == Idempotency::Absent, NotRepeatable),
        (unsafe_without_licence && terms.idempotency == Idempotency::Keyed && !turn.step.key_trusted, KeyNotTrusted),
        (!terms.body_replayable, BodyNotReplayable),
        (hint.upload_too_slow, UploadTooSlow),
        (hint.response_too_large, ResponseTooLarge),
        (terms.is_nested, Nested),
        (is_paid && counted(turn) >= terms.max_attempts, AttemptsExhausted),
        (is_paid && whole_wait(terms, turn).is_none(), AttemptsExhausted),
        (too_long, RetryAfterTooLong),
    ];
    asked.into_iter().find_map(|(applies, reason)| applies.then_some(reason))
}

/// Returns whether a repeat after this turn is one of the two free ones.
pub(super) fn is_free(terms: &Terms, turn: &Turn<'_>) -> bool {
    let most = if terms.no_free_repeats { 0 } else { 2 };
    let hint = &turn.step.hint;
    turn.step.class == Class::NotProcessed && hint.refused && hint.after.is_none() && turn.free_before < most
}

/// Returns the attempts so far that `max_attempts` counts.
fn counted(turn: &Turn<'_>) -> u32 {
    turn.number - turn.free_before
}

/// Returns the class after two possible changes: the server's `true`, and an API that may act on
/// throttled requests.
pub(super) fn effective(terms: &Terms, class: Class, hint: &Hint) -> Class {
    if class == Class::Permanent && hint.retry == Some(true) {
        return Class::Ambiguous;
    }
    if class == Class::Throttled && terms.throttled_is_ambiguous { Class::Ambiguous } else { class }
}

/// Returns the time left; without a deadline, the longest duration.
pub(super) fn time_left(turn: &Turn<'_>) -> Duration {
    turn.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(turn.now))
}

/// Returns the backoff before jitter, or `None` if the caller's schedule has ended.
fn whole_wait(terms: &Terms, turn: &Turn<'_>) -> Option<Duration> {
    match &terms.shape {
        Shape::Fixed(wait) => Some(*wait),
        Shape::Schedule(waits) => waits.get(counted(turn) as usize - 1).copied(),
        Shape::Exponential { base, cap } => {
            let throttled = turn.step.class == Class::Throttled;
            let mut wait = if throttled { terms.throttle_base.max(*base) } else { *base };
            for _ in 1..counted(turn) {
                wait = wait.saturating_mul(2);
            }
            Some(wait.min(*cap))
        }
    }
}

/// Returns the possible waits: at least the hint, with jitter on top.
pub(super) fn allowed_waits(terms: &Terms, turn: &Turn<'_>) -> RangeInclusive<Duration> {
    if turn.step.hint.misdirected || is_free(terms, turn) {
        return Duration::ZERO..=Duration::ZERO;
    }
    let floor = turn.step.hint.after.unwrap_or_default();
    let whole = whole_wait(terms, turn).unwrap_or_default();
    let (least, most) = match terms.jitter {
        Jitter::None => (whole, whole),
        Jitter::Equal => {
            let (least, most) = share(whole / 2, turn.step.unit);
            (
                whole.saturating_sub(whole / 2).saturating_add(least),
                whole.saturating_sub(whole / 2).saturating_add(most),
            )
        }
        _ => share(whole, turn.step.unit),
    };
    floor.saturating_add(least)..=floor.saturating_add(most)
}

/// Returns bounds of `unit` times `whole`, in integer parts of 2^32. Exact at both ends.
fn share(whole: Duration, unit: f64) -> (Duration, Duration) {
    if unit.is_nan() || unit <= 0.0 {
        return (Duration::ZERO, Duration::ZERO);
    }
    if unit >= 1.0 {
        return (whole, whole);
    }
    let parts = (unit * f64::from(u32::MAX)) as u128;
    let nanos = |parts: u128| whole.as_nanos() / (1 << 32) * parts + (whole.as_nanos() % (1 << 32)) * parts / (1 << 32);
    // One part and a little more each way exceeds any rounding error.
    let slack = whole.as_nanos() >> 30;
    let near = nanos(parts);
    (to_duration(near.saturating_sub(slack + 2)), to_duration((near + slack + 2).min(whole.as_nanos())))
}

fn to_duration(nanos: u128) -> Duration {
    Duration::new((nanos / 1_000_000_000) as u64, (nanos % 1_000_000_000) as u32)
}
