//! The tables: the same cells for the terminal and for the page.

use std::fmt::Write as _;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use steadfast_sim::{Numbers, Report};

use crate::experiments::{BUDGETS, CROWDS, Findings, JITTERS, OUTAGES, SHARES, STRATEGIES};
use crate::mechanisms::{self, Case, MECHANISMS};

/// Columns of a terminal that a table may take.
const WIDTH: u16 = 100;

pub(crate) struct Cells {
    pub(crate) title: &'static str,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// Returns every table, in the order of the report.
pub(crate) fn all(findings: &Findings) -> [Cells; 9] {
    [
        outages(findings),
        overloads(findings),
        shares(findings),
        contention(findings),
        herds(findings),
        mixed(findings),
        layers(findings),
        mechanisms_in_outages(findings),
        mechanisms_in_brownouts(findings),
    ]
}

pub(crate) fn outages(findings: &Findings) -> Cells {
    let rows = OUTAGES.iter().zip(&findings.outages).flat_map(|(trouble, reports)| {
        let name = trouble.to_string().replace("outage, ", "");
        BUDGETS.iter().zip(reports).map(move |(budget, report)| trouble_row(&[&name, budget.name], report))
    });
    Cells {
        title: "An outage of 30 s, and the minute after it",
        header: trouble_header(&["the server was", "budget"]),
        rows: rows.collect(),
    }
}

pub(crate) fn overloads(findings: &Findings) -> Cells {
    let rows = BUDGETS.iter().zip(&findings.overloads).map(|(budget, report)| trouble_row(&[budget.name], report));
    Cells {
        title: "Twice the operations for 10 s, and the minute after it",
        header: trouble_header(&["budget"]),
        rows: rows.collect(),
    }
}

fn trouble_header(first: &[&str]) -> Vec<String> {
    let rest = ["attempts/op during", "recovered", "success after", "wasted work after"];
    owned(&[first, &rest].concat())
}

fn trouble_row(first: &[&str], report: &Report) -> Vec<String> {
    let attempts = format!("{:.2}", report.during().attempts_per_operation());
    let (success, wasted) = (percent(report.after().success()), percent(report.after().wasted_work()));
    [owned(first), vec![attempts, recovered(report), success, wasted]].concat()
}

fn recovered(report: &Report) -> String {
    match report.time_to_recover() {
        Some(time) if time.is_zero() => "at once".to_owned(),
        Some(time) => format!("after {:.1} s", time.as_secs_f64()),
        None => "not in 60 s".to_owned(),
    }
}

pub(crate) fn shares(findings: &Findings) -> Cells {
    let cell = |report: &Report| {
        let numbers = report.during();
        format!("{:.2}x, {}", numbers.attempts_per_operation(), percent(numbers.success()))
    };
    let rows = SHARES.iter().enumerate().map(|(place, share)| {
        let cells = findings.shares.iter().filter_map(|reports| Some(cell(reports.get(place)?)));
        std::iter::once(format!("{share} %")).chain(cells).collect()
    });
    let header = std::iter::once("requests that fail").chain(STRATEGIES.iter().map(|strategy| strategy.name));
    Cells {
        title: "A share of the requests fails for a minute: load, and operations that succeed",
        header: header.map(str::to_owned).collect(),
        rows: rows.collect(),
    }
}

pub(crate) fn contention(findings: &Findings) -> Cells {
    let rows = CROWDS.iter().enumerate().map(|(place, crowd)| {
        let means = findings.contention.iter().filter_map(|means| means.get(place));
        let cells = means.map(|mean| format!("{:.0} calls, {:.2} s", mean.calls, mean.seconds));
        std::iter::once(crowd.to_string()).chain(cells).collect()
    });
    let header = std::iter::once("clients").chain(JITTERS.iter().map(|(name, _)| *name));
    Cells {
        title: "Clients that contend for one row",
        header: header.map(str::to_owned).collect(),
        rows: rows.collect(),
    }
}

pub(crate) fn herds(findings: &Findings) -> Cells {
    let row = |((name, _), report): (&(&str, _), &Report)| {
        let (peak, numbers) = (report.peak(), report.during());
        vec![
            (*name).to_owned(),
            peak.to_string(),
            percent(numbers.success()),
            milliseconds(numbers, 0.5),
            milliseconds(numbers, 0.99),
        ]
    };
    let header = ["1,000 clients", "most requests in 0.1 s after the repair", "success", "p50", "p99"];
    Cells {
        title: "A thousand connections break together",
        header: owned(&header),
        rows: JITTERS.iter().zip(&findings.herds).map(row).collect(),
    }
}

pub(crate) fn mixed(findings: &Findings) -> Cells {
    let fleets = ["1 client, 300 operations/s", "30 clients, 10 operations/s", "300 clients, 1 operation/s"];
    let rows = fleets.iter().enumerate().filter_map(|(place, name)| {
        let [_, during, _] = findings.mixed.fleet(place)?;
        Some(vec![(*name).to_owned(), format!("{:.2}", during.attempts_per_operation())])
    });
    Cells {
        title: "The same load from few and from many clients, 30 s of refused connections, standard()",
        header: owned(&["clients", "attempts/operation"]),
        rows: rows.collect(),
    }
}

pub(crate) fn layers(findings: &Findings) -> Cells {
    let rows = findings
        .layers
        .iter()
        .map(|(layers, without, with)| vec![layers.to_string(), format!("{without:.0}"), format!("{with:.2}")]);
    Cells {
        title: "Services that call services, three retries in each: calls at the bottom for one at the top",
        header: owned(&["layers", "no budget", "standard()"]),
        rows: rows.collect(),
    }
}

pub(crate) fn mechanisms_in_outages(findings: &Findings) -> Cells {
    let cell = |report: &Report| {
        let sent = report.during().load_multiplier();
        format!("{sent:.2}x, {}, peak {}", recovered(report), report.peak())
    };
    Cells {
        title: "Each mechanism in an outage of 30 s: requests/operation, recovered, peak of 0.1 s after it",
        header: mechanisms_header(&mechanisms::OUTAGES),
        rows: mechanisms_rows(&findings.mechanisms.outages, cell),
    }
}

pub(crate) fn mechanisms_in_brownouts(findings: &Findings) -> Cells {
    let cell = |report: &Report| {
        let during = report.during();
        let (sent, success) = (during.load_multiplier(), percent(during.success()));
        format!("{sent:.2}x, {success}, p99.9 {}, {}", milliseconds(during, 0.999), recovered(report))
    };
    Cells {
        title: "Each mechanism in a brownout of 30 s: requests/operation, success, p99.9, recovered",
        header: mechanisms_header(&mechanisms::BROWNOUTS),
        rows: mechanisms_rows(&findings.mechanisms.brownouts, cell),
    }
}

fn mechanisms_header(cases: &[Case]) -> Vec<String> {
    std::iter::once("").chain(cases.iter().map(|case| case.name)).map(str::to_owned).collect()
}

fn mechanisms_rows(reports: &[Vec<Report>], cell: impl Fn(&Report) -> String) -> Vec<Vec<String>> {
    let row = |(mechanism, reports): (&mechanisms::Mechanism, &Vec<Report>)| {
        std::iter::once(mechanism.name.to_owned()).chain(reports.iter().map(&cell)).collect()
    };
    MECHANISMS.iter().zip(reports).map(row).collect()
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn percent(share: f64) -> String {
    // 99.996 % is not all of them.
    let rounded = (share * 10_000.0).floor() / 100.0;
    if share < 1.0 { format!("{rounded:.2} %") } else { "100 %".to_owned() }
}

fn milliseconds(numbers: &Numbers, quantile: f64) -> String {
    numbers.latency(quantile).map_or_else(|| "–".to_owned(), |time| format!("{} ms", time.as_millis()))
}

impl Cells {
    /// Returns the title and the table, at most [`WIDTH`] columns wide. If the cells need more, each
    /// of their parts gets a line.
    pub(crate) fn for_the_terminal(&self) -> String {
        let mut table = self.table(&self.rows);
        if table.lines().any(|line| line.chars().count() > usize::from(WIDTH)) {
            let stack = |cell: &String| cell.replace(", ", "\n");
            table = self.table(&self.rows.iter().map(|row| row.iter().map(stack).collect()).collect::<Vec<_>>());
        }
        format!("{}\n{}\n", self.title, table.set_content_arrangement(ContentArrangement::Dynamic))
    }

    fn table(&self, rows: &[Vec<String>]) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(&self.header).set_width(WIDTH);
        table.add_rows(rows);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    pub(crate) fn as_html(&self) -> String {
        let line = |cells: &[String], tag: &str| {
            cells.iter().fold(String::new(), |mut line, cell| {
                let _always_ok = write!(line, "<{tag}>{cell}</{tag}>");
                line
            })
        };
        let rows: String = self.rows.iter().map(|row| format!("<tr>{}</tr>\n", line(row, "td"))).collect();
        format!("<table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n", line(&self.header, "th"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of `--full` may be longer than those of a first look. The script that runs all
    /// examples checks the latter.
    #[test]
    fn longest_cells_fit_the_terminal() {
        let cell = "888.88x, 99.99 %, p99.9 88888 ms, after 88.8 s".to_owned();
        for cases in [&mechanisms::OUTAGES[..], &mechanisms::BROWNOUTS[..]] {
            let header = mechanisms_header(cases);
            let row = std::iter::once("deadline header".to_owned()).chain(cases.iter().map(|_| cell.clone())).collect();
            let text = Cells { title: "Wide", header, rows: vec![row] }.for_the_terminal();
            assert!(text.lines().all(|line| line.chars().count() <= usize::from(WIDTH)), "{text}");
            assert!(cell.split(", ").all(|part| text.contains(part)), "{text}");
        }
    }
}
