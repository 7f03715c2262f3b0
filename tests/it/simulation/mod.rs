//! The simulation reproduces what others have published, and the claims of this crate's own documentation.
//!
//! Runs are deterministic by their seed. Where the published number is a mean of many runs, so is ours; where ours differs for
//! a reason that is known, the reason stands at the assertion.

mod instrument;
mod mechanisms;
mod own;
mod published;

use steadfast::policy::RetryPolicy;

/// Three retries: what most of the published simulations have.
fn three_retries() -> RetryPolicy {
    RetryPolicy::new().max_attempts(4)
}

#[track_caller]
fn assert_near(what: &str, found: f64, published: f64, tolerance: f64) {
    let off = (found / published - 1.0).abs();
    assert!(off <= tolerance, "{what}: {found}, published {published}, {:.1} % off", off * 100.0);
}
