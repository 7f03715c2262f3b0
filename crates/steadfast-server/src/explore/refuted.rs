//! Broken designs from the field, each with the shortest way to break it.

use stateright::{Checker, Model};

use super::check::{self, Exploration};
use super::design::Design;
use super::story::story;
use super::transaction::{self, Transactions};
use super::world::{Script, Setup};
use super::{PAGE, setup};
use crate::outcome::OnUnknown;

/// A design from the field, and the property that it breaks.
struct Refuted {
    design: Design,
    title: &'static str,
    on_unknown: OnUnknown,
    scripts: &'static [Script],
    property: &'static str,
    /// The harm.
    so: &'static str,
}

const TWO_CLIENTS: &[Script] = &[Script { asks: [&[(0, 0)], &[], &[(0, 0)]], faults: 2 }];
const TWO_REQUESTS: &[Script] = &[Script { asks: [&[(0, 0)], &[], &[(0, 1)]], faults: 1 }];

const REFUTED: [Refuted; 7] = [
    Refuted {
        design: Design::OneTtl,
        title: "One time to live for the claim and the record",
        on_unknown: OnUnknown::Reject,
        property: check::NOT_WEDGED,
        scripts: TWO_CLIENTS,
        so: "Key 1 stays in progress for as long as a record is kept, a day perhaps, and nobody works on it.",
    },
    Refuted {
        design: Design::NoFence,
        title: "A completion that is not fenced",
        on_unknown: OnUnknown::Rerun,
        property: check::FENCED,
        scripts: TWO_CLIENTS,
        so: "A has completed C's claim: C's handler still runs, and a repeat is told that all is done.",
    },
    Refuted {
        design: Design::ForgetsOnLapse,
        title: "A record that is forgotten when its lease is over",
        on_unknown: OnUnknown::Reject,
        property: check::EXECUTED_ONCE,
        scripts: TWO_CLIENTS,
        so: "The operation was executed twice.",
    },
    Refuted {
        design: Design::ServerMakesToken,
        title: "A token that the store makes, and a lost reply",
        on_unknown: OnUnknown::Reject,
        property: check::NOT_ORPHANED,
        scripts: TWO_CLIENTS,
        so: "The key is held under a name that nobody knows. A's second call is told \"in progress\", and nobody can cancel the claim.",
    },
    Refuted {
        design: Design::ReleasesOnHangUp,
        title: "A key that is released when its client hangs up",
        on_unknown: OnUnknown::Reject,
        property: check::EXECUTED_ONCE,
        scripts: TWO_CLIENTS,
        so: "The operation was executed twice.",
    },
    Refuted {
        design: Design::IgnoresRequest,
        title: "A take-over that does not compare the request",
        on_unknown: OnUnknown::Rerun,
        property: check::ONE_REQUEST,
        scripts: TWO_REQUESTS,
        so: "Two operations were executed under one key.",
    },
    Refuted {
        design: Design::NoTombstone,
        title: "A cancelled claim without a tombstone",
        on_unknown: OnUnknown::Reject,
        property: check::NOT_ORPHANED,
        scripts: TWO_CLIENTS,
        so: "Nobody runs A's claim, and nobody will end it. In a lease the key looks as if its operation may have run.",
    },
];

/// Finds the shortest way to break the property, and describes it.
fn refute(refuted: &Refuted) -> String {
    let setup = Setup { design: refuted.design, scripts: refuted.scripts, ..setup(refuted.on_unknown, false) };
    // One property and one thread: the first state found is the nearest, and the same each time.
    let exploration = Exploration { only: Some(refuted.property), ..Exploration::of(setup) };
    let checker = exploration.checker().spawn_bfs().join();
    let path = checker.discovery(refuted.property).unwrap_or_else(|| panic!("{} is not refuted", refuted.title));
    format!("### {}\n\n{}\n{} Broken: *{}*.\n", refuted.title, story(&setup, path), refuted.so, refuted.property)
}

/// Breaks a design that writes the end of a rolled-back transaction again.
fn refute_writing_again() -> String {
    let only = Some(transaction::TOGETHER);
    let checker = Transactions { writes_again: true, only, ..Transactions::new(1) }.checker().spawn_bfs().join();
    let path = checker.discovery(transaction::TOGETHER).unwrap_or_else(|| panic!("it is not refuted"));
    let title = "An end that is written again after a rollback";
    let so = "Every repeat is told that the operation was executed, and its rows are not there.";
    format!("### {title}\n\n{}\n{so} Broken: *{}*.\n", transaction::story(path), transaction::TOGETHER)
}

#[test]
fn broken_designs_are_refuted_as_the_guide_tells() {
    let mut untold = String::new();
    for story in REFUTED.iter().map(refute).chain([refute_writing_again()]) {
        println!("{story}");
        if !PAGE.contains(&story) {
            untold += &story;
        }
    }
    assert!(untold.is_empty(), "guide/proof.md does not tell it like this:\n\n{untold}");
}
