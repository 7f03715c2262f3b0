//! A script on its server: what was played, what came too late, and what has no script at all.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use wiremock::{Match, Mock, MockServer, Request, ResponseTemplate};

use super::{Route, Script, Step};

/// Status for a request after the end of a script: `steadfast` and most other clients do not retry it.
const RUN_OUT: u16 = 501;

/// wiremock asks its mocks in the order of their priority, and 255 is the last one.
const ROLL_CALL: u8 = 254;
const NO_SCRIPT: u8 = 255;

/// Requests without a script that a message lists.
const LISTED: usize = 10;

thread_local! {
    /// The scripts of the server that looks for a mock on this thread now. wiremock has no place
    /// for data of a server, and a list for the whole process would need to know when a server
    /// ends. wiremock matches a request in one go, so nothing else runs on its thread meanwhile.
    static SCRIPTS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

pub(super) async fn mount(script: Script, server: &MockServer, route: Arc<Route>) -> MountedScript {
    let Script { steps, forever, must_finish, .. } = script;
    let progress = Arc::new(Progress {
        name: route.to_string(),
        steps: steps.iter().map(Step::to_string).collect(),
        played: AtomicUsize::new(0),
        late: AtomicUsize::new(0),
        unscripted: Mutex::default(),
    });
    let count = steps.len();
    for (index, step) in steps.into_iter().enumerate() {
        let name = format!("step {} of {count} ({step}) of the script for {}", index + 1, progress.name);
        let repeats = forever && index + 1 == count;
        let mock = playing(&progress, &route, index, step).named(name);
        let mock = if repeats { mock } else { mock.up_to_n_times(1) };
        let mock = match (must_finish, repeats) {
            (false, _) => mock,
            (true, false) => mock.expect(1),
            (true, true) => mock.expect(1..),
        };
        mock.mount(server).await;
    }
    if !forever {
        let (name, late) = (progress.run_out(), progress.clone());
        let run_out = move |_: &Request| ResponseTemplate::new(RUN_OUT).set_body_string(late.one_more());
        Mock::given(Shared(route)).respond_with(run_out).expect(0).named(name).mount(server).await;
    }
    let roll_call = Mock::given(RollCall(progress.clone()));
    roll_call.respond_with(ResponseTemplate::new(404)).with_priority(ROLL_CALL).mount(server).await;
    Mock::given(wiremock::matchers::any()).respond_with(no_script).with_priority(NO_SCRIPT).mount(server).await;
    MountedScript(progress)
}

fn playing(progress: &Arc<Progress>, route: &Arc<Route>, index: usize, step: Step) -> Mock {
    let (mock, progress) = (Mock::given(Shared(route.clone())), progress.clone());
    let play = move || progress.played.fetch_max(index + 1, Ordering::Relaxed);
    match step {
        Step::Answer(reply) => {
            let template = reply.template();
            mock.respond_with(move |_: &Request| {
                play();
                template.clone()
            })
        }
        Step::HangUp => mock.respond_with_err(move |_: &Request| {
            play();
            io::Error::other("the script closes the connection")
        }),
    }
}

/// Responds to a request that matched no script. Each script of a server mounts it, and the first
/// one responds.
fn no_script(request: &Request) -> ResponseTemplate {
    let scripts = SCRIPTS.take().join(", ");
    let text = format!("no script for {} {}; this server has: {scripts}", request.method, request.url.path());
    ResponseTemplate::new(404).set_body_string(text)
}

/// One route, shared by the mocks of a script.
struct Shared(Arc<Route>);

impl Match for Shared {
    fn matches(&self, request: &Request) -> bool {
        self.0.matches(request)
    }
}

/// Matches nothing. It is asked only about a request that no script has matched.
struct RollCall(Arc<Progress>);

impl Match for RollCall {
    fn matches(&self, request: &Request) -> bool {
        let mut unscripted = self.0.unscripted.lock().unwrap_or_else(PoisonError::into_inner);
        if unscripted.len() < LISTED {
            unscripted.push(format!("{} {}", request.method, request.url.path()));
        }
        SCRIPTS.with_borrow_mut(|scripts| scripts.push(self.0.summary()));
        false
    }
}

/// The course of one script.
#[derive(Debug)]
struct Progress {
    name: String,
    steps: Vec<String>,
    played: AtomicUsize,
    /// The number of requests after the last step.
    late: AtomicUsize,
    /// The first requests that matched no script of this server.
    unscripted: Mutex<Vec<String>>,
}

impl Progress {
    fn played(&self) -> usize {
        self.played.load(Ordering::Relaxed)
    }

    fn summary(&self) -> String {
        format!("{} ({} of {} steps played)", self.name, self.played(), self.steps.len())
    }

    fn run_out(&self) -> String {
        let steps = self.steps.len();
        format!("the script for {} has run out: it has {steps} step{}", self.name, if steps == 1 { "" } else { "s" })
    }

    /// Counts a request after the last step. Returns the text of its response.
    fn one_more(&self) -> String {
        self.too_late(self.late.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn too_late(&self, late: usize) -> String {
        format!("{}; requests after the last step: {late}", self.run_out())
    }

    /// Says which step comes next, if one is left.
    fn unfinished(&self) -> Option<String> {
        let played = self.played();
        let next = self.steps.get(played)?;
        let mut text = format!(
            "the script for {} is not done: {played} of {} steps played, the next is {next}",
            self.name,
            self.steps.len()
        );
        let unscripted = self.unscripted.lock().unwrap_or_else(PoisonError::into_inner);
        if !unscripted.is_empty() {
            // Writing to a string does not fail.
            let _written = write!(text, "; requests without a script: {}", unscripted.join(", "));
        }
        Some(text)
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
/// script.assert_done();
/// assert_eq!(script.requests_after_end(), 0);
/// # }
/// ```
pub struct MountedScript(Arc<Progress>);

impl MountedScript {
    /// Returns the number of requests that came after the last step. Always 0 for a script that
    /// goes on [`forever`](Script::forever).
    #[must_use]
    pub fn requests_after_end(&self) -> usize {
        self.0.late.load(Ordering::Relaxed)
    }

    /// Returns the number of steps that no request has asked for yet. A last step that repeats
    /// [`forever`](Script::forever) counts as one.
    #[must_use]
    pub fn steps_left(&self) -> usize {
        self.0.steps.len() - self.0.played()
    }

    /// Asserts that every step was played, and no request came after the last one.
    ///
    /// To check this when the server is dropped, use [`Script::must_finish`].
    ///
    /// # Panics
    ///
    /// Panics if a step is left, or a request came too late. The message names the next step, and
    /// the requests that matched no script.
    #[track_caller]
    pub fn assert_done(&self) {
        if let Some(unfinished) = self.0.unfinished() {
            panic!("{unfinished}");
        }
        let late = self.requests_after_end();
        assert!(late == 0, "{}", self.0.too_late(late));
    }
}

impl Drop for MountedScript {
    fn drop(&mut self) {
        let late = self.requests_after_end();
        // A test that has failed already has its own message.
        if late > 0 && !std::thread::panicking() {
            panic!("{}", self.0.too_late(late));
        }
    }
}

impl fmt::Debug for MountedScript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MountedScript({})", self.0.summary())
    }
}
