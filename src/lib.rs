//! A resilient HTTP client on [reqwest](https://docs.rs/reqwest) and
//! [tokio](https://docs.rs/tokio). It retries automatically, but only where a retry is safe.
//!
//! The server half is a [tower](https://docs.rs/tower) layer. It runs each operation once per
//! idempotency key, and replays the stored response to every repeat.
//!
//! An *operation* is what you ask for once, such as one charge; it may take several attempts. An
//! *idempotency key* is a request header that names one operation. An API that *honours* keys
//! executes the operation once, however often its request arrives.
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
//!     .keys(KeyPolicy::standard()) // you state: this API honours idempotency keys
//!     .build()?;
//! let new_charge = NewCharge { amount: 1200, currency: "eur" };
//! let charge: Charge = client.post_json("/charges", &new_charge).await?;
//! println!("charged once: {}", charge.id);
//! # Ok(())
//! # }
//! ```
//!
//! # The rule
//!
//! A request fails in one of two ways. If it fails before the server has acted, a repeat is safe.
//! If the server has acted and its response is lost, a repeat is a second charge. The client
//! follows one rule:
//!
//! > Repeat a request only if the server cannot have acted on it, or if acting twice is harmless.
//!
//! *The server cannot have acted* if the connection was refused, for example;
//! [`guide::failures`] lists every case. *Acting twice is harmless* if the method is idempotent,
//! such as GET or PUT. It is also harmless if the request has an idempotency key **that this API
//! honours**. You declare that with [`ClientBuilder::keys`](crate::ClientBuilder::keys), or the API
//! shows it in its responses. Without either, the client does not retry a POST with a lost
//! response. It returns an error with the reason.
#![cfg_attr(not(doctest), doc = include_str!("cookbook.md"))]
//!
//! # Where things are
//!
//! * [`Client`], [`ClientBuilder`], [`RequestBuilder`]: the client, with reqwest's method names.
//! * [`Error`], [`ResponseExt`]: the report of an operation, with every attempt.
//! * [`IdempotencyKey`], [`KeyPolicy`], [`ResumeToken`]: keys, how an API treats them, and how to
//!   resume an operation.
//! * [`PreparedRequest`], [`DetachedRequest`]: operations that outlive a crash of their process, or
//!   their caller.
//! * [`Client::execute_through`], [`TransportError`]: the same operation over a client that you
//!   keep.
//! * [`Client::into_service`], [`RequestTerms`], [`OperationReport`]: the client as a tower service,
//!   for kube and others. Terms and report travel in the extensions of request and response.
//! * [`policy`]: the retry decision, as plain values without a clock. Use it in tests, or in your
//!   own loop over another transport.
//! * [`guide`]: the meaning of each failure, overload protection, the server half, testing, cost,
//!   design, and migration from other crates.
//!
//! # Features
//!
//! A feature adds items. It never changes behaviour.
//!
//! | feature | default | brings |
//! | --- | --- | --- |
//! | `json` | yes | `json`, `fetch`, `get_json` and the like (`fetch_text`, `fetch_bytes` and `fetch_with` need no feature) |
//! | `rustls` | yes | TLS by rustls |
//! | `native-tls` | no | TLS by the operating system's library |
//! | `stream` | no | streaming bodies, and `RequestBuilder::file` |
//! | `multipart` | no | multipart forms |
//! | `cookies`, `gzip`, `brotli`, `zstd`, `socks` | no | reqwest's features with the same names |
//! | `server` | no | [`steadfast::server`](https://docs.rs/steadfast-server): the layer, and a store in memory |
//!
//! # Companion crates
//!
//! | crate | brings |
//! | --- | --- |
//! | [`steadfast-core`](https://docs.rs/steadfast-core) | the retry decision alone, on `std` and `http` |
//! | [`steadfast-server`](https://docs.rs/steadfast-server) | the server half, without the client |
//! | [`steadfast-reqwest-middleware`](https://docs.rs/steadfast-reqwest-middleware) | the client's retries for a `ClientWithMiddleware` that you keep |
//! | [`steadfast-otel`](https://docs.rs/steadfast-otel) | OpenTelemetry: metrics of both halves, and a client for exporters |
//! | [`steadfast-axum`](https://docs.rs/steadfast-axum) | axum extractors and fallbacks that release the key when they reject a request |
//! | [`steadfast-redb`](https://docs.rs/steadfast-redb) | a durable store in a file, for one process |
//! | [`steadfast-redis`](https://docs.rs/steadfast-redis) | a store in Redis, for several processes |
//! | [`steadfast-postgres`](https://docs.rs/steadfast-postgres) | a store in PostgreSQL, for several processes, or in one transaction with the handler's rows |
//! | [`steadfast-testing`](https://docs.rs/steadfast-testing) | for `[dev-dependencies]`: scripted responses, a server with faults that you choose, tests for a store of your own |
//! | [`steadfast-probe`](https://docs.rs/steadfast-probe) | tests whether an API honours keys: a command line tool and a library |
#![cfg_attr(docsrs, feature(doc_cfg))]

