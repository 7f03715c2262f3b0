//! A probe that finds out whether an API honours idempotency keys.
//!
//! With [`ClientBuilder::keys`](steadfast::ClientBuilder::keys) you declare that an API honours
//! keys. Its documentation is often silent on concurrent requests, on another payload under the
//! same key, and on lost responses. [`probe`] sends such requests. It reports the promises that are
//! kept and the [`KeyPolicy`](steadfast::KeyPolicy) that fits.
//!
//! **It creates real operations**: some twenty charges, orders, or whatever your request asks for.
//! Point it at a staging system.
//!
//! ```
//! use serde_json::json;
//! use steadfast_probe::{Kept, Promise, SampleRequest, probe};
//! # use steadfast_testing::{FaultServer, FaultStep};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let staging = FaultServer::play([FaultStep::ok()]).await;
//! # let url = staging.url("/v1/charges");
//! // let url = "https://api.staging.example.com/v1/charges";
//! let charge = json!({ "amount": 100, "currency": "eur", "note": "probe {unique}" });
//! let report = probe(&url, SampleRequest::json(&charge).bearer_auth("test token")).await?;
//!
//! println!("{report}");
//! assert_eq!(report.kept(Promise::Honoured), Kept::Yes);
//! assert_eq!(report.builder_line.as_deref(), Some(".keys(KeyPolicy::standard())"));
//! # Ok(())
//! # }
//! ```
//!
//! The same probe is a command: `cargo install steadfast-probe`.
//!
//! # Limits
//!
//! A probe cannot count executions on another party's server. Each finding has one of two bases,
//! which the report names:
//!
//! * *Observed*: a status, or a header that marks a replay.
//! * *Inferred*: a comparison of responses. Some values, such as an id or a `Location`, differ
//!   between two operations. They show whether a third response is about the first operation.
//!
//! The report also lists what stays unknown: how long the API keeps keys, and whether it executed a
//! request without a record after the client left. If a few rounds show no race, that is no proof
//! that there is none.

mod answers;
mod report;
mod run;
mod sending;

use std::fmt;
use std::time::Duration;

use http::{HeaderName, Method};
use serde::Serialize;

pub use report::{Basis, Concurrent, Finding, Kept, Promise, Report};

/// Probes the API at `url` with requests like `sample`. The key is sent in `Idempotency-Key`;
/// [`Probe`] has more settings.
///
/// For an example, see the [crate page](crate).
///
/// # Errors
///
/// Returns an error if nothing can be learnt: the URL or the sample is invalid, the API cannot be
/// reached, or it rejects the request itself.
pub async fn probe(url: &str, sample: SampleRequest) -> Result<Report, ProbeError> {
    Probe::new(url, sample).run().await
}

/// A request that creates one operation each time it is sent with a new key.
///
/// The probe replaces `{unique}` in the body with a new number for each key. Use it where the API
/// refuses a value that it has seen before.
///
/// ```
/// use serde_json::json;
/// use steadfast_probe::SampleRequest;
///
/// let order = json!({ "sku": "A-1", "quantity": 1, "reference": "probe {unique}" });
/// let sample = SampleRequest::json(&order)
///     .header("x-tenant", "staging")
///     .other_payload(r#"{"sku":"B-2","quantity":1,"reference":"probe {unique}"}"#);
/// ```
#[derive(Clone)]
pub struct SampleRequest {
    pub(crate) method: Method,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    pub(crate) other: Option<String>,
}

impl SampleRequest {
    /// Creates a POST request with `value` as JSON.
    ///
    /// ```
    /// use serde_json::json;
    /// use steadfast_probe::SampleRequest;
    ///
    /// // The API refuses an invoice number that it has seen, so each key gets its own.
    /// let invoice = json!({ "number": "probe-{unique}", "amount": 100 });
    /// let sample = SampleRequest::json(&invoice);
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if `value` cannot be serialised as JSON.
    #[must_use]
    pub fn json(value: &(impl Serialize + ?Sized)) -> Self {
        let (body, other) = json_and_another(value);
        Self { other, ..Self::text("application/json", body) }
    }

    /// Creates a POST request with a text body.
    ///
    /// ```
    /// use steadfast_probe::SampleRequest;
    ///
    /// let form = "application/x-www-form-urlencoded";
    /// let sample = SampleRequest::text(form, "amount=100&note=probe-{unique}")
    ///     .other_payload("amount=101&note=probe-{unique}");
    /// ```
    #[must_use]
    pub fn text(content_type: &str, body: impl Into<String>) -> Self {
        let headers = vec![("content-type".to_owned(), content_type.to_owned())];
        Self { method: Method::POST, headers, body: body.into(), other: None }
    }

    /// Sets the method. Default: POST.
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

