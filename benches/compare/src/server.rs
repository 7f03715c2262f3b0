//! A server that costs as little as possible, in a process of its own, so that only the client is
//! measured.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const CHARGE: &str = r#"{"id":"ch_1f0c33a2b4","amount":1200,"currency":"eur","paid":true,"customer":"cus_9s6XKzkNRiz8i3","receipt":"https://pay.example.com/receipts/ch_1f0c33a2b4","description":"two tickets, the front row."}"#;
const _: () = assert!(CHARGE.len() == 200);
const UNAVAILABLE: &str = r#"{"title":"service unavailable"}"#;

/// Serves until it is killed. The first line of its output has its ports, as in
/// [`Ports`](crate::wire::Ports), and the file of its certificate. The first port listens on every
/// address of 127.0.0.0/8, and each is another origin.
pub fn serve() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let (tls, file) = certified()?;
        let clear = TcpListener::bind("0.0.0.0:0").await?;
        let clear2 = TcpListener::bind("127.0.0.1:0").await?;
        let tls1 = TcpListener::bind("127.0.0.1:0").await?;
        let tls2 = TcpListener::bind("127.0.0.1:0").await?;
        for listener in [&clear, &clear2, &tls1, &tls2] {
            print!("{} ", listener.local_addr()?.port());
        }
        println!("{}", file.path().display());
        let held = Rc::new(Cell::new(0));
        let (first, second) = (tls(b"http/1.1"), tls(b"h2"));
        loop {
            tokio::select! {
                accepted = clear.accept() => {
                    let (stream, held) = (accepted?.0, held.clone());
                    tokio::task::spawn_local(async move {
                        stream.set_nodelay(true)?;
                        converse(stream, held).await
                    });
                }
                accepted = clear2.accept() => {
                    let stream = accepted?.0;
                    stream.set_nodelay(true)?;
                    tokio::spawn(serve_h2(stream));
                }
                accepted = tls1.accept() => {
                    let (stream, tls, held) = (accepted?.0, first.clone(), held.clone());
                    tokio::task::spawn_local(async move { converse(accept(tls, stream).await?, held).await });
                }
                accepted = tls2.accept() => {
                    let (stream, tls) = (accepted?.0, second.clone());
                    tokio::spawn(async move {
                        serve_h2(accept(tls, stream).await?).await;
                        Ok::<_, std::io::Error>(())
                    });
                }
            }
        }
    })
}

async fn accept(tls: TlsAcceptor, stream: TcpStream) -> std::io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    tls.accept(stream).await
}

/// Makes a certificate for `localhost`. Returns what accepts connections with a protocol, and the file
/// of the certificate.
fn certified() -> std::io::Result<(impl Fn(&[u8]) -> TlsAcceptor, tempfile::NamedTempFile)> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(std::io::Error::other)?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), made.cert.pem())?;
    let accept = move |protocol: &[u8]| {
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    };
    Ok((accept, file))
}

/// Serves one connection of HTTP/2.
async fn serve_h2(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let seen = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let service = service_fn(move |request: http::Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let is_flaky = request.uri().path() == "/v1/flaky";
            let _read = request.into_body().collect().await;
            let number = seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            let (status, body) = match is_flaky && number % 3 != 0 {
                true => (StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE),
                false => (StatusCode::OK, CHARGE),
            };
            let response = Response::builder().status(status).header("content-type", "application/json");
            Ok::<_, Infallible>(response.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap())
        }
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    // The client ends its connection as it likes.
    let _ended = server.serve_connection(TokioIo::new(stream), service).await;
}

/// Serves one connection until the client closes it.
async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, held: Rc<Cell<usize>>) -> std::io::Result<()> {
    let (mut buffer, mut length, mut seen) = (vec![0; 16 * 1024], 0, 0_usize);
    loop {
        let (path, whole) = loop {
            if let Some((path, whole)) = request(&buffer[..length]).filter(|(_, whole)| *whole <= length) {
                break (path, whole);
            }
            match stream.read(&mut buffer[length..]).await? {
                0 => return Ok(()),
                read => length += read,
            }
        };
        buffer.copy_within(whole..length, 0);
        length -= whole;
        seen += 1;
        let answer = match path {
            Path::Flaky if seen % 3 != 0 => answer("503 Service Unavailable", UNAVAILABLE),
            Path::Held => answer("200 OK", &held.get().to_string()),
            Path::Hold => {
                held.set(held.get() + 1);
                continue;
            }
            _ => answer("200 OK", CHARGE),
        };
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
    }
}

enum Path {
    Charges,
    /// Sends 503, 503, 200, and starts again.
    Flaky,
    /// Sends no response.
    Hold,
    /// Sends the number of held requests.
    Held,
}

/// Returns the requested path and the length of the whole request, once its head is complete.
fn request(bytes: &[u8]) -> Option<(Path, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(bytes).ok()? else { return None };
    let path = match request.path? {
        "/v1/flaky" => Path::Flaky,
        "/v1/hold" => Path::Hold,
        "/v1/held" => Path::Held,
        _ => Path::Charges,
    };
    let length = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let body = length.and_then(|length| std::str::from_utf8(length.value).ok()?.parse::<usize>().ok());
    Some((path, head + body.unwrap_or(0)))
}

fn answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
}
