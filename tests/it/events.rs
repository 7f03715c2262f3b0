//! The events that a watcher gets, in order.

use std::sync::{Arc, Mutex};

use steadfast::EventKind;
use steadfast_testing::{FaultPoint, FaultServer, FaultStep};

use crate::support::trusting;

#[tokio::test]
async fn every_event_arrives_once_in_order() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::execute(200)]).await;
    let lines = Arc::new(Mutex::new(Vec::new()));
    let log = lines.clone();
    let client = trusting(&server).on_event(move |event| {
        let line = match event.kind() {
            EventKind::OperationStarted { deadline, .. } => format!("started, {}", deadline.unwrap().as_secs()),
            EventKind::AttemptStarted { number, .. } => format!("attempt {number}"),
            EventKind::ExchangeEnded { exchange, .. } => {
                assert_eq!(exchange.url().to_string(), event.url().to_string());
                format!("sent {:?} {:?}", exchange.status().map(|status| status.as_u16()), exchange.error_type())
            }
            EventKind::AttemptEnded { attempt, .. } => format!("ended {} {:?}", attempt.number(), attempt.class()),
            EventKind::RetryScheduled { number, because, .. } => format!("again {number} {because:?}"),
            EventKind::OperationEnded { reason, attempts, may_have_been_processed, .. } => {
                format!("over {reason:?} {attempts} {may_have_been_processed}")
            }
            _ => "unknown".to_owned(),
        };
        let key = event.idempotency_key().unwrap();
        assert_eq!(key.to_string().chars().count(), 9);
        log.lock().unwrap().push(format!("{} {}: {line}", event.method(), event.url()));
    });
    client.build().unwrap().post("/charges?q=1").body("x").send().await.unwrap();
    let url = server.url("/charges");
    let expected = [
        "started, 30",
        "attempt 1",
        "sent None Some(\"disconnected\")",
        "ended 1 Ambiguous",
        "again 2 Ambiguous",
        "attempt 2",
        "sent Some(200) None",
        "ended 2 Success",
        "over Done 2 true",
    ];
    let expected: Vec<_> = expected.iter().map(|line| format!("POST {url}: {line}")).collect();
    assert_eq!(*lines.lock().unwrap(), expected);
}
