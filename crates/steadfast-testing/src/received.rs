//! The requests that a server received, and assertions on them.
//!
//! The only honest proof that a request was not sent twice is the server's own count. So every
//! assertion reads the server's record, and a failed one lists all requests: a wrong number alone
//! does not show the reason.

use std::fmt;
use std::fmt::Write as _;
use std::future::Future;
use std::panic::Location;

use http::{HeaderMap, Method};
use wiremock::MockServer;

use super::server::FaultServer;

/// The headers that may carry a key, in the order of preference.
const KEY_HEADERS: [&str; 3] = ["idempotency-key", "x-idempotency-key", "paypal-request-id"];

/// A request that arrived whole.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use steadfast::Client;
/// use steadfast_testing::{FaultServer, FaultStep};
///
/// let server = FaultServer::play([FaultStep::ok()]).await;
/// let client = Client::new();
/// client.get(server.url("/charges?limit=3")).header("x-tenant", "acme").send().await.unwrap();
///
/// let received = server.received();
/// assert_eq!(received[0].target, "/charges?limit=3");
/// assert_eq!(received[0].header("x-tenant"), Some("acme"));
/// assert_eq!(received[0].key(), None);
/// assert_eq!(received[0].to_string(), "GET /charges?limit=3, no key, 0 bytes");
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// The method.
    pub method: Method,
    /// The path with its query.
    pub target: String,
    /// The headers, without values that RFC 9110 does not allow.
    pub headers: HeaderMap,
    /// The body, without its transfer coding.
    pub body: Vec<u8>,
}

impl Received {
    /// Returns the first value of a header, if the header is present and its value is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns the key as sent: the value of `Idempotency-Key`, `X-Idempotency-Key` or
    /// `PayPal-Request-Id`.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        KEY_HEADERS.iter().find_map(|name| self.header(name))
    }
}

impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, ", self.method, self.target)?;
        match self.key() {
            Some(key) => write!(f, "key {key}, ")?,
            None => f.write_str("no key, ")?,
        }
        write!(f, "{} bytes", self.body.len())
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::MockServer {}
    impl Sealed for super::FaultServer {}
}

/// A server that records its requests: [`MockServer`] or [`FaultServer`].
pub trait RequestLog: sealed::Sealed + Sync {
    /// Returns every request that arrived whole, in order.
    fn received(&self) -> impl Future<Output = Vec<Received>> + Send;
}

impl RequestLog for MockServer {
    /// # Panics
    ///
    /// If the server was built with `disable_request_recording`.
    async fn received(&self) -> Vec<Received> {
        let Some(requests) = self.received_requests().await else {
            panic!("this MockServer does not record requests: build it without disable_request_recording")
        };
        requests.into_iter().map(recorded).collect()
    }
}

impl RequestLog for FaultServer {
    async fn received(&self) -> Vec<Received> {
        self.received()
    }
}

fn recorded(request: wiremock::Request) -> Received {
    let wiremock::Request { url, method, headers, body } = request;
    let target = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    Received { method, target, headers, body }
}

/// Returns the keys that a server received, in order. `None` stands for a request without a key.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use steadfast::{Client, KeyPolicy};
/// use steadfast_testing::{FaultServer, FaultStep, keys};
///
/// let server = FaultServer::play([FaultStep::ok()]).await;
/// let builder = Client::builder().base_url(server.url("")).keys(KeyPolicy::standard());
/// let client = builder.build().unwrap();
/// client.get("/charges").send().await.unwrap();
/// let key = "order-17".parse().unwrap();
/// client.post("/charges").idempotency_key(key).send().await.unwrap();
///
/// let [get, post] = &keys(&server).await[..] else { panic!("two requests") };
/// assert!(get.is_none(), "a GET needs no key");
/// assert!(post.as_ref().is_some_and(|key| key.contains("order-17")));
/// # }
/// ```
pub async fn keys(server: &impl RequestLog) -> Vec<Option<String>> {
    server.received().await.iter().map(|request| request.key().map(str::to_owned)).collect()
}

/// Asserts that a server received exactly `attempts` whole requests.
///
/// For an example, see [`Script`](super::Script).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use steadfast::Client;
/// use steadfast_testing::{FaultPoint, FaultServer, FaultStep, assert_attempts};
///
/// // Without a key that the API is known to honour, a lost POST is not sent again.
/// let lost = FaultStep::close(FaultPoint::AfterExecuting);
/// let server = FaultServer::play([lost, FaultStep::ok()]).await;
/// let client = Client::new();
/// assert!(client.post(server.url("/charges")).send().await.is_err());
/// assert_attempts(&server, 1).await;
/// # }
/// ```
///
/// # Panics
///
/// Panics if the number differs. The message lists the requests.
#[track_caller]
pub fn assert_attempts(server: &impl RequestLog, attempts: usize) -> impl Future<Output = ()> {
    let line = Location::caller();
    async move {
        let received = server.received().await;
        let wrong = (received.len() != attempts).then(|| format!("expected {attempts} attempts"));
        judge("assert_attempts", line, wrong, &received);
    }
}

/// Asserts that a server received at least one request, and that all requests carried the same key.
///
/// For an example, see [`FaultServer`].
///
/// # Panics
///
/// Panics if no request arrived, or if a key is missing or differs. The message lists the requests.
#[track_caller]
pub fn assert_one_key(server: &impl RequestLog) -> impl Future<Output = ()> {
    let line = Location::caller();
    async move {
        let received = server.received().await;
        let first = received.first().and_then(Received::key);
        let one = first.is_some() && received.iter().all(|request| request.key() == first);
        let wrong = (!one).then(|| "expected one key on every request".to_owned());
        judge("assert_one_key", line, wrong, &received);
    }
}

/// Panics with the error. The message names the caller's line, because `track_caller` has no
/// effect on an async function.
fn judge(name: &str, line: &Location<'_>, wrong: Option<String>, received: &[Received]) {
    if let Some(wrong) = wrong {
        panic!("{name} at {line}: {wrong}\n{}", list(received));
    }
}

fn list(received: &[Received]) -> String {
    if received.is_empty() {
        return "the server received no request".to_owned();
    }
    let mut text = String::from("received, in order:");
    for (index, request) in received.iter().enumerate() {
        // Writing to a string does not fail.
        let _written = write!(text, "\n  {}. {request}", index + 1);
    }
    text
}
