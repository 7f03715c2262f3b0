//! A list of answers on a wiremock server, one a request.
//!
//! A test of retries wants "first a 503, then a hang-up, then the answer". With wiremock alone that is three mocks, each with a
//! count, and a script that has run out falls through to a 404 that looks like any other. Here it reads aloud, and the request
//! after the last step is told from a success by every client and named by every assertion.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use serde::Serialize;
use wiremock::{Match, Mock, MockServer, Request, ResponseTemplate};

/// What a client is told that asks once more than the script has steps: a status that this crate and most others do not repeat.
const RUN_OUT: u16 = 501;

/// Answers in order, one a request, on a wiremock [`MockServer`].
///
/// It reads in the order of time. A header or a body belongs to the answer before it; a delay is waited before the answer that
/// follows it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use serde_json::{Value, json};
/// use steadfast_testing::{MockServer, Script, assert_attempts, assert_one_key, fast_retries, post};
/// use steadfast::{Client, KeyPolicy};
///
/// let server = MockServer::start().await;
/// let script = Script::new().status(503).retry_after(0).hang_up().ok_json(&json!({ "id": "ch_1" }));
/// script.mount(&server, post("/charges")).await;
///
/// let client = Client::builder().base_url(server.uri()).keys(KeyPolicy::standard()).retry(fast_retries());
/// let charge: Value = client.build().unwrap().post_json("/charges", &json!({ "amount": 7 })).await.unwrap();
///
/// assert_eq!(charge["id"], "ch_1");
/// assert_attempts(&server, 3).await;
/// assert_one_key(&server).await;
/// # }
/// ```
///
/// # When it has run out
///
/// The request after the last step is answered 501 with a text that names the script, [`assert_attempts`](super::assert_attempts)
/// and [`assert_one_key`](super::assert_one_key) fail, and so does the server when it is dropped, as with every expectation of
/// wiremock that was not met. [`forever`](Self::forever) makes a script that does not run out. A step that was not played is no
/// failure by itself: count the attempts.
///
/// # Panics
///
/// The methods panic where a script makes no sense: a header without an answer to carry it, a delay with nothing after it, a
/// name or value that is no header.
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
    /// A script without a step yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers with this status and no body.
    pub fn status(mut self, status: u16) -> Self {
        let answer = ResponseTemplate::new(status);
        let answer = match self.delay.take() {
            Some(delay) => answer.set_delay(delay),
            None => answer,
        };
        self.step(Step::Answer(answer))
    }

    /// Answers 200 with `value` as JSON.
    pub fn ok_json(self, value: &(impl Serialize + ?Sized)) -> Self {
        self.status(200).json(value)
    }

    /// Gives the answer before it `value` as its body, in JSON.
    pub fn json(self, value: &(impl Serialize + ?Sized)) -> Self {
        self.change("json", |answer| answer.set_body_json(value))
    }

    /// Gives the answer before it a `Retry-After` of so many seconds, which a client that honours it really waits: mostly 0.
    pub fn retry_after(self, seconds: u64) -> Self {
        self.change("retry_after", |answer| answer.insert_header("retry-after", seconds.to_string()))
    }

    /// Gives the answer before it a header.
    pub fn header(self, name: &str, value: &str) -> Self {
        let header = name.parse::<HeaderName>().ok().zip(HeaderValue::from_str(value).ok());
        let Some((name, value)) = header else { panic!("Script: {name}: {value} is no header") };
        self.change("header", |answer| answer.insert_header(name, value))
    }

    /// Closes the connection without an answer, in an orderly way, once the whole request was read. A reset, and a close at any
    /// other point, need a [`FaultServer`](super::FaultServer).
    pub fn hang_up(self) -> Self {
        assert!(self.delay.is_none(), "Script: wiremock cannot delay a hang-up; FaultServer can");
        self.step(Step::HangUp)
    }

    /// Waits before the answer that follows. It is real time, on the server's own runtime.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Plays the step before it so many times in all.
    pub fn times(mut self, times: usize) -> Self {
        let Some(last) = self.steps.last().cloned() else { panic!("Script: times({times}) has no step before it") };
        self.steps.extend(std::iter::repeat_n(last, times.saturating_sub(1)));
        self
    }

    /// Plays the last step for every request that follows, so that the script does not run out.
    pub fn forever(mut self) -> Self {
        assert!(!self.steps.is_empty(), "Script: forever has no step before it");
        self.forever = true;
        self
    }

    /// Lets the server play it for the requests of `route`.
    pub async fn mount(self, server: &MockServer, route: Route) {
        assert!(self.delay.is_none(), "Script: the delay at its end has no answer to wait before");
        let progress =
            Arc::new(Progress { name: route.to_string(), steps: self.steps.len(), late: AtomicUsize::new(0) });
        let route = Arc::new(route);
        let last = self.steps.len().saturating_sub(1);
        for (index, step) in self.steps.into_iter().enumerate() {
            let mock = Mock::given(Shared(route.clone()));
            let mock = match step {
                Step::Answer(answer) => mock.respond_with(answer),
                Step::HangUp => mock.respond_with_err(|_: &Request| io::Error::other("the script hangs up")),
            };
            let mock = if self.forever && index == last { mock } else { mock.up_to_n_times(1) };
            mock.mount(server).await;
        }
        if !self.forever {
            enrol(*server.address(), &progress);
            let name = progress.to_string();
            let run_out = move |_: &Request| {
                let late = progress.late.fetch_add(1, Ordering::Relaxed) + 1;
                ResponseTemplate::new(RUN_OUT).set_body_string(format!("{progress}, and {late} more were asked for"))
            };
            Mock::given(Shared(route)).respond_with(run_out).expect(0).named(name).mount(server).await;
        }
    }

    fn step(mut self, step: Step) -> Self {
        assert!(!self.forever, "Script: nothing comes after forever");
        self.steps.push(step);
        self
    }

    fn change(mut self, what: &str, change: impl FnOnce(ResponseTemplate) -> ResponseTemplate) -> Self {
        let Some(Step::Answer(answer)) = self.steps.pop() else { panic!("Script: {what} has no answer before it") };
        self.steps.push(Step::Answer(change(answer)));
        self
    }
}

