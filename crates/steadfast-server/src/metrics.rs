//! Counts of how operations ended: as numbers, and as tracing events.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use http::request::Parts;
use http::{Method, Request, Uri};
use tracing::Level;

use super::store::RecordId;

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident = $message:literal),* $(,)?) => {
        /// Counts since the layer was made, from
        /// [`IdempotencyLayer::metrics`](super::IdempotencyLayer::metrics).
        ///
        /// Every count only grows. [`iter`](Self::iter) returns them with their names, so that
        /// exporting them is one loop. In Prometheus's [text
        /// format](https://prometheus.io/docs/instrumenting/exposition_formats/):
        ///
        /// ```
        /// use std::fmt::Write;
        /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
        ///
        /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
        /// let mut page = String::new();
        /// for metric in layer.metrics().iter() {
        ///     let name = format!("idempotency_{}_total", metric.name);
        ///     writeln!(page, "# HELP {name} {}", metric.description)?;
        ///     writeln!(page, "# TYPE {name} counter")?;
        ///     writeln!(page, "{name} {}", metric.value)?;
        /// }
        /// let lines: Vec<&str> = page.lines().take(3).collect();
        /// assert_eq!(lines, [
        ///     "# HELP idempotency_executed_total Handlers that were started under a key.",
        ///     "# TYPE idempotency_executed_total counter",
        ///     "idempotency_executed_total 0",
        /// ]);
        /// # Ok::<(), std::fmt::Error>(())
        /// ```
        ///
        /// Each count is also a `tracing` event at debug level, with the target `steadfast::keys`.
        /// It has a message and these fields:
        ///
        /// | field | value |
        /// | --- | --- |
        /// | `outcome` | the count's name |
        /// | `operation` | the record's identity, shortened; absent if the request has none |
        /// | `route` | the method and the path of the request, without its query |
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Metrics {
            $($(#[doc = $doc])* pub $name: u64,)*
        }

        impl Metrics {
            /// Returns every count with its name and description, in the order of the fields.
            pub fn iter(&self) -> impl Iterator<Item = Metric> + use<> {
                [$(Metric {
                    name: stringify!($name),
                    description: concat!($($doc),*).trim_ascii_start(),
                    value: self.$name,
                },)*].into_iter()
            }
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
                Self {
                    $($name: Counter { name: stringify!($name), message: $message, value: AtomicU64::new(0) },)*
                }
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
    executed = "a handler was started under a key",
    /// Responses that were stored.
    stored = "a response was stored",
    /// Ends that were stored without their response, because it was streamed or too long.
    not_kept = "an end was stored without its response",
    /// Responses that were replayed from a record.
    replayed = "a stored response was replayed",
    /// Repeats that were refused with 409 because the first request was still running.
    in_progress = "a repeat was refused: the first request is still running",
    /// Repeats that waited for the first request and got its response.
    waited = "a repeat has waited for the first request and got its response",
    /// Requests whose key belongs to another request.
    mismatched = "a request was refused: its key belongs to another request",
    /// Repeats that were refused because the outcome of their operation is unknown.
    refused_unknown = "a repeat was refused: the outcome of its operation is unknown",
    /// Operations that this layer ended as unknown: after a panic, an error or an unknown outcome.
    abandoned = "an operation ended with an unknown outcome",
    /// Keys that were released, also by a rollback of the handler's transaction.
    released = "a key was released",
    /// Requests refused for their key, scope or size.
    refused = "a request was refused for its key, scope or size",
    /// Requests refused because the store could not be reached or was full.
    store_down = "a request was refused: its key could not be claimed",
    /// Requests refused because as many handlers were running as may run at a time.
    too_many_running = "a request was refused: too many handlers are running",
    /// Ends that could not be written.
    lost = "the end of an operation could not be written",
}

/// One count with its name, from [`Metrics::iter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric {
    /// The field's name, such as `replayed`.
    pub name: &'static str,
    /// One sentence about what is counted.
    pub description: &'static str,
    /// The count since the layer was made.
    pub value: u64,
}

#[derive(Debug)]
pub(super) struct Counter {
    name: &'static str,
    message: &'static str,
    value: AtomicU64,
}

/// The request that a tracing event is about. `None` if nobody reads such events: then nothing is
/// copied for them.
#[derive(Clone, Debug)]
pub(super) struct Route(Option<Box<(Method, Uri)>>);

impl Route {
    pub(super) fn of(parts: &Parts) -> Self {
        Self::new(&parts.method, &parts.uri)
    }

    pub(super) fn of_request<B>(request: &Request<B>) -> Self {
        Self::new(request.method(), request.uri())
    }

    fn new(method: &Method, uri: &Uri) -> Self {
        let is_read = tracing::enabled!(target: "steadfast::keys", Level::DEBUG);
        Self(is_read.then(|| Box::new((method.clone(), uri.clone()))))
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            // A query may hold what nobody should log.
            Some(route) => write!(f, "{} {}", route.0, route.1.path()),
            None => f.write_str("-"),
        }
    }
}

pub(super) fn count(counter: &Counter, id: Option<&RecordId>, route: &Route) {
    counter.value.fetch_add(1, Ordering::Relaxed);
    let operation = id.map(tracing::field::debug);
    tracing::debug!(target: "steadfast::keys", outcome = counter.name, operation, %route, "{}", counter.message);
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
        tracing::subscriber::with_default(subscriber.finish(), || {
            let request = Request::post("/charges?token=secret").body(()).unwrap();
            count(&counters.replayed, Some(&RecordId::new("", "k")), &Route::of_request(&request));
        });
        assert_eq!(counters.snapshot(), Metrics { replayed: 1, ..Metrics::default() });
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let short = format!("{:?}", RecordId::new("", "k"));
        for part in
            ["steadfast::keys", "a stored response was replayed", "outcome=\"replayed\"", "route=POST /charges\n"]
        {
            assert!(log.contains(part), "{part}: {log}");
        }
        assert!(log.contains(&format!("operation={short}")) && short.len() < 30, "{short}: {log}");
    }

    #[test]
    fn every_metric_has_name_description_and_value() {
        let metrics = Metrics { replayed: 7, lost: 9, ..Metrics::default() };
        let all: Vec<Metric> = metrics.iter().collect();
        let named = |name: &str| all.iter().find(|metric| metric.name == name).unwrap();
        assert_eq!((named("replayed").value, named("lost").value), (7, 9));
        assert_eq!(named("replayed").description, "Responses that were replayed from a record.");
        assert!(all.iter().all(|metric| metric.description.ends_with('.') && !metric.description.contains('[')));
        assert_eq!(all.iter().map(|metric| metric.value).sum::<u64>(), 16);
    }
}
