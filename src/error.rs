//! The one error of the crate, written for the person who is woken by it.
//!
//! One line says what was asked, what came of it, whether the operation may have been carried out, and with which key to ask
//! again:
//!
//! ```text
//! POST https://api.example.com/v1/charges: status 503 after 3 attempts in 1.8 s (attempts exhausted; may have been processed; key 1f0c33a2…)
//! ```
//!
//! Nothing here prints a credential, a whole key, a query string or a body; foreign errors are kept without their URL.
//!
//! Floor 1: words shared with callers. The planted-secrets test is in `tests/it/secrets.rs`.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use crate::journal::{Attempt, OperationReport, ShortDuration};
use crate::key::IdempotencyKey;
use crate::policy::{InvalidPolicy, StopReason};
use crate::problem::Problem;
use crate::resume::ResumeToken;

/// A `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The line that would change a refusal to repeat.
pub(crate) const VOUCH: &str = "if this API honours idempotency keys, say so: .keys(KeyPolicy::standard())";

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What an operation ended in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting of the client or the request is invalid; nothing was sent. The message names it.
    Build,
    /// A resume token was refused, and nothing was sent: the token is too old, belongs to another
    /// request, or comes from a clock that was more than 30 s ahead of this one; or the operation
    /// may have been processed, and the API is not known to honour keys.
    KeyExpired,
    /// The client did not send this attempt, to spare the origin: its [circuit](crate::ClientBuilder::breaker) is open, or its
    /// [cooldown](crate::ClientBuilder::cooldown) outlasts the deadline or costs more than the retry budget has.
    /// [`retry_after`](Error::retry_after) says when to come back. Earlier attempts of the operation may have been sent.
    NotAdmitted,
    /// No connection could be made.
    Connect,
    /// The TLS handshake was refused for a reason that will recur: a certificate (the server's, or ours by the server), or no version or
    /// protocol in common.
    Certificate,
    /// An attempt, or the operation, ran out of time.
    Timeout,
    /// The connection was lost, or what came back is not HTTP.
    Transport,
    /// The request's own body failed.
    RequestBody,
    /// A final status that is neither 2xx nor 3xx.
    Status,
    /// A redirect that is not followed, where a body was asked for; or redirects in a circle, or
    /// too many of them. The message names where the redirect leads and why it is not followed;
    /// [`headers`](Error::headers) has its `Location`.
    ///
    /// A POST, PUT, PATCH or DELETE that is answered 301 or 302 ends here, and may have been
    /// processed. If the address has only moved (a slash, https), check that nothing was done, and
    /// call the new one.
    Redirect,
    /// The answer's body was cut short.
    ResponseBody,
    /// The answer's body is over the limit ([`ClientBuilder::body_limit`](crate::ClientBuilder::body_limit)).
    TooLarge,
    /// The answer's complete 2xx body is not the JSON that was asked for. The operation *was* processed.
    Decode,
}

/// Why an operation failed, and everything that happened on the way.
///
/// `Display` is one line; `{:#}` adds a line per attempt and one per cause. [`may_have_been_processed`](Self::may_have_been_processed) is the
/// question to ask first.
///
/// ```
/// # fn example(error: steadfast::Error) {
/// if error.may_have_been_processed() {
///     // Do not start a new operation. If the API honours keys, ask again under the same one, now or later; else look it up there.
///     let token = error.resume_token();
/// }
/// # }
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    /// What happened, in a few words.
    what: Cow<'static, str>,
    method: Option<Method>,
    url: Option<String>,
    report: Option<OperationReport>,
    answer: Option<Answer>,
    source: Option<BoxError>,
    /// What was to be resumed and was not sent.
    resumed: Option<ResumeToken>,
}

