//! A server that costs as little as possible, in a process of its own, so that only the client is
//! measured.

use std::cell::Cell;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const CHARGE: &str = r#"{"id":"ch_1f0c33a2b4","amount":1200,"currency":"eur","paid":true,"customer":"cus_9s6XKzkNRiz8i3","receipt":"https://pay.example.com/receipts/ch_1f0c33a2b4","description":"two tickets, the front row."}"#;
const _: () = assert!(CHARGE.len() == 200);
const UNAVAILABLE: &str = r#"{"title":"service unavailable"}"#;

/// Serves until it is killed. The first line of its output is its port. It listens on every address
/// of 127.0.0.0/8, and each is another origin.
pub fn serve() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let listener = TcpListener::bind("0.0.0.0:0").await?;
        println!("{}", listener.local_addr()?.port());
        let held = Rc::new(Cell::new(0));
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::task::spawn_local(converse(stream, held.clone()));
        }
    })
}

/// Serves one connection until the client closes it.
async fn converse(mut stream: TcpStream, held: Rc<Cell<usize>>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
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
