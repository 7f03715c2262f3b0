//! The level of the last event: WARN only where somebody must act.

use serde_json::{Value, json};
use steadfast::KeyPolicy;
use steadfast_testing::{FaultPoint, FaultServer, FaultStep};

use crate::support::log::Log;
use crate::support::{doubting, in_a_child};

const CHILD: &str = "STEADFAST_TEST_LEVELS";

/// In a process of its own, because a process has one subscriber for all threads.
#[tokio::test]
async fn failed_get_is_no_warning() {
    if std::env::var_os(CHILD).is_none() {
        in_a_child("lines::levels::failed_get_is_no_warning", &[(CHILD, "1")]);
        return;
    }
    let log = Log::of_process();
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting)]).await;
    let client = doubting(&server).keys(KeyPolicy::off()).build().unwrap();
    let warnings = || {
        let text = log.take();
        let ours = text.lines().filter(|line| line.contains(" steadfast: "));
        let (warnings, rest): (Vec<_>, Vec<_>) = ours.partition(|line| line.contains(" WARN "));
        assert!(warnings.len() + rest.iter().filter(|line| line.contains("operation ended")).count() == 1, "{text}");
        for warning in &warnings {
            assert!(warning.contains("last=connection lost before the response "), "{warning}");
        }
        warnings.len()
    };
    client.get("/").send().await.unwrap_err();
    assert_eq!(warnings(), 0, "a read");
    client.get("/").idempotent(false).send().await.unwrap_err();
    assert_eq!(warnings(), 1, "a GET with effects");
    client.post_json::<Value>("/", &json!({})).await.unwrap_err();
    assert_eq!(warnings(), 1, "a POST");
    client.delete_json::<()>("/").await.unwrap_err();
    assert_eq!(warnings(), 1, "a DELETE");
    assert!(server.executions() >= 4);
}
