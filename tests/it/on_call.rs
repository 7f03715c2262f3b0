//! The table for whoever is on call, in `guide/production.md`: its second column is what the client
//! says about the only attempt of a POST.

use serde_json::Value;
use steadfast::policy::RetryPolicy;
use steadfast::{Client, Error, KeyPolicy};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep};

const PAGE: &str = include_str!("../../src/guide/production.md");

/// Returns the first two cells of each row.
fn rows() -> Vec<(&'static str, &'static str)> {
    let (_, table) = PAGE.split_once("<!-- the on-call table -->\n").unwrap();
    let (table, _) = table.split_once("<!-- end of the on-call table -->").unwrap();
    let cells = |row: &'static str| row.split('|').map(str::trim).collect::<Vec<_>>();
    table.lines().skip(2).map(cells).map(|cells| (cells[1], cells[2])).collect()
}

/// Stages the faults that a first cell names. An empty list: no server can stage them.
fn staged(situation: &str) -> Vec<FaultStep> {
    let (statuses, problem) = match situation.split_once(" with ") {
        Some((status, problem)) => (status, Some(problem.trim_matches('`'))),
        None => (situation.trim_end_matches(", any other"), None),
    };
    let statuses: Vec<u16> = statuses.split(", ").filter_map(|status| status.parse().ok()).collect();
    let answer = |status: u16| {
        let answer = Answer::new(status);
        match problem {
            None if (300..400).contains(&status) => answer.header("location", "/elsewhere"),
            None => answer,
            Some(problem) => {
                let body =
                    format!(r#"{{"type":"https://docs.rs/steadfast/latest/steadfast/guide/problems/#{problem}"}}"#);
                let answer = answer.header("content-type", "application/problem+json").body(body);
                let known = problem == "outcome-unknown";
                if known { answer.header("idempotency-status", "unknown") } else { answer }
            }
        }
    };
    match situation {
        "timeout, connection lost, response cut short" => vec![
            FaultStep::stall(FaultPoint::AfterExecuting),
            FaultStep::close(FaultPoint::AfterExecuting),
            FaultStep::close(FaultPoint::MidBody),
        ],
        "2xx, and the body is not the JSON you asked for" => {
            vec![FaultStep::execute(Answer::new(200).body("not JSON"))]
        }
        _ => statuses.into_iter().map(|status| FaultStep::answer(answer(status))).collect(),
    }
}

async fn error_of(step: FaultStep, key: Option<&str>) -> Error {
    let server = FaultServer::play([step]).await;
    let client = Client::builder().base_url(server.url("")).keys(KeyPolicy::standard()).retry(RetryPolicy::never());
    let client = client.attempt_timeout(std::time::Duration::from_millis(300)).build().unwrap();
    let mut request = client.post("/charges").body("12 EUR");
    if let Some(key) = key {
        request = request.idempotency_key(key.parse().unwrap());
    }
    let error = request.fetch::<Value>().await.unwrap_err();
    assert_eq!(server.received().len(), 1, "{error}");
    error
}

#[tokio::test]
async fn on_call_table_agrees_with_the_client() {
    let mut tried = 0;
    for (situation, processed) in rows() {
        // `in-progress` speaks of an earlier request under the same key.
        let key = situation.contains("`in-progress`").then_some("order-17");
        for step in staged(situation) {
            let error = error_of(step, key).await;
            assert_eq!(error.may_have_been_processed(), processed.starts_with("yes"), "{situation}: {error}");
            assert_eq!(error.to_string().contains("may have been processed"), processed.starts_with("yes"), "{error}");
            tried += 1;
        }
    }
    assert_eq!(tried, 29, "the table names as many situations that a server can stage");

    let refused = rows().into_iter().find(|(situation, _)| situation.starts_with("connection refused")).unwrap();
    let server = FaultServer::play([FaultStep::ok()]).await;
    server.refuse_connections().await;
    let client = Client::builder().retry(RetryPolicy::never()).build().unwrap();
    let error = client.post(server.url("/charges")).body("12 EUR").send().await.unwrap_err();
    assert_eq!((refused.1, error.may_have_been_processed()), ("no", false), "{error}");
}
