//! The bodies of requests to the service: which are kept, and what becomes of those that fail.

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};

use super::*;

const KEPT: usize = 64 * 1024;

type Step = Option<Result<&'static [u8], &'static str>>;

/// A body that is `Send` and not `Sync`, as kube's. It yields its steps, and waits for ever at a
/// `None`.
struct Steps {
    steps: VecDeque<Step>,
    told: SizeHint,
    _not_sync: PhantomData<Cell<()>>,
}

impl Steps {
    fn new<const N: usize>(length: Option<u64>, steps: [Step; N]) -> Self {
        Self {
            steps: steps.into(),
            told: length.map_or_else(SizeHint::new, SizeHint::with_exact),
            _not_sync: PhantomData,
        }
    }
}

impl Body for Steps {
    type Data = &'static [u8];
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.steps.front() == Some(&None) {
            return Poll::Pending;
        }
        Poll::Ready(self.steps.pop_front().flatten().map(|step| step.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        self.told
    }
}

fn put<B>(body: B) -> Request<B> {
    Request::put("/file").body(body).unwrap()
}

/// Sends a PUT whose first answer is lost. Returns how often the server got it whole, or why there
/// was no second attempt.
async fn check<B>(service: impl Fn(ClientService) -> ClientService, body: B, sent: &[u8]) -> Result<usize, StopReason>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    let server = FaultServer::play([lost(), FaultStep::ok()]).await;
    let service = service(doubting(&server).build().unwrap().into_service());
    let ended = service.oneshot(put(body)).await;
    assert!(server.received().iter().all(|request| request.body == sent));
    ended.map(|_| server.received().len()).map_err(|error| error.stop_reason().unwrap())
}

#[tokio::test]
async fn short_body_of_known_length_is_sent_again() {
    let same = |service| service;
    let bytes = |length: usize| Full::<Bytes>::from(vec![b'x'; length]);
    assert_eq!(check(same, bytes(KEPT), &[b'x'; KEPT]).await, Ok(2));
    assert_eq!(check(same, bytes(KEPT + 1), &[b'x'; KEPT + 1]).await, Err(StopReason::BodyNotReplayable));
    let more = |service: ClientService| service.buffer_up_to(KEPT as u64 + 1);
    assert_eq!(check(more, bytes(KEPT + 1), &[b'x'; KEPT + 1]).await, Ok(2));
    let less = |service: ClientService| service.buffer_up_to(0);
    assert_eq!(check(less, bytes(1), b"x").await, Err(StopReason::BodyNotReplayable));
    assert_eq!(check(less, bytes(0), b"").await, Ok(2));
    assert_eq!(check(less, String::new(), b"").await, Ok(2));

    let parts = || [Some(Ok(&b"12"[..])), Some(Ok(&b" "[..])), Some(Ok(&b"EUR"[..]))];
    assert_eq!(check(same, Steps::new(Some(6), parts()), b"12 EUR").await, Ok(2));
    assert_eq!(check(same, Steps::new(None, parts()), b"12 EUR").await, Err(StopReason::BodyNotReplayable));
}

#[tokio::test]
async fn streamed_body_is_sent_when_nothing_was_sent_before() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let service = doubting(&server).build().unwrap().into_service();
    let body = Steps::new(None, [Some(Ok(&b"12 EUR"[..]))]);
    assert_eq!(service.oneshot(put(body)).await.unwrap().status(), 200);
    let received = server.received();
    assert_eq!((received.len(), &received[0].body[..]), (1, &b"12 EUR"[..]));
    assert_eq!(received[0].header("transfer-encoding"), Some("chunked"));
}

#[tokio::test]
async fn failed_body_is_an_error_of_this_side() {
    let cases = [
        (Steps::new(Some(6), [Some(Ok(b"12")), Some(Err("the disk is gone"))]), "the disk is gone"),
        (Steps::new(Some(6), [Some(Ok(b"12"))]), "it told a length of 6 bytes, and ended after 2"),
        (Steps::new(Some(6), [Some(Ok(b"12 EUR")), Some(Ok(b"!"))]), "it told a length of 6 bytes, and has more"),
    ];
    let server = FaultServer::play([FaultStep::ok()]).await;
    let service = doubting(&server).build().unwrap().into_service();
    for (body, words) in cases {
        let error = service.clone().oneshot(put(body)).await.unwrap_err();
        assert_eq!((error.kind(), error.may_have_been_processed()), (ErrorKind::RequestBody, false), "{error}");
        let line = format!("PUT {}: the request body failed: {words} (nothing was sent)", server.url("/file"));
        assert_eq!(error.to_string(), line);
    }
    assert_eq!(server.connections(), 0, "a short body fails before anything is sent");

    let body = Steps::new(None, [Some(Ok(&b"12"[..])), Some(Err("the disk is gone"))]);
    let error = service.oneshot(put(body)).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts().len()), (ErrorKind::RequestBody, 1), "{error}");
    assert!(error.to_string().contains("the request body failed: the disk is gone"), "{error}");
    assert_eq!(server.executions(), 0);
}

#[tokio::test]
async fn body_that_stalls_ends_with_the_timeout() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let short = || doubting(&server).timeout(Duration::from_millis(50)).build().unwrap().into_service();
    let stalled = || Steps::new(Some(6), [Some(Ok(&b"12"[..])), None]);
    let error = short().oneshot(put(stalled())).await.unwrap_err();
    assert!(error.is_timeout() && !error.may_have_been_processed(), "{error:?}");
    assert!(error.to_string().ends_with("the request body was not complete in time (nothing was sent)"), "{error}");
    let patient = doubting(&server).timeout(None).build().unwrap().into_service();
    let of_task = steadfast::with_deadline(Duration::from_millis(50), patient.oneshot(put(stalled())));
    assert!(of_task.await.unwrap_err().is_timeout());
    assert_eq!(server.connections(), 0);
}

/// A body that is complete after 100 ms.
struct Late(Pin<Box<dyn Future<Output = Bytes> + Send>>, bool);

impl Body for Late {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if std::mem::replace(&mut self.1, true) {
            return Poll::Ready(None);
        }
        let bytes = self.0.as_mut().poll(cx);
        self.1 = bytes.is_ready();
        bytes.map(|bytes| Some(Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(6)
    }
}

#[tokio::test]
async fn time_of_the_body_counts_into_the_timeout() {
    let server = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting)]).await;
    let service = doubting(&server).timeout(Duration::from_millis(300)).build().unwrap().into_service();
    let late = async {
        let forever = std::future::pending::<()>();
        assert!(tokio::time::timeout(Duration::from_millis(200), forever).await.is_err());
        Bytes::from("12 EUR")
    };
    let error = service.oneshot(put(Late(Box::pin(late), false))).await.unwrap_err();
    assert!(error.is_timeout() && server.received().len() == 1, "{error:?}");
    assert!(error.elapsed() < Duration::from_millis(200), "the operation had what was left: {error}");
}

#[tokio::test]
async fn content_length_that_differs_is_refused() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let service = doubting(&server).build().unwrap().into_service();
    let mut request = put(Full::<Bytes>::from("12 EUR"));
    request.headers_mut().insert("content-length", "7".parse().unwrap());
    let error = service.oneshot(request).await.unwrap_err();
    assert!(error.is_build() && error.to_string().contains("it says 7, and the body has 6 bytes"), "{error}");
    assert_eq!(server.connections(), 0);
}
