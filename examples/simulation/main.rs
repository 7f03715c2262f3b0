//! Retry settings, seen from the server: tables, and a page with plots.
//!
//! ```text
//! cargo run --example simulation
//! cargo run --example simulation -- --out report.html --seed 7
//! cargo run --release --example simulation -- --full
//! ```
//!
//! By default it runs 50 clients, for a first look: about 6 s in a debug build, and rougher numbers.
//! `--full` prints the tables of the guide and draws its plots, with 100 clients: two to three times
//! as long.
//!
//! `experiments.rs` and `mechanisms.rs` set the runs up, `tables.rs` and `plots.rs` show them, and
//! `page.rs` explains them. One line tries a policy of yours:
//! `println!("{}", steadfast_sim::outage(&my_policy))`.

mod experiments;
mod mechanisms;
mod page;
mod plots;
mod tables;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use experiments::Size;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows what retry policies and budgets do to a server in trouble.
#[derive(Parser)]
struct Arguments {
    /// Where to write the report.
    #[arg(long, default_value = "target/simulation/report.html")]
    out: PathBuf,
    /// A folder for the plots alone, as SVG files.
    #[arg(long)]
    plots: Option<PathBuf>,
    /// The runs of the guide, with 100 clients: minutes in a debug build.
    #[arg(long)]
    full: bool,
    /// The seed of all random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let bar = bar()?;
    let size = if arguments.full { Size::FULL } else { Size::QUICK };
    let findings = experiments::run(size, arguments.seed, |done, all| show(&bar, done, all));
    bar.finish_and_clear();

    for table in tables::all(&findings) {
        println!("{}", table.for_the_terminal());
    }

    if !arguments.full {
        println!("A first look, with {} clients. The guide has {}: --full.\n", size.clients, Size::FULL.clients);
    }
    let plots = plots::all(&findings)?;
    write(&arguments.out, &page::html(&findings, &plots, arguments.seed))?;
    println!("the report: {}", arguments.out.display());
    if let Some(folder) = &arguments.plots {
        for plot in &plots {
            write(&folder.join(plot.name).with_extension("svg"), &plot.svg)?;
        }
        println!("the plots: {}", folder.display());
    }
    Ok(())
}

/// A progress bar that shows itself after a second.
fn bar() -> Result<ProgressBar, Box<dyn Error>> {
    let style = ProgressStyle::with_template("{prefix:>11} [{bar:40}] {pos}/{len} runs, {elapsed}")?;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    Ok(bar.with_style(style.progress_chars("=> ")).with_prefix("simulating"))
}

fn show(bar: &ProgressBar, done: u64, all: u64) {
    if bar.is_hidden() && bar.elapsed() > Duration::from_secs(1) {
        bar.set_draw_target(ProgressDrawTarget::stderr());
    }
    bar.set_length(all);
    bar.set_position(done);
}

fn write(path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(path, text));
    written.map_err(|error| format!("{}: {error}", path.display()).into())
}
