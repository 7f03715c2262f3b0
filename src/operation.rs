//! One operation: its key, its licence to repeat and its limits, fixed before anything is sent.
//!
//! The loop calls two methods about the key. [`OperationContext::observe`] learns from a response
//! whether the API honours keys, and [`OperationContext::is_key_trusted`] answers without learning.

mod options;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, Method, StatusCode};

pub(crate) use self::options::Options;
use self::options::{ConfirmSettings, NO_OPTIONS, OwnSettings, own_policy};
use super::attempt_result::AttemptProgress;
use super::before_send::BeforeSendHook;
use super::checks::{check_framing, check_timeout};
use super::confirm::{Question, Unconfirmed};
use super::defaults;
use super::event::{Event, EventKind};
use super::key_trust::RequestPaths;
use super::origin::Origin;
use super::redirect::{Hop, RedirectState};
use super::request_body::ContentType;
use super::response_body::ReadMode;
use super::send_clock::{SendClock, UploadRate};
use super::send_probe::SendProbe;
use super::spans::OperationSpan;
use super::transport_view::TransportView;
use super::wire_request::WireRequest;
use crate::Client;
use crate::clock;
use crate::deadline::{Deadline, Task};
use crate::earlier::Earlier;
use crate::error::{Error, ErrorKind, Result, VOUCH};
use crate::inner::Inner;
use crate::journal::{Journal, NotFollowed, OutOfTime, Withheld};
use crate::key::IdempotencyKey;
use crate::key_policy::{KeyPolicy, Trust};
use crate::policy::{HedgePolicy, Idempotency, RetryPolicy, StopReason};
use crate::resume::{self, ResumeToken, SafeUrl};
use crate::settings::ReadTimeout;

/// The terms of one operation. They do not change while it runs.
pub(super) struct OperationContext<'a> {
    pub(super) client: &'a Inner,
    pub(super) method: Method,
    pub(super) origin: Arc<Origin>,
    attempt_timeout: Option<Duration>,
    /// The request's own settings, and its span. `None` if it has neither.
    own: Option<Box<OwnSettings<'a>>>,
    pub(super) read: ReadMode,
    pub(super) idempotency: Idempotency,
    pub(super) key: Option<IdempotencyKey>,
    pub(super) key_was_given: bool,
    pub(super) trust: Trust,
    /// When the key was sent first, by the wall clock. A resumed operation keeps its token's time.
    first_sent: Option<SystemTime>,
    /// The key's age when this operation began, in seconds, rounded up. Not a `Duration`, since
    /// every operation in flight holds one of these.
    key_age: u32,
    /// The deadline of the task that runs the operation.
    task_deadline: Option<Deadline>,
    /// The operation is an attempt of another one, which repeats it.
    pub(super) is_nested: bool,
    /// The operation belongs to a read that confirms another one.
    is_confirming: bool,
    /// A resumed operation may have been processed before.
    pub(super) may_have_been_processed: bool,
}

impl<'a> OperationContext<'a> {
    /// Fixes the terms, and adds the client's default headers to the request.
    pub(super) fn new(
        handle: &'a Client,
        wire_request: &mut WireRequest,
        options: Option<&Options>,
        reads_body: bool,
        view: Option<&'a TransportView>,
    ) -> Result<Self> {
        let client = handle.inner()?;
        let given = options;
        let options = options.unwrap_or(&NO_OPTIONS);
        let origin = client.origins.get(wire_request.template.url());
        let at_home = client.origins.is_home(&origin);
        let has_content_type = wire_request.content_type != ContentType::Unset;
        client.defaults.add_to(wire_request.template.headers_mut(), at_home, has_content_type);

        check_framing(wire_request.template.headers(), wire_request.body.length())?;
        let attempt_timeout = options.attempt_timeout.unwrap_or(client.attempt_timeout);
        check_timeout("attempt_timeout", attempt_timeout)?;
        check_timeout("read_timeout", options.read_timeout.flatten())?;
        options.upload_rate.map_or(Ok(()), UploadRate::check)?;
        let limit = options.body_limit.unwrap_or(client.body_limit);

        let method = wire_request.template.method().clone();
        let trust = trust_for(&client.keys, &method, at_home);
        let stated = || origin.trust.retention(&method, requested_path(wire_request));
        let retention = retention(&client.keys, trust, stated);
        let given_key = given_key(wire_request, options, &client.keys, retention)?;
        let key_was_given = given_key.is_some();
        let key = client.keys.key_for(&method, given_key).map_err(|error| Error::build("idempotency_key", error))?;

        let earlier = options.earlier.as_deref();
        let resumed_from = options.resume.as_ref().map(ResumeToken::first_sent).or(options.prepared);
        let resumed_from = resumed_from.or_else(|| earlier.and_then(Earlier::key_first_sent));
        let first_sent = key.as_ref().map(|_| resumed_from.unwrap_or_else(clock::wall));
        let idempotency = idempotency_of(&method, key.is_some(), options.idempotent);
        let own = OwnSettings::new(handle, given, view, (&method, idempotency))?;
        let may_have_been_processed = options.resume.as_ref().is_some_and(ResumeToken::may_have_been_processed);
        let task = Task::current();
        let context = Self {
            client,
            method,
            origin,
            attempt_timeout,
            own,
            read: if reads_body { ReadMode::Whole { limit } } else { ReadMode::Head },
            idempotency,
            key,
            key_was_given,
            trust,
            first_sent,
            key_age: resumed_from.map_or(0, age_in_seconds),
            task_deadline: task.deadline,
            is_nested: task.is_nested,
            is_confirming: task.is_confirming,
            may_have_been_processed: may_have_been_processed || earlier.is_some_and(Earlier::may_have_been_processed),
        };
        if may_have_been_processed {
            context.check_resume_licence(wire_request)?;
        }
        Ok(context)
    }

