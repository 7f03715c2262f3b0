//! The settings of one request that differ from the client's.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use http::Method;

use super::super::spans::OperationSpan;
use crate::Client;
use crate::before_send::BeforeSendHook;
use crate::checks::check_timeout;
use crate::confirm::Confirm;
use crate::earlier::Earlier;
use crate::error::{Error, Result};
use crate::inner::Inner;
use crate::key::IdempotencyKey;
use crate::policy::{HedgePolicy, Idempotency, RetryPolicy, TimeLimit, is_safe};
use crate::resume::ResumeToken;
use crate::send_clock::UploadRate;
use crate::transport_view::TransportView;

/// The settings of one request that differ from the client's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) key: Option<IdempotencyKey>,
    pub(crate) resume: Option<ResumeToken>,
    /// When the operation was prepared. Its key counts as sent since then.
    pub(crate) prepared: Option<SystemTime>,
    /// What a layer above repeats. Boxed because that is rare.
    pub(crate) earlier: Option<Box<Earlier>>,
    pub(crate) idempotent: Option<bool>,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) hedge: Option<Option<HedgePolicy>>,
    pub(crate) timeout: Option<Option<Duration>>,
    pub(crate) attempt_timeout: Option<Option<Duration>>,
    pub(crate) upload_rate: Option<UploadRate>,
    pub(crate) read_timeout: Option<Option<Duration>>,
    pub(crate) body_limit: Option<usize>,
    pub(crate) confirm: Option<Confirm>,
    pub(crate) settling_time: Option<Duration>,
    pub(crate) template: Option<Cow<'static, str>>,
    pub(crate) before_send: Option<BeforeSendHook>,
}

impl Options {
    /// Checks that an operation with these options can be written down, and carried out by another
    /// process.
    ///
    /// # Errors
    ///
    /// It has an option that is lost with this process.
    pub(crate) fn check_durable(&self) -> Result<()> {
        let only_here = [
            ("resume", self.resume.is_some() || self.earlier.is_some()),
            ("retry", self.retry.is_some()),
            ("hedge", self.hedge.is_some()),
            ("timeout", self.timeout.is_some()),
            ("attempt_timeout", self.attempt_timeout.is_some()),
            ("min_upload_rate", self.upload_rate.is_some()),
            ("read_timeout", self.read_timeout.is_some()),
            ("body_limit", self.body_limit.is_some()),
            ("confirm", self.confirm.is_some() || self.settling_time.is_some()),
            ("template", self.template.is_some()),
        ];
        match only_here.into_iter().find(|(_, is_set)| *is_set) {
            None => Ok(()),
            Some(("resume", _)) => {
                Err(Error::build("resume", "an operation that was sent before cannot be handed to an outbox"))
            }
            Some((name, _)) => Err(Error::build(
                name,
                "the setting of one request does not survive this process; set it on the client",
            )),
        }
    }

    /// Takes what `others` sets, and keeps the rest.
    pub(crate) fn take_from(&mut self, others: Self) {
        let Self {
            key,
            resume,
            prepared,
            earlier,
            idempotent,
            retry,
            hedge,
            timeout,
            attempt_timeout,
            upload_rate,
            read_timeout,
            body_limit,
            confirm,
            settling_time,
            template,
            before_send,
        } = others;
        take(&mut self.key, key);
        take(&mut self.resume, resume);
        take(&mut self.prepared, prepared);
        take(&mut self.earlier, earlier);
        take(&mut self.idempotent, idempotent);
        take(&mut self.retry, retry);
        take(&mut self.hedge, hedge);
        take(&mut self.timeout, timeout);
        take(&mut self.attempt_timeout, attempt_timeout);
        take(&mut self.upload_rate, upload_rate);
        take(&mut self.read_timeout, read_timeout);
        take(&mut self.body_limit, body_limit);
        take(&mut self.confirm, confirm);
        take(&mut self.settling_time, settling_time);
        take(&mut self.template, template);
        take(&mut self.before_send, before_send);
    }
}

fn take<T>(kept: &mut Option<T>, other: Option<T>) {
    if other.is_some() {
        *kept = other;
    }
}

/// The options of most requests, in one static, because creating and dropping them takes longer.
pub(super) static NO_OPTIONS: Options = Options {
    key: None,
    resume: None,
    prepared: None,
    earlier: None,
    idempotent: None,
    retry: None,
    hedge: None,
    timeout: None,
    attempt_timeout: None,
    upload_rate: None,
    read_timeout: None,
    body_limit: None,
    confirm: None,
    settling_time: None,
    template: None,
    before_send: None,
};

