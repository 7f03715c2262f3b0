//! Whether telemetry is suppressed here, because it is about sending telemetry.
//!
//! An exporter that sends its spans by HTTP would make a span for each of its requests, and send
//! that one too. OpenTelemetry marks the context of an exporter, and this crate heeds the mark.

use opentelemetry::Context;

/// Returns whether this code runs for an exporter.
pub(crate) fn is_suppressed() -> bool {
    Context::is_current_telemetry_suppressed()
}
