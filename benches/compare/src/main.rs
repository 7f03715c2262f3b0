//! What steadfast costs, beside plain reqwest and the clients that do a part of its work.
//!
//! ```text
//! cargo run --release                        steadfast and plain reqwest, every table
//! cargo run --release --features peers      and the peers
//! cargo run --release -- count tls2 get reqwest   one scenario, instructions only
//! cargo run --profile gate -- gate           the bounds, checked by counts alone
//! ```
//!
//! The server and every measured client are processes of their own. Instructions are counted by
//! callgrind, in the client's process only, for two lengths of run: the difference is what the
//! operations cost, and start-up cancels. Allocations are counted exactly. Both are the same from
//! run to run; times are not, so they are medians of interleaved rounds, printed and never judged.

// This program measures time, and panics if it cannot.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::exhaustive_enums)]

mod contender;
mod gate;
mod layer;
mod load;
mod measure;
mod server;
mod tables;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::contender::Name;
use crate::layer::Serving;
use crate::load::{Say, Scenario};
use crate::measure::Run;
use crate::wire::{Site, Wire};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Every table, in Markdown.
    Tables,
    /// Instructions of one operation in one scenario.
    Count { wire: Wire, scenario: Scenario, contenders: Vec<Name> },
    /// Allocations of one operation in one scenario.
    Allocations { wire: Wire, scenario: Scenario, contenders: Vec<Name> },
    /// The table of every wire, in Markdown.
    Wires,
    /// The cost of the server's side, in Markdown.
    Layer,
    /// The bounds and the counts. Fails if a count is more than 1 % above its bound.
    Gate,
    #[command(hide = true)]
    Serve,
    #[command(hide = true)]
    Serving { what: Serving, requests: usize },
    #[command(hide = true)]
    Load {
        wire: Wire,
        port: u16,
        certificate: PathBuf,
        contender: Name,
        scenario: Scenario,
        operations: usize,
        say: Say,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command.unwrap_or(Command::Tables) {
        Command::Serve => server::serve().unwrap(),
        Command::Load { wire, port, certificate, contender, scenario, operations, say } => {
            for number in contender.run(&Site::new(wire, port, certificate), scenario, operations, say) {
                println!("{number}");
            }
        }
        Command::Count { wire, scenario, contenders } => {
            let server = measure::Server::start();
            for contender in contenders {
                println!("{contender}: {:.0}", server.instructions(Run::new(contender, scenario).over(wire)));
            }
        }
        Command::Allocations { wire, scenario, contenders } => {
            let server = measure::Server::start();
            for contender in contenders {
                println!("{contender}: {}", server.allocations(Run::new(contender, scenario).over(wire)));
            }
        }
        Command::Serving { what, requests } => what.run(requests),
        Command::Tables => tables::print(&measure::Server::start()),
        Command::Wires => println!("{}", tables::wires(&measure::Server::start())),
        Command::Layer => println!("{}", tables::layer()),
        Command::Gate => return gate::check(&measure::Server::start()),
    }
    ExitCode::SUCCESS
}
