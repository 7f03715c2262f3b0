//! What a caller gets: decoded bodies, errors with their attempts, and the client's default
//! headers.

use serde_json::{Value, json};
use steadfast::policy::StopReason;
use steadfast::{Client, ErrorKind, KeyPolicy, Reach, ResponseExt};
use steadfast_testing::wiremock::matchers::{header, method, path, query_param};
use steadfast_testing::wiremock::{Mock, MockServer, ResponseTemplate};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep};

use crate::support::{doubting, trusting};

#[tokio::test]
async fn json_one_liners_send_and_decode_json() {
    let server = MockServer::start().await;
    for verb in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        let reply = ResponseTemplate::new(200).set_body_json(json!({ "verb": verb }));
        Mock::given(method(verb)).and(path("/v1/things")).respond_with(reply).expect(1).mount(&server).await;
    }
    let base = format!("{}/v1", server.uri());
    let client = Client::builder().base_url(base).keys(KeyPolicy::standard()).build().unwrap();
    let verb = |value: Value| value["verb"].as_str().unwrap().to_owned();
    let body = json!({"a": 1});
    assert_eq!(verb(client.get_json("/things").await.unwrap()), "GET");
    assert_eq!(verb(client.post_json("things", &body).await.unwrap()), "POST");
    assert_eq!(verb(client.put_json("/things", &body).await.unwrap()), "PUT");
    assert_eq!(verb(client.patch_json("/things", &body).await.unwrap()), "PATCH");
    assert_eq!(verb(client.delete_json("/things").await.unwrap()), "DELETE");
}

#[tokio::test]
async fn request_builder_has_reqwests_methods() {
    let server = MockServer::start().await;
    let whole = Mock::given(method("POST"))
        .and(path("/orders/a%2Fb"))
        .and(query_param("x", "1"))
        .and(query_param("y", "a b"))
        .and(header("x-trace", "t"))
        .and(header("authorization", "Basic dXNlcjpwdw=="))
        .and(header("content-type", "application/x-www-form-urlencoded"))
        .and(steadfast_testing::wiremock::matchers::body_string("k=v+w"));
    whole.respond_with(ResponseTemplate::new(204)).expect(1).mount(&server).await;
    let client = Client::builder().base_url(server.uri()).build().unwrap();
    let request = client.post("?x=1").path_segments(["orders", "a/b"]).query(&[("y", "a b")]).header("x-trace", "t");
    let request = request.basic_auth("user", Some("pw")).form(&[("k", "v w")]);
    assert_eq!(request.send().await.unwrap().status(), 204);
}

#[tokio::test]
async fn user_information_in_url_becomes_header() {
    let server = FaultServer::play([FaultStep::answer(200)]).await;
    let url = server.url("/").replace("http://", "http://me:s3cret@");
    Client::new().get(url).send().await.unwrap();
    assert_eq!(server.received()[0].header("authorization"), Some("Basic bWU6czNjcmV0"));
}

#[tokio::test]
async fn empty_response_decodes_to_unit_or_none() {
    let server = FaultServer::play([
        FaultStep::answer(204),
        FaultStep::answer(Answer::new(200).body("")),
        FaultStep::answer(204),
    ])
    .await;
    let client = doubting(&server).build().unwrap();
    client.delete_json::<()>("/1").await.unwrap();
    assert_eq!(client.get_json::<Option<u64>>("/1").await.unwrap(), None);
    let error = client.get_json::<u64>("/1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Decode);
}

#[tokio::test]
async fn bad_json_in_whole_response_is_not_retried() {
    let server = FaultServer::play([FaultStep::execute(Answer::new(200).body(r#"{"id": "not a number"}"#))]).await;
    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code, reason = "only its errors are looked at")]
    struct Charge {
        id: u64,
    }
    let client = trusting(&server).build().unwrap();
    let error = client.post_json::<Charge>("/", &json!({})).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.stop_reason(), server.received().len()),
        (ErrorKind::Decode, Some(StopReason::Done), 1)
    );
    assert!(error.may_have_been_processed() && error.resume_token().is_some());
    assert_eq!(error.status().map(|status| status.as_u16()), Some(200));
    assert!(error.to_string().contains("invalid type, expected u64 at line 1 column 21"), "{error}");
    assert_eq!(error.json::<Value>().unwrap()["id"], "not a number");
}

#[tokio::test]
async fn response_over_body_limit_is_not_retried() {
    let server =
        FaultServer::play([FaultStep::execute(Answer::new(200).body(format!("\"{}\"", "x".repeat(5000))))]).await;
    let client = trusting(&server).body_limit(1000).build().unwrap();
    let error = client.post_json::<String>("/", &json!({})).await.unwrap_err();
    assert_eq!((error.kind(), server.received().len()), (ErrorKind::TooLarge, 1));
    assert!(error.may_have_been_processed());
    assert!(error.to_string().contains(": the response body is over the body_limit of 1000 bytes after 1 "), "{error}");
    let text: String = client.post("/").json(&json!({})).body_limit(10_000).fetch().await.unwrap();
    assert_eq!(text.len(), 5000);
}
#[tokio::test]
async fn body_limit_counts_decoded_bytes() {
    // 10 KiB of zeros in 45 bytes of gzip.
    let packed: &[u8] = &[
        0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0xed, 0xc1, 0x01, 0x0d, 0x00, 0x00, 0x00, 0xc2,
        0xa0, 0xf7, 0x4f, 0x6d, 0x0f, 0x07, 0x14, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xf0, 0x6e, 0xf4,
        0xbd, 0xd5, 0x26, 0x00, 0x28, 0x00, 0x00,
    ];
    let server = MockServer::start().await;
    let reply = ResponseTemplate::new(200).insert_header("content-encoding", "gzip").set_body_bytes(packed);
    Mock::given(method("GET")).respond_with(reply).mount(&server).await;
    let client = Client::builder().base_url(server.uri()).body_limit(1000).build().unwrap();
    let error = client.get_json::<Value>("/").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
}

#[tokio::test]
async fn status_error_keeps_response() {
    let problem =
        r#"{"type":"https://example.com/probs/out-of-credit","title":"You do not have enough credit.","balance":30}"#;
    let refusal =
        Answer::new(402).header("content-type", "application/problem+json").header("x-request-id", "r1").body(problem);
    let server = FaultServer::play([FaultStep::answer(refusal)]).await;
    let client = trusting(&server).build().unwrap();
    let error = client.post_json::<Value>("/charges", &json!({})).await.unwrap_err();
    assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::Status, Some(StopReason::Permanent)));
    assert!(!error.may_have_been_processed());
    let read = error.problem().unwrap();
    assert_eq!(read.kind.as_deref(), Some("https://example.com/probs/out-of-credit"));
    assert_eq!(read.extensions["balance"], 30);
    assert_eq!(error.headers().unwrap()["x-request-id"], "r1");
    assert_eq!(error.body().unwrap(), problem.as_bytes());
    assert_eq!((error.method(), error.url()), (Some(&http::Method::POST), Some(server.url("/charges").as_str())));
    assert!(error.to_string().contains("status 402 after 1 attempt in "), "{error}");
    assert!(error.to_string().contains("(permanent; not processed; key "), "{error}");
}

