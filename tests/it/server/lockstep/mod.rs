//! Every store in lockstep with [`ModelStore`]: random sequences of calls, and every answer equal.
//!
//! Three callers claim two keys and end their claims in every way, at the wrong time and twice.
//! Replies are lost, time passes, stores are restarted, and some calls make no sense. An answer that
//! differs is cut down to the shortest sequence, and printed as a story.
//!
//! A run makes some ten thousand calls of each store. `STEADFAST_LOCKSTEP_CALLS` sets another
//! number, for each:
//!
//! ```text
//! STEADFAST_LOCKSTEP_CALLS=1000000 ./scripts/with_servers.sh \
//!     cargo test --release --all-features --test it lockstep -- --nocapture
//! ```
//!
//! `PROPTEST_RNG_SEED` repeats a run.

mod play;
mod steps;
mod worlds;

use std::time::Instant;

use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use steadfast::testing::ModelStore;
use tokio::runtime::{Builder, Runtime};

use self::play::{Model, Tally, World, play};
use self::steps::{Sequence, sequences};
use crate::support::clock;

/// Calls and answers that every run must have seen.
const CALLS: [&str; 9] = [
    "claim",
    "claim, taking over",
    "renew",
    "finish as completed",
    "finish as released",
    "finish as unknown",
    "finish as cancelled",
    "look",
    "sweep",
];
const ANSWERS: [&str; 11] = [
    "Won",
    "Known(Running)",
    "Known(Done)",
    "Known(Unknown)",
    "Cancelled",
    "renewed",
    "not renewed",
    "Stored",
    "Lost",
    "looked up",
    "nothing known",
];

fn calls_wanted(usual: u64) -> u64 {
    let wanted = std::env::var("STEADFAST_LOCKSTEP_CALLS");
    wanted.map_or(usual, |number| number.parse().expect("STEADFAST_LOCKSTEP_CALLS is a number"))
}

/// Plays sequences until so many calls were made.
fn lockstep<M: Model, W: World>(
    runtime: &Runtime,
    calls: u64,
    model: impl Fn(&Sequence) -> M,
    open: impl AsyncFn(&Sequence) -> W,
) -> Tally {
    let began = clock::now();
    let mut tally = Tally::default();
    let config = Config { cases: 1, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    let mut runner = TestRunner::new(config);
    while tally.total() < calls {
        let told = std::cell::RefCell::new(&mut tally);
        let outcome = runner.run(&sequences(), |sequence| {
            runtime.block_on(async {
                let mut world = open(&sequence).await;
                let played = play(model(&sequence), &mut world, &sequence, &mut told.borrow_mut()).await;
                played.map_err(|story| TestCaseError::fail(story.to_string()))
            })
        });
        match outcome {
            Ok(()) => {}
            Err(TestError::Fail(story, Sequence { bound, .. })) => {
                let bound = if bound == usize::MAX { "no bound".to_owned() } else { format!("a bound of {bound}") };
                panic!("the store differs from its model, with {bound}:\n{story}");
            }
            Err(TestError::Abort(reason)) => panic!("{reason}"),
        }
    }
    report(&tally, began);
    tally
}

fn report(tally: &Tally, began: Instant) {
    println!("{} calls in {:?}", tally.total(), began.elapsed());
    for (name, counts) in [("calls", &tally.calls), ("answers", &tally.answers), ("between them", &tally.events)] {
        let counts: Vec<String> = counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        println!("{name}: {}", counts.join(" · "));
    }
}

fn assert_seen(tally: &Tally, answers: &[&str]) {
    let seen =
        |counts: &std::collections::BTreeMap<&'static str, u64>, kind: &str| counts.get(kind).is_some_and(|n| *n > 0);
    for call in CALLS {
        assert!(seen(&tally.calls, call), "no call of this kind was made: {call}");
    }
    for answer in answers {
        assert!(seen(&tally.answers, answer), "no such answer was given: {answer}");
    }
    for event in ["time passes", "restart", "reply lost"] {
        assert!(seen(&tally.events, event), "this never happened: {event}");
    }
}

/// A runtime whose time stands still until it is told to go on.
fn frozen() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

#[test]
fn memory_agrees_with_the_model() {
    let runtime = frozen();
    let tally = lockstep(
        &runtime,
        calls_wanted(40_000),
        |sequence| ModelStore::new(worlds::TOMBSTONE, sequence.bound),
        async |sequence| worlds::Memory::open(sequence.bound),
    );
    assert_seen(&tally, &ANSWERS);
    assert_seen(&tally, &["Full"]);
}

#[cfg(feature = "redb")]
#[test]
fn redb_agrees_with_the_model() {
    let runtime = frozen();
    let tally = lockstep(
        &runtime,
        calls_wanted(20_000),
        |sequence| ModelStore::new(worlds::TOMBSTONE, sequence.bound),
        async |sequence| worlds::Redb::open(sequence.bound),
    );
    assert_seen(&tally, &ANSWERS);
    assert_seen(&tally, &["Full"]);
}

#[cfg(feature = "redis")]
#[test]
fn redis_agrees_with_the_model() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let redis = runtime.block_on(worlds::Redis::connect());
    let tally = lockstep(
        &runtime,
        calls_wanted(20_000),
        |_| ModelStore::default(),
        async |_| {
            let mut redis = redis.clone();
            redis.clear().await;
            redis
        },
    );
    assert_seen(&tally, &ANSWERS);
}

#[cfg(feature = "postgres")]
#[test]
fn postgres_agrees_with_the_model() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let postgres = runtime.block_on(worlds::Postgres::connect());
    let tally = lockstep(
        &runtime,
        calls_wanted(20_000),
        |_| ModelStore::default(),
        async |_| {
            let mut postgres = postgres.clone();
            postgres.clear().await;
            postgres
        },
    );
    assert_seen(&tally, &ANSWERS);
}
