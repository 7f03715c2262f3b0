//! The class of an attempt, and the licence to act twice.
//!
//! The table from statuses and failures to classes is here and nowhere else. The guide shows it in
//! `guide/failures.md` of `steadfast`.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

/// The class of an attempt: whether the server can have acted on it.
///
/// The list is complete. A sixth class would change the one rule.
///
/// ```
/// use http::StatusCode;
/// use steadfast_core::Class;
///
/// assert_eq!(Class::of_status(StatusCode::TOO_MANY_REQUESTS), Class::Throttled);
/// assert_eq!(Class::of_status(StatusCode::BAD_GATEWAY), Class::Ambiguous);
/// ```
#[allow(clippy::exhaustive_enums, reason = "the rule is stated over exactly these five")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The server has acted (2xx), names another address (3xx), or changes the protocol (101).
    Success,
    /// The server cannot have acted. A repeat is safe for every method.
    NotProcessed,
    /// The server refused because of load. By convention it has not acted: slow down, then repeat.
    ///
    /// For an API that breaks the convention, set
    /// [`RetryPolicy::throttled_is_ambiguous`](crate::RetryPolicy::throttled_is_ambiguous).
    Throttled,
    /// The server may have acted. Repeat only if acting twice is harmless.
    Ambiguous,
    /// The same request would fail again.
    Permanent,
}

impl Class {
    /// Returns the class of a response by its status alone.
    ///
    /// | status | class | source |
    /// | --- | --- | --- |
    /// | 101, 2xx, 3xx | `Success` | RFC 9110 §15.2.2, §15.3, §15.4 |
    /// | 421, 425 | `NotProcessed` | RFC 9110 §15.5.20, RFC 8470 §5.2 |
    /// | 429 | `Throttled` | RFC 6585 §4 |
    /// | 408, 5xx but 501 and 505 | `Ambiguous` | a proxy or a timeout layer may answer after the handler has started |
    /// | 501, 505, other 4xx | `Permanent` | RFC 9110 §15.5, §15.6.2, §15.6.6 |
    /// | anything else | `Ambiguous` | unsure means ambiguous |
    ///
    /// 408 is ambiguous, although RFC 9110 §15.5.9 calls the request incomplete: common timeout
    /// layers send it after the handler has begun.
    ///
    /// The headers of a 403 or a 413 may say that it is a matter of load:
    /// [`of_response`](Self::of_response) reads them too.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            101 | 200..=399 => Self::Success,
            421 | 425 => Self::NotProcessed,
            429 => Self::Throttled,
            408 => Self::Ambiguous,
            501 | 505 | 400..=499 => Self::Permanent,
            _ => Self::Ambiguous,
        }
    }

    /// Returns the class in lower case, as logs and errors print it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::NotProcessed => "not processed",
            Self::Throttled => "throttled",
            Self::Ambiguous => "ambiguous",
            Self::Permanent => "permanent",
        }
    }
}

/// The licence to repeat a request: the reason why acting twice is harmless, if it is.
///
/// ```
/// use http::Method;
/// use steadfast_core::Idempotency;
///
/// assert_eq!(Idempotency::of_method(&Method::PUT), Idempotency::Natural);
/// assert_eq!(Idempotency::of_method(&Method::POST), Idempotency::Absent);
/// ```
#[allow(clippy::exhaustive_enums, reason = "a licence exists by the method, by a key, or not at all")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Idempotency {
    /// The method makes it harmless: GET, HEAD, OPTIONS, TRACE, PUT, DELETE or QUERY (RFC 9110
    /// §9.2.2; QUERY: RFC 10008).
    Natural,
    /// The request carries an idempotency key, and the API honours keys.
    Keyed,
    /// There is no licence: acting twice has two effects.
    Absent,
}

impl Idempotency {
    /// Returns the licence of the method alone: [`Natural`](Self::Natural) or
    /// [`Absent`](Self::Absent).
    #[must_use]
    pub fn of_method(method: &Method) -> Self {
        match method.as_str() {
            "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE" | "QUERY" => Self::Natural,
            _ => Self::Absent,
        }
    }
}