    /// Adds `Authorization: Bearer TOKEN`.
    #[must_use]
    pub fn bearer_auth(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    /// Sets another payload that the API would also accept, to send under a key in use.
    ///
    /// Default: your JSON with its first non-negative integer increased by one. Without such a
    /// number, the probe skips this promise.
    ///
    /// ```
    /// use steadfast_probe::SampleRequest;
    ///
    /// let sample = SampleRequest::text("text/csv", "account,amount\nalice,100\n")
    ///     .other_payload("account,amount\nalice,101\n");
    /// ```
    #[must_use]
    pub fn other_payload(mut self, body: impl Into<String>) -> Self {
        self.other = Some(body.into());
        self
    }
}

impl fmt::Debug for SampleRequest {
    /// Omits header values, which may be credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("SampleRequest").field("method", &self.method).field("headers", &names).finish_non_exhaustive()
    }
}

/// Returns the value as JSON, and a copy with its first non-negative integer increased by one.
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
        Err(error) => panic!("SampleRequest: cannot serialise the value as JSON: {error}"),
    };
    let body = value.to_string();
    let other = change(&mut value).then(|| value.to_string());
    (body, other)
}

/// A probe with its settings.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use http::HeaderName;
/// use serde_json::json;
/// use steadfast_probe::{Probe, SampleRequest};
/// # use steadfast_testing::{FaultServer, FaultStep};
/// # let staging = FaultServer::play([FaultStep::ok()]).await;
/// # let url = staging.url("/v1/orders");
///
/// let report = Probe::new(&url, SampleRequest::json(&json!({ "amount": 100 })))
///     .header(HeaderName::from_static("paypal-request-id"))
///     .at_once(8, 2)
///     .patience(Duration::from_secs(5))
///     .on_step(|step| println!("{step}"))
///     .run()
///     .await?;
/// assert_eq!(report.header, "paypal-request-id");
/// # Ok(())
/// # }
/// ```
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
    /// Number of steps of a complete probe.
    pub const STEPS: usize = 7;

    /// Creates a probe of the API at `url` with requests like `sample`.
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

    /// Sets the header for keys. Default: `Idempotency-Key`.
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = name;
        self
    }

    /// Sets the number of concurrent requests under one key, and the number of rounds. Defaults: 4
    /// and 3; minimums: 2 and 1.
    ///
    /// Higher numbers find a race more reliably and may create more operations.
    ///
    /// ```
    /// use serde_json::json;
    /// use steadfast_probe::{Probe, SampleRequest};
    ///
    /// // Sixteen requests at a time, in ten rounds, to find a rare race.
    /// let sample = SampleRequest::json(&json!({ "amount": 100 }));
    /// let probe = Probe::new("https://api.staging.example.com/v1/charges", sample).at_once(16, 10);
    /// ```
    #[must_use]
    pub fn at_once(mut self, requests: usize, rounds: usize) -> Self {
        self.at_once = requests.max(2);
        self.rounds = rounds.max(1);
        self
    }

    /// Sets the time limit of one request, and of the wait for an operation that is still in
    /// progress. Default: 20 s.
    #[must_use]
    pub fn patience(mut self, time: Duration) -> Self {
        self.patience = time;
        self
    }

    /// Sets the HTTP client, for a proxy or certificates of your own. It must not follow redirects.
    #[must_use]
    pub fn http_client(mut self, client: reqwest::Client) -> Self {
        self.http = Some(client);
        self
    }

    /// Sets a function that is called with a description before each step, for a progress bar or a
    /// log. A complete probe has [`STEPS`](Self::STEPS) steps.
    #[must_use]
    pub fn on_step(mut self, tell: impl Fn(&str) + Send + Sync + 'a) -> Self {
        self.on_step = Box::new(tell);
        self
    }

    /// Runs the probe.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`probe`].
    pub async fn run(self) -> Result<Report, ProbeError> {
        run::ProbeRun::new(self)?.run().await
    }
}

impl fmt::Debug for Probe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").field("sample", &self.sample).field("header", &self.header).finish_non_exhaustive()
    }
}

/// The reason why nothing could be learnt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The URL or a header is invalid, or the HTTP client cannot be built.
    #[error("cannot build the probe's requests: {0}")]
    Build(String),
    /// The API did not respond to the first request.
    #[error("the API does not respond: {0}")]
    Unreachable(String),
    /// The API rejects the request itself, whatever its key.
    #[error("the API rejects the request itself, so nothing can be learnt about keys: status {status}: {body}")]
    Refused {
        /// The status.
        status: u16,
        /// The first 200 characters of the body.
        body: String,
    },
    /// The API refused the same request under another key, which should be another operation.
    #[error(
        "the API refuses the same request under another key with status {status}: put {{unique}} where it must differ"
    )]
    NotUnique {
        /// The status.
        status: u16,
    },
}