    /// Starts the operation's span, if somebody listens.
    pub(super) fn start_span(&mut self, wire_request: &WireRequest) {
        if let Some(span) = OperationSpan::start(self.client, &wire_request.template, self.template()) {
            self.own.get_or_insert_default().span = Some(span);
        }
    }

    /// Checks the licence of an operation that is resumed after it may have been processed: to
    /// resume it is to repeat it.
    fn check_resume_licence(&self, wire_request: &WireRequest) -> Result<()> {
        let is_licensed = match self.idempotency {
            Idempotency::Natural => true,
            Idempotency::Keyed => self.trusts_key_at(|| requested_path(wire_request)),
            Idempotency::Absent => false,
        };
        if is_licensed {
            return Ok(());
        }
        let why = "the operation may have been processed and nobody has said that this API honours keys, so to resume \
                   it could carry it out twice";
        Err(Error::new(ErrorKind::KeyExpired, format!("{why}; {VOUCH}")))
    }

    /// Returns what is known of the transport.
    pub(super) fn view(&self) -> &TransportView {
        self.own.as_ref().and_then(|own| own.view).unwrap_or(&self.client.view)
    }

    /// Returns whether redirects to another origin are followed, and why not.
    pub(super) fn cross_origin_redirects(&self) -> std::result::Result<(), NotFollowed> {
        let is_through = self.own.as_ref().is_some_and(|own| own.view.is_some());
        if is_through { self.client.cross_origin_through } else { self.client.cross_origin_redirects }
    }

    pub(super) fn policy(&self) -> &RetryPolicy {
        self.own.as_ref().and_then(|own| own.retry.as_ref()).unwrap_or(&self.client.retry)
    }

    /// Returns the template of the path, for spans and metrics.
    pub(super) fn template(&self) -> Option<&str> {
        self.own.as_ref().and_then(|own| own.template.as_deref())
    }

    /// Returns whom to ask before a request leaves, if there is somebody to ask.
    pub(super) fn before_send(&self) -> Option<&BeforeSendHook> {
        self.own.as_ref().and_then(|own| own.before_send.as_ref())
    }

    /// Returns whether there is something to wait for before a request leaves.
    pub(super) fn waits_before_send(&self) -> bool {
        self.client.attempt_headers.is_some() || self.before_send().is_some()
    }

    /// Returns the operation's span, if somebody listens.
    pub(super) fn span(&self) -> Option<&OperationSpan> {
        self.own.as_ref().and_then(|own| own.span.as_ref())
    }

