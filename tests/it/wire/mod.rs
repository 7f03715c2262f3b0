//! How far every request got, and whether the client knows it. One table of situations covers
//! HTTP/1.1 and HTTP/2, with and without TLS. Each situation is staged on a real socket and judged
//! by what the server received.

mod cut;
mod doors;
mod head;
mod health;
mod http1;
mod http2;
mod large_heads;
mod matrix;
mod peer;
mod pool;
mod refusals;
mod resources;
mod slow;
mod tls;

pub(crate) use self::peer::Full;
pub(crate) use self::tls::Identity;
