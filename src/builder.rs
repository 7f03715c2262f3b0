//! The builder: every setting of the client, checked before the client exists.

mod attempt_headers;
mod confirm;
mod overload;
mod redirects;
mod telemetry;
mod timeouts;
mod transport;

use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio_util::task::TaskTracker;

use self::transport::{finish, healthy, names_a_tls_proxy, not_built, without_roots};
use super::attempt_hook::OnAttempt;
use super::checks::{bearer, check_timeout, parse_header};
use super::confirm::Confirm;
use super::credentials::Credentials;
use super::defaults::Defaults;
use super::event::Event;
use super::origin::OriginMap;
use super::send_clock::UploadRate;
use super::settings::{OverloadSettings, ReadTimeout, RedirectSettings};
use super::target;
use super::transport_view::TransportView;
use crate::Client;
use crate::error::{Error, Result};
use crate::inner::{Classifier, Inner, OnEvent};
use crate::key_policy::KeyPolicy;
use crate::policy::{self, Classification, Outcome, RetryBudget, RetryPolicy};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
const BODY_LIMIT: usize = 8 * 1024 * 1024;

/// Builds a [`Client`].
///
/// | setting | default |
/// | --- | --- |
/// | [`retry`](Self::retry) | 3 attempts, full jitter from 100 ms to 5 s |
/// | [`budget`](Self::budget) | [`RetryBudget::standard`], one per origin |
/// | [`keys`](Self::keys) | `KeyPolicy::standard().negotiated()` |
/// | [`connect_timeout`](Self::connect_timeout) | 5 s |
/// | [`attempt_timeout`](Self::attempt_timeout) | 10 s |
/// | [`timeout`](Self::timeout) | 30 s for the whole operation |
/// | [`min_upload_rate`](Self::min_upload_rate) | one byte in each attempt timeout |
/// | [`read_timeout`](Self::read_timeout) | 90 s |
/// | [`body_limit`](Self::body_limit) | 8 MiB, decoded |
/// | [`max_redirects`](Self::max_redirects) | 10 |
/// | [`redirect_post_as_get`](Self::redirect_post_as_get) | off |
/// | [`cross_origin_redirects`](Self::cross_origin_redirects) | GET and HEAD only; none with an HTTP client of yours |
/// | [`breaker`](Self::breaker), [`cooldown`](Self::cooldown), [`hedge`](Self::hedge) | off |
/// | [`confirm`](Self::confirm), [`settling_time`](Self::settling_time) | off |
/// | [`deadline_header`](Self::deadline_header), [`attempt_header`](Self::attempt_header) | off |
/// | [`credentials`](Self::credentials), [`on_attempt`](Self::on_attempt) | none |
/// | [`spans`](Self::spans) | on, for a subscriber that listens |
///
/// ```
/// use std::time::Duration;
/// use steadfast::{Client, policy::RetryPolicy};
///
/// # fn example() -> steadfast::Result<()> {
/// let client = Client::builder()
///     .base_url("https://api.example.com/v1")
///     .bearer_auth("token") // only to https://api.example.com
///     .timeout(Duration::from_secs(20))
///     .attempt_timeout(Duration::from_secs(5))
///     .retry(RetryPolicy::new().max_attempts(4))
///     .build()?;
/// # Ok(())
/// # }
/// # example().unwrap();
/// ```
#[must_use = "a builder does nothing until it builds"]
pub struct ClientBuilder {
    http: reqwest::ClientBuilder,
    http_is_configured: bool,
    ready_made: Option<reqwest::Client>,
    assume_no_redirects: bool,
    base_url: Option<String>,
    default_headers: Vec<Result<(HeaderName, HeaderValue)>>,
    retry: RetryPolicy,
    budget: RetryBudget,
    keys: KeyPolicy,
    timeout: Option<Option<Duration>>,
    // `None` if it was not set.
    attempt_timeout: Option<Option<Duration>>,
    connect_timeout: Option<Option<Duration>>,
    upload_rate: Option<UploadRate>,
    read_timeout: ReadTimeout,
    body_limit: usize,
    redirects: RedirectSettings,
    attempt_header: Option<HeaderName>,
    credentials: Option<Credentials>,
    on_attempt: Vec<OnAttempt>,
    overload: OverloadSettings,
    classifier: Option<Classifier>,
    on_event: Option<OnEvent>,
    confirm: Option<Confirm>,
    settling_time: Option<Duration>,
    spans: bool,
}

