//! Exactly one attempt: the request sent once, and the redirects that it meets.
//!
//! Nothing here repeats, waits for a retry or decides. It knows how to send, where a redirect leads and how to stop in time. The
//! hops of a redirect are part of the attempt and of its time.

use std::pin::{Pin, pin};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::answer::{self, Answer, Failed, Read};
use super::outgoing::Outgoing;
use super::payload::NoBody;
use super::plan::Plan;
use super::probe::{Probe, Unfinished};
use super::redirect::{self, Trail};
use super::{Inner, ending, failure, verdict};
use crate::clock::{self, Deadline};
use crate::deadline;
use crate::policy::{Failure, Idempotency};

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Sends the request once, until the instant `until` at the latest, and follows the redirects that may be followed.
#[allow(
    clippy::manual_async_fn,
    reason = "an async fn holds each argument twice, and this is held by every operation in flight"
)]
pub(super) fn send(
    client: &Inner,
    plan: &Plan,
    outgoing: &mut Outgoing,
    number: u32,
    until: Option<Instant>,
) -> impl Future<Output = Result<Answer, Failed>> {
    async move {
        let timer = pin!(clock::timer(until));
        let mut until = Deadline::new(until, timer);
        let mut trail = Trail::new(client.max_redirects);
        let mut detour: Option<Box<reqwest::Request>> = None;
        let mut foreign = outgoing.foreign;
        outgoing.may_have_acted = false;
        outgoing.is_elsewhere = foreign;
        loop {
            let body = outgoing.payload.next(&mut until).await.map_err(no_body)?;
            // In a block, so that what is sent takes no room while the answer is read.
            let mut response = {
                let shown = (!foreign).then_some(number);
                let (sending, probe) = start(client, plan, outgoing, detour.as_deref(), body, shown, until.at());
                exchange(client, pin!(sending), probe.as_ref(), &mut until).await?
            };
            let Some(hop) = next_hop(client, plan, outgoing, detour.as_deref(), foreign, &response, &mut trail)? else {
                let asked = detour.as_deref().unwrap_or(&outgoing.template).method();
                let has_body = ending::has_body(asked, response.status());
                return match plan.read {
                    Read::Whole { limit } => answer::read(&mut response, has_body, &mut until, limit).await,
                    Read::Head => {
                        let response = ending::checked(response, has_body);
                        if verdict::says_why(client, plan, response.status()) {
                            return Ok(Box::pin(answer::peek(response, until.at())).await);
                        }
                        Ok(Answer::Head { response, begun: Bytes::new() })
                    }
                };
            };
            let _read_away = Box::pin(answer::read_error(&mut response, &mut until)).await;
            foreign = hop.foreign;
            outgoing.is_elsewhere = foreign;
            if hop.see_other {
                outgoing.see_other(*hop.request, foreign);
                detour = None;
            } else {
                detour = Some(hop.request);
            }
        }
    }
}

/// The next request of the same attempt.
struct Hop {
    request: Box<reqwest::Request>,
    /// It goes to another origin than the attempt's, or one before it did.
    foreign: bool,
    see_other: bool,
}

/// The hop that this answer asks for; `None` if it is the attempt's answer.
fn next_hop(
    client: &Inner,
    plan: &Plan,
    outgoing: &mut Outgoing,
    detour: Option<&reqwest::Request>,
    foreign: bool,
    response: &reqwest::Response,
    trail: &mut Trail,
) -> Result<Option<Hop>, Failed> {
    let from = detour.unwrap_or(&outgoing.template);
    // A GET with effects is one by the caller's word alone.
    let is_harmless = from.method().is_safe() && plan.idempotency == Idempotency::Natural;
    if client.opaque && sent(response.url()) != sent(from.url()) {
        // It followed a redirect, and by which status only it knows.
        outgoing.may_have_acted = !is_harmless;
    }
    if client.opaque || client.max_redirects == 0 {
        return Ok(None);
    }
    let (status, headers) = (response.status(), response.headers());
    let Some(next) = redirect::next(from, status, headers, &outgoing.payload, is_harmless || outgoing.is_done()) else {
        return Ok(None);
    };
    trail.step(from, &next, response)?;
    outgoing.may_have_acted |= next.may_have_acted;
    let (foreign, see_other) = (foreign || next.leaves, next.see_other);
    let request = match detour {
        Some(from) => redirect::request(from, next, foreign, &client.keys.header),
        None => redirect::request(&outgoing.whole(client, plan), next, foreign, &client.keys.header),
    };
    Ok(Some(Hop { request: Box::new(request), foreign, see_other }))
}

impl Inner {
    /// What tells one attempt from another on the wire.
    fn mark(&self, headers: &mut HeaderMap, number: u32, until: Option<Instant>) {
        if let (Some(name), Some(until)) = (&self.manners.deadline_header, until) {
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
    probe: Option<&Probe>,
    until: &mut Deadline<'_>,
) -> impl Future<Output = Result<reqwest::Response, Failed>> {
    async move {
        // A client that we were given may follow redirects itself, so a refused connection may be that of a later hop, after the
        // request was carried out.
        let failed = |failure, timed_out, source| Failed {
            failure: if client.opaque { Failure::Unknown } else { failure },
            timed_out,
            head: None,
            taken: probe.map(Probe::taken),
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
                    (failure::of_transport(&error, probe, client.is_as_made), error.is_timeout());
                Err(failed(failure, timed_out, Some(error.without_url().into())))
            }
            Err(clock::TimedOut) => Err(failed(failure::of_timeout(probe), true, None)),
        }
    }
}

/// The request's body could not be made, or not in time.
fn no_body(why: NoBody) -> Failed {
    let (failure, source) = match why {
        NoBody::Failed(source) => (Failure::RequestBody, Some(source)),
        NoBody::TimedOut => (Failure::NotSent, None),
    };
    Failed { failure, timed_out: source.is_none(), head: None, taken: Some(false), source }
}

/// Hands the request to the transport, with what watches its body.
fn start(
    client: &Inner,
    plan: &Plan,
    outgoing: &Outgoing,
    detour: Option<&reqwest::Request>,
    body: Option<reqwest::Body>,
    number: Option<u32>,
    until: Option<Instant>,
) -> (impl Future<Output = reqwest::Result<reqwest::Response>> + use<>, Option<Probe>) {
    let (mut request, probe) = outgoing.open(client, plan, detour, body);
    if let Some(number) = number {
        client.mark(request.headers_mut(), number, until);
    }
    (client.http.execute(request), probe)
}
