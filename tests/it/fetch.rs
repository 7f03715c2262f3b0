//! Bodies that are read inside the attempt, whatever they are decoded to.

use std::num::ParseIntError;

use serde_json::json;
use steadfast::policy::StopReason;
use steadfast::{ErrorKind, KeyError, ResponseExt};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep};

use crate::support::{doubting, trusting};

/// Executes, and cuts the body of its 200 short.
fn cut() -> FaultStep {
    FaultStep::close(FaultPoint::MidBody)
}

/// One way to read the body inside the attempt.
#[derive(Clone, Copy, Debug)]
enum Way {
    Text,
    Bytes,
    With,
}

const WAYS: [Way; 3] = [Way::Text, Way::Bytes, Way::With];

impl Way {
    async fn fetch(self, request: steadfast::RequestBuilder) -> steadfast::Result<Vec<u8>> {
        match self {
            Self::Text => request.fetch_text().await.map(String::into_bytes),
            Self::Bytes => request.fetch_bytes().await.map(Vec::from),
            Self::With => request.fetch_with(|body| Ok::<_, KeyError>(body.to_vec())).await,
        }
    }
}

#[tokio::test]
async fn cut_body_of_get_is_fetched_again() {
    for way in WAYS {
        let server = FaultServer::play([cut(), FaultStep::answer(Answer::new(200).body("whole"))]).await;
        let client = doubting(&server).build().unwrap();
        assert_eq!(way.fetch(client.get("/")).await.unwrap(), b"whole", "{way:?}");
        assert_eq!(server.received().len(), 2, "{way:?}");
    }
}

#[tokio::test]
async fn cut_page_is_fetched_again_with_its_link() {
    let page = Answer::new(200).header("link", "</items?page=2>; rel=next").body("[1]");
    let server = FaultServer::play([cut(), FaultStep::answer(page)]).await;
    let client = doubting(&server).build().unwrap();
    let response = client.get("/items").fetch_response().await.unwrap();
    assert_eq!(response.link("next").unwrap().unwrap().as_str(), server.url("/items?page=2"));
    assert_eq!((response.status().as_u16(), response.attempts().len()), (200, 2));
    assert_eq!(response.url().as_str(), server.url("/items"));
    assert_eq!(response.text().await.unwrap(), "[1]");
    assert_eq!(server.received().len(), 2);
}

#[tokio::test]
async fn cut_body_of_post_needs_licence() {
    for way in WAYS {
        let server = FaultServer::play([cut(), FaultStep::execute(200)]).await.ignoring_keys();
        let client = doubting(&server).build().unwrap();
        let error = way.fetch(client.post("/").body("x")).await.unwrap_err();
        assert_eq!((error.kind(), server.executions()), (ErrorKind::ResponseBody, 1), "{way:?}");
        assert_eq!(error.stop_reason(), Some(StopReason::KeyNotTrusted));
        assert!(error.may_have_been_processed() && error.resume_token().is_some());

        let server = FaultServer::play([cut(), FaultStep::execute(200)]).await;
        let client = trusting(&server).build().unwrap();
        way.fetch(client.post("/").body("x")).await.unwrap();
        assert_eq!((server.received().len(), server.executions()), (2, 1), "{way:?}");
    }
}

#[tokio::test]
async fn fetched_error_status_is_error_with_body() {
    for way in WAYS {
        let server = FaultServer::play([FaultStep::answer(Answer::new(404).body("no such page"))]).await;
        let error = way.fetch(doubting(&server).build().unwrap().get("/")).await.unwrap_err();
        assert_eq!((error.kind(), error.body()), (ErrorKind::Status, Some(&b"no such page"[..])), "{way:?}");
        let server = FaultServer::play([FaultStep::answer(Answer::new(200).body("12345"))]).await;
        let request = doubting(&server).build().unwrap().get("/").body_limit(4);
        let error = way.fetch(request).await.unwrap_err();
        assert_eq!((error.kind(), server.received().len()), (ErrorKind::TooLarge, 1), "{way:?}");
    }
}

#[tokio::test]
async fn text_is_decoded_as_by_reqwest() {
    for (content_type, body) in [
        ("text/plain", &b"a\xc3\xa9"[..]),
        ("text/plain; charset=iso-8859-1", b"a\xe9"),
        ("text/plain; charset=iso-8859-1", b"\xef\xbb\xbfa\xc3\xa9"),
        ("text/html; charset=\"shift_jis\"", b"\x83e\x83X\x83g"),
        ("text/plain; charset=unheard-of", b"a\xc3\xa9"),
        ("text/plain", b"\xff\xfea\0\xe9\0"),
        ("text/plain", b"a\xe9"),
        ("text/plain", b""),
    ] {
        let answer = FaultStep::answer(Answer::new(200).header("content-type", content_type).body(body));
        let server = FaultServer::play([answer.clone(), answer]).await;
        let ours = doubting(&server).build().unwrap().get("/").fetch_text().await.unwrap();
        let plain = steadfast::reqwest::get(server.url("/")).await.unwrap().text().await.unwrap();
        assert_eq!(ours, plain, "{content_type}");
        assert!(body.is_empty() || body == b"a\xe9" || ours == "aé" || ours == "テスト", "{ours}");
    }
}

#[tokio::test]
async fn failed_decoder_is_not_repeated() {
    let server = FaultServer::play([FaultStep::execute(Answer::new(200).body("s3cret"))]).await;
    let client = trusting(&server).build().unwrap();
    let parse = |body: &[u8]| String::from_utf8_lossy(body).parse::<u64>();
    let error = client.post("/").body("x").fetch_with(parse).await.unwrap_err();
    assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::Decode, Some(StopReason::Done)));
    assert_eq!((server.received().len(), server.executions()), (1, 1));
    assert!(error.may_have_been_processed() && error.resume_token().is_some(), "{error}");
    assert_eq!(error.body(), Some(&b"s3cret"[..]));
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<ParseIntError>());
    assert!(source.is_some(), "the decoder's own error");
    assert!(
        !error.to_string().contains("invalid digit") && format!("{error:#}").contains("invalid digit"),
        "{error:#}"
    );
}

#[tokio::test]
async fn byte_order_mark_before_json_is_skipped() {
    let answer = |status| FaultStep::answer(Answer::new(status).body("\u{feff}{\"id\":7}"));
    let empty = FaultStep::answer(Answer::new(200).body("\u{feff}"));
    let server = FaultServer::play([answer(200), answer(422), empty]).await;
    let client = doubting(&server).build().unwrap();
    let id = json!({ "id": 7 });
    assert_eq!(client.get_json::<serde_json::Value>("/").await.unwrap(), id);
    let error = client.get_json::<serde_json::Value>("/").await.unwrap_err();
    assert_eq!(error.json::<serde_json::Value>().unwrap(), id);
    client.get_json::<()>("/").await.unwrap();
}
