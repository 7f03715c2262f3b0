//! The decision to repeat, as plain values without a clock.
//!
//! Use it to configure the client, in tests, or in a loop of your own over another transport. The
//! whole of it is the crate [`steadfast_core`], which needs neither reqwest nor tokio.

#[doc(inline)]
pub use steadfast_core::{
    Backoff, Breaker, BreakerPolicy, BreakerState, CircuitOpen, Class, Decision, Failure, HedgePolicy, Hint,
    Idempotency, InvalidPolicy, Jitter, Operation, Outcome, Permit, RetryBudget, RetryPolicy, StopReason,
    parse_retry_hint,
};
#[doc(hidden)]
pub use steadfast_core::{Cooling, HedgeAllowance, HedgeAt, Leave, RecordStatus, cooldown_asked_for, record_status};
