//! Declarations about outcomes: the handler's about its own response, and yours about operations
//! whose outcome is unknown.

/// How the layer treats a repeat if the outcome of an earlier attempt is unknown: the process died,
/// the handler panicked, or its response could not be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnUnknown {
    /// Refuses the repeat with a 409 of the type `outcome-unknown`. Nothing is executed twice,
    /// and an operator has to look.
    #[default]
    Reject,
    /// Runs the operation again. Use it if the handler is idempotent itself, or if its effects are
    /// undone when it dies. If the handler fails, the client gets `Idempotency-Status: released`,
    /// which means that it may repeat the request.
    Rerun,
}

/// What a handler knows of its own response. Put it into the response's extensions.
///
/// ```
/// use http::{Response, StatusCode};
/// use steadfast_server::ExecutionOutcome;
///
/// fn refused() -> Response<String> {
///     let mut response = Response::new("try later".to_owned());
///     *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
///     // Nothing was charged: a repeat may run.
///     response.extensions_mut().insert(ExecutionOutcome::NotExecuted);
///     response
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExecutionOutcome {
    /// Nothing was executed. The key is released, and a repeat runs.
    NotExecuted,
    /// The operation was executed. This response is stored with its effects, whatever its status.
    Executed,
    /// The operation may have been executed. A repeat is treated as [`OnUnknown`] says.
    Unknown,
}
