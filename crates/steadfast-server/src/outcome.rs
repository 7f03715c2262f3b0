//! What you say about an outcome: the handler about its own response, and you about an operation
//! whose outcome is unknown.

/// What a repeat meets where an earlier attempt may have run and nobody knows how it ended: the process died, the handler panicked,
/// or its answer could not be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnUnknown {
    /// 409 of the type `…/outcome-unknown`. Somebody has to look; nothing is done twice.
    #[default]
    Reject,
    /// Run it again. Right where the handler itself is idempotent, or where what it did is undone when it dies. A client whose handler
    /// has failed so is told `Idempotency-Status: released`: it may ask again.
    Rerun,
}

/// What a handler knows of its own answer: put it into the response's extensions.
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
    /// Nothing was executed: the key is given back, and a repeat runs.
    NotExecuted,
    /// It was executed, and this is the answer, whatever its status: stored, effects and all.
    Executed,
    /// It may have been executed. A repeat meets [`OnUnknown`].
    Unknown,
}