impl ClientBuilder {
    pub(super) fn new() -> Self {
        Self {
            http: healthy(reqwest::Client::builder()),
            http_is_configured: false,
            ready_made: None,
            assume_no_redirects: false,
            base_url: None,
            default_headers: Vec::new(),
            retry: RetryPolicy::new(),
            budget: RetryBudget::standard(),
            keys: KeyPolicy::default(),
            timeout: None,
            attempt_timeout: None,
            connect_timeout: None,
            upload_rate: None,
            read_timeout: ReadTimeout::Default,
            body_limit: BODY_LIMIT,
            redirects: RedirectSettings::default(),
            attempt_header: None,
            credentials: None,
            on_attempt: Vec::new(),
            overload: OverloadSettings::default(),
            classifier: None,
            on_event: None,
            confirm: None,
            settling_time: None,
            spans: true,
        }
    }

    /// Sets the address of the API.
    ///
    /// A relative path in a request is *appended* to it: `https://api.x/v1` and `/charges` make
    /// `https://api.x/v1/charges`. A `..` cannot leave it. Pass identifiers from elsewhere to
    /// [`path_segments`](crate::RequestBuilder::path_segments), because some servers read `..%2f`
    /// in a path as a step up.
    ///
    /// With a base URL, no default header but `Accept`, `Accept-Language` and `User-Agent` goes to
    /// another origin, and [`keys`](Self::keys) holds for this origin alone.
    ///
    /// ```
    /// # fn example() -> steadfast::Result<()> {
    /// let client = steadfast::Client::builder().base_url("https://api.example.com/v1").build()?;
    /// let request = client.get("/charges"); // https://api.example.com/v1/charges
    /// # drop(request);
    /// # Ok(())
    /// # }
    /// ```
    pub fn base_url(mut self, url: impl AsRef<str>) -> Self {
        self.base_url = Some(url.as_ref().to_owned());
        self
    }

