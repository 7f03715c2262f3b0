//! Exactly one attempt: the request sent once, and the redirects that it meets.
//!
//! Nothing here repeats a request, waits for a retry or decides about one. The hops of a redirect
//! belong to the attempt and to its timeout.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Body as _;

use super::attempt_headers::Prepared;
use super::attempt_result::{AttemptError, AttemptProgress, AttemptResponse, AttemptResult};
use super::checks::check_length;
use super::event::{EventKind, Exchange};
use super::operation::OperationContext;
use super::origin::origin;
use super::redirect::{self, Hop, RedirectRules, ResultRequest};
use super::request_body::BodyError;
use super::response_body::{self, ReadLimits, ReadMode};
use super::send_probe::{SealOnDrop, SendProbe};
use super::spans::{self, SendSpan};
use super::transport::{SendError, Transport};
use super::wire_request::WireRequest;
use super::{assessment, ending, transport_view};
use crate::clock::{self, SharedTimer};
use crate::error::BoxError;
use crate::inner::Inner;
use crate::journal::{Journal, NotFollowed, Reach};
use crate::policy::{Failure, Idempotency, is_safe};
use crate::resume::SafeUrl;
use steadfast_core::protocol;

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Sends the request once and follows redirects, until its limits at the latest.
///
/// `progress` has the evidence also if this future is dropped.
#[allow(
    clippy::manual_async_fn,
    reason = "an async fn holds each argument twice, and this is held by every operation in flight"
)]
pub(super) fn send<T: Transport>(
    transport: T,
    context: &OperationContext<'_>,
    wire_request: &mut WireRequest,
    progress: &mut AttemptProgress,
) -> impl Future<Output = AttemptResult> {
    async move {
        progress.redirects.is_opaque = context.view().is_opaque();
        let timer = pin!(clock::timer(progress.limits.until));
        let mut until = SharedTimer::new(progress.limits.until, timer);
        let outcome = loop {
            let body = match next_body(wire_request, progress, &mut until).await {
                Ok(body) => body,
                Err(error) => break Err(error),
            };
            let own_headers = if context.waits_before_send() {
                // Boxed, because most attempts wait for nothing here.
                match Box::pin(wait_before_send(context, wire_request, progress, &mut until)).await {
                    Ok(own_headers) => own_headers,
                    Err(error) => break Err(error),
                }
            } else {
                None
            };
            // In a block, so that the request takes no room while the response is read.
            let mut response = {
                // Moved and not lent, since what is lent takes room until the block ends.
                let content = (body, own_headers);
                let (request, probe) = match start(context, wire_request, progress, content, until.at()) {
                    Ok(started) => started,
                    Err(error) => break Err(error),
                };
                let started = context.client.on_event.as_ref().map(|_| clock::now());
                let watchers = Watchers { probe: probe.as_ref(), span: progress.span() };
                let sending = pin!(transport.send(&context.client.http, request));
                let result = exchange(transport, context, sending, watchers, &mut until).await;
                tell_exchange(context, wire_request, progress, &result, started);
                match result {
                    Ok(response) => response,
                    Err(error) => break Err(error),
                }
            };
            progress.reach = Reach::Answered;
            if let Some(headers) = &context.client.attempt_headers {
                headers.keep_response(progress, &response);
            }
            transport.check(context.view(), wire_request.current(progress).request.url(), response.url());
            progress.redirects.is_opaque |= context.view().is_opaque();
            match follow(context, wire_request, progress, &response) {
                Ok(true) => {
                    progress.end_span();
                    let _drained = Box::pin(response_body::read_error(&mut response, &mut until)).await;
                    continue;
                }
                Ok(false) => {}
                Err(error) => break Err(error),
            }
            let method = wire_request.current(progress).request.method();
            let has_body = ending::has_body(method, response.status());
            if let ReadMode::Whole { limit } = context.read {
                let limits = ReadLimits { bytes: limit, pause: context.read_timeout_inside(until.at()) };
                break response_body::read_whole(&mut response, has_body, &mut until, limits).await;
            }
            let response = ending::guard(response, has_body, context.read_timeout().copied());
            if assessment::needs_body(context, response.status()) {
                break Ok(Box::pin(response_body::peek(response, until.at())).await);
            }
            break Ok(AttemptResponse::Head { response, prefix: Bytes::new() });
        };
        progress.finish(outcome)
    }
}

