//! Tables of how other clients behave, run against this one.
//!
//! The tables are data, in `tests/cases/`. Each case comes from the source or the tests of a
//! published client, and names it. If steadfast differs by design, the case is not dropped in
//! silence. Every runner prints the cases that it left out, with the reason, and asserts how many
//! it ran. So a case that no longer applies is noticed.
//!
//! `cargo test -p steadfast-tests --test it cases -- --nocapture` prints the account.

mod aws;
mod methods;
mod object_store;
mod quota;
mod retry_after;
mod stripe;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Reads the cases of a table. Its other parts are for human readers.
fn cases<C: DeserializeOwned>(table: &str) -> Vec<C> {
    #[derive(Deserialize)]
    #[serde(bound(deserialize = "C: DeserializeOwned"))]
    struct Table<C> {
        cases: Vec<C>,
    }
    serde_json::from_str::<Table<C>>(table).unwrap().cases
}

/// Returns the headers of a case. The tables write bytes as the characters U+0000..U+00FF.
fn headers(lines: &[(String, String)]) -> HeaderMap {
    let bytes = |text: &str| text.chars().map(|c| u8::try_from(c).unwrap()).collect::<Vec<_>>();
    let line = |(name, value): &(String, String)| {
        (HeaderName::try_from(name).unwrap(), HeaderValue::from_bytes(&bytes(value)).unwrap())
    };
    lines.iter().map(line).collect()
}

/// The results of one table's cases.
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

    /// Prints the account, and asserts the counts that the runner expects.
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

/// Returns why a case is left out. The list holds prefixes of case identifiers.
fn reason(list: &[(&str, &'static str)], id: &str) -> Option<&'static str> {
    list.iter().find(|(beginning, _)| id.starts_with(beginning)).map(|(_, reason)| *reason)
}