    /// Configures reqwest: TLS roots, client certificates, proxies, cookies, name resolution, HTTP
    /// versions.
    ///
    /// An idle connection is kept for 4 s, under the 5 s of common servers. A silent HTTP/2
    /// connection is pinged after 4 s and closed after 4 s more. You can change both here
    /// (`pool_idle_timeout`, `http2_keep_alive_interval`, `http2_keep_alive_timeout`).
    ///
    /// This setting has three effects on retries and redirects:
    ///
    /// * reqwest's own redirects and retries are turned off afterwards, because nothing below the
    ///   loop may repeat a request.
    /// * A connection that breaks before the transport has read the request body is ambiguous. You
    ///   may have told reqwest to speak HTTP/2, which sends the head first.
    /// * The client follows no redirect to another origin, unless you allow
    ///   [`cross_origin_redirects`](Self::cross_origin_redirects). It cannot see what reqwest adds
    ///   to a request.
    ///
    /// Keep credentials out of reqwest's own `default_headers`, which adds them to every request,
    /// whatever its origin. Use [`default_header`](Self::default_header) and
    /// [`bearer_auth`](Self::bearer_auth), which stay at home.
    ///
    /// The connect timeout of this builder is set afterwards too. Do not set reqwest's `timeout` or
    /// `read_timeout` here: both also count while a request is sent, so they cut healthy uploads,
    /// and the first one cuts healthy downloads. Use [`attempt_timeout`](Self::attempt_timeout),
    /// [`timeout`](Self::timeout) and [`read_timeout`](Self::read_timeout).
    ///
    /// ```
    /// let client = steadfast::Client::builder().http(|http| http.tcp_nodelay(true).no_proxy());
    /// ```
    pub fn http(mut self, configure: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> Self {
        self.http = configure(self.http);
        self.http_is_configured = true;
        self
    }

    /// Uses a finished reqwest client as it is, with its own timeouts.
    ///
    /// This client cannot look into it. It may follow redirects unseen, so "connection refused" may
    /// come from a later hop, after a POST was carried out. So every transport failure through it
    /// is ambiguous, and so are 421, 425 and 429. If that client follows no redirects, say so with
    /// [`assume_no_redirects`](Self::assume_no_redirects).
    ///
    /// It follows redirects by its own rules. reqwest removes five known headers from a request
    /// that leaves its origin. It sends all others, such as an API key or the idempotency key. With
    /// `assume_no_redirects`, redirects are followed by the rules of
    /// [`max_redirects`](Self::max_redirects), but not to another origin, unless you allow
    /// [`cross_origin_redirects`](Self::cross_origin_redirects).
    ///
    /// ```
    /// # fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use steadfast::reqwest::{self, redirect::Policy};
    ///
    /// let http = reqwest::Client::builder().redirect(Policy::none()).build()?;
    /// let client = steadfast::Client::builder().http_client(http).assume_no_redirects().build()?;
    /// # Ok(())
    /// # }
    /// # example().unwrap();
    /// ```
    pub fn http_client(mut self, client: reqwest::Client) -> Self {
        self.ready_made = Some(client);
        self
    }

    /// Declares that the client given to [`http_client`](Self::http_client) follows no redirects
    /// and repeats nothing.
    pub fn assume_no_redirects(mut self) -> Self {
        self.assume_no_redirects = true;
        self
    }

    /// Adds a header to every request that does not set it.
    ///
    /// Two kinds are errors when you build the client. Credentials without a
    /// [`base_url`](Self::base_url) would go to every origin. An idempotency key would be that of
    /// every operation.
    ///
    /// ```
    /// let client = steadfast::Client::builder().default_header("accept-language", "fr");
    /// ```
    pub fn default_header<K, V>(mut self, name: K, value: V) -> Self
    where
        K: TryInto<HeaderName>,
        K::Error: Display,
        V: TryInto<HeaderValue>,
        V::Error: Display,
    {
        self.default_headers.push(parse_header("default_header", name, value));
        self
    }

    /// Adds headers to every request that does not set them; see
    /// [`default_header`](Self::default_header).
    pub fn default_headers(mut self, headers: &HeaderMap) -> Self {
        self.default_headers.extend(headers.iter().map(|(name, value)| Ok((name.clone(), value.clone()))));
        self
    }

    /// Adds `Authorization: Bearer …`, marked as sensitive, to every request to the base URL's
    /// origin.
    ///
    /// ```
    /// let client = steadfast::Client::builder().base_url("https://api.example.com").bearer_auth("token");
    /// ```
    pub fn bearer_auth(mut self, token: impl Display) -> Self {
        self.default_headers.push(bearer(token).map(|value| (AUTHORIZATION, value)));
        self
    }

    /// Sets when to repeat a request and when to give up. Default: [`RetryPolicy::new`], with three
    /// attempts.
    ///
    /// A request can have a policy of its own
    /// ([`RequestBuilder::retry`](crate::RequestBuilder::retry)).
    ///
    /// ```
    /// use steadfast::{Client, policy::RetryPolicy};
    ///
    /// let client = Client::builder().retry(RetryPolicy::new().max_attempts(5));
    /// ```
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Sets how many retries each origin gets. Default: [`RetryBudget::standard`].
    ///
    /// Every origin has a bucket of its own with these settings.
    ///
    /// ```
    /// use steadfast::{Client, policy::RetryBudget};
    ///
    /// // A client that makes about one call a second.
    /// let client = Client::builder().budget(RetryBudget::standard().capacity(42));
    /// ```
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.budget = budget;
        self
    }

    /// Sets what this API does with idempotency keys. Default:
    /// `KeyPolicy::standard().negotiated()`.
    ///
    /// A policy given here is your statement that the API honours keys. So it is the licence to
    /// repeat a POST whose response was lost, unless it is [`off`](KeyPolicy::off) or
    /// [`negotiated`](KeyPolicy::negotiated).
    ///
    /// With a [`base_url`](Self::base_url) your statement holds for that origin alone, and other
    /// origins are negotiated. **Without one it holds for every origin that this client calls.**
    ///
    /// It covers every path there. If an endpoint of this API ignores keys, a lost POST to it would
    /// be repeated, and executed twice. Call [`idempotent(false)`](crate::RequestBuilder::idempotent)
    /// on its requests, or use a second client.
    ///
    /// ```
    /// use steadfast::{Client, KeyPolicy};
    ///
    /// let client = Client::builder().base_url("https://api.example.com").keys(KeyPolicy::standard());
    /// ```
    pub fn keys(mut self, keys: KeyPolicy) -> Self {
        self.keys = keys;
        self
    }

