//! Servers with known behaviour: they keep, half keep or break the promise, and the probe must
//! detect which.

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
use steadfast_probe::Kept::{No, Unknown, Yes};
use steadfast_probe::{Concurrent, Kept, Probe, Promise, Report, SampleRequest};
use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};

/// Duration of a charge: long enough for concurrent requests to overlap.
const WORK: Duration = Duration::from_millis(40);

/// How a server treats keys.
#[derive(Clone, Copy, PartialEq)]
enum Ways {
    /// This project's own layer.
    OurLayer,
    /// Executes once for each key, lets repeats wait, and does not mark a replay.
    Waits,
    /// Like `Waits`, but accepts a key only in quotes.
    QuotedOnly,
    /// Checks for a record, charges, and then writes the record.
    Races,
    /// Replays the first response, whatever the payload.
    AnyPayload,
    /// Executes a request with a malformed key, unprotected.
    MalformedRuns,
    /// Charges, but loses the record if the client disconnects first.
    ForgetsTheCut,
    Ignores,
}

/// The expected report: the policy, whether each promise is kept (in order), and the behaviour
/// under concurrency.
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
    Truth { name: "keeps the promise (steadfast-server)", ways: Ways::OurLayer, line: STANDARD, kept: [Yes, Yes, Yes, Yes, Yes], concurrent: Concurrent::Refused },
    Truth { name: "keeps the promise, waits, marks nothing", ways: Ways::Waits, line: STANDARD, kept: [Yes, Yes, Yes, Yes, Unknown], concurrent: Concurrent::Waits },
    Truth { name: "keeps the promise for quoted keys", ways: Ways::QuotedOnly, line: QUOTED, kept: [Yes, Yes, Yes, Yes, Unknown], concurrent: Concurrent::Waits },
    Truth { name: "half: has a race", ways: Ways::Races, line: None, kept: [Yes, Yes, Yes, No, Unknown], concurrent: Concurrent::Doubled },
    Truth { name: "half: accepts any payload", ways: Ways::AnyPayload, line: STANDARD, kept: [Yes, No, Yes, Yes, Unknown], concurrent: Concurrent::Waits },
    Truth { name: "half: ignores malformed keys", ways: Ways::MalformedRuns, line: STANDARD, kept: [Yes, Yes, No, Yes, Unknown], concurrent: Concurrent::Waits },
    Truth { name: "half: forgets a cut request", ways: Ways::ForgetsTheCut, line: STANDARD, kept: [Yes, Yes, Yes, Yes, Unknown], concurrent: Concurrent::Waits },
    Truth { name: "breaks the promise: ignores keys", ways: Ways::Ignores, line: None, kept: [No, Unknown, Unknown, Unknown, Unknown], concurrent: Concurrent::Unknown },
];

pub(crate) async fn run() -> ExitCode {
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
    println!("{} servers, {wrong} judged wrongly", TRUTHS.len());
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
    let report = crate::watched(Probe::new(&url, SampleRequest::json(&json!({ "amount": 100 })))).await;
    server.abort();
    Ok(report?)
}

type Record = Arc<tokio::sync::Mutex<Option<(String, u64)>>>;

struct Api {
    ways: Ways,
    charges: AtomicU64,
    /// Payload and charge, by key.
    records: Mutex<HashMap<String, Record>>,
}

async fn charge(State(api): State<Arc<Api>>, headers: HeaderMap, payload: String) -> Response {
    let spelt = headers.get("idempotency-key").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(key) = api.read(spelt) else { return StatusCode::BAD_REQUEST.into_response() };
    if api.ways == Ways::ForgetsTheCut {
        // Ends with the connection.
        return api.once(&key, payload).await;
    }
    tokio::spawn(async move { api.once(&key, payload).await })
        .await
        .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

impl Api {
    /// Returns the key, empty if there is none. Returns `None` if a malformed key is an error.
    fn read(&self, spelt: &str) -> Option<String> {
        let bare = spelt.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let is_malformed = bare.is_none() && spelt.starts_with('"');
        match self.ways {
            // The layer has already checked the key.
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

    /// Charges first, then stays busy for a while.
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
