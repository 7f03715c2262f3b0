//! Planted secrets, looked for in everything that an exporter gets.

use steadfast::{IdempotencyKey, Refreshing, Token, Why};
use steadfast_testing::{Answer, FaultServer, FaultStep, Received};

use crate::support::{Trace, trusting};

/// Tokens, a signature and what a hook writes.
#[tokio::test]
async fn credentials_and_signatures_are_in_no_span() {
    let refused = Answer::new(401).header("www-authenticate", "Bearer error=\"challenge-i9\"");
    let server = FaultServer::play([FaultStep::answer(refused), FaultStep::ok()]).await;
    let renewed = Refreshing::bearer(async |why| {
        let token = if why == Why::First { "stale-j1" } else { "fresh-k2" };
        Ok::<_, std::io::Error>(Token::new(token))
    });
    let client = trusting(&server).credentials(renewed).on_attempt(|head| head.insert("x-signature", "hmac-l3"));
    let (response, trace) = Trace::of(client.build().unwrap().post("/charges").body("body-m4").send()).await;
    assert_eq!((response.unwrap().status().as_u16(), trace.sends().len()), (200, 2));
    let told = format!("{:?}", trace.spans);
    let received = server.received();
    let authorization = |request: &Received| request.header("authorization").unwrap().to_owned();
    assert_eq!(received.iter().map(authorization).collect::<Vec<_>>(), ["Bearer stale-j1", "Bearer fresh-k2"]);
    let key = received[0].key().unwrap();
    for secret in ["challenge-i9", "stale-j1", "fresh-k2", "hmac-l3", "body-m4", key] {
        assert!(!told.contains(secret), "{secret}: {told}");
    }
}

#[tokio::test]
async fn planted_secrets_are_in_no_span() {
    let planted =
        ["token-a1", "cookie-b2", "signature-c3", "credential-d4", "hop-e5", "user-f6", "word-g7", "fragment-h8"];
    let hop = Answer::new(307).header("location", "/moved?Signature=hop-e5&page=2#fragment-h8");
    let server = FaultServer::play([FaultStep::answer(hop), FaultStep::answer(503), FaultStep::ok()]).await;
    let client =
        trusting(&server).default_header("x-api-key", "token-a1").default_header("cookie", "session=cookie-b2");
    let key = IdempotencyKey::mint().unwrap();
    let url = server.url("/charges").replace("http://", "http://user-f6:word-g7@");
    let url = format!("{url}?X-Amz-Signature=signature-c3&x-amz-credential=credential-d4");
    let request = client.build().unwrap().post(url).idempotency_key(key.clone()).body("x");
    let (response, trace) = Trace::of(request.send()).await;
    assert_eq!((response.unwrap().status().as_u16(), trace.sends().len()), (200, 3));
    let told = format!("{:?}", trace.spans);
    let basic = server.received()[0].header("authorization").unwrap().strip_prefix("Basic ").unwrap().to_owned();
    for secret in planted.iter().chain([&key.as_str(), &basic.as_str()]) {
        assert!(!told.contains(secret), "{secret}: {told}");
    }
    // They were sent, and what is no secret is there.
    assert!(server.received().iter().any(|request| request.header("x-api-key") == Some("token-a1")));
    assert!(server.received().iter().any(|request| request.target.contains("signature-c3")));
    assert!(told.contains("page=2") && told.contains("X-Amz-Signature=REDACTED"), "{told}");
}