/// The final answer, as far as an error keeps it.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<Cow<'static, str>>) -> Self {
        let what = what.into();
        Self(Box::new(Inner {
            kind,
            what,
            method: None,
            url: None,
            report: None,
            answer: None,
            source: None,
            resumed: None,
        }))
    }

    /// A policy that makes no sense.
    pub(crate) fn invalid(error: InvalidPolicy) -> Self {
        Self::new(ErrorKind::Build, error.to_string())
    }

    /// An invalid setting.
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

    /// An operation that was to be resumed and was refused before anything was sent: what may have been done before stays true.
    pub(crate) fn resuming(mut self, token: Option<ResumeToken>) -> Self {
        self.0.resumed = token;
        self
    }

    pub(crate) fn with_answer(mut self, answer: Answer) -> Self {
        self.0.answer = Some(answer);
        self
    }

    pub(crate) fn with_source(mut self, source: impl Into<Option<BoxError>>) -> Self {
        self.0.source = source.into();
        self
    }

    /// What happened and what caused it, on one line, without the story.
    pub(crate) fn in_short(&self) -> String {
        self.causes().fold(self.0.what.to_string(), |text, cause| format!("{text}: {cause}"))
    }

    fn causes(&self) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
        std::iter::successors(std::error::Error::source(self), |cause| cause.source())
    }

    /// What it ended in.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// An attempt, or the operation, ran out of time. A connect timeout is [`is_connect`](Self::is_connect) instead: nothing was sent.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.0.kind == ErrorKind::Timeout
    }

    /// No connection could be made.
    #[must_use]
    pub fn is_connect(&self) -> bool {
        self.0.kind == ErrorKind::Connect
    }

    /// Nothing was sent: a setting is invalid.
    #[must_use]
    pub fn is_build(&self) -> bool {
        self.0.kind == ErrorKind::Build
    }

    /// Why it was not tried, or not again; `None` if it was invalid before it began.
    #[must_use]
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.0.report.as_ref().map(|report| report.stop)
    }

    /// Whether the server may have carried out the operation.
    ///
    /// It comes from evidence — how far each attempt got, and the class that the default table
    /// gives its status — and not from what a classifier or a directive said. True if any attempt
    /// was ambiguous, if any was answered 2xx, or 3xx other than 307 and 308, or if our side failed
    /// after the transport had taken part of the body. A final 4xx after an ambiguous attempt
    /// leaves it true.
    ///
    /// # Troubleshooting
    ///
    /// If it is true, do not start a new operation: that is a second effect. If the API honours idempotency keys, send the same
    /// request under the same key ([`resume_token`](Self::resume_token)); if not, look up at the server whether it was carried out.
    #[must_use]
    pub fn may_have_been_processed(&self) -> bool {
        let earlier = self.0.resumed.as_ref().is_some_and(ResumeToken::may_have_been_processed);
        earlier || self.0.report.as_ref().is_some_and(|report| report.may_have_been_processed)
    }

    /// The key that was sent.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&IdempotencyKey> {
        self.0.report.as_ref().and_then(|report| report.key.as_ref())
    }

    /// What is needed to ask again for the same operation later; `None` if it was sent without a key.
    #[must_use]
    pub fn resume_token(&self) -> Option<&ResumeToken> {
        let of_report = self.0.report.as_ref().and_then(|report| report.resume.as_deref());
        of_report.or(self.0.resumed.as_ref())
    }

    /// Every attempt, in the order in which they ended, so that the last is the one that was decided on; empty if nothing was sent.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        self.0.report.as_ref().map_or(&[], |report| report.journal.attempts())
    }

    /// From the start of the operation to its end, waits included.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.report.as_ref().map_or(Duration::ZERO, |report| report.elapsed)
    }

    /// How long to wait before coming back, if anything says so: what the last answer asked for, or what is left of an open circuit or a
    /// cooldown that has held the operation back.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.report.as_ref().and_then(|report| report.retry_after)
    }

    /// The status of the last answer, if the last attempt was answered.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        let answered = self.0.answer.as_ref().map(|answer| answer.status);
        answered.or_else(|| self.attempts().last().and_then(Attempt::status))
    }

    /// The headers of the last answer, where they were kept.
    #[must_use]
    pub fn headers(&self) -> Option<&HeaderMap> {
        self.0.answer.as_ref().map(|answer| &answer.headers)
    }

    /// The body of the last answer: at most its first 64 KiB.
    #[must_use]
    pub fn body(&self) -> Option<&[u8]> {
        self.0.answer.as_ref().map(|answer| &*answer.body)
    }

    /// The problem details (RFC 9457) of the last answer, if it was `application/problem+json`.
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        self.0.answer.as_ref().and_then(|answer| Problem::read(&answer.headers, &answer.body))
    }

    /// The last answer's body as your own error type.
    ///
    /// # Errors
    ///
    /// The body is not that JSON, or there is none.
    #[cfg(feature = "json")]
    pub fn json<E: serde::de::DeserializeOwned>(&self) -> std::result::Result<E, crate::DecodeError> {
        serde_json::from_slice(self.body().unwrap_or_default()).map_err(|error| crate::DecodeError::new(&error))
    }

    /// The method, unless the error came up before there was a request.
    #[must_use]
    pub fn method(&self) -> Option<&Method> {
        self.0.method.as_ref()
    }

    /// The URL without user information, query and fragment.
    #[must_use]
    pub fn url(&self) -> Option<&str> {
        self.0.url.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { what, method, url, report, .. } = &*self.0;
        if let (Some(method), Some(url)) = (method, url) {
            write!(f, "{method} {url}: ")?;
        }
        f.write_str(what)?;
        let Some(report) = report else {
            let earlier =
                if self.may_have_been_processed() { " now; an earlier attempt may have been processed" } else { "" };
            return write!(f, " (nothing was sent{earlier})");
        };
        write_report(f, report)?;
        if f.alternate() {
            for attempt in report.journal.attempts() {
                write!(f, "\n  {attempt}")?;
            }
            for cause in self.causes() {
                write!(f, "\n  caused by: {cause}")?;
            }
        }
        Ok(())
    }
}

