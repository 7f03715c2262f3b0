//! What steadfast costs, beside plain reqwest and the clients that do a part of its work.
//!
//! ```text
//! cargo run --release                        steadfast and plain reqwest, every table
//! cargo run --release --features peers      and the peers
//! cargo run --release -- count get reqwest   one scenario, instructions only
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

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::contender::Name;
use crate::layer::Serving;
use crate::load::{Say, Scenario};

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
    Count { scenario: Scenario, contenders: Vec<Name> },
    /// Allocations of one operation in one scenario.
    Allocations { scenario: Scenario, contenders: Vec<Name> },
    /// The cost of the server's side, in Markdown.
    Layer,
    /// The bounds and the counts. Fails if a count is more than 1 % above its bound.
    Gate,
    #[command(hide = true)]
    Serve,
    #[command(hide = true)]
    Serving { what: Serving, requests: usize },
    #[command(hide = true)]
    Load { port: u16, contender: Name, scenario: Scenario, operations: usize, say: Say },
}

fn main() -> ExitCode {
    match Arguments::parse().command.unwrap_or(Command::Tables) {
        Command::Serve => server::serve().unwrap(),
        Command::Load { port, contender, scenario, operations, say } => {
            for number in contender.run(port, scenario, operations, say) {
                println!("{number}");
            }
        }
        Command::Count { scenario, contenders } => {
            let server = measure::Server::start();
            for contender in contenders {
                println!("{contender}: {:.0}", server.instructions(contender, scenario));
            }
        }
        Command::Allocations { scenario, contenders } => {
            let server = measure::Server::start();
            for contender in contenders {
                println!("{contender}: {}", server.allocations(contender, scenario));
            }
        }
        Command::Serving { what, requests } => what.run(requests),
        Command::Tables => tables::print(&measure::Server::start()),
        Command::Layer => println!("{}", tables::layer()),
        Command::Gate => return gate::check(&measure::Server::start()),
    }
    ExitCode::SUCCESS
}
