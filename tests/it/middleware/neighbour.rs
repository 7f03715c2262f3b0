//! The retry tests of reqwest-retry 0.9.1 as situations of our own: equal, better, or different by
//! design. Each is played through reqwest-retry, and through our middleware in its place.
//! `guide/keep_your_client.md` has the same tables, and the tests compare them.

use std::fmt;
use std::time::Duration;

use http::{Method, StatusCode};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use steadfast::{Client, ResponseExt};
use steadfast_reqwest_middleware::Steadfast;
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

use super::{plain, retry_layer};

const PAGE: &str = include_str!("../../../src/guide/keep_your_client.md");

/// reqwest-retry with three retries, as its tests have it.
fn theirs() -> ClientWithMiddleware {
    ClientBuilder::new(plain()).with(retry_layer(3)).build()
}

/// Ours, with as many attempts. `trusts`: somebody has said that the API honours keys.
fn ours(trusts: bool) -> ClientWithMiddleware {
    let client = Client::builder().retry(fast_retries().max_attempts(4));
    let client = if trusts { client.keys(steadfast::KeyPolicy::standard()) } else { client };
    ClientBuilder::new(plain()).with(Steadfast::new(client.build().unwrap())).build()
}

/// What a client got, and what the server received and executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    status: Option<u16>,
    requests: usize,
    executions: usize,
}

impl Seen {
    const fn of(status: u16, requests: usize, executions: usize) -> Self {
        Self { status: Some(status), requests, executions }
    }

    /// It got an error.
    const fn failed(requests: usize, executions: usize) -> Self {
        Self { status: None, requests, executions }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, requests, executions } = self;
        match status {
            Some(status) => write!(f, "{status}, {requests}, {executions}"),
            None => write!(f, "error, {requests}, {executions}"),
        }
    }
}

/// A row of the page.
struct Row {
    situation: &'static str,
    verdict: &'static str,
    method: Method,
    is_stream: bool,
    steps: Vec<FaultStep>,
    ignores_keys: bool,
    /// Limits each attempt, as reqwest's request timeout does.
    timeout: Option<Duration>,
    theirs: Seen,
    ours: Seen,
}

fn row(situation: &'static str, verdict: &'static str, steps: Vec<FaultStep>, theirs: Seen, ours: Seen) -> Row {
    Row {
        situation,
        verdict,
        method: Method::GET,
        is_stream: false,
        steps,
        ignores_keys: false,
        timeout: None,
        theirs,
        ours,
    }
}

fn then_ok(steps: impl IntoIterator<Item = FaultStep>) -> Vec<FaultStep> {
    steps.into_iter().chain([FaultStep::ok()]).collect()
}

#[rustfmt::skip]
fn rows() -> Vec<Row> {
    let post = |row: Row| Row { method: Method::POST, ..row };
    let untrusted = |row: Row| Row { ignores_keys: true, ..row };
    let timed = |row: Row| Row { timeout: Some(Duration::from_millis(150)), ..row };
    let lost = || FaultStep::close(FaultPoint::AfterExecuting);
    vec![
        timed(row("GET, the first answer is later than the request's timeout", "equal",
            then_ok([FaultStep::answer(Answer::new(500).delay(Duration::from_secs(5)))]), Seen::of(200, 2, 1), Seen::of(200, 2, 1))),
        row("GET, three answers are cut in their head", "equal",
            then_ok(vec![FaultStep::close(FaultPoint::MidHead); 3]), Seen::of(200, 4, 4), Seen::of(200, 4, 4)),
        row("GET, the connection closes without an answer", "equal",
            then_ok([FaultStep::close(FaultPoint::BeforeExecuting)]), Seen::of(200, 2, 1), Seen::of(200, 2, 1)),
        row("GET, the connection is reset without an answer", "equal",
            then_ok([FaultStep::reset(FaultPoint::BeforeExecuting)]), Seen::of(200, 2, 1), Seen::of(200, 2, 1)),
        row("GET, every answer is a 503", "equal", vec![FaultStep::execute(503)], Seen::of(503, 4, 4), Seen::of(503, 4, 4)),
        row("GET, an answer that is not HTTP", "better: repeated",
            then_ok([FaultStep::garbage()]), Seen::failed(1, 1), Seen::of(200, 2, 2)),
        post(row("POST, the answer is lost, keys honoured", "better: executed once",
            then_ok([lost(), lost()]), Seen::of(200, 3, 3), Seen::of(200, 3, 1))),
        untrusted(post(row("POST, the answer is lost, keys ignored", "better: an error that says so",
            then_ok([lost()]), Seen::of(200, 2, 2), Seen::failed(1, 1)))),
        untrusted(post(row("POST, 503 after it has acted, keys ignored", "better: executed once",
            then_ok([FaultStep::execute(503)]), Seen::of(200, 2, 2), Seen::of(503, 1, 1)))),
        Row { is_stream: true, ..post(row("POST, the body is a stream", "better: sent once",
            vec![FaultStep::ok()], Seen::failed(0, 0), Seen::of(200, 1, 1))) },
        post(row("POST, a 500 that the server has stored", "different: a stored answer is final",
            vec![FaultStep::execute(Answer::new(500).header("idempotent-replayed", "true"))], Seen::of(500, 4, 4), Seen::of(500, 1, 1))),
    ]
}

