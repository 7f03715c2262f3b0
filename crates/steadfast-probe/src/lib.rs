//! Does an API keep the promise of idempotency keys? A probe that asks it.
//!
//! [`ClientBuilder::keys`](steadfast::ClientBuilder::keys) is your word that an API honours keys, and documentation is often silent on
//! what happens to two requests at the same time, to another payload, or to an answer that was lost. [`probe`] sends such requests
//! and reports which promises are kept and which [`KeyPolicy`](steadfast::KeyPolicy) fits.
//!
//! **It creates real operations**: some twenty charges, orders or whatever the request asks for. Point it at a staging system.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use serde_json::json;
//! use steadfast_probe::{SampleRequest, probe};
//!
//! let charge = SampleRequest::json(&json!({ "amount": 100, "currency": "eur", "note": "probe {unique}" })).bearer_auth("test token");
//! let report = probe("https://api.staging.example.com/v1/charges", charge).await?;
//! println!("{report}");
//! assert!(report.policy().is_some(), "{}", report.advice);
//! # Ok(())
//! # }
//! ```
//!
//! # What it can know
//!
//! It cannot count executions at somebody else's server. It *observes* statuses and headers that mark a replay, and *infers* from
//! what tells two operations apart in the answers (an id, a `Location`) whether a third answer is about the first operation. The
//! report says which of the two a finding rests on, and what stays unknown: above all how long keys are kept, and whether a request
//! whose client has gone was run without a record. That no race was seen in a few rounds is no proof that there is none.

mod answers;
mod report;
mod run;
mod sending;

use std::fmt;
use std::time::Duration;

use http::{HeaderName, Method};
use serde::Serialize;

pub use report::{Basis, Concurrent, Finding, Kept, Promise, Report};

/// Probes the API at `url` with requests like `sample`; the key travels in `Idempotency-Key`. [`Probe`] has the settings.
///
/// # Errors
///
/// If nothing can be learnt: the URL or the sample cannot be sent, the API cannot be reached, or it refuses the request itself.
pub async fn probe(url: &str, sample: SampleRequest) -> Result<Report, ProbeError> {
    Probe::new(url, sample).run().await
}

/// A request that creates one operation each time it is sent with a key of its own.
///
/// In its body `{unique}` becomes a number that is new for each key, where an API refuses what it has seen before.
#[derive(Clone)]
pub struct SampleRequest {
    pub(crate) method: Method,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    pub(crate) other: Option<String>,
}

impl SampleRequest {
    /// A POST of this value as JSON.
    #[must_use]
    pub fn json(value: &(impl Serialize + ?Sized)) -> Self {
        let (body, other) = json_and_another(value);
        Self { other, ..Self::text("application/json", body) }
    }

    /// A POST of this text.
    #[must_use]
    pub fn text(content_type: &str, body: impl Into<String>) -> Self {
        let headers = vec![("content-type".to_owned(), content_type.to_owned())];
        Self { method: Method::POST, headers, body: body.into(), other: None }
    }

    /// The method, where it is not POST.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Adds `Authorization: Bearer …`.
    #[must_use]
    pub fn bearer_auth(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    /// Another payload that the API would take as well. Without it the first number in the JSON is made greater by one; without a
    /// number that promise is not tried.
    #[must_use]
    pub fn other_payload(mut self, body: impl Into<String>) -> Self {
        self.other = Some(body.into());
        self
    }
}

impl fmt::Debug for SampleRequest {
    /// Without header values, which may be credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("SampleRequest").field("method", &self.method).field("headers", &names).finish_non_exhaustive()
    }
}

/// The value as JSON, and the same with its first number greater by one.
fn json_and_another(value: &(impl Serialize + ?Sized)) -> (String, Option<String>) {
    fn change(value: &mut serde_json::Value) -> bool {
        match value {
            serde_json::Value::Number(number) => {
                let greater = number.as_u64().and_then(|number| number.checked_add(1));
                greater.map(|greater| *value = greater.into()).is_some()
            }
            serde_json::Value::Array(items) => items.iter_mut().any(change),
            serde_json::Value::Object(members) => members.values_mut().any(change),
            _ => false,
        }
    }
    let mut value = match serde_json::to_value(value) {
        Ok(value) => value,
        Err(error) => panic!("SampleRequest: the value has no JSON: {error}"),
    };
    let body = value.to_string();
    let other = change(&mut value).then(|| value.to_string());
    (body, other)
}

/// A probe with its settings.
pub struct Probe<'a> {
    url: String,
    sample: SampleRequest,
    header: HeaderName,
    at_once: usize,
    rounds: usize,
    patience: Duration,
    http: Option<reqwest::Client>,
    on_step: Box<dyn Fn(&str) + Send + Sync + 'a>,
}

impl<'a> Probe<'a> {
    /// How many steps a probe has that goes on to its end.
    pub const STEPS: usize = 7;

    /// A probe of the API at `url` with requests like `sample`.
    #[must_use]
    pub fn new(url: &str, sample: SampleRequest) -> Self {
        Self {
            url: url.to_owned(),
            sample,
            header: HeaderName::from_static("idempotency-key"),
            at_once: 4,
            rounds: 3,
            patience: Duration::from_secs(20),
            http: None,
            on_step: Box::new(|_| ()),
        }
    }

    /// The header that keys travel in; `Idempotency-Key` by default.
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = name;
        self
    }

    /// How many requests are sent at the same time under one key, and in how many rounds: 4 and 3 by default. More find a race more
    /// surely, and may create more operations.
    #[must_use]
    pub fn at_once(mut self, requests: usize, rounds: usize) -> Self {
        self.at_once = requests.max(2);
        self.rounds = rounds.max(1);
        self
    }

    /// How long one request may take, and how long an operation that still runs is asked for again: 20 s by default.
    #[must_use]
    pub fn patience(mut self, time: Duration) -> Self {
        self.patience = time;
        self
    }

    /// A finished client, for a proxy or certificates of your own. It must not follow redirects.
    #[must_use]
    pub fn http_client(mut self, client: reqwest::Client) -> Self {
        self.http = Some(client);
        self
    }

    /// Is told what comes, before each step.
    #[must_use]
    pub fn on_step(mut self, tell: impl Fn(&str) + Send + Sync + 'a) -> Self {
        self.on_step = Box::new(tell);
        self
    }

    /// Runs it.
    ///
    /// # Errors
    ///
    /// As [`probe`].
    pub async fn run(self) -> Result<Report, ProbeError> {
        run::ProbeRun::new(self)?.run().await
    }
}

impl fmt::Debug for Probe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").field("sample", &self.sample).field("header", &self.header).finish_non_exhaustive()
    }
}

/// Why nothing could be learnt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The URL, a header or the client cannot be made.
    #[error("the probe cannot be sent: {0}")]
    Build(String),
    /// The API did not answer the first request.
    #[error("the API does not answer: {0}")]
    Unreachable(String),
    /// The API does not take the request itself, whatever its key.
    #[error("the API does not take the request itself, so that nothing can be learnt of keys: status {status}: {body}")]
    Refused {
        /// Its status.
        status: u16,
        /// The beginning of its answer.
        body: String,
    },
    /// The same request under another key, which should be another operation, was refused.
    #[error("the same request under another key is refused with status {status}: put {{unique}} where it must differ")]
    NotUnique {
        /// Its status.
        status: u16,
    },
}
