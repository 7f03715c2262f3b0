//! Error lines: each names what happened, whether the operation may have been processed, and the
//! setting that would change it. Situations on real sockets; the lines are exact.

mod connect;
mod levels;
mod tls;

use std::time::Duration;

use serde_json::{Value, json};
use steadfast::policy::{Backoff, Jitter, RetryPolicy};
use steadfast::{Client, Error, KeyPolicy, ResponseExt, with_deadline};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{doubting, trusting};

const SHORT: Duration = Duration::from_millis(250);

/// Returns the line of an error after its URL, with `T` for the time and `K` for the key.
fn line(error: &Error) -> String {
    let line = error.to_string();
    let url = format!("{} {}: ", error.method().unwrap(), error.url().unwrap());
    let line = line.strip_prefix(&url).expect(&line);
    let line = match error.idempotency_key() {
        Some(key) => line.replace(&key.to_string(), "K"),
        None => line.to_owned(),
    };
    let end_of_attempts = line.find(" attempt in ").or_else(|| line.find(" attempts in "));
    let (before, after) = line.split_at(end_of_attempts.expect(&line));
    let (attempts, after) = after.split_once(" in ").expect(&line);
    let (_time, after) = after.split_once(" (").expect(&line);
    format!("{before}{attempts} in T ({after}")
}

/// A GET with one attempt, against a server that plays one step.
async fn get(step: FaultStep) -> (String, FaultServer) {
    let server = FaultServer::play([step]).await;
    let client = doubting(&server).retry(RetryPolicy::never()).build().unwrap();
    let error = client.get_json::<Value>("/").await.unwrap_err();
    assert_eq!(server.received().len(), 1, "{error:#}");
    (line(&error), server)
}

#[tokio::test]
async fn error_status_carries_servers_words() {
    let problem =
        |body: Value| Answer::new(402).header("content-type", "application/problem+json").body(body.to_string());
    let permanent = "status 402 after 1 attempt in T (permanent; not processed)";
    let answer = problem(json!({ "title": "Out of credit", "detail": "Balance: 30" }));
    let (said, _server) = get(FaultStep::answer(answer)).await;
    assert_eq!(said, format!("{permanent}; the server says \"Out of credit: Balance: 30\""));
    let text = |body: &str| Answer::new(402).header("content-type", "text/plain").body(body);
    let (said, _server) = get(FaultStep::answer(text("no\r\ncredit \u{1b}[1mleft"))).await;
    assert_eq!(said, format!("{permanent}; the server says \"no credit [1mleft\""));
    let (said, _server) = get(FaultStep::answer(text(&"word ".repeat(100)))).await;
    assert!(said.ends_with("word …\"") && said.chars().count() < permanent.len() + 150, "{said}");
    let html = Answer::new(402).header("content-type", "text/html").body("<h1>no</h1>");
    assert_eq!(get(FaultStep::answer(html)).await.0, permanent);
}

#[tokio::test]
async fn servers_words_do_not_show_whole_key() {
    let server = FaultServer::start(|_, request| {
        let key = request.and_then(|request| request.key().map(str::to_owned)).unwrap_or_default();
        FaultStep::answer(Answer::new(422).header("content-type", "text/plain").body(format!("{key} is taken")))
    })
    .await;
    let client = trusting(&server).build().unwrap();
    let fetched = client.post_json::<Value>("/", &json!({})).await.unwrap_err();
    let sent = client.post("/").body("x").send().await.unwrap().into_result().await.unwrap_err();
    for error in [fetched, sent] {
        let whole = error.idempotency_key().unwrap().as_str();
        assert!(!format!("{error:#}").contains(whole), "{error:#}");
        let said = "status 422 after 1 attempt in T (permanent; not processed; key K); the server says \"K is taken\"";
        assert_eq!(line(&error), said);
    }
}

#[tokio::test]
async fn redirect_that_is_not_followed_says_why() {
    let ended = |what: &str, why: &str| format!("{what} after 1 attempt in T (may have been processed); {why}");
    let plain = "status 302, a redirect that is not followed";
    for (answer, what, why) in [
        (Answer::new(302), plain, "it has no Location"),
        (Answer::new(302).header("location", "https://["), plain, "its Location is not a URL"),
        (Answer::new(302).header("location", "ftp://a.x/"), plain, "its Location is neither http nor https"),
    ] {
        assert_eq!(get(FaultStep::answer(answer)).await.0, ended(what, why));
    }
    let server = FaultServer::play([FaultStep::answer(Answer::new(302).header("location", "/b"))]).await;
    let error = doubting(&server).max_redirects(0).build().unwrap().get_json::<Value>("/a").await.unwrap_err();
    let what = format!("status 302, a redirect to {} that is not followed", server.url("/b"));
    assert_eq!(line(&error), ended(&what, "redirects are turned off: max_redirects is 0"));
    let (said, _server) = get(FaultStep::answer(Answer::new(304).body(""))).await;
    assert_eq!(said, "status 304, not modified after 1 attempt in T (may have been processed)");
}

