//! The one error of the crate, written for the engineer on call.
//!
//! One line names the request, the failure, whether the operation may have been processed, and the
//! key of a further request:
//!
//! ```text
//! POST https://api.example.com/v1/charges: status 503 after 3 attempts in 1.8 s (attempts exhausted; may have been processed; key 1f0c33a2…)
//! ```
//!
//! No credential, whole key or query string is printed. Of a body there are only the server's words
//! about its error, shortened. From them only the key is removed: a server that echoes a credential
//! has it printed. Errors of other crates are kept without their URL, and their texts lose the
//! secret parts of every other URL. The test with planted secrets is `tests/it/secrets.rs`.
//!
//! It has types of the public API. Of the other modules it imports only `policy`, `cause` and those
//! with such types (the list is in `lib.rs`).

mod kind;
mod line;

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use crate::journal::{Attempt, OperationReport};
use crate::key::{IdempotencyKey, KeyError};
use crate::policy::{InvalidPolicy, StopReason};
use crate::problem::Problem;
use crate::resume::{ResumeToken, SafeUrl};

pub use self::kind::ErrorKind;

/// A `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Advice on the error line of an operation that stopped because its key is not trusted.
pub(crate) const VOUCH: &str = "if this API honours idempotency keys, say so: .keys(KeyPolicy::standard())";

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The error of an operation, with a report of every attempt.
///
/// A `reqwest::Error` converts into it, such as that of `text` on a response that
/// [`send`](crate::RequestBuilder::send) has returned. It knows nothing of the operation: it may
/// have been processed, and there are no attempts and no resume token.
///
/// Ask [`may_have_been_processed`](Self::may_have_been_processed) first. `Display` prints one line.
/// `{:#}` adds a line per attempt and a line per cause.
///
/// # The lines
///
/// | line | meaning | what to do |
/// | --- | --- | --- |
/// | `could not connect: connection refused` | nothing listens on this port | check address and server |
/// | `…: no such host`, `…: the name lookup failed` | the name does not exist, or the resolver failed | check the host name, or the resolver |
/// | `…: timed out (connect_timeout)` | no connection in time | check firewall and network, or raise [`connect_timeout`](crate::ClientBuilder::connect_timeout) |
/// | `…: no descriptor left in this process (EMFILE)` | this process has too many open files or sockets | find the leak, or raise `ulimit -n` |
/// | `…: the proxy wants a login (407)` | nothing has reached the server | give the proxy credentials by [`http`](crate::ClientBuilder::http) |
/// | `…: the proxy refused the tunnel (CONNECT)` | the proxy sent another status than 200, which the HTTP client does not report | read the proxy's log |
/// | `the server's certificate was rejected: …` | the client does not trust the server | renew the certificate, or trust its issuer by [`http`](crate::ClientBuilder::http) |
/// | `…: this host has no CA certificates` | an image without them | install `ca-certificates`, or set `SSL_CERT_FILE` |
/// | `the server requires a client certificate` | mutual TLS, and you gave none | set an identity by [`http`](crate::ClientBuilder::http) |
/// | `no response in time: the attempt_timeout has passed` | the server was too slow | raise [`attempt_timeout`](crate::ClientBuilder::attempt_timeout) |
/// | `(deadline exceeded: …)` | no time is left for another attempt; the words name whose time | raise that limit |
/// | `the on_attempt hook failed: …` | your hook returned an error or panicked, or wrote a header that it may not | correct the hook ([`on_attempt`](crate::ClientBuilder::on_attempt)) |
/// | `no credentials: …` | your closure returned no valid token | see its error, and the identity provider ([`credentials`](crate::ClientBuilder::credentials)) |
/// | `(retry-after too long for …)` | the server asks for a longer wait than the named limit allows | try again after [`retry_after`](Self::retry_after) |
/// | `the head of the response is over the limit (…)` | the server has responded, and the HTTP client refuses the response | raise the named setting by [`http`](crate::ClientBuilder::http) |
/// | `status 302, a redirect to … that is not followed (…); …` | the last words name the reason | [`max_redirects`](crate::ClientBuilder::max_redirects) has the rules |
/// | `…; redirected to …` | this address has failed, and not the first one | look at its server |
/// | `status 401 …; a redirect led to another origin, …` | credentials stay at their origin | call the new address with credentials for it |
/// | `status 402 …; the server says "…"` | the server's own words, shortened | act on them |
/// | `the response body is over the body_limit of … bytes` | the operation was carried out, and the response is refused here | raise [`body_limit`](crate::ClientBuilder::body_limit) |
/// | `(not repeatable; …)` | the server may have acted, and a second request could act twice | look up on the server whether it has acted |
/// | `(key not trusted; …)` | the API is not known to honour keys | state it by [`keys`](crate::ClientBuilder::keys) |
/// | `(body not replayable; …)` | the body was a stream, and is consumed | pass a [`body_factory`](crate::RequestBuilder::body_factory) |
/// | `(circuit open; …)` | this origin has failed too often | wait for [`retry_after`](Self::retry_after) |
/// | `(attempts exhausted; …)` | `max_attempts` is reached | raise [`max_attempts`](crate::policy::RetryPolicy::max_attempts), or try later |
/// | `(retry budget exhausted; …)` | too many calls to this origin fail | wait, or resize the [`budget`](crate::ClientBuilder::budget) |
///
/// # Example
///
/// ```
/// use steadfast::{Error, ResumeToken};
///
/// enum Next { NothingWasDone, Resume(ResumeToken), LookUp }
///
/// fn after(error: &Error) -> Next {
///     if !error.may_have_been_processed() {
///         return Next::NothingWasDone; // a new operation is safe
///     }
///     match error.resume_token() {
///         // If the API honours keys, send the same request under the same key, now or later.
///         Some(token) => Next::Resume(token.clone()),
///         // A new request could act twice. Look up on the server whether it has acted.
///         None => Next::LookUp,
///     }
/// }
/// ```
pub struct Error(Box<ErrorParts>);

