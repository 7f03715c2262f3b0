//! The outcome of an attempt as a classifier sees it, and what the classifier makes of it.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use super::class::{Class, Failure, Idempotency};

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