#[tokio::test]
async fn redirect_circle_is_called_a_circle() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(302).header("location", "/"))]).await;
    let client = doubting(&server).build().unwrap();
    let error = client.get("/").send().await.unwrap_err();
    let circle = "status 302, then a circle of redirects after 1 attempt in T (permanent; may have been processed)";
    assert_eq!((line(&error).as_str(), server.received().len()), (circle, 1));
}

#[tokio::test]
async fn failure_behind_redirect_names_its_address() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (method, status, stop) in [("GET", 302, "not processed"), ("POST", 303, "may have been processed")] {
        let to = Answer::new(status).header("location", format!("http://{gone}/b?token=s3cret"));
        let home = FaultServer::play([FaultStep::execute(to)]).await;
        let client = doubting(&home).keys(KeyPolicy::off()).retry(RetryPolicy::never()).build().unwrap();
        let error = client.request(method.parse().unwrap(), "/a").send().await.unwrap_err();
        let what = "could not connect: connection refused after 1 attempt in T (attempts exhausted";
        assert_eq!(line(&error), format!("{what}; {stop}); redirected to http://{gone}/b"), "{method}");
        assert_eq!((error.url(), home.executions()), (Some(home.url("/a").as_str()), 1));
    }
}

#[tokio::test]
async fn location_in_raw_utf8_is_followed() {
    let server = FaultServer::start(|_, request| match request.map(|request| request.target.as_str()) {
        Some("/") => FaultStep::answer(Answer::new(302).header("location", "/é?q=ü")),
        _ => FaultStep::answer(200),
    })
    .await;
    let response = doubting(&server).build().unwrap().get("/").send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(server.received()[1].target, "/%C3%A9?q=%C3%BC");
}

#[tokio::test]
async fn oversize_head_names_the_limit() {
    // hyper's limits: 100 headers over HTTP/1.1, and 16 KiB over HTTP/2.
    let many = |answer: Answer| (0..101).fold(answer, |answer, n| answer.header(format!("x-{n}"), "y".repeat(200)));
    for (is_http2, setting) in
        [(false, "http1_max_headers, or about 400 KiB)"), (true, "http2_max_header_list_size), or malformed")]
    {
        let server = FaultServer::play([FaultStep::execute(many(Answer::new(200)))]).await;
        let client = doubting(&server);
        let client = if is_http2 { client.http(|http| http.http2_prior_knowledge()) } else { client };
        // A GET may be repeated, but the next response would meet the same limit.
        let error = client.build().unwrap().get("/").send().await.unwrap_err();
        let what = format!("the head of the response is over the limit ({setting} after 1 attempt in T");
        assert_eq!(line(&error), format!("{what} (response too large; may have been processed)"));
        assert_eq!(server.executions(), 1);
    }
}

#[tokio::test]
async fn withheld_token_is_mentioned_on_401() {
    for status in [401, 403] {
        let abroad = FaultServer::play([FaultStep::answer(status)]).await;
        let home = FaultServer::play([FaultStep::answer(Answer::new(302).header("location", abroad.url("/")))]).await;
        let client = doubting(&home).bearer_auth("s3cret").build().unwrap();
        let fetched = client.get_json::<Value>("/").await.unwrap_err();
        let sent = client.get("/").send().await.unwrap().into_result().await.unwrap_err();
        let ended = format!("status {status} after 1 attempt in T (permanent; not processed)");
        let advice = "a redirect led to another origin, where the request's credentials are not sent";
        // `into_result` knows the last address alone, and names that.
        assert_eq!(line(&sent), format!("{ended}; {advice}"));
        let led = format!("{ended}; {advice}; redirected to {}", abroad.url("/"));
        assert_eq!(line(&fetched), led);
        assert_eq!(abroad.received()[0].header("authorization"), None);
        // Nothing was withheld from a request without credentials.
        let error = doubting(&home).build().unwrap().get_json::<Value>("/").await.unwrap_err();
        assert_eq!(line(&error), format!("{ended}; redirected to {}", abroad.url("/")));
        // A default header stays at the base URL without any redirect.
        let error = client.get_json::<Value>(abroad.url("/")).await.unwrap_err();
        let advice = "the client's default credentials are sent to the origin of base_url alone";
        assert_eq!(line(&error), format!("{ended}; {advice}"));
        // At home it was sent, so the 401 is about the token itself.
        let strict = FaultServer::play([FaultStep::answer(status)]).await;
        let error = doubting(&strict).bearer_auth("x").build().unwrap().get_json::<Value>("/").await.unwrap_err();
        assert_eq!(line(&error), ended);
    }
}

