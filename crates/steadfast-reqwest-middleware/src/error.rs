//! What leaves the middleware as an error, and what comes into it from below.
//!
//! reqwest-middleware's error holds an `anyhow::Error`, which hides the type inside. Further layers
//! wrap it, often with thiserror's `transparent`. Such a wrapper passes the source of the inner
//! error on, and skips that error itself. So the error that leaves has two links: the error line,
//! and as its source the details. Both have the whole error, and one of them always survives.
//!
//! The chain ends there. The details name the causes without queries, and whoever prints the chain
//! would print the URLs in the errors of other middlewares.
//!
//! This is the one file of the crate that looks inside foreign errors. What it does not recognise
//! counts as ambiguous.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use http::{Method, StatusCode};
use reqwest::Url;
use reqwest_middleware::Error as Foreign;
use steadfast::{Error, TransportError, adapter};

/// The error that leaves the middleware. Displays the line.
#[derive(Debug)]
struct Failed(Details);

/// Its source. Displays the attempts and the causes, because the line has been printed before.
#[derive(Debug)]
struct Details(Error);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.0, f)
    }
}

impl StdError for Failed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = format!("{:#}", self.0);
        let details: Vec<&str> = whole.lines().skip(1).map(str::trim).collect();
        f.write_str(if details.is_empty() { "no attempt was made" } else { "in detail: " })?;
        f.write_str(&details.join("; "))
    }
}

impl StdError for Details {}

/// Wraps the error of an operation for the layers above. Retry layers take this variant for final.
pub(crate) fn hand_up(error: Error) -> Foreign {
    Foreign::middleware(Failed(Details(error)))
}

/// Reads an error from the layers below a request to `sent`. `has_acted`: a request of another
/// middleware of ours, sent during this attempt, may have been processed.
pub(crate) fn from_below(below: Foreign, has_acted: bool, sent: &(Method, Url)) -> TransportError {
    if has_acted {
        return TransportError::unsure(below);
    }
    let below = match into_error(below) {
        Ok(ours) => return ours.into(),
        Err(Foreign::Reqwest(below)) => return below.into(),
        Err(below) => below,
    };
    // Further layers are around ours, so its kind is not theirs. It may be about another request, which
    // one of them has sent after this one.
    let is_sure = |error: &Error| !error.may_have_been_processed() && adapter::is_about(error, &sent.0, &sent.1);
    let may_have_been_processed = !error(&below).is_some_and(is_sure);
    if may_have_been_processed { TransportError::unsure(below) } else { TransportError::not_sent(below) }
}

/// Returns steadfast's error inside another error: the attempts, the key, and whether the operation
/// may have been processed.
///
/// It finds the error in a `reqwest_middleware::Error`, and in an `anyhow::Error` around that. It
/// finds it in an error of yours too, if that has one of them as its source, or passes its source
/// on. Returns `None` if no operation of steadfast has failed.
///
/// ```no_run
/// use steadfast_reqwest_middleware::error;
///
/// # async fn example(client: reqwest_middleware::ClientWithMiddleware) {
/// let request = client.post("https://api.example.com/charges").body("12 EUR");
/// if let Err(failed) = request.send().await {
///     match error(&failed) {
///         Some(error) if !error.may_have_been_processed() => println!("not charged: {error}"),
///         Some(error) => println!("pending, key {:?}: {error}", error.idempotency_key()),
///         None => println!("pending: {failed}"),
///     }
/// }
/// # }
/// ```
///
/// An `anyhow::Error` and a boxed error are passed as `error(&*failed)`.
#[must_use]
pub fn error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    chain(error).find_map(|link| link.downcast_ref())
}

