//! steadfast as a middleware of reqwest-middleware, over real sockets: what is known through it,
//! and what other layers above and below see and do.

mod below;
mod errors;
mod extensions;
mod keys;
mod neighbour;
mod nested;
mod retry_above;
mod signed;
mod transport;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use http::Extensions;
use reqwest::redirect::Policy;
use reqwest::{Request, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use reqwest_retry::policies::ExponentialBackoff;
use reqwest_retry::{Jitter, RetryTransientMiddleware};
use steadfast::{Client, KeyPolicy};
use steadfast_reqwest_middleware::Steadfast;
use steadfast_testing::{FaultServer, FaultStep, fast_retries};

/// A client that trusts the keys of every API and does not wait between attempts.
fn trusting() -> Client {
    Client::builder().retry(fast_retries()).keys(KeyPolicy::standard()).build().unwrap()
}

/// A client with the defaults, except that it does not wait between attempts.
fn doubting() -> Client {
    Client::builder().retry(fast_retries()).build().unwrap()
}

/// A reqwest client, as its users make it.
fn plain() -> reqwest::Client {
    reqwest::Client::new()
}

/// A reqwest client that follows no redirects.
fn unredirected() -> reqwest::Client {
    reqwest::Client::builder().redirect(Policy::none()).build().unwrap()
}

/// A client whose only middleware is ours.
fn over(steadfast: Steadfast) -> ClientWithMiddleware {
    ClientBuilder::new(plain()).with(steadfast).build()
}

/// A client of which everything is known.
fn exact(client: Client) -> ClientWithMiddleware {
    let steadfast = Steadfast::new(client).innermost().assume_no_redirects();
    ClientBuilder::new(unredirected()).with(steadfast).build()
}

/// reqwest-retry, with this many retries and waits of a millisecond.
fn retry_layer(retries: u32) -> impl Middleware {
    let millisecond = std::time::Duration::from_millis(1);
    let policy = ExponentialBackoff::builder().retry_bounds(millisecond, millisecond).jitter(Jitter::None);
    RetryTransientMiddleware::new_with_policy(policy.build_with_max_retries(retries))
}

/// A server whose port refuses connections.
async fn refusing() -> FaultServer {
    let server = FaultServer::play([FaultStep::ok()]).await;
    server.refuse_connections().await;
    server
}

/// Counts the calls that go through it.
#[derive(Clone, Default)]
struct Counter(Arc<AtomicUsize>);

impl Counter {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Middleware for Counter {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        self.0.fetch_add(1, Ordering::Relaxed);
        next.run(request, extensions).await
    }
}
