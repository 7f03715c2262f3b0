//! Faults in the middle of an operation: long, broken and trailing bodies, lost replies, routers
//! that hide a path.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{OriginalUri, Path};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::routing::post;
use http_body_util::BodyExt;
use steadfast::server::{EventId, IdempotencyLayer, MemoryStore, OnUnknown, Scope, WebhookLayer};
use tokio::sync::Notify;
use tower::ServiceExt;

use super::failing::Failing;
use super::support::{Executions, Served, header, problem};

#[tokio::test]
async fn response_body_beyond_lease_keeps_key() {
    for lapsed in [OnUnknown::Reject, OnUnknown::Rerun] {
        let executions = Executions::default();
        let end = Arc::new(Notify::new());
        let (counted, held) = (executions.clone(), end.clone());
        let stream = post(move || async move {
            counted.add();
            let chunks = futures_util::stream::unfold(0, move |chunk| {
                let held = held.clone();
                async move {
                    match chunk {
                        0 => Some((Ok::<_, Infallible>(Bytes::from_static(b"begun, ")), 1)),
                        1 => {
                            held.notified().await;
                            Some((Ok(Bytes::from_static(b"ended")), 2))
                        }
                        _ => None,
                    }
                }
            });
            Body::from_stream(chunks)
        });
        let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
            .lease(Duration::from_millis(30))
            .on_unknown(lapsed);
        let served = Served::start(Router::new().route("/stream", stream), layer).await;
        let first = served.post("/stream", "k").send().await.unwrap();
        // Several leases long: the lease's own clock is the subject.
        assert!(tokio::time::timeout(Duration::from_millis(200), std::future::pending::<()>()).await.is_err());
        let meanwhile = problem(served.post("/stream", "k").send().await.unwrap()).await;
        assert_eq!(meanwhile, (409, "in-progress".to_owned()), "{lapsed:?}");
        end.notify_one();
        assert_eq!(first.text().await.unwrap(), "begun, ended");
        assert_eq!(executions.count(), 1, "{lapsed:?}");
    }
}

#[tokio::test]
async fn panic_in_body_cuts_response() {
    for length in [None, Some("3"), Some("5000000")] {
        let dies = post(move || async move {
            let chunks = futures_util::stream::unfold(0, |chunk| async move {
                assert!(chunk < 2, "this body dies on purpose");
                Some((Ok::<_, Infallible>(Bytes::from_static(b"x")), chunk + 1))
            });
            let mut answer = axum::response::Response::new(Body::from_stream(chunks));
            if let Some(length) = length {
                answer.headers_mut().insert("content-length", length.parse().unwrap());
            }
            answer
        });
        let served = Served::start(
            Router::new().route("/", dies),
            IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()),
        )
        .await;
        // The response may be cut before its headers have left.
        let whole = match served.post("/", "k").send().await {
            Ok(first) => first.text().await.is_ok(),
            Err(_) => false,
        };
        assert!(!whole, "{length:?}: it is cut, and that can be seen");
        let again = problem(served.post("/", "k").send().await.unwrap()).await;
        assert_eq!(again, (409, "outcome-unknown".to_owned()), "{length:?}: the key is not wedged");
    }
}

/// Two pieces of data of known length, then trailers.
struct Trailing(u8);

impl http_body::Body for Trailing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, io::Error>>> {
        self.0 += 1;
        let trailers: HeaderMap = [("x-sum".parse().unwrap(), "7".parse().unwrap())].into_iter().collect();
        Poll::Ready(match self.0 {
            1 | 2 => Some(Ok(http_body::Frame::data(Bytes::from_static(b"0123456789")))),
            3 => Some(Ok(http_body::Frame::trailers(trailers))),
            _ => None,
        })
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(20)
    }
}

#[tokio::test]
async fn response_with_trailers_is_sent_but_not_replayed() {
    for most in [10, 1000] {
        let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).max_response(most);
        let app = Router::new().route("/", post(|| async { Body::new(Trailing(0)) })).layer(layer);
        let request = || Request::post("/").header("idempotency-key", "k").body(Body::empty()).unwrap();
        let mut body = app.clone().oneshot(request()).await.unwrap().into_body();
        let (mut data, mut trailers) = (Vec::new(), None);
        while let Some(frame) = body.frame().await {
            let frame = frame.unwrap();
            assert!(trailers.is_none(), "{most}: something comes after the trailers");
            match frame.into_data() {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        assert_eq!((data.len(), &trailers.unwrap()["x-sum"]), (20, &"7".parse::<axum::http::HeaderValue>().unwrap()));
        // A record has no trailers, so an incomplete response is not replayed.
        assert_eq!(app.oneshot(request()).await.unwrap().status(), StatusCode::GONE, "{most}");
    }
}

#[tokio::test]
async fn layer_in_nested_router_sees_original_path() {
    let close = |Path(id): Path<String>| async move { format!("closed {id}") };
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).target(|parts| {
        let whole = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |original| &original.0);
        whole.path_and_query().map_or_else(String::new, ToString::to_string)
    });
    let inner = Router::new().route("/close", post(close)).layer(layer);
    let served = Served::serve(Router::new().nest("/accounts/{id}", inner)).await;
    let first = served.post("/accounts/1/close", "k").send().await.unwrap();
    assert_eq!(first.text().await.unwrap(), "closed 1");
    let other = problem(served.post("/accounts/2/close", "k").send().await.unwrap()).await;
    assert_eq!(other, (422, "key-of-another-request".to_owned()));
    let again = served.post("/accounts/1/close", "k").send().await.unwrap();
    assert_eq!(header(&again, "idempotent-replayed"), Some("true"));
    assert_eq!(again.text().await.unwrap(), "closed 1");
}

#[tokio::test]
async fn event_with_unstored_response_is_not_rerun() {
    let executions = Executions::default();
    let counted = executions.clone();
    let handler = post(move || async move {
        counted.add();
        (StatusCode::ACCEPTED, Body::from_stream(futures_util::stream::iter(["a", "b"].map(Ok::<_, Infallible>))))
    });
    let layer = WebhookLayer::new(MemoryStore::new(), "billing", EventId::stripe());
    let served = Served::serve(Router::new().route("/", handler).layer(layer)).await;
    let deliver = || served.http.post(served.url("/")).body(r#"{"id":"evt_1"}"#).send();
    assert_eq!(deliver().await.unwrap().text().await.unwrap(), "ab");
    let again = deliver().await.unwrap();
    assert_eq!((again.status().as_u16(), header(&again, "idempotent-replayed")), (202, Some("true")));
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn claim_with_lost_replies_leaves_key_free() {
    let executions = Executions::default();
    let counted = executions.clone();
    let handler = post(move || async move { (StatusCode::CREATED, counted.add().to_string()) });
    let store = Failing::new(false, false, 2);
    let served =
        Served::start(Router::new().route("/", handler), IdempotencyLayer::new(store, Scope::single_caller())).await;
    let refused = problem(served.post("/", "k").send().await.unwrap()).await;
    assert_eq!(refused, (503, "store-unavailable".to_owned()));
    assert_eq!(executions.count(), 0);
    let told = async {
        loop {
            let again = served.post("/", "k").send().await.unwrap();
            if again.status() == 201 {
                break;
            }
            // The layer cancels the claim; until then it exists.
            assert_eq!(problem(again).await, (409, "in-progress".to_owned()));
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.expect("the key is used up");
    assert_eq!(executions.count(), 1);
}
