//! What passes through the service unchanged: trailers, streams, upgrades.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::{get, post};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;

/// Starts a server that speaks HTTP/1.1 and HTTP/2. Returns its URL.
async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

fn trailers(checksum: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("checksum"), HeaderValue::from_static(checksum))])
}

/// Responds with the trailer of the request, as a trailer.
async fn echo(request: Request<Body>) -> http::Response<Body> {
    let collected = request.into_body().collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    // A stream without a length, which HTTP/1.1 sends in chunks.
    let frames = [Frame::data(collected.to_bytes()), Frame::trailers(trailers)];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, std::convert::Infallible>)));
    http::Response::builder().header("trailer", "checksum").body(Body::new(body)).unwrap()
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let url = serve(Router::new().route("/echo", post(echo))).await;
    for (service, protocol) in both(Client::builder).into_iter().zip(["HTTP/1.1", "HTTP/2"]) {
        for length_is_known in [true, false] {
            let frames = [Frame::data(Bytes::from("12 EUR")), Frame::trailers(trailers("a1b2"))];
            let stream = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, std::convert::Infallible>)));
            let request = Request::post(format!("{url}/echo")).header("te", "trailers").header("trailer", "checksum");
            let response = if length_is_known {
                let body = Full::<Bytes>::from("12 EUR").with_trailers(async { Some(Ok(trailers("a1b2"))) });
                service.clone().oneshot(request.body(body).unwrap()).await.unwrap()
            } else {
                service.clone().oneshot(request.body(stream).unwrap()).await.unwrap()
            };
            let collected = response.into_body().collect().await.unwrap();
            // Over HTTP/1.1 a body with a length has no trailers (RFC 9112 §7.1.2).
            let passes = protocol == "HTTP/2" || !length_is_known;
            let expected = passes.then(|| trailers("a1b2"));
            let seen = collected.trailers().filter(|trailers| !trailers.is_empty());
            assert_eq!(seen, expected.as_ref(), "{protocol}, length known: {length_is_known}");
            assert_eq!(collected.to_bytes(), "12 EUR");
        }
    }
}

type Chunks = std::sync::Arc<std::sync::Mutex<Option<mpsc::Receiver<Bytes>>>>;

async fn watch(State(chunks): State<Chunks>) -> Body {
    let mut chunks = chunks.lock().unwrap().take().expect("one watch");
    let stream =
        futures_util::stream::poll_fn(move |cx| chunks.poll_recv(cx).map(|chunk| chunk.map(Ok::<_, BoxError>)));
    Body::from_stream(stream)
}

#[tokio::test]
async fn watch_gets_each_event_when_it_comes() {
    for http2 in [false, true] {
        let (events, chunks) = mpsc::channel(1);
        let shared = Chunks::new(std::sync::Mutex::new(Some(chunks)));
        let url = serve(Router::new().route("/watch", get(watch)).with_state(shared)).await;
        let service = both(|| Client::builder().timeout(Duration::from_millis(400)))[usize::from(http2)].clone();
        let request = Request::get(format!("{url}/watch")).body(String::new()).unwrap();
        let mut body = service.oneshot(request).await.unwrap().into_body();
        for (event, pause) in [("added", 0), ("modified", 500), ("deleted", 0)] {
            // Longer than every limit of the operation, which has ended.
            let silence = tokio::time::timeout(Duration::from_millis(pause), body.frame()).await;
            assert!(silence.is_err(), "nothing was sent yet");
            events.send(Bytes::from(event)).await.unwrap();
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), event);
        }
        drop(events);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "");
    }
}

#[tokio::test]
async fn read_timeout_of_yours_ends_a_silent_watch() {
    let (_events, chunks) = mpsc::channel(1);
    let shared = Chunks::new(std::sync::Mutex::new(Some(chunks)));
    let url = serve(Router::new().route("/watch", get(watch)).with_state(shared)).await;
    let service = Client::builder().read_timeout(Duration::from_millis(50)).build().unwrap().into_service();
    let request = Request::get(format!("{url}/watch")).body(String::new()).unwrap();
    let error = service.oneshot(request).await.unwrap().into_body().collect().await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
}

#[tokio::test]
async fn upgraded_connection_is_handed_over() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/exec", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut head).await.unwrap(), 0);
        }
        let switching = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: shout\r\n\r\n";
        stream.write_all(switching.as_bytes()).await.unwrap();
        let mut word = [0; 5];
        stream.read_exact(&mut word).await.unwrap();
        stream.write_all(&word.to_ascii_uppercase()).await.unwrap();
        String::from_utf8(head).unwrap()
    });
    let request = Request::get(&url).header("connection", "Upgrade").header("upgrade", "shout");
    let response = Client::new().into_service().oneshot(request.body(String::new()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.extensions().get::<OperationReport>().map(|report| report.attempts().len()), Some(1));
    let mut upgraded = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    upgraded.write_all(b"hello").await.unwrap();
    let mut word = [0; 5];
    upgraded.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"HELLO");
    let head = serving.await.unwrap().to_lowercase();
    assert!(head.contains("\r\nupgrade: shout\r\n") && head.contains("\r\nconnection: upgrade\r\n"), "{head}");
}
