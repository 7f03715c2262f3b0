//! The command `outbox`: what is in the file of an outbox, for the person on call.

mod cli;

use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(cli::run(arguments)) {
        Ok(said) => match print(&said) {
            // Whoever reads it has read enough, as in `outbox ls | head`.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Err(error) => failed(&error),
            Ok(()) => ExitCode::SUCCESS,
        },
        Err(error) => failed(&*error),
    }
}

fn print(said: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(said.as_bytes())?;
    stdout.flush()
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}
