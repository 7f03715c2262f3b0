//! The signature of a request: HMAC-SHA256 over method, path, nonce and body (RFC 2104).

use async_trait::async_trait;
use hmac::{Hmac, Mac};
use reqwest::{Request, Response};
use reqwest_middleware::{Middleware, Next, Result};
use sha2::Sha256;
use steadfast::http::Extensions;
use steadfast_testing::Received;
use uuid::Uuid;

const SECRET: &[u8] = b"shared by both sides";
const NONCE: &str = "x-nonce";
const SIGNATURE: &str = "x-signature";

/// The middleware: a new nonce and its signature, for every request that passes.
pub struct Sign;

#[async_trait]
impl Middleware for Sign {
    async fn handle(&self, mut request: Request, extensions: &mut Extensions, next: Next<'_>) -> Result<Response> {
        let nonce = Uuid::new_v4().to_string();
        let body = request.body().and_then(|body| body.as_bytes()).unwrap_or_default();
        let parts = [request.method().as_str(), request.url().path(), &nonce].map(str::as_bytes);
        let signature = hex(&hmac(&parts, body).finalize().into_bytes());
        request.headers_mut().insert(NONCE, nonce.parse().expect("a UUID is a header value"));
        request.headers_mut().insert(SIGNATURE, signature.parse().expect("hex is a header value"));
        next.run(request, extensions).await
    }
}

/// What the server makes of a signature.
pub enum Verdict {
    Valid { nonce: String },
    Invalid,
}

impl Verdict {
    pub fn of(request: &Received) -> Self {
        let Some((nonce, signature)) = request.header(NONCE).zip(request.header(SIGNATURE)) else {
            return Self::Invalid;
        };
        let parts = [request.method.as_str(), &request.target, nonce].map(str::as_bytes);
        let expected = hex(&hmac(&parts, &request.body).finalize().into_bytes());
        if expected == signature { Self::Valid { nonce: nonce.to_owned() } } else { Self::Invalid }
    }
}

fn hmac(parts: &[&[u8]], body: &[u8]) -> Hmac<Sha256> {
    let mut hmac = Hmac::<Sha256>::new_from_slice(SECRET).expect("HMAC takes a key of any length");
    for part in parts {
        hmac.update(part);
        hmac.update(b"\n");
    }
    hmac.update(body);
    hmac
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
