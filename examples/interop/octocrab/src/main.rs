//! A bot's comment on an issue, through octocrab: created once, though the response is lost.
//!
//! GitHub ignores idempotency keys. octocrab repeats every request three times, at once, if the
//! connection breaks or a 5xx comes back: a second comment on the issue. steadfast repeats none of
//! them, and says that the comment may be there. With a read that looks for it, the operation ends
//! known.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use interop_common::{Fault, Seen, Table, fast_retries, serve};
use octocrab::{AuthState, Octocrab, OctocrabBuilder};
use serde_json::{Value, json};
use steadfast::{ClientBuilder, Confirmation, KeyPolicy, Unconfirmed, http};
use steadfast_testing::{Answer, FaultServer, Received};

/// What a team has today: octocrab's own client, with its own retries.
fn naive(server: &FaultServer) -> Octocrab {
    Octocrab::builder().base_uri(server.url("")).expect("a URL").build().expect("a client")
}

/// The lines that change.
fn with_steadfast(server: &FaultServer) -> Octocrab {
    octocrab_over(steadfast(server))
}

/// The same, with a read that finds out what became of a comment. A real GitHub needs more time to
/// settle than this one.
fn with_a_read(server: &FaultServer) -> Octocrab {
    octocrab_over(steadfast(server).confirm(find).settling_time(Duration::from_millis(1)))
}

fn steadfast(server: &FaultServer) -> ClientBuilder {
    steadfast::Client::builder().base_url(server.url("")).keys(KeyPolicy::off()).retry(fast_retries())
}

fn octocrab_over(client: ClientBuilder) -> Octocrab {
    let service = client.build().expect("valid settings").into_service();
    let built = OctocrabBuilder::new_empty().with_service(service).with_auth(AuthState::None).build();
    built.expect("a client")
}

/// Looks for a comment by its text, which is unique: it names the deployment.
async fn find(lost: Unconfirmed) -> steadfast::Result<Confirmation> {
    let Some(Ok(sent)) = lost.body().map(serde_json::from_slice::<Value>) else {
        return Ok(Confirmation::Unknown);
    };
    let comments: Vec<Value> = lost.client().get(lost.url().as_str()).fetch().await?;
    let found = comments.iter().find(|comment| comment["body"] == sent["body"]);
    Ok(match found {
        Some(comment) => Confirmation::applied(http::Response::new(comment.to_string())),
        None => Confirmation::NotApplied,
    })
}

/// A status reaches octocrab as it is. What steadfast knows of it is in extensions of the response
/// that octocrab does not hand on.
fn told<T>(result: &octocrab::Result<T>) -> String {
    match result {
        Err(octocrab::Error::GitHub { source, .. }) => format!("error: {}", source.status_code.as_u16()),
        _ => interop_common::told(result),
    }
}

async fn comment(github: Octocrab) -> String {
    told(&github.issues("acme", "shop").create_comment(7, "Deployment 1042 is done.").await)
}

async fn comments(github: Octocrab) -> String {
    told(&github.issues("acme", "shop").list_comments(7).send().await)
}

/// A fake GitHub, with the comments of one issue.
fn answer(request: &Received, comments: &mut Vec<Value>) -> Answer {
    if request.method == "GET" {
        return Answer::new(200).body(json!(comments).to_string());
    }
    let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let comment = a_comment(comments.len() + 1, &asked["body"]);
    comments.push(comment.clone());
    Answer::new(201).body(comment.to_string())
}

fn a_comment(number: usize, body: &Value) -> Value {
    let mut author =
        json!({ "login": "bot", "id": 1, "node_id": "U_1", "gravatar_id": "", "type": "Bot", "site_admin": false });
    for name in [
        "avatar_url",
        "url",
        "html_url",
        "followers_url",
        "following_url",
        "gists_url",
        "starred_url",
        "subscriptions_url",
        "organizations_url",
        "repos_url",
        "events_url",
        "received_events_url",
    ] {
        author[name] = json!("https://github.example/bot");
    }
    let url = "https://github.example/acme/shop/issues/7";
    json!({
        "id": number, "node_id": "C_1", "url": url, "html_url": url, "body": body, "user": author,
        "created_at": "2026-01-01T00:00:00Z",
    })
}

/// Runs one operation against a new server.
async fn run(
    fault: Fault,
    client: impl Fn(&FaultServer) -> Octocrab,
    operation: impl AsyncFn(Octocrab) -> String,
) -> Seen {
    let made = Arc::new(Mutex::new(Vec::new()));
    let comments = made.clone();
    let api = move |request: &Received| answer(request, &mut comments.lock().unwrap_or_else(PoisonError::into_inner));
    let server = serve(fault, api).await;
    let told = operation(client(&server)).await;
    let made = made.lock().unwrap_or_else(PoisonError::into_inner).len();
    Seen::write(made, told)
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut table = Table::new("octocrab", "octocrab 0.54.9, and an API that ignores keys", "octocrab's own retries");

    for (situation, fault, ours) in [
        ("created, then the connection closes", Fault::Closed, "once, error: may have run"),
        ("created, then the connection is reset", Fault::Reset, "once, error: may have run"),
        ("created, then half a response", Fault::HalfHead, "once, error: may have run"),
        ("created, then 502", Fault::Late(502), "once, error: 502"),
    ] {
        table.row(
            &format!("comment: {situation}"),
            (run(fault, naive, comment).await, "twice, ok"),
            (run(fault, with_steadfast, comment).await, ours),
        );
        table.row(
            "    the same, with a read that looks for it",
            (run(fault, naive, comment).await, "twice, ok"),
            (run(fault, with_a_read, comment).await, "once, ok"),
        );
    }
    table.row(
        "comment: 503, and not created",
        (run(Fault::Refused(503), naive, comment).await, "once, ok"),
        (run(Fault::Refused(503), with_steadfast, comment).await, "never, error: 503"),
    );
    table.row(
        "    the same, with a read that looks for it",
        (run(Fault::Refused(503), naive, comment).await, "once, ok"),
        (run(Fault::Refused(503), with_a_read, comment).await, "once, ok"),
    );
    table.row(
        "comment: 429, too many requests",
        (run(Fault::Refused(429), naive, comment).await, "once, ok"),
        (run(Fault::Refused(429), with_steadfast, comment).await, "once, ok"),
    );
    table.row(
        "comment: connection refused",
        (run(Fault::NoConnection, naive, comment).await, "never, error"),
        (run(Fault::NoConnection, with_steadfast, comment).await, "never, error: has not run"),
    );
    table.row(
        "list of comments: the connection closes",
        (run(Fault::Closed, naive, comments).await.as_read(), "read, ok"),
        (run(Fault::Closed, with_steadfast, comments).await.as_read(), "read, ok"),
    );
    table.finish()
}
