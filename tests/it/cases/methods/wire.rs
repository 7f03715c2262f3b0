//! Rows that need a server: one decision alone cannot show them.

use std::sync::Arc;

use serde_json::{Value, json};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep};
use tokio::sync::Notify;

use crate::support::trusting;

/// `get-body_truncated`: the client does not stitch bodies together. The second request equals the
/// first.
#[tokio::test]
async fn cut_response_is_requested_whole() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::MidBody), FaultStep::answer(200)]).await;
    let value: Value = trusting(&server).build().unwrap().get_json("/report").await.unwrap();
    assert_eq!(value["status"], 200);
    let received = server.received();
    assert_eq!(received.len(), 2);
    assert!(received.iter().all(|request| request.header("range").is_none()), "{received:?}");
    assert_eq!(received[0].headers, received[1].headers);
}

/// `post+key-409`: under a fresh key, this is the API's own conflict. After a lost response, or
/// under a key of the caller's, an earlier attempt may still run. It is then retried if the
/// response gives a time.
#[tokio::test]
async fn conflict_is_retried_only_if_attempt_may_run() {
    let conflict = || FaultStep::answer(Answer::new(409).retry_after(0));
    let done = || FaultStep::execute(200);
    for (key, acts, requests, status) in [
        (None, vec![conflict(), done()], 1, 409),
        (None, vec![FaultStep::close(FaultPoint::AfterExecuting), conflict(), done()], 3, 200),
        (Some("order-1042"), vec![conflict(), done()], 2, 200),
        (Some("order-1042"), vec![FaultStep::answer(409), done()], 1, 409),
    ] {
        let name = format!("{key:?} {acts:?}");
        let server = FaultServer::play(acts).await;
        let client = trusting(&server).build().unwrap();
        let request = client.post("/charges").json(&json!({}));
        let request = match key {
            Some(key) => request.idempotency_key(key.parse().unwrap()),
            None => request,
        };
        let response = request.send().await.expect(&name);
        assert_eq!((server.received().len(), response.status().as_u16()), (requests, status), "{name}");
        assert_eq!(server.executions(), usize::from(status == 200), "{name}");
        let keys = server.keys();
        assert!(keys[0].is_some() && keys.iter().all(|key| *key == keys[0]), "{name}: {keys:?}");
    }
}

/// `get-caller_cancel`, `post-caller_cancel`: nothing continues after the future is dropped.
#[tokio::test]
async fn dropped_operation_sends_nothing_more() {
    for method in [http::Method::GET, http::Method::POST] {
        let arrived = Arc::new(Notify::new());
        let told = arrived.clone();
        let server = FaultServer::start(move |turn, request| match (turn, request) {
            (0, Some(_)) => {
                told.notify_one();
                FaultStep::stall(FaultPoint::AfterExecuting)
            }
            _ => FaultStep::answer(200),
        });
        let server = server.await;
        let client = trusting(&server).build().unwrap();
        tokio::select! {
            answered = client.request(method, "/cancelled").send() => panic!("{answered:?}"),
            () = arrived.notified() => {}
        }
        client.get("/after").send().await.unwrap();
        let targets: Vec<String> = server.received().into_iter().map(|request| request.target).collect();
        assert_eq!(targets, ["/cancelled", "/after"]);
    }
}
