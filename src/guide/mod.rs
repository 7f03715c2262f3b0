//! Pages on failures, overload, the server layer, testing, performance and the design.
//!
//! For you as a user:
//!
//! * [`failures`]: the meaning of each failure, and when the client retries.
//! * [`timeouts`]: the time limits of an operation, of its uploads and of response bodies.
//! * [`overload`]: the mechanisms that protect a server in trouble, when to turn them on, and their
//!   cost.
//! * [`credentials`]: tokens that expire, signatures, and other headers of each attempt.
//! * [`outbox`]: operations that survive a crash of your process, and what holds against what.
//! * [`production`]: what an error means to whoever is on call, and proxies in between.
//! * [`observability`]: the spans, metrics and events of client and server layer, and how to export
//!   them.
//! * [`server`]: the position of the layer, the guarantees of each store, and one transaction for
//!   rows and record.
//! * [`testing`]: tests of your own code against failures.
//! * [`migrating`]: from reqwest, reqwest-middleware and backoff: each setting beside its counterpart,
//!   and the changes on the wire.
//! * [`keep_your_client`]: one changed line in a `ClientWithMiddleware`, kube, octocrab, or anything else
//!   that sends HTTP requests, and what is known through each.
//! * [`performance`]: the cost beside plain reqwest and its peers, and how to measure it.
//! * [`simulation`]: the effect of retries and budgets on a server in trouble, and the size of a
//!   budget.
//! * [`changelog`]: the changes of each version.
//!
//! For you as a reviewer or contributor:
//!
//! * [`design`]: the reasons behind the API.
//! * [`internals`]: the reasons behind the code.
//! * [`problems`]: the problem types of the server layer, and what a client does about each.
//! * [`proof`]: the orders of events that a model checker explored in the server layer, and the
//!   designs that it refutes.
//! * [`proof_client`]: the histories of an operation that it explored in the client, the promises,
//!   and the limits.

// The examples on these pages use the companion crates: `tests/lib.rs` compiles and runs them.

#[cfg_attr(not(doctest), doc = include_str!("failures.md"))]
pub mod failures {}

#[cfg_attr(not(doctest), doc = include_str!("timeouts.md"))]
pub mod timeouts {}

#[cfg_attr(not(doctest), doc = include_str!("overload.md"))]
pub mod overload {}

// The pictures come first. rustdoc copies no files beside its pages, so each picture is a link
// definition with a data URI, and the first definition of a name counts. The definitions at the
// page's end are for readers in the repository.
#[doc = include_str!("img/recovery.uri")]
#[doc = include_str!("img/share.uri")]
#[doc = include_str!("img/contention.uri")]
#[doc = include_str!("img/herd.uri")]
#[cfg_attr(not(doctest), doc = include_str!("simulation.md"))]
pub mod simulation {}

#[cfg_attr(not(doctest), doc = include_str!("server.md"))]
pub mod server {}

#[cfg_attr(not(doctest), doc = include_str!("credentials.md"))]
pub mod credentials {}

#[cfg_attr(not(doctest), doc = include_str!("outbox.md"))]
pub mod outbox {}

#[cfg_attr(not(doctest), doc = include_str!("production.md"))]
pub mod production {}

#[cfg_attr(not(doctest), doc = include_str!("observability.md"))]
pub mod observability {}

#[cfg_attr(not(doctest), doc = include_str!("testing.md"))]
pub mod testing {}

#[cfg_attr(not(doctest), doc = include_str!("proof.md"))]
pub mod proof {}

#[cfg_attr(not(doctest), doc = include_str!("problems.md"))]
pub mod problems {}

#[cfg_attr(not(doctest), doc = include_str!("proof_client.md"))]
pub mod proof_client {}

#[cfg_attr(not(doctest), doc = include_str!("migrating.md"))]
pub mod migrating {}

#[cfg_attr(not(doctest), doc = include_str!("keep_your_client.md"))]
pub mod keep_your_client {}

#[cfg_attr(not(doctest), doc = include_str!("design.md"))]
pub mod design {}

#[cfg_attr(not(doctest), doc = include_str!("internals.md"))]
pub mod internals {}

#[cfg_attr(not(doctest), doc = include_str!("performance.md"))]
pub mod performance {}

#[cfg_attr(not(doctest), doc = include_str!("../../CHANGELOG.md"))]
pub mod changelog {}
