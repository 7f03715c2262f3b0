//! A resilient HTTP client on [reqwest](https://docs.rs/reqwest) and tokio: one idempotency key per operation, and a retry only
//! where it is safe.
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use steadfast::{Client, KeyPolicy};
//!
//! #[derive(Serialize)]
//! struct NewCharge { amount: u64, currency: &'static str }
//! #[derive(Deserialize)]
//! struct Charge { id: String }
//!
//! # async fn example() -> steadfast::Result<()> {
//! let client = Client::builder()
//!     .base_url("https://api.example.com/v1")
//!     .keys(KeyPolicy::standard()) // our word that this API honours idempotency keys
//!     .build()?;
//! let charge: Charge = client.post_json("/charges", &NewCharge { amount: 1200, currency: "eur" }).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # The rule
//!
//! A call can fail before the server has acted: then a repeat is safe. Or it fails after the server has acted but before its answer has
//! arrived: then a repeat is a second effect. Everything here follows from one sentence:
//!
//! > Repeat a request only if the server cannot have acted on it, or if acting twice is harmless.
//!
//! *The server cannot have acted*: judged by how far the request got ([`guide::failures`]). *Acting twice is harmless*: because of the
//! method, or because of an idempotency key **that this API honours**. That it does is known from you
//! ([`ClientBuilder::keys`](crate::ClientBuilder::keys)) or from the API's answers; without either, a POST whose answer was lost is not
//! repeated, and the error says why.
//!
//! # Where things are
//!
//! * [`Client`], [`ClientBuilder`], [`RequestBuilder`]: reqwest's vocabulary, and `fetch` and `post_json` for typed answers.
//! * [`Error`]: one line for whoever is on call; [`may_have_been_processed`](Error::may_have_been_processed) is the first question to
//!   ask, [`resume_token`](Error::resume_token) the way to ask again, where the API honours keys.
//! * [`ResponseExt`]: the same story on a response.
//! * [`with_deadline`]: one deadline for all that a task does. With the breaker, the cooldown and hedging in [`guide::overload`].
//! * [`IdempotencyKey`], [`KeyPolicy`]: what a key is, and what an API does with it.
//! * [`server`](https://docs.rs/steadfast/latest/steadfast/server/): the other half (feature `server`): a layer that runs an
//!   operation once per key and answers a repeat from its record.
//! * [`testing`](https://docs.rs/steadfast/latest/steadfast/testing/): instruments for tests (feature `testing`): scripts of answers, a
//!   server that breaks at an exact point, and a probe that asks an API whether it honours keys.
//! * [`policy`]: the decision alone, as values without a clock, for tests, simulations and other transports.
//! * [`guide`]: what failures mean, protecting a server under load, the server half, testing, what it costs, why things are as they are,
//!   and how to come here from other crates.
//!
//! # Features
//!
//! `client`, `json` and `rustls` are on by default. `native-tls`, `multipart`, `stream`, `cookies`, `gzip`, `brotli`, `zstd` and
//! `socks` turn on the reqwest features of the same names; `stream` adds `RequestBuilder::file`. `server` is the server half, `redb` its
//! embedded durable store, `redis` and `postgres` its stores for several processes, the latter also in the handler's own transaction.
//! `testing` is for `[dev-dependencies]`. With no feature at all the crate is [`policy`] on `std` and `http`. A feature adds; it never
//! changes behaviour.

#![cfg_attr(not(feature = "client"), allow(rustdoc::broken_intra_doc_links))]

// The house has three floors, and a file imports from its own floor and from those below. Floor 0: `policy`, values on `std` and `http`.
// Floor 1: the words that all share (`error`, `journal`, `key`, `key_policy`, `problem`, `resume`, `decode`, `clock`, `deadline`).
// Floor 2: `client`, `server` and, on top of both, `testing`. The tests over real sockets are in `tests/it/`.

pub mod guide;
pub mod policy;

#[cfg(feature = "client")]
mod client;
#[cfg(any(feature = "client", feature = "server"))]
mod clock;
#[cfg(any(feature = "client", feature = "server"))]
mod deadline;
#[cfg(feature = "json")]
mod decode;
#[cfg(feature = "client")]
mod error;
#[cfg(feature = "client")]
mod journal;
#[cfg(any(feature = "client", feature = "server"))]
mod key;
#[cfg(feature = "client")]
mod key_policy;
#[cfg(any(feature = "client", feature = "server"))]
mod problem;
#[cfg(feature = "client")]
mod resume;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "testing")]
pub mod testing;

#[cfg(feature = "client")]
pub use client::{Client, ClientBuilder, Event, EventKind, RequestBuilder, ResponseExt};
#[cfg(any(feature = "client", feature = "server"))]
pub use deadline::{Deadline, with_deadline};
#[cfg(feature = "json")]
pub use decode::DecodeError;
#[cfg(feature = "client")]
pub use error::{Error, ErrorKind, Result};
#[cfg(feature = "client")]
pub use journal::{Attempt, Reach};
#[cfg(feature = "client")]
pub use key::KeyFormat;
#[cfg(any(feature = "client", feature = "server"))]
pub use key::{IdempotencyKey, KeyError};
#[cfg(feature = "client")]
pub use key_policy::KeyPolicy;
#[cfg(feature = "client")]
pub use problem::Problem;
#[cfg(feature = "client")]
pub use resume::ResumeToken;

pub use http;
#[cfg(feature = "redis")]
pub use redis;
#[cfg(feature = "client")]
pub use reqwest;
#[cfg(feature = "postgres")]
pub use sqlx;
#[cfg(any(feature = "client", feature = "server"))]
pub use uuid;

/// The README's examples compile.
#[cfg(all(doctest, feature = "json"))]
#[doc = include_str!("../README.md")]
struct Readme;
