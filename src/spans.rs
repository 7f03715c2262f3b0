//! Spans of `tracing`: one for the operation, and one for each request that is sent.
//!
//! Names, attributes and types are those of OpenTelemetry's conventions for HTTP clients (semantic
//! conventions, *HTTP spans*, status stable), so that dashboards made for other clients show this
//! one. The conventions want a span of kind CLIENT for each send, redirects included, and no such
//! span around them. So the operation's span is of kind INTERNAL.
//!
//! A future that is wrapped in a span costs every operation 1.5 KB and 1,500 instructions, whether
//! anybody listens or not. So a span is made only for a listener, in a box that other rare things
//! share. It is entered where something happens: at an event, and while the transport is polled.

use std::borrow::Cow;
use std::sync::atomic::{AtomicI64, Ordering};

use http::{Method, StatusCode, Version};
use reqwest::Url;
use tracing::field::Empty;
use tracing::level_filters::LevelFilter;
use tracing::{Span, info_span};

use crate::inner::Inner;
use crate::policy::Failure;

/// Target of the spans, by which a filter can select them.
macro_rules! target {
    () => {
        "steadfast::spans"
    };
}

/// The conventions' word for a value that is none of the known ones.
const OTHER: &str = "_OTHER";
const REDACTED: &str = "REDACTED";
/// Parameters that sign a request or prove who sends it. The first line is the conventions' list.
const SECRET_PARAMETERS: [&str; 24] = [
    "awsaccesskeyid",
    "signature",
    "sig",
    "x-goog-signature",
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
    "x-goog-credential",
    "x-oss-signature",
    "x-oss-credential",
    "x-cos-security-token",
    "security-token",
    "access_token",
    "refresh_token",
    "id_token",
    "token",
    "api_key",
    "apikey",
    "api-key",
    "client_secret",
    "client_assertion",
    "secret",
    "password",
    "code",
];

/// The span of an operation, of kind INTERNAL.
#[derive(Debug)]
pub(super) struct OperationSpan {
    span: Span,
    /// Requests that were sent before the next one, also by hedges and redirects.
    sends: AtomicI64,
}

/// How an operation has ended.
pub(super) struct OperationEnd<'a> {
    pub(super) outcome: &'a str,
    pub(super) attempts: u32,
    pub(super) may_have_been_processed: bool,
    /// The status or the failure behind an error.
    pub(super) error_type: Option<&'a str>,
}

impl OperationSpan {
    /// Starts the span inside the caller's current one. Returns `None` if nobody listens.
    pub(super) fn start(client: &Inner, request: &reqwest::Request, template: Option<&str>) -> Option<Self> {
        // With tracing's feature `log`, the macro formats all fields even if nobody listens.
        if !client.spans || LevelFilter::current() < LevelFilter::INFO {
            return None;
        }
        let span = info_span!(
            target: target!(),
            "operation",
            "otel.kind" = "internal",
            "otel.name" = format!("operation {}", name(request.method(), template)),
            "otel.status_code" = Empty,
            "http.request.method" = known(request.method()),
            "server.address" = server_address(request.url()),
            "server.port" = server_port(request.url()).map(i64::from),
            "url.template" = template,
            "error.type" = Empty,
            "steadfast.attempts" = Empty,
            "steadfast.outcome" = Empty,
            "steadfast.may_have_been_processed" = Empty,
        );
        (!span.is_disabled()).then(|| Self { span, sends: AtomicI64::new(0) })
    }

