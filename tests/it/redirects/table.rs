//! The table of redirects: the next request, and whether the redirect alone means that the
//! operation may have been processed.
//!
//! `guide/failures.md` shows the same table; the test fails if they differ. `UPDATE_GUIDE=1 cargo
//! test -p steadfast-tests --test it redirects` rewrites it.

use std::fmt::Write as _;

use steadfast::{Client, KeyPolicy, ResponseExt};
use steadfast_testing::{FaultServer, FaultStep};

use super::redirect;

/// The request after the redirect.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Same,
    Get,
    Nothing,
}

struct Row {
    answer: &'static str,
    statuses: &'static [u16],
    request: &'static str,
    methods: &'static [&'static str],
    /// Whether it leads to another origin.
    leaves: bool,
    /// Whether the user has configured the HTTP client.
    configured: bool,
    then: Then,
    what: &'static str,
    /// Whether it may have been processed if the hop ends with a 404, which proves nothing itself.
    /// `None`: depends on the status.
    processed: Option<bool>,
}

const ALL: &[u16] = &[301, 302, 303, 307, 308];
const READS: &[&str] = &["GET", "HEAD"];
const SAFE: &[&str] = &["OPTIONS", "TRACE", "QUERY"];
const EFFECTS: &[&str] = &["POST", "PUT", "PATCH", "DELETE", "PURGE"];

#[rustfmt::skip]
fn rows() -> Vec<Row> {
    use Then::{Get, Nothing, Same};
    let row = |answer, statuses, request, methods, then, what, processed| Row {
        answer, statuses, request, methods, leaves: false, configured: false, then, what, processed,
    };
    let leaves = |row: Row| Row { leaves: true, ..row };
    let configured = |row: Row| Row { configured: true, leaves: true, ..row };
    vec![
        row("301, 302, 303, 307, 308", ALL, "GET, HEAD", READS, Same, "the same request", Some(false)),
        row("301, 302, 307, 308", &[301, 302, 307, 308], "OPTIONS, TRACE, QUERY", SAFE, Same, "the same request", Some(false)),
        row("301, 302", &[301, 302], "POST, PUT, PATCH, DELETE, and methods that are not known", EFFECTS, Nothing, "nothing: the operation ends", Some(true)),
        row("303", &[303], "any but GET and HEAD", EFFECTS, Get, "a GET of the result, without body and key", Some(true)),
        row("307, 308", &[307, 308], "POST, PUT, PATCH, DELETE, and methods that are not known", EFFECTS, Same, "the same method, body and key", Some(false)),
        leaves(row("301, 302, 303, 307, 308", ALL, "GET, HEAD without a body", READS, Same, "the same method, with four headers at most", Some(false))),
        leaves(row("303", &[303], "any but GET and HEAD", EFFECTS, Get, "a GET of the result, with four headers at most", Some(true))),
        leaves(row("307, 308", &[307, 308], "any but GET and HEAD without a body", EFFECTS, Nothing, "nothing: the operation ends", Some(false))),
        configured(row("any", ALL, "any, through an HTTP client that you have configured", READS, Nothing, "nothing: the operation ends", None)),
    ]
}

/// Returns the requests that a server received: method, target, and whether they had a key and a
/// body.
fn received(server: &FaultServer) -> impl Iterator<Item = String> {
    server.received().into_iter().map(|request| {
        let key = request.key().map_or("", |_| ", key");
        let body = if request.body.is_empty() { "" } else { ", body" };
        format!("{} {}{key}{body}", request.method, request.target)
    })
}

async fn check(row: &Row, client: &Client, status: u16, method: &str) {
    let name = format!("{status} to {method}, leaves: {}, configured: {}", row.leaves, row.configured);
    let other = FaultServer::play([FaultStep::answer(404)]).await;
    let to = if row.leaves { other.url("/new") } else { "/new".to_owned() };
    let server = FaultServer::play([FaultStep::execute(redirect(status, to)), FaultStep::answer(404)]).await;
    let request = client.request(method.parse().unwrap(), server.url("/old"));
    let has_effects = EFFECTS.contains(&method);
    let request = if has_effects { request.idempotency_key("order-1".parse().unwrap()).body("x") } else { request };
    let response = request.send().await.unwrap();

    let with = if has_effects { ", key, body" } else { "" };
    let then = match row.then {
        Then::Same => Some(format!("{method} /new{with}")),
        Then::Get => Some("GET /new".to_owned()),
        Then::Nothing => None,
    };
    let final_status = if then.is_some() { 404 } else { status };
    let expected: Vec<String> = [format!("{method} /old{with}")].into_iter().chain(then).collect();
    assert_eq!(received(&server).chain(received(&other)).collect::<Vec<_>>(), expected, "{name}");
    assert_eq!(other.received().len(), if row.leaves { expected.len() - 1 } else { 0 }, "{name}");
    assert_eq!(response.status().as_u16(), final_status, "{name}");
    if let Some(processed) = row.processed {
        assert_eq!(response.may_have_been_processed(), processed, "{name}");
    }
}

#[tokio::test]
async fn every_redirect_agrees_with_table() {
    let new = || Client::builder().keys(KeyPolicy::standard());
    let (plain, configured) = (new().build().unwrap(), new().http(|http| http).build().unwrap());
    for row in rows() {
        let client = if row.configured { &configured } else { &plain };
        for &status in row.statuses {
            for method in row.methods {
                check(&row, client, status, method).await;
            }
        }
    }
}

fn render() -> String {
    let mut table = String::from(
        "| answer | request | new address | what is sent | may have been processed |\n| --- | --- | --- | --- | --- |\n",
    );
    for row in rows() {
        let address = if row.leaves { "another origin" } else { "the same origin" };
        let processed = match row.processed {
            None => "unless it is a 307 or 308",
            Some(true) => "yes",
            Some(false) if !std::ptr::eq(row.methods, EFFECTS) => "no: it does nothing",
            Some(false) if row.then == Then::Nothing => "no",
            Some(false) => "by what comes of the new request",
        };
        writeln!(table, "| {} | {} | {address} | {} | {processed} |", row.answer, row.request, row.what).unwrap();
    }
    table
}

#[test]
fn guide_shows_redirect_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/guide/failures.md");
    let guide = std::fs::read_to_string(path).unwrap();
    let begins = "<!-- the redirect table -->\n";
    let (before, rest) = guide.split_once(begins).expect("the guide marks the table's beginning");
    let (table, after) =
        rest.split_once("<!-- end of the redirect table -->").expect("the guide marks the table's end");
    if std::env::var_os("UPDATE_GUIDE").is_some() {
        let written = format!("{before}{begins}{}<!-- end of the redirect table -->{after}", render());
        std::fs::write(path, written).unwrap();
    } else {
        assert_eq!(table, render(), "run UPDATE_GUIDE=1 cargo test -p steadfast-tests --test it redirects");
    }
}