/// Returns whether a method is safe, that is read-only (RFC 9110 §9.2.1; QUERY: RFC 10008).
#[inline]
#[doc(hidden)]
pub fn is_safe(method: &Method) -> bool {
    method.is_safe() || method.as_str() == "QUERY"
}

/// How an attempt failed without a response. The names tell how far the request can have got.
///
/// ```
/// use steadfast_core::{Class, Failure};
///
/// assert_eq!(Failure::Connect.class(), Class::NotProcessed); // every request may be repeated
/// assert_eq!(Failure::Disconnected.class(), Class::Ambiguous); // only with a licence
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// No connection was made: name resolution failed, the server refused, or the connect timeout
    /// passed. `NotProcessed`.
    Connect,
    /// No connection was made, because this process or its host lacks file descriptors or memory.
    /// `NotProcessed`. The server has seen nothing, so a retry takes no tokens from its budget, and
    /// the attempt does not count for its breaker.
    LocalResources,
    /// The server's certificate or the TLS handshake was rejected. `Permanent`: it will be rejected
    /// again. With TLS 1.3 the server rejects the *client's* certificate after the handshake, and
    /// before it reads the request.
    Certificate,
    /// The proxy wants a login (407, RFC 9110 §15.5.8) before it opens a tunnel to the server.
    /// `Permanent`: nothing has reached the server, and a repeat gets the same response.
    ProxyLogin,
    /// The connection closed, or the time limit passed, before the transport took anything of the
    /// request. `NotProcessed`.
    NotSent,
    /// HTTP/2: the server stated that it has not acted (`REFUSED_STREAM`, or `GOAWAY` below this
    /// stream; RFC 9113 §8.7). `NotProcessed`.
    Refused,
    /// The attempt timeout passed after the request may have left. `Ambiguous`.
    Timeout,
    /// A time limit passed while the transport was taking the request body: it had stalled, or the
    /// operation's time was up. `Ambiguous`.
    UploadTimeout,
    /// The transport was taking the request body, too slowly for a limit that each attempt has.
    /// `Ambiguous`, and not repeated: see
    /// [`StopReason::UploadTooSlow`](crate::StopReason::UploadTooSlow).
    UploadTooSlow,
    /// The connection was lost after the request may have left. `Ambiguous`.
    Disconnected,
    /// The server sent something other than HTTP. `Ambiguous`.
    BadResponse,
    /// The head of a response arrived, and its body was cut short or timed out. `Ambiguous`.
    BodyCut,
    /// The request body failed on this side. `Permanent`, and the server may have acted on a part.
    RequestBody,
    /// The server redirected in a circle, or too often. `Permanent`.
    Redirects,
    /// The HTTP client refused to send the request at all. `Permanent`.
    InvalidRequest,
    /// The client dropped the attempt while it was under way, because the other attempt of a hedged
    /// pair got a response first. `Ambiguous`.
    HedgeCancelled,
    /// Anything else. `Ambiguous`.
    Unknown,
}

impl Failure {
    /// Returns the class that the default table gives this failure.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::Connect | Self::LocalResources | Self::NotSent | Self::Refused => Class::NotProcessed,
            Self::Certificate | Self::ProxyLogin | Self::RequestBody | Self::Redirects | Self::InvalidRequest => {
                Class::Permanent
            }
            Self::Timeout
            | Self::UploadTimeout
            | Self::UploadTooSlow
            | Self::Disconnected
            | Self::BadResponse
            | Self::BodyCut
            | Self::HedgeCancelled
            | Self::Unknown => Class::Ambiguous,
        }
    }

    /// Returns what happened, in a few words for an error line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "could not connect",
            Self::LocalResources => "could not connect: no descriptor or memory left",
            Self::Certificate => "the server's certificate was rejected",
            Self::ProxyLogin => "could not connect: the proxy wants a login (407)",
            Self::NotSent => "nothing was sent",
            Self::Refused => "refused by the server before processing",
            Self::Timeout => "no response in time",
            Self::UploadTimeout => "timed out while sending the body",
            Self::UploadTooSlow => "the upload was too slow",
            Self::Disconnected => "connection lost before the response",
            Self::BadResponse => "the response is not HTTP",
            Self::BodyCut => "the response body was cut short",
            Self::RequestBody => "the request body failed",
            Self::Redirects => "too many redirects",
            Self::InvalidRequest => "the request was not sendable",
            Self::HedgeCancelled => "dropped, since the other attempt got a response first",
            Self::Unknown => "failed in an unknown way",
        }
    }
}

