//! The terms of one operation: its key, its policy and its time limits. They override those of the
//! client.

use std::borrow::Cow;
use std::time::Duration;

use super::super::operation;
use super::super::send_clock::UploadRate;
use super::RequestBuilder;
use crate::before_send::BeforeSendHook;
use crate::confirm::{Confirm, Confirmation, Unconfirmed};
use crate::earlier::Earlier;
use crate::error::{BoxError, Result};
use crate::key::IdempotencyKey;
use crate::policy::{HedgePolicy, RetryPolicy};
use crate::resume::ResumeToken;
use crate::settings::ReadTimeout;
use crate::terms::RequestTerms;

impl RequestBuilder {
    /// Sets all terms that `terms` has. It leaves those that `terms` does not set.
    ///
    /// ```
    /// use steadfast::RequestTerms;
    ///
    /// let client = steadfast::Client::new();
    /// let search = RequestTerms::new().idempotent(true);
    /// let request = client.post("https://api.example.com/search").body("apples").terms(search);
    /// ```
    pub fn terms(self, terms: RequestTerms) -> Self {
        self.option(|options| options.take_from(terms.into_options()))
    }

    /// Sets the operation's key, in place of a minted one. It is sent whatever the method.
    ///
    /// A key that you [derive](IdempotencyKey::derive) from your own data survives a crash of your
    /// process. The client does not check when this key was used before, or for which request. It
    /// counts the key's age from now, also in the [resume token](crate::Error::resume_token) of
    /// this operation. [`resume`](Self::resume) checks all of this.
    ///
    /// ```no_run
    /// use steadfast::{Client, IdempotencyKey, uuid::Uuid};
    ///
    /// const ORDERS: Uuid = Uuid::from_u128(0x6b1d_26e5_8f0c_4a55_9f3e_2c7d_0a4b_91e6);
    ///
    /// # async fn example(client: Client, order: u64) -> steadfast::Result<()> {
    /// let key = IdempotencyKey::derive(&ORDERS, format!("order {order}: charge"));
    /// let request = client.post("https://api.example.com/charges").body("12 EUR");
    /// let response = request.idempotency_key(key).send().await?;
    /// # drop(response);
    /// # Ok(())
    /// # }
    /// ```
    pub fn idempotency_key(self, key: IdempotencyKey) -> Self {
        self.option(|options| options.key = Some(key))
    }

    /// Resumes an operation that ended without a response: sends the same request again under its
    /// key.
    ///
    /// The token is that of [`Error::resume_token`](crate::Error::resume_token). You build the same
    /// request again: method, URL and body.
    ///
    /// # Errors
    ///
    /// Sending the request returns [`ErrorKind::KeyExpired`](crate::ErrorKind::KeyExpired), and
    /// sends nothing, if:
    ///
    /// * the key is older than 95 % of the API's [retention](crate::KeyPolicy::retention);
    /// * this clock is more than 30 s behind the token's. A token from up to 30 s ahead counts as
    ///   sent now, and shortens the retention by the same time, because clocks differ;
    /// * the request is another one;
    /// * the operation may have been processed, and neither you
    ///   ([`keys`](crate::ClientBuilder::keys)) nor the API has said that it honours keys. Another
    ///   request could then act twice.
    ///
    /// The error still has the token.
    ///
    /// ```no_run
    /// use serde_json::{Value, json};
    /// use steadfast::{Client, ResumeToken};
    ///
    /// # async fn example(client: Client, stored: &str) -> Result<(), Box<dyn std::error::Error>> {
    /// let token: ResumeToken = serde_json::from_str(stored)?;
    /// let charge = json!({ "amount": 1200 });
    /// let request = client.post("https://api.example.com/charges").json(&charge);
    /// let charged: Value = request.resume(token).fetch().await?;
    /// # drop(charged);
    /// # Ok(())
    /// # }
    /// ```
    pub fn resume(self, token: ResumeToken) -> Self {
        self.option(|options| options.resume = Some(token))
    }

