//! The decision of a retry loop: whether to repeat a request, and when.
//!
//! A retry loop is easy to write and hard to get right. The part that must be right is the answer
//! to "may this request be sent again?". This crate is that answer, as plain values. It does no
//! I/O, reads no clock and draws no random number.
//!
//! You pass in the outcome of each attempt ([`Class`]), the server's wishes ([`Hint`]), the time,
//! and a number between 0 and 1. You get a [`Decision`]. The client
//! [`steadfast`](https://docs.rs/steadfast), its tests and its simulation share this code. Your own
//! loop over another transport can use it too:
//!
//! ```
//! use std::time::{Duration, Instant};
//! use steadfast_core::{
//!     Class, Decision, Hint, Idempotency, Operation, RetryBudget, RetryPolicy, StopReason, TokenBucket,
//! };
//!
//! let policy = RetryPolicy::new().max_attempts(3);
//! let bucket = TokenBucket::new(RetryBudget::standard());
//! let now = Instant::now();
//!
//! // A POST without a key: a refused connection may be repeated, a lost response may not.
//! let mut operation = Operation::start(&policy, &bucket, Idempotency::Absent, now);
//! operation.begin_attempt();
//! let decision = operation.decide(Class::NotProcessed, &Hint::default(), now, 1.0);
//! assert_eq!(decision, Decision::Retry { after: Duration::from_millis(100) });
//!
//! operation.begin_attempt();
//! let decision = operation.decide(Class::Ambiguous, &Hint::default(), now, 1.0);
//! assert_eq!(decision, Decision::Stop(StopReason::NotRepeatable));
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

// The decision modules import `std` and `http` alone, read no clock and draw no random number
// (`./scripts/test.sh invariants`). The tests stand in each file; properties over all of them are
// in the workspace's `tests/it/properties.rs`, and published sequences of other clients in its
// `tests/it/cases/`.

mod admission;
mod backoff;
mod breaker;
mod budget;
mod check;
mod class;
#[cfg(feature = "clock")]
#[doc(hidden)]
pub mod clock;
mod cooldown;
mod date;
#[cfg(feature = "clock")]
pub mod deadline;
mod decision;
mod field;
mod hedge;
mod hint;
#[cfg(feature = "key")]
pub mod key;
#[cfg(feature = "latency")]
#[doc(hidden)]
pub mod latency;
mod outcome;
pub mod protocol;
mod quota;
mod retry;
mod settings;
mod units;

pub use backoff::{Backoff, CustomSchedule, Jitter, Schedule};
pub use breaker::{Breaker, BreakerPolicy, BreakerState, CircuitOpen, Permit, SlowCalls};
pub use budget::{RetryBudget, TokenBucket};
pub use check::InvalidPolicy;
pub use class::{Class, Failure, Idempotency};
pub use decision::{Decision, StopReason};
pub use hedge::{HedgeAt, HedgePolicy};
pub use hint::{Hint, parse_retry_hint};
pub use outcome::{Classification, Outcome};
pub use retry::Operation;
pub use settings::{RetryPolicy, TimeLimit};

// For the client, the server half and the simulation. They can change in any version.
#[doc(hidden)]
pub use admission::{AdmissionState, AdmissionStep, Denied, Spread};
#[doc(hidden)]
pub use check::check;
#[doc(hidden)]
pub use class::is_safe;
#[doc(hidden)]
pub use cooldown::{CooldownState, cooldown_asked_for};
#[doc(hidden)]
pub use hint::{RecordStatus, record_status};
#[doc(hidden)]
pub use units::{CENTURY, digits, milliseconds};

/// Returns some instant. Its value does not matter.
#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "for tests, which look at differences only")]
fn now_in_a_test() -> std::time::Instant {
    std::time::Instant::now()
}
