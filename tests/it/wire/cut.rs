//! HTTP/2 responses that are cut in the middle of their body, for every way of reading a body. Half
//! of `1200` must not decode to 12.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use steadfast::policy::{Class, Failure, RetryPolicy};
use steadfast::reqwest::Response;
use steadfast::{Client, ClientBuilder, KeyPolicy};
use steadfast_testing::fast_retries;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::http2::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, content_length, frame, read, send,
    status_line,
};

/// With a decompression feature of reqwest, the end of a body without a length cannot be seen.
const SEES_END: bool = !cfg!(any(feature = "gzip", feature = "brotli", feature = "zstd"));

/// The frames of one response on this stream, and whether the connection closes behind them.
type Answer = fn(u32) -> (Vec<Vec<u8>>, Then);

#[derive(PartialEq)]
enum Then {
    GoOn,
    Close,
}

/// A server that sends one response after the other; the last one repeats.
struct Server {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(answers: &[Answer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<AtomicUsize>::default();
        let (shared, answers) = (requests.clone(), answers.to_vec());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (requests, answers) = (shared.clone(), answers.clone());
                connections.spawn(async move { serve(stream, &requests, &answers).await });
            }
        });
        Self { address, requests, task }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, requests: &AtomicUsize, answers: &[Answer]) -> io::Result<()> {
    stream.read_exact(&mut [0; 24]).await?;
    send(&mut stream, SETTINGS, 0, 0, &[]).await?;
    loop {
        let arrived = read(&mut stream).await?;
        match arrived.kind {
            SETTINGS if arrived.flags & ACK == 0 => send(&mut stream, SETTINGS, ACK, 0, &[]).await?,
            HEADERS | DATA if arrived.flags & END_STREAM != 0 => {
                let turn = requests.fetch_add(1, Ordering::SeqCst);
                let (frames, then) = answers[turn.min(answers.len() - 1)](arrived.stream);
                stream.write_all(&frames.concat()).await?;
                if then == Then::Close {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
}

fn client() -> ClientBuilder {
    Client::builder().keys(KeyPolicy::off()).retry(RetryPolicy::never()).http(|http| http.http2_prior_knowledge())
}

/// Reads the body in every way, and returns the results.
async fn read_in_every_way(url: &str) -> Vec<(&'static str, Option<String>)> {
    let client = client().build().unwrap();
    let answered = async || client.get(url).send().await.unwrap();
    vec![
        ("fetch", client.get(url).fetch::<u64>().await.ok().map(|number| number.to_string())),
        ("get_json", client.get_json::<u64>(url).await.ok().map(|number| number.to_string())),
        ("send, text", answered().await.text().await.ok()),
        ("send, bytes", answered().await.bytes().await.ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())),
        ("send, json", answered().await.json::<u64>().await.ok().map(|number| number.to_string())),
        ("send, chunk", chunks(answered().await).await),
        ("send, bytes_stream", stream(answered().await).await),
    ]
}

async fn chunks(mut response: Response) -> Option<String> {
    let mut text = String::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        text += &String::from_utf8_lossy(&chunk);
    }
    Some(text)
}
async fn stream(response: Response) -> Option<String> {
    use futures_util::StreamExt;

    let mut text = String::new();
    let mut chunks = std::pin::pin!(response.bytes_stream());
    while let Some(chunk) = chunks.next().await {
        text += &String::from_utf8_lossy(&chunk.ok()?);
    }
    assert!(chunks.next().await.is_none(), "it stays over");
    Some(text)
}

/// The head of a 200, and the first half of `1200`.
fn begun(stream: u32, length: Option<usize>) -> Vec<Vec<u8>> {
    let head = [status_line(200), length.map(content_length).unwrap_or_default()].concat();
    vec![frame(HEADERS, END_HEADERS, stream, &head), frame(DATA, 0, stream, b"12")]
}

fn cut(stream: u32, length: Option<usize>, by: Vec<u8>, then: Then) -> (Vec<Vec<u8>>, Then) {
    let mut frames = begun(stream, length);
    frames.push(by);
    (frames, then)
}

fn reset(stream: u32, length: Option<usize>, code: u8) -> (Vec<Vec<u8>>, Then) {
    cut(stream, length, frame(RST_STREAM, 0, stream, &[0, 0, 0, code]), Then::GoOn)
}

/// A `GOAWAY` that says that no stream was processed, with NO_ERROR.
fn go_away(stream: u32, length: Option<usize>) -> (Vec<Vec<u8>>, Then) {
    cut(stream, length, frame(GOAWAY, 0, 0, &[0; 8]), Then::Close)
}

#[tokio::test]
async fn cut_responses_fail_however_read() {
    const FOUR: Option<usize> = Some(4);
    let cuts: [(&str, Answer, bool); 9] = [
        ("RST_STREAM NO_ERROR, length", |stream| reset(stream, FOUR, 0), true),
        ("GOAWAY NO_ERROR, length", |stream| go_away(stream, FOUR), true),
        ("RST_STREAM INTERNAL_ERROR, length", |stream| reset(stream, FOUR, 2), true),
        ("RST_STREAM CANCEL, length", |stream| reset(stream, FOUR, 8), true),
        ("RST_STREAM NO_ERROR", |stream| reset(stream, None, 0), SEES_END),
        ("GOAWAY NO_ERROR", |stream| go_away(stream, None), SEES_END),
        ("RST_STREAM INTERNAL_ERROR", |stream| reset(stream, None, 2), true),
        ("RST_STREAM CANCEL", |stream| reset(stream, None, 8), true),
        ("closed", |stream| (begun(stream, None), Then::Close), true),
    ];
    for (name, answer, is_noticed) in cuts {
        let server = Server::start(&[answer]).await;
        for (way, read) in read_in_every_way(&server.url()).await {
            let expected = if is_noticed { None } else { Some("12") };
            assert_eq!(read.as_deref(), expected, "{name}: {way}");
        }
    }
}

#[tokio::test]
async fn whole_responses_are_whole_however_read() {
    let whole: [(&str, Answer); 6] = [
        ("length", |stream| {
            let mut frames = begun(stream, Some(4));
            frames.push(frame(DATA, END_STREAM, stream, b"00"));
            (frames, Then::GoOn)
        }),
        ("no length", |stream| {
            let mut frames = begun(stream, None);
            frames.push(frame(DATA, END_STREAM, stream, b"00"));
            (frames, Then::GoOn)
        }),
        ("an empty last frame", |stream| {
            let mut frames = begun(stream, None);
            frames.extend([frame(DATA, 0, stream, b"00"), frame(DATA, END_STREAM, stream, b"")]);
            (frames, Then::GoOn)
        }),
        ("trailers", |stream| {
            let mut frames = begun(stream, None);
            frames.push(frame(DATA, 0, stream, b"00"));
            // `x: y`, a literal without indexing and with a new name.
            frames.push(frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0, 1, b'x', 1, b'y']));
            (frames, Then::GoOn)
        }),
        // RFC 9113 §8.1: a server that has sent its whole response asks for no more of the request.
        ("RST_STREAM NO_ERROR behind the end", |stream| {
            let mut frames = begun(stream, None);
            frames.extend([frame(DATA, END_STREAM, stream, b"00"), frame(RST_STREAM, 0, stream, &[0; 4])]);
            (frames, Then::GoOn)
        }),
        ("GOAWAY NO_ERROR behind the end", |stream| {
            let mut frames = begun(stream, None);
            let last = [stream.to_be_bytes(), [0; 4]].concat();
            frames.extend([frame(DATA, END_STREAM, stream, b"00"), frame(GOAWAY, 0, 0, &last)]);
            (frames, Then::Close)
        }),
    ];
    for (name, answer) in whole {
        let server = Server::start(&[answer]).await;
        for (way, read) in read_in_every_way(&server.url()).await {
            assert_eq!(read.as_deref(), Some("1200"), "{name}: {way}");
        }
    }
}

