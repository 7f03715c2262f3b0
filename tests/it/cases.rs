//! Tables of how other clients behave, run against this one.
//!
//! The tables are data, in `tests/cases/`: cases read from the sources and tests of published clients, each with where it comes
//! from. Where the house differs by design the case is not dropped in silence: every runner prints what it left out and why,
//! and asserts how many it ran, so that a case that stops applying is noticed.
//!
//! `cargo test --test it cases -- --nocapture` shows the account.

mod aws;
mod methods;
mod retry_after;
mod stripe;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The cases of a table, whose other parts are for people.
fn cases<C: DeserializeOwned>(table: &str) -> Vec<C> {
    #[derive(Deserialize)]
    #[serde(bound(deserialize = "C: DeserializeOwned"))]
    struct Table<C> {
        cases: Vec<C>,
    }
    serde_json::from_str::<Table<C>>(table).unwrap().cases
}

/// What became of the cases of one table.
struct Account {
    table: &'static str,
    ran: usize,
    left_out: Vec<String>,
}

impl Account {
    fn of(table: &'static str) -> Self {
        Self { table, ran: 0, left_out: Vec::new() }
    }

    fn ran(&mut self) {
        self.ran += 1;
    }

    fn leave_out(&mut self, id: &str, reason: &str) {
        self.left_out.push(format!("{id}: {reason}"));
    }

    /// Prints the account, and holds it to the numbers that the runner expects.
    fn close(self, ran: usize, left_out: usize) {
        println!("{}: {} cases ran, {} left out", self.table, self.ran, self.left_out.len());
        for line in &self.left_out {
            println!("  left out: {line}");
        }
        assert_eq!(
            (self.ran, self.left_out.len()),
            (ran, left_out),
            "{}: cases that ran, and were left out",
            self.table
        );
    }
}

/// The reason why a case is not run, from a list of beginnings of identifiers.
fn reason(list: &[(&str, &'static str)], id: &str) -> Option<&'static str> {
    list.iter().find(|(beginning, _)| id.starts_with(beginning)).map(|(_, reason)| *reason)
}
