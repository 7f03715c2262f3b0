//! What one operation is, settled before anything is sent: its key, its licence, its limits, and the request itself.

use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::payload::Payload;
use super::probe::Probe;
use super::upstream::KeyTrust;
use crate::key::{IdempotencyKey, Trust};
use crate::policy::{Idempotency, RetryPolicy};
use crate::resume::{Identity, ResumeToken};

/// The terms of the operation. They never change while it runs.
pub(super) struct Plan {
    pub(super) method: Method,
    pub(super) policy: RetryPolicy,
    pub(super) attempt_timeout: Option<Duration>,
    pub(super) idempotency: Idempotency,
    pub(super) key: Option<IdempotencyKey>,
    pub(super) key_was_given: bool,
    pub(super) trust: Trust,
    /// By the wall clock; an operation that is resumed keeps its first.
    pub(super) first_sent: SystemTime,
    /// What a resumed operation brings with it.
    pub(super) may_have_been_processed: bool,
}

impl Plan {
    pub(super) fn attempt_until(&self, started: Instant) -> Option<Instant> {
        self.attempt_timeout.and_then(|time| started.checked_add(time))
    }
}

/// The request, ready to be sent as often as its body allows.
pub(super) struct Outgoing {
    /// Everything but the body.
    pub(super) template: reqwest::Request,
    pub(super) payload: Payload,
}

impl Outgoing {
    /// The request of attempt `number`, and what watches its body.
    pub(super) fn next_attempt(&mut self, number: u32, number_header: Option<&HeaderName>) -> (reqwest::Request, Option<Probe>) {
        let template = &self.template;
        // Cloning fails only for a streaming body, and the template has none.
        let bare = || reqwest::Request::new(template.method().clone(), template.url().clone());
        let mut request = template.try_clone().unwrap_or_else(bare);
        if let Some(name) = number_header {
            request.headers_mut().insert(name, HeaderValue::from(number));
        }
        let watched = self.payload.next().map(Probe::watch);
        let (body, probe) = watched.map_or((None, None), |(body, probe)| (Some(body), Some(probe)));
        *request.body_mut() = body;
        (request, probe)
    }

    pub(super) fn resume_token(&self, plan: &Plan, may_have_been_processed: bool) -> Option<ResumeToken> {
        let key = plan.key.as_ref()?;
        Some(ResumeToken::new(key, plan.first_sent, &self.identity(), may_have_been_processed))
    }

    pub(super) fn identity(&self) -> Identity<'_> {
        Identity { method: self.template.method(), url: self.template.url(), body: self.payload.bytes() }
    }

    /// Whether the key is a licence now; `head` is the latest answer's.
    pub(super) fn key_is_trusted(
        &self,
        plan: &Plan,
        head: Option<(StatusCode, &HeaderMap)>,
        key_header: &HeaderName,
        origin: &KeyTrust,
    ) -> bool {
        match (plan.trust, &plan.key) {
            (Trust::Declared, _) => true,
            (Trust::Nobody, _) | (Trust::Negotiated, None) => false,
            (Trust::Negotiated, Some(key)) => {
                let path = self.template.url().path();
                if let Some((status, headers)) = head {
                    origin.learn(&plan.method, path, key, status, headers, key_header);
                }
                origin.covers(&plan.method, path)
            }
        }
    }
}
