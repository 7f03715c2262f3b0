//! The class of an attempt, and the licence to act twice.
//!
//! The table from statuses and failures to classes is here and nowhere else. The guide shows it in
//! `guide/failures.md` of `steadfast`.

use http::{Method, StatusCode};

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

    /// Returns the class as one word, for a label of a metric.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NotProcessed => "not_processed",
            other => other.as_str(),
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
    /// A hook that writes headers of the attempt failed, so nothing of it was sent. `Permanent`.
    AttemptHook,
    /// There were no valid credentials for the attempt, so nothing of it was sent. `Permanent`.
    Credentials,
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
            Self::Certificate
            | Self::ProxyLogin
            | Self::RequestBody
            | Self::Redirects
            | Self::InvalidRequest
            | Self::AttemptHook
            | Self::Credentials => Class::Permanent,
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
            Self::AttemptHook => "the on_attempt hook failed",
            Self::Credentials => "no credentials",
            Self::HedgeCancelled => "dropped, since the other attempt got a response first",
            Self::Unknown => "failed in an unknown way",
        }
    }

    /// Returns the failure as one word: the `error.type` of OpenTelemetry's conventions, and a label
    /// of a metric. `_OTHER`, the conventions' own word, stands for [`Unknown`](Self::Unknown).
    ///
    /// ```
    /// use steadfast_core::Failure;
    ///
    /// assert_eq!(Failure::Timeout.label(), "timeout");
    /// ```
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::LocalResources => "local_resources",
            Self::Certificate => "certificate",
            Self::ProxyLogin => "proxy_login",
            Self::NotSent => "not_sent",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::UploadTimeout => "upload_timeout",
            Self::UploadTooSlow => "upload_too_slow",
            Self::Disconnected => "disconnected",
            Self::BadResponse => "bad_response",
            Self::BodyCut => "body_cut",
            Self::RequestBody => "request_body",
            Self::Redirects => "redirects",
            Self::InvalidRequest => "invalid_request",
            Self::AttemptHook => "attempt_hook",
            Self::Credentials => "credentials",
            Self::HedgeCancelled => "hedge_cancelled",
            Self::Unknown => "_OTHER",
        }
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
