//! How to think about retries, what is repeated and when, why the crate is as it is, and how to come here from elsewhere.
//!
//! * [`failures`]: what each failure means, and what the client does about it.
//! * [`overload`]: what protects a server in trouble, when to turn it on, and what it costs.
//! * [`simulation`]: what retries and budgets do to a server in trouble, and how large a budget should be.
//! * [`server`](https://docs.rs/steadfast/latest/steadfast/guide/server/): where the layer stands, which store promises what, and one
//!   transaction for all.
//! * [`testing`]: how to test your own code against all of this.
//! * [`proof`]: which orders of events a model checker has explored in the server half, and which designs it refutes.
//! * [`proof_client`]: which courses of an operation were explored, what they must keep, and what is not modelled.
//! * [`coming_from`]: the names of reqwest-middleware, reqwest-retry and backoff beside ours, and what changes on the wire.
//! * [`design`]: the why-questions, and the invariants.
//! * [`performance`]: what it costs beside plain reqwest and its peers, and how to measure it again.
//! * [`changelog`]: what changed.

// The examples on these pages use the companion crates: `tests/lib.rs` compiles and runs them.

#[cfg_attr(not(doctest), doc = include_str!("failures.md"))]
pub mod failures {}

#[cfg_attr(not(doctest), doc = include_str!("overload.md"))]
pub mod overload {}

// The pictures come first: rustdoc copies no files beside its pages, so each is a link definition with a data URI, and the first
// definition of a name counts. The page's own ones, at its end, are for those who read it in the repository.
#[doc = include_str!("img/recovery.uri")]
#[doc = include_str!("img/share.uri")]
#[doc = include_str!("img/contention.uri")]
#[doc = include_str!("img/herd.uri")]
#[cfg_attr(not(doctest), doc = include_str!("simulation.md"))]
pub mod simulation {}

#[cfg_attr(not(doctest), doc = include_str!("server.md"))]
pub mod server {}
#[cfg_attr(not(doctest), doc = include_str!("testing.md"))]
pub mod testing {}

#[cfg_attr(not(doctest), doc = include_str!("proof.md"))]
pub mod proof {}

#[cfg_attr(not(doctest), doc = include_str!("proof_client.md"))]
pub mod proof_client {}

#[cfg_attr(not(doctest), doc = include_str!("coming_from.md"))]
pub mod coming_from {}

#[cfg_attr(not(doctest), doc = include_str!("design.md"))]
pub mod design {}

#[cfg_attr(not(doctest), doc = include_str!("performance.md"))]
pub mod performance {}

#[cfg_attr(not(doctest), doc = include_str!("../../CHANGELOG.md"))]
pub mod changelog {}
