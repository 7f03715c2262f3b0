//! The decision core of `steadfast`: whether to repeat a request, and when.
//!
//! A retry loop is easy to write and hard to get right: the part that must be right is the answer to "may this request be
//! sent again?". This module is that answer as plain values. It does no I/O, reads no clock and draws no random number; it is
//! told what happened ([`Class`]), what the server asked for ([`Hint`]), what time it is and a number between 0 and 1, and it
//! answers with a [`Decision`]. Every driver — the client of this crate, a test, a simulation, your own loop around another
//! transport — shares it:
//!
//! ```
//! use std::time::{Duration, Instant};
//! use steadfast_core::{Class, Decision, Hint, Idempotency, Operation, RetryBudget, RetryPolicy, StopReason};
//!
//! let policy = RetryPolicy::new().max_attempts(3);
//! let budget = RetryBudget::standard();
//! let now = Instant::now();
//!
//! // A POST without a key: a refused connection may be repeated, a lost answer may not.
//! let mut operation = Operation::start(&policy, &budget, Idempotency::Absent, now);
//! operation.begin_attempt();
//! let decision = operation.decide(Class::NotProcessed, &Hint::default(), now, 1.0);
//! assert_eq!(decision, Decision::Retry { after: Duration::from_millis(100) });
//!
//! operation.begin_attempt();
//! let decision = operation.decide(Class::Ambiguous, &Hint::default(), now, 1.0);
//! assert_eq!(decision, Decision::Stop(StopReason::NotRepeatable));
//! ```

// The decision modules import `std` and `http` alone, read no clock and draw no random number
// (`./scripts/test.sh invariants`). The tests stand in each file; properties over all of them are in
// `tests/it/properties.rs`, and published sequences of other clients in `tests/it/cases/`.

mod backoff;
mod breaker;
mod budget;
mod class;
#[cfg(feature = "clock")]
#[doc(hidden)]
pub mod clock;
mod cooldown;
mod date;
#[cfg(feature = "clock")]
pub mod deadline;
mod hedge;
mod hint;
#[cfg(feature = "key")]
pub mod key;
#[cfg(feature = "latency")]
#[doc(hidden)]
pub mod latency;
pub mod protocol;
mod retry;
mod settings;

pub use backoff::{Backoff, Jitter};
pub use breaker::{Breaker, BreakerPolicy, BreakerState, CircuitOpen, Permit};
pub use budget::RetryBudget;
pub use class::{Class, Failure, Idempotency, Outcome};
pub use hedge::HedgePolicy;
pub use hint::{Hint, parse_retry_hint};
pub use retry::{Decision, Operation, StopReason};
pub use settings::{InvalidPolicy, RetryPolicy};

// For the client, the server layer and the simulation. No promise is made of them.
#[doc(hidden)]
pub use cooldown::{Cooling, Leave, asked_for as cooldown_asked_for};
#[doc(hidden)]
pub use hedge::{HedgeAllowance, HedgeAt};
#[doc(hidden)]
pub use hint::{RecordStatus, record_status};

/// An instant comes from nowhere else, and its value does not matter.
#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "for tests, which look at differences only")]
fn now_in_a_test() -> std::time::Instant {
    std::time::Instant::now()
}
