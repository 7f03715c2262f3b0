//! A list of responses on a wiremock server, one for each request.
//!
//! A test of retries wants "first a 503, then a hang-up, then the response". With wiremock alone
//! that takes three mocks, each with a count. A request after the last one gets a 404 that looks
//! like any other. Here the script is one chain, and a request after its end fails the test: no
//! client takes the response for a success, and every assertion names the script.

mod mounted;
mod reply;
mod route;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde::Serialize;
use wiremock::MockServer;

pub use mounted::MountedScript;
pub use route::{Route, any, get, post};

use reply::Reply;

/// Responses in order, one for each request, on a wiremock [`MockServer`].
///
/// Write the steps in the order of time. A header or a body belongs to the response before it. A
/// delay comes before the response that follows it.
///
/// ```
/// use serde_json::{Value, json};
/// use steadfast::{Client, KeyPolicy};
/// use steadfast_testing::{
///     MockServer, Script, assert_attempts, assert_one_key, fast_retries, post,
/// };
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let server = MockServer::start().await;
/// let script = Script::new()
///     .status(503).retry_after(0)
///     .hang_up()
///     .ok_json(&json!({ "id": "ch_1" }));
/// script.mount(&server, post("/charges")).await;
///
/// let client = Client::builder()
///     .base_url(server.uri())
///     .keys(KeyPolicy::standard())
///     .retry(fast_retries())
///     .build()
///     .unwrap();
/// let charge: Value = client.post_json("/charges", &json!({ "amount": 7 })).await.unwrap();
///
/// assert_eq!(charge["id"], "ch_1");
/// assert_attempts(&server, 3).await;
/// assert_one_key(&server).await;
/// # }
/// ```
///
/// # Requests after the last step
///
/// A request after the last step gets status 501 and a text that names the script. The guard that
/// [`mount`](Self::mount) returns then panics when it is dropped. So does the server, as for every
/// unmet expectation of wiremock.
///
/// Use [`forever`](Self::forever) to repeat the last step without end.
///
/// # Steps that were not played
///
/// A step that no request asked for is no failure by itself. Ask for the check: with
/// [`must_finish`](Self::must_finish) when the server is dropped, or with
/// [`MountedScript::assert_done`] at a point of your test.
///
/// # Requests without a script
///
/// A request that matches no script and no mock gets a 404, as wiremock sends it. On a server with
/// a script its body lists the scripts, so that a mistake in a path is easy to see.
///
/// # Panics
///
/// The methods panic if the script makes no sense: a header without a response to carry it, a delay
/// with no response after it, an invalid header name or value.
#[derive(Debug, Default)]
#[must_use = "a script does nothing until it is mounted"]
pub struct Script {
    steps: Vec<Step>,
    delay: Option<Duration>,
    forever: bool,
    must_finish: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Answer(Reply),
    HangUp,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(reply) => write!(f, "status {}", reply.status),
            Self::HangUp => f.write_str("hang-up"),
        }
    }
}

impl Script {
    /// Creates a script without steps.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a response with this status and no body.
    pub fn status(mut self, status: u16) -> Self {
        let reply = Reply::new(status, self.delay.take());
        self.step(Step::Answer(reply))
    }

    /// Adds a response of status 200 with `value` as JSON.
    pub fn ok_json(self, value: &(impl Serialize + ?Sized)) -> Self {
        self.status(200).json(value)
    }

    /// Sets the body of the last response to `value`, as JSON.
    ///
    /// ```
    /// use serde_json::json;
    /// use steadfast_testing::Script;
    ///
    /// let declined = json!({ "type": "card_declined" });
    /// let script = Script::new().status(402).json(&declined);
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if `value` has no JSON form.
    pub fn json(self, value: &(impl Serialize + ?Sized)) -> Self {
        let body = match serde_json::to_vec(value) {
            Ok(body) => body,
            Err(error) => panic!("Script: the body has no JSON form: {error}"),
        };
        self.change("json", |reply| reply.body(body, Some("application/json")))
    }

    /// Sets the body of the last response to this text, as `text/plain`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::Client;
    /// use steadfast_testing::{MockServer, Script, get};
    ///
    /// let server = MockServer::start().await;
    /// let page = Script::new().status(200).text("<p>hello</p>").header("content-type", "text/html");
    /// page.mount(&server, get("/")).await;
    ///
    /// let response = Client::new().get(server.uri()).send().await.unwrap();
    /// assert_eq!(response.headers()["content-type"], "text/html");
    /// assert_eq!(response.text().await.unwrap(), "<p>hello</p>");
    /// # }
    /// ```
    pub fn text(self, text: impl Into<String>) -> Self {
        let body = text.into().into_bytes();
        self.change("text", |reply| reply.body(body, Some("text/plain; charset=utf-8")))
    }

    /// Sets the body of the last response to these bytes. It has no `Content-Type`, unless you add
    /// [one](Self::header).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::Client;
    /// use steadfast_testing::{MockServer, Script, get};
    ///
    /// let server = MockServer::start().await;
    /// Script::new().status(200).bytes(b"\x89PNG").mount(&server, get("/logo")).await;
    ///
    /// let response = Client::new().get(server.uri() + "/logo").send().await.unwrap();
    /// assert_eq!(response.bytes().await.unwrap(), &b"\x89PNG"[..]);
    /// # }
    /// ```
    pub fn bytes(self, bytes: impl Into<Vec<u8>>) -> Self {
        let body = bytes.into();
        self.change("bytes", |reply| reply.body(body, None))
    }