/// Takes steadfast's error out of reqwest-middleware's, for code that returns a
/// `steadfast::Result`.
///
/// # Errors
///
/// Returns the error as it was, if it is none of steadfast's or if another layer has wrapped it.
/// [`error()`] looks into wrappers too.
///
/// ```no_run
/// use steadfast_reqwest_middleware::into_error;
///
/// # use reqwest_middleware::ClientWithMiddleware;
/// # async fn example(client: ClientWithMiddleware) -> Result<(), Box<dyn std::error::Error>> {
/// let request = client.post("https://api.example.com/charges").body("12 EUR");
/// if let Err(failed) = request.send().await {
///     let error: steadfast::Error = into_error(failed)?;
///     println!("pending, key {:?}", error.idempotency_key());
/// }
/// # Ok(())
/// # }
/// ```
pub fn into_error(error: Foreign) -> Result<Error, Foreign> {
    let Foreign::Middleware(wrapped) = error else { return Err(error) };
    match wrapped.downcast::<Failed>() {
        Ok(Failed(Details(ours))) => Ok(ours),
        Err(wrapped) => wrapped.downcast::<Error>().map_err(Foreign::Middleware),
    }
}

/// Returns whether a time limit has passed. Answers for steadfast's error too, of which
/// reqwest-middleware's `is_timeout` knows nothing.
///
/// It is `true` if the last attempt or the whole operation ran out of time. As in reqwest, a
/// connect timeout is both [`is_connect`] and this.
///
/// ```
/// use steadfast_reqwest_middleware::is_timeout;
///
/// fn advice(failed: &reqwest_middleware::Error) -> &'static str {
///     if is_timeout(failed) { "the server is slow" } else { "see the log" }
/// }
/// ```
#[must_use]
pub fn is_timeout(error: &(dyn StdError + 'static)) -> bool {
    self::error(error).is_some_and(Error::is_timeout) || of_reqwest(error).is_some_and(reqwest::Error::is_timeout)
}

/// Returns whether a connection could not be made. Answers for steadfast's error too, of which
/// reqwest-middleware's `is_connect` knows nothing.
///
/// It describes the last attempt only. An earlier attempt may have been processed, and so may the
/// request before a redirect that the client below has followed. Ask
/// [`may_have_been_processed`](steadfast::Error::may_have_been_processed) before you send anything
/// again.
///
/// ```
/// use steadfast_reqwest_middleware::{error, is_connect};
///
/// fn is_safe_to_repeat(failed: &reqwest_middleware::Error) -> bool {
///     // Not `is_connect(failed)`.
///     error(failed).is_some_and(|error| !error.may_have_been_processed())
/// }
///
/// fn advice(failed: &reqwest_middleware::Error) -> &'static str {
///     if is_connect(failed) { "is the server up?" } else { "see the log" }
/// }
/// ```
#[must_use]
pub fn is_connect(error: &(dyn StdError + 'static)) -> bool {
    self::error(error).is_some_and(Error::is_connect) || of_reqwest(error).is_some_and(reqwest::Error::is_connect)
}

/// Returns the status of the last response, if an error has one. Answers for steadfast's error too,
/// of which reqwest-middleware's `status` knows nothing.
///
/// A final response is no error, whatever its status, so most errors have none.
///
/// ```
/// use steadfast_reqwest_middleware::status;
///
/// fn code(failed: &reqwest_middleware::Error) -> u16 {
///     status(failed).map_or(0, |status| status.as_u16())
/// }
/// ```
#[must_use]
pub fn status(error: &(dyn StdError + 'static)) -> Option<StatusCode> {
    match self::error(error) {
        Some(error) => error.status(),
        None => of_reqwest(error).and_then(reqwest::Error::status),
    }
}

fn of_reqwest<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a reqwest::Error> {
    chain(error).find_map(|link| link.downcast_ref())
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |link| inside(*link))
}

/// Returns what an error wraps. Three types do not show all of it as their source.
fn inside<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    if let Some(Details(ours)) = error.downcast_ref() {
        return Some(ours);
    }
    match error.downcast_ref::<Foreign>() {
        Some(Foreign::Middleware(wrapped)) => return Some(wrapped.as_ref()),
        Some(Foreign::Reqwest(wrapped)) => return Some(wrapped),
        None => {}
    }
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}
