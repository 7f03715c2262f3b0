//! Heads over the limits of a server or of the client. What has left by then is counted at the
//! server's handler.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::Path;
use http::{HeaderMap, HeaderName, HeaderValue};
use steadfast::policy::{Class, RetryPolicy};
use steadfast::{Client, KeyPolicy, ResponseExt};

/// A server that counts its executions. It answers `/{bytes}` with a head of so many bytes.
async fn server() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, executions) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = executions.clone();
    let handler = move |Path(bytes): Path<usize>| async move {
        count.fetch_add(1, Ordering::SeqCst);
        headers(bytes)
    };
    let router = axum::Router::new().route("/{bytes}", axum::routing::post(handler));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, executions)
}

/// Headers of this size, none of them longer than 8 KiB.
fn headers(bytes: usize) -> HeaderMap {
    let value = HeaderValue::try_from("x".repeat(8000)).unwrap();
    let number = |number: usize| (HeaderName::try_from(format!("x-{number}")).unwrap(), value.clone());
    (0..bytes / 8000).map(number).collect()
}

/// Sends a POST with heads of these sizes. Returns what the client says, and the executions.
async fn send(is_http2: bool, request: usize, response: usize) -> (String, usize) {
    let (address, executions) = server().await;
    let client = Client::builder().keys(KeyPolicy::off()).retry(RetryPolicy::never());
    let client = if is_http2 { client.http(|http| http.http2_prior_knowledge()) } else { client };
    let url = format!("http://{address}/{response}");
    let sent = client.build().unwrap().post(url).headers(headers(request)).body("x").send().await;
    let said = match sent {
        Ok(response) => format!("{} {:?}", response.status().as_u16(), response.attempts()[0].class()),
        Err(error) => {
            let attempt = &error.attempts()[0];
            assert!(error.may_have_been_processed() || attempt.class() != Class::Ambiguous);
            format!("{:?} {:?}", attempt.failure().unwrap(), attempt.class())
        }
    };
    (said, executions.load(Ordering::SeqCst))
}

/// The limits are those of hyper and h2 on both sides: about 400 KiB over HTTP/1.1, and 16 KiB over
/// HTTP/2. `guide/failures.md` says the same.
#[tokio::test]
async fn head_over_a_limit_has_class_of_its_reach() {
    // The server may close the connection while the client still writes.
    let refused = ["431 Permanent", "Disconnected Ambiguous"];
    for (is_http2, request, response, says, executed) in [
        (false, 100_000, 0, &["200 Success"][..], 1),
        (false, 700_000, 0, &refused, 0),
        (false, 2_000_000, 0, &refused, 0),
        (false, 0, 100_000, &["200 Success"], 1),
        (false, 0, 700_000, &["BadResponse Ambiguous"], 1),
        (true, 12_000, 0, &["200 Success"], 1),
        (true, 24_000, 0, &["431 Permanent"], 0),
        (true, 500_000, 0, &["Refused NotProcessed"], 0),
        (true, 0, 12_000, &["200 Success"], 1),
        (true, 0, 24_000, &["BadResponse Ambiguous"], 1),
        (true, 0, 500_000, &["Disconnected Ambiguous"], 1),
    ] {
        let (said, executions) = send(is_http2, request, response).await;
        let name = format!("HTTP/2 {is_http2}, a request of {request}, a response of {response}");
        assert!(says.contains(&said.as_str()), "{name}: {said}");
        assert_eq!(executions, executed, "{name}: {said}");
    }
}