/// What few operations have. Boxed, since every operation in flight has room for it.
#[derive(Default)]
pub(super) struct OwnSettings<'a> {
    pub(super) retry: Option<RetryPolicy>,
    pub(super) hedge: Option<HedgePolicy>,
    pub(super) upload_rate: Option<UploadRate>,
    pub(super) read_timeout: Option<Option<Duration>>,
    pub(super) confirm: Option<ConfirmSettings>,
    /// What is known of the transport, if it is not the client's own.
    pub(super) view: Option<&'a TransportView>,
    pub(super) template: Option<Cow<'static, str>>,
    pub(super) before_send: Option<BeforeSendHook>,
    /// Present if somebody listens.
    pub(super) span: Option<OperationSpan>,
}

/// How to find out whether an operation was carried out.
pub(super) struct ConfirmSettings {
    pub(super) confirm: Confirm,
    pub(super) settling: Option<Duration>,
    /// The client of the operation, for the read.
    pub(super) client: Client,
}

impl<'a> OwnSettings<'a> {
    /// Returns the settings of one request, or `None` if it has none of them. `of`: its method, and
    /// why a repeat is harmless.
    ///
    /// # Errors
    ///
    /// The policy or the hedge is invalid.
    pub(super) fn new(
        handle: &Client,
        options: Option<&Options>,
        view: Option<&'a TransportView>,
        of: (&Method, Idempotency),
    ) -> Result<Option<Box<Self>>> {
        let client = handle.inner()?;
        let has_none = options.is_none() && view.is_none();
        if has_none && client.overload.hedge.is_none() && client.confirm.is_none() {
            return Ok(None);
        }
        Self::collect(handle, options.unwrap_or(&NO_OPTIONS), view, of)
    }

    // Apart, because most operations have none, and large values would move through it.
    #[inline(never)]
    fn collect(
        handle: &Client,
        options: &Options,
        view: Option<&'a TransportView>,
        (method, idempotency): (&Method, Idempotency),
    ) -> Result<Option<Box<Self>>> {
        let client = handle.inner()?;
        let retry = own_policy(client, options, view.unwrap_or(&client.view).is_opaque())?;
        let hedge = hedge_policy(client, options.hedge, method, idempotency)?;
        let confirm = confirm_settings(handle, client, options);
        let &Options { upload_rate, read_timeout, ref template, ref before_send, .. } = options;
        let has_own = upload_rate.is_some() || read_timeout.is_some() || template.is_some() || before_send.is_some();
        let is_needed = retry.is_some() || hedge.is_some() || confirm.is_some() || view.is_some() || has_own;
        let (template, before_send, span) = (template.clone(), before_send.clone(), None);
        Ok(is_needed.then(|| {
            Box::new(Self { retry, hedge, upload_rate, read_timeout, confirm, view, template, before_send, span })
        }))
    }
}

fn confirm_settings(handle: &Client, client: &Inner, options: &Options) -> Option<ConfirmSettings> {
    let confirm = options.confirm.as_ref().or(client.confirm.as_ref())?.clone();
    let settling = options.settling_time.or(client.settling_time);
    Some(ConfirmSettings { confirm, settling, client: handle.clone() })
}

/// Returns the request's own retry policy, or `None` if the client's applies.
///
/// The deadline comes from the request's timeout, else from its policy, else from the client.
/// Through an `opaque` transport a 429 may belong to the GET behind an unseen redirect, after the
/// request was carried out.
pub(super) fn own_policy(client: &Inner, options: &Options, opaque: bool) -> Result<Option<RetryPolicy>> {
    let mut policy = match (&options.retry, options.timeout) {
        (None, None) if client.retry.throttled_is_ambiguous || !opaque => return Ok(None),
        (None, _) => client.retry.clone(),
        (Some(policy), _) if policy.deadline != TimeLimit::Unset => policy.clone(),
        (Some(policy), _) => policy.clone().deadline(client.retry.deadline.duration()),
    };
    if let Some(timeout) = options.timeout {
        check_timeout("timeout", timeout)?;
        policy = policy.deadline(timeout);
    }
    policy.validate().map_err(Error::invalid)?;
    policy.throttled_is_ambiguous |= opaque;
    Ok(Some(policy))
}

/// Returns the hedge policy of the operation. A hedge is a second request while the first one may
/// still succeed.
fn hedge_policy(
    client: &Inner,
    own: Option<Option<HedgePolicy>>,
    method: &Method,
    idempotency: Idempotency,
) -> Result<Option<HedgePolicy>> {
    let Some(own) = own else {
        return Ok(client.overload.hedge.filter(|_| idempotency == Idempotency::Natural && is_safe(method)));
    };
    let Some(policy) = own else { return Ok(None) };
    policy.validate().map_err(Error::invalid)?;
    match idempotency {
        Idempotency::Natural => Ok(Some(policy)),
        Idempotency::Keyed if client.keys.concurrent_duplicates => Ok(Some(policy)),
        Idempotency::Keyed => Err(Error::build("hedge", "the KeyPolicy does not say concurrent_duplicates_safe")),
        Idempotency::Absent => Err(Error::build("hedge", "nothing makes it harmless to act on this request twice")),
    }
}
