//! Keys through the middleware: minted once, adopted from the request, never doubled.

use http::HeaderMap;
use steadfast::{Client, IdempotencyKey, KeyPolicy, RequestTerms, ResponseExt};
use steadfast_reqwest_middleware::{Steadfast, error};
use steadfast_testing::{FaultPoint, FaultServer, FaultStep, assert_one_key, fast_retries};

use super::{doubting, over, trusting};

fn lost() -> FaultStep {
    FaultStep::close(FaultPoint::AfterExecuting)
}

#[tokio::test]
async fn lost_response_is_repeated_under_one_key() {
    let server = FaultServer::play([lost(), lost(), FaultStep::ok()]).await;
    let client = over(Steadfast::new(trusting()));
    let response = client.post(server.url("/charges")).body("x").send().await.unwrap();
    assert_eq!((response.attempts().len(), server.received().len(), server.executions()), (3, 3, 1));
    assert_one_key(&server).await;
    // The next operation has another one.
    client.post(server.url("/charges")).body("x").send().await.unwrap();
    assert_eq!(server.executions(), 2);
}

#[tokio::test]
async fn defaults_never_double_where_keys_are_ignored() {
    let server = FaultServer::play([lost(), FaultStep::ok()]).await.ignoring_keys();
    let failed = over(Steadfast::new(doubting())).post(server.url("/charges")).body("x").send().await.unwrap_err();
    assert_eq!((server.received().len(), server.executions()), (1, 1));
    assert!(error(&failed).unwrap().may_have_been_processed());
}

#[tokio::test]
async fn key_in_the_request_is_kept() {
    let server = FaultServer::play([lost(), FaultStep::ok()]).await;
    let request = over(Steadfast::new(trusting())).post(server.url("/charges")).header("Idempotency-Key", "order-1042");
    let response = request.body("x").send().await.unwrap();
    assert_eq!(server.keys(), [Some("order-1042".to_owned()), Some("order-1042".to_owned())]);
    assert_eq!(response.idempotency_key().unwrap().as_str(), "order-1042");
    for request in server.received() {
        assert_eq!(request.headers.get_all("idempotency-key").iter().count(), 1);
    }
}

#[tokio::test]
async fn key_in_the_terms_is_sent_once() {
    let server = FaultServer::play([lost(), FaultStep::ok()]).await;
    let key: IdempotencyKey = "order-1042".parse().unwrap();
    let terms = RequestTerms::new().idempotency_key(key);
    // Also beside one in the header, which the terms override.
    for header in [None, Some("another")] {
        let mut request = over(Steadfast::new(trusting())).post(server.url("/charges")).body("x");
        if let Some(header) = header {
            request = request.header("Idempotency-Key", header);
        }
        request.with_extension(terms.clone()).send().await.unwrap();
    }
    assert_eq!(server.executions(), 1);
    for request in server.received() {
        let keys: Vec<_> = request.headers.get_all("idempotency-key").iter().collect();
        assert_eq!(keys, ["order-1042"]);
    }
}

#[tokio::test]
async fn malformed_key_fails_before_sending() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let client = over(Steadfast::new(trusting()));
    let twice: HeaderMap = [("one", "idempotency-key"), ("two", "idempotency-key")]
        .map(|(value, name)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()))
        .into_iter()
        .fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(name, value);
            map
        });
    let requests = [
        client.post(server.url("/charges")).header("Idempotency-Key", ""),
        client.post(server.url("/charges")).header("Idempotency-Key", "\"not closed"),
        client.post(server.url("/charges")).headers(twice),
    ];
    for request in requests {
        let failed = request.body("x").send().await.unwrap_err();
        let error = error(&failed).unwrap();
        assert!(error.is_build() && !error.may_have_been_processed(), "{error}");
        assert!(failed.is_middleware());
    }
    assert_eq!(server.received().len(), 0);
}

#[tokio::test]
async fn policy_names_header_and_methods() {
    let server = FaultServer::play([lost(), FaultStep::ok()]).await;
    let paypal = Client::builder().retry(fast_retries()).keys(KeyPolicy::paypal()).build().unwrap();
    let client = over(Steadfast::new(paypal));
    client.post(server.url("/v2/orders")).body("x").send().await.unwrap();
    client.put(server.url("/v2/orders/1")).body("x").send().await.unwrap();
    client.get(server.url("/v2/orders/1")).send().await.unwrap();
    let named: Vec<bool> = server.received().iter().map(|r| r.headers.contains_key("paypal-request-id")).collect();
    assert_eq!(named, [true, true, false, false]);
}