    /// Sets the maximum size of a response body that `fetch` reads, in decoded bytes. Default: 8
    /// MiB.
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.body_limit = bytes;
        self
    }

    /// Sends the number of the attempt, from 1, in this header. Default: off.
    ///
    /// ```
    /// use steadfast::{Client, http::HeaderName};
    ///
    /// let client = Client::builder().attempt_header(HeaderName::from_static("x-attempt"));
    /// ```
    pub fn attempt_header(mut self, name: HeaderName) -> Self {
        self.attempt_header = Some(name);
        self
    }

    /// Classifies the outcome of each attempt by a closure of yours. Return
    /// [`Outcome::default_class`] for the outcomes that you do not handle.
    ///
    /// The client decides by this class, and the list of attempts shows it. The closure does not
    /// change [whether the operation may have been
    /// processed](crate::Error::may_have_been_processed). With [`Class::NotProcessed`] or
    /// [`Class::Throttled`] you state that the server has not acted.
    ///
    /// The closure returns a [`Class`], or a [`Classification`] with the wait before the next
    /// attempt. That wait replaces the one that the response asks for, and
    /// [`max_retry_after`](RetryPolicy::max_retry_after) limits it in the same way.
    ///
    /// [`Outcome::body`] is the response's body, if `fetch` or one of its relatives reads it. After
    /// `send` there is none: you read that body after the operation has ended. If the class of a
    /// 2xx is not [`Class::Success`], `fetch` ends in an
    /// [`ErrorKind::Status`](crate::ErrorKind::Status) with that body, and `send` returns the
    /// response.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast::Client;
    /// use steadfast::http::StatusCode;
    /// use steadfast::policy::{Class, Classification};
    ///
    /// let client = Client::builder().classify(|outcome| {
    ///     let body = outcome.body().unwrap_or_default();
    ///     let says = |text: &[u8]| body.windows(text.len()).any(|part| part == text);
    ///     match outcome.status() {
    ///         // An API that sends 503 only before it acts.
    ///         Some(StatusCode::SERVICE_UNAVAILABLE) => Class::NotProcessed.into(),
    ///         // No credit: a retry does not help.
    ///         Some(StatusCode::TOO_MANY_REQUESTS) if says(b"insufficient_quota") => Class::Permanent.into(),
    ///         // An error inside a 200, as S3 sends it. It may have acted.
    ///         Some(StatusCode::OK) if says(b"<Code>SlowDown</Code>") => {
    ///             Classification::new(Class::Ambiguous).after(Duration::from_secs(2))
    ///         }
    ///         _ => outcome.default_class().into(),
    ///     }
    /// });
    /// ```
    ///
    /// [`Class`]: crate::policy::Class
    /// [`Class::NotProcessed`]: crate::policy::Class::NotProcessed
    /// [`Class::Success`]: crate::policy::Class::Success
    /// [`Class::Throttled`]: crate::policy::Class::Throttled
    pub fn classify<C: Into<Classification>>(
        mut self,
        classify: impl Fn(&Outcome<'_>) -> C + Send + Sync + 'static,
    ) -> Self {
        self.classifier = Some(Arc::new(move |outcome| classify(outcome).into()));
        self
    }

    /// Calls a closure at every event of every operation, on the operation's own task. Keep it
    /// quick.
    ///
    /// The same events go to `tracing`, with the target `steadfast`, at DEBUG. Two of them are
    /// WARN, because somebody must act: a circuit opens, or an operation with effects may have been
    /// processed and ends without success. A failed GET is DEBUG.
    ///
    /// ```
    /// use steadfast::{Client, EventKind};
    ///
    /// let client = Client::builder().on_event(|event| {
    ///     if let EventKind::RetryScheduled { after, .. } = event.kind() {
    ///         println!("{}: retry in {after:?}", event.url());
    ///     }
    /// });
    /// ```
    pub fn on_event(mut self, on_event: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.on_event = Some(Arc::new(on_event));
        self
    }

    /// Builds the client.
    ///
    /// # Errors
    ///
    /// A setting is invalid, alone or together with others. The message names it, and the cause.
    ///
    /// A host without CA certificates is no error, unless you configure [`http`](Self::http):
    /// requests to `http` work, and a request to `https` fails with the reason.
    ///
    /// ```
    /// use steadfast::{Client, policy::RetryPolicy};
    ///
    /// let error = Client::builder().retry(RetryPolicy::new().max_attempts(0)).build().unwrap_err();
    /// assert!(error.is_build() && error.to_string().contains("max_attempts"));
    /// ```
    pub fn build(mut self) -> Result<Client> {
        let base = self.base_url.as_deref().map(target::base).transpose()?;
        let attempt_headers = self.attempt_headers(base.is_some())?;
        let headers = std::mem::take(&mut self.default_headers);
        let defaults = Defaults::new(headers, base.is_some(), &self.keys.header)?;
        self.check()?;
        let is_given = self.ready_made.is_some();
        let opaque = is_given && !self.assume_no_redirects;
        let is_as_made = !is_given && !self.http_is_configured;
        let mut retry = self.retry;
        if let Some(timeout) = self.timeout {
            retry = retry.deadline(timeout);
        }
        // A 429 may belong to the GET behind an unseen redirect, after the request was carried out.
        retry.throttled_is_ambiguous |= opaque;
        let connect_timeout = self.connect_timeout.unwrap_or(Some(CONNECT_TIMEOUT));
        let (http, lacks_roots) = match self.ready_made {
            Some(client) => (client, false),
            None => match finish(self.http, connect_timeout) {
                Err(error) if is_as_made => without_roots(error, connect_timeout)?,
                built => (built.map_err(not_built)?, false),
            },
        };
        // A client that was given has timeouts of its own.
        let read_timeout = match self.read_timeout {
            ReadTimeout::Default if is_given => ReadTimeout::Set(None),
            read_timeout => read_timeout,
        };
        Ok(Client::from_inner(Inner {
            http,
            view: TransportView::own(opaque, is_as_made, is_as_made && !names_a_tls_proxy(std::env::vars_os())),
            lacks_roots,
            origins: OriginMap::new(
                self.overload.origins(self.budget, is_as_made),
                base.as_ref().map(|base| &base.url),
            ),
            base,
            defaults,
            retry,
            keys: self.keys,
            attempt_timeout: self.attempt_timeout.unwrap_or(Some(ATTEMPT_TIMEOUT)),
            upload_rate: self.upload_rate,
            read_timeout,
            body_limit: self.body_limit,
            max_redirects: self.redirects.max,
            redirect_post_as_get: self.redirects.post_as_get,
            cross_origin_redirects: self.redirects.may_leave(is_as_made),
            cross_origin_through: self.redirects.may_leave(false),
            attempt_header: self.attempt_header,
            attempt_headers,
            overload: self.overload,
            classifier: self.classifier,
            on_event: self.on_event,
            confirm: self.confirm,
            settling_time: self.settling_time,
            detached: TaskTracker::new(),
            spans: self.spans,
        }))
    }

    /// Checks every setting, alone and together with others.
    fn check(&self) -> Result<()> {
        check_timeout("timeout", self.timeout.flatten())?;
        let attempt_timeout = self.attempt_timeout.unwrap_or(Some(ATTEMPT_TIMEOUT));
        check_timeout("attempt_timeout", attempt_timeout)?;
        check_timeout("connect_timeout", self.connect_timeout.flatten())?;
        check_timeout("read_timeout", self.read_timeout.duration().copied())?;
        self.upload_rate.map_or(Ok(()), UploadRate::check)?;
        self.check_order_of_timeouts()?;
        let OverloadSettings { breaker, hedge, .. } = &self.overload;
        policy::check(&self.retry, &self.budget, breaker.as_ref(), hedge.as_ref()).map_err(Error::invalid)?;
        self.keys.validate().map_err(|reason| Error::build("keys", reason))?;
        if self.keys.wait.zip(attempt_timeout).is_some_and(|(wait, attempt)| wait >= attempt) {
            let reason =
                "wait_on_retry is not shorter than attempt_timeout, so the client would not wait for the response";
            return Err(Error::build("keys", reason));
        }
        if self.ready_made.is_some() && self.http_is_configured {
            let reason = "it is finished, so http cannot configure it; use one of them";
            return Err(Error::build("http_client", reason));
        }
        if self.attempt_header.as_ref() == Some(&self.keys.header) {
            return Err(Error::build("attempt_header", "it would give every attempt another key"));
        }
        match &self.overload.deadline_header {
            Some(name) if *name == self.keys.header || Some(name) == self.attempt_header.as_ref() => {
                Err(Error::build("deadline_header", format!("{name} is taken")))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("retry", &self.retry)
            .field("budget", &self.budget)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}
