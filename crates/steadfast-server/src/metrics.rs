//! Counts of how operations ended: as numbers, as tracing events and on the request's span.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use http::request::Parts;
use http::{Method, Request, Uri};
use tracing::level_filters::LevelFilter;
use tracing::{Level, Span};

use super::store::RecordId;

/// What became of a request, on its span and in OpenTelemetry.
const OUTCOME: &str = "steadfast.idempotency.outcome";
/// How an operation ended.
const END: &str = "steadfast.idempotency.end";

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident = $message:literal, $field:ident $value:literal);* $(;)?) => {
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
        /// The crate `steadfast-otel` exports them by OpenTelemetry.
        ///
        /// Each count is also a `tracing` event at debug level, with the target `steadfast::keys`.
        /// It has a message and these fields:
        ///
        /// | field | value |
        /// | --- | --- |
        /// | `outcome` | the count's name |
        /// | `operation` | the record's identity, shortened; absent if the request has none |
        /// | `route` | the method and the path of the request, without its query |
        ///
        /// # On the request's span
        ///
        /// The layer makes no span. It records what only it knows on the span in which it is
        /// called, if that span has these fields:
        ///
        /// | field | value |
        /// | --- | --- |
        /// | `steadfast.idempotency.outcome` | what became of the request: `executed`, `replayed`, `waited`, `in_progress`, `mismatched`, `unknown`, `refused`, `store_down`, `too_many_running` |
        /// | `steadfast.idempotency.end` | how the operation ended, if this request ran or ended it: `stored`, `not_kept`, `released`, `unknown`, `lost` |
        ///
        /// A span takes only fields that it was created with. With tower-http:
        ///
        /// ```
        /// use axum::{Router, extract::Request, routing::post};
        /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
        /// use tower_http::trace::TraceLayer;
        /// use tracing::{field::Empty, info_span};
        ///
        /// let spans = TraceLayer::new_for_http().make_span_with(|request: &Request| {
        ///     info_span!(
        ///         "request",
        ///         otel.kind = "server",
        ///         http.request.method = %request.method(),
        ///         steadfast.idempotency.outcome = Empty,
        ///         steadfast.idempotency.end = Empty,
        ///     )
        /// });
        /// let idempotency = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
        /// let charges = post(async || "charged");
        /// // The last layer is the outermost, so the span is there when the other one is called.
        /// let app: Router = Router::new().route("/charges", charges).layer(idempotency).layer(spans);
        /// ```
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
                    attribute: ($field, $value),
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
                    $($name: Counter {
                        meaning: &Meaning {
                            name: stringify!($name),
                            message: $message,
                            attribute: ($field, $value),
                        },
                        value: AtomicU64::new(0),
                    },)*
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
    executed = "a handler was started under a key", OUTCOME "executed";
    /// Responses that were stored.
    stored = "a response was stored", END "stored";
    /// Ends that were stored without their response, because it was streamed or too long.
    not_kept = "an end was stored without its response", END "not_kept";
    /// Responses that were replayed from a record.
    replayed = "a stored response was replayed", OUTCOME "replayed";
    /// Repeats that were refused with 409 because the first request was still running.
    in_progress = "a repeat was refused: the first request is still running", OUTCOME "in_progress";
    /// Repeats that waited for the first request and got its response.
    waited = "a repeat has waited for the first request and got its response", OUTCOME "waited";
    /// Requests whose key belongs to another request.
    mismatched = "a request was refused: its key belongs to another request", OUTCOME "mismatched";
    /// Repeats that were refused because the outcome of their operation is unknown.
    refused_unknown = "a repeat was refused: the outcome of its operation is unknown", OUTCOME "unknown";
    /// Operations that this layer ended as unknown: after a panic, an error or an unknown outcome.
    abandoned = "an operation ended with an unknown outcome", END "unknown";
    /// Keys that were released, also by a rollback of the handler's transaction.
    released = "a key was released", END "released";
    /// Requests refused for their key, scope or size.
    refused = "a request was refused for its key, scope or size", OUTCOME "refused";
    /// Requests refused because the store could not be reached or was full.
    store_down = "a request was refused: its key could not be claimed", OUTCOME "store_down";
    /// Requests refused because as many handlers were running as may run at a time.
    too_many_running = "a request was refused: too many handlers are running", OUTCOME "too_many_running";
    /// Ends that could not be written.
    lost = "the end of an operation could not be written", END "lost";
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
    /// The [field of the span](Metrics#on-the-requests-span) that says the same, and its value:
    /// `("steadfast.idempotency.outcome", "replayed")`.
    pub attribute: (&'static str, &'static str),
}

#[derive(Debug)]
pub(super) struct Counter {
    meaning: &'static Meaning,
    value: AtomicU64,
}

/// What a counter counts.
#[derive(Debug)]
struct Meaning {
    name: &'static str,
    message: &'static str,
    attribute: (&'static str, &'static str),
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

/// Counts something that happened to a request, in the span of that request.
pub(super) fn count(counter: &Counter, id: Option<&RecordId>, route: &Route) {
    let Counter { meaning, value } = counter;
    value.fetch_add(1, Ordering::Relaxed);
    // One load, if nobody listens.
    if LevelFilter::current() != LevelFilter::OFF {
        tell(meaning, id, route);
    }
}

/// Tells those who listen. Apart from the count, so that it is small enough to be inlined.
#[cold]
fn tell(meaning: &Meaning, id: Option<&RecordId>, route: &Route) {
    let (field, value) = meaning.attribute;
    Span::current().record(field, value);
    let operation = id.map(tracing::field::debug);
    tracing::debug!(target: "steadfast::keys", outcome = meaning.name, operation, %route, "{}", meaning.message);
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

    /// A span has one outcome and one end, whatever is counted twice under it elsewhere.
    #[test]
    fn attributes_of_two_counts_differ() {
        let attributes: Vec<_> = Metrics::default().iter().map(|metric| metric.attribute).collect();
        let different: std::collections::HashSet<_> = attributes.iter().collect();
        assert_eq!(different.len(), attributes.len(), "{attributes:?}");
    }

    #[test]
    fn every_metric_has_name_description_and_value() {
        let metrics = Metrics { replayed: 7, lost: 9, ..Metrics::default() };
        let all: Vec<Metric> = metrics.iter().collect();
        let named = |name: &str| all.iter().find(|metric| metric.name == name).unwrap();
        assert_eq!((named("replayed").value, named("lost").value), (7, 9));
        assert_eq!(named("replayed").description, "Responses that were replayed from a record.");
        assert_eq!(named("refused_unknown").attribute, ("steadfast.idempotency.outcome", "unknown"));
        assert!(all.iter().all(|metric| metric.description.ends_with('.') && !metric.description.contains('[')));
        assert_eq!(all.iter().map(|metric| metric.value).sum::<u64>(), 16);
    }
}
