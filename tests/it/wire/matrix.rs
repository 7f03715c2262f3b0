//! The table of situations and protocols: how the client reports one POST without a key, and what
//! the server received.
//!
//! `guide/failures.md` shows the same table; the test fails if they differ. `UPDATE_GUIDE=1 cargo
//! test -p steadfast-tests --test it matrix` rewrites it.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;
use steadfast::policy::{Class, RetryPolicy};
use steadfast::{Attempt, Client, ClientBuilder, ErrorKind, KeyPolicy, reqwest};

use super::peer::{Ending, Fault, Full, Peer, Protocol};
use super::tls::Identity;

const SMALL: usize = 20;
/// More than the buffers of a socket pair can hold.
const LARGE: usize = 16 * 1024 * 1024;

/// The client's report on the attempt: its class, and whether the operation may have been
/// processed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Says {
    Done,
    NotProcessed,
    Ambiguous,
    /// 4xx.
    Refused,
    /// 2xx with an undecodable body: processed, and an error.
    Undecodable,
    /// An unfollowed redirect: an error.
    Redirected,
    /// A race between the close and the client's first byte. Not processed if the transport had
    /// read nothing yet, otherwise ambiguous.
    NotProcessedOrAmbiguous,
}

impl Says {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "success",
            Self::NotProcessed => "not processed",
            Self::Ambiguous => "ambiguous",
            Self::Refused => "permanent",
            Self::Undecodable => "success, then a decode error",
            Self::Redirected => "success, then a redirect error",
            Self::NotProcessedOrAmbiguous => "not processed, or ambiguous if a byte had left",
        }
    }

    pub(super) fn allows(self, seen: Self) -> bool {
        let either = self == Self::NotProcessedOrAmbiguous && matches!(seen, Self::NotProcessed | Self::Ambiguous);
        self == seen || either
    }
}

pub(super) struct Row {
    pub(super) situation: &'static str,
    pub(super) fault: Fault,
    pub(super) ending: Ending,
    pub(super) body: usize,
    /// The client's report over HTTP/1.1 and over HTTP/2. `None` if the situation does not exist.
    pub(super) http1: Option<Says>,
    pub(super) http2: Option<Says>,
    /// Whole requests received, and executions.
    reached: (usize, usize),
}

