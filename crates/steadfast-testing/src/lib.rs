//! Instruments for tests: of your own code against an API that fails, and of an API against its promise.
//!
//! A test of retries must stage failures, and prove by what the *server* received that nothing was sent twice that must not be. Most
//! failures that matter happen below HTTP, where a mock server cannot go.
//!
//! * [`Script`]: answers in order on a wiremock [`MockServer`], and it reads aloud.
//! * [`FaultServer`]: a raw HTTP/1.1 and HTTP/2 server that breaks at an exact point and counts what it executed.
//! * [`assert_attempts`], [`assert_one_key`], [`keys`]: what either of them received.
//! * [`fast_retries`], [`PolicyDriver`]: a policy that does not wait, and a policy without a clock.
//! * `store_contract` and `transactional_store_contract` (with the feature `server`): what every
//!   [`server::Store`](steadfast_server::Store) must do; and [`ModelStore`], which is the same contract
//!   as a value without clock, threads or failures.
//!
//! The [guide](https://docs.rs/steadfast/latest/steadfast/guide/testing/) shows them at work in ten minutes. Never link this feature into production: in `Cargo.toml` it
//! belongs under `[dev-dependencies]`.
//!
//! # What can be staged, and where
//!
//! | fault | `Script` on wiremock | `FaultServer` |
//! | --- | --- | --- |
//! | a status, headers, a body; 429 and 503 with `Retry-After` | yes | [`FaultStep::answer`], [`FaultStep::execute`] |
//! | an answer that comes late | [`Script::delay`] | [`Answer::delay`] |
//! | closed after the whole request, without an answer (FIN) | [`Script::hang_up`] | [`FaultStep::close`] |
//! | the same with a reset (RST) | no | [`FaultStep::reset`] |
//! | executed or not before the answer is lost, and counted | no: it does nothing | [`FaultPoint::BeforeExecuting`], [`FaultPoint::AfterExecuting`] |
//! | connection refused | no | [`FaultServer::refuse_connections`] |
//! | closed or reset on accept, nothing read | no: it reads first | [`FaultPoint::OnAccept`] |
//! | closed or reset in the middle of the upload | no: it reads it whole | [`FaultPoint::AfterBytes`] |
//! | the answer is cut in its head or its body | no: it sends it whole | [`FaultPoint::MidHead`], [`FaultPoint::MidBody`] |
//! | stalls: before, within or instead of the answer | before, as a delay | [`FaultStep::stall`] |
//! | byte by byte | no | [`Answer::drip`] |
//! | bytes that are not HTTP | no | [`FaultStep::garbage`] |
//! | an interim answer (1xx) | no | [`Answer::interim`] |
//! | a wrong `Content-Length` | no | [`Answer::claiming_length`] |
//! | `GOAWAY`, `REFUSED_STREAM`, `RST_STREAM` (HTTP/2) | no | [`FaultStep::go_away`], [`FaultStep::refuse_stream`], [`FaultStep::reset_stream`] |
//! | failures at random, by a seed | no | [`FaultServer::random`] |
//! | matching by path, header, body; a different script for each | wiremock's matchers, [`Route::and`] | by hand: [`FaultServer::start`] |
//! | TLS | no | no |
//!
//! wiremock runs its server on a thread and a runtime of its own: paused time (`tokio::time::pause`) and task-locals of the test do not
//! reach it. Its `respond_with_err` is a clean close after the whole request was read, whatever the error. `FaultServer` runs on the
//! test's own runtime, so a test that blocks its only thread blocks the server.

// It uses what a user of the client and of the server layer can use, and `steadfast_core::clock`.

mod drive;
mod received;
mod script;
mod server;
#[cfg(feature = "server")]
mod store_contract;

pub use drive::PolicyDriver;
pub use received::{Received, RequestLog, assert_attempts, assert_one_key, keys};
pub use script::{Route, Script, any, get, post};
pub use server::{Answer, FaultPoint, FaultServer, FaultStep, Report, StreamError, Tally};
#[cfg(feature = "server")]
#[doc(inline)]
pub use steadfast_server::model_store::{ModelClaim, ModelClaimOutcome, ModelEnd, ModelRecordState, ModelStore};
#[cfg(feature = "server")]
pub use store_contract::{store_contract, transactional_store_contract};
pub use wiremock::{self, MockServer};

use std::time::Duration;

use steadfast_core::{Backoff, RetryPolicy};

/// The default policy, except that it does not wait: for tests in which time is not what is tested.
///
/// A `Retry-After` of the server is waited for all the same; script one of 0 seconds.
#[must_use]
pub fn fast_retries() -> RetryPolicy {
    RetryPolicy::new().backoff(Backoff::fixed(Duration::ZERO))
}
