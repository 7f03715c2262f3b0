//! Exactly one attempt: the request sent once, and the redirects that it meets.
//!
//! Nothing here repeats, waits for a retry or decides. It knows how to send, where a redirect leads and how to stop in time. The
//! hops of a redirect are part of the attempt and of its time.

use std::pin::{Pin, pin};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::operation::{OperationContext, is_safe};
use super::redirect::{self, Rules, Trail};
use super::request_body::BodyError;
use super::response_body::{self, AttemptError, AttemptResponse, Read};
use super::send_probe::{SendProbe, Unfinished};
use super::wire_request::WireRequest;
use super::{Inner, assessment, ending, transport_error};
use crate::clock::{self, Deadline};
use crate::deadline;
use crate::journal::NotFollowed;
use crate::policy::{Failure, Idempotency};

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Sends the request once, until the instant `until` at the latest, and follows the redirects that may be followed.
#[allow(
    clippy::manual_async_fn,
    reason = "an async fn holds each argument twice, and this is held by every operation in flight"
)]
pub(super) fn send(
    client: &Inner,
    plan: &OperationContext,
    wire_request: &mut WireRequest,
    number: u32,
    until: Option<Instant>,
) -> impl Future<Output = Result<AttemptResponse, AttemptError>> {
    async move {
        let timer = pin!(clock::timer(until));
        let mut until = Deadline::new(until, timer);
        let mut trail = Trail::new(client.max_redirects);
        wire_request.begin_attempt();
        loop {
            let body = wire_request.payload.next(&mut until).await.map_err(no_body)?;
            // In a block, so that what is sent takes no room while the answer is read.
            let mut response = {
                let (sending, probe) = start(client, plan, wire_request, body, number, until.at());
                exchange(client, pin!(sending), probe.as_ref(), &mut until).await?
            };
            if !follow(client, plan, wire_request, &response, &mut trail)? {
                let has_body = ending::has_body(wire_request.current().method(), response.status());
                return match plan.read {
                    Read::Whole { limit } => response_body::read(&mut response, has_body, &mut until, limit).await,
                    Read::Head => {
                        let response = ending::checked(response, has_body);
                        if assessment::says_why(client, plan, response.status()) {
                            return Ok(Box::pin(response_body::peek(response, until.at())).await);
                        }
                        Ok(AttemptResponse::Head { response, begun: Bytes::new() })
                    }
                };
            }
            let _read_away = Box::pin(response_body::read_error(&mut response, &mut until)).await;
        }
    }
}

/// Follows the redirect of this answer, if it is one that is followed. Returns whether there is a hop
/// to send.
pub(super) fn follow(
    client: &Inner,
    plan: &OperationContext,
    wire_request: &mut WireRequest,
    response: &reqwest::Response,
    trail: &mut Trail,
) -> Result<bool, AttemptError> {
    // A GET with effects is one by the caller's word alone.
    let is_harmless =
        |request: &reqwest::Request| is_safe(request.method()) && plan.idempotency == Idempotency::Natural;
    if client.opaque {
        let from = wire_request.current();
        if sent(response.url()) != sent(from.url()) {
            // It followed a redirect, and by which status only it knows.
            let may_have_acted = !is_harmless(from);
            wire_request.answered_from(response.url(), may_have_acted);
        }
        return Ok(false);
    }
    // Most answers are no redirects, and for them this is all.
    if client.max_redirects == 0 || !response.status().is_redirection() {
        return Ok(false);
    }
    let from = wire_request.current();
    let rules = Rules {
        is_harmless: wire_request.is_done() || is_harmless(from),
        post_as_get: wire_request.post_as_get().unwrap_or(client.redirect_post_as_get),
        cross_origin: client.cross_origin_redirects,
    };
    match redirect::next(from, response.status(), response.headers(), &wire_request.payload, rules) {
        Ok(None) => Ok(false),
        Ok(Some(next)) if wire_request.may_repeat_at(plan, &next) => {
            trail.step(from, &next, response)?;
            wire_request.follow(client, plan, next);
            Ok(true)
        }
        Ok(Some(_)) => {
            wire_request.set_not_followed(NotFollowed::KeyNotTrusted);
            Ok(false)
        }
        Err(reason) => {
            wire_request.set_not_followed(reason);
            Ok(false)
        }
    }
}

impl Inner {
    /// What tells one attempt from another on the wire.
    fn mark(&self, headers: &mut HeaderMap, number: u32, until: Option<Instant>) {
        if let (Some(name), Some(until)) = (&self.overload.deadline_header, until) {
            let time_left = until.saturating_duration_since(clock::now());
            headers.insert(name, deadline::to_header(time_left));
        }
        if let Some(name) = &self.attempt_header {
            headers.insert(name, HeaderValue::from(number));
        }
        let asks = number > 1 && headers.contains_key(&self.keys.header) && !headers.contains_key(PREFER);
        if let Some(wait) = self.keys.wait.filter(|_| asks)
            && let Ok(value) = HeaderValue::try_from(format!("wait={}", wait.as_secs()))
        {
            headers.insert(PREFER, value);
        }
    }
}

/// A URL without its fragment, which is not sent and does not come back.
fn sent(url: &reqwest::Url) -> Option<&str> {
    url.as_str().split('#').next()
}

/// The head of the answer to a request that was handed to the transport.
#[allow(
    clippy::manual_async_fn,
    reason = "an async fn holds each argument twice, and this is held by every operation in flight"
)]
fn exchange(
    client: &Inner,
    sending: Pin<&mut impl Future<Output = reqwest::Result<reqwest::Response>>>,
    probe: Option<&SendProbe>,
    until: &mut Deadline<'_>,
) -> impl Future<Output = Result<reqwest::Response, AttemptError>> {
    async move {
        // A client that we were given may follow redirects itself, so a refused connection may be that of a later hop, after the
        // request was carried out.
        let failed = |failure, timed_out, source| AttemptError {
            failure: if client.opaque { Failure::Unknown } else { failure },
            timed_out,
            head: None,
            taken: probe.map(SendProbe::taken),
            source,
        };
        // Dropped in between, the attempt has an end, too.
        let mut unfinished = Unfinished(probe);
        let ended = until.bound(sending).await;
        unfinished.0 = None;
        match ended {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let (failure, timed_out) =
                    (transport_error::of_transport(&error, probe, client.is_as_made), error.is_timeout());
                Err(failed(failure, timed_out, Some(error.without_url().into())))
            }
            Err(clock::TimedOut) => Err(failed(transport_error::of_timeout(probe), true, None)),
        }
    }
}

/// The request's body could not be made, or not in time.
fn no_body(why: BodyError) -> AttemptError {
    let (failure, source) = match why {
        BodyError::Failed(source) => (Failure::RequestBody, Some(source)),
        BodyError::TimedOut => (Failure::NotSent, None),
    };
    AttemptError { failure, timed_out: source.is_none(), head: None, taken: Some(false), source }
}

/// Hands the request to the transport, with what watches its body.
fn start(
    client: &Inner,
    plan: &OperationContext,
    wire_request: &WireRequest,
    body: Option<reqwest::Body>,
    number: u32,
    until: Option<Instant>,
) -> (impl Future<Output = reqwest::Result<reqwest::Response>> + use<>, Option<SendProbe>) {
    let (mut request, probe) = wire_request.open(client, plan, body);
    if !wire_request.is_elsewhere() {
        client.mark(request.headers_mut(), number, until);
    }
    (client.http.execute(request), probe)
}
