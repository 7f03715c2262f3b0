//! The trace context in the headers of every attempt.
//!
//! A `traceparent` that is written once per request names one span for all its attempts. The
//! server's span then hangs below the wrong one. So a hook writes it for each send, from the span of
//! that send. The client calls no hook once a redirect has left the operation's origin, so another
//! origin learns nothing of the trace.

use std::error::Error;
use std::future::poll_fn;
use std::pin::pin;

use opentelemetry::propagation::Injector;
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry::{Context, global};
use steadfast::AttemptHead;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::suppression::is_suppressed;

type BoxError = Box<dyn Error + Send + Sync>;

/// The mark of a context whose requests carry no trace context.
struct NotPropagated;

/// Returns a hook that writes the trace context into each request: `traceparent`, and whatever else
/// the [global propagator](global::set_text_map_propagator) writes, such as `baggage`.
///
/// It is that of the span of this send, so each attempt has its own. Requests to another origin
/// after a redirect have none. The hook replaces headers of the same names that you set.
///
/// It is off for a client without this hook, for one request by [`without_propagation`], and for an
/// [exporter](crate#exporters).
///
/// ```
/// use opentelemetry::global;
/// use opentelemetry_sdk::propagation::TraceContextPropagator;
/// use steadfast::Client;
///
/// # fn example() -> steadfast::Result<()> {
/// global::set_text_map_propagator(TraceContextPropagator::new());
/// let client = Client::builder().on_attempt(steadfast_otel::propagate()).build()?;
/// # drop(client);
/// # Ok(())
/// # }
/// ```
pub fn propagate() -> impl Fn(&mut AttemptHead<'_>) -> Result<(), BoxError> + Send + Sync + 'static {
    |head| {
        let current = Context::current();
        let span = Span::current().context();
        let is_off = [&current, &span].iter().any(|context| context.get::<NotPropagated>().is_some());
        if is_off || is_suppressed() {
            return Ok(());
        }
        // Without tracing-opentelemetry there may be a span of OpenTelemetry itself.
        let context = if span.span().span_context().is_valid() { span } else { current };
        let mut headers = Vec::new();
        global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut Headers(&mut headers));
        });
        headers.into_iter().try_for_each(|(name, value)| head.insert(name, value))
    }
}

/// Runs `request` without writing the trace context into its headers.
///
/// It has no effect on a [detached](steadfast::RequestBuilder::detached) request, which runs in
/// another task.
///
/// ```no_run
/// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
/// let partner = client.get("https://partner.example.com/prices");
/// let prices = steadfast_otel::without_propagation(partner.send()).await?;
/// # drop(prices);
/// # Ok(())
/// # }
/// ```
pub async fn without_propagation<F: Future>(request: F) -> F::Output {
    let mut request = pin!(request);
    poll_fn(|cx| {
        let _marked = Context::current_with_value(NotPropagated).attach();
        request.as_mut().poll(cx)
    })
    .await
}

/// The headers that a propagator writes.
struct Headers<'a>(&'a mut Vec<(String, String)>);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.push((key.to_owned(), value));
    }
}
