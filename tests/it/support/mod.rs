//! Helpers that the tests share.

pub(crate) mod clock;

use steadfast::{Client, ClientBuilder, KeyPolicy};
use steadfast_testing::{FaultServer, fast_retries};

/// A client of this server that trusts its keys and does not wait between attempts.
pub(crate) fn trusting(server: &FaultServer) -> ClientBuilder {
    Client::builder().base_url(server.url("")).retry(fast_retries()).keys(KeyPolicy::standard())
}

/// A client of this server with the defaults, except that it does not wait between attempts.
pub(crate) fn doubting(server: &FaultServer) -> ClientBuilder {
    Client::builder().base_url(server.url("")).retry(fast_retries())
}