/// The outcome of an attempt, as the argument of a classifier.
///
/// [`ClientBuilder::classify`](https://docs.rs/steadfast/latest/steadfast/struct.ClientBuilder.html#method.classify)
/// takes a closure from an outcome to a [`Class`] or a [`Classification`]:
///
/// ```
/// use http::{HeaderMap, Method, StatusCode};
/// use steadfast_core::{Class, Idempotency, Outcome};
///
/// // An API that sends 503 only before it acts.
/// let classify = |outcome: &Outcome<'_>| match outcome.status() {
///     Some(StatusCode::SERVICE_UNAVAILABLE) => Class::NotProcessed,
///     _ => outcome.default_class(),
/// };
///
/// let (status, headers) = (StatusCode::SERVICE_UNAVAILABLE, HeaderMap::new());
/// let outcome = Outcome::answered(&Method::POST, Idempotency::Absent, status, &headers);
/// assert_eq!(outcome.default_class(), Class::Ambiguous);
/// assert_eq!(classify(&outcome), Class::NotProcessed);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    method: &'a Method,
    idempotency: Idempotency,
    answer: Option<(StatusCode, &'a HeaderMap)>,
    failure: Option<Failure>,
    body: Option<&'a [u8]>,
    default_class: Class,
}

impl<'a> Outcome<'a> {
    /// Creates the outcome of an attempt with a response. Its default class is that of the
    /// [status](Class::of_status).
    #[must_use]
    pub fn answered(method: &'a Method, idempotency: Idempotency, status: StatusCode, headers: &'a HeaderMap) -> Self {
        let default_class = Class::of_status(status);
        Self { method, idempotency, answer: Some((status, headers)), failure: None, body: None, default_class }
    }

    /// Creates the outcome of an attempt that failed without a response.
    ///
    /// ```
    /// use http::Method;
    /// use steadfast_core::{Class, Failure, Idempotency, Outcome};
    ///
    /// let outcome = Outcome::failed(&Method::GET, Idempotency::Natural, Failure::Timeout);
    /// assert_eq!(outcome.default_class(), Class::Ambiguous);
    /// assert_eq!(outcome.status(), None);
    /// ```
    #[must_use]
    pub fn failed(method: &'a Method, idempotency: Idempotency, failure: Failure) -> Self {
        Self { method, idempotency, answer: None, failure: Some(failure), body: None, default_class: failure.class() }
    }

    /// Adds the response's body.
    ///
    /// ```
    /// use http::{HeaderMap, Method, StatusCode};
    /// use steadfast_core::{Idempotency, Outcome};
    ///
    /// let headers = HeaderMap::new();
    /// let outcome = Outcome::answered(&Method::GET, Idempotency::Natural, StatusCode::OK, &headers);
    /// assert_eq!(outcome.body(), None);
    /// assert_eq!(outcome.with_body(b"{}").body(), Some(&b"{}"[..]));
    /// ```
    #[must_use]
    pub fn with_body(self, body: &'a [u8]) -> Self {
        Self { body: Some(body), ..self }
    }

    /// Replaces the default class, for a client that knows more than the status, as with a 409
    /// under a key.
    #[doc(hidden)]
    pub fn with_default_class(self, default_class: Class) -> Self {
        Self { default_class, ..self }
    }

    /// Turns the outcome into a failure after the head. Status and headers stay readable.
    #[doc(hidden)]
    pub fn with_failure(self, failure: Failure) -> Self {
        Self { failure: Some(failure), default_class: failure.class(), ..self }
    }