    /// Runs `work` inside the span.
    pub(super) fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        self.span.in_scope(work)
    }

    /// Returns a handle of the span, for a future.
    pub(super) fn handle(&self) -> Span {
        self.span.clone()
    }

    /// Starts the span of the next request that is sent. `attempt` is the attempt's number.
    pub(super) fn start_send(&self, request: &reqwest::Request, template: Option<&str>, attempt: u32) -> SendSpan {
        let (method, url) = (request.method(), request.url());
        let resend = self.sends.fetch_add(1, Ordering::Relaxed);
        let known = known(method);
        // What a sampler needs is there from the start.
        let span = info_span!(
            target: target!(),
            parent: &self.span,
            "send",
            "otel.kind" = "client",
            "otel.name" = &*name(method, template),
            "otel.status_code" = Empty,
            "http.request.method" = known,
            "http.request.method_original" = (known == OTHER).then(|| method.as_str()),
            "server.address" = server_address(url),
            "server.port" = server_port(url).map(i64::from),
            "url.full" = full_url(url),
            "url.template" = template,
            "http.request.resend_count" = (resend > 0).then_some(resend),
            "http.response.status_code" = Empty,
            "error.type" = Empty,
            "network.protocol.version" = Empty,
            "network.peer.address" = Empty,
            "network.peer.port" = Empty,
            "steadfast.attempt" = i64::from(attempt),
        );
        SendSpan { span }
    }

    /// Records the end of the operation.
    pub(super) fn end(&self, end: &OperationEnd<'_>) {
        self.span.record("steadfast.attempts", i64::from(end.attempts));
        self.span.record("steadfast.outcome", end.outcome);
        self.span.record("steadfast.may_have_been_processed", end.may_have_been_processed);
        record_error(&self.span, end.error_type);
    }
}

impl Drop for OperationSpan {
    fn drop(&mut self) {
        end_now(&self.span);
    }
}

/// The span of one request that is sent, of kind CLIENT. It ends with the head of the response, or
/// with its body if that is read inside the attempt.
#[derive(Debug)]
pub(super) struct SendSpan {
    span: Span,
}

impl SendSpan {
    /// Records the head of the response.
    pub(super) fn answered(&self, response: &reqwest::Response) {
        let Self { span } = self;
        span.record("http.response.status_code", i64::from(response.status().as_u16()));
        span.record("network.protocol.version", protocol_version(response.version()));
        if let Some(peer) = response.remote_addr() {
            span.record("network.peer.address", peer.ip().to_string());
            span.record("network.peer.port", i64::from(peer.port()));
        }
        record_error(span, status_error(&response.status()));
    }

    /// Records that the request failed. `status`: the head of a response had arrived.
    pub(super) fn failed(&self, failure: Failure, status: Option<StatusCode>) {
        // A span has one error, and a status has told it already.
        if status.as_ref().and_then(status_error).is_none() {
            record_error(&self.span, Some(failure.label()));
        }
    }
}

impl Drop for SendSpan {
    fn drop(&mut self) {
        end_now(&self.span);
    }
}

/// Runs `work` inside a span, if there is one.
pub(super) fn enter<T>(span: Option<&SendSpan>, work: impl FnOnce() -> T) -> T {
    match span {
        Some(SendSpan { span }) => span.in_scope(work),
        None => work(),
    }
}

fn record_error(span: &Span, error_type: Option<&str>) {
    if let Some(error_type) = error_type {
        span.record("error.type", error_type);
        span.record("otel.status_code", "ERROR");
    }
}

/// Ends a span at this moment. tracing-opentelemetry takes the time at which a span was left last,
/// and a request that is cancelled was left long before.
fn end_now(span: &Span) {
    span.in_scope(|| ());
}

/// Returns the name of a span: the method, and the template of the path if there is one. Never the
/// path, since each of its identifiers would be a name of its own.
fn name<'a>(method: &'a Method, template: Option<&str>) -> Cow<'a, str> {
    let known = known(method);
    let method = if known == OTHER { "HTTP" } else { known };
    template.map_or(Cow::Borrowed(method), |template| Cow::Owned(format!("{method} {template}")))
}

/// Returns the method if the conventions know it: RFC 9110, PATCH (RFC 5789) and QUERY (RFC 10008).
/// A server may see any text in place of others.
pub(super) fn known(method: &Method) -> &str {
    match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE" | "PATCH" | "QUERY") => {
            known
        }
        _ => OTHER,
    }
}

/// Returns the host without the brackets of an IPv6 address.
pub(super) fn server_address(url: &Url) -> &str {
    url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

pub(super) fn server_port(url: &Url) -> Option<u16> {
    url.port_or_known_default()
}

pub(super) fn protocol_version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}

/// Returns a status as text, if it is an error.
pub(super) fn status_error(status: &StatusCode) -> Option<&str> {
    (status.as_u16() >= 400).then(|| status.as_str())
}