    /// Adds a `Retry-After` to the last response, in seconds. A client that honours it really
    /// waits, so use 0 unless the wait is your subject.
    pub fn retry_after(self, seconds: u64) -> Self {
        self.change("retry_after", |reply| reply.header(http::header::RETRY_AFTER, seconds.into()))
    }

    /// Sets a header of the last response. A `Content-Type` replaces that of the body.
    ///
    /// ```
    /// use steadfast_testing::Script;
    ///
    /// let script = Script::new().status(409).header("content-type", "application/problem+json");
    /// ```
    pub fn header(self, name: &str, value: &str) -> Self {
        let header = name.parse::<HeaderName>().ok().zip(HeaderValue::from_str(value).ok());
        let Some((name, value)) = header else { panic!("Script: {name}: {value} is not a valid header") };
        self.change("header", |reply| reply.header(name, value))
    }

    /// Closes the connection without a response (FIN) once the whole request was read.
    ///
    /// For a reset, or a close at any other point, use a [`FaultServer`](super::FaultServer).
    pub fn hang_up(self) -> Self {
        assert!(self.delay.is_none(), "Script: wiremock cannot delay a hang-up; FaultServer can");
        self.step(Step::HangUp)
    }

    /// Delays the response that follows. The delay is real time on the server's own runtime.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_testing::Script;
    ///
    /// // The first response is later than the timeout of an attempt in this test.
    /// let script = Script::new().delay(Duration::from_millis(200)).status(200).status(200);
    /// ```
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Plays the last step `times` times in all.
    ///
    /// ```
    /// use steadfast_testing::Script;
    ///
    /// let outage_of_three_requests = Script::new().status(503).retry_after(0).times(3).status(200);
    /// ```
    pub fn times(mut self, times: usize) -> Self {
        let Some(last) = self.steps.last().cloned() else { panic!("Script: times({times}) has no step before it") };
        self.steps.extend(std::iter::repeat_n(last, times.saturating_sub(1)));
        self
    }

    /// Plays the last step for every later request, so that the script does not run out.
    ///
    /// ```
    /// use steadfast_testing::Script;
    ///
    /// let total_outage = Script::new().status(503).retry_after(0).forever();
    /// ```
    pub fn forever(mut self) -> Self {
        assert!(!self.steps.is_empty(), "Script: forever has no step before it");
        self.forever = true;
        self
    }

    /// Fails the test if a step was not played by the time the server is dropped. wiremock's own
    /// check does it, so `server.verify()` does the same earlier. Default: no check.
    ///
    /// ```should_panic
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::Client;
    /// use steadfast_testing::{MockServer, Script, any, fast_retries};
    ///
    /// let server = MockServer::start().await;
    /// Script::new().status(503).status(200).must_finish().mount(&server, any()).await;
    ///
    /// // This client gives up after the first step. The server notices when it is dropped.
    /// let client = Client::builder().retry(fast_retries().max_attempts(1)).build().unwrap();
    /// let _error = client.get(server.uri()).send().await;
    /// # }
    /// ```
    pub fn must_finish(mut self) -> Self {
        self.must_finish = true;
        self
    }

    /// Installs the script on `server`, for the requests that match `route`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::Client;
    /// use steadfast_testing::{MockServer, Script, get};
    ///
    /// let server = MockServer::start().await;
    /// Script::new().status(200).mount(&server, get("/health")).await;
    ///
    /// let client = Client::builder().base_url(server.uri()).build().unwrap();
    /// assert_eq!(client.get("/health").send().await.unwrap().status(), 200);
    /// let other = client.get("/status").send().await.unwrap();
    /// assert_eq!(other.status(), 404);
    /// assert_eq!(
    ///     other.text().await.unwrap(),
    ///     "no script for GET /status; this server has: GET /health (1 of 1 steps played)",
    /// );
    /// # }
    /// ```
    ///
    /// The guard that this returns panics at the end of its scope if the script ran out. If you do
    /// not keep it, the server panics when it is dropped.
    ///
    /// The 404 that lists the scripts is a mock of wiremock's lowest priority (255).
    ///
    /// # Panics
    ///
    /// Panics if a delay is the last step.
    pub async fn mount(self, server: &MockServer, route: Route) -> MountedScript {
        assert!(self.delay.is_none(), "Script: the last delay has no response after it");
        mounted::mount(self, server, Arc::new(route)).await
    }

    fn step(mut self, step: Step) -> Self {
        assert!(!self.forever, "Script: no step can follow forever");
        self.steps.push(step);
        self
    }

    fn change(mut self, what: &str, change: impl FnOnce(Reply) -> Reply) -> Self {
        let Some(Step::Answer(reply)) = self.steps.pop() else { panic!("Script: {what} has no response before it") };
        self.steps.push(Step::Answer(change(reply)));
        self
    }
}