    /// Returns the request's method.
    #[must_use]
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// Returns the response's status, if its head arrived.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        self.answer.map(|(status, _)| status)
    }

    /// Returns the response's headers, if its head arrived.
    #[must_use]
    pub fn headers(&self) -> Option<&'a HeaderMap> {
        self.answer.map(|(_, headers)| headers)
    }

    /// Returns the response's body, if it was read inside the attempt.
    ///
    /// In the client, `fetch` and its relatives read it, and `send` does not. It is at most as long
    /// as the client's limit: that of bodies for a 2xx, and 64 KiB for any other status. Of a longer
    /// body it is the beginning, and so it is if the body of an error does not arrive within 500 ms.
    #[must_use]
    pub fn body(&self) -> Option<&'a [u8]> {
        self.body
    }

    /// Returns how the attempt failed, if it did. If the body was cut after the head, the outcome
    /// has both a status and a failure.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// Returns the licence to repeat this request.
    #[must_use]
    pub fn idempotency(&self) -> Idempotency {
        self.idempotency
    }

    /// Returns the class of the default table. Return it for all outcomes that your closure does
    /// not handle.
    #[must_use]
    pub fn default_class(&self) -> Class {
        self.default_class
    }
}

/// What a classifier makes of an outcome: its class, and perhaps the wait before the next attempt.
///
/// A [`Class`] converts into one without a wait.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::{Class, Classification};
///
/// let later = Classification::new(Class::Throttled).after(Duration::from_secs(5));
/// assert_eq!((later.class, later.after), (Class::Throttled, Some(Duration::from_secs(5))));
/// assert_eq!(Classification::from(Class::Permanent).after, None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Classification {
    /// The class that decides.
    pub class: Class,
    /// The shortest wait before the next attempt. `None`, the default, keeps the wait that the
    /// response asks for.
    pub after: Option<Duration>,
}

impl Classification {
    /// Creates a classification without a wait.
    #[must_use]
    pub fn new(class: Class) -> Self {
        Self { class, after: None }
    }

    /// Sets the shortest wait before the next attempt, in place of the one that the response asks
    /// for. As with that one, the jittered wait is added to it, and if it is longer than
    /// [`max_retry_after`](crate::RetryPolicy::max_retry_after) or the time left, the operation
    /// ends.
    #[must_use]
    pub fn after(mut self, wait: Duration) -> Self {
        self.after = Some(wait);
        self
    }
}

impl From<Class> for Classification {
    fn from(class: Class) -> Self {
        Self::new(class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(of: Class) -> Vec<u16> {
        (100..=599).filter(|code| Class::of_status(StatusCode::from_u16(*code).unwrap()) == of).collect()
    }

    #[test]
    fn every_status_has_its_class_in_table() {
        assert_eq!(classes(Class::Success), [101].into_iter().chain(200..=399).collect::<Vec<_>>());
        assert_eq!(classes(Class::NotProcessed), [421, 425]);
        assert_eq!(classes(Class::Throttled), [429]);
        let interim = (100..=199).filter(|code| *code != 101);
        let ambiguous: Vec<u16> =
            interim.chain([408]).chain((500..=599).filter(|code| ![501, 505].contains(code))).collect();
        assert_eq!(classes(Class::Ambiguous), ambiguous);
        assert_eq!(classes(Class::Permanent).len(), 500 - 201 - 2 - 1 - ambiguous.len());
    }

    #[test]
    fn statuses_outside_the_registry_are_ambiguous() {
        assert_eq!(Class::of_status(StatusCode::from_u16(700).unwrap()), Class::Ambiguous);
    }

    #[test]
    fn only_the_seven_methods_are_natural() {
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "QUERY"] {
            assert_eq!(Idempotency::of_method(&method.parse().unwrap()), Idempotency::Natural, "{method}");
        }
        for method in ["POST", "PATCH", "CONNECT", "get", "LINK", "MKCOL"] {
            assert_eq!(Idempotency::of_method(&method.parse().unwrap()), Idempotency::Absent, "{method}");
        }
    }
}