// To find out why a request was retried, read `run.rs` (the loop) and `attempt.rs` (one attempt),
// and in `steadfast-core` `retry.rs` (the decision) and `class.rs` (the table).
//
// | file | purpose |
// | --- | --- |
// | `client`, `inner`, `builder`, `settings`, `request`, `terms`, `checks`, `defaults` | the settings of a client and of a request |
// | `target`, `request_body`, `upload` | the URL and the body |
// | `operation`, `earlier`, `wire_request`, `common_headers` | the terms of one operation, and its request |
// | `service` | the client as a tower service |
// | `durable`, `before_send` | for `steadfast-outbox`: the parts of a request, a hook before each send |
// | `run` | the loop |
// | `hedge` | a second attempt beside a late one |
// | `attempt`, `redirect`, `send_probe`, `send_clock` | one attempt: send, follow redirects, watch the body and its time |
// | `attempt_headers`, `attempt_hook`, `credentials` | headers that are written for each request: a valid token, and those of hooks |
// | `attempt_result`, `response_body`, `ending`, `transport_error` | the evidence of an attempt, and its response |
// | `assessment` | the class of an attempt |
// | `admission`, `cooldown` | whether an attempt is admitted |
// | `origin`, `key_trust` | the client's memory of each origin |
// | `spans` | the spans of an operation and of its sends |
// | `recorder`, `event`, `response`, `whole_response`, `link`, `cause` | the journal, the events, the report and the links of a response |
//
// `decode`, `error`, `journal`, `key_policy`, `problem` and `resume` have the types of the public
// API. Of the others they import only `policy` and `cause`. There are no circles of imports.

#[doc(hidden)]
pub mod adapter;
pub mod guide;
pub mod policy;

mod admission;
mod assessment;
mod attempt;
mod attempt_headers;
mod attempt_hook;
mod attempt_result;
mod before_send;
mod builder;
mod cause;
mod checks;
mod client;
mod common_headers;
mod confirm;
mod cooldown;
mod credentials;
#[cfg(feature = "json")]
mod decode;
mod defaults;
mod detached;
mod durable;
mod earlier;
mod ending;
mod error;
mod event;
mod hedge;
mod inner;
mod journal;
mod key_policy;
mod key_trust;
mod link;
mod operation;
mod origin;
mod prepared;
mod problem;
mod recorder;
mod redirect;
mod request;
mod request_body;
mod response;
mod response_body;
mod resume;
mod run;
mod send_clock;
mod send_probe;
mod service;
mod settings;
mod spans;
mod target;
mod terms;
mod transport;
mod transport_error;
mod transport_view;
#[cfg(any(feature = "stream", feature = "multipart"))]
mod upload;
mod whole_response;
mod wire_request;

/// The server half: the crate [`steadfast_server`].
#[cfg(feature = "server")]
#[doc(inline)]
pub use steadfast_server as server;

pub use attempt_hook::{AttemptHead, BodyNotInMemory};
pub use builder::ClientBuilder;
pub use client::Client;
pub use confirm::{Confirmation, Unconfirmed};
pub use credentials::{Credentials, Refreshing, Token, Why};
#[cfg(feature = "json")]
pub use decode::DecodeError;
pub use detached::DetachedRequest;
pub use error::{Error, ErrorKind, Result};
pub use event::{Event, EventKind, Exchange};
pub use journal::{Attempt, ConfirmationOutcome, OperationReport, Reach};
pub use key_policy::KeyPolicy;
pub use prepared::PreparedRequest;
pub use problem::Problem;
pub use request::RequestBuilder;
pub use response::ResponseExt;
pub use resume::ResumeToken;
pub use service::{ClientService, ResponseBody, ResponseFuture};
#[doc(inline)]
pub use steadfast_core::deadline::{Deadline, with_deadline};
#[doc(inline)]
pub use steadfast_core::key::{IdempotencyKey, KeyError, KeyFormat};
pub use terms::RequestTerms;
pub use transport::TransportError;

pub(crate) use steadfast_core::{clock, deadline, key};

pub use http;
pub use reqwest;
pub use uuid;
