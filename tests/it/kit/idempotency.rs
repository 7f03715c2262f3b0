//! The probe of an API, against servers whose behaviour is known. The self-test of the command has
//! more cases: `cargo run -p steadfast-probe -- --self-test`.

use std::sync::Mutex;
use std::time::Duration;

use http::HeaderName;
use serde_json::json;
use steadfast_probe::{Basis, Concurrent, Kept, Probe, ProbeError, Promise, SampleRequest, probe};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep};

fn charge() -> SampleRequest {
    SampleRequest::json(&json!({ "amount": 7, "note": "probe {unique}" }))
}

#[tokio::test]
async fn honoured_keys_give_a_policy() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let steps = Mutex::new(0);
    let check = Probe::new(&server.url("/charges?token=s3cret"), charge().bearer_auth("s3cret"));
    let report = check.on_step(|_| *steps.lock().unwrap() += 1).run().await.unwrap();
    assert_eq!(report.builder_line.as_deref(), Some(".keys(KeyPolicy::standard())"), "{report}");
    assert!(report.policy().is_some());
    assert_eq!(*steps.lock().unwrap(), Probe::STEPS);
    for promise in [Promise::Honoured, Promise::ConcurrentSafe, Promise::MalformedNotIgnored, Promise::LostAnswerKept] {
        assert_eq!(report.kept(promise), Kept::Yes, "{promise:?}: {report}");
    }
    assert_eq!(report.finding(Promise::Honoured).unwrap().basis, Basis::Observed);
    // This server ignores the payload, and treats the quoted key as another key.
    assert_eq!(report.kept(Promise::PayloadChecked), Kept::No);
    assert!(report.spelling.starts_with("bare and quoted are two keys"), "{report}");
    assert_eq!(report.concurrent, Concurrent::Waits);
    // The report must agree with the counts of the server.
    assert_eq!(report.requests_sent, server.report().requests, "{}", server.report());
    assert!(report.operations_at_most >= server.executions(), "{report}");
    let received = server.received();
    assert_eq!(received[0].header("authorization"), Some("Bearer s3cret"));
    assert_ne!(received[0].body, received[1].body, "each key has a number of its own");
    let json = serde_json::to_string(&report).unwrap();
    for text in [json, report.to_string(), format!("{report:?} {:?}", charge().bearer_auth("s3cret"))] {
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn ignored_keys_give_no_policy_and_end_probe() {
    let server = FaultServer::play([FaultStep::ok()]).await.ignoring_keys();
    let report = probe(&server.url("/"), charge()).await.unwrap();
    assert_eq!((report.kept(Promise::Honoured), report.policy().is_none()), (Kept::No, true), "{report}");
    assert_eq!((report.findings.len(), server.executions(), report.operations_at_most), (1, 3, 3), "{report}");
}

#[tokio::test]
async fn indistinct_responses_prove_nothing() {
    let server = FaultServer::play([FaultStep::execute(Answer::new(200).body("{}"))]).await;
    let report = probe(&server.url("/"), charge()).await.unwrap();
    assert!(!report.answers_tell_operations_apart && report.policy().is_none());
    assert_eq!((report.kept(Promise::Honoured), report.kept(Promise::ConcurrentSafe)), (Kept::Unknown, Kept::Unknown));
}

#[tokio::test]
async fn keys_are_sent_in_named_header() {
    let server = FaultServer::start(|_, request| match request.map(|request| request.header("paypal-request-id")) {
        Some(None) => FaultStep::answer(403),
        _ => FaultStep::ok(),
    })
    .await;
    let header = HeaderName::from_static("paypal-request-id");
    let report = Probe::new(&server.url("/"), charge()).header(header).run().await.unwrap();
    let line = r#".keys(KeyPolicy::standard().header(HeaderName::from_static("paypal-request-id")))"#;
    assert_eq!(report.builder_line.as_deref(), Some(line), "{report}");
}

#[tokio::test]
async fn conflict_without_hint_is_known_by_its_code() {
    // The first seven requests are control, repeat, spelling, payload and malformed key. Then come
    // groups of concurrent requests; the second request of each is refused.
    let seen: Mutex<Vec<String>> = Mutex::default();
    let server = FaultServer::start(move |_, request| {
        let Some(key) = request.and_then(|request| request.key()) else { return FaultStep::ok() };
        let mut seen = seen.lock().unwrap();
        let is_second = seen.iter().filter(|other| *other == key).count() == 1;
        seen.push(key.to_owned());
        match is_second && seen.len() > 7 {
            true => FaultStep::answer(Answer::new(409).body(r#"{"error":{"code":"key_in_use"}}"#)),
            false => FaultStep::ok(),
        }
    })
    .await;
    let report = probe(&server.url("/"), charge()).await.unwrap();
    assert_eq!(report.concurrent, Concurrent::Refused, "{report}");
    let line = r#".keys(KeyPolicy::standard().in_progress_code("key_in_use"))"#;
    assert_eq!(report.builder_line.as_deref(), Some(line), "{report}");
}

#[tokio::test]
async fn payload_refused_under_any_key_proves_nothing() {
    let server = FaultServer::start(|_, request| match request {
        Some(request) if request.body.starts_with(b"no") => FaultStep::answer(422),
        _ => FaultStep::ok(),
    })
    .await;
    let report = probe(&server.url("/"), SampleRequest::text("text/plain", "yes").other_payload("no")).await.unwrap();
    assert_eq!(report.kept(Promise::PayloadChecked), Kept::Unknown, "{report}");
}

#[tokio::test]
async fn inconclusive_probe_gives_reason() {
    let refused = FaultServer::play([FaultStep::answer(Answer::new(403).body("no such key"))]).await;
    let error = probe(&refused.url("/"), charge()).await.unwrap_err();
    assert!(matches!(&error, ProbeError::Refused { status: 403, body } if body == "no such key"), "{error}");
    let unique = FaultServer::play([FaultStep::ok(), FaultStep::answer(409)]).await;
    let error = probe(&unique.url("/"), charge()).await.unwrap_err();
    assert!(error.to_string().ends_with("put {unique} where it must differ"), "{error}");
    let dead = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting)]).await;
    assert!(matches!(probe(&dead.url("/"), charge()).await, Err(ProbeError::Unreachable(_))));
    let silent = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting)]).await;
    let check = Probe::new(&silent.url("/"), charge()).patience(Duration::from_millis(50));
    assert!(matches!(check.run().await, Err(ProbeError::Unreachable(_))));
    assert!(matches!(Probe::new("no url", charge()).run().await, Err(ProbeError::Build(_))));
}
