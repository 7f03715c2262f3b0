//! A process without free file descriptors: requests that it cannot send are not the origin's
//! fault, and cost the origin no tokens.

use std::fs::File;
use std::process::Command;

use steadfast::policy::{BreakerPolicy, BreakerState, Class, Failure, RetryBudget, StopReason};
use steadfast::{Attempt, Client, ErrorKind, KeyPolicy};
use steadfast_testing::{FaultServer, FaultStep, fast_retries};

const CHILD: &str = "STEADFAST_TEST_DESCRIPTORS";
const DESCRIPTORS: &str = "100";

/// Runs in a child process with a low limit, whose descriptors no other test needs.
#[tokio::test]
async fn process_without_descriptors_keeps_budget() {
    if std::env::var_os(CHILD).is_none() {
        return in_a_child("wire::resources::process_without_descriptors_keeps_budget");
    }
    let server = FaultServer::play([FaultStep::ok()]).await;
    // A budget for one retry, and a circuit that would open at the fourth failure.
    let client = Client::builder()
        .base_url(server.url(""))
        .keys(KeyPolicy::off())
        .retry(fast_retries())
        .budget(RetryBudget::standard().capacity(14))
        .breaker(BreakerPolicy::new().min_calls(4))
        .build()
        .unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    for _ in 0..20 {
        let error = client.post("/charges").body("x").send().await.unwrap_err();
        assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::Connect, Some(StopReason::AttemptsExhausted)));
        let attempts: Vec<_> = error.attempts().iter().map(Attempt::failure).collect();
        assert_eq!(attempts, [Some(Failure::LocalResources); 3], "{error:#}");
        assert_eq!(error.attempts()[0].class(), Class::NotProcessed);
        assert!(!error.may_have_been_processed(), "{error:#}");
        let text = error.to_string();
        assert!(text.contains(": could not connect: no descriptor left in this process (EMFILE) after 3 "), "{text}");
    }
    assert_eq!((client.breaker_state("/charges"), server.connections()), (Some(BreakerState::Closed), 0));

    drop(taken);
    client.post("/charges").body("x").send().await.unwrap();
    assert_eq!(server.executions(), 1);
    // The whole budget is still there.
    server.refuse_connections().await;
    let error = client.post("/charges").body("x").send().await.unwrap_err();
    let attempts: Vec<_> = error.attempts().iter().map(Attempt::failure).collect();
    assert_eq!((error.stop_reason(), attempts.len()), (Some(StopReason::BudgetExhausted), 2), "{error:#}");
    assert_eq!(attempts, [Some(Failure::Connect); 2], "{error:#}");
}

fn in_a_child(test: &str) {
    let child = Command::new("sh")
        .args(["-c", &format!("ulimit -n {DESCRIPTORS} && exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[child.stdout, child.stderr].concat()).into_owned();
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}