    /// Makes an event of this operation.
    pub(super) fn event<'b>(
        &'b self,
        wire_request: &'b WireRequest,
        journal: &'b Journal,
        kind: EventKind<'b>,
    ) -> Event<'b> {
        Event {
            method: &self.method,
            url: SafeUrl(wire_request.original().url()),
            key: self.key.as_ref(),
            idempotency: self.idempotency,
            template: self.template(),
            budget: &self.origin.budget,
            journal,
            kind,
        }
    }

    /// Returns the time limit of the operation, from its start.
    pub(super) fn time_allowed(&self) -> Option<Duration> {
        let of_task = self.task_deadline.map(Deadline::time_left);
        match (self.policy().deadline.duration(), of_task) {
            (Some(own), Some(of_task)) => Some(own.min(of_task)),
            (own, of_task) => own.or(of_task),
        }
    }

    /// Returns the deadline of the task that runs the operation.
    pub(super) fn task_deadline(&self) -> Option<Instant> {
        self.task_deadline.map(|deadline| deadline.instant())
    }

    /// Returns whose limit `deadline` is, for an operation that started at `started`. It is that of
    /// the API's memory of the key if it is neither of the other two.
    pub(super) fn limit_at(&self, deadline: Instant, started: Instant) -> OutOfTime {
        let own = self.policy().deadline.duration().and_then(|time| started.checked_add(time));
        if Some(deadline) == own {
            OutOfTime::Operation
        } else if Some(deadline) == self.task_deadline() {
            OutOfTime::Task
        } else {
            OutOfTime::Key
        }
    }

    /// Returns the credentials that the final response's request did not carry because it went to
    /// another origin than theirs.
    pub(super) fn withheld(&self, wire_request: &WireRequest, redirects: RedirectState) -> Withheld {
        let headers = wire_request.original().headers();
        let at_home = self.client.origins.is_home(&self.origin);
        let withholds_token = self.withholds_token(headers);
        let has_own = self.key.is_some() || defaults::has_credential(headers) || (at_home && withholds_token);
        Withheld {
            // What a transport of the user's sends after its own redirects is not known.
            by_redirect: redirects.is_elsewhere && has_own && !redirects.is_opaque,
            by_base_url: !at_home && (withholds_token || self.client.defaults.has_credential_beside(headers)),
        }
    }

    /// Returns when an attempt that starts at `started` times out.
    pub(super) fn attempt_until(&self, started: Instant) -> Option<Instant> {
        self.attempt_timeout.and_then(|timeout| started.checked_add(timeout))
    }

    /// Returns the clock of an attempt while the body that `probe` watches is sent.
    pub(super) fn send_clock(&self, probe: Option<&SendProbe>) -> SendClock<'_> {
        let own = self.own.as_ref().and_then(|own| own.upload_rate.as_ref());
        SendClock {
            attempt_timeout: self.attempt_timeout,
            rate: own.or(self.client.upload_rate.as_ref()),
            deadline: probe.and_then(SendProbe::deadline),
        }
    }

    /// Returns the longest pause in a response body that is read after the attempt.
    pub(super) fn read_timeout(&self) -> Option<&Duration> {
        match self.own.as_ref().and_then(|own| own.read_timeout.as_ref()) {
            Some(own) => own.as_ref(),
            None => self.client.read_timeout.duration(),
        }
    }

    /// Returns the longest pause in a response body that is read inside an attempt. The default
    /// does not apply to one with an end.
    pub(super) fn read_timeout_inside(&self, until: Option<Instant>) -> Option<&Duration> {
        let is_own = self.own.as_ref().is_some_and(|own| own.read_timeout.is_some());
        let is_default = !is_own && self.client.read_timeout == ReadTimeout::Default;
        if is_default && until.is_some() { None } else { self.read_timeout() }
    }

    /// Returns whether to ask the user whether the operation was carried out, if it stops for this
    /// reason.
    pub(super) fn asks(&self, reason: StopReason) -> bool {
        let has_no_licence = matches!(reason, StopReason::NotRepeatable | StopReason::KeyNotTrusted);
        // A read that is itself in doubt would ask itself, without end.
        has_no_licence && !self.is_confirming && self.own.as_ref().is_some_and(|own| own.confirm.is_some())
    }

    /// Returns what to ask the user, if there is somebody to ask.
    pub(super) fn question(&self, wire_request: &WireRequest, deadline: Option<Instant>) -> Option<Question<'_>> {
        let ConfirmSettings { confirm, settling, client } = self.own.as_ref()?.confirm.as_ref()?;
        let request = wire_request.original();
        let operation = Unconfirmed {
            client: client.clone(),
            method: self.method.clone(),
            url: request.url().clone(),
            headers: request.headers().clone(),
            body: wire_request.body.kept(),
            key: self.key.clone(),
        };
        Some(Question { operation, confirm, settling: *settling, deadline })
    }

    /// Returns the hedge policy for an attempt. Only the first one is hedged.
    pub(super) fn hedge_policy(&self, number: u32) -> Option<&HedgePolicy> {
        self.own.as_ref().and_then(|own| own.hedge.as_ref()).filter(|_| number == 1)
    }

    /// Returns when the API may forget the key. A repeat after that would be another operation.
    pub(super) fn key_expires_at(&self, paths: RequestPaths<'_>, started: Instant, now: Instant) -> Option<Instant> {
        let first_sent = self.first_sent.filter(|_| self.idempotency == Idempotency::Keyed)?;
        let stated = || self.origin.trust.retention(&self.method, paths);
        let retention = retention(&self.client.keys, self.trust, stated);
        let running = now.saturating_duration_since(started);
        let age = resume::age_after(Duration::from_secs(self.key_age.into()), running, first_sent, clock::wall());
        now.checked_add(resume::usable(retention).saturating_sub(age))
    }

    /// Returns how long the API remembers the key.
    pub(super) fn key_retention(&self, wire_request: &WireRequest) -> Duration {
        let stated = || self.origin.trust.retention(&self.method, requested_path(wire_request));
        retention(&self.client.keys, self.trust, stated)
    }

    /// Builds the request as it is sent, without its body.
    pub(super) fn assemble(&self, wire_request: &WireRequest) -> reqwest::Request {
        if wire_request.is_done() {
            return wire_request.copy(&wire_request.template);
        }
        let keys = &self.client.keys;
        let key = self.key.as_ref().map(|key| (&keys.header, key.to_header(keys.form)));
        wire_request.assemble(key, self.origin.common_headers(&keys.header))
    }

    /// Returns whether the API is trusted to honour the key, so that a repeat is licensed.
    pub(super) fn is_key_trusted(&self, wire_request: &WireRequest, progress: &AttemptProgress) -> bool {
        self.trusts_key_at(|| wire_request.paths(progress))
    }

    /// Returns whether a redirect may be followed to this hop. After an attempt that may have been
    /// processed the hop is a repeat at another path, and needs the licence there.
    pub(super) fn may_send_hop(&self, wire_request: &WireRequest, progress: &AttemptProgress, hop: &Hop) -> bool {
        let is_keyed = self.idempotency == Idempotency::Keyed && !progress.redirects.is_done && !hop.is_result;
        let paths = || RequestPaths { requested: wire_request.original().url().path(), last_hop: Some(hop.url.path()) };
        !(is_keyed && progress.is_repeat) || self.trusts_key_at(paths)
    }

    fn trusts_key_at<'b>(&self, paths: impl FnOnce() -> RequestPaths<'b>) -> bool {
        self.origin.trust.is_trusted(self.trust, &self.method, paths)
    }

    /// Learns from the head of a response whether the API honours keys.
    pub(super) fn observe(
        &self,
        wire_request: &WireRequest,
        progress: &AttemptProgress,
        head: Option<(StatusCode, &HeaderMap)>,
    ) {
        let Some((status, headers)) = head.filter(|_| self.trust == Trust::Negotiated) else { return };
        // The GET of a result has no key, and a request to another origin has none either.
        let has_key = self.key.is_some() && !progress.redirects.is_done && !progress.redirects.is_elsewhere;
        // A transport that follows redirects itself does not tell whether the last hop got the key.
        let is_known = !progress.redirects.is_opaque || progress.hop().is_none();
        if has_key && is_known {
            let path = wire_request.current(progress).request.url().path();
            self.origin.trust.observe(&self.method, path, status, headers);
        }
    }

    /// Returns the token that resumes this operation, if it has a key.
    pub(super) fn resume_token(
        &self,
        wire_request: &WireRequest,
        may_have_been_processed: bool,
    ) -> Option<Box<ResumeToken>> {
        let (key, first_sent) = self.key.as_ref().zip(self.first_sent)?;
        Some(Box::new(ResumeToken::new(key, first_sent, &wire_request.identity(), may_have_been_processed)))
    }
}

