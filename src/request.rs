//! One request: the methods of reqwest's builder, and the terms of the operation: its key, its
//! policy and its timeouts.
//!
//! The builder keeps the first mistake. Sending the request returns it as an error, and nothing is
//! sent.

mod fetch;

use std::fmt::{self, Display};
use std::future::Future;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Serialize;

use super::attempt_result::{AttemptProgress, AttemptResponse};
use super::checks::{bearer, parse_header};
use super::operation::{OperationContext, Options};
use super::redirect::RedirectState;
use super::request_body::{ContentType, RequestBody};
use super::send_clock::UploadRate;
use super::wire_request::WireRequest;
use super::{run, target};
use crate::Client;
use crate::error::{Error, Result};
use crate::key::IdempotencyKey;
use crate::policy::{HedgePolicy, RetryPolicy};
use crate::resume::{ResumeToken, SafeUrl};

/// A request under construction. [`send`](Self::send) or [`fetch`](Self::fetch) sends it; until
/// then it does nothing.
///
/// The methods of reqwest's builder are here under the same names. The others set the terms of this
/// operation. They override those of the client.
///
/// An invalid setting does not panic. You get it as an
/// [`ErrorKind::Build`](crate::ErrorKind::Build) when you send the request.
///
/// ```no_run
/// use std::time::Duration;
/// use steadfast::Client;
///
/// # async fn example(client: Client) -> steadfast::Result<()> {
/// let response = client
///     .post("https://api.example.com/orders")
///     .bearer_auth("token")
///     .query(&[("expand", "items")])
///     .body("two apples")
///     .timeout(Duration::from_secs(5)) // of the whole operation, with its waits
///     .send()
///     .await?;
/// # drop(response);
/// # Ok(())
/// # }
/// ```
#[must_use = "a request does nothing until it is sent"]
pub struct RequestBuilder {
    client: Client,
    wire_request: Result<WireRequest>,
    // Most requests have none.
    options: Option<Box<Options>>,
}

impl RequestBuilder {
    pub(super) fn new(client: Client, request: Result<reqwest::Request>) -> Self {
        let wire_request = request.map(|request| WireRequest::new(request, RequestBody::Empty, false));
        Self { client, wire_request, options: None }
    }

    /// Creates the builder of a finished request. Its timeout becomes the attempt timeout.
    pub(super) fn from_request(client: Client, mut request: reqwest::Request) -> Self {
        let body = request.body_mut().take().map_or(RequestBody::Empty, RequestBody::from);
        let timeout = request.timeout_mut().take();
        let built = Self { client, wire_request: Ok(WireRequest::new(request, body, true)), options: None };
        let built = if timeout.is_some() { built.attempt_timeout(timeout) } else { built };
        let http = built.client.http();
        built.with(|request, _| {
            if !has_user(request.url()) {
                return Ok(());
            }
            // reqwest's builder moves user information to a header. A finished request may still
            // have it in its URL.
            let mut bare = bare(&http?, request.method().clone(), request.url().clone())?;
            request.url_mut().clone_from(bare.url());
            if let Some(value) = bare.headers_mut().remove(AUTHORIZATION) {
                request.headers_mut().entry(AUTHORIZATION).or_insert(value);
            }
            Ok(())
        })
    }

    /// Adds a header. If it is set already, the request has both values.
    ///
    /// ```
    /// let client = steadfast::Client::new();
    /// let request = client.get("https://api.example.com/users").header("accept", "text/csv");
    /// ```
    pub fn header<K, V>(self, name: K, value: V) -> Self
    where
        K: TryInto<HeaderName>,
        K::Error: Display,
        V: TryInto<HeaderValue>,
        V::Error: Display,
    {
        let header = parse_header("header", name, value);
        self.with(|request, _| {
            let (name, value) = header?;
            request.headers_mut().append(name, value);
            Ok(())
        })
    }

    /// Sets headers. Each replaces a header of the same name that is set already.
    pub fn headers(self, headers: HeaderMap) -> Self {
        self.with(|request, _| {
            // `extend` replaces a header, and appends the further values of the same name.
            request.headers_mut().extend(headers);
            Ok(())
        })
    }

    /// Adds parameters to the query string, URL-encoded.
    ///
    /// ```
    /// let client = steadfast::Client::new();
    /// // https://api.example.com/search?q=two+apples&page=2
    /// let search = client.get("https://api.example.com/search");
    /// let request = search.query(&[("q", "two apples"), ("page", "2")]);
    /// ```
    pub fn query(self, query: &(impl Serialize + ?Sized)) -> Self {
        let encoded = serde_urlencoded::to_string(query).map_err(|error| Error::build("query", error));
        self.with(|request, _| {
            let encoded = encoded?;
            let whole = match request.url().query() {
                _ if encoded.is_empty() => return Ok(()),
                Some(before) if !before.is_empty() => format!("{before}&{encoded}"),
                _ => encoded,
            };
            request.url_mut().set_query(Some(&whole));
            Ok(())
        })
    }

