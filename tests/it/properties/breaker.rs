//! The breaker, compared with a model that keeps a list of all calls and recounts it each time.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use steadfast::policy::{Breaker, BreakerPolicy, BreakerState, CircuitOpen, Class, Permit};

use super::cases;
use crate::support::clock;

/// In milliseconds. The slices of the window are whole milliseconds.
const WINDOW: u64 = 1000;
const OPEN_FOR: u64 = 700;
const SLOW: u64 = 100;

#[derive(Clone, Copy, Debug)]
enum Step {
    Pass(u64),
    Ask,
    /// Ends one of the calls under way, by its number.
    End {
        which: usize,
        class: Class,
        took: u64,
    },
    Drop {
        which: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let class = prop::sample::select(vec![
        Class::Success,
        Class::NotProcessed,
        Class::Throttled,
        Class::Ambiguous,
        Class::Permanent,
    ]);
    prop_oneof![
        2 => prop_oneof![0..30_u64, 0..1500_u64].prop_map(Step::Pass),
        5 => Just(Step::Ask),
        5 => (0..8_usize, class, 0..2 * SLOW).prop_map(|(which, class, took)| Step::End { which, class, took }),
        1 => (0..8_usize).prop_map(|which| Step::Drop { which }),
    ]
}

#[derive(Debug)]
enum Phase {
    /// The time of each call, and whether it failed and was slow.
    Closed(Vec<(u64, bool, bool)>),
    Open(u64),
    HalfOpen {
        out: u32,
        passed: u32,
    },
}

/// The documentation of `BreakerPolicy` as a program, without regard to speed.
#[derive(Debug)]
struct Model {
    share: f64,
    min_calls: usize,
    probes: u32,
    phase: Phase,
    /// Number of phase changes.
    changes: usize,
}

impl Model {
    fn change(&mut self, phase: Phase) {
        self.phase = phase;
        self.changes += 1;
    }

    fn ask(&mut self, now: u64) -> Result<(), u64> {
        if let Phase::Open(since) = self.phase {
            if now < since + OPEN_FOR {
                return Err(since + OPEN_FOR - now);
            }
            self.change(Phase::HalfOpen { out: 0, passed: 0 });
        }
        match &mut self.phase {
            Phase::HalfOpen { out, passed } if *out + *passed == self.probes => Err(OPEN_FOR),
            Phase::HalfOpen { out, .. } => {
                *out += 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, failed: bool, slow: bool, now: u64) -> Option<BreakerState> {
        match &mut self.phase {
            Phase::Closed(calls) => {
                calls.push((now, failed, slow));
                let first = calls[0].0;
                let slice = |at: u64| (at - first) / (WINDOW / 10);
                let inside: Vec<_> = calls.iter().filter(|(at, ..)| slice(*at) + 10 > slice(now)).collect();
                let share = |count: usize| count as f64 / inside.len() as f64;
                let failing = failed && share(inside.iter().filter(|call| call.1).count()) >= self.share;
                let slowing = slow && share(inside.iter().filter(|call| call.2).count()) >= self.share;
                if inside.len() < self.min_calls || !(failing || slowing) {
                    return None;
                }
            }
            Phase::HalfOpen { out, passed } if !failed && !slow => {
                *out -= 1;
                *passed += 1;
                if *passed < self.probes {
                    return None;
                }
                self.change(Phase::Closed(Vec::new()));
                return Some(BreakerState::Closed);
            }
            Phase::HalfOpen { .. } | Phase::Open(_) => {}
        }
        self.change(Phase::Open(now));
        Some(self.state(now))
    }

    fn state(&self, now: u64) -> BreakerState {
        match self.phase {
            Phase::Closed(_) => BreakerState::Closed,
            Phase::Open(since) if now < since + OPEN_FOR => open(since + OPEN_FOR - now),
            Phase::Open(_) | Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }
}

/// Returns an open state. Only a breaker can make one, so this one opens and is read later.
fn open(retry_after: u64) -> BreakerState {
    let policy = BreakerPolicy::new().min_calls(1).open_for(Duration::from_millis(retry_after));
    let (breaker, now) = (Breaker::new(policy), clock::now());
    breaker.acquire(now).unwrap().record(Class::Ambiguous, Duration::ZERO, now).unwrap()
}

/// A call under way, and the model's number of changes when it was admitted.
type Call<'a> = (Permit<'a>, usize);

fn play(model: &mut Model, steps: &[Step]) -> Result<(), TestCaseError> {
    let policy = BreakerPolicy::new()
        .failure_share(model.share)
        .slow_calls(Duration::from_millis(SLOW), model.share)
        .min_calls(u32::try_from(model.min_calls).unwrap())
        .window(Duration::from_millis(WINDOW))
        .open_for(Duration::from_millis(OPEN_FOR))
        .probes(model.probes);
    policy.validate().unwrap();
    let (breaker, origin) = (Breaker::new(policy), clock::now());
    let at = |now: u64| -> Instant { origin + Duration::from_millis(now) };
    let (mut now, mut calls): (u64, Vec<Call<'_>>) = (0, Vec::new());
    for step in steps {
        match *step {
            Step::Pass(time) => now += time,
            Step::Ask => {
                let before = model.changes;
                let (found, expected) = (breaker.acquire(at(now)), model.ask(now));
                match found {
                    Ok(permit) => {
                        prop_assert_eq!(expected, Ok(()));
                        prop_assert_eq!(permit.half_opened(), model.changes > before);
                        calls.push((permit, model.changes));
                    }
                    Err(CircuitOpen { retry_after, .. }) => {
                        prop_assert_eq!(expected, Err(u64::try_from(retry_after.as_millis()).unwrap()));
                    }
                }
            }
            Step::End { which, class, took } if which < calls.len() => {
                let (permit, changes) = calls.remove(which);
                let failed = matches!(class, Class::Ambiguous | Class::NotProcessed);
                let is_stale = changes != model.changes;
                let expected = if is_stale { None } else { model.end(failed, took >= SLOW, now) };
                prop_assert_eq!(permit.record(class, Duration::from_millis(took), at(now)), expected);
            }
            Step::Drop { which } if which < calls.len() => {
                let (permit, changes) = calls.remove(which);
                drop(permit);
                if let (Phase::HalfOpen { out, .. }, true) = (&mut model.phase, changes == model.changes) {
                    *out -= 1;
                }
            }
            Step::End { .. } | Step::Drop { .. } => {}
        }
        prop_assert_eq!(breaker.state(at(now)), model.state(now));
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn breaker_agrees_with_model(
        share in prop_oneof![Just(0.25), Just(0.5), Just(1.0)],
        min_calls in 1..6_usize,
        probes in 1..4_u32,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut model = Model { share, min_calls, probes, phase: Phase::Closed(Vec::new()), changes: 0 };
        play(&mut model, &steps)?;
    }
}
