//! Deliveries over real sockets: the sender's response, and the number of executions.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use steadfast::reqwest::Response;
use steadfast::server::{BodyFingerprint, Delivery, EventId, Inbox, MemoryStore, OnUnknown, SharedStore, WebhookLayer};

use crate::server::support::{Executions, Served, header, problem};

/// Fails or panics if the delivery's headers say so.
async fn handle(State(executions): State<Executions>, headers: HeaderMap) -> StatusCode {
    let number = executions.add();
    assert!(!headers.contains_key("x-panic") || number > 1, "this handler dies on purpose");
    if headers.contains_key("x-fail") && number == 1 { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::ACCEPTED }
}

fn layer(id: EventId) -> WebhookLayer<MemoryStore> {
    WebhookLayer::new(MemoryStore::new(), "billing", id)
}

async fn serve(executions: &Executions, layer: WebhookLayer<MemoryStore>) -> Served {
    let router = Router::new().route("/hook", post(handle)).route("/other", post(handle));
    Served::serve(router.with_state(executions.clone()).layer(layer)).await
}

async fn deliver(served: &Served, path: &str, headers: &[(&str, &str)], body: &'static str) -> Response {
    let request = served.http.post(served.url(path)).body(body);
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send().await.unwrap()
}

#[tokio::test]
async fn repeated_delivery_is_handled_once() {
    let executions = Executions::default();
    let served = serve(&executions, layer(EventId::stripe())).await;
    let event = r#"{"id":"evt_1","type":"charge.succeeded"}"#;
    assert_eq!(deliver(&served, "/hook", &[], event).await.status(), 202);
    // The query and the number of the retry belong to the sender.
    for path in ["/hook", "/hook?attempt=2"] {
        let again = deliver(&served, path, &[("x-attempt", "2")], event).await;
        assert_eq!((again.status().as_u16(), header(&again, "idempotent-replayed")), (202, Some("true")));
    }
    assert_eq!(executions.count(), 1);
    assert_eq!(deliver(&served, "/hook", &[], r#"{"id":"evt_2"}"#).await.status(), 202);
    assert_eq!(executions.count(), 2);
}

#[tokio::test]
async fn failed_delivery_is_handled_again() {
    for (fails, told) in [("x-fail", 500), ("x-panic", 500)] {
        let executions = Executions::default();
        let served = serve(&executions, layer(EventId::twilio())).await;
        let headers = [("i-twilio-idempotency-token", "t"), (fails, "1")];
        assert_eq!(deliver(&served, "/hook", &headers, "x").await.status(), told, "{fails}");
        assert_eq!(deliver(&served, "/hook", &headers, "x").await.status(), 202, "{fails}");
        let again = deliver(&served, "/hook", &headers, "x").await;
        assert_eq!((header(&again, "idempotent-replayed"), executions.count()), (Some("true"), 2), "{fails}");
    }
}

#[tokio::test]
async fn unknown_delivery_is_rejected_if_configured() {
    let executions = Executions::default();
    let served = serve(&executions, layer(EventId::twilio()).on_unknown(OnUnknown::Reject)).await;
    let headers = [("i-twilio-idempotency-token", "t"), ("x-panic", "1")];
    assert_eq!(deliver(&served, "/hook", &headers, "x").await.status(), 500);
    assert_eq!(problem(deliver(&served, "/hook", &headers, "x").await).await, (409, "outcome-unknown".to_owned()));
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn other_payload_under_id_is_reported() {
    let executions = Executions::default();
    let layer = layer(EventId::stripe());
    let served = serve(&executions, layer.clone()).await;
    deliver(&served, "/hook", &[], r#"{"id":"evt_1","amount":1}"#).await;
    let other = deliver(&served, "/hook", &[], r#"{"id":"evt_1","amount":2}"#).await;
    assert_eq!(problem(other).await, (422, "key-of-another-request".to_owned()));
    assert_eq!((executions.count(), layer.metrics().mismatched), (1, 1));
}

#[tokio::test]
async fn payload_that_changes_is_handled_once() {
    let stripe =
        |pending: usize| format!(r#"{{"id":"evt_1","pending_webhooks":{pending},"data":{{"object":{{"amount":1}}}}}}"#);
    let counted = |attempt: usize| format!(r#"{{"id":"evt_1","type":"asset.ready","attempt":{attempt}}}"#);
    let json = || layer(EventId::json("/id"));
    let cases: [(_, &dyn Fn(usize) -> String, &str); 3] = [
        (layer(EventId::stripe()), &stripe, r#"{"id":"evt_1","data":{"object":{"amount":2}}}"#),
        (
            json().fingerprint_body(BodyFingerprint::ignore_fields(["attempt"])),
            &counted,
            r#"{"id":"evt_1","type":"asset.gone","attempt":1}"#,
        ),
        (json().fingerprint_body(BodyFingerprint::ignore_body()), &counted, ""),
    ];
    for (layer, delivery, other) in cases {
        let executions = Executions::default();
        let served = serve(&executions, layer).await;
        for attempt in 0..3 {
            let request = served.http.post(served.url("/hook")).body(delivery(attempt));
            let answer = request.send().await.unwrap();
            let replayed = (attempt > 0).then_some("true");
            assert_eq!((answer.status().as_u16(), header(&answer, "idempotent-replayed")), (202, replayed));
        }
        if !other.is_empty() {
            let refused = served.http.post(served.url("/hook")).body(other.to_owned()).send().await.unwrap();
            assert_eq!(problem(refused).await, (422, "key-of-another-request".to_owned()));
        }
        assert_eq!(executions.count(), 1);
    }
}

#[tokio::test]
async fn long_numbers_are_different_events() {
    let executions = Executions::default();
    let served = serve(&executions, layer(EventId::json("/id"))).await;
    // 64 bits hold neither, and a double rounds both to one number.
    for body in [r#"{"id":18446744073709551616}"#, r#"{"id":18446744073709551617}"#] {
        assert_eq!(deliver(&served, "/hook", &[], body).await.status(), 202, "{body}");
        let again = deliver(&served, "/hook", &[], body).await;
        assert_eq!(header(&again, "idempotent-replayed"), Some("true"), "{body}");
    }
    assert_eq!(executions.count(), 2);
}

#[tokio::test]
async fn layer_and_inbox_know_one_event_by_its_stable_part() {
    let executions = Executions::default();
    let store = SharedStore::new(MemoryStore::new());
    let body = BodyFingerprint::ignore_fields(["attempt"]);
    let layer = WebhookLayer::with_shared_store(store.clone(), "billing", EventId::json("/id"));
    let served = serve(&executions, layer.fingerprint_body(body.clone())).await;
    assert_eq!(deliver(&served, "/hook", &[], r#"{"id":"1","attempt":1}"#).await.status(), 202);
    let inbox = Inbox::with_shared_store(store);
    let handler = |_| async { Ok::<_, std::convert::Infallible>(executions.add()) };
    let again = inbox.process("billing", "1", body.of_payload(r#"{"attempt":2,"id":"1"}"#), handler).await.unwrap();
    assert_eq!((again, executions.count()), (Delivery::AlreadyHandled, 1));
}

#[tokio::test]
async fn consumers_handle_events_separately() {
    let executions = Executions::default();
    let layer = layer(EventId::stripe()).consumer(|parts| Some(parts.uri.path().to_owned()));
    let served = serve(&executions, layer).await;
    for path in ["/hook", "/other", "/hook"] {
        assert_eq!(deliver(&served, path, &[], r#"{"id":"evt_1"}"#).await.status(), 202);
    }
    assert_eq!(executions.count(), 2);
}

#[tokio::test]
async fn delivery_without_id_is_refused() {
    let executions = Executions::default();
    let served = serve(&executions, layer(EventId::stripe())).await;
    for body in ["", "{}", "not json"] {
        assert_eq!(problem(deliver(&served, "/hook", &[], body).await).await, (400, "event-id-missing".to_owned()));
    }
    assert_eq!(executions.count(), 0);
}

#[tokio::test]
async fn webhook_layer_wraps_any_tower_service() {
    use bytes::Bytes;
    use http_body_util::Full;
    use tower::{Service, ServiceBuilder, ServiceExt};

    let executions = Executions::default();
    let counted = executions.clone();
    let handler = move |_: axum::http::Request<Full<Bytes>>| {
        counted.add();
        async {
            Ok::<_, std::convert::Infallible>(axum::http::Response::new(Full::new(Bytes::from_static(b"handled"))))
        }
    };
    let mut service = ServiceBuilder::new().layer(layer(EventId::stripe())).service_fn(handler);
    for _ in 0..2 {
        let event = axum::http::Request::post("/").body(Full::new(Bytes::from_static(br#"{"id":"evt_1"}"#))).unwrap();
        assert_eq!(service.ready().await.unwrap().call(event).await.unwrap().status(), 200);
    }
    assert_eq!(executions.count(), 1);
}