    /// Appends segments to the path. Each part is percent-encoded, so a `/` in it does not start
    /// another segment.
    ///
    /// Use it for identifiers from elsewhere. An empty part, `.` and `..` are errors: an empty
    /// identifier would address the collection instead of the item.
    ///
    /// ```
    /// let client = steadfast::Client::new();
    /// let customer = "a/b"; // from your caller
    /// // https://api.example.com/customers/a%2Fb/orders
    /// let request = client
    ///     .get("https://api.example.com")
    ///     .path_segments(["customers", customer, "orders"]);
    /// ```
    pub fn path_segments<S: AsRef<str>>(self, parts: impl IntoIterator<Item = S>) -> Self {
        self.with(|request, _| target::append_segments(request.url_mut(), parts))
    }

    /// Feature `json`. Sets a JSON body, and `Content-Type: application/json` unless you set
    /// another.
    ///
    /// The value is serialised once, so every attempt sends the same bytes. A `HashMap` has another
    /// order each time it is built. Do not [resume](Self::resume) an operation with one: the token
    /// would belong to another body.
    ///
    /// ```
    /// use serde_json::json;
    ///
    /// let client = steadfast::Client::new();
    /// let charges = client.post("https://api.example.com/charges");
    /// let request = charges.json(&json!({ "amount": 1200 }));
    /// ```
    #[cfg(feature = "json")]
    pub fn json(self, body: &(impl Serialize + ?Sized)) -> Self {
        let encoded = serde_json::to_vec(body).map_err(|error| Error::build("json", error));
        self.encoded(ContentType::Json, encoded.map(RequestBody::from))
    }

    /// Sets a URL-encoded form as the body, and its `Content-Type` unless you set another.
    ///
    /// ```
    /// let client = steadfast::Client::new();
    /// let token = client.post("https://api.example.com/token");
    /// let request = token.form(&[("grant_type", "client_credentials")]);
    /// ```
    pub fn form(self, form: &(impl Serialize + ?Sized)) -> Self {
        let encoded = serde_urlencoded::to_string(form).map_err(|error| Error::build("form", error));
        self.encoded(ContentType::Form, encoded.map(|text| RequestBody::from(text.into_bytes())))
    }

    /// Sets the body.
    ///
    /// Bytes and text are sent again with each attempt. A stream can be read once, so the request
    /// gets exactly one attempt. For a stream that can be made again, use
    /// [`body_factory`](Self::body_factory).
    pub fn body(self, body: impl Into<reqwest::Body>) -> Self {
        let body = body.into();
        self.with(|_, kept| {
            *kept = RequestBody::from(body);
            Ok(())
        })
    }

    /// Sets a closure that makes the body of each attempt. Use it for a body that is too large to
    /// keep in memory.
    ///
    /// `make` must produce the same bytes every time. A server that compares bodies refuses another
    /// one under the same key.
    ///
    /// ```
    /// let client = steadfast::Client::new();
    /// let request = client
    ///     .put("https://files.example.com/table")
    ///     .body_factory(|| "one line\n".repeat(10_000_000));
    /// ```
    pub fn body_factory<B: Into<reqwest::Body>>(self, make: impl Fn() -> B + Send + Sync + 'static) -> Self {
        self.with(|_, kept| {
            *kept = RequestBody::factory(move || Ok(make().into()));
            Ok(())
        })
    }

    /// Feature `stream`. Sets a file as the body. Each attempt opens it again and sends it with its
    /// length.
    ///
    /// The request fails with [`ErrorKind::RequestBody`](crate::ErrorKind::RequestBody) if the
    /// file's length has changed at a later attempt, or if the file becomes shorter while it is
    /// read. It is never a short upload.
    ///
    /// ```no_run
    /// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
    /// let request = client.put("https://files.example.com/monday");
    /// let response = request.file("/var/backups/monday.tar").send().await?;
    /// # drop(response);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "stream")]
    pub fn file(self, path: impl Into<std::path::PathBuf>) -> Self {
        let path = path.into();
        self.with(|_, kept| {
            *kept = RequestBody::File(super::upload::File::new(path));
            Ok(())
        })
    }

