//! What holds for every input: random policies, budgets, outcomes, headers and keys against the promises of the policy.
//!
//! | promise | where |
//! | --- | --- |
//! | never more than `max_attempts`; no wait reaches the deadline; the licence; the bounds of a wait; the order of the reasons | `operation` |
//! | the breaker does what a model of it does that keeps every call | `breaker` |
//! | a hedge has a licence, an attempt and its price; no wait ends on an open circuit | `overload` |
//! | a budget stays in its bounds, and what was not spent comes back | `budget` |
//! | no header panics; what is neither digits nor an HTTP-date says nothing | `hints` |
//! | a key is one key in both spellings | `keys` |
//!
//! The oracles are written from the documentation, not from the code, and share no formula with it.

mod breaker;
mod budget;
mod hints;
mod keys;
mod operation;
mod oracle;
mod overload;
mod scenario;

use proptest::prelude::ProptestConfig;

/// Debug builds run the whole file in a few seconds.
fn cases(number: u32) -> ProptestConfig {
    // Failures are printed with their input; files of seeds would be litter in the tree.
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(number) }
}
