//! How far every request got, and whether the client knows it: one table of situations over HTTP/1.1 and HTTP/2, with and
//! without TLS, each staged on a real socket and judged by what the server received.

mod health;
mod http1;
mod http2;
mod matrix;
mod peer;
mod tls;

pub(crate) use tls::Identity;
