//! Every table, in Markdown, in the order in which `src/guide/performance.md` shows them.

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use indicatif::{ProgressBar, ProgressStyle};

use crate::contender::Name;
use crate::layer::Serving;
use crate::load::{Say, Scenario};
use crate::measure::{Run, Server, serving};
use crate::wire::Wire;

const ROUNDS: usize = 5;

pub fn print(server: &Server) {
    println!("{}\n", instructions(server));
    println!("{}\n", allocations(server));
    println!("{}\n", origins(server));
    println!("{}", times(server));
}

/// Returns all contenders that were compiled in. Plain reqwest is first, since the others are
/// compared with it. The client without a base URL appears only in the table of origins.
fn compared() -> impl Iterator<Item = Name> {
    Name::all().filter(|name| ![Name::Anywhere, Name::Traced].contains(name))
}

fn instructions(server: &Server) -> Table {
    let mut table = new(&["instructions", "GET", "POST", "503, 503, 200", "64 in flight"]);
    let scenarios = [Scenario::Get, Scenario::Post, Scenario::Persist, Scenario::Get64];
    relative(&mut table, &scenarios, |name, scenario| server.instructions(Run::new(name, scenario)));
    table
}

/// Where people live: a name as the host, HTTP/2 and TLS, with a base URL and without. Over TLS a run
/// differs from the next by up to 3 %, so each count is the median of several.
pub fn wires(server: &Server) -> Table {
    const WIRES: [Wire; 4] = [Wire::Name, Wire::Clear2, Wire::Tls1, Wire::Tls2];
    const SCENARIOS: [Scenario; 4] = [Scenario::Get, Scenario::Post, Scenario::Persist, Scenario::Get64];
    let names: Vec<Name> = Name::all().filter(|name| *name != Name::Traced).collect();
    let mut table = new(&["instructions, of reqwest's", "GET", "POST", "503, 503, 200", "64 in flight"]);
    let bar = progress(WIRES.len() * names.len());
    for wire in WIRES {
        bar.set_message(wire.title());
        let mut plain = Vec::new();
        for &name in names.iter().filter(|name| name.speaks(wire)) {
            let mut row = vec![name.title().to_owned()];
            for (column, scenario) in SCENARIOS.into_iter().enumerate() {
                let run = Run::new(name, scenario).over(wire);
                // The client without a base URL has its budget, which ends a run that always fails.
                if name == Name::Anywhere && scenario == Scenario::Persist {
                    row.push("-".to_owned());
                    continue;
                }
                let cost = median_instructions(server, run);
                if name == Name::Reqwest {
                    plain.push(cost);
                    row[0] = format!("reqwest {}", wire.title());
                    row.push(format!("{} (1.00)", grouped(cost)));
                } else {
                    row.push(format!("{:.3}", cost / plain[column]));
                }
            }
            table.add_row(row);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    table
}

/// Returns the median of three counts over TLS, and one count in the clear, where none differs.
pub fn median_instructions(server: &Server, run: Run) -> f64 {
    let runs = if run.wire.is_tls() { 3 } else { 1 };
    median((0..runs).map(|_| server.instructions(run)).collect())
}

fn allocations(server: &Server) -> Table {
    let mut table = new(&["allocations", "GET", "POST", "503, 503, 200", "bytes of one in flight"]);
    let scenarios = [Scenario::Get, Scenario::Post, Scenario::Persist, Scenario::Hold];
    relative(&mut table, &scenarios, |name, scenario| match scenario {
        Scenario::Hold => server.held_by_one(name),
        _ => server.allocations(Run::new(name, scenario)),
    });
    table
}

/// Adds a row for each contender: its cost, and the ratio to plain reqwest.
fn relative(table: &mut Table, scenarios: &[Scenario], measure: impl Fn(Name, Scenario) -> f64) {
    let mut plain = Vec::new();
    for name in compared() {
        let mut row = vec![name.title().to_owned()];
        for (column, &scenario) in scenarios.iter().enumerate() {
            let cost = measure(name, scenario);
            if name == Name::Reqwest {
                plain.push(cost);
            }
            row.push(format!("{} ({:.2})", grouped(cost), cost / plain[column]));
        }
        table.add_row(row);
    }
}

/// Whether an operation costs more with many origins.
fn origins(server: &Server) -> Table {
    let mut table = new(&["instructions of a GET", "1 origin", "one of 1,000 origins", "ratio"]);
    for name in [Name::Reqwest, Name::Anywhere] {
        let (one, many) = (
            server.instructions(Run::new(name, Scenario::Get)),
            server.instructions(Run::new(name, Scenario::Origins)),
        );
        table.add_row([name.title().to_owned(), grouped(one), grouped(many), format!("{:.3}", many / one)]);
    }
    table
}

/// The cost of the idempotency layer above that of its handler.
pub fn layer() -> Table {
    let mut table = new(&["instructions of a request", "all", "more than the handler alone"]);
    let alone = serving(Serving::Alone);
    for what in Serving::all() {
        let all = if what == Serving::Alone { alone } else { serving(what) };
        table.add_row([what.title().to_owned(), grouped(all), grouped(all - alone)]);
    }
    table
}

/// Medians of interleaved rounds, so that other load on this machine affects all contenders alike.
fn times(server: &Server) -> Table {
    let mut table =
        new(&["time (gates nothing)", "GET, median", "64 in flight, median", "64 in flight, GETs a second"]);
    let names: Vec<Name> = compared().collect();
    let mut rounds = vec![[const { Vec::new() }; 3]; names.len()];
    for _ in 0..ROUNDS {
        for (name, [alone, busy, rate]) in names.iter().zip(&mut rounds) {
            alone.push(server.say(Run::new(*name, Scenario::Get), 3000, Say::Time)[0]);
            let of_many = server.say(Run::new(*name, Scenario::Get64), 19_200, Say::Time);
            busy.push(of_many[0]);
            rate.push(of_many[1]);
        }
    }
    for (name, [alone, busy, rate]) in names.into_iter().zip(rounds) {
        let microseconds = |times| format!("{:.0} µs", median(times) / 1000.0);
        table.add_row([name.title().to_owned(), microseconds(alone), microseconds(busy), grouped(median(rate))]);
    }
    table
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Shows how far a long count has come.
pub fn progress(steps: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("[{bar:40}] {pos}/{len} {msg}").unwrap();
    ProgressBar::new(steps as u64).with_style(style)
}

pub fn new(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// `74,812`.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}