#[tokio::test]
async fn timeout_names_its_setting() {
    let stalled = || FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting)]);
    let lost = |why: &str, stop: &str| {
        format!("no response in time: {why} after 1 attempt in T ({stop}; may have been processed)")
    };
    let server = stalled().await;
    let client = |client: steadfast::ClientBuilder| client.retry(fast_retries().max_attempts(1)).build().unwrap();
    let error = client(doubting(&server).attempt_timeout(SHORT)).get("/").send().await.unwrap_err();
    assert_eq!(line(&error), lost("the attempt_timeout has passed", "attempts exhausted"));
    let error = client(doubting(&server)).get("/").timeout(SHORT).send().await.unwrap_err();
    assert_eq!(line(&error), lost("the operation's timeout has passed", "attempts exhausted"));
    let error = with_deadline(SHORT, client(doubting(&server)).get("/").send()).await.unwrap_err();
    assert_eq!(line(&error), lost("the task's deadline has passed (with_deadline)", "attempts exhausted"));
    let error = client(doubting(&server).http(|http| http.read_timeout(SHORT))).get("/").send().await.unwrap_err();
    let transport = "a timeout of the HTTP client has passed, such as reqwest's read_timeout or an HTTP/2 ping";
    assert_eq!(line(&error), lost(transport, "attempts exhausted"));
    assert_eq!(server.executions(), 4);
}

#[tokio::test]
async fn deadline_exceeded_names_whose() {
    let server = FaultServer::play([FaultStep::answer(503)]).await;
    // A wait of at least half a minute, and less than that is left.
    let slow = RetryPolicy::new().backoff(Backoff::schedule(|| [Duration::from_secs(40)]).jitter(Jitter::None));
    let client = doubting(&server).retry(slow).build().unwrap();
    let ended =
        |whose: &str| format!("status 503 after 1 attempt in T (deadline exceeded: {whose}; may have been processed)");
    let error = client.get_json::<Value>("/").await.unwrap_err();
    assert_eq!(line(&error), ended("the operation's timeout"));
    let error = client.get("/").send().await.unwrap().into_result().await.unwrap_err();
    assert_eq!(line(&error), ended("the operation's timeout"));
    let error = with_deadline(Duration::from_secs(9), client.get_json::<Value>("/")).await.unwrap_err();
    assert_eq!(line(&error), ended("the task's deadline, set by with_deadline"));
    assert_eq!(server.received().len(), 3);
}

#[tokio::test]
async fn retry_after_names_the_limit_that_it_exceeds() {
    for (seconds, timeout, limit) in
        [(3600, None, "max_retry_after"), (40, Some(Duration::from_secs(9)), "the operation's timeout")]
    {
        let server = FaultServer::play([FaultStep::answer(Answer::new(429).retry_after(seconds))]).await;
        let client = doubting(&server).timeout(timeout).build().unwrap();
        let error = client.get_json::<Value>("/").await.unwrap_err();
        let after = if seconds == 40 { "40.0 s" } else { "3600 s" };
        let stop = format!("retry-after too long for {limit}; not processed; retry after {after}");
        assert_eq!(line(&error), format!("status 429 after 1 attempt in T ({stop})"));
        assert_eq!(server.received().len(), 1);
    }
}

#[tokio::test]
async fn failed_request_body_names_its_cause() {
    let server = FaultServer::play([FaultStep::answer(200)]).await;
    let client = doubting(&server).build().unwrap();
    let missing = client.put("/").file("/nonexistent/report.csv").send().await.unwrap_err();
    let text = line(&missing);
    assert!(text.starts_with("the request body failed: ") && text.contains("No such file or directory"), "{text}");
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn connection_reset_is_named() {
    let (said, _server) = {
        let server = FaultServer::play([FaultStep::reset(FaultPoint::AfterExecuting)]).await;
        let client = doubting(&server).keys(KeyPolicy::off()).build().unwrap();
        let error = client.post("/").body("x").send().await.unwrap_err();
        (line(&error), server)
    };
    let lost = "connection lost before the response: connection reset after 1 attempt in T";
    assert_eq!(said, format!("{lost} (not repeatable; may have been processed)"));
}

/// Accepts one connection after the other, reads to the end of the head, or the beginning of a TLS
/// handshake, and sends `answer`. Returns what arrived.
async fn raw_server(answer: &'static str) -> (std::net::SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut received = Vec::new();
            let is_whole = |received: &[u8]| received.first() == Some(&22) || received.ends_with(b"\r\n\r\n");
            while !is_whole(&received) && stream.read_buf(&mut received).await.is_ok_and(|read| read > 0) {}
            tell.send(String::from_utf8_lossy(&received).into_owned()).unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (address, told)
}

#[test]
fn build_error_shows_its_root_cause() {
    let client = Client::builder().http(|http| http.user_agent("a\nb")).build();
    let error = client.unwrap_err();
    let text = "http: the HTTP client could not be built: builder error: failed to parse header value \
                (nothing was sent)";
    assert_eq!((error.to_string().as_str(), format!("{error:#}").as_str()), (text, text));
}
