//! A cut HTTP/2 request body must not count as complete: hyper ends a body without an error if the
//! stream is reset with NO_ERROR or CANCEL.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::{Request, Response};
use steadfast::server::{EventId, IdempotencyLayer, MemoryStore, Scope, WebhookLayer};
use tokio::net::TcpStream;

use super::support::{Executions, Served};

const WHOLE: &str = "1200";
const CUT: &str = "12";
const ROUNDS: usize = 100;

/// A server that counts executions, and those with less than the complete body.
#[derive(Clone, Default)]
struct Charges {
    all: Executions,
    cut: Executions,
}

impl Charges {
    fn router(&self) -> Router {
        let charges = self.clone();
        let charge = async move |body: String| {
            charges.all.add();
            if body != WHOLE {
                charges.cut.add();
            }
            StatusCode::CREATED
        };
        Router::new().route("/charges", post(charge))
    }
}

async fn connect(served: &Served) -> SendRequest<Bytes> {
    let (send, connection) = h2::client::handshake(TcpStream::connect(served.address).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    send.ready().await.unwrap()
}

fn charge(served: &Served, id: usize, length: Option<usize>) -> Request<()> {
    let request = Request::post(served.url("/charges")).header("idempotency-key", format!("\"charge-{id}\""));
    let request = request.header("webhook-id", format!("charge-{id}"));
    let request = match length {
        Some(length) => request.header("content-length", length),
        None => request,
    };
    request.body(()).unwrap()
}

/// Cuts the body of the first attempt. The second attempt is complete and gets its response.
async fn cut_then_whole(
    send: &mut SendRequest<Bytes>,
    request: impl Fn() -> Request<()>,
    reason: Reason,
) -> Response<h2::RecvStream> {
    let (_answer, mut body) = send.send_request(request(), false).unwrap();
    body.send_data(Bytes::from_static(CUT.as_bytes()), false).unwrap();
    body.send_reset(reason);
    let (answer, mut body) = send.send_request(request(), false).unwrap();
    body.send_data(Bytes::from_static(WHOLE.as_bytes()), true).unwrap();
    answer.await.unwrap()
}

async fn executes_only_whole_requests(served: &Served, charges: &Charges) {
    let mut send = connect(served).await;
    let mut id = 0;
    for (reason, length) in [
        (Reason::NO_ERROR, Some(WHOLE.len())),
        (Reason::CANCEL, Some(WHOLE.len())),
        (Reason::NO_ERROR, None),
        (Reason::CANCEL, None),
    ] {
        for _ in 0..ROUNDS {
            id += 1;
            let answer = cut_then_whole(&mut send, || charge(served, id, length), reason).await;
            assert_eq!(answer.status(), StatusCode::CREATED, "{reason:?}, announced {length:?}");
        }
        assert_eq!((charges.all.count(), charges.cut.count()), (id, 0), "{reason:?}, announced {length:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_request_body_runs_no_handler() {
    let charges = Charges::default();
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
    let served = Served::start(charges.router(), layer).await;
    executes_only_whole_requests(&served, &charges).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_webhook_runs_no_handler() {
    let charges = Charges::default();
    let layer =
        WebhookLayer::new(MemoryStore::new(), "charges", EventId::header(http::HeaderName::from_static("webhook-id")));
    let served = Served::serve(charges.router().layer(layer)).await;
    executes_only_whole_requests(&served, &charges).await;
}