#[rustfmt::skip]
pub(super) fn rows() -> Vec<Row> {
    use Ending::{Fin, Rst};
    use Fault as F;
    use Says::{Ambiguous, Done, NotProcessed, NotProcessedOrAmbiguous, Redirected, Refused, Undecodable};
    let row = |situation, fault, ending, body, http1: Says, http2: Says, reached| Row {
        situation, fault, ending, body, http1: Some(http1), http2: Some(http2), reached,
    };
    let only1 = |row: Row| Row { http2: None, ..row };
    let only2 = |row: Row| Row { http1: None, ..row };
    let code = |code, acted| F::ResetStream { code, acted };
    vec![
        row("closed on accept, nothing read", F::CloseOnAccept, Fin, SMALL, NotProcessedOrAmbiguous, NotProcessedOrAmbiguous, (0, 0)),
        row("reset on accept, nothing read", F::CloseOnAccept, Rst, SMALL, NotProcessedOrAmbiguous, NotProcessedOrAmbiguous, (0, 0)),
        row("head acted on, body not read, then closed", F::ActOnHead, Fin, SMALL, Ambiguous, Ambiguous, (0, 1)),
        row("head acted on, body not read, then reset", F::ActOnHead, Rst, SMALL, Ambiguous, Ambiguous, (0, 1)),
        row("closed in the middle of the upload", F::CloseMidUpload, Fin, LARGE, Ambiguous, Ambiguous, (0, 0)),
        row("reset in the middle of the upload", F::CloseMidUpload, Rst, LARGE, Ambiguous, Ambiguous, (0, 0)),
        row("whole request read, then closed", F::CloseAfterRequest, Fin, SMALL, Ambiguous, Ambiguous, (1, 1)),
        row("whole request read, then reset", F::CloseAfterRequest, Rst, SMALL, Ambiguous, Ambiguous, (1, 1)),
        row("half of the answer's head, then closed", F::CutHead, Fin, SMALL, Ambiguous, Ambiguous, (1, 1)),
        row("an answer that is not HTTP", F::Garbage, Fin, SMALL, Ambiguous, Ambiguous, (1, 1)),
        row("413 while the upload still runs", F::EarlyAnswer(413), Fin, LARGE, Refused, Refused, (0, 0)),
        row("503 while the upload still runs", F::EarlyAnswer(503), Fin, LARGE, Ambiguous, Ambiguous, (0, 0)),
        row("100 Continue, then the answer", F::InterimThenAnswer, Fin, SMALL, Done, Done, (1, 1)),
        row("100 Continue, then closed", F::InterimThenClose, Fin, SMALL, Ambiguous, Ambiguous, (1, 1)),
        row("attempt timeout in an upload that has stalled", F::NeverRead, Fin, LARGE, Ambiguous, Ambiguous, (0, 0)),
        row("attempt timeout while waiting for the answer", F::StallAfterRequest, Fin, SMALL, Ambiguous, Ambiguous, (1, 1)),
        row("attempt timeout in the middle of the answer's body", F::StallMidBody, Fin, SMALL, Ambiguous, Ambiguous, (1, 1)),
        row("200, then the body is shorter than its length", F::CutLength, Fin, SMALL, Ambiguous, Ambiguous, (1, 1)),
        row("200, then the body does not end", F::CutChunked, Fin, SMALL, Ambiguous, Ambiguous, (1, 1)),
        only2(row("200, then RST_STREAM NO_ERROR before its length is reached", F::ResetBody, Fin, SMALL, Ambiguous, Ambiguous, (1, 1))),
        only2(row("200, then GOAWAY NO_ERROR below our stream, the same", F::GoAwayBody, Fin, SMALL, Ambiguous, Ambiguous, (1, 1))),
        row("200 with a whole body that is not the JSON asked for", F::BadJson, Fin, SMALL, Undecodable, Undecodable, (1, 1)),
        row("200", F::Answer(200), Fin, SMALL, Done, Done, (1, 1)),
        row("302 to a POST", F::Redirect(302), Fin, SMALL, Redirected, Redirected, (1, 1)),
        row("307 to another origin", F::Redirect(307), Fin, SMALL, Redirected, Redirected, (1, 0)),
        row("404", F::Answer(404), Fin, SMALL, Refused, Refused, (1, 1)),
        row("500", F::Answer(500), Fin, SMALL, Ambiguous, Ambiguous, (1, 1)),
        only1(row("a connection that was never read from, small request", F::NeverRead, Fin, SMALL, Ambiguous, Ambiguous, (0, 0))),
        only2(row("RST_STREAM REFUSED_STREAM", code(7, false), Fin, SMALL, NotProcessed, NotProcessed, (1, 0))),
        only2(row("GOAWAY below our stream", F::GoAway { last: 0 }, Fin, SMALL, NotProcessed, NotProcessed, (1, 0))),
        only2(row("GOAWAY at our stream, then closed", F::GoAway { last: 1 }, Fin, SMALL, Ambiguous, Ambiguous, (1, 1))),
        only2(row("RST_STREAM CANCEL", code(8, true), Fin, SMALL, Ambiguous, Ambiguous, (1, 1))),
        only2(row("RST_STREAM INTERNAL_ERROR", code(2, true), Fin, SMALL, Ambiguous, Ambiguous, (1, 1))),
    ]
}

fn client(identity: Option<&Identity>, protocol: Protocol) -> ClientBuilder {
    // One attempt and no licence, so that only the class is visible.
    unlicensed().retry(RetryPolicy::never()).http(|http| speaking(http, identity, protocol))
}

/// A client that repeats only what the server cannot have acted on.
pub(super) fn unlicensed() -> ClientBuilder {
    Client::builder().keys(KeyPolicy::off()).attempt_timeout(Duration::from_millis(400))
}

/// Makes a transport speak this protocol, and trust this identity.
pub(super) fn speaking(
    http: reqwest::ClientBuilder,
    identity: Option<&Identity>,
    protocol: Protocol,
) -> reqwest::ClientBuilder {
    let http = match protocol {
        Protocol::Http2 if identity.is_none() => http.http2_prior_knowledge(),
        _ => http,
    };
    match identity {
        Some(identity) => http.tls_certs_only([identity.authority()]),
        None => http,
    }
}

/// Sends one POST, and returns the client's report.
async fn ask(client: &Client, url: &str, body: usize) -> (Says, bool) {
    let error = match client.post(url).body(vec![b'x'; body]).fetch::<Value>().await {
        Ok(_) => return (Says::Done, true),
        Err(error) => error,
    };
    let says = match (error.attempts().last().map(Attempt::class), error.kind()) {
        (Some(Class::Success), ErrorKind::Decode) => Says::Undecodable,
        (Some(Class::Success), ErrorKind::Redirect) => Says::Redirected,
        (Some(Class::NotProcessed), _) => Says::NotProcessed,
        (Some(Class::Ambiguous), _) => Says::Ambiguous,
        (Some(Class::Permanent), ErrorKind::Status) => Says::Refused,
        other => panic!("{other:?}: {error:?}"),
    };
    (says, error.may_have_been_processed())
}