/// Which requests a [`Script`] answers.
#[must_use]
pub struct Route {
    method: Option<Method>,
    path: Option<String>,
    more: Vec<Box<dyn Match>>,
}

/// POST requests to this path.
pub fn post(path: &str) -> Route {
    Route::new(Method::POST, path)
}

/// GET requests to this path.
pub fn get(path: &str) -> Route {
    Route::new(Method::GET, path)
}

/// Every request.
pub fn any() -> Route {
    Route { method: None, path: None, more: Vec::new() }
}

impl Route {
    /// Requests of this method to this path, whatever their query.
    pub fn new(method: Method, path: &str) -> Self {
        Self { method: Some(method), path: Some(path.to_owned()), more: Vec::new() }
    }

    /// Of these only those that a wiremock matcher takes too.
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

/// One route for the several mocks of a script.
struct Shared(Arc<Route>);

impl Match for Shared {
    fn matches(&self, request: &Request) -> bool {
        self.0.matches(request)
    }
}

/// How often a script was asked after its end.
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

/// The scripts that are mounted, by the server's address. A `MockServer` has no place for a word of ours, and an assertion is
/// given nothing but the server. The mock owns the progress, so an entry dies with its server.
static MOUNTED: Mutex<Vec<(SocketAddr, Weak<Progress>)>> = Mutex::new(Vec::new());

fn enrol(server: SocketAddr, progress: &Arc<Progress>) {
    let mut mounted = MOUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    mounted.retain(|(_, progress)| progress.strong_count() > 0);
    mounted.push((server, Arc::downgrade(progress)));
}

/// The scripts of this server that were asked after their end.
pub(super) fn complaints(server: SocketAddr) -> Vec<String> {
    let mounted = MOUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    let here = mounted.iter().filter(|(address, _)| *address == server).filter_map(|(_, progress)| progress.upgrade());
    let late = here.filter(|progress| progress.late.load(Ordering::Relaxed) > 0);
    late.map(|progress| format!("{progress}, and {} more were asked for", progress.late.load(Ordering::Relaxed)))
        .collect()
}
