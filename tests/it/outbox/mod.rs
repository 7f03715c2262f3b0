//! Durable operations: what the server receives of them, across rounds and across processes.

mod around;
mod crash;
mod ends;
mod engine;
mod file;
mod lockstep;
mod postgres;
mod submit;
mod takeover;

use std::sync::Arc;
use std::time::Duration;

use steadfast::policy::RetryPolicy;
use steadfast::{Client, ClientBuilder, PreparedRequest};
use steadfast_outbox::{MemoryOutbox, Outbox, OutboxBuilder};
use steadfast_testing::FaultServer;

use crate::support::{doubting, trusting};

/// A store that survives its outbox, as a database does.
pub(crate) type Store = Arc<MemoryOutbox>;

/// A client that makes one attempt in each round, and trusts the keys of this server.
pub(crate) fn one_attempt(server: &FaultServer) -> ClientBuilder {
    trusting(server).retry(RetryPolicy::never()).attempt_timeout(Duration::from_millis(400))
}

pub(crate) fn once(server: &FaultServer) -> Client {
    one_attempt(server).build().unwrap()
}

/// A client that makes one attempt in each round, and does not know whether the server honours keys.
pub(crate) fn once_doubting(server: &FaultServer) -> Client {
    let client = doubting(server).retry(RetryPolicy::never()).attempt_timeout(Duration::from_millis(400));
    client.build().unwrap()
}

pub(crate) fn store() -> Store {
    Arc::new(MemoryOutbox::new())
}

/// An outbox with short times.
pub(crate) fn outbox(store: &Store, client: &Client) -> OutboxBuilder<Store> {
    Outbox::open(store.clone(), client.clone())
        .lease(Duration::from_millis(500))
        .settling_time(Duration::from_millis(100))
        .backoff(Duration::from_millis(5), Duration::from_millis(20))
        .poll_interval(Duration::from_millis(20))
}

pub(crate) fn charge(client: &Client) -> PreparedRequest {
    client.post("/charges").body("12 EUR").prepare().unwrap()
}
