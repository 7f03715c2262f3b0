//! Test tools for code that retries: scripted responses, a server that breaks on purpose, and
//! assertions on what the server received.
//!
//! A test of retries must stage failures. It must also prove, by the requests that the *server*
//! received, that nothing was sent twice that must not be. Most failures that matter happen below
//! HTTP, where a mock server cannot go.
//!
//! ```
//! use steadfast::{Client, KeyPolicy};
//! use steadfast_testing::{FaultPoint, FaultServer, FaultStep, assert_one_key, fast_retries};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The server makes the charge, then the connection breaks before the response.
//! let lost = FaultStep::reset(FaultPoint::AfterExecuting);
//! let server = FaultServer::play([lost, FaultStep::ok()]).await;
//!
//! let client = Client::builder()
//!     .base_url(server.url(""))
//!     .keys(KeyPolicy::standard())
//!     .retry(fast_retries())
//!     .build()?;
//! client.post("/charges").send().await?;
//!
//! assert_eq!(server.received().len(), 2, "the client sent the charge twice");
//! assert_eq!(server.executions(), 1, "the server made it once");
//! assert_one_key(&server).await;
//! # Ok(())
//! # }
//! ```
//!
//! * [`Script`]: responses in order, on a wiremock [`MockServer`].
//! * [`FaultServer`]: a raw HTTP/1.1 and HTTP/2 server that breaks at an exact point and counts its
//!   executions. With the feature `tls` it also speaks TLS.
//! * [`assert_attempts`], [`assert_one_key`], [`keys`]: the requests that either server received.
//! * [`fast_retries`], [`PolicyDriver`]: a policy that does not wait, and a policy without a clock.
//! * `store_contract` and `transactional_store_contract` (feature `server`): the contract of every
//!   [`Store`](steadfast_server::Store).
//! * [`ModelStore`] (feature `server`): the same contract as a value, without clock, threads or
//!   failures.
//!
//! The [guide](https://docs.rs/steadfast/latest/steadfast/guide/testing/) shows them in use, in ten
//! minutes. Add this crate under `[dev-dependencies]` only: do not link it into production code.
//!
//! # Faults and where to stage them
//!
//! | fault | `Script` on wiremock | `FaultServer` |
//! | --- | --- | --- |
//! | a status, headers, a body; 429 and 503 with `Retry-After` | yes | [`FaultStep::answer`], [`FaultStep::execute`] |
//! | a late response | [`Script::delay`] | [`Answer::delay`] |
//! | a close after the whole request, without a response (FIN) | [`Script::hang_up`] | [`FaultStep::close`] |
//! | a reset at the same point (RST) | no | [`FaultStep::reset`] |
//! | a lost response, before or after a counted execution | no: it executes nothing | [`FaultPoint::BeforeExecuting`], [`FaultPoint::AfterExecuting`] |
//! | a refused connection | no | [`FaultServer::refuse_connections`] |
//! | a close or reset on accept, with nothing read | no: it reads first | [`FaultPoint::OnAccept`] |
//! | a close or reset in the middle of the upload | no: it reads the whole request | [`FaultPoint::AfterBytes`] |
//! | a response cut in its head or its body | no: it sends the whole response | [`FaultPoint::MidHead`], [`FaultPoint::MidBody`] |
//! | a stall: before, within or instead of the response | before, as a delay | [`FaultStep::stall`] |
//! | a response byte by byte | no | [`Answer::drip`] |
//! | bytes that are not HTTP | no | [`FaultStep::garbage`] |
//! | an interim response (1xx) | no | [`Answer::interim`] |
//! | a wrong `Content-Length` | no | [`Answer::claiming_length`] |
//! | `GOAWAY`, `REFUSED_STREAM`, `RST_STREAM` (HTTP/2) | no | [`FaultStep::go_away`], [`FaultStep::refuse_stream`], [`FaultStep::reset_stream`] |
//! | random failures from a seed | no | [`FaultServer::random`] |
//! | a script for each path, header or body | wiremock's matchers, [`Route::and`] | by hand: [`FaultServer::start`] |
//! | any of these over TLS, HTTP/1.1 or HTTP/2 by ALPN | no | `FaultServer::tls` (feature `tls`) |
//!
//! wiremock runs its server on a thread and a runtime of its own. Paused time
//! (`tokio::time::pause`) and the task-locals of your test do not reach it. Its `respond_with_err`
//! closes the connection cleanly after the whole request was read, whatever the error.
//!
//! `FaultServer` runs on your test's own runtime. A test that blocks its only thread also blocks
//! the server.
#![cfg_attr(docsrs, feature(doc_cfg))]

// This crate uses what any user of `steadfast-core` and `steadfast-server` can use, and two hidden
// modules: `steadfast_core::clock` and `steadfast_server::model_store`.

mod drive;
mod received;
mod script;
mod server;
#[cfg(feature = "server")]
mod store_contract;

pub use drive::PolicyDriver;
pub use received::{Received, RequestLog, assert_attempts, assert_one_key, keys};
pub use script::{MountedScript, Route, Script, any, get, post};
pub use server::{Answer, FaultPoint, FaultServer, FaultStep, Report, StreamError, Tally};
#[cfg(feature = "server")]
#[doc(inline)]
pub use steadfast_server::model_store::{ModelClaim, ModelClaimOutcome, ModelEnd, ModelRecordState, ModelStore};
#[cfg(feature = "server")]
pub use store_contract::{store_contract, transactional_store_contract};
pub use wiremock::{self, MockServer};

use std::time::Duration;

use steadfast_core::{Backoff, RetryPolicy};

/// Returns the default policy without its waits, for tests whose subject is not time.
///
/// The client still waits for a `Retry-After` of the server, so script one of 0 seconds.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::{Class, Idempotency, RetryBudget, TokenBucket};
/// use steadfast_testing::{PolicyDriver, fast_retries};
///
/// let (policy, budget) = (fast_retries(), TokenBucket::new(RetryBudget::unlimited()));
/// let mut driver = PolicyDriver::start(&policy, &budget, Idempotency::Keyed);
/// driver.to_the_end(Class::Ambiguous);
/// assert_eq!(driver.elapsed(), Duration::ZERO);
/// ```
#[must_use]
pub fn fast_retries() -> RetryPolicy {
    RetryPolicy::new().backoff(Backoff::fixed(Duration::ZERO))
}
