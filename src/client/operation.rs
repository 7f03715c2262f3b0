//! What one operation is, settled before anything is sent: its key, its licence and its limits.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::Method;

use super::Inner;
use super::checks::check_timeout;
use super::request_body::RequestBody;
use super::response_body::Read;
use super::upstream::Upstream;
use super::wire_request::WireRequest;
use crate::clock;
use crate::deadline::Deadline;
use crate::error::{Error, Result, VOUCH};
use crate::key::IdempotencyKey;
use crate::key_policy::{KeyPolicy, Trust};
use crate::policy::{HedgePolicy, Idempotency, RetryPolicy};
use crate::resume::{self, ResumeToken};

/// What the caller said of this operation alone.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) key: Option<IdempotencyKey>,
    pub(super) resume: Option<ResumeToken>,
    pub(super) idempotent: Option<bool>,
    pub(super) retry: Option<RetryPolicy>,
    pub(super) hedge: Option<Option<HedgePolicy>>,
    pub(super) timeout: Option<Option<Duration>>,
    pub(super) attempt_timeout: Option<Option<Duration>>,
    pub(super) body_limit: Option<usize>,
}

/// What most callers say, once and for all: it would take longer to make and drop than to read.
static NOTHING: Options = Options {
    key: None,
    resume: None,
    idempotent: None,
    retry: None,
    hedge: None,
    timeout: None,
    attempt_timeout: None,
    body_limit: None,
};

/// The terms of the operation. They never change while it runs.
pub(super) struct OperationContext {
    pub(super) method: Method,
    pub(super) upstream: Arc<Upstream>,
    /// `None`: the client's.
    own_policy: Option<Box<RetryPolicy>>,
    pub(super) attempt_timeout: Option<Duration>,
    pub(super) read: Read,
    pub(super) hedge: Option<Box<HedgePolicy>>,
    pub(super) idempotency: Idempotency,
    pub(super) key: Option<IdempotencyKey>,
    pub(super) key_was_given: bool,
    pub(super) trust: Trust,
    /// By the wall clock; an operation that is resumed keeps its first. Only a key has an age.
    pub(super) first_sent: Option<SystemTime>,
    /// How much of its retention the key had used up when this operation began, in seconds, rounded
    /// up. Not a `Duration`: a plan is held by every operation in flight.
    key_age: u32,
    /// The task's own.
    pub(super) deadline: Option<Deadline>,
    /// What a resumed operation brings with it.
    pub(super) may_have_been_processed: bool,
}

impl OperationContext {
    pub(super) fn policy<'a>(&'a self, client: &'a Inner) -> &'a RetryPolicy {
        self.own_policy.as_deref().unwrap_or(&client.retry)
    }

    /// From its start on.
    pub(super) fn time_allowed(&self, client: &Inner) -> Option<Duration> {
        let of_task = self.deadline.map(Deadline::time_left);
        self.policy(client).time_allowed().map_or(of_task, |time| Some(of_task.map_or(time, |left| left.min(time))))
    }

    /// When the API may have forgotten the key of an operation that `started` then: from then on a
    /// repeat would be another operation.
    pub(super) fn key_until(
        &self,
        client: &Inner,
        wire_request: &WireRequest,
        started: Instant,
        now: Instant,
    ) -> Option<Instant> {
        let first_sent = self.first_sent.filter(|_| self.idempotency == Idempotency::Keyed)?;
        let said = || self.upstream.trust.retention(&self.method, wire_request.paths());
        let retention = retention(&client.keys, self.trust, said);
        let running = now.saturating_duration_since(started);
        let age = resume::age_after(Duration::from_secs(self.key_age.into()), running, first_sent, clock::wall());
        now.checked_add(resume::usable(retention).saturating_sub(age))
    }

    pub(super) fn attempt_until(&self, started: Instant) -> Option<Instant> {
        self.attempt_timeout.and_then(|time| started.checked_add(time))
    }
}