/// A response to HEAD, a 204 and a 304 may announce the length of a body that they do not have (RFC
/// 9110 §8.6).
#[tokio::test]
async fn bodiless_responses_with_length_are_whole() {
    let bodiless: [(&str, http::Method, Answer); 3] = [
        ("HEAD", http::Method::HEAD, |stream| empty(stream, 200, 4)),
        ("304", http::Method::GET, |stream| empty(stream, 304, 4)),
        ("empty", http::Method::GET, |stream| empty(stream, 200, 0)),
    ];
    for (name, method, answer) in bodiless {
        let server = Server::start(&[answer]).await;
        let client = client().build().unwrap();
        let response = client.request(method.clone(), server.url()).send().await.unwrap();
        assert_eq!(response.url().as_str(), server.url(), "{name}");
        assert!(response.remote_addr().is_some(), "{name}");
        assert_eq!(response.text().await.unwrap(), "", "{name}");
        if name != "304" {
            client.request(method, server.url()).fetch::<()>().await.unwrap();
        }
    }
}

fn empty(stream: u32, status: u16, length: usize) -> (Vec<Vec<u8>>, Then) {
    let head = [status_line(status), content_length(length)].concat();
    (vec![frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)], Then::GoOn)
}

fn whole(stream: u32) -> (Vec<Vec<u8>>, Then) {
    let mut frames = begun(stream, Some(4));
    frames.push(frame(DATA, END_STREAM, stream, b"00"));
    (frames, Then::GoOn)
}

