//! A list of responses on a wiremock server, one for each request.
//!
//! A test of retries wants "first a 503, then a hang-up, then the response". With wiremock alone
//! that takes three mocks, each with a count. A request after the last one gets a 404 that looks
//! like any other. Here the script is one chain, and a request after its end fails the test: no
//! client takes the response for a success, and every assertion names the script.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use serde::Serialize;
use wiremock::{Match, Mock, MockServer, Request, ResponseTemplate};

/// Status for a request after the end of a script: `steadfast` and most other clients do not retry it.
const RUN_OUT: u16 = 501;

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
/// Use [`forever`](Self::forever) to repeat the last step without end. A step that was not played
/// is no failure by itself: count the attempts.
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
}

#[derive(Clone, Debug)]
enum Step {
    Answer(ResponseTemplate),
    HangUp,
}

impl Script {
    /// Creates a script without steps.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a response with this status and no body.
    pub fn status(mut self, status: u16) -> Self {
        let answer = ResponseTemplate::new(status);
        let answer = match self.delay.take() {
            Some(delay) => answer.set_delay(delay),
            None => answer,
        };
        self.step(Step::Answer(answer))
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
    pub fn json(self, value: &(impl Serialize + ?Sized)) -> Self {
        self.change("json", |answer| answer.set_body_json(value))
    }

    /// Adds a `Retry-After` to the last response, in seconds. A client that honours it really
    /// waits, so use 0 unless the wait is your subject.
    pub fn retry_after(self, seconds: u64) -> Self {
        self.change("retry_after", |answer| answer.insert_header("retry-after", seconds.to_string()))
    }

    /// Adds a header to the last response.
    ///
    /// ```
    /// use steadfast_testing::Script;
    ///
    /// let script = Script::new().status(409).header("content-type", "application/problem+json");
    /// ```
    pub fn header(self, name: &str, value: &str) -> Self {
        let header = name.parse::<HeaderName>().ok().zip(HeaderValue::from_str(value).ok());
        let Some((name, value)) = header else { panic!("Script: {name}: {value} is not a valid header") };
        self.change("header", |answer| answer.insert_header(name, value))
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

    /// Installs the script on `server`, for the requests that match `route`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::Client;
    /// use steadfast_testing::{MockServer, Script, any, get};
    ///
    /// let server = MockServer::start().await;
    /// Script::new().status(200).mount(&server, get("/health")).await;
    /// Script::new().status(404).forever().mount(&server, any()).await;
    ///
    /// let client = Client::builder().base_url(server.uri()).build().unwrap();
    /// assert_eq!(client.get("/health").send().await.unwrap().status(), 200);
    /// assert_eq!(client.get("/other").send().await.unwrap().status(), 404);
    /// # }
    /// ```
    ///
    /// The guard that this returns panics at the end of its scope if the script ran out. If you do
    /// not keep it, the server panics when it is dropped.
    pub async fn mount(self, server: &MockServer, route: Route) -> MountedScript {
        assert!(self.delay.is_none(), "Script: the last delay has no response after it");
        let progress =
            Arc::new(Progress { name: route.to_string(), steps: self.steps.len(), late: AtomicUsize::new(0) });
        let route = Arc::new(route);
        let last = self.steps.len().saturating_sub(1);
        for (index, step) in self.steps.into_iter().enumerate() {
            let mock = Mock::given(Shared(route.clone()));
            let mock = match step {
                Step::Answer(answer) => mock.respond_with(answer),
                Step::HangUp => {
                    mock.respond_with_err(|_: &Request| io::Error::other("the script closes the connection"))
                }
            };
            let mock = if self.forever && index == last { mock } else { mock.up_to_n_times(1) };
            mock.mount(server).await;
        }
        if !self.forever {
            let (name, progress) = (progress.to_string(), progress.clone());
            let run_out = move |_: &Request| {
                let late = progress.late.fetch_add(1, Ordering::Relaxed) + 1;
                ResponseTemplate::new(RUN_OUT)
                    .set_body_string(format!("{progress}; requests after the last step: {late}"))
            };
            Mock::given(Shared(route)).respond_with(run_out).expect(0).named(name).mount(server).await;
        }
        MountedScript(progress)
    }

    fn step(mut self, step: Step) -> Self {
        assert!(!self.forever, "Script: no step can follow forever");
        self.steps.push(step);
        self
    }

    fn change(mut self, what: &str, change: impl FnOnce(ResponseTemplate) -> ResponseTemplate) -> Self {
        let Some(Step::Answer(answer)) = self.steps.pop() else { panic!("Script: {what} has no response before it") };
        self.steps.push(Step::Answer(change(answer)));
        self
    }
}

/// The requests that a [`Script`] responds to: by method, path and wiremock matchers.
///
/// ```
/// use steadfast_testing::{Route, post, wiremock::matchers::header_exists};
///
/// let with_key: Route = post("/charges").and(header_exists("idempotency-key"));
/// assert_eq!(with_key.to_string(), "POST /charges (and 1 matchers)");
/// ```
#[must_use]
pub struct Route {
    method: Option<Method>,
    path: Option<String>,
    more: Vec<Box<dyn Match>>,
}

/// Matches POST requests to `path`, whatever their query.
pub fn post(path: &str) -> Route {
    Route::new(Method::POST, path)
}

/// Matches GET requests to `path`, whatever their query.
pub fn get(path: &str) -> Route {
    Route::new(Method::GET, path)
}

/// Matches every request.
pub fn any() -> Route {
    Route { method: None, path: None, more: Vec::new() }
}

impl Route {
    /// Matches requests of this method to this path, whatever their query.
    pub fn new(method: Method, path: &str) -> Self {
        Self { method: Some(method), path: Some(path.to_owned()), more: Vec::new() }
    }

    /// Adds a wiremock matcher: a request must match it too.
    pub fn and(mut self, matcher: impl Match + 'static) -> Self {
        self.more.push(Box::new(matcher));
        self
    }
}

impl Match for Route {
    fn matches(&self, request: &Request) -> bool {
        self.method.as_ref().is_none_or(|method| *method == request.method)
            && self.path.as_ref().is_none_or(|path| path == request.url.path())
            && self.more.iter().all(|matcher| matcher.matches(request))
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.method, &self.path) {
            (Some(method), Some(path)) => write!(f, "{method} {path}")?,
            _ => f.write_str("every request")?,
        }
        if self.more.is_empty() { Ok(()) } else { write!(f, " (and {} matchers)", self.more.len()) }
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One route, shared by the mocks of a script.
struct Shared(Arc<Route>);

impl Match for Shared {
    fn matches(&self, request: &Request) -> bool {
        self.0.matches(request)
    }
}

/// The number of requests after the end of a script.
#[derive(Debug)]
struct Progress {
    name: String,
    steps: usize,
    late: AtomicUsize,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, steps, .. } = self;
        write!(f, "the script for {name} has run out: it has {steps} step{}", if *steps == 1 { "" } else { "s" })
    }
}

/// A mounted [`Script`]. Dropped at the end of its scope, it panics if a request came after the
/// last step.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use steadfast::Client;
/// use steadfast_testing::{MockServer, Script, any};
///
/// let server = MockServer::start().await;
/// let script = Script::new().status(200).mount(&server, any()).await;
///
/// let client = Client::builder().base_url(server.uri()).build().unwrap();
/// client.get("/health").send().await.unwrap();
/// assert_eq!(script.requests_after_end(), 0);
/// # }
/// ```
#[derive(Debug)]
pub struct MountedScript(Arc<Progress>);

impl MountedScript {
    /// Returns the number of requests that came after the last step. Always 0 for a script that
    /// goes on [`forever`](Script::forever).
    #[must_use]
    pub fn requests_after_end(&self) -> usize {
        self.0.late.load(Ordering::Relaxed)
    }
}

impl Drop for MountedScript {
    fn drop(&mut self) {
        let late = self.requests_after_end();
        // A test that has failed already has its own message.
        if late > 0 && !std::thread::panicking() {
            panic!("{}; requests after the last step: {late}", self.0);
        }
    }
}
