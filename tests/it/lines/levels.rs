//! The level of the last event: WARN only where somebody must act.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use steadfast::KeyPolicy;
use steadfast_testing::{FaultPoint, FaultServer, FaultStep};

use crate::support::{doubting, in_a_child};

const CHILD: &str = "STEADFAST_TEST_LEVELS";

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// In a process of its own, because a process has one subscriber for all threads.
#[tokio::test]
async fn failed_get_is_no_warning() {
    if std::env::var_os(CHILD).is_none() {
        in_a_child("lines::levels::failed_get_is_no_warning", &[(CHILD, "1")]);
        return;
    }
    let sink = Sink::default();
    let writer = sink.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false);
    tracing::subscriber::set_global_default(subscriber.with_writer(move || writer.clone()).finish()).unwrap();
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting)]).await;
    let client = doubting(&server).keys(KeyPolicy::off()).build().unwrap();
    let warnings = || {
        let text = String::from_utf8(std::mem::take(&mut *sink.0.lock().unwrap())).unwrap();
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