/// Settles the terms of the operation and puts the client's defaults on the request. `says_type`: its body says what it is.
pub(super) fn settle(
    inner: &Inner,
    request: &mut reqwest::Request,
    payload: &RequestBody,
    says_type: bool,
    options: Option<&Options>,
    reads_body: bool,
) -> Result<OperationContext> {
    let options = options.unwrap_or(&NOTHING);
    let limit = options.body_limit.unwrap_or(inner.body_limit);
    let read = if reads_body { Read::Whole { limit } } else { Read::Head };
    let upstream = inner.upstreams.get(request.url());
    let at_home = inner.upstreams.is_home(&upstream);
    inner.defaults.add_to(request.headers_mut(), at_home, says_type);

    let own_policy = own_policy(options.retry.as_ref(), options.timeout, inner)?;
    let attempt_timeout = options.attempt_timeout.unwrap_or(inner.attempt_timeout);
    check_timeout("attempt_timeout", attempt_timeout)?;

    let keys = &inner.keys;
    let resumed_from = options.resume.as_ref().map(ResumeToken::first_sent);
    let may_have_been_processed = options.resume.as_ref().is_some_and(ResumeToken::may_have_been_processed);
    let method = request.method().clone();
    // The user's word is about the API at the base URL, not about whatever else this client is sent to, and about the methods for which
    // the API takes keys.
    let is_meant = at_home && keys.methods.contains(&method);
    let trust = if is_meant || keys.trust == Trust::Nobody { keys.trust } else { Trust::Negotiated };
    let retention = retention(keys, trust, || upstream.trust.retention(&method, (request.url().path(), None)));
    let given = given_key(request, payload, options.key.clone(), options.resume.as_ref(), keys, retention)?;
    let key_was_given = given.is_some();
    let key = keys.key_for(&method, given).map_err(|error| Error::build("idempotency_key", error))?;

    let first_sent = key.as_ref().map(|_| resumed_from.unwrap_or_else(clock::wall));
    let key_age = resumed_from.and_then(|first_sent| resume::age_at(first_sent, clock::wall()));
    let key_age = key_age.map_or(0, |age| u32::try_from(age.as_secs()).map_or(u32::MAX, |age| age.saturating_add(1)));

    let idempotency = match (options.idempotent, Idempotency::of_method(&method), &key) {
        (Some(true), ..) | (None, Idempotency::Natural, _) => Idempotency::Natural,
        (Some(false), ..) | (None, _, None) => Idempotency::Absent,
        (None, _, Some(_)) => Idempotency::Keyed,
    };
    let hedge = match options.hedge {
        Some(asked) => asked.map(|policy| check_hedge(policy, idempotency, keys)).transpose()?,
        None => inner.overload.hedge.filter(|_| idempotency == Idempotency::Natural && is_safe(&method)),
    };
    // To resume is to repeat: what may have been carried out needs the licence that a retry would need.
    let honours_keys = || upstream.trust.is_trusted(trust, &method, || (request.url().path(), None));
    let licence = idempotency == Idempotency::Natural || (idempotency == Idempotency::Keyed && honours_keys());
    if may_have_been_processed && !licence {
        let nobody = "the operation may have been processed and nobody has said that this API honours keys, so to resume it could \
                      carry it out twice";
        return Err(Error::new(crate::ErrorKind::KeyExpired, format!("{nobody}; {VOUCH}")));
    }
    Ok(OperationContext {
        method,
        upstream,
        own_policy,
        attempt_timeout,
        read,
        hedge: hedge.map(Box::new),
        idempotency,
        key,
        key_was_given,
        trust,
        first_sent,
        key_age,
        deadline: Deadline::current(),
        may_have_been_processed,
    })
}

/// How long the API remembers a key: by the user's word, and where the client negotiates, by the API's own if that is shorter.
fn retention(keys: &KeyPolicy, trust: Trust, said: impl FnOnce() -> Option<Duration>) -> Duration {
    let said = if trust == Trust::Negotiated { said() } else { None };
    said.map_or(keys.retention, |said| said.min(keys.retention))
}

/// Precedence: the request's timeout, the request's policy if it sets a deadline, the client's timeout, the client's policy. (The
/// last two were merged when the client was built.)
fn own_policy(
    retry: Option<&RetryPolicy>,
    timeout: Option<Option<Duration>>,
    inner: &Inner,
) -> Result<Option<Box<RetryPolicy>>> {
    if retry.is_none() && timeout.is_none() {
        return Ok(None);
    }
    let mut policy = match retry {
        // A policy that does not speak of the deadline leaves the client's in force.
        Some(policy) if !policy.has_a_deadline_of_its_own() => policy.clone().deadline(inner.retry.time_allowed()),
        Some(policy) => policy.clone(),
        None => inner.retry.clone(),
    };
    if let Some(timeout) = timeout {
        check_timeout("timeout", timeout)?;
        policy = policy.deadline(timeout);
    }
    policy.validate().map_err(Error::invalid)?;
    Ok(Some(Box::new(policy.fit_for(inner.opaque))))
}

/// Two requests at once, where the first cannot be known to have failed.
fn check_hedge(policy: HedgePolicy, idempotency: Idempotency, keys: &KeyPolicy) -> Result<HedgePolicy> {
    policy.validate().map_err(Error::invalid)?;
    match idempotency {
        Idempotency::Natural => Ok(policy),
        Idempotency::Keyed if keys.concurrent_duplicates => Ok(policy),
        Idempotency::Keyed => Err(Error::build("hedge", "the KeyPolicy does not say concurrent_duplicates_safe")),
        Idempotency::Absent => Err(Error::build("hedge", "nothing makes it harmless to act on this request twice")),
    }
}

/// RFC 9110 §9.2.1; QUERY: RFC 10008.
pub(super) fn is_safe(method: &Method) -> bool {
    method.is_safe() || method.as_str() == "QUERY"
}

/// The key that the caller gave: by token, by method, or as a header.
fn given_key(
    request: &mut reqwest::Request,
    payload: &RequestBody,
    key: Option<IdempotencyKey>,
    resume: Option<&ResumeToken>,
    keys: &KeyPolicy,
    retention: Duration,
) -> Result<Option<IdempotencyKey>> {
    let header = &keys.header;
    let given = match (resume, key) {
        (Some(_), Some(_)) => {
            return Err(Error::build("resume", "it brings its own key; idempotency_key is one too many"));
        }
        (Some(token), None) => {
            let identity =
                crate::resume::Identity { method: request.method(), url: request.url(), body: payload.bytes() };
            let expired = |reason| Error::new(crate::ErrorKind::KeyExpired, reason);
            token.check(clock::wall(), retention, &identity).map_err(expired)?;
            Some(token.key().map_err(|error| Error::build("resume", error))?)
        }
        (None, key) => key,
    };
    let mut headers = request.headers().get_all(header).iter();
    match (given, headers.next(), headers.next()) {
        (given, None, _) => Ok(given),
        (_, Some(_), Some(_)) => Err(Error::build(header.as_str(), "the header is there twice")),
        (Some(given), Some(_), None) => {
            request.headers_mut().remove(header);
            Ok(Some(given))
        }
        (None, Some(value), None) => {
            let key = IdempotencyKey::from_header(value).map_err(|error| Error::build(header.as_str(), error))?;
            if let Some(value) = request.headers_mut().get_mut(header) {
                value.set_sensitive(true);
            }
            Ok(Some(key))
        }
    }
}