/// Returns the URL as a span may show it: without user information and fragment, and with
/// `REDACTED` for the values of [`SECRET_PARAMETERS`].
fn full_url(url: &Url) -> String {
    let sent = url.as_str().split('#').next().unwrap_or_default();
    let (whole, query) = sent.split_once('?').map_or((sent, None), |(whole, query)| (whole, Some(query)));
    let mut shown = String::with_capacity(url.as_str().len());
    match (whole.split_once("://"), has_user(url)) {
        (Some((scheme, rest)), true) => {
            let after_user = rest.split_once('@').map_or(rest, |(_, rest)| rest);
            shown.extend([scheme, "://", REDACTED, ":", REDACTED, "@", after_user]);
        }
        _ => shown.push_str(whole),
    }
    for (index, parameter) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
        shown.push(if index == 0 { '?' } else { '&' });
        match parameter.split_once('=') {
            Some((key, value)) if is_secret(key) && !value.is_empty() => shown.extend([key, "=", REDACTED]),
            _ => shown.push_str(parameter),
        }
    }
    shown
}

fn has_user(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// Returns whether a parameter is secret. The server decodes its name before it reads it, and so
/// does this.
fn is_secret(key: &str) -> bool {
    let decoded = serde_urlencoded::from_str::<Vec<(String, String)>>(key).unwrap_or_default();
    let name = decoded.first().map_or(key, |(name, _)| name.as_str());
    SECRET_PARAMETERS.iter().any(|secret| name.eq_ignore_ascii_case(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_shown_without_secrets() {
        let shown = |url: &str| full_url(&url.parse().unwrap());
        for (url, expected) in [
            ("https://a.x/p?color=blue&sig=abc", "https://a.x/p?color=blue&sig=REDACTED"),
            (
                "https://a.x/p?Signature=a&X-Amz-Signature=b",
                "https://a.x/p?Signature=REDACTED&X-Amz-Signature=REDACTED",
            ),
            ("https://a.x/p?s%69g=abc", "https://a.x/p?s%69g=REDACTED"),
            ("https://a.x/p?access_token=t&page=2", "https://a.x/p?access_token=REDACTED&page=2"),
            ("https://a.x/p?sig=&sig", "https://a.x/p?sig=&sig"),
            ("https://a.x/p?sig=a=b", "https://a.x/p?sig=REDACTED"),
            ("https://a.x/p?q=a@b", "https://a.x/p?q=a@b"),
            ("https://a.x/p?a=1#access_token=t", "https://a.x/p?a=1"),
            ("https://a.x/p#?access_token=t", "https://a.x/p"),
            ("https://user:pass@a.x/p@q", "https://REDACTED:REDACTED@a.x/p@q"),
            ("http://[::1]:8080/", "http://[::1]:8080/"),
        ] {
            assert_eq!(shown(url), expected);
        }
    }

    #[test]
    fn name_has_method_and_template_only() {
        let check = |method: &str, template| name(&method.parse().unwrap(), template).into_owned();
        assert_eq!(check("GET", None), "GET");
        assert_eq!(check("GET", Some("/users/{id}")), "GET /users/{id}");
        assert_eq!(check("QUERY", None), "QUERY");
        assert_eq!(check("get", None), "HTTP", "methods are case-sensitive");
        assert_eq!(check("PURGE", Some("/cache")), "HTTP /cache");
    }

    #[test]
    fn server_is_named_without_brackets() {
        let check = |url: &str| {
            let url = url.parse().unwrap();
            (server_address(&url).to_owned(), server_port(&url))
        };
        assert_eq!(check("https://api.example.com/v1"), ("api.example.com".to_owned(), Some(443)));
        assert_eq!(check("http://[::1]:8080/"), ("::1".to_owned(), Some(8080)));
    }

    #[test]
    fn status_from_400_on_is_an_error() {
        let check = |code| status_error(&StatusCode::from_u16(code).unwrap()).map(str::to_owned);
        assert_eq!([101, 200, 302, 399].map(check), [None, None, None, None]);
        assert_eq!([400, 503, 799].map(check), ["400", "503", "799"].map(|text| Some(text.to_owned())));
    }
}