/// Waits for what a request needs before it leaves: a valid token, then the word of a hook. Returns
/// what the headers of this request are made of, if it has some of its own.
async fn wait_before_send<'a>(
    context: &'a OperationContext<'_>,
    wire_request: &WireRequest,
    progress: &mut AttemptProgress,
    until: &mut SharedTimer<'_>,
) -> Result<Option<Box<Prepared<'a>>>, AttemptError> {
    let own_headers = match &context.client.attempt_headers {
        // Boxed, because most attempts have none, and move it.
        Some(headers) => Some(Box::new(headers.prepare(context, wire_request, progress, until).await?)),
        None => None,
    };
    if let Some(hook) = context.before_send() {
        hook.ask(progress, until).await?;
    }
    Ok(own_headers)
}

/// Returns the body to send next. The GET of a result has none.
async fn next_body(
    wire_request: &mut WireRequest,
    progress: &AttemptProgress,
    until: &mut SharedTimer<'_>,
) -> Result<Option<reqwest::Body>, AttemptError> {
    if progress.redirects.is_done {
        return Ok(None);
    }
    let failed = |failure, source: Option<BoxError>| AttemptError {
        failure,
        timed_out: source.is_none(),
        head: None,
        body_was_taken: Some(false),
        source,
    };
    let body = match wire_request.body.next(until).await {
        Ok(body) => body,
        Err(BodyError::Failed(source)) => return Err(failed(Failure::RequestBody, Some(source))),
        Err(BodyError::TimedOut) => return Err(failed(Failure::NotSent, None)),
    };
    // The terms of the operation have checked a length that was known by then.
    if let (Some(body), None) = (&body, wire_request.body.length()) {
        let headers = wire_request.current(progress).request.headers();
        if let Err(reason) = check_length(headers, body.size_hint().exact()) {
            return Err(failed(Failure::RequestBody, Some(format!("content-length: {reason}").into())));
        }
    }
    Ok(body)
}

/// Returns the request to hand to the transport, and the probe that watches its body. The attempt
/// ends at `until`, unless it takes longer to send. `content`: the body, and what the headers of
/// this request are made of, if it has some of its own.
///
/// # Errors
///
/// A hook of the user's has failed.
fn start(
    context: &OperationContext<'_>,
    wire_request: &WireRequest,
    progress: &mut AttemptProgress,
    content: (Option<reqwest::Body>, Option<Box<Prepared<'_>>>),
    until: Option<Instant>,
) -> Result<(reqwest::Request, Option<SendProbe>), AttemptError> {
    let (body, own_headers) = match content {
        (body, None) => (body, None),
        (body, Some(own_headers)) => {
            let (body, own_headers) = own_headers.read_body(body);
            (body, Some(own_headers))
        }
    };
    let (mut request, probe) = open(context, wire_request, progress, body);
    if !progress.redirects.is_elsewhere {
        let until = if probe.as_ref().is_some_and(SendProbe::is_long) { progress.limits.deadline } else { until };
        context.client.add_attempt_headers(request.headers_mut(), progress.number, until);
    }
    let span = context.span().map(|span| span.start_send(&request, context.template(), progress.number));
    if let Some(own_headers) = own_headers {
        // Inside the span, so that a hook can write its trace context.
        let written = spans::enter(span.as_ref(), || own_headers.write(context, progress, &mut request));
        if let (Some(span), Err(error)) = (&span, &written) {
            span.failed(error.failure, None);
        }
        written?;
    }
    if let Some(span) = span {
        progress.set_span(span);
    }
    progress.reach = Reach::Sent;
    Ok((request, probe))
}

/// Builds the request of an attempt, or of a hop in it, and a probe if there is a body to watch.
pub(super) fn open(
    context: &OperationContext<'_>,
    wire_request: &WireRequest,
    progress: &AttemptProgress,
    body: Option<reqwest::Body>,
) -> (reqwest::Request, Option<SendProbe>) {
    let mut request = match progress.hop() {
        Some(hop) => wire_request.copy(hop),
        None => context.assemble(wire_request),
    };
    let Some(body) = body else { return (request, None) };
    if !context.view().sees_body {
        *request.body_mut() = Some(body);
        return (request, None);
    }
    // TLS may choose HTTP/2, and so may a transport that the user configured or brought along.
    let is_http1 = context.view().clear_is_http1 && request.url().scheme() == "http";
    // Only the caller's headers have the length of the body.
    let headers = wire_request.current(progress).request.headers();
    let (body, probe) = SendProbe::watch(body, headers, is_http1, progress.limits.deadline);
    *request.body_mut() = Some(body);
    (request, Some(probe))
}

impl Inner {
    /// Adds the headers that differ from attempt to attempt.
    fn add_attempt_headers(&self, headers: &mut HeaderMap, number: u32, until: Option<Instant>) {
        if let (Some(name), Some(until)) = (&self.overload.deadline_header, until) {
            let time_left = until.saturating_duration_since(clock::now());
            headers.insert(name, protocol::deadline_to_header(time_left));
        }
        if let Some(name) = &self.attempt_header {
            headers.insert(name, HeaderValue::from(number));
        }
        let may_ask = number > 1 && headers.contains_key(&self.keys.header) && !headers.contains_key(PREFER);
        if let Some(wait) = self.keys.wait.filter(|_| may_ask)
            && let Ok(value) = HeaderValue::try_from(format!("wait={}", wait.as_secs()))
        {
            headers.insert(PREFER, value);
        }
    }
}

/// Who watches an exchange.
#[derive(Clone, Copy)]
struct Watchers<'a> {
    probe: Option<&'a SendProbe>,
    span: Option<&'a SendSpan>,
}

