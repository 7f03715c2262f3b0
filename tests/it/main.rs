//! The crate from outside, in one binary: against wiremock where it is good, and against a raw TCP server for the faults that
//! it cannot stage. Every test asserts what the *server* received.

mod answers;
mod bad_input;
mod cancel;
mod client;
mod events;
mod keys;
mod limits;
mod redirects;
mod secrets;
mod soak;
mod support;
mod uploads;
mod wire;
