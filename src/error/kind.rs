//! What kind of failure an error is.

/// The kind of an [`Error`](crate::Error).
///
/// ```
/// use steadfast::ErrorKind;
///
/// fn http_status(error: &steadfast::Error) -> u16 {
///     match error.kind() {
///         ErrorKind::Timeout => 504,
///         ErrorKind::NotAdmitted => 503, // with `error.retry_after()`
///         _ => 502,
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting of the client or the request is invalid. The message names it. Nothing was sent.
    ///
    /// An error of reqwest's own builders becomes this kind, too.
    Build,
    /// A [resume token](crate::ResumeToken) was refused, and nothing was sent.
    ///
    /// The token is too old, belongs to another request, or comes from a clock that was more than
    /// 30 s ahead of this one. Or the operation may have been processed, and the API is not known
    /// to honour keys.
    KeyExpired,
    /// The client held the next attempt back, to spare the origin. Earlier attempts may have been
    /// sent.
    ///
    /// The origin's [circuit](crate::ClientBuilder::breaker) is open. Or its
    /// [cooldown](crate::ClientBuilder::cooldown) lasts longer than the deadline, or costs more
    /// tokens than the retry budget has. [`retry_after`](crate::Error::retry_after) tells you when
    /// to try again.
    NotAdmitted,
    /// A hook of yours ([`on_attempt`](crate::ClientBuilder::on_attempt)) returned an error, panicked,
    /// or wrote a header that it may not write. Nothing of that attempt was sent. Earlier attempts
    /// may have been sent.
    AttemptHook,
    /// There is no valid token: your closure ([`Refreshing`](crate::Refreshing)) failed, or its token
    /// belongs to somebody else. Nothing of that attempt was sent. Earlier attempts may have been
    /// sent.
    Credentials,
    /// No connection could be made. The message names the cause, such as a name that does not exist,
    /// or a proxy.
    Connect,
    /// The TLS handshake was rejected for a reason that will recur. Either side rejected the
    /// other's certificate, or they have no version or protocol in common.
    Certificate,
    /// The time limit of an attempt, or of the operation, has passed.
    Timeout,
    /// The connection was lost, or the server sent something other than HTTP.
    Transport,
    /// The request body could not be read or sent, for a reason on this side.
    RequestBody,
    /// The final response has a status other than 2xx and 3xx, or your
    /// [classifier](crate::ClientBuilder::classify) calls a 2xx a failure.
    Status,
    /// The client did not follow a redirect, or a [link](crate::ResponseExt::link) leads to another
    /// origin. `fetch` and `into_result` return this kind; `send` returns it only for redirects in a
    /// circle, or too many of them.
    ///
    /// The message names the target, and why the client does not follow.
    /// [`headers`](crate::Error::headers) has the `Location`.
    ///
    /// A POST, PUT, PATCH or DELETE with a response of 301 or 302 ends here, and may have been
    /// processed. If only the address has moved (a slash, https), check that nothing was done, and
    /// send the request to the new address.
    Redirect,
    /// The response body was cut short.
    ResponseBody,
    /// The response body is over the limit
    /// ([`ClientBuilder::body_limit`](crate::ClientBuilder::body_limit)).
    TooLarge,
    /// The response is 2xx and complete, and its body is not what you asked for: the JSON of your
    /// type, or what your [decoder](crate::RequestBuilder::fetch_with) reads. The operation *was*
    /// processed.
    Decode,
}