#[tokio::test]
async fn into_result_keeps_body_and_attempts() {
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::answer(404), FaultStep::answer(200)]).await;
    let client = doubting(&server).build().unwrap();
    let error = client.get("/x?token=s3cret").send().await.unwrap().into_result().await.unwrap_err();
    assert_eq!((error.attempts().len(), error.status().map(|status| status.as_u16())), (2, Some(404)));
    assert_eq!(error.body().unwrap(), br#"{"status":404}"#);
    assert_eq!(error.url(), Some(server.url("/x").as_str()));
    let response = client.get("/").send().await.unwrap().into_result().await.unwrap();
    assert_eq!(response.attempts()[0].reach(), Reach::Answered);
    assert!(response.elapsed() > std::time::Duration::ZERO);
}

#[tokio::test]
async fn final_4xx_after_lost_response_may_be_processed() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::answer(422)]).await;
    let client = trusting(&server).build().unwrap();
    let error = client.post_json::<Value>("/", &json!({})).await.unwrap_err();
    assert_eq!(error.status().map(|status| status.as_u16()), Some(422));
    assert!(error.may_have_been_processed());
}

#[tokio::test]
async fn send_returns_unfollowed_redirect_fetch_fails() {
    let elsewhere = FaultServer::play([FaultStep::answer(200)]).await;
    let server = FaultServer::play([FaultStep::answer(Answer::new(307).header("location", elsewhere.url("/")))]).await;
    let client = trusting(&server).build().unwrap();
    let response = client.post("/").body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.stop_reason()), (307, Some(StopReason::Done)));
    let error = client.post_json::<Value>("/", &json!({})).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Redirect);
    assert!(!error.may_have_been_processed(), "a 307 says that it has not been");
    assert_eq!((server.received().len(), elsewhere.connections()), (2, 0));
}

#[tokio::test]
async fn empty_post_has_empty_body() {
    let server = FaultServer::play([FaultStep::answer(200)]).await;
    doubting(&server).build().unwrap().post("/").send().await.unwrap();
    assert_eq!(server.received()[0].body, b"");
}

#[tokio::test]
async fn default_headers_stay_on_base_origin() {
    let home = FaultServer::play([FaultStep::answer(200)]).await;
    let elsewhere = FaultServer::play([FaultStep::answer(200)]).await;
    let client = Client::builder()
        .base_url(home.url("/v1"))
        .bearer_auth("s3cret")
        .default_header("x-team", "blue")
        .default_header("user-agent", "tests")
        .default_header("accept-language", "de")
        .build()
        .unwrap();
    client.get("/things").header("x-team", "red").send().await.unwrap();
    client.get("/things").send().await.unwrap();
    client.get(elsewhere.url("/")).send().await.unwrap();
    let at_home = home.received();
    assert_eq!((at_home[0].target.as_str(), at_home[0].header("x-team")), ("/v1/things", Some("red")));
    assert_eq!(at_home[1].header("x-team"), Some("blue"));
    assert_eq!(at_home[1].header("authorization"), Some("Bearer s3cret"));
    let away = &elsewhere.received()[0];
    assert_eq!((away.header("authorization"), away.header("x-team")), (None, None));
    assert_eq!((away.header("user-agent"), away.header("accept-language")), (Some("tests"), Some("de")));
}

#[tokio::test]
async fn response_of_another_client_has_no_attempts() {
    let server = FaultServer::play([FaultStep::answer(404)]).await;
    let response = steadfast::reqwest::get(server.url("/")).await.unwrap();
    assert!(response.attempts().is_empty() && response.idempotency_key().is_none() && response.stop_reason().is_none());
    assert_eq!(response.into_result().await.unwrap_err().kind(), ErrorKind::Status);
}
