//! Instruments for tests.

mod drive;
pub mod idempotency;
mod received;
mod script;
mod server;
#[cfg(feature = "server")]
mod store_contract;

pub use drive::Drive;
pub use received::{Received, Witness, assert_attempts, assert_one_key, keys};
pub use script::{Route, Script, any, get, post};
pub use server::{Act, Answer, FaultServer, Phase, Report, StreamError, Tally};
#[cfg(feature = "server")]
pub use store_contract::store_contract;
pub use wiremock::{self, MockServer};

use std::time::Duration;

use crate::policy::{Backoff, RetryPolicy};

/// The default policy, except that it does not wait: for tests in which time is not what is tested.
///
/// A `Retry-After` of the server is waited for all the same; script one of 0 seconds.
#[must_use]
pub fn fast_retries() -> RetryPolicy {
    RetryPolicy::new().backoff(Backoff::fixed(Duration::ZERO))
}