    /// Feature `multipart`. Sets a closure that makes the multipart form of each attempt. It is
    /// also called once now.
    ///
    /// Every attempt sends the boundary of the first form. So a form with the same parts is the
    /// same body.
    ///
    /// ```
    /// use steadfast::reqwest::multipart::Form;
    ///
    /// let client = steadfast::Client::new();
    /// let request = client
    ///     .post("https://files.example.com/upload")
    ///     .multipart_factory(|| Form::new().text("title", "March"));
    /// ```
    #[cfg(feature = "multipart")]
    pub fn multipart_factory(self, make: impl Fn() -> reqwest::multipart::Form + Send + Sync + 'static) -> Self {
        let http = self.client.http();
        self.with(|request, kept| {
            let made = super::upload::FormFactory::new(http?, make);
            let (factory, content_type) = made.map_err(|error| Error::build("multipart_factory", error))?;
            request.headers_mut().insert(http::header::CONTENT_TYPE, content_type);
            *kept = RequestBody::factory(move || factory.body());
            Ok(())
        })
    }

    /// Feature `multipart`. Sets a multipart form as the body.
    ///
    /// A form can be sent once, so the request gets exactly one attempt. For more attempts, use
    /// [`multipart_factory`](Self::multipart_factory).
    #[cfg(feature = "multipart")]
    pub fn multipart(self, form: reqwest::multipart::Form) -> Self {
        let http = self.client.http();
        self.with(|request, kept| {
            // Only reqwest can write the headers and the body of a form.
            let blank = reqwest::Request::new(request.method().clone(), request.url().clone());
            let built = reqwest::RequestBuilder::from_parts(http?, blank).multipart(form).build();
            let mut built = built.map_err(|error| Error::build("multipart", error.without_url()))?;
            *kept = built.body_mut().take().map_or(RequestBody::Empty, RequestBody::from);
            request.headers_mut().extend(std::mem::take(built.headers_mut()));
            Ok(())
        })
    }

    /// Sets `Authorization: Bearer …`, marked as sensitive.
    pub fn bearer_auth(self, token: impl Display) -> Self {
        let value = bearer(token);
        self.with(|request, _| {
            request.headers_mut().insert(AUTHORIZATION, value?);
            Ok(())
        })
    }

