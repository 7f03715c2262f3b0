//! Properties that hold for every input: random policies, budgets, outcomes, headers and keys,
//! checked against the documented promises.
//!
//! | promise | where |
//! | --- | --- |
//! | at most `max_attempts`; no wait reaches the deadline; licence; bounds of a wait; order of the reasons | `operation` |
//! | the breaker agrees with a model that keeps every call | `breaker` |
//! | a hedge has a licence, an attempt and its price; no wait ends on an open circuit | `overload` |
//! | a budget stays within its bounds, and unspent tokens are returned | `budget` |
//! | no header panics; a value that is neither digits nor an HTTP-date gives no hint | `hints` |
//! | a key is the same key in both spellings | `keys` |
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

/// Debug builds run all properties in a few seconds.
fn cases(number: u32) -> ProptestConfig {
    // A failure prints its input; files of seeds would only litter the tree.
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(number) }
}
