//! How to think about retries, what is repeated and when, why the crate is as it is, and how to come here from elsewhere.
//!
//! * [`failures`]: what each failure means, and what the client does about it.
//! * [`coming_from`]: the names of reqwest-middleware, reqwest-retry and backoff beside ours, and what changes on the wire.
//! * [`design`]: the why-questions, and the invariants.
//! * [`performance`]: what it costs beside plain reqwest and its peers, and how to measure it again.
//! * [`changelog`]: what changed.

#[doc = include_str!("failures.md")]
pub mod failures {}

#[doc = include_str!("coming_from.md")]
pub mod coming_from {}

#[doc = include_str!("design.md")]
pub mod design {}

#[doc = include_str!("performance.md")]
pub mod performance {}

#[doc = include_str!("changelog.md")]
pub mod changelog {}
