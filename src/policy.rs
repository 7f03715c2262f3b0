//! The decision to repeat, as plain values without a clock.
//!
//! Use it to configure the client, in tests, or in a loop of your own over another transport. The
//! whole of it is the crate [`steadfast_core`], which needs neither reqwest nor tokio.

#[doc(inline)]
pub use steadfast_core::{
    Backoff, Breaker, BreakerPolicy, BreakerState, CircuitOpen, Class, Classification, CustomSchedule, Decision,
    Failure, HedgeAt, HedgePolicy, Hint, Idempotency, InvalidPolicy, Jitter, Operation, Outcome, Permit, RetryBudget,
    RetryPolicy, Schedule, SlowCalls, StopReason, TimeLimit, TokenBucket, parse_retry_hint,
};

pub(crate) use steadfast_core::{
    AdmissionState, AdmissionStep, CENTURY, CooldownState, Denied, RecordStatus, check, cooldown_asked_for, is_safe,
    milliseconds, record_status,
};