#[tokio::test]
async fn cut_response_is_retried_with_licence() {
    let answers: [Answer; 2] = [|stream| reset(stream, Some(4), 0), whole];
    let server = Server::start(&answers).await;
    let keyed = client().keys(KeyPolicy::standard()).retry(fast_retries()).build().unwrap();
    assert_eq!(keyed.post(server.url()).body("x").fetch::<u64>().await.unwrap(), 1200);
    assert_eq!(server.requests.load(Ordering::SeqCst), 2);

    let server = Server::start(&answers).await;
    let keyless = client().retry(fast_retries()).build().unwrap();
    let error = keyless.post(server.url()).body("x").fetch::<u64>().await.unwrap_err();
    let last = &error.attempts()[0];
    assert_eq!((last.class(), last.failure()), (Class::Ambiguous, Some(Failure::BodyCut)), "{error:#}");
    assert!(error.may_have_been_processed(), "{error:#}");
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
}

/// The response is taken apart and rebuilt, and must stay the same.
#[tokio::test]
async fn checked_response_keeps_its_parts() {
    let server = Server::start(&[whole]).await;
    let response = client().build().unwrap().get(server.url()).send().await.unwrap();
    assert_eq!((response.version(), response.content_length()), (http::Version::HTTP_2, Some(4)));
    assert_eq!(response.url().as_str(), server.url());
    assert_eq!(response.remote_addr(), Some(server.address));
    assert_eq!(response.headers()["content-length"], "4");
    assert_eq!(response.text().await.unwrap(), "1200");
}

/// `1200`, encoded and cut in the middle. An encoding that marks its end detects the cut.
#[cfg(all(feature = "gzip", feature = "brotli", feature = "zstd"))]
#[tokio::test]
async fn cut_encoded_responses_fail() {
    const GZIP: &[u8] = &[31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 51, 52, 50, 48, 0, 0, 121, 119, 163, 183, 4, 0, 0, 0];
    const BROTLI: &[u8] = &[139, 1, 128, 49, 50, 48, 48, 3];
    const ZSTD: &[u8] = &[40, 181, 47, 253, 4, 88, 33, 0, 0, 49, 50, 48, 48, 3, 246, 65, 231];

    fn encoded(stream: u32, encoding: &str, body: &[u8], is_cut: bool) -> (Vec<Vec<u8>>, Then) {
        // `content-encoding` is number 26 of the static table.
        let mut head = [status_line(200), vec![0x0f, 11, encoding.len() as u8]].concat();
        head.extend_from_slice(encoding.as_bytes());
        let mut frames = vec![frame(HEADERS, END_HEADERS, stream, &head)];
        let (body, end) = if is_cut { (&body[..body.len() - 2], 0) } else { (body, END_STREAM) };
        frames.push(frame(DATA, end, stream, body));
        if is_cut {
            frames.push(frame(RST_STREAM, 0, stream, &[0; 4]));
        }
        (frames, Then::GoOn)
    }

    let answers: [(&str, Answer, Answer); 3] = [
        ("gzip", |stream| encoded(stream, "gzip", GZIP, false), |stream| encoded(stream, "gzip", GZIP, true)),
        ("br", |stream| encoded(stream, "br", BROTLI, false), |stream| encoded(stream, "br", BROTLI, true)),
        ("zstd", |stream| encoded(stream, "zstd", ZSTD, false), |stream| encoded(stream, "zstd", ZSTD, true)),
    ];
    for (name, whole, cut) in answers {
        let server = Server::start(&[whole]).await;
        for (way, read) in read_in_every_way(&server.url()).await {
            assert_eq!(read.as_deref(), Some("1200"), "{name}, whole: {way}");
        }
        let server = Server::start(&[cut]).await;
        for (way, read) in read_in_every_way(&server.url()).await {
            assert_eq!(read, None, "{name}, cut: {way}");
        }
    }
}