/// Waits for the head of the response, inside the span.
async fn exchange<T: Transport>(
    transport: T,
    context: &OperationContext<'_>,
    mut sending: Pin<&mut impl Future<Output = Result<reqwest::Response, T::Error>>>,
    Watchers { probe, span }: Watchers<'_>,
    until: &mut SharedTimer<'_>,
) -> Result<reqwest::Response, AttemptError> {
    let mut seal = SealOnDrop(probe);
    let mut window = context.send_clock(probe).start(probe, until);
    let ended = loop {
        match until.bound(poll_fn(|cx| spans::enter(span, || sending.as_mut().poll(cx)))).await {
            Ok(ended) => break Ok(ended),
            Err(clock::TimedOut) => match context.send_clock(probe).go_on(probe, window.as_deref_mut()) {
                Ok(later) => until.set(later),
                Err(too_late) => break Err(too_late),
            },
        }
    };
    seal.0 = None;
    let SendError { failure, timed_out, source } = match ended {
        Ok(Ok(response)) => {
            context.send_clock(probe).answered(probe, window.as_deref(), until);
            return Ok(response);
        }
        Ok(Err(error)) => transport.assess(error, probe, context.view()),
        Err(too_late) => SendError::too_late(too_late, probe, context.view()),
    };
    Err(AttemptError { failure, timed_out, head: None, body_was_taken: probe.map(SendProbe::taken), source })
}

/// Tells the span and the user's closure how an exchange has ended. `started`: when it began, if
/// there is such a closure.
fn tell_exchange(
    context: &OperationContext<'_>,
    wire_request: &WireRequest,
    progress: &AttemptProgress,
    result: &Result<reqwest::Response, AttemptError>,
    started: Option<Instant>,
) {
    if let (Some(span), Ok(response)) = (progress.span(), result) {
        span.answered(response);
    }
    if let (Some(on_event), Some(started)) = (&context.client.on_event, started) {
        let request = wire_request.current(progress).request;
        let exchange = Exchange {
            method: request.method(),
            url: SafeUrl(request.url()),
            head: result.as_ref().ok().map(|response| (response.status(), response.version())),
            failure: result.as_ref().err().map(|error| error.failure),
            elapsed: clock::now().saturating_duration_since(started),
        };
        let kind = EventKind::ExchangeEnded { exchange };
        spans::enter(progress.span(), || on_event(&context.event(wire_request, &Journal::Empty, kind)));
    }
}

/// Follows the redirect of a response, if it is one that may be followed. Returns whether there is
/// a hop to send.
///
/// # Errors
///
/// The redirects form a loop, or are too many.
pub(super) fn follow(
    context: &OperationContext<'_>,
    wire_request: &WireRequest,
    progress: &mut AttemptProgress,
    response: &reqwest::Response,
) -> Result<bool, AttemptError> {
    let client = context.client;
    if progress.redirects.is_opaque {
        follow_opaque(context, wire_request, progress, response.url());
        return Ok(false);
    }
    // Most responses are no redirects, and for them this is all.
    if !response.status().is_redirection() {
        return Ok(false);
    }
    if client.max_redirects == 0 {
        progress.redirects.not_followed = redirect::asks_for_hop(response.status()).then_some(NotFollowed::TurnedOff);
        return Ok(false);
    }
    let from = wire_request.current(progress);
    let rules = RedirectRules {
        is_harmless: progress.redirects.is_done || is_harmless(context, from.request),
        post_as_get: wire_request.post_as_get.unwrap_or(client.redirect_post_as_get),
        cross_origin: context.cross_origin_redirects(),
    };
    let hop = match redirect::next_hop(from, response.status(), response.headers(), rules) {
        Ok(None) => return Ok(false),
        Ok(Some(hop)) if context.may_send_hop(wire_request, progress, &hop) => hop,
        Ok(Some(_)) => {
            progress.redirects.not_followed = Some(NotFollowed::KeyNotTrusted);
            return Ok(false);
        }
        Err(reason) => {
            progress.redirects.not_followed = Some(reason);
            return Ok(false);
        }
    };
    add_hop(context, wire_request, progress, hop).map_err(|reason| AttemptError {
        failure: Failure::Redirects,
        timed_out: false,
        head: Some(Box::new((response.status(), response.headers().clone()))),
        body_was_taken: None,
        source: Some(reason.into()),
    })?;
    Ok(true)
}