    /// Declares whether repeating this request is harmless. Overrides the method and the key.
    ///
    /// Set `true` for a POST that only reads. Set `false` for a PUT or GET with effects that add
    /// up. It is then repeated only if the server cannot have acted, with a key or without.
    ///
    /// ```
    /// let client = steadfast::Client::new();
    /// let search = client.post("https://api.example.com/search").body("apples").idempotent(true);
    /// let toggle = client.get("https://lamp.example.com/toggle").idempotent(false);
    /// ```
    pub fn idempotent(self, yes: bool) -> Self {
        self.option(|options| options.idempotent = Some(yes))
    }

    /// Sets the retry policy of this operation, in place of the client's.
    ///
    /// The client's [`timeout`](crate::ClientBuilder::timeout) still applies, unless this policy
    /// sets a [`deadline`](RetryPolicy::deadline).
    ///
    /// ```
    /// use steadfast::{Client, policy::RetryPolicy};
    ///
    /// let client = Client::new();
    /// let request = client.get("https://api.example.com/report").retry(RetryPolicy::never());
    /// ```
    pub fn retry(self, policy: RetryPolicy) -> Self {
        self.option(|options| options.retry = Some(policy))
    }

    /// Sets the timeout of the whole operation, with its waits. `None` disables it. Overrides every
    /// other setting of it. Default: the client's [`timeout`](crate::ClientBuilder::timeout).
    pub fn timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        self.option(|options| options.timeout = Some(timeout.into()))
    }

    /// Sets the timeout of one attempt. `None` disables it. Default: the client's
    /// [`attempt_timeout`](crate::ClientBuilder::attempt_timeout). An upload may take longer, as
    /// long as it moves.
    pub fn attempt_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        self.option(|options| options.attempt_timeout = Some(timeout.into()))
    }

    /// Sets the lowest rate of this upload, in place of the client's
    /// [`min_upload_rate`](crate::ClientBuilder::min_upload_rate): at least `bytes` in each `per`.
    ///
    /// # Errors
    ///
    /// Sending the request returns an [`ErrorKind::Build`](crate::ErrorKind::Build) if one of them
    /// is zero.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let client = steadfast::Client::new();
    /// let request = client
    ///     .put("https://files.example.com/monday")
    ///     .body(vec![0; 20 << 20])
    ///     .timeout(Duration::from_secs(600))
    ///     .min_upload_rate(1_000_000, Duration::from_secs(60));
    /// ```
    pub fn min_upload_rate(self, bytes: u64, per: Duration) -> Self {
        self.option(|options| options.upload_rate = Some(UploadRate { bytes, per }))
    }

    /// Sets the longest pause in the body of this request's response, in place of the client's
    /// [`read_timeout`](crate::ClientBuilder::read_timeout). `None` disables it.
    ///
    /// ```no_run
    /// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
    /// // Changes come at any time, or not at all.
    /// let watch = client.get("https://api.example.com/changes").read_timeout(None).send().await?;
    /// # drop(watch);
    /// # Ok(())
    /// # }
    /// ```
    pub fn read_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        self.option(|options| options.read_timeout = Some(timeout.into()))
    }

    /// Sets when this request is hedged, in place of the client's
    /// [`hedge`](crate::ClientBuilder::hedge). `None` turns hedging off.
    ///
    /// With a method that is not safe, you also state that the server may get two requests at once.
    /// Two PUTs may race other writers. A body that is a stream or a file is not hedged.
    ///
    /// # Errors
    ///
    /// Sending the request returns an [`ErrorKind::Build`](crate::ErrorKind::Build) if:
    ///
    /// * there is no licence to repeat the request;
    /// * the licence is a key, and the [`KeyPolicy`](crate::KeyPolicy::concurrent_duplicates_safe)
    ///   does not state that the API never runs two requests under one key at the same time.
    ///
    /// ```
    /// use steadfast::{Client, policy::HedgePolicy};
    ///
    /// let client = Client::new();
    /// let request = client
    ///     .put("https://api.example.com/users/7")
    ///     .body("Ada")
    ///     .hedge(HedgePolicy::quantile(0.95));
    /// ```
    pub fn hedge(self, policy: impl Into<Option<HedgePolicy>>) -> Self {
        self.option(|options| options.hedge = Some(policy.into()))
    }

    /// Sets the read that finds out whether the server has carried out this operation, in place of
    /// the client's [`confirm`](crate::ClientBuilder::confirm).
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use steadfast::{Client, Confirmation, Unconfirmed, http::StatusCode};
    ///
    /// # async fn example(client: Client) -> steadfast::Result<()> {
    /// let find = |order: Unconfirmed| async move {
    ///     match order.client().get("https://api.example.com/orders/1042").fetch_response().await {
    ///         Ok(found) => Ok(Confirmation::applied(found)),
    ///         Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => Ok(Confirmation::NotApplied),
    ///         Err(error) => Err(error),
    ///     }
    /// };
    /// let order = client.post("https://api.example.com/orders").body("1042: two apples");
    /// let response = order.confirm(find).settling_time(Duration::from_secs(5)).send().await?;
    /// # drop(response);
    /// # Ok(())
    /// # }
    /// ```
    pub fn confirm<F, R, E>(self, ask: F) -> Self
    where
        F: Fn(Unconfirmed) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Confirmation, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.option(|options| options.confirm = Some(Confirm::new(ask)))
    }

    /// Sets the settling time of this operation, in place of the client's
    /// [`settling_time`](crate::ClientBuilder::settling_time).
    pub fn settling_time(self, time: Duration) -> Self {
        self.option(|options| options.settling_time = Some(time))
    }

    /// Sets whether a POST follows a 301 or 302 with a GET, in place of the client's
    /// [`redirect_post_as_get`](crate::ClientBuilder::redirect_post_as_get).
    pub fn redirect_post_as_get(mut self, yes: bool) -> Self {
        if let Ok(wire_request) = &mut self.wire_request {
            wire_request.post_as_get = Some(yes);
        }
        self
    }

    /// Names the template of this request's path, such as `/users/{id}`. Spans and metrics group by
    /// it. It is not sent. Default: none, since a path has an identifier of its own for each user.
    ///
    /// Use a constant. It becomes the attribute `url.template` of OpenTelemetry's conventions, and a
    /// part of the span's name.
    ///
    /// ```
    /// let client = steadfast::Client::new();
    /// let id = 7;
    /// let request = client.get(format!("https://api.example.com/users/{id}")).template("/users/{id}");
    /// ```
    pub fn template(self, template: impl Into<Cow<'static, str>>) -> Self {
        self.option(|options| options.template = Some(template.into()))
    }

    /// Sets the maximum size of a response body that [`fetch`](Self::fetch) reads, in decoded
    /// bytes. Default: the client's [`body_limit`](crate::ClientBuilder::body_limit).
    pub fn body_limit(self, bytes: usize) -> Self {
        self.option(|options| options.body_limit = Some(bytes))
    }

    /// Returns the time limit of the operation by its own settings.
    pub(crate) fn time_limit(&self) -> Result<Option<Duration>> {
        operation::time_limit(self.client.inner()?, self.options.as_deref())
    }

    /// Leaves the pauses in a response body to the client that somebody keeps, unless the user has
    /// set a limit. It may read a stream that is silent for hours.
    pub(crate) fn leaving_pauses(mut self) -> Self {
        if self.client.inner().is_ok_and(|inner| inner.read_timeout == ReadTimeout::Default) {
            self.options.get_or_insert_default().read_timeout.get_or_insert(None);
        }
        self
    }

    /// Makes the request ask `hook` before it leaves.
    pub(crate) fn asking(self, hook: BeforeSendHook) -> Self {
        self.option(|options| options.before_send = Some(hook))
    }

    /// Makes the request a repeat of an earlier one.
    pub(crate) fn repeating(self, earlier: Earlier) -> Self {
        self.option(|options| options.earlier = Some(Box::new(earlier)))
    }
}
