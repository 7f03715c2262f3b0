//! Every store in lockstep with [`ModelStore`]: random sequences of calls, and equal replies.
//!
//! Three callers claim two keys and end their claims in every way, at the wrong time and twice.
//! Replies are lost, time passes, stores restart, and some calls make no sense. A different reply
//! is reduced to the shortest sequence, and printed as a story.
//!
//! A run makes about ten thousand calls of each store. `STEADFAST_LOCKSTEP_CALLS` sets another
//! number for each:
//!
//! ```text
//! STEADFAST_LOCKSTEP_CALLS=1000000 ./scripts/with_servers.sh \
//!     cargo test -p steadfast-tests --release --test it lockstep -- --nocapture
//! ```
//!
//! `PROPTEST_RNG_SEED` repeats a run.

mod play;
mod steps;
mod transactional;
mod worlds;

use std::cell::RefCell;
use std::time::Instant;

use proptest::strategy::Strategy as _;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use steadfast_testing::ModelStore;
use tokio::runtime::{Builder, Runtime};

use self::play::{Model, Story, Tally, World, play};
use self::steps::{Sequence, sequences};
use crate::support::clock;

/// Calls and replies that every run must contain.
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
    "Acquired",
    "Existing(InProgress)",
    "Existing(Completed)",
    "Existing(Unknown)",
    "Cancelled",
    "renewed",
    "not renewed",
    "Stored",
    "Fenced",
    "looked up",
    "nothing known",
];

fn calls_wanted(usual: u64) -> u64 {
    let wanted = std::env::var("STEADFAST_LOCKSTEP_CALLS");
    wanted.map_or(usual, |number| number.parse().expect("STEADFAST_LOCKSTEP_CALLS is a number"))
}

/// Plays sequences until this number of calls was made.
fn lockstep<M: Model, W: World>(
    runtime: &Runtime,
    calls: u64,
    model: impl Fn(&Sequence) -> M,
    open: impl AsyncFn(&Sequence) -> W,
) -> Tally {
    let began = clock::now();
    let tally = RefCell::<Tally>::default();
    let play = |sequence: &Sequence| {
        let mut counted = tally.take();
        let played = runtime.block_on(async {
            let mut world = open(sequence).await;
            play(model(sequence), &mut world, sequence, &mut counted).await
        });
        tally.replace(counted);
        played
    };
    let config = Config { failure_persistence: None, max_shrink_iters: 5_000, ..Config::default() };
    let mut runner = TestRunner::new(config);
    while tally.borrow().total() < calls {
        let tree = sequences().new_tree(&mut runner).unwrap();
        let outcome =
            runner.run_one(tree, |sequence| play(&sequence).map_err(|story| TestCaseError::fail(story.to_string())));
        match outcome {
            Ok(_) => {}
            Err(TestError::Fail(first, sequence)) => panic!("{}", difference(&first.to_string(), sequence, play)),
            Err(TestError::Abort(reason)) => panic!("{reason}"),
        }
    }
    let tally = tally.into_inner();
    report(&tally, began);
    tally
}

/// Describes a failing sequence: its story, without unnecessary steps.
///
/// proptest has already left out steps. But if a step names a claim by its distance, proptest could
/// not leave out the steps between.
fn difference(first: &str, mut sequence: Sequence, play: impl Fn(&Sequence) -> Result<(), Story>) -> String {
    let room = sequence.room();
    let Err(mut story) = play(&sequence) else {
        return format!("the store, {room}, differed from its model once, and did not again:\n{first}");
    };
    let mut place = 0;
    while place < sequence.steps.len() {
        let mut shorter = sequence.clone();
        shorter.steps.remove(place);
        match play(&shorter) {
            Err(told) => (sequence, story, place) = (shorter, told, 0),
            Ok(()) => place += 1,
        }
    }
    format!("the store, {room}, differs from its model:\n{story}")
}

fn report(tally: &Tally, began: Instant) {
    println!("{} calls in {:?}", tally.total(), began.elapsed());
    for (name, counts) in [("calls", &tally.calls), ("answers", &tally.answers), ("between them", &tally.events)] {
        let counts: Vec<String> = counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        println!("{name}: {}", counts.join(" · "));
    }
}

fn assert_seen(tally: &Tally, answers: &[&str]) {
    for call in CALLS {
        assert!(tally.calls.contains_key(call), "no call of this kind was made: {call}");
    }
    for answer in answers {
        assert!(tally.answers.contains_key(answer), "no such reply: {answer}");
    }
    for event in ["time passes", "restart", "reply lost"] {
        assert!(tally.events.contains_key(event), "this never happened: {event}");
    }
}

/// Creates a runtime whose time stands still until the test advances it.
fn frozen() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

#[test]
fn memory_agrees_with_the_model() {
    let runtime = frozen();
    let tally = lockstep(
        &runtime,
        calls_wanted(60_000),
        |sequence| ModelStore::new(worlds::TOMBSTONE, sequence.bound),
        async |sequence| worlds::Memory::open(sequence.bound),
    );
    assert_seen(&tally, &ANSWERS);
    assert_seen(&tally, &["Full"]);
}
#[test]
fn redb_agrees_with_the_model() {
    let runtime = frozen();
    let tally = lockstep(
        &runtime,
        calls_wanted(15_000),
        |sequence| ModelStore::new(worlds::TOMBSTONE, sequence.bound).counting_tombstones(),
        async |sequence| worlds::Redb::open(sequence.bound),
    );
    assert_seen(&tally, &ANSWERS);
    assert_seen(&tally, &["Full"]);
}
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
#[test]
fn postgres_agrees_with_the_model() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let postgres = runtime.block_on(worlds::Postgres::connect());
    let tally = lockstep(
        &runtime,
        calls_wanted(15_000),
        |_| ModelStore::default().joining_tombstones(),
        async |_| {
            let mut postgres = postgres.clone();
            postgres.clear().await;
            postgres
        },
    );
    assert_seen(&tally, &ANSWERS);
}
#[test]
fn transactional_postgres_agrees_with_its_model() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let postgres = runtime.block_on(worlds::Postgres::connect());
    let tally = lockstep(
        &runtime,
        calls_wanted(8_000),
        |_| transactional::TransactionalModel::default(),
        async |_| {
            let mut postgres = postgres.clone();
            postgres.clear().await;
            transactional::Transactional::over(postgres).await
        },
    );
    // No token is refused: a dropped claim has no token that could arrive late.
    let answers = ANSWERS.into_iter().filter(|answer| !["Cancelled", "not renewed"].contains(answer));
    assert_seen(&tally, &answers.collect::<Vec<_>>());
}
