//! Bodies that are opened again for each attempt. Every attempt sends the same bytes, or the error
//! says why it cannot.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use steadfast::policy::{Class, RetryPolicy};
use steadfast::{ErrorKind, RequestBuilder};
use steadfast_testing::{FaultPoint, FaultServer, FaultStep};

use crate::support::{doubting, trusting};

#[tokio::test]
async fn factory_makes_body_of_every_attempt() {
    let server = FaultServer::play([
        FaultStep::close(FaultPoint::AfterExecuting),
        FaultStep::answer(503),
        FaultStep::execute(200),
    ])
    .await;
    let made = Arc::new(AtomicU32::new(0));
    let count = made.clone();
    let client = trusting(&server).build().unwrap();
    let request = client.post("/upload").body_factory(move || {
        count.fetch_add(1, Ordering::Relaxed);
        // A stream, which cannot be sent twice by itself.
        steadfast::reqwest::Body::wrap(steadfast::reqwest::Body::from("streamed"))
    });
    assert_eq!(request.send().await.unwrap().status(), 200);
    let bodies: Vec<_> = server.received().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, [b"streamed", b"streamed", b"streamed"]);
    assert_eq!(made.load(Ordering::Relaxed), 3);
}

/// The transport never reads a body that is empty or not sent. So an unread body proves nothing:
/// the head is the whole request.
#[tokio::test]
async fn request_without_body_may_be_processed() {
    type Fill = fn(RequestBuilder) -> RequestBuilder;
    let requests: [(&str, Fill); 3] = [
        ("an empty form", |request| request.form(&[] as &[(&str, &str)])),
        ("a factory of nothing", |request| request.body_factory(|| "")),
        ("a stream of nothing", |request| request.body(steadfast::reqwest::Body::wrap(String::new()))),
    ];
    for (name, fill) in requests {
        let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting)]).await;
        let client = doubting(&server).build().unwrap();
        let error = fill(client.post("/charges")).send().await.unwrap_err();
        assert!(error.may_have_been_processed(), "{name}: {error}");
        assert_eq!((server.executions(), error.attempts().len()), (1, 1), "{name}: {error}");
    }
    // Without a length, reqwest sends a GET without its body.
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting)]).await;
    let client = doubting(&server).build().unwrap();
    let stream = futures_util::stream::iter([Ok::<_, std::io::Error>("x")]);
    let request = client.get("/charge-me").idempotent(false).body(streaming(stream));
    let error = request.send().await.unwrap_err();
    assert!(error.may_have_been_processed(), "{error}");
}

/// A body that streams another server's response fails with that server's failure.
#[tokio::test]
async fn body_source_failure_is_no_connect_error() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting)]).await;
    let client = doubting(&server).build().unwrap();
    let request = client.post("/upload").body_factory(|| {
        let first = futures_util::stream::iter([Ok("a first part")]);
        let then = futures_util::stream::once(async move {
            steadfast::reqwest::Client::new().get("http://127.0.0.1:1/").send().await.map(|_| "a second")
        });
        streaming(futures_util::StreamExt::chain(first, then))
    });
    let error = request.send().await.unwrap_err();
    assert_eq!((error.kind(), error.attempts().len()), (ErrorKind::RequestBody, 1), "{error:?}");
    assert!(error.may_have_been_processed(), "{error}");
}

fn streaming<S, E>(stream: S) -> steadfast::reqwest::Body
where
    S: futures_util::Stream<Item = Result<&'static str, E>> + Send + Sync + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    steadfast::reqwest::Body::wrap(Streaming(Box::pin(stream)))
}

struct Streaming<S>(std::pin::Pin<Box<S>>);

impl<S, E> http_body::Body for Streaming<S>
where
    S: futures_util::Stream<Item = Result<&'static str, E>>,
{
    type Data = bytes::Bytes;
    type Error = E;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, E>>> {
        let chunk = std::task::ready!(futures_util::Stream::poll_next(self.0.as_mut(), cx));
        std::task::Poll::Ready(chunk.map(|chunk| chunk.map(|text| http_body::Frame::data(text.into()))))
    }
}
mod file {