fn write_report(f: &mut fmt::Formatter<'_>, report: &OperationReport) -> fmt::Result {
    let attempts = report.journal.attempts().len();
    let plural = if attempts == 1 { "" } else { "s" };
    match attempts {
        0 => f.write_str(" before the first attempt (")?,
        _ => write!(f, " after {attempts} attempt{plural} in {} (", ShortDuration(report.elapsed))?,
    }
    if report.stop != StopReason::Done {
        write!(f, "{}; ", report.stop.as_str())?;
    }
    f.write_str(if report.may_have_been_processed { "may have been processed" } else { "not processed" })?;
    if let Some(key) = &report.key {
        write!(f, "; key {key}")?;
    }
    if let Some(wait) = report.retry_after {
        write!(f, "; retry after {}", ShortDuration(wait))?;
    }
    f.write_str(")")?;
    if let Some(reason) = report.not_followed {
        write!(f, "; {}", reason.as_str())?;
    }
    if report.stop == StopReason::KeyNotTrusted {
        write!(f, "; {VOUCH}")?;
    }
    Ok(())
}

/// The kind and what `{:#}` shows: the line, the attempts, the causes. So `unwrap` and a log tell the same.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self:#}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Journal, Reach};
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
                elapsed: Duration::from_millis(40),
                wait: (number < 3).then_some(Duration::from_millis(850)),
                free_repeat: false,
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
        }
    }

    fn error(stop: StopReason, processed: bool) -> Error {
        let error = Error::new(ErrorKind::Status, "status 503").with_report(report(stop, processed));
        error.at(&Method::POST, "https://api.example.com/v1/charges")
    }

    #[test]
    fn error_is_one_line() {
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
    fn alternate_form_adds_line_per_attempt() {
        let text = format!("{:#}", error(StopReason::AttemptsExhausted, true));
        assert_eq!(text.lines().count(), 4);
        assert!(text.contains("\n  attempt 2: ambiguous, status 503, 40 ms; next in 850 ms\n"), "{text}");
    }

    #[test]
    fn error_is_one_pointer_in_size() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
