//! `steadfast-probe`: finds out, in staging, whether an API honours idempotency keys.
//!
//! ```text
//! steadfast-probe https://api.staging.example.com/v1/charges \
//!     --body '{"amount": 100, "note": "probe {unique}"}' --header 'authorization: Bearer …'
//! ```
//!
//! The probe creates some twenty real operations. `--self-test` runs it against its own servers,
//! which keep, half keep or break the promise. The self-test fails unless it judges each of them
//! correctly.
//!
//! Exit status: 0 if a policy fits, 1 if none does, 2 if nothing could be learnt.

mod self_test;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use steadfast::http::{HeaderName, Method};
use steadfast_probe::{Probe, ProbeError, Report, SampleRequest};

const WARNING: &str = "\
WARNING: this creates REAL operations: some twenty charges, orders, or whatever your request asks for.
         Point it at a STAGING system.";

#[derive(Parser)]
#[command(
    version,
    about = "Finds out whether an API honours idempotency keys. Creates real operations: use a staging system."
)]
struct Args {
    /// URL of the API
    #[arg(required_unless_present = "self_test")]
    url: Option<String>,
    /// Body, as JSON or other text; {unique} becomes a new number for each key
    #[arg(long, default_value = r#"{"amount": 100}"#)]
    body: String,
    /// Another body that the API would accept, to send under a key in use
    #[arg(long)]
    other_body: Option<String>,
    /// Header, as `name: value`; can be repeated
    #[arg(long = "header", value_parser = header)]
    headers: Vec<(String, String)>,
    /// HTTP method
    #[arg(long, default_value = "POST")]
    method: Method,
    /// Header that carries the keys
    #[arg(long, default_value = "idempotency-key")]
    key_header: HeaderName,
    /// Number of concurrent requests under one key
    #[arg(long, default_value_t = 4)]
    at_once: usize,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Do not ask whether this is a staging system
    #[arg(long)]
    yes: bool,
    /// Probe built-in servers with known behaviour
    #[arg(long)]
    self_test: bool,
}

fn header(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or("a header must have the form `name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if args.self_test {
        return self_test::run().await;
    }
    eprintln!("{WARNING}");
    if !args.yes && !confirmed() {
        return ExitCode::from(2);
    }
    let outcome = probe(&args).await.and_then(|report| {
        let text = if args.json { serde_json::to_string_pretty(&report)? } else { report.to_string() };
        println!("{text}");
        Ok(report.policy().is_some())
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Without a terminal there is nobody to ask, so `--yes` is required.
fn confirmed() -> bool {
    if !std::io::stdin().is_terminal() {
        eprintln!("Pass --yes if this is a staging system.");
        return false;
    }
    eprint!("Is this a staging system? Type yes: ");
    let mut answer = String::new();
    let read = std::io::stderr().flush().and_then(|()| std::io::stdin().read_line(&mut answer));
    read.is_ok() && answer.trim() == "yes"
}

async fn probe(args: &Args) -> Result<Report, Box<dyn std::error::Error>> {
    let url = args.url.as_deref().unwrap_or_default();
    let sample = match serde_json::from_str::<serde_json::Value>(&args.body) {
        Ok(json) => SampleRequest::json(&json),
        Err(_) => SampleRequest::text("text/plain", args.body.clone()),
    };
    let sample = args.headers.iter().fold(sample, |sample, (name, value)| sample.header(name, value));
    let sample = args.other_body.iter().fold(sample, |sample, body| sample.other_payload(body));
    let probe = Probe::new(url, sample.method(args.method.clone())).header(args.key_header.clone());
    Ok(watched(probe.at_once(args.at_once, 3)).await?)
}

/// Runs the probe under a progress bar, which is drawn only if standard error is a terminal.
async fn watched(probe: Probe<'_>) -> Result<Report, ProbeError> {
    let bar = ProgressBar::new(Probe::STEPS as u64);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos}/{len} {wide_msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    let shown = bar.clone();
    let outcome = probe
        .on_step(move |step| {
            shown.inc(1);
            shown.set_message(step.to_owned());
        })
        .run()
        .await;
    bar.finish_and_clear();
    outcome
}
