//! Does my API honour idempotency keys? Ask it, in staging, before telling a client that it does.
//!
//! ```text
//! cargo run --features testing,server --example does_my_api_honour_keys -- https://api.staging.example.com/v1/charges \
//!     --body '{"amount": 100, "note": "probe {unique}"}' --header 'authorization: Bearer …'
//! ```
//!
//! It creates some twenty real operations. `--self-test` runs it against servers of its own that keep, half keep and break the
//! promise, and fails unless it gets each right. Exit status: 0, a policy fits; 1, none does; 2, nothing could be learnt.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use steadfast::http::{HeaderName, Method};
use steadfast::testing::idempotency::{Check, CheckError, Report, Sample};

const WARNING: &str = "\
WARNING: this creates REAL operations: some twenty charges, orders, or whatever the request asks for.
         Point it at a STAGING system.";

#[derive(Parser)]
#[command(about = "Asks an API whether it honours idempotency keys. Creates real operations: for staging.")]
struct Args {
    /// What to send the requests to.
    #[arg(required_unless_present = "self_test")]
    url: Option<String>,
    /// The body, JSON or other text; {unique} becomes a number that is new for each key.
    #[arg(long, default_value = r#"{"amount": 100}"#)]
    body: String,
    /// Another body that the API would take, to send under a key that is taken.
    #[arg(long)]
    other_body: Option<String>,
    /// A header, as `name: value`; may be repeated.
    #[arg(long = "header", value_parser = header)]
    headers: Vec<(String, String)>,
    #[arg(long, default_value = "POST")]
    method: Method,
    /// The header that keys travel in.
    #[arg(long, default_value = "idempotency-key")]
    key_header: HeaderName,
    /// How many requests are sent at the same time under one key.
    #[arg(long, default_value_t = 4)]
    at_once: usize,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
    /// Do not ask whether it is a staging system.
    #[arg(long)]
    yes: bool,
    /// Probe servers of its own, of which the truth is known.
    #[arg(long)]
    self_test: bool,
}