/// Makes `hop` the request that is sent next.
fn add_hop(
    context: &OperationContext<'_>,
    wire_request: &WireRequest,
    progress: &mut AttemptProgress,
    hop: Hop,
) -> Result<(), String> {
    let Hop { is_result, may_have_acted, .. } = hop;
    let is_elsewhere = progress.redirects.is_elsewhere || hop.leaves_origin;
    let key_header = &context.client.keys.header;
    let trail = progress.trail_mut();
    trail.add_step(&wire_request.template, &hop, context.client.max_redirects)?;
    let request = match trail.hop() {
        Some(from) => hop.into_request(from, is_elsewhere, key_header),
        None => hop.into_request(&context.assemble(wire_request), is_elsewhere, key_header),
    };
    if is_result {
        trail.same_method = None;
        trail.result = Some(ResultRequest { request, is_elsewhere });
    } else {
        trail.same_method = Some(request);
    }
    progress.redirects.is_done |= is_result;
    progress.redirects.may_have_acted |= may_have_acted;
    progress.redirects.is_elsewhere = is_elsewhere;
    Ok(())
}

/// Records where a response came from, if the transport has followed redirects itself. Which status
/// they had is not known.
fn follow_opaque(
    context: &OperationContext<'_>,
    wire_request: &WireRequest,
    progress: &mut AttemptProgress,
    answered_from: &reqwest::Url,
) {
    let from = wire_request.current(progress).request;
    if transport_view::is_same(from.url(), answered_from) {
        return;
    }
    let template = &wire_request.template;
    progress.redirects.may_have_acted = !is_harmless(context, from);
    progress.redirects.is_elsewhere = origin(answered_from) != origin(template.url());
    let last = reqwest::Request::new(template.method().clone(), answered_from.clone());
    progress.trail_mut().same_method = Some(last);
}

/// Returns whether a request has no effects. A GET has effects only if the caller declares it.
fn is_harmless(context: &OperationContext<'_>, request: &reqwest::Request) -> bool {
    is_safe(request.method()) && context.idempotency == Idempotency::Natural
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::Client;
    use crate::assessment::Assessment;
    use crate::redirect::RedirectState;
    use crate::transport::Own;

    /// Answers one connection for each of `answers`, and returns once it has read one request more.
    async fn serve(listener: TcpListener, answers: &[&str]) {
        for at in 0..=answers.len() {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut received = Vec::new();
            while !received.windows(4).any(|end| end == b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0);
            }
            let Some(answer) = answers.get(at) else { return };
            let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    /// What is left of a POST that is dropped while the server owes it an answer: how far it got,
    /// and what its redirects have said.
    async fn dropped_after(answers: &[&str]) -> (Reach, bool, bool) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/charges", listener.local_addr().unwrap());
        let mut request = Client::new().post(url).body("{}");
        let (context, wire_request) = request.begin(false, None).unwrap();
        let mut progress = AttemptProgress::new(1, false, RedirectState::default());
        tokio::select! {
            _ = send(Own, &context, wire_request, &mut progress) => panic!("the last request is not answered"),
            () = serve(listener, answers) => {}
        }
        assert!(Assessment::of_cancelled(&progress).may_have_been_processed);
        (progress.reach, progress.redirects.may_have_acted, progress.redirects.is_done)
    }

    #[tokio::test]
    async fn dropped_attempt_leaves_its_evidence() {
        assert_eq!(dropped_after(&[]).await, (Reach::Sent, false, false));
        let temporary = "307 Temporary Redirect\r\nlocation: /moved";
        assert_eq!(dropped_after(&[temporary]).await, (Reach::Sent, false, false));
        let see_other = "303 See Other\r\nlocation: /charges/1";
        assert_eq!(dropped_after(&[see_other]).await, (Reach::Sent, true, true));
    }

    #[tokio::test]
    async fn attempt_that_was_never_polled_was_not_sent() {
        let mut request = Client::new().post("http://127.0.0.1:9/charges").body("{}");
        let (context, wire_request) = request.begin(false, None).unwrap();
        let mut progress = AttemptProgress::new(1, false, RedirectState::default());
        drop(send(Own, &context, wire_request, &mut progress));
        let assessment = Assessment::of_cancelled(&progress);
        assert_eq!((progress.reach, assessment.may_have_been_processed), (Reach::NotSent, false));
    }
}
