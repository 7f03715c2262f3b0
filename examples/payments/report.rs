//! The table, the advice, and the last line for scripts.

use std::fmt;
use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use crate::bank::Tally;

/// What the table does not say by itself. The README has the same text under the same table.
const LEGEND: &str = "\
The naive loop sends a charge again after every failure, without a key.
\"Unsure\" counts charges whose end a client does not know: the server may have
executed them once, twice or never.";

/// The results of one client.
pub(crate) struct Column {
    pub(crate) tally: Tally,
    /// `None`: the client cannot resume.
    pub(crate) resumed: Option<usize>,
    /// Charges with an outcome that the client does not know.
    pub(crate) unsure: usize,
    /// Charges that the client gave up on and knows not to be charged. `None`: the client cannot
    /// know.
    pub(crate) not_charged: Option<usize>,
    pub(crate) elapsed: Duration,
    /// An order that the first pass gave up on, and the text of its error.
    pub(crate) example: Option<(u32, String)>,
}

pub(crate) struct Report {
    pub(crate) charges: u32,
    pub(crate) ignore_keys: bool,
    pub(crate) steadfast: Column,
    pub(crate) naive: Column,
}

impl Report {
    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(["", "steadfast", "naive retry loop"]);
        let mut row = |name: &str, cell: &dyn Fn(&Column) -> String| {
            table.add_row([name.to_owned(), cell(&self.steadfast), cell(&self.naive)]);
        };
        let known = |count: Option<usize>| count.map_or("–".to_owned(), |count| count.to_string());
        row("charges asked", &|_| self.charges.to_string());
        row("executed once", &|column| column.tally.once.to_string());
        row("executed twice or more", &|column| column.tally.twice.to_string());
        row("never executed", &|column| column.tally.never.to_string());
        row("resumed with the key from their error, second pass", &|column| known(column.resumed));
        row("unsure at the end", &|column| column.unsure.to_string());
        row("failed, and known not to be charged", &|column| known(column.not_charged));
        row("attempts per charge, as received", &|column| {
            format!("{:.2}", f64::from(column.tally.requests) / f64::from(self.charges))
        });
        row("time", &|column| format!("{:.1} s", column.elapsed.as_secs_f64()));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// Says what to do about the unsure charges.
    fn advice(&self) -> Option<String> {
        let count = self.steadfast.unsure;
        let advice = match self.ignore_keys {
            _ if count == 0 => return None,
            true => {
                "the server may have acted on them and ignores keys, so they were not sent again: \
                 look up each order on the server before you charge anew"
            }
            false => "keep the tokens of their errors and resume them when the server has recovered",
        };
        Some(format!("{count} charges are unsure: {advice}."))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{LEGEND}\n", self.table())?;
        if let Some((order, error)) = &self.steadfast.example {
            writeln!(f, "An error of the first pass, for order {order}:\n  {error}")?;
        }
        if let Some(advice) = self.advice() {
            writeln!(f, "{advice}")?;
        }
        let (Tally { once, twice, .. }, unsure) = (self.steadfast.tally, self.steadfast.unsure);
        write!(f, "charges={} once={once} twice={twice} unsure={unsure}", self.charges)
    }
}
