//! Response bodies that stop in the middle. The longest pause counts from the head, and only while
//! somebody waits.

use std::time::Duration;

use steadfast::{Client, ErrorKind, ResponseExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

const PAUSE: Duration = Duration::from_millis(150);
const LONGER: Duration = Duration::from_millis(400);

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 6\r\n\r\n";

/// Accepts one connection, and reads a request.
async fn accept(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut received = Vec::new();
    while !received.windows(4).any(|end| end == b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0);
    }
    stream
}

/// Starts a server that answers each request with `first`, and with `then` after a signal. Without
/// one the connection stays silent.
async fn server(first: String, then: &'static str) -> (String, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (go_on, told) = oneshot::channel();
    tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        stream.write_all(first.as_bytes()).await.unwrap();
        if told.await.is_ok() {
            stream.write_all(then.as_bytes()).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    (url, go_on)
}

/// Lets real time pass: the pause is the subject.
async fn pass(time: Duration) {
    assert!(tokio::time::timeout(time, std::future::pending::<()>()).await.is_err());
}

fn client() -> Client {
    Client::builder().read_timeout(PAUSE).build().unwrap()
}

#[tokio::test]
async fn silent_body_after_send_is_a_timeout() {
    let (url, _silent) = server(format!("{HEAD}abc"), "").await;
    let response = client().get(url).send().await.unwrap();
    let error = response.text().await.unwrap_err();
    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    let lines: Vec<_> = causes.map(ToString::to_string).collect();
    assert!(error.is_timeout(), "{error:?}");
    assert!(lines.iter().any(|line| line.contains("no byte of the response body for 150 ms")), "{lines:?}");
}

#[tokio::test]
async fn request_can_turn_off_read_timeout() {
    let (url, go_on) = server(format!("{HEAD}abc"), "def").await;
    let response = client().get(url).read_timeout(None).send().await.unwrap();
    let (text, ()) = tokio::join!(response.text(), async {
        pass(LONGER).await;
        go_on.send(()).unwrap();
    });
    assert_eq!(text.unwrap(), "abcdef");
}

#[tokio::test]
async fn dripping_body_outlasts_read_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let serving = async {
        let mut stream = accept(&listener).await;
        stream.write_all(HEAD.as_bytes()).await.unwrap();
        for part in ["a", "b", "c", "d", "e", "f"] {
            pass(PAUSE / 2).await;
            stream.write_all(part.as_bytes()).await.unwrap();
        }
        stream
    };
    let reading = async { client().get(url).send().await.unwrap().text().await };
    let (text, _open) = tokio::join!(reading, serving);
    assert_eq!(text.unwrap(), "abcdef");
}

/// A caller that reads slowly is no silent server.
#[tokio::test]
async fn pause_of_caller_does_not_count() {
    let (url, go_on) = server(format!("{HEAD}abc"), "def").await;
    let mut response = client().get(url).send().await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "abc");
    pass(LONGER).await;
    go_on.send(()).unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "def");
}

#[tokio::test]
async fn wait_for_head_has_no_read_timeout() {
    let (url, go_on) = server(String::new(), "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc").await;
    let polling = async { client().get(url).attempt_timeout(None).send().await.unwrap().text().await };
    let (text, ()) = tokio::join!(polling, async {
        pass(LONGER).await;
        go_on.send(()).unwrap();
    });
    assert_eq!(text.unwrap(), "abc");
}

#[tokio::test]
async fn upgraded_connection_has_no_read_timeout() {
    let (url, go_on) = server(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".to_owned(),
        "hello",
    )
    .await;
    let request = client().get(url).header("connection", "upgrade").header("upgrade", "websocket");
    let mut upgraded = request.send().await.unwrap().upgrade().await.unwrap();
    let mut word = [0; 5];
    let (read, ()) = tokio::join!(upgraded.read_exact(&mut word), async {
        pass(LONGER).await;
        go_on.send(()).unwrap();
    });
    assert_eq!((read.unwrap(), &word), (5, b"hello"));
}

#[tokio::test]
async fn body_read_by_fetch_has_read_timeout_too() {
    let (url, _silent) = server(format!("{HEAD}\"abc"), "").await;
    let client = Client::builder().retry(steadfast::policy::RetryPolicy::never());
    let client = client.read_timeout(PAUSE).build().unwrap();
    let error = client.get(url).fetch::<String>().await.unwrap_err();
    assert_eq!((error.kind(), error.status().map(|status| status.as_u16())), (ErrorKind::Timeout, Some(200)));
    assert!(error.elapsed() < Duration::from_secs(5), "{error}");
    let line = error.to_string();
    assert!(line.contains("cut short: the read_timeout has passed after 1 attempt"), "{line}");
}

#[tokio::test]
async fn guarded_response_keeps_its_address_and_report() {
    let (url, go_on) = server(format!("{HEAD}abc"), "def").await;
    let response = client().get(&url).send().await.unwrap();
    assert_eq!((response.url().as_str(), response.attempts().len(), response.content_length()), (&*url, 1, Some(6)));
    assert!(response.remote_addr().is_some());
    go_on.send(()).unwrap();
    assert_eq!(response.text().await.unwrap(), "abcdef");
}
