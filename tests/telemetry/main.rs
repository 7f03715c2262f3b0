//! Spans and metrics as an exporter gets them, beside what the server received.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed, which is its business")]

mod exporter;
mod meters;
mod propagation;
mod secrets;
mod served;
mod spans;
mod support;
