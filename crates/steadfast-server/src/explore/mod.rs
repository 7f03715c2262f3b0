//! Explores the server half: every order of calls, replies, crashes and expired leases, within
//! bounds.
//!
//! The store is [`ModelStore`](crate::store::model::ModelStore), and the layer's own functions
//! ([`rules`](super::rules)) make its decisions. The guide lists what is explored and what is not
//! (`guide/proof.md` of `steadfast`).

mod check;
mod choices;
mod claims;
mod design;
mod ends;
mod kinds;
mod refuted;
mod steps;
mod story;
mod transaction;
mod world;

use std::sync::Arc;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};
use steadfast_core::clock;

use self::check::Exploration;
use self::design::Design;
use self::kinds::Counts;
use self::story::story;
use self::transaction::Transactions;
use self::world::{Script, Setup};
use crate::outcome::OnUnknown;

/// The page with the results, which the tests compare.
const PAGE: &str = include_str!("../../../../src/guide/proof.md");

/// The requests of the clients. The first two clients are in one process, the third in another.
const SCRIPTS: [Script; 3] = [
    // One operation, three times.
    Script { asks: [&[(0, 0)], &[(0, 0)], &[(0, 0)]], faults: 2 },
    // Another request under the key, and then the first one again.
    Script { asks: [&[(0, 0)], &[], &[(0, 1), (0, 0)]], faults: 2 },
    // Two keys.
    Script { asks: [&[(0, 0)], &[(1, 0)], &[(0, 0)]], faults: 1 },
];

fn setup(on_unknown: OnUnknown, reconciles: bool) -> Setup {
    Setup { on_unknown, reconciles, design: Design::Ours, scripts: &SCRIPTS }
}

/// Explores all states, and returns their number.
fn explore(name: &str, setup: Setup, counts: &Arc<Counts>) -> usize {
    let started = clock::now();
    let exploration = Exploration { counts: counts.clone(), ..Exploration::of(setup) };
    let checker = exploration.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found = checker.discoveries().into_iter();
    let stories: String = found.map(|(name, path)| format!("broken: {name}\n{}", story(&setup, path))).collect();
    assert!(stories.is_empty(), "{stories}");
    report(name, &checker, started)
}

/// Prints the number of states, and returns it.
fn report<M: Model>(name: &str, checker: &impl Checker<M>, started: Instant) -> usize {
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{name}: {states} states, {depth} steps at most, {:.1?}", started.elapsed());
    states
}

/// Checks that the guide has these numbers.
fn assert_page(states: &[(&str, usize)]) {
    for (name, states) in states {
        let row = format!("| {name} | {states} |");
        assert!(PAGE.contains(&row), "guide/proof.md does not say: {row}");
    }
}

#[test]
fn every_order_of_events_keeps_every_property() {
    let counts = Arc::new(Counts::default());
    let setups = [
        ("refuse", setup(OnUnknown::Reject, false)),
        ("rerun", setup(OnUnknown::Rerun, false)),
        ("reconcile", setup(OnUnknown::Reject, true)),
    ];
    let states = setups.map(|(name, setup)| (name, explore(name, setup, &counts)));
    for (kind, count) in counts.all() {
        println!("{kind:?}: {count}");
        assert_ne!(count, 0, "{kind:?} never happens");
    }
    let all: usize = states.iter().map(|(_, states)| states).sum();
    assert!(all >= 100_000, "{all} states");
    assert_page(&states);
}

#[test]
fn every_order_of_transactions_keeps_every_property() {
    let started = clock::now();
    let transactions = Transactions::new(5);
    let counts = transactions.counts.clone();
    let checker = transactions.checker().spawn_bfs().join();
    let found = checker.discoveries().into_iter();
    let stories: String = found.map(|(name, path)| format!("broken: {name}\n{}", transaction::story(path))).collect();
    assert!(stories.is_empty(), "{stories}");
    let states = report("transaction", &checker, started);
    for (kind, count) in counts.all() {
        println!("{kind}: {count}");
        assert_ne!(count, 0, "{kind} never happens");
    }
    assert_page(&[("transaction", states)]);
}
