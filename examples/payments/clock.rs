//! The only file of the example that reads a clock or waits.
#![allow(
    clippy::disallowed_methods,
    reason = "the one place: a stalled server and a naive loop have to wait for something"
)]

use std::time::{Duration, Instant};

pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}
