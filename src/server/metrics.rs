//! How many keys ended how.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counts since the layer was made, from [`IdempotencyLayer::metrics`](super::IdempotencyLayer::metrics).
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Metrics {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> Metrics {
                Metrics { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Handlers that were started under a key.
    executed,
    /// Answers that were stored.
    stored,
    /// Ends that were stored without their answer: streamed, or too large.
    not_kept,
    /// Answers from the record.
    replayed,
    /// Repeats that came while the first was running, and were told so.
    in_progress,
    /// Repeats that waited for the first and got its answer.
    waited,
    /// Requests that came with another request's key.
    mismatched,
    /// Repeats of an operation whose outcome nobody knows.
    refused_unknown,
    /// Operations that ended as unknown here: a panic, an error, a verdict.
    abandoned,
    /// Keys that were given back.
    released,
    /// Requests refused for their key, scope or size.
    refused,
    /// Requests refused because the store could not be reached or was full.
    store_down,
    /// Ends that could not be written.
    lost,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