fn header(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or("a header is `name: value`")?;
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

/// Whoever cannot be asked must have said it before.
fn confirmed() -> bool {
    if !std::io::stdin().is_terminal() {
        eprintln!("Say --yes if it is a staging system.");
        return false;
    }
    eprint!("Is it one? Type yes: ");
    let mut answer = String::new();
    let read = std::io::stderr().flush().and_then(|()| std::io::stdin().read_line(&mut answer));
    read.is_ok() && answer.trim() == "yes"
}

async fn probe(args: &Args) -> Result<Report, Box<dyn std::error::Error>> {
    let url = args.url.as_deref().unwrap_or_default();
    let sample = match serde_json::from_str::<serde_json::Value>(&args.body) {
        Ok(json) => Sample::json(&json),
        Err(_) => Sample::text("text/plain", args.body.clone()),
    };
    let sample = args.headers.iter().fold(sample, |sample, (name, value)| sample.header(name, value));
    let sample = args.other_body.iter().fold(sample, |sample, body| sample.other_payload(body));
    let check = Check::new(url, sample.method(args.method.clone())).header(args.key_header.clone());
    Ok(watched(check.at_once(args.at_once, 3)).await?)
}

/// Runs it under a progress bar, which is drawn if standard error is a terminal.
async fn watched(check: Check<'_>) -> Result<Report, CheckError> {
    let bar = ProgressBar::new(Check::STEPS as u64);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos}/{len} {wide_msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    let shown = bar.clone();
    let outcome = check
        .on_step(move |step| {
            shown.inc(1);
            shown.set_message(step.to_owned());
        })
        .run()
        .await;
    bar.finish_and_clear();
    outcome
}

/// Servers of which the truth is known.
mod self_test {
    use std::collections::HashMap;
    use std::error::Error;
    use std::process::ExitCode;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::Duration;

    use axum::Router;
    use axum::extract::State;
    use axum::http::{HeaderMap, StatusCode};
    use axum::response::{IntoResponse, Response};
    use axum::routing::post;
    use serde_json::json;
    use steadfast::server::{IdempotencyLayer, MemoryStore, Scope};
    use steadfast::testing::idempotency::Kept::{No, Unknown, Yes};
    use steadfast::testing::idempotency::{Check, Concurrent, Kept, Promise, Report, Sample};

    /// How long a charge takes: requests at the same time do overlap.
    const WORK: Duration = Duration::from_millis(40);

    /// What a server does with keys.
    #[derive(Clone, Copy, PartialEq)]
    enum Ways {
        /// This crate's own layer.
        OurLayer,
        /// Runs once per key, has the others wait, and does not mark a replay.
        Waits,
        /// The same, and takes a key only in quotes.
        QuotedOnly,
        /// Looks, charges, and then writes down.
        Races,
        /// Replays whatever is asked under a key.
        AnyPayload,
        /// Runs a request whose key it cannot read.
        MalformedRuns,
        /// Charges, and forgets it if the client hangs up before it is written down.
        ForgetsTheCut,
        Ignores,
    }

    /// What the probe must say: the policy, whether the promises are kept (in their order), and what happens at the same time.
    struct Truth {
        name: &'static str,
        ways: Ways,
        line: Option<&'static str>,
        kept: [Kept; 5],
        concurrent: Concurrent,
    }

    const STANDARD: Option<&str> = Some(".keys(KeyPolicy::standard())");
    const QUOTED: Option<&str> = Some(".keys(KeyPolicy::standard().form(KeyFormat::Quoted))");

    #[rustfmt::skip]
    const TRUTHS: [Truth; 8] = [
        Truth { name: "keeps it (this crate's layer)", ways: Ways::OurLayer, line: STANDARD, kept: [Yes, Yes, Yes, Yes, Yes], concurrent: Concurrent::Refused },
        Truth { name: "keeps it, waits, marks nothing", ways: Ways::Waits, line: STANDARD, kept: [Yes, Yes, Yes, Yes, Unknown], concurrent: Concurrent::Waits },
        Truth { name: "keeps it for quoted keys", ways: Ways::QuotedOnly, line: QUOTED, kept: [Yes, Yes, Yes, Yes, Unknown], concurrent: Concurrent::Waits },
        Truth { name: "half: races", ways: Ways::Races, line: None, kept: [Yes, Yes, Yes, No, Unknown], concurrent: Concurrent::Doubled },
        Truth { name: "half: any payload", ways: Ways::AnyPayload, line: STANDARD, kept: [Yes, No, Yes, Yes, Unknown], concurrent: Concurrent::Waits },
        Truth { name: "half: malformed keys run", ways: Ways::MalformedRuns, line: STANDARD, kept: [Yes, Yes, No, Yes, Unknown], concurrent: Concurrent::Waits },
        Truth { name: "half: forgets what was cut", ways: Ways::ForgetsTheCut, line: STANDARD, kept: [Yes, Yes, Yes, Yes, Unknown], concurrent: Concurrent::Waits },
        Truth { name: "breaks it: ignores keys", ways: Ways::Ignores, line: None, kept: [No, Unknown, Unknown, Unknown, Unknown], concurrent: Concurrent::Unknown },
    ];

    pub(super) async fn run() -> ExitCode {
        let mut wrong = 0;
        for truth in TRUTHS {
            match probed(truth.ways).await {
                Err(error) => {
                    println!("FAILED  {}: {error}", truth.name);
                    wrong += 1;
                }
                Ok(report) => {
                    let right = truth.is_told_by(&report);
                    println!("{}  {}", if right { "ok    " } else { "WRONG " }, truth.name);
                    if !right {
                        println!("{report}\n");
                        wrong += 1;
                    }
                }
            }
        }
        println!("{} servers, {wrong} told wrong", TRUTHS.len());
        if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    impl Truth {
        fn is_told_by(&self, report: &Report) -> bool {
            let promises = [
                Promise::Honoured,
                Promise::PayloadChecked,
                Promise::MalformedNotIgnored,
                Promise::ConcurrentSafe,
                Promise::LostAnswerKept,
            ];
            promises.map(|promise| report.kept(promise)) == self.kept
                && report.builder_line.as_deref() == self.line
                && report.concurrent == self.concurrent
        }
    }

    async fn probed(ways: Ways) -> Result<Report, Box<dyn Error>> {
        let api = Arc::new(Api { ways, charges: AtomicU64::new(0), records: Mutex::default() });
        let mut router = Router::new().route("/charges", post(charge)).with_state(api);
        if ways == Ways::OurLayer {
            router = router.layer(IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()));
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/charges", listener.local_addr()?);
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let report = super::watched(Check::new(&url, Sample::json(&json!({ "amount": 100 })))).await;
        server.abort();
        Ok(report?)
    }

    type Record = Arc<tokio::sync::Mutex<Option<(String, u64)>>>;

    struct Api {
        ways: Ways,
        charges: AtomicU64,
        /// By key: the payload and the charge.
        records: Mutex<HashMap<String, Record>>,
    }

    async fn charge(State(api): State<Arc<Api>>, headers: HeaderMap, payload: String) -> Response {
        let spelt = headers.get("idempotency-key").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let Some(key) = api.read(spelt) else { return StatusCode::BAD_REQUEST.into_response() };
        if api.ways == Ways::ForgetsTheCut {
            // It ends with the connection.
            return api.once(&key, payload).await;
        }
        tokio::spawn(async move { api.once(&key, payload).await })
            .await
            .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
    }

    impl Api {
        /// The key, empty for none; `None` if it cannot be read and that is an error.
        fn read(&self, spelt: &str) -> Option<String> {
            let bare = spelt.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            let is_malformed = bare.is_none() && spelt.starts_with('"');
            match self.ways {
                // The layer has seen to it.
                Ways::Ignores | Ways::OurLayer => Some(String::new()),
                Ways::QuotedOnly => bare.map(str::to_owned),
                Ways::MalformedRuns if is_malformed => Some(String::new()),
                _ if is_malformed => None,
                _ => Some(bare.unwrap_or(spelt).to_owned()),
            }
        }

        async fn once(&self, key: &str, payload: String) -> Response {
            if key.is_empty() {
                return created(self.run().await);
            }
            let record = {
                let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
                records.entry(key.to_owned()).or_default().clone()
            };
            let mut known = record.lock().await;
            if let Some((of, number)) = &*known {
                let is_another = *of != payload && self.ways != Ways::AnyPayload;
                return if is_another { StatusCode::UNPROCESSABLE_ENTITY.into_response() } else { created(*number) };
            }
            if self.ways == Ways::Races {
                drop(known);
                let number = self.run().await;
                *record.lock().await = Some((payload, number));
                return created(number);
            }
            let number = self.run().await;
            *known = Some((payload, number));
            created(number)
        }

        /// Charges first, and is busy for a while after it.
        #[allow(clippy::disallowed_methods, reason = "a charge takes its time")]
        async fn run(&self) -> u64 {
            let number = self.charges.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::time::sleep(WORK).await;
            number
        }
    }

    fn created(number: u64) -> Response {
        (StatusCode::CREATED, axum::Json(json!({ "id": format!("ch_{number}"), "amount": 100 }))).into_response()
    }
}
