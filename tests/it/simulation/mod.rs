//! The simulation reproduces published results, and the claims of steadfast's documentation.
//!
//! Runs are deterministic for a seed. Where the published number is a mean of many runs, so is
//! ours. Where ours differs for a known reason, the assertion gives the reason.

mod instrument;
mod mechanisms;
mod own;
mod published;

use steadfast::policy::RetryPolicy;

/// Three retries, as in most published simulations.
fn three_retries() -> RetryPolicy {
    RetryPolicy::new().max_attempts(4)
}

#[track_caller]
fn assert_near(what: &str, found: f64, published: f64, tolerance: f64) {
    let off = (found / published - 1.0).abs();
    assert!(off <= tolerance, "{what}: {found}, published {published}, {:.1} % off", off * 100.0);
}
