//! How many keys ended how: as numbers for whoever asks, and as events for whoever listens.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counts since the layer was made, from [`IdempotencyLayer::metrics`](super::IdempotencyLayer::metrics).
        ///
        /// Each is also a `tracing` event at debug level, of the target `steadfast::keys`, with the count's name as `outcome`.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Metrics {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The first of them are touched by every operation, and stand on one cache line: between two cores it is the line that
        /// takes the time.
        #[derive(Debug)]
        #[repr(C, align(64))]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)*
        }

        impl Default for Counters {
            fn default() -> Self {
                Self { $($name: Counter { name: stringify!($name), value: AtomicU64::new(0) },)* }
            }
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> Metrics {
                Metrics { $($name: self.$name.value.load(Ordering::Relaxed),)* }
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

#[derive(Debug)]
pub(super) struct Counter {
    name: &'static str,
    value: AtomicU64,
}

pub(super) fn count(counter: &Counter) {
    counter.value.fetch_add(1, Ordering::Relaxed);
    tracing::debug!(target: "steadfast::keys", outcome = counter.name);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_counted_is_also_told() {
        let (log, counters) = (Log::default(), Counters::default());
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(subscriber.finish(), || count(&counters.replayed));
        assert_eq!(counters.snapshot(), Metrics { replayed: 1, ..Metrics::default() });
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("steadfast::keys") && log.contains("outcome=\"replayed\""), "{log}");
    }
}
