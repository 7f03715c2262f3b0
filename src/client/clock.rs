//! Time and chance, in one place.
//!
//! The policy is told what time it is and what the dice say; this file is the only one that asks. It reads tokio's clock, so a
//! test that pauses or advances time moves the client with it.

use std::future::Future;
use std::time::{Duration, Instant, SystemTime};

#[allow(clippy::disallowed_methods, reason = "the one place")]
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The wall clock: for HTTP dates and for the age of a key, never for a wait.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub(super) fn wall() -> SystemTime {
    SystemTime::now()
}

/// A number between 0 and 1 for jitter. Not for keys: see `key.rs`.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub(super) fn unit() -> f64 {
    fastrand::f64()
}

/// Waits for `duration`; zero does not touch the timer, whose shortest sleep takes a millisecond.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub(super) async fn sleep(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

/// The time is up.
pub(super) struct TimedOut;

/// `future`, until `deadline` at the latest; `None` means no limit.
pub(super) async fn until<F: Future>(deadline: Option<Instant>, future: F) -> Result<F::Output, TimedOut> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), future).await.map_err(|_| TimedOut),
        None => Ok(future.await),
    }
}

/// The earlier of two deadlines.
pub(super) fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