/// Returns whether an operation with these options has a time limit, of its own or of its task.
///
/// # Errors
///
/// An option is invalid.
pub(super) fn has_deadline(client: &Inner, options: Option<&Options>) -> Result<bool> {
    Ok(time_limit(client, options)?.is_some() || Task::current().deadline.is_some())
}

/// Returns the time limit of an operation by its own settings.
///
/// # Errors
///
/// An option is invalid.
pub(super) fn time_limit(client: &Inner, options: Option<&Options>) -> Result<Option<Duration>> {
    let own = own_policy(client, options.unwrap_or(&NO_OPTIONS), false)?;
    Ok(own.as_ref().unwrap_or(&client.retry).deadline.duration())
}

fn requested_path(wire_request: &WireRequest) -> RequestPaths<'_> {
    RequestPaths::only(wire_request.template.url().path())
}

/// Returns on whose statement the client relies. The user's statement is about the API at the base
/// URL, and about the methods for which it takes keys.
fn trust_for(keys: &KeyPolicy, method: &Method, at_home: bool) -> Trust {
    match keys.trust {
        Trust::Declared if !at_home || !keys.methods.contains(method) => Trust::Negotiated,
        trust => trust,
    }
}

/// Returns how long the API remembers a key: the retention of the policy. If the client negotiates
/// and the API has stated a shorter one, it is that.
fn retention(keys: &KeyPolicy, trust: Trust, stated: impl FnOnce() -> Option<Duration>) -> Duration {
    let stated = if trust == Trust::Negotiated { stated() } else { None };
    stated.map_or(keys.retention, |stated| stated.min(keys.retention))
}

