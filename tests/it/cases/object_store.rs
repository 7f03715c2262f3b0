//! object_store's retry tests as situations of our own.
//!
//! object_store 0.14.2 has one test for all of its retries: `test_retry` in `src/client/retry.rs`,
//! and three small ones beside it. Each of their steps is staged here for `Client`, over a real
//! socket. A step has object_store's outcome, as its test asserts it, and ours. The two are equal,
//! or the difference has a reason. Their tests send GET and PUT only. The last rows are what their
//! code does with a POST.
//!
//! `cargo test -p steadfast-tests --test it object_store -- --nocapture` prints the table.

use std::fmt;
use std::time::Duration;

use http::Method;
use steadfast::policy::Class;
use steadfast::{Client, ErrorKind};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

/// As in their tests.
const TIMEOUT: Duration = Duration::from_millis(100);

/// How an operation ended for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A response of success.
    Status(u16),
    /// An error with the status of the last response.
    StatusError(u16),
    /// An error without a response.
    Failure,
    /// An error about a redirect.
    Redirect,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::StatusError(status) => write!(f, "error {status}"),
            Self::Failure => f.write_str("error, no response"),
            Self::Redirect => f.write_str("redirect error"),
        }
    }
}

/// What the server received and executed, and what the caller got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    requests: usize,
    executed: usize,
    end: End,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, executed, end } = self;
        write!(f, "{requests} sent, {executed} executed, {end}")
    }
}

