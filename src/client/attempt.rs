//! Exactly one attempt: the request sent once, and the redirects that it meets.
//!
//! Nothing here repeats, waits for a retry or decides. It knows how to send, where a redirect leads and how to stop in time. The
//! hops of a redirect are part of the attempt and of its time.

use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::answer::{self, Answer, Failed, Read};
use super::outgoing::Outgoing;
use super::probe::Probe;
use super::redirect::{self, Trail};
use super::{Inner, failure};
use crate::policy::Failure;
use crate::{clock, deadline};

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Sends the request once, until the instant `until` at the latest, and follows the redirects that may be followed.
pub(super) async fn send(
    client: &Inner,
    outgoing: &mut Outgoing,
    number: u32,
    until: Option<Instant>,
    read: Read,
) -> Result<Answer, Failed> {
    let mut trail = Trail::new(client.max_redirects);
    let (mut detour, mut foreign) = (None, outgoing.foreign);
    outgoing.may_have_acted = false;
    loop {
        let mark = |headers: &mut HeaderMap| {
            if !foreign {
                client.mark(headers, number, until);
            }
        };
        let response = exchange(client, outgoing, detour.as_ref(), mark, until).await?;
        let from = detour.as_ref().unwrap_or(&outgoing.template);
        if client.opaque && sent(response.url()) != sent(from.url()) {
            // It followed a redirect, and by which status only it knows.
            outgoing.may_have_acted = !from.method().is_safe();
        }
        let next = if client.opaque || client.max_redirects == 0 {
            None
        } else {
            redirect::next(from, response.status(), response.headers(), &outgoing.payload)
        };
        let Some(next) = next else { return answer::read(response, until, read).await };
        trail.step(from, &next, &response)?;
        foreign |= next.leaves;
        outgoing.may_have_acted |= next.may_have_acted;
        let see_other = next.see_other;
        let request = redirect::request(from, next, foreign, &client.keys.header);
        let _read_away = answer::read_error(response, until).await;
        if see_other {
            outgoing.see_other(request, foreign);
            detour = None;
        } else {
            detour = Some(request);
        }
    }
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

/// One request and the head of its answer.
async fn exchange(
    client: &Inner,
    outgoing: &mut Outgoing,
    detour: Option<&reqwest::Request>,
    mark: impl FnOnce(&mut HeaderMap),
    until: Option<Instant>,
) -> Result<reqwest::Response, Failed> {
    let (mut request, probe) = outgoing.open(detour).await.map_err(|source| Failed {
        failure: Failure::RequestBody,
        timed_out: false,
        head: None,
        taken: Some(false),
        source: Some(source),
    })?;
    mark(request.headers_mut());
    let probe = probe.as_ref();
    // A client that we were given may follow redirects itself, so a refused connection may be that of a later hop, after the
    // request was carried out.
    let failed = |failure, timed_out, source| Failed {
        failure: if client.opaque { Failure::Unknown } else { failure },
        timed_out,
        head: None,
        taken: probe.map(Probe::taken),
        source,
    };
    match clock::until(until, client.http.execute(request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => {
            let (failure, timed_out) = (failure::of_transport(&error, probe), error.is_timeout());
            Err(failed(failure, timed_out, Some(error.without_url().into())))
        }
        Err(clock::TimedOut) => Err(failed(failure::of_timeout(probe), true, None)),
    }
}
