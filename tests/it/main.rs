//! Integration tests in one binary: against wiremock where it suffices, and against a raw TCP
//! server for the faults that it cannot stage. Every test asserts what the *server* received.

// `.clippy.toml` allows both in test functions, but not in the helpers that they share.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed, which is its business")]

mod answers;
mod attempt_hooks;
mod bad_input;
mod cancel;
mod cases;
mod classify;
mod client;
mod confirm;
mod credentials;
mod doors;
mod dropped;
mod events;
mod fetch;
mod first_lines;
mod keys;
mod kit;
mod licence;
mod limits;
mod lines;
mod links;
mod middleware;
mod nginx;
mod on_call;
mod outbox;
mod overload;
mod pauses;
mod properties;
mod quotas;
mod redirects;
mod secrets;
mod server;
mod service;
mod simulation;
mod soak;
mod support;
mod through;
mod uploads;
mod wire;