struct ErrorParts {
    kind: ErrorKind,
    /// The failure, in a few words.
    what: Cow<'static, str>,
    method: Option<Method>,
    url: Option<String>,
    report: Option<OperationReport>,
    answer: Option<Answer>,
    source: Option<BoxError>,
    /// Where redirects have led, if they were followed.
    redirected_to: Option<String>,
    /// The token of an operation that was to be resumed and was not sent.
    resumed: Option<ResumeToken>,
    /// Present if the error was made outside of an operation, and knows nothing of it.
    outside: Option<Outside>,
}

struct Outside {
    status: Option<StatusCode>,
}

/// The final response, with at most the first 64 KiB of its body.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<Cow<'static, str>>) -> Self {
        let what = what.into();
        Self(Box::new(ErrorParts {
            kind,
            what,
            method: None,
            url: None,
            report: None,
            answer: None,
            source: None,
            redirected_to: None,
            resumed: None,
            outside: None,
        }))
    }

    /// Creates the error of an invalid policy.
    pub(crate) fn invalid(error: InvalidPolicy) -> Self {
        Self::new(ErrorKind::Build, error.to_string())
    }

    /// Creates the error of an invalid setting.
    pub(crate) fn build(setting: &str, reason: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Build, format!("{setting}: {reason}"))
    }

    pub(crate) fn at(mut self, method: &Method, url: impl fmt::Display) -> Self {
        self.0.method = Some(method.clone());
        self.0.url = Some(url.to_string());
        self
    }

    pub(crate) fn with_report(mut self, report: OperationReport) -> Self {
        self.0.method = Some(report.method.clone());
        self.0.report = Some(report);
        self
    }

    /// Adds the token of an operation that was to be resumed. Nothing was sent this time, but
    /// earlier attempts may have been processed.
    pub(crate) fn resuming(mut self, token: Option<ResumeToken>) -> Self {
        self.0.resumed = token;
        self
    }

    /// Marks an error that was made outside of an operation, and knows nothing of it.
    pub(crate) fn of_no_operation(mut self, status: Option<StatusCode>) -> Self {
        self.0.outside = Some(Outside { status });
        self
    }

    pub(crate) fn with_answer(mut self, answer: Answer) -> Self {
        self.0.answer = Some(answer);
        self
    }

    /// Adds the address that failed, if redirects have led from `asked` to another one.
    pub(crate) fn at_hop(mut self, asked: &reqwest::Url, last: &reqwest::Url) -> Self {
        let (asked, last) = (SafeUrl(asked).to_string(), SafeUrl(last).to_string());
        self.0.redirected_to = (asked != last).then_some(last);
        self
    }

    pub(crate) fn with_source(mut self, source: impl Into<Option<BoxError>>) -> Self {
        self.0.source = source.into();
        self
    }

    /// Returns the kind of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns whether the time limit of an attempt, or of the operation, has passed. A connect
    /// timeout is [`is_connect`](Self::is_connect) instead, because nothing was sent.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.0.kind == ErrorKind::Timeout
    }

    /// Returns whether no connection could be made.
    ///
    /// ```no_run
    /// # async fn example(client: steadfast::Client) {
    /// if let Err(error) = client.get("https://api.example.com").send().await
    ///     && error.is_connect()
    /// {
    ///     eprintln!("is the network up? {error}");
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn is_connect(&self) -> bool {
        self.0.kind == ErrorKind::Connect
    }

    /// Returns whether a setting is invalid. Nothing was sent.
    ///
    /// ```
    /// use steadfast::Client;
    ///
    /// let error = Client::builder().base_url("api.example.com").build().unwrap_err();
    /// assert!(error.is_build() && !error.may_have_been_processed());
    /// assert!(error.to_string().starts_with("base_url: "));
    /// ```
    #[must_use]
    pub fn is_build(&self) -> bool {
        self.0.kind == ErrorKind::Build
    }

    /// Returns why there was no further attempt. Returns `None` if the request was invalid, or if
    /// the error was converted from a `reqwest::Error`.
    ///
    /// ```
    /// use steadfast::{Error, policy::StopReason};
    ///
    /// fn advice(error: &Error) -> &'static str {
    ///     match error.stop_reason() {
    ///         Some(StopReason::KeyNotTrusted) => "tell the client that this API honours keys",
    ///         Some(StopReason::DeadlineExceeded) => "the timeout leaves no time for a retry",
    ///         _ => "see the attempts",
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.0.report.as_ref().map(|report| report.stop)
    }

    /// Returns whether the server may have carried out the operation.
    ///
    /// The evidence decides: how far each attempt got, and the class of its status in the default
    /// table. A classifier or a directive of the server does not change it.
    ///
    /// It is `true` in these cases:
    ///
    /// * an attempt was ambiguous;
    /// * a response was 2xx, or 3xx other than 307 and 308;
    /// * this side failed after the transport had taken a part of the request body.
    ///
    /// A final 4xx after an ambiguous attempt leaves it `true`. It is also `true` for an error that
    /// was converted from a `reqwest::Error`, because that does not tell.
    ///
    /// # Troubleshooting
    ///
    /// If it is `true`, do not start a new operation, because that could act twice. If the API
    /// honours idempotency keys, send the same request under the same key
    /// ([`resume_token`](Self::resume_token)). If it does not, look up on the server whether it has
    /// acted.
    ///
    /// ```no_run
    /// use serde_json::{Value, json};
    ///
    /// # async fn example(client: steadfast::Client) {
    /// let charge = json!({ "amount": 1200 });
    /// match client.post_json::<Value>("https://api.example.com/charges", &charge).await {
    ///     Ok(charged) => println!("charged: {}", charged["id"]),
    ///     Err(error) if error.may_have_been_processed() => println!("pending: {error}"),
    ///     Err(error) => println!("not charged: {error}"),
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn may_have_been_processed(&self) -> bool {
        let earlier = self.0.resumed.as_ref().is_some_and(ResumeToken::may_have_been_processed);
        let is_unknown = self.0.outside.is_some();
        is_unknown || earlier || self.0.report.as_ref().is_some_and(|report| report.may_have_been_processed)
    }

    /// Returns the key that the request carried, if it had one. `Display` prints its first
    /// characters only.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&IdempotencyKey> {
        self.0.report.as_ref().and_then(|report| report.key.as_ref())
    }

    /// Returns the token with which you can [resume](crate::RequestBuilder::resume) the operation
    /// later. Returns `None` if the request had no key.
    ///
    /// ```no_run
    /// # fn save(_: String) {}
    /// # fn example(error: &steadfast::Error) -> Result<(), serde_json::Error> {
    /// if let Some(token) = error.resume_token() {
    ///     save(serde_json::to_string(token)?); // beside the order that it belongs to
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn resume_token(&self) -> Option<&ResumeToken> {
        let of_report = self.0.report.as_ref().and_then(|report| report.resume.as_deref());
        of_report.or(self.0.resumed.as_ref())
    }

    /// Returns every attempt, in the order in which they ended. The last one decided the operation.
    /// Empty if nothing was sent, and if the error was converted from a `reqwest::Error`.
    ///
    /// ```
    /// fn log(error: &steadfast::Error) {
    ///     for attempt in error.attempts() {
    ///         eprintln!("{attempt}"); // attempt 2: ambiguous, status 503, 12 ms; next in 340 ms
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        self.0.report.as_ref().map_or(&[], |report| report.journal.attempts())
    }

    /// Returns the time from the start of the operation to its end, waits included.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.report.as_ref().map_or(Duration::ZERO, |report| report.elapsed)
    }

    /// Returns how long to wait before you try again, or `None` if that is not known.
    ///
    /// It is the wait that the last response asked for. If the client held the operation back, it
    /// is the rest of the open circuit or of the cooldown.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.report.as_ref().and_then(|report| report.retry_after)
    }

    /// Returns the status of the last response, if the last attempt had one.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        let answered = self.0.answer.as_ref().map(|answer| answer.status);
        let outside = self.0.outside.as_ref().and_then(|outside| outside.status);
        answered.or(outside).or_else(|| self.attempts().last().and_then(Attempt::status))
    }

    /// Returns the headers of the last response, if the error has kept them.
    #[must_use]
    pub fn headers(&self) -> Option<&HeaderMap> {
        self.0.answer.as_ref().map(|answer| &answer.headers)
    }

    /// Returns the body of the last response: at most its first 64 KiB.
    #[must_use]
    pub fn body(&self) -> Option<&[u8]> {
        self.0.answer.as_ref().map(|answer| &*answer.body)
    }

    /// Returns the problem details (RFC 9457) of the last response, if its type is
    /// `application/problem+json`.
    ///
    /// ```
    /// fn is_out_of_credit(error: &steadfast::Error) -> bool {
    ///     let Some(problem) = error.problem() else { return false };
    ///     problem.kind.as_deref() == Some("https://api.example.com/problems/out-of-credit")
    /// }
    /// ```
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        self.0.answer.as_ref().and_then(|answer| Problem::read(&answer.headers, &answer.body))
    }

    /// Feature `json`. Decodes the body of the last response as an error type of yours.
    ///
    /// # Errors
    ///
    /// There is no body, or it is not the JSON of an `E`.
    ///
    /// ```
    /// #[derive(serde::Deserialize)]
    /// struct ApiError { code: String }
    ///
    /// fn code(error: &steadfast::Error) -> Option<String> {
    ///     error.json::<ApiError>().ok().map(|api_error| api_error.code)
    /// }
    /// ```
    #[cfg(feature = "json")]
    pub fn json<E: serde::de::DeserializeOwned>(&self) -> std::result::Result<E, crate::DecodeError> {
        serde_json::from_slice(crate::problem::without_mark(self.body().unwrap_or_default()))
            .map_err(|error| crate::DecodeError::new(&error))
    }

    /// Returns the request's method, or `None` if the error came before there was a request.
    #[must_use]
    pub fn method(&self) -> Option<&Method> {
        self.0.method.as_ref()
    }

    /// Returns the URL without user information, query and fragment.
    #[must_use]
    pub fn url(&self) -> Option<&str> {
        self.0.url.as_deref()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// An invalid key, as an [`ErrorKind::Build`]. Nothing was sent.
impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        Self::build("idempotency_key", error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Journal, Reach, Withheld};
    use crate::policy::Class;

    fn report(stop: StopReason, may_have_been_processed: bool) -> OperationReport {
        let mut journal = Journal::default();
        for number in 1..=3 {
            journal.push(Attempt {
                number,
                reach: Reach::Answered,
                class: Class::Ambiguous,
                default_class: Class::Ambiguous,
                status: Some(StatusCode::SERVICE_UNAVAILABLE),
                failure: None,
                cause: None,
                elapsed: Duration::from_millis(40),
                wait: (number < 3).then_some(Duration::from_millis(850)),
                free_repeat: false,
                confirmation: None,
            });
        }
        let key = IdempotencyKey::restore("1f0c33a2-40d5-43dd-bc93-6894a57f9324", true, None).ok();
        let elapsed = Duration::from_millis(1820);
        OperationReport {
            method: Method::POST,
            key,
            journal,
            stop,
            elapsed,
            retry_after: None,
            may_have_been_processed,
            resume: None,
            not_followed: None,
            is_elsewhere: false,
            out_of_time: None,
            withheld: Withheld::default(),
        }
    }

    fn error(stop: StopReason, processed: bool) -> Error {
        let error = Error::new(ErrorKind::Status, "status 503").with_report(report(stop, processed));
        error.at(&Method::POST, "https://api.example.com/v1/charges")
    }

    #[test]
    fn error_is_displayed_as_one_line() {
        assert_eq!(
            error(StopReason::AttemptsExhausted, true).to_string(),
            "POST https://api.example.com/v1/charges: status 503 after 3 attempts in 1.8 s \
             (attempts exhausted; may have been processed; key 1f0c33a2…)"
        );
        assert!(error(StopReason::KeyNotTrusted, true).to_string().ends_with(
            "(key not trusted; may have been processed; key 1f0c33a2…); \
             if this API honours idempotency keys, say so: .keys(KeyPolicy::standard())"
        ));
        let build = Error::build("max_attempts", "it counts the first attempt, so it is at least 1");
        assert_eq!(
            build.to_string(),
            "max_attempts: it counts the first attempt, so it is at least 1 (nothing was sent)"
        );
    }

    #[test]
    fn alternate_form_adds_a_line_per_attempt() {
        let text = format!("{:#}", error(StopReason::AttemptsExhausted, true));
        assert_eq!(text.lines().count(), 4);
        assert!(text.contains("\n  attempt 2: ambiguous, status 503, 40 ms; next in 850 ms\n"), "{text}");
    }

    #[test]
    fn error_is_one_word_long() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