async fn play(client: &ClientWithMiddleware, row: &Row) -> Seen {
    let server = FaultServer::play(row.steps.clone()).await;
    let server = if row.ignores_keys { server.ignoring_keys() } else { server };
    let mut request = client.request(row.method.clone(), server.url("/foo"));
    if row.method == Method::POST {
        let body = reqwest::Body::from("x");
        request = request.body(if row.is_stream { reqwest::Body::wrap(body) } else { body });
    }
    if let Some(timeout) = row.timeout {
        request = request.timeout(timeout);
    }
    let status = request.send().await.ok().map(|response| response.status().as_u16());
    Seen { status, requests: server.received().len(), executions: server.executions() }
}

fn on_page(row: &str) {
    assert!(PAGE.lines().any(|line| line == row), "the page lacks this row:\n{row}");
}

#[tokio::test]
async fn every_row_is_as_the_page_says() {
    let (theirs, trusting, doubting) = (theirs(), ours(true), ours(false));
    for row in rows() {
        let ours = if row.ignores_keys { &doubting } else { &trusting };
        assert_eq!(play(&theirs, &row).await, row.theirs, "reqwest-retry: {}", row.situation);
        assert_eq!(play(ours, &row).await, row.ours, "ours: {}", row.situation);
        on_page(&format!("| {} | {} | {} | {} |", row.situation, row.verdict, row.theirs, row.ours));
    }
}

/// The statuses of their tests. They send GETs, and so does this.
const STATUSES: [(&[u16], &str); 5] = [
    (&[200, 201, 202, 203, 204, 205, 206, 207, 226, 300, 301, 302, 303, 304, 307, 308], "equal: not repeated"),
    (
        &[
            400, 401, 402, 403, 404, 405, 406, 407, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 422, 423, 424,
            426, 428, 431, 451,
        ],
        "equal: not repeated",
    ),
    (&[408, 429, 500, 502, 503, 504, 506, 507, 508, 510, 511], "equal: repeated"),
    (&[421], "different: repeated once, at once, since it asks for another connection"),
    (&[501, 505], "different: not repeated, since they do not get better"),
];

#[tokio::test]
async fn statuses_are_repeated_as_the_page_says() {
    let (theirs, doubting) = (theirs(), ours(false));
    for (statuses, verdict) in STATUSES {
        let names: Vec<String> = statuses.iter().map(u16::to_string).collect();
        on_page(&format!("| {} | {verdict} |", names.join(", ")));
        for status in statuses {
            let steps = then_ok([FaultStep::answer(*status)]);
            let get = row("", "", steps, Seen::failed(0, 0), Seen::failed(0, 0));
            let (theirs, ours) = (play(&theirs, &get).await, play(&doubting, &get).await);
            assert_eq!(theirs == ours, verdict.starts_with("equal"), "{status}: {theirs}; {ours}");
            let is_repeated = !verdict.contains("not repeated");
            assert_eq!(ours.requests, if is_repeated { 2 } else { 1 }, "{status}");
        }
    }
}

/// The server's own wait counts, where reqwest-retry has only its schedule.
#[tokio::test]
async fn retry_after_is_honoured() {
    let server = FaultServer::play(then_ok([FaultStep::answer(Answer::new(503).header("retry-after", "1"))])).await;
    let response = ours(false).get(server.url("/foo")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.attempts()[0].wait() >= Some(Duration::from_secs(1)), "{:?}", response.attempts());
}
