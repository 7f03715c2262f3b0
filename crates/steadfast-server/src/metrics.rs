//! Counts of how operations ended: as numbers, and as tracing events.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counts since the layer was made, from
        /// [`IdempotencyLayer::metrics`](super::IdempotencyLayer::metrics).
        ///
        /// Each count is also a `tracing` event at debug level, with the target `steadfast::keys`
        /// and the count's name as `outcome`.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Metrics {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// Every operation touches the first counters, so they share one cache line. Between two
        /// cores, moving that line is the cost.
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
    /// Responses that were stored.
    stored,
    /// Ends that were stored without their response, because it was streamed or too long.
    not_kept,
    /// Responses that were replayed from a record.
    replayed,
    /// Repeats that were refused with 409 because the first request was still running.
    in_progress,
    /// Repeats that waited for the first request and got its response.
    waited,
    /// Requests whose key belongs to another request.
    mismatched,
    /// Repeats that were refused because the outcome of their operation is unknown.
    refused_unknown,
    /// Operations that this layer ended as unknown: after a panic, an error or an
    /// [`ExecutionOutcome::Unknown`](super::ExecutionOutcome).
    abandoned,
    /// Keys that were released.
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
    fn count_is_also_a_tracing_event() {
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
