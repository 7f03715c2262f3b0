//! Integration tests in one binary: against wiremock where it suffices, and against a raw TCP
//! server for the faults that it cannot stage. Every test asserts what the *server* received.

// `.clippy.toml` allows both in test functions, but not in the helpers that they share.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed, which is its business")]

mod answers;
mod bad_input;
mod cancel;
mod cases;
mod client;
mod events;
mod keys;
mod kit;
mod licence;
mod limits;
mod nginx;
mod overload;
mod pauses;
mod properties;
mod redirects;
mod secrets;
mod server;
mod simulation;
mod soak;
mod support;
mod uploads;
mod wire;
