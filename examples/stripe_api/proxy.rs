//! A proxy that breaks the first deliveries of an order, as its metadata say.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::{Books, metadata};

pub(crate) async fn run(listener: TcpListener, api: SocketAddr, books: Books) {
    while let Ok((client, _)) = listener.accept().await {
        let books = books.clone();
        tokio::spawn(async move {
            // A connection that breaks is what this proxy is for.
            let _broken = serve(client, api, &books).await;
        });
    }
}

/// What happens to one delivery.
enum Fault {
    /// The connection breaks before the API gets the request.
    Unsent,
    /// The connection breaks instead of the response.
    Lost,
    /// The connection breaks in the middle of the response.
    Cut,
}

fn fault(request: &[u8], books: &Books) -> Option<Fault> {
    let text = String::from_utf8_lossy(request);
    let (_, body) = text.split_once("\r\n\r\n")?;
    let number = books.delivered(metadata(body, "order")?);
    match metadata(body, "fault")? {
        "unsent" if number == 1 => Some(Fault::Unsent),
        "lost" if number == 1 => Some(Fault::Lost),
        "lost3" if number <= 3 => Some(Fault::Lost),
        "cut" if number == 1 => Some(Fault::Cut),
        _ => None,
    }
}

async fn serve(mut client: TcpStream, api: SocketAddr, books: &Books) -> std::io::Result<()> {
    loop {
        let request = message(&mut client).await?;
        let fault = fault(&request, books);
        if matches!(fault, Some(Fault::Unsent)) {
            return Ok(());
        }
        let mut upstream = TcpStream::connect(api).await?;
        upstream.write_all(&request).await?;
        // The API finishes even if the client gives up meanwhile.
        let response = message(&mut upstream).await?;
        match fault {
            Some(Fault::Cut) => return client.write_all(response.get(..response.len() - 5).unwrap_or_default()).await,
            Some(_) => return Ok(()),
            None => client.write_all(&response).await?,
        }
    }
}

/// Reads one request or response with a `Content-Length`.
async fn message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut read = Vec::new();
    loop {
        if let Some(head) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(read.get(..head).unwrap_or_default()).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            if read.len() >= head + 4 + length.unwrap_or(0) {
                return Ok(read);
            }
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}