async fn check(row: &Row, protocol: Protocol, identity: Option<&Identity>, says: Says) {
    let name = format!("{} ({protocol:?}, TLS {})", row.situation, identity.is_some());
    let peer = Peer::start(protocol, identity, row.ending, &[row.fault]).await;
    let scheme = if identity.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://localhost:{}/", peer.address.port());
    let client = client(identity, protocol).build().unwrap();
    let (seen, processed) = ask(&client, &url, row.body).await;
    assert!(says.allows(seen), "{name}: the client says {seen:?} and should say {says:?}");
    let (received, executed) = (peer.counts.received(), peer.counts.executed());
    assert_eq!((received, executed), row.reached, "{name}: what reached the server");
    // The most important assertion: no executed request is ever reported as not processed. (A 4xx
    // is the server's own statement.)
    assert!(executed == 0 || processed || seen == Says::Refused, "{name}: executed, and the client says not processed");
    assert!(seen != Says::Redirected || processed == (executed > 0), "{name}: a 302 is evidence, and a 307 is none");
}

#[tokio::test]
async fn every_fault_has_class_of_its_reach() {
    let identity = Identity::new("localhost", |_| {});
    for row in rows() {
        for tls in [None, Some(&identity)] {
            if let Some(says) = row.http1 {
                check(&row, Protocol::Http1, tls, says).await;
            }
            if let Some(says) = row.http2 {
                check(&row, Protocol::Http2, tls, says).await;
            }
        }
    }
}

#[tokio::test]
async fn failure_before_connection_is_not_processed() {
    let patient = || client(None, Protocol::Http1);
    let refused = {
        let peer = Peer::start(Protocol::Http1, None, Ending::Fin, &[Fault::Answer(200)]).await;
        format!("http://{}/", peer.address)
    };
    assert_eq!(ask(&patient().build().unwrap(), &refused, SMALL).await, (Says::NotProcessed, false), "refused");
    let resolver = patient().http(|http| http.resolve_to_addrs("nobody.example", &[]));
    assert_eq!(
        ask(&resolver.build().unwrap(), "http://nobody.example/", SMALL).await,
        (Says::NotProcessed, false),
        "DNS"
    );

    let full = Full::start().await;
    let url = format!("http://{}/", full.address);
    let connect_timeout = patient().connect_timeout(Duration::from_millis(50)).build().unwrap();
    assert_eq!(ask(&connect_timeout, &url, SMALL).await, (Says::NotProcessed, false), "connect timeout");
    // Without TLS and with the default transport, only HTTP/1 is possible. Otherwise the request
    // may be waiting for a free HTTP/2 stream.
    let plain = || Client::builder().keys(KeyPolicy::off()).retry(RetryPolicy::never());
    let tls = format!("https://{}/", full.address);
    for (client, url, says) in [
        (plain(), &url, (Says::NotProcessed, false)),
        (plain(), &tls, (Says::Ambiguous, true)),
        (patient(), &url, (Says::Ambiguous, true)),
    ] {
        let client = client.connect_timeout(None).attempt_timeout(Duration::from_millis(50)).build().unwrap();
        assert_eq!(ask(&client, url, SMALL).await, says, "attempt timeout while connecting to {url}");
    }
}

#[tokio::test]
async fn idle_connection_closed_by_server_is_not_reused() {
    use steadfast_testing::{Answer, FaultServer, FaultStep};

    let server = FaultServer::play([FaultStep::execute(Answer::new(200).header("connection", "close"))]).await;
    let client = client(None, Protocol::Http1).build().unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&client, &server.url("/"), SMALL).await.0, Says::Done);
    }
    assert_eq!((server.executions(), server.connections()), (3, 3));
}

fn render() -> String {
    let mut table = String::from(
        "| situation | HTTP/1.1 | HTTP/2 | whole requests received | executions |\n| --- | --- | --- | --- | --- |\n",
    );
    for row in rows() {
        let cell = |says: Option<Says>| says.map_or("–", Says::as_str);
        let (received, executed) = row.reached;
        writeln!(table, "| {} | {} | {} | {received} | {executed} |", row.situation, cell(row.http1), cell(row.http2))
            .unwrap();
    }
    table
}

#[test]
fn guide_shows_wire_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/guide/failures.md");
    let guide = std::fs::read_to_string(path).unwrap();
    let (before, rest) = guide.split_once("<!-- the wire table -->\n").expect("the guide marks the table's beginning");
    let (table, after) = rest.split_once("<!-- its end -->").expect("the guide marks the table's end");
    if std::env::var_os("UPDATE_GUIDE").is_some() {
        std::fs::write(path, format!("{before}<!-- the wire table -->\n{}<!-- its end -->{after}", render())).unwrap();
    } else {
        assert_eq!(table, render(), "run UPDATE_GUIDE=1 cargo test -p steadfast-tests --test it matrix");
    }
}