/// How ours compares with theirs.
enum Verdict {
    Equal,
    Better(&'static str),
    ByDesign(&'static str),
}

struct Situation {
    name: &'static str,
    method: Method,
    steps: Vec<FaultStep>,
    theirs: Seen,
    ours: Seen,
    verdict: Verdict,
}

fn redirect(to: &str) -> FaultStep {
    FaultStep::answer(Answer::new(302).header("location", to))
}

/// A GET with the same outcome for both.
fn equal(
    name: &'static str,
    steps: impl Into<Vec<FaultStep>>,
    requests: usize,
    executed: usize,
    end: End,
) -> Situation {
    let seen = Seen { requests, executed, end };
    Situation { name, method: Method::GET, steps: steps.into(), theirs: seen, ours: seen, verdict: Verdict::Equal }
}

/// What their tests stage.
fn tested() -> Vec<Situation> {
    use End::{Failure, Redirect, Status, StatusError};
    let ok = FaultStep::ok;
    let answer = |status: u16| FaultStep::answer(status);
    // A panic in the handler of their mock server.
    let panic = || FaultStep::close(FaultPoint::BeforeExecuting);
    let reset = || FaultStep::reset(FaultPoint::OnAccept);
    let stall = || FaultStep::stall(FaultPoint::BeforeExecuting);
    vec![
        equal("GET: 200", [ok()], 1, 1, Status(200)),
        equal("GET: 400", [answer(400), ok()], 1, 0, StatusError(400)),
        equal("GET: 502, then 200", [answer(502), ok()], 2, 1, Status(200)),
        equal("GET: 429, then 200", [answer(429), ok()], 2, 1, Status(200)),
        equal("GET: 408, then 200", [answer(408), ok()], 2, 1, Status(200)),
        equal("GET: 204", [answer(204)], 1, 0, Status(204)),
        equal("GET: 302 to another path", [redirect("/foo"), ok()], 2, 1, Status(200)),
        Situation {
            theirs: Seen { requests: 11, executed: 0, end: Redirect },
            verdict: Verdict::Better("an address that redirects to itself ends the operation at once"),
            ..equal("GET: 302 eleven times", [redirect("/bar")], 2, 0, Redirect)
        },
        equal("GET: 302 without `Location`", [answer(302), ok()], 1, 0, Redirect),
        equal("GET: 502 three times", [answer(502)], 3, 0, StatusError(502)),
        equal("GET: closed without a response, then 200", [panic(), ok()], 2, 1, Status(200)),
        equal("GET: closed without a response, three times", [panic()], 3, 0, Failure),
        equal("GET: timeout, then 200", [stall(), ok()], 2, 1, Status(200)),
        equal("GET: reset on accept, twice, then 200", [reset(), reset(), ok()], 1, 1, Status(200)),
        Situation {
            method: Method::PUT,
            theirs: Seen { requests: 1, executed: 0, end: Failure },
            verdict: Verdict::ByDesign("PUT is idempotent by RFC 9110 §9.2.2; `idempotent(false)` gives their outcome"),
            ..equal("PUT: timeout, then 200", [stall(), ok()], 2, 1, Status(200))
        },
    ]
}

/// What their code does, and their tests do not stage.
fn untested() -> Vec<Situation> {
    use End::{Failure, Status, StatusError};
    let lost = "theirs calls it not sent, and sends it again";
    let late = "theirs repeats every request after a 5xx";
    let post = |situation| Situation { method: Method::POST, ..situation };
    let once = |end| Seen { requests: 1, executed: 1, end };
    let twice = Seen { requests: 2, executed: 2, end: Status(200) };
    let differs = |name, step, end, reason| {
        let situation = equal(name, [step, FaultStep::ok()], 1, 1, end);
        post(Situation { theirs: twice, ours: once(end), verdict: Verdict::Better(reason), ..situation })
    };
    vec![
        differs("POST: executed, then closed", FaultStep::close(FaultPoint::AfterExecuting), Failure, lost),
        differs("POST: executed, then half a head", FaultStep::close(FaultPoint::MidHead), Failure, lost),
        differs("POST: executed, then 502", FaultStep::execute(502), StatusError(502), late),
        post(Situation {
            theirs: Seen { requests: 2, executed: 1, end: Status(200) },
            verdict: Verdict::ByDesign(
                "nothing shows that the first was not executed; a trusted key permits the repeat",
            ),
            ..equal("POST: 502, not executed", [FaultStep::answer(502), FaultStep::ok()], 1, 0, StatusError(502))
        }),
        post(equal("POST: 429, then 200", [FaultStep::answer(429), FaultStep::ok()], 2, 1, Status(200))),
        post(equal("POST: executed, then reset", [FaultStep::reset(FaultPoint::AfterExecuting)], 1, 1, Failure)),
    ]
}

async fn play(situation: &Situation) -> Seen {
    let server = FaultServer::play(situation.steps.clone()).await;
    let client = Client::builder().base_url(server.url("")).retry(fast_retries()).attempt_timeout(TIMEOUT).build();
    let outcome = client.unwrap().request(situation.method.clone(), "/object").fetch_response().await;
    if let Err(error) = &outcome
        && server.executions() > 0
    {
        assert!(error.may_have_been_processed(), "{}: executed, and the error denies it", situation.name);
    }
    let end = match &outcome {
        Ok(response) => End::Status(response.status().as_u16()),
        Err(error) if error.kind() == ErrorKind::Redirect => End::Redirect,
        Err(error) => error.status().map_or(End::Failure, |status| End::StatusError(status.as_u16())),
    };
    Seen { requests: server.received().len(), executed: server.executions(), end }
}

#[tokio::test]
async fn object_store_retries_compare_as_stated() {
    println!("| situation | object_store 0.14.2 | steadfast | |\n| --- | --- | --- | --- |");
    for situation in tested().into_iter().chain(untested()) {
        let Situation { name, theirs, ours, verdict, .. } = &situation;
        let verdict = match verdict {
            Verdict::Equal => "equal".to_owned(),
            Verdict::Better(reason) => format!("better: {reason}"),
            Verdict::ByDesign(reason) => format!("different by design: {reason}"),
        };
        println!("| {name} | {theirs} | {ours} | {verdict} |");
        assert_eq!(theirs == ours, verdict == "equal", "{name}: the verdict and the outcomes disagree");
        assert_eq!(play(&situation).await, *ours, "{name}");
    }
}

/// The word that gives their outcome for a PUT whose attempt takes too long.
#[tokio::test]
async fn put_called_not_idempotent_is_sent_once() {
    let server = FaultServer::play([FaultStep::stall(FaultPoint::BeforeExecuting), FaultStep::ok()]).await;
    let client = Client::builder().base_url(server.url("")).retry(fast_retries()).attempt_timeout(TIMEOUT).build();
    let error = client.unwrap().put("/object").idempotent(false).send().await.unwrap_err();
    assert_eq!((server.received().len(), error.kind()), (1, ErrorKind::Timeout));
}

/// `test_retry` stages this with `retry_error_body`, and `test_body_contains_error` reads the texts.
#[tokio::test]
async fn error_in_body_of_200_is_retried_if_classified() {
    let error = || FaultStep::execute(Answer::new(200).body("<Error><Code>InternalError</Code></Error>"));
    let client = |server: &FaultServer| {
        let builder = Client::builder().base_url(server.url("")).retry(fast_retries());
        let builder = builder.classify(|outcome| {
            let body = String::from_utf8_lossy(outcome.body().unwrap_or_default());
            if body.contains("InternalError") || body.contains("SlowDown") {
                Class::Ambiguous
            } else {
                outcome.default_class()
            }
        });
        builder.build().unwrap()
    };

    let server = FaultServer::play([error(), FaultStep::ok()]).await;
    let body = client(&server).put("/object").fetch_text().await.unwrap();
    assert_eq!((server.received().len(), body.contains("InternalError")), (2, false));

    // Theirs repeats a POST too; the answer says that the server may have acted.
    let server = FaultServer::play([error(), FaultStep::ok()]).await;
    let failed = client(&server).post("/object").fetch_text().await.unwrap_err();
    assert_eq!((server.received().len(), failed.may_have_been_processed()), (1, true));
}

/// `test_503_error_body_captured`.
#[tokio::test]
async fn body_of_last_503_is_on_the_error() {
    let slow_down = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
    let server = FaultServer::play([FaultStep::answer(Answer::new(503).body(slow_down))]).await;
    let client = Client::builder().base_url(server.url("")).retry(fast_retries().max_attempts(1)).build().unwrap();
    let error = client.get("/object").fetch_text().await.unwrap_err();
    assert_eq!((error.status().unwrap().as_u16(), error.body()), (503, Some(slow_down.as_bytes())));
    assert_eq!(server.received().len(), 1);
}

/// Theirs prints the URL, unless the request is marked as sensitive. Ours never prints the values
/// of a query, such as the signature of a presigned URL.
#[tokio::test]
async fn error_of_presigned_url_has_no_signature() {
    for step in [FaultStep::answer(502), FaultStep::close(FaultPoint::BeforeExecuting)] {
        let server = FaultServer::play([step]).await;
        let client = Client::builder().base_url(server.url("")).retry(fast_retries()).build().unwrap();
        let error = client.get("/object?X-Amz-Signature=SENSITIVE").fetch_text().await.unwrap_err();
        assert_eq!(server.received().len(), 3);
        let printed = format!("{error} {error:?}");
        assert!(printed.contains("/object") && !printed.contains("SENSITIVE"), "{printed}");
    }
}
