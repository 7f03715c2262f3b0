//! What a server received, and assertions on it.
//!
//! The only honest proof that a request was not sent twice is the server's own count, so every assertion asks the server, and one
//! that fails lists all that arrived: a wrong number alone says nothing of the reason.

use std::fmt;
use std::fmt::Write as _;
use std::future::Future;
use std::panic::Location;

use http::{HeaderMap, Method};
use wiremock::MockServer;

use super::script;
use super::server::FaultServer;

/// The headers that a key is looked for in, in this order.
const KEY_HEADERS: [&str; 3] = ["idempotency-key", "x-idempotency-key", "paypal-request-id"];

/// A request that arrived whole.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// Its method.
    pub method: Method,
    /// Its path with its query.
    pub target: String,
    /// Its headers. A value that is not a header value by RFC 9110 is left out.
    pub headers: HeaderMap,
    /// Its body, without the coding of the transfer.
    pub body: Vec<u8>,
}

impl Received {
    /// A header's first value, if there is one and it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The key as it was spelt on the wire: the value of `Idempotency-Key`, `X-Idempotency-Key` or `PayPal-Request-Id`.
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

/// A server that can be asked what it received: [`MockServer`] and [`FaultServer`].
pub trait RequestLog: sealed::Sealed + Sync {
    /// Every request that arrived whole, in order.
    fn received(&self) -> impl Future<Output = Vec<Received>> + Send;

    /// What went wrong with the server's script, if anything did.
    #[doc(hidden)]
    fn complaints(&self) -> Vec<String>;
}

impl RequestLog for MockServer {
    /// # Panics
    ///
    /// If the server was built with `disable_request_recording`.
    async fn received(&self) -> Vec<Received> {
        let Some(requests) = self.received_requests().await else {
            panic!("this MockServer does not record: build it without disable_request_recording")
        };
        requests.into_iter().map(recorded).collect()
    }

    fn complaints(&self) -> Vec<String> {
        script::complaints(*self.address())
    }
}

impl RequestLog for FaultServer {
    async fn received(&self) -> Vec<Received> {
        self.received()
    }

    fn complaints(&self) -> Vec<String> {
        Vec::new()
    }
}

fn recorded(request: wiremock::Request) -> Received {
    let wiremock::Request { url, method, headers, body } = request;
    let target = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    Received { method, target, headers, body }
}

/// The keys that a server received, in order; `None` for a request without one.
pub async fn keys(server: &impl RequestLog) -> Vec<Option<String>> {
    server.received().await.iter().map(|request| request.key().map(str::to_owned)).collect()
}

/// Asserts that a server received exactly `attempts` whole requests, and that no [`Script`](super::Script) on it ran out.
///
/// # Panics
///
/// If not, with a list of what it received.
#[track_caller]
pub fn assert_attempts(server: &impl RequestLog, attempts: usize) -> impl Future<Output = ()> {
    let line = Location::caller();
    async move {
        let received = server.received().await;
        let wrong = (received.len() != attempts).then(|| format!("{attempts} attempts were expected"));
        judge("assert_attempts", line, wrong, &received, server.complaints());
    }
}

/// Asserts that a server received at least one request, that all carried one and the same key, and that no
/// [`Script`](super::Script) on it ran out.
///
/// # Panics
///
/// If not, with a list of what it received.
#[track_caller]
pub fn assert_one_key(server: &impl RequestLog) -> impl Future<Output = ()> {
    let line = Location::caller();
    async move {
        let received = server.received().await;
        let first = received.first().and_then(Received::key);
        let one = first.is_some() && received.iter().all(|request| request.key() == first);
        let wrong = (!one).then(|| "one key on every request was expected".to_owned());
        judge("assert_one_key", line, wrong, &received, server.complaints());
    }
}

/// An assertion in an async function cannot name its caller by `track_caller`, so the message does.
fn judge(name: &str, line: &Location<'_>, wrong: Option<String>, received: &[Received], complaints: Vec<String>) {
    let complaints: Vec<String> = wrong.into_iter().chain(complaints).collect();
    assert!(complaints.is_empty(), "{name} at {line}: {}\n{}", complaints.join("; "), list(received));
}

fn list(received: &[Received]) -> String {
    if received.is_empty() {
        return "nothing was received".to_owned();
    }
    let mut text = String::from("received, in order:");
    for (index, request) in received.iter().enumerate() {
        // Writing to a string does not fail.
        let _written = write!(text, "\n  {}. {request}", index + 1);
    }
    text
}
