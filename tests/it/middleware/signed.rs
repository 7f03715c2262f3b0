//! Signatures with a nonce, and a server that refuses repeated ones. A middleware below ours signs
//! every attempt; one above signs once for all of them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use aws_lc_rs::hmac;
use http::Extensions;
use reqwest::{Body, Request, Response};
use reqwest_middleware::{ClientBuilder, Middleware, Next};
use steadfast::ResponseExt;
use steadfast_reqwest_middleware::Steadfast;
use steadfast_testing::{FaultPoint, FaultServer, FaultStep, Received, assert_one_key};

use super::{plain, trusting};

fn key() -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, b"a secret that both sides have")
}

fn content(method: &str, target: &str, nonce: &str, body: &[u8]) -> Vec<u8> {
    [method.as_bytes(), target.as_bytes(), nonce.as_bytes(), body].join(&b'\n')
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Signs each request that goes through it, with a nonce of its own.
#[derive(Default)]
struct Signer(AtomicUsize);

#[async_trait]
impl Middleware for Signer {
    async fn handle(
        &self,
        mut request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let nonce = self.0.fetch_add(1, Ordering::Relaxed).to_string();
        let body = request.body().and_then(Body::as_bytes).unwrap_or_default();
        let content = content(request.method().as_str(), request.url().path(), &nonce, body);
        let signature = hex(hmac::sign(&key(), &content).as_ref());
        request.headers_mut().insert("x-nonce", nonce.parse().unwrap());
        request.headers_mut().insert("x-signature", signature.parse().unwrap());
        next.run(request, extensions).await
    }
}

fn is_signed(request: &Received) -> bool {
    let (Some(nonce), Some(signature)) = (request.header("x-nonce"), request.header("x-signature")) else {
        return false;
    };
    let content = content(request.method.as_str(), &request.target, nonce, &request.body);
    let bytes: Option<Vec<u8>> = (0..signature.len())
        .step_by(2)
        .map(|at| signature.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()))
        .collect();
    bytes.is_some_and(|bytes| hmac::verify(&key(), &content, &bytes).is_ok())
}

/// Checks every signature, refuses repeated nonces, and loses the first two responses.
async fn suspicious() -> FaultServer {
    let used = Mutex::new(HashMap::new());
    FaultServer::start(move |turn, request| {
        let Some(request) = request else { return FaultStep::ok() };
        // The script may be asked more than once in a turn.
        let nonce = request.header("x-nonce").unwrap_or_default().to_owned();
        let mut used: MutexGuard<'_, HashMap<String, usize>> = used.lock().unwrap();
        let first_used = *used.entry(nonce).or_insert(turn);
        if !is_signed(request) || first_used != turn {
            return FaultStep::answer(401);
        }
        if turn < 2 { FaultStep::reset(FaultPoint::AfterExecuting) } else { FaultStep::ok() }
    })
    .await
}

#[tokio::test]
async fn signer_below_signs_every_attempt() {
    let server = suspicious().await;
    let client = ClientBuilder::new(plain()).with(Steadfast::new(trusting())).with(Signer::default()).build();
    let response = client.post(server.url("/charges")).body("12 EUR").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len(), server.executions()), (200, 3, 1));
    let received = server.received();
    let nonces: HashSet<_> = received.iter().map(|request| request.header("x-nonce")).collect();
    assert_eq!((nonces.len(), received.iter().all(is_signed)), (3, true));
    assert_one_key(&server).await;
}

#[tokio::test]
async fn signer_above_signs_once() {
    let server = suspicious().await;
    let client = ClientBuilder::new(plain()).with(Signer::default()).with(Steadfast::new(trusting())).build();
    let response = client.post(server.url("/charges")).body("12 EUR").send().await.unwrap();
    // The repeat is refused, so the caller does not get the answer. Nothing is done twice.
    assert_eq!((response.status().as_u16(), response.attempts().len(), server.executions()), (401, 2, 1));
    assert!(response.may_have_been_processed());
}