/// Returns the age of a resumed operation's key, in whole seconds, rounded up.
fn age_in_seconds(first_sent: SystemTime) -> u32 {
    let Some(age) = resume::age_at(first_sent, clock::wall()) else { return 0 };
    u32::try_from(age.as_secs()).map_or(u32::MAX, |age| age.saturating_add(1))
}

fn idempotency_of(method: &Method, has_key: bool, declared: Option<bool>) -> Idempotency {
    match (declared, Idempotency::of_method(method)) {
        (Some(true), _) | (None, Idempotency::Natural) => Idempotency::Natural,
        (None, _) if has_key => Idempotency::Keyed,
        _ => Idempotency::Absent,
    }
}

/// Returns the caller's key: from the resume token, from the builder, or from the key's header.
fn given_key(
    wire_request: &mut WireRequest,
    options: &Options,
    keys: &KeyPolicy,
    retention: Duration,
) -> Result<Option<IdempotencyKey>> {
    let first_key = options.earlier.as_ref().and_then(|earlier| earlier.key.as_ref());
    let given = match (&options.resume, &options.key) {
        // The first key stays, also if the layer that repeats the operation has another one.
        (None, key) => first_key.or(key.as_ref()).cloned(),
        (Some(_), Some(_)) => {
            return Err(Error::build("resume", "it brings its own key; idempotency_key is one too many"));
        }
        (Some(token), None) => {
            let expired = |reason| Error::new(ErrorKind::KeyExpired, reason);
            token.check(clock::wall(), retention, &wire_request.identity()).map_err(expired)?;
            Some(token.key().map_err(|error| Error::build("resume", error))?)
        }
    };
    let headers = wire_request.template.headers_mut();
    let mut values = headers.get_all(&keys.header).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(Error::build(keys.header.as_str(), "the header is there twice"));
    }
    match (given, first) {
        (given, None) => Ok(given),
        (Some(given), Some(_)) => {
            headers.remove(&keys.header);
            Ok(Some(given))
        }
        (None, Some(value)) => {
            let key = IdempotencyKey::from_header(value).map_err(|error| Error::build(keys.header.as_str(), error))?;
            if let Some(value) = headers.get_mut(&keys.header) {
                value.set_sensitive(true);
            }
            Ok(Some(key))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, RequestBuilder};

    /// The longest pauses of a body after the attempt, inside one with an end, and inside one
    /// without.
    fn check(mut request: RequestBuilder) -> [Option<u64>; 3] {
        let (context, _) = request.begin(true, None).unwrap();
        let pauses = [None, Some(Some(clock::now())), Some(None)]
            .map(|inside| inside.map_or_else(|| context.read_timeout(), |until| context.read_timeout_inside(until)));
        pauses.map(|pause| pause.map(Duration::as_secs))
    }

    #[test]
    fn default_read_timeout_is_for_unbounded_bodies() {
        let get = |builder: crate::ClientBuilder| builder.build().unwrap().get("http://127.0.0.1/");
        let second = Duration::from_secs(1);
        assert_eq!(check(get(Client::builder())), [Some(90), None, Some(90)]);
        assert_eq!(check(get(Client::builder().read_timeout(second))), [Some(1); 3]);
        assert_eq!(check(get(Client::builder().read_timeout(None))), [None; 3]);
        assert_eq!(check(get(Client::builder()).read_timeout(second)), [Some(1); 3]);
        assert_eq!(check(get(Client::builder().read_timeout(second)).read_timeout(None)), [None; 3]);
        let second_of_own = get(Client::builder().read_timeout(second));
        assert_eq!(check(get(Client::builder()).leaving_pauses()), [None; 3], "a transport of the user's");
        assert_eq!(check(second_of_own.leaving_pauses()), [Some(1); 3]);
        assert_eq!(check(get(Client::builder()).read_timeout(second).leaving_pauses()), [Some(1); 3]);
        let given = || Client::builder().http_client(reqwest::Client::new());
        assert_eq!(check(get(given())), [None; 3], "it has timeouts of its own");
        assert_eq!(check(get(given().assume_no_redirects())), [None; 3]);
        assert_eq!(check(get(given().read_timeout(second))), [Some(1); 3]);
    }
}
