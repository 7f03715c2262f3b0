//! Helpers that the tests share.

pub(crate) mod clock;
pub(crate) mod doors;
pub(crate) mod log;

use std::process::Command;

use steadfast::{Client, ClientBuilder, KeyPolicy};
use steadfast_testing::{FaultServer, fast_retries};

/// A client of this server that trusts its keys and does not wait between attempts.
pub(crate) fn trusting(server: &FaultServer) -> ClientBuilder {
    Client::builder().base_url(server.url("")).retry(fast_retries()).keys(KeyPolicy::standard())
}

/// A client of this server with the defaults, except that it does not wait between attempts.
pub(crate) fn doubting(server: &FaultServer) -> ClientBuilder {
    Client::builder().base_url(server.url("")).retry(fast_retries())
}

/// Runs one test in a process of its own, with these variables, and returns what it prints.
pub(crate) fn in_a_child(test: &str, variables: &[(&str, &str)]) -> String {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[child.stdout, child.stderr].concat()).into_owned();
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
    said
}