    use super::*;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, content).unwrap();
        file
    }

    #[tokio::test]
    async fn file_is_sent_whole_at_every_attempt() {
        let content: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::execute(200)]).await;
        let client = trusting(&server).build().unwrap();
        let source = file(&content);
        assert_eq!(client.post("/upload").file(source.path()).send().await.unwrap().status(), 200);
        let received = server.received();
        assert_eq!(received.len(), 2);
        assert!(
            received
                .iter()
                .all(|request| request.body == content && request.header("content-length") == Some("300000"))
        );
    }

    /// All threads for blocking calls are busy, as if the disk did not respond.
    #[test]
    fn file_not_opened_in_time_ends_attempt() {
        let runtime = tokio::runtime::Builder::new_multi_thread().max_blocking_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let server = FaultServer::play([FaultStep::execute(200)]).await;
            let client = trusting(&server).retry(RetryPolicy::never()).build().unwrap();
            let source = file(b"twelve bytes");
            let (release, released) = std::sync::mpsc::channel::<()>();
            let busy = tokio::task::spawn_blocking(move || released.recv());
            let short = Duration::from_millis(50);
            let error = client.put("/upload").file(source.path()).attempt_timeout(short).send().await.unwrap_err();
            assert!(error.is_timeout() && !error.may_have_been_processed(), "{error}");
            assert_eq!(error.attempts()[0].class(), Class::NotProcessed);
            release.send(()).unwrap();
            busy.await.unwrap().unwrap();
            assert_eq!(server.received().len(), 0);
        });
    }

    #[tokio::test]
    async fn file_changed_between_attempts_is_an_error() {
        let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::execute(200)]).await;
        let source = file(b"twelve bytes");
        let path = source.path().to_owned();
        let client = trusting(&server).on_event(move |event| {
            if let steadfast::EventKind::RetryScheduled { .. } = event.kind() {
                std::fs::write(&path, b"short").unwrap();
            }
        });
        let error = client.build().unwrap().post("/upload").file(source.path()).send().await.unwrap_err();
        assert_eq!(
            (error.kind(), error.stop_reason()),
            (ErrorKind::RequestBody, Some(steadfast::policy::StopReason::Permanent))
        );
        assert!(
            std::error::Error::source(&error)
                .unwrap()
                .to_string()
                .contains("12 bytes at the first attempt and has 5 now")
        );
        assert_eq!(server.received().len(), 1);
        assert!(error.may_have_been_processed(), "the first attempt was sent");
    }

    /// A pipe has no length, so its upload would be empty. Opening one may block for ever.
    #[cfg(unix)]
    #[tokio::test]
    async fn upload_of_no_regular_file_is_an_error() {
        let server = FaultServer::play([FaultStep::execute(200)]).await;
        let client = trusting(&server).build().unwrap();
        for path in ["/dev/null", "/"] {
            let error = client.post("/upload").file(path).send().await.unwrap_err();
            assert_eq!((error.kind(), server.connections()), (ErrorKind::RequestBody, 0), "{path}");
        }
    }

    #[tokio::test]
    async fn missing_file_sends_nothing() {
        let server = FaultServer::play([FaultStep::execute(200)]).await;
        let client = trusting(&server).build().unwrap();
        let error = client.post("/upload").file("/no/such/file").send().await.unwrap_err();
        assert_eq!((error.kind(), server.connections()), (ErrorKind::RequestBody, 0));
        assert!(!error.may_have_been_processed());
    }
}
#[tokio::test]
async fn every_attempt_of_form_has_same_bytes() {
    use steadfast::reqwest::multipart::{Form, Part};

    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::execute(200)]).await;
    let client = trusting(&server).build().unwrap();
    let make = || Form::new().text("name", "value").part("file", Part::bytes(vec![0, 1, 2]).file_name("f.bin"));
    assert_eq!(client.post("/upload").multipart_factory(make).send().await.unwrap().status(), 200);
    let received = server.received();
    assert_eq!((received.len(), server.executions()), (2, 1));
    assert_eq!(received[0].body, received[1].body);
    let boundary = received[0].header("content-type").unwrap().split("boundary=").nth(1).unwrap().to_owned();
    assert_eq!(received[1].header("content-type"), received[0].header("content-type"));
    let text = String::from_utf8_lossy(&received[0].body).into_owned();
    assert_eq!(text.matches(&format!("--{boundary}\r\n")).count(), 2, "{text}");
    assert!(text.ends_with(&format!("--{boundary}--\r\n")), "{text}");
    assert_eq!(received[0].header("content-length"), Some(received[0].body.len().to_string().as_str()));
}