    /// Sets `Authorization: Basic …`, marked as sensitive.
    pub fn basic_auth(self, username: impl Display, password: Option<impl Display>) -> Self {
        let http = self.client.http();
        self.with(|request, _| {
            let blank = reqwest::Request::new(request.method().clone(), request.url().clone());
            let built = reqwest::RequestBuilder::from_parts(http?, blank).basic_auth(username, password).build();
            let mut built = built.map_err(|error| Error::build("basic_auth", error.without_url()))?;
            request.headers_mut().extend(std::mem::take(built.headers_mut()));
            Ok(())
        })
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

    /// Sets whether a POST follows a 301 or 302 with a GET, in place of the client's
    /// [`redirect_post_as_get`](crate::ClientBuilder::redirect_post_as_get).
    pub fn redirect_post_as_get(mut self, yes: bool) -> Self {
        if let Ok(wire_request) = &mut self.wire_request {
            wire_request.post_as_get = Some(yes);
        }
        self
    }

    /// Sets the maximum size of a response body that [`fetch`](Self::fetch) reads, in decoded
    /// bytes. Default: the client's [`body_limit`](crate::ClientBuilder::body_limit).
    pub fn body_limit(self, bytes: usize) -> Self {
        self.option(|options| options.body_limit = Some(bytes))
    }

    /// Returns a second builder of the same request. Returns `None` if the body cannot be sent again
    /// (a stream, or a plain multipart form), or if a setting is invalid.
    ///
    /// A key that you gave, by [`idempotency_key`](Self::idempotency_key), as a header or by
    /// [`resume`](Self::resume), is cloned too. Both builders then send *one* operation. Without
    /// such a key each clone is an operation of its own: two POSTs get two keys, and both act.
    ///
    /// You need no clone for retries: the client sends a request again by itself.
    ///
    /// ```
    /// let client = steadfast::Client::new();
    /// let request = client.get("https://api.example.com/users").query(&[("page", 1)]);
    /// assert!(request.try_clone().is_some());
    /// ```
    #[must_use = "the clone does nothing until it is sent"]
    pub fn try_clone(&self) -> Option<Self> {
        let wire_request = self.wire_request.as_ref().ok()?.try_clone()?;
        Some(Self { client: self.client.clone(), wire_request: Ok(wire_request), options: self.options.clone() })
    }

    /// Sends the request and retries it where that is safe. Returns the final response, whatever
    /// its status, once its headers have arrived.
    ///
    /// [`ResponseExt`](crate::ResponseExt) tells you what the operation took. Its
    /// [`into_result`](crate::ResponseExt::into_result) turns a status other than 2xx into an
    /// error. A redirect that is [not followed](crate::ClientBuilder::max_redirects) is a final
    /// response too.
    ///
    /// You read the body after the operation has ended. A failure there is not retried. Only
    /// [`read_timeout`](crate::ClientBuilder::read_timeout), by default 90 s, limits a pause in it.
    /// [`fetch`](Self::fetch), [`fetch_text`](Self::fetch_text), [`fetch_bytes`](Self::fetch_bytes)
    /// and [`fetch_with`](Self::fetch_with) read it within the attempt. A body that is cut off
    /// ends in an error, even where reqwest alone would take it for a complete one. [The
    /// guide](crate::guide::failures) names the cases in which nothing can tell.
    ///
    /// # Errors
    ///
    /// No final response arrived, or the request is invalid.
    ///
    /// ```no_run
    /// use steadfast::{Client, ResponseExt};
    ///
    /// # async fn example(client: Client) -> steadfast::Result<()> {
    /// let response = client.get("https://api.example.com/report").send().await?;
    /// println!("{} after {} attempts", response.status(), response.attempts().len());
    /// let text = response.text().await?;
    /// # drop(text);
    /// # Ok(())
    /// # }
    /// ```
    #[allow(clippy::manual_async_fn, reason = "an async fn keeps its argument beside what it makes of it")]
    pub fn send(mut self) -> impl Future<Output = Result<reqwest::Response>> {
        async move {
            let (context, wire_request) = self.prepare(false)?;
            let mut progress = AttemptProgress::new(0, false, RedirectState::default());
            let (response, report) = run::run(&context, wire_request, &mut progress).await?;
            let mut response = match response {
                AttemptResponse::Head { response, .. } => response,
                // Not reached: only `ReadMode::Whole` reads the body.
                AttemptResponse::Whole { body, .. } => http::Response::new(body).into(),
            };
            response.extensions_mut().insert(report);
            Ok(response)
        }
    }

    fn with(mut self, change: impl FnOnce(&mut reqwest::Request, &mut RequestBody) -> Result<()>) -> Self {
        if let Ok(WireRequest { template, body, .. }) = &mut self.wire_request
            && let Err(error) = change(template, body)
        {
            self.wire_request = Err(error.at(template.method(), SafeUrl(template.url())));
        }
        self
    }

    fn encoded(self, content_type: ContentType, body: Result<RequestBody>) -> Self {
        let mut built = self.with(|_, kept| {
            *kept = body?;
            Ok(())
        });
        if let Ok(wire_request) = &mut built.wire_request {
            wire_request.content_type = content_type;
        }
        built
    }

    fn option(mut self, set: impl FnOnce(&mut Options)) -> Self {
        set(self.options.get_or_insert_default());
        self
    }

    /// Fixes the terms of the operation. Lends the request instead of moving it, because it is
    /// large.
    pub(super) fn prepare(&mut self, reads_body: bool) -> Result<(OperationContext<'_>, &mut WireRequest)> {
        let options = self.options.take();
        let resumed = || options.as_ref().and_then(|options| options.resume.clone());
        let wire_request = match &mut self.wire_request {
            Ok(wire_request) => wire_request,
            Err(error) => {
                let sent = Error::new(crate::ErrorKind::Build, "the request was sent already");
                return Err(std::mem::replace(error, sent).resuming(resumed()));
            }
        };
        let client = self.client.inner()?;
        match OperationContext::new(client, wire_request, options.as_deref(), reads_body) {
            Ok(context) => Ok((context, wire_request)),
            Err(error) => {
                let request = &wire_request.template;
                Err(error.at(request.method(), SafeUrl(request.url())).resuming(resumed()))
            }
        }
    }
}

// Method, address and names of the headers. Their values, the query and the body may be secret.
impl fmt::Debug for RequestBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("RequestBuilder");
        match &self.wire_request {
            Ok(WireRequest { template: request, content_type, .. }) => debug
                .field("method", request.method())
                .field("url", &SafeUrl(request.url()))
                .field("headers", &request.headers().keys().collect::<Vec<_>>())
                .field("content_type", content_type),
            Err(error) => debug.field("error", error),
        };
        debug.field("options", &self.options).finish_non_exhaustive()
    }
}

/// Creates a request that has nothing but a method and a URL. User information in the URL becomes a
/// header, as in reqwest's builder.
pub(super) fn bare(http: &reqwest::Client, method: Method, url: reqwest::Url) -> Result<reqwest::Request> {
    if !has_user(&url) {
        return Ok(reqwest::Request::new(method, url));
    }
    http.request(method, url).build().map_err(|error| Error::build("url", error.without_url()))
}

fn has_user(url: &reqwest::Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}
