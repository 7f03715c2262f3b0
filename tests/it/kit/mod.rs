//! The test tools themselves: each does what it promises, and an assertion that should fail does.

mod drive;
mod idempotency;
mod script;
mod server;

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

/// Returns the message with which a future panics.
pub(crate) async fn panic_of<F: Future>(future: F) -> String {
    let panic = AssertUnwindSafe(future).catch_unwind().await.err().expect("it should have panicked");
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).expect("a panic has a message")
}
