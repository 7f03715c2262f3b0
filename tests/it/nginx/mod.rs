//! A real nginx that retires its connections: no healthy call fails because of it, and none is
//! executed twice.
//!
//! nginx retires an HTTP/2 connection by a `GOAWAY` after `keepalive_requests` (1,000 by default).
//! A reload retires all connections. Requests that are under way at that moment are not processed.
//! Without free repeats, 0.2 to 26 % of such calls failed with "retry budget exhausted", depending
//! on the number in flight.

mod haproxy;
mod measured;
mod server;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::any;
use steadfast::policy::RetryBudget;
use steadfast::server::{IdempotencyLayer, MemoryStore, Scope};
use steadfast::{Client, ClientBuilder, Error, KeyPolicy};
use steadfast_testing::fast_retries;
use tokio::task::JoinSet;

use self::server::{Executions, Nginx, Protocol};

const CALLS: usize = 3_000;
/// Below the 128 streams that nginx takes at a time. A request that waits for a stream may be lost
/// with the connection.
const IN_FLIGHT: usize = 50;
/// Calls between two reloads.
const RELOAD: usize = 500;

/// A service that executes every request.
fn service() -> (Router, Executions) {
    let executions = Executions::default();
    (Router::new().fallback(any(execute)).with_state(executions.clone()), executions)
}

async fn execute(State(executions): State<Executions>, body: String) -> &'static str {
    *executions.lock().unwrap().entry(body).or_default() += 1;
    "{}"
}

fn client(nginx: &Nginx, protocol: Protocol) -> ClientBuilder {
    let authority = nginx.authority();
    // Keeps the wait short for a request that hyper-util strands (see below).
    let client = Client::builder().base_url(nginx.url()).attempt_timeout(Duration::from_secs(3));
    client.http(move |http| match authority {
        Some(authority) => http.tls_certs_only([authority]),
        None if protocol == Protocol::Http2 => http.http2_prior_knowledge(),
        None => http,
    })
}

/// A budget for fewer requests than a retired connection holds.
fn five_retries() -> RetryBudget {
    RetryBudget::standard().capacity(70)
}

/// Sends POSTs with distinct bodies, and returns those that failed. Calls `before_each` with the
/// number of each.
async fn post(client: &Client, in_flight: usize, before_each: impl Fn(usize)) -> Vec<(String, Error)> {
    let failed = Arc::new(Mutex::new(Vec::new()));
    let mut calls = JoinSet::new();
    for number in 0..CALLS {
        if calls.len() == in_flight {
            calls.join_next().await.unwrap().unwrap();
        }
        before_each(number);
        let (client, failed) = (client.clone(), failed.clone());
        calls.spawn(async move {
            let body = number.to_string();
            if let Err(error) = client.post("/charges").body(body.clone()).send().await {
                failed.lock().unwrap().push((body, error));
            }
        });
    }
    calls.join_all().await;
    Arc::into_inner(failed).unwrap().into_inner().unwrap()
}

fn reloading(nginx: &Nginx) -> impl Fn(usize) {
    move |number| {
        if number % RELOAD == RELOAD - 1 {
            nginx.reload();
        }
    }
}

/// Asserts that no call failed, except for those that hyper-util has stranded. About one retired
/// connection in a thousand leaves requests on no connection until they time out; plain reqwest has
/// the same fault. None is executed twice, and no executed call is reported as not processed.
fn assert_none_was_refused(failed: &[(String, Error)], executions: &Executions, name: &str) {
    let executions = executions.lock().unwrap();
    assert!(executions.values().all(|count| *count == 1), "{name}: {:?} executions", executions.values().max());
    assert!(executions.len() + failed.len() >= CALLS, "{name}: {} executed, {} failed", executions.len(), failed.len());
    for (body, error) in failed {
        assert!(error.is_timeout() && error.may_have_been_processed(), "{name}: {body}: {error:#}");
    }
    assert!(failed.len() <= IN_FLIGHT, "{name}: {} calls stalled", failed.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_off_by_nginx_fail_no_call() {
    // Few connections over HTTP/1.1, so that each serves a thousand requests.
    for (protocol, in_flight) in [(Protocol::Http1, 2), (Protocol::Http2, IN_FLIGHT), (Protocol::Http2Tls, IN_FLIGHT)] {
        let (service, executions) = service();
        let nginx = Nginx::start(protocol, service).await;
        let client = client(&nginx, protocol).keys(KeyPolicy::off()).budget(five_retries()).build().unwrap();
        let failed = post(&client, in_flight, |_| {}).await;
        assert_none_was_refused(&failed, &executions, &format!("{protocol:?}"));
        assert!(nginx.connections() >= CALLS / 1_000, "{protocol:?}: {} connections", nginx.connections());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_of_nginx_fail_no_call_over_http2() {
    for protocol in [Protocol::Http2, Protocol::Http2Tls] {
        let (service, executions) = service();
        let nginx = Nginx::start(protocol, service).await;
        let client = client(&nginx, protocol).keys(KeyPolicy::off()).budget(five_retries()).build().unwrap();
        let failed = post(&client, IN_FLIGHT, reloading(&nginx)).await;
        assert_none_was_refused(&failed, &executions, &format!("{protocol:?}"));
        assert!(nginx.retired() > 2, "{protocol:?}: {} workers have retired", nginx.retired());
    }
}

/// HTTP/1.1 cannot announce the end of a connection, so a request that meets the close may have
/// been processed. Without a key the client reports that and does not retry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_of_nginx_double_no_call_over_http1() {
    let (service, executions) = service();
    let nginx = Nginx::start(Protocol::Http1, service).await;
    let client = client(&nginx, Protocol::Http1).keys(KeyPolicy::off()).build().unwrap();
    let failed = post(&client, IN_FLIGHT, reloading(&nginx)).await;
    let executions = executions.lock().unwrap();
    assert!(executions.values().all(|count| *count == 1), "{:?} executions", executions.values().max());
    for (body, error) in &failed {
        assert!(error.may_have_been_processed() || !executions.contains_key(body), "{body}: {error:#}");
    }
    assert!(executions.len() + failed.len() >= CALLS, "{} executed, {} failed", executions.len(), failed.len());
    assert!(nginx.retired() > 2, "{} workers have retired", nginx.retired());
}

/// With a key and a service that honours it, nothing fails: ambiguous attempts are retried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_of_nginx_fail_no_call_under_a_key() {
    for protocol in [Protocol::Http1, Protocol::Http2, Protocol::Http2Tls] {
        let (service, executions) = service();
        let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
        let nginx = Nginx::start(protocol, service.layer(layer)).await;
        // Over HTTP/1.1 each lost response costs a retry, and their number at one time is random.
        let client = client(&nginx, protocol).keys(KeyPolicy::standard()).budget(RetryBudget::unlimited());
        let client = client.retry(fast_retries().max_attempts(10)).build().unwrap();
        let failed = post(&client, IN_FLIGHT, reloading(&nginx)).await;
        assert!(failed.is_empty(), "{protocol:?}: {} of {CALLS}, {:#}", failed.len(), failed[0].1);
        let executions = executions.lock().unwrap();
        assert_eq!((executions.len(), executions.values().max()), (CALLS, Some(&1)), "{protocol:?}");
        assert!(nginx.retired() > 2, "{protocol:?}: {} workers have retired", nginx.retired());
    }
}
