//! What the tests share.

pub(crate) mod clock;
pub(crate) mod raw;

use std::time::Duration;

use steadfast::policy::{Backoff, RetryPolicy};
use steadfast::{Client, ClientBuilder, KeyPolicy};

pub(crate) use raw::{Act, Server};

/// A policy whose waits are zero: nothing is waited for where time is not what is tested.
pub(crate) fn fast() -> RetryPolicy {
    RetryPolicy::new().backoff(Backoff::fixed(Duration::ZERO))
}

/// A client of this server that trusts its keys and does not wait.
pub(crate) fn trusting(server: &Server) -> ClientBuilder {
    Client::builder().base_url(server.url("")).retry(fast()).keys(KeyPolicy::standard())
}

/// A client of this server with the defaults, except that it does not wait.
pub(crate) fn doubting(server: &Server) -> ClientBuilder {
    Client::builder().base_url(server.url("")).retry(fast())
}
