//! A resilient HTTP client on [reqwest](https://docs.rs/reqwest) and
//! [tokio](https://docs.rs/tokio). It retries automatically, but only where a repeat is safe.
//!
//! The server half is a [tower](https://docs.rs/tower) layer. It runs each operation once per
//! idempotency key, and answers every repeat from its record.
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
//! A request fails in one of two ways. It fails before the server has acted, and then a repeat is
//! safe. Or it fails after the server has acted and before you have the response, and then a repeat
//! is a second charge. The client follows one rule:
//!
//! > Repeat a request only if the server cannot have acted on it, or if acting twice is harmless.
//!
//! The client knows that *the server cannot have acted* from how far the request got
//! ([`guide::failures`]). *Acting twice is harmless* if the method is idempotent, such as GET or
//! PUT. It is also harmless if the request carries an idempotency key **that this API honours**.
//! You say so with [`ClientBuilder::keys`](crate::ClientBuilder::keys), or the API shows it in its
//! responses. Without either, the client does not repeat a POST whose response was lost. It returns
//! an error that says why.
//!
//! # Cookbook
//!
//! ## Get JSON
//!
//! The default policy makes up to three attempts. [`Client::get_json`](crate::Client::get_json)
//! reads the body as part of the attempt, so a response that is cut short is requested again.
//!
//! ```
//! # #[cfg(feature = "testing")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> steadfast::Result<()> {
//! # use steadfast::testing::{MockServer, Script, assert_attempts, fast_retries, get};
//! # let server = MockServer::start().await;
//! # Script::new().status(503).ok_json(&serde_json::json!({ "name": "Ada" })).mount(&server, get("/users/7")).await;
//! # let client = steadfast::Client::builder().base_url(server.uri()).retry(fast_retries()).build()?;
//! #[derive(serde::Deserialize)]
//! struct User { name: String }
//!
//! // The server answers 503 first, and then 200.
//! let user: User = client.get_json("/users/7").await?;
//! assert_eq!(user.name, "Ada");
//! # assert_attempts(&server, 2).await;
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "testing"))]
//! # fn main() {}
//! ```
//!
//! ## Post once
//!
//! The client mints one key per POST or PATCH and sends it with every attempt. If the connection
//! breaks after the charge was made, the client repeats the request under the same key, and the
//! server replays its stored response.
//!
//! ```
//! # #[cfg(feature = "testing")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> steadfast::Result<()> {
//! use serde_json::{Value, json};
//! use steadfast::testing::{FaultPoint, FaultServer, FaultStep};
//! use steadfast::{Client, KeyPolicy};
//!
//! // Makes the charge, then resets the connection. The second request succeeds.
//! let lost = FaultStep::reset(FaultPoint::AfterExecuting);
//! let server = FaultServer::play([lost, FaultStep::ok()]).await;
//!
//! let client = Client::builder()
//!     .base_url(server.url(""))
//!     .keys(KeyPolicy::standard())
//!     .build()?;
//! let charge: Value = client.post_json("/charges", &json!({ "amount": 1200 })).await?;
//!
//! assert_eq!(charge["execution"], 1);
//! assert_eq!(server.received().len(), 2); // requests
//! assert_eq!(server.executions(), 1); // charges
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "testing"))]
//! # fn main() {}
//! ```
//!
//! `.keys(…)` is your word that the API honours keys. If it does not, a repeat is a second charge.
//!
//! ## Choose the key yourself
//!
//! A process that crashes loses a key that was minted. Derive the key from your own data, and the
//! next process asks for the same operation.
//!
//! ```no_run
//! use steadfast::{Client, IdempotencyKey, uuid::Uuid};
//!
//! # async fn example(client: Client, order: u64) -> steadfast::Result<()> {
//! const ORDERS: Uuid = Uuid::from_u128(0x6b1d_26e5_8f0c_4a55_9f3e_2c7d_0a4b_91e6);
//! let key = IdempotencyKey::derive(&ORDERS, format!("order {order}: charge"));
//! let response = client.post("/charges").idempotency_key(key).body("12 EUR").send().await?;
//! # drop(response);
//! # Ok(())
//! # }
//! ```
//!
//! ## Handle an error
//!
//! Ask [`may_have_been_processed`](Error::may_have_been_processed) first. If it is true, do not
//! start a new operation. Store the [`ResumeToken`] and send the same request again under its key,
//! now or tomorrow.
//!
//! ```
//! # #[cfg(feature = "testing")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use serde_json::{Value, json};
//! use steadfast::policy::RetryPolicy;
//! use steadfast::testing::{FaultPoint, FaultServer, FaultStep};
//! use steadfast::{Client, KeyPolicy, ResumeToken};
//!
//! let lost = FaultStep::close(FaultPoint::AfterExecuting);
//! let server = FaultServer::play([lost, FaultStep::ok()]).await;
//! let client = Client::builder()
//!     .base_url(server.url(""))
//!     .keys(KeyPolicy::standard())
//!     .retry(RetryPolicy::never()) // so that this example fails
//!     .build()?;
//! let charge = json!({ "amount": 1200 });
//!
//! let error = client.post_json::<Value>("/charges", &charge).await.unwrap_err();
//! assert!(error.may_have_been_processed());
//! let stored: String = serde_json::to_string(&error.resume_token())?;
//!
//! // Later, perhaps in another process: the same request, the same key, and still one charge.
//! let token: ResumeToken = serde_json::from_str(&stored)?;
//! let charged: Value = client.post("/charges").json(&charge).resume(token).fetch().await?;
//! assert_eq!((charged["execution"].as_u64(), server.executions()), (Some(1), 1));
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "testing"))]
//! # fn main() {}
//! ```
//!
//! ## Set timeouts
//!
//! `timeout` bounds the whole operation with all its waits, `attempt_timeout` bounds one attempt.
//! [`with_deadline`] bounds all calls of a task together.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use serde_json::Value;
//! use steadfast::{Client, with_deadline};
//!
//! # async fn example() -> steadfast::Result<()> {
//! let client = Client::builder()
//!     .base_url("https://api.example.com")
//!     .timeout(Duration::from_secs(20))
//!     .attempt_timeout(Duration::from_secs(5))
//!     .build()?;
//! let order = with_deadline(Duration::from_secs(2), async {
//!     let user: Value = client.get_json("/users/7").await?;
//!     // Only the rest of the two seconds is left for this call.
//!     client.get_json::<Value>("/orders").await.map(|orders| (user, orders))
//! })
//! .await?;
//! # drop(order);
//! # Ok(())
//! # }
//! ```
//!
//! ## Change the retry policy
//!
//! Set a policy for the client, for one request, or for both. `max_attempts` counts the first
//! attempt.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use steadfast::Client;
//! use steadfast::policy::{Backoff, RetryPolicy};
//!
//! # async fn example() -> steadfast::Result<()> {
//! let backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_secs(2));
//! let client = Client::builder()
//!     .base_url("https://api.example.com")
//!     .retry(RetryPolicy::new().max_attempts(5).backoff(backoff))
//!     .build()?;
//! // One attempt only.
//! let report = client.get("/report").retry(RetryPolicy::never()).send().await?;
//! # drop(report);
//! # Ok(())
//! # }
//! ```
//!
//! ## Bring your own schedule
//!
//! Any iterator of durations is a schedule. `schedule` calls your closure once per operation. The
//! attempts end when the iterator does.
//!
//! ```
//! use std::time::Duration;
//! use steadfast::policy::{Backoff, Jitter, RetryPolicy};
//!
//! let backoff = Backoff::schedule(|| [1, 5, 25].map(Duration::from_secs));
//! let backoff = backoff.jitter(Jitter::Equal);
//! let policy = RetryPolicy::new().max_attempts(4).backoff(backoff);
//! # assert!(policy.validate().is_ok());
//! ```
//!
//! ## Read the response yourself
//!
//! `send` returns reqwest's own `Response`, whatever its status. [`ResponseExt`] tells what the
//! operation took. `into_result` turns a status other than 2xx into an [`Error`] and keeps the
//! body.
//!
//! ```no_run
//! use steadfast::{Client, ResponseExt};
//!
//! # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
//! let response = client.get("https://api.example.com/report").send().await?;
//! let (status, attempts) = (response.status(), response.attempts().len());
//! println!("{status} after {attempts} attempts in {:?}", response.elapsed());
//! let text = response.into_result().await?.text().await?;
//! # drop(text);
//! # Ok(())
//! # }
//! ```
//!
//! ## Upload a file
//!
//! With the feature `stream`, the file is opened again for each attempt. Another stream needs
//! `body_factory`; a plain stream can be sent only once, so it gets one attempt.
//!
//! ```no_run
//! # #[cfg(feature = "stream")]
//! # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
//! let request = client.put("https://files.example.com/monday");
//! let response = request.file("/var/backups/monday.tar").send().await?;
//! # drop(response);
//! # Ok(())
//! # }
//! ```
//!
//! ## Declare what is harmless
//!
//! Some POST requests only read. Say so, and they are repeated like a GET. Say the opposite of a
//! GET that has effects.
//!
//! ```no_run
//! # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
//! let search = client.post("https://search.example.com/query").body("rust");
//! let hits = search.idempotent(true).send().await?;
//! let toggle = client.get("https://lamp.example.com/toggle");
//! let toggled = toggle.idempotent(false).send().await?;
//! # drop((hits, toggled));
//! # Ok(())
//! # }
//! ```
//!
//! ## Classify outcomes your way
//!
//! The closure sees the status, the headers or the failure. It cannot change what
//! [`may_have_been_processed`](Error::may_have_been_processed) says.
//!
//! ```no_run
//! use steadfast::{Client, http::StatusCode, policy::Class};
//!
//! # fn example() -> steadfast::Result<()> {
//! let client = Client::builder()
//!     .classify(|outcome| match outcome.status() {
//!         // This API answers 404 until its replica has caught up.
//!         Some(StatusCode::NOT_FOUND) => Class::NotProcessed,
//!         _ => outcome.default_class(),
//!     })
//!     .build()?;
//! # drop(client);
//! # Ok(())
//! # }
//! ```
//!
//! ## Watch retries
//!
//! The same events go to `tracing`, under the target `steadfast`.
//!
//! ```
//! use steadfast::{Client, EventKind};
//!
//! let client = Client::builder()
//!     .on_event(|event| {
//!         if let EventKind::RetryScheduled { number, after, .. } = event.kind() {
//!             eprintln!("{}: attempt {number} in {after:?}", event.url());
//!         }
//!     })
//!     .build()?;
//! # drop(client);
//! # Ok::<(), steadfast::Error>(())
//! ```
//!
//! ## Protect a server under load
//!
//! The breaker, the cooldown and hedging are off by default. [`guide::overload`] says when to turn
//! each on, and what it costs.
//!
//! ```
//! use steadfast::Client;
//! use steadfast::policy::{BreakerPolicy, HedgePolicy, RetryBudget};
//!
//! let client = Client::builder()
//!     // Fewer retries in a row than with the default of 500 tokens.
//!     .budget(RetryBudget::standard().capacity(42))
//!     // When half of the calls fail, send none for 5 s.
//!     .breaker(BreakerPolicy::new())
//!     // One `Retry-After` makes every operation to that origin wait.
//!     .cooldown()
//!     // Send a second GET when the first is slower than 98 of 100.
//!     .hedge(HedgePolicy::quantile(0.98).max_extra_load(0.03))
//!     .build()?;
//! # drop(client);
//! # Ok::<(), steadfast::Error>(())
//! ```
//!
//! ## Configure reqwest
//!
//! `http` gives you reqwest's builder for TLS roots, proxies, name resolution and connection pools.
//! Set credentials on this builder instead, so that they never leave the origin of the base URL.
//!
//! ```
//! use std::time::Duration;
//! use steadfast::Client;
//!
//! let client = Client::builder()
//!     .base_url("https://api.example.com")
//!     .bearer_auth("token")
//!     .http(|http| http.no_proxy().tcp_keepalive(Duration::from_secs(15)))
//!     .build()?;
//! # drop(client);
//! # Ok::<(), steadfast::Error>(())
//! ```
//!
//! ## Serve each request once
//!
//! The server half, here with axum. Put the layer inside authentication, so that a scope names the
//! caller. `MemoryStore` forgets everything when the process ends; other stores do not.
//!
//! ```
//! # #[cfg(feature = "server")]
//! # mod example {
//! use axum::{Router, http::StatusCode, routing::post};
//! use steadfast::server::{IdempotencyLayer, MemoryStore, Scope};
//!
//! /// Your authentication puts it into the request's extensions.
//! #[derive(Clone)]
//! struct Caller { subject: String }
//!
//! async fn charge() -> (StatusCode, &'static str) {
//!     (StatusCode::CREATED, "charged")
//! }
//!
//! fn app() -> Router {
//!     let scope = Scope::from_extension(|caller: &Caller| caller.subject.clone());
//!     let idempotency = IdempotencyLayer::new(MemoryStore::new(), scope).required();
//!     Router::new().route("/charges", post(charge)).layer(idempotency)
//! }
//! # }
//! ```
//!
//! ## Handle each event once
//!
//! A webhook or a queue may deliver an event twice. The inbox marks it after your handler has
//! succeeded, so no event is lost.
//!
//! ```
//! # #[cfg(feature = "server")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use steadfast::server::{Delivery, Fingerprint, Inbox, MemoryStore};
//!
//! let inbox = Inbox::new(MemoryStore::new());
//! let handler = |_session| async { Ok::<_, std::io::Error>("shipped") };
//!
//! let payload = Fingerprint::of(br#"{"order":7}"#);
//! let first = inbox.process("shipping", "evt_1", payload, handler).await?;
//! let again = inbox.process("shipping", "evt_1", payload, handler).await?;
//! assert_eq!((first, again), (Delivery::Handled("shipped"), Delivery::AlreadyHandled));
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "server"))]
//! # fn main() {}
//! ```
//!
//! # Where things are
//!
//! * [`Client`], [`ClientBuilder`], [`RequestBuilder`]: the client, in reqwest's words.
//! * [`Error`], [`ResponseExt`]: what happened, attempt by attempt.
//! * [`IdempotencyKey`], [`KeyPolicy`], [`ResumeToken`]: keys, what an API does with them, and how
//!   to resume an operation.
//! * [`policy`]: the decision to repeat, as plain values without a clock. Use it for tests, or for
//!   a loop over another transport.
//! * [`server`](https://docs.rs/steadfast/latest/steadfast/server/): the layer, its stores,
//!   webhooks and queues.
//! * [`testing`](https://docs.rs/steadfast/latest/steadfast/testing/): scripted responses, a server
//!   that breaks where you tell it to, and a probe that asks an API whether it honours keys.
//! * [`guide`]: what each failure means, overload protection, the server half, testing, cost,
//!   design, and how to come from other crates.
//!
//! # Features
//!
//! A feature adds; it never changes behaviour. Without any feature the crate is [`policy`], on
//! `std` and `http`.
//!
//! | feature | default | brings |
//! | --- | --- | --- |
//! | `client` | yes | the client |
//! | `json` | yes | `json`, `fetch`, `get_json` and its sisters |
//! | `rustls` | yes | TLS by rustls |
//! | `native-tls` | no | TLS by the operating system's library |
//! | `stream` | no | streaming bodies, and `RequestBuilder::file` |
//! | `multipart` | no | multipart forms |
//! | `cookies`, `gzip`, `brotli`, `zstd`, `socks` | no | reqwest's features of these names |
//! | `server` | no | the layer, and a store in memory |
//! | `axum` | no | axum extractors and fallbacks whose rejections give the key back |
//! | `redb` | no | a durable store in a file, for one process |
//! | `redis` | no | a store in Redis, for several processes |
//! | `postgres` | no | a store in PostgreSQL, for several processes, or in one transaction with the handler's rows |
//! | `testing` | no | for `[dev-dependencies]`: test servers, scripts, the probe and the simulation |

#![cfg_attr(not(feature = "client"), allow(rustdoc::broken_intra_doc_links))]

// Three floors: a file imports from its own floor and from those below (`ARCHITECTURE.md`).

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

/// Compiles the README's examples.
#[cfg(all(doctest, feature = "json", feature = "server"))]
#[doc = include_str!("../README.md")]
struct Readme;
