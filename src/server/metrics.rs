//! How many keys ended how: as numbers for whoever asks, and as events for whoever listens.

use std::sync::atomic::{AtomicU64, Ordering};

use super::apart::{Stripe, Striped};

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

        /// What one stripe has counted. The first of them are touched by every operation, and stand on one cache line.
        #[derive(Debug)]
        #[repr(C)]
        pub(super) struct Counters {
            begun: AtomicU64,
            ended: AtomicU64,
            $(pub(super) $name: Counter,)*
        }

        impl Default for Counters {
            fn default() -> Self {
                Self { begun: AtomicU64::new(0), ended: AtomicU64::new(0), $($name: Counter { name: stringify!($name), value: AtomicU64::new(0) },)* }
            }
        }

        impl Striped<Counters> {
            pub(super) fn snapshot(&self) -> Metrics {
                let mut sum = Metrics::default();
                for counters in self.all() {
                    $(sum.$name += counters.$name.value.load(Ordering::Relaxed);)*
                }
                sum
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

impl Striped<Counters> {
    /// Those that this thread counts on.
    pub(super) fn mine(&self) -> &Counters {
        self.at(Stripe::of_this_thread())
    }

    /// Whether there was a moment in this call at which nothing was under way.
    ///
    /// Numbers that only grow can be read one after the other: what had ended was counted first, so if as much had begun by the end of
    /// the count, neither changed in between. Ordered with whoever ends, who looks for those that wait after it has counted.
    pub(super) fn were_at_rest(&self) -> bool {
        let sum = |number: fn(&Counters) -> &AtomicU64| {
            self.all().fold(0_u64, |sum, counters| sum.wrapping_add(number(counters).load(Ordering::SeqCst)))
        };
        let ended = sum(|counters| &counters.ended);
        ended == sum(|counters| &counters.begun)
    }
}

impl Counters {
    /// A request is under way.
    pub(super) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
    }

    /// One is no longer, wherever it began.
    pub(super) fn end(&self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
    }
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
        let (log, counters) = (Log::default(), Striped::<Counters>::default());
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(subscriber.finish(), || count(&counters.mine().replayed));
        assert_eq!(counters.snapshot(), Metrics { replayed: 1, ..Metrics::default() });
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("steadfast::keys") && log.contains("outcome=\"replayed\""), "{log}");
    }

    #[test]
    fn what_threads_have_counted_is_one_number() {
        let counters = Striped::<Counters>::default();
        let thousand = || (0..1000).for_each(|_| count(&counters.mine().stored));
        std::thread::scope(|scope| (0..4).for_each(|_| _ = scope.spawn(thousand)));
        assert_eq!(counters.snapshot(), Metrics { stored: 4000, ..Metrics::default() });
    }

    /// Each of two threads ends what the other has begun, after it has begun something of its own. Whoever counted what had begun first
    /// would find as many ends a moment later.
    #[test]
    fn what_goes_on_from_thread_to_thread_is_never_at_rest() {
        const LOOKS: u64 = 300_000;
        let (counters, turn, looks) = (Striped::<Counters>::default(), AtomicU64::new(0), AtomicU64::new(0));
        assert!(counters.were_at_rest());
        counters.mine().begin();
        let hand_on = |thread: u64| {
            while looks.load(Ordering::Relaxed) < LOOKS {
                if turn.load(Ordering::Acquire) % 2 == thread {
                    counters.mine().begin();
                    counters.mine().end();
                    turn.fetch_add(1, Ordering::Release);
                }
                std::thread::yield_now();
            }
        };
        let look = || {
            looks.fetch_add(1, Ordering::Relaxed);
            usize::from(counters.were_at_rest())
        };
        std::thread::scope(|scope| {
            scope.spawn(|| hand_on(0));
            scope.spawn(|| hand_on(1));
            assert_eq!((0..LOOKS).map(|_| look()).sum::<usize>(), 0);
        });
        counters.mine().end();
        assert!(counters.were_at_rest());
    }
}
