//! What a client tells `tracing` about its operations.

use super::ClientBuilder;

impl ClientBuilder {
    /// Sets whether operations and their requests have spans. Default: `true`.
    ///
    /// A span costs nothing until a subscriber of `tracing` listens to the target
    /// `steadfast::spans` at INFO. [The guide](crate::guide::observability) lists the attributes.
    ///
    /// Turn them off for a client that sends telemetry itself. Otherwise each span that it exports
    /// would bring another one.
    ///
    /// ```
    /// // The client of an exporter.
    /// let exporter = steadfast::Client::builder().base_url("http://localhost:4318").spans(false);
    /// ```
    pub fn spans(mut self, yes: bool) -> Self {
        self.spans = yes;
        self
    }
}
