//! One request: reqwest's vocabulary, plus what makes it one operation.
//!
//! A mistake made while building is kept and reported when the request is sent, before anything has left.

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
#[cfg(feature = "json")]
use super::response;
use super::wire_request::WireRequest;
use super::{run, target};
use crate::Client;
use crate::error::{Error, Result};
use crate::key::IdempotencyKey;
use crate::policy::{HedgePolicy, RetryPolicy};
use crate::resume::{ResumeToken, SafeUrl};

/// A request under construction. It does nothing until [`send`](Self::send) or [`fetch`](Self::fetch).
#[must_use = "a request does nothing until it is sent"]
pub struct RequestBuilder {
    client: Client,
    wire_request: Result<WireRequest>,
    /// Most requests have none.
    options: Option<Box<Options>>,
}

impl RequestBuilder {
    pub(super) fn new(client: Client, request: Result<reqwest::Request>) -> Self {
        let wire_request = request.map(|request| WireRequest::new(request, RequestBody::Empty, false));
        Self { client, wire_request, options: None }
    }

    /// A finished request: its body becomes the payload, its timeout the attempt timeout.
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
            // reqwest's finished requests keep it.
            let mut bare = bare(&http?, request.method().clone(), request.url().clone())?;
            request.url_mut().clone_from(bare.url());
            if let Some(value) = bare.headers_mut().remove(AUTHORIZATION) {
                request.headers_mut().entry(AUTHORIZATION).or_insert(value);
            }
            Ok(())
        })
    }

    /// Adds a header; sent twice if it is there already.
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

    /// Sets headers; one that is there already is replaced.
    pub fn headers(self, headers: HeaderMap) -> Self {
        self.with(|request, _| {
            // A name that comes again replaces what was there, and then appends.
            request.headers_mut().extend(headers);
            Ok(())
        })
    }

    /// Appends to the query string, URL-encoded.
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

    /// Appends to the path, each part percent-encoded as one segment: `path_segments(["orders", id])`.
    ///
    /// An empty part, `.` and `..` are errors: an empty identifier would address the collection instead of the item.
    pub fn path_segments<S: AsRef<str>>(self, parts: impl IntoIterator<Item = S>) -> Self {
        self.with(|request, _| target::append_segments(request.url_mut(), parts))
    }

    /// A JSON body. Sets `Content-Type: application/json` unless one is set.
    ///
    /// It is serialised once, so every attempt sends the same bytes. (A `HashMap` serialises in another order each time it is
    /// built: an operation that is [resumed](Self::resume) with one is another request.)
    #[cfg(feature = "json")]
    pub fn json(self, body: &(impl Serialize + ?Sized)) -> Self {
        let encoded = serde_json::to_vec(body).map_err(|error| Error::build("json", error));
        self.encoded(ContentType::Json, encoded.map(RequestBody::from))
    }

    /// A URL-encoded form body. Sets its `Content-Type` unless one is set.
    pub fn form(self, form: &(impl Serialize + ?Sized)) -> Self {
        let encoded = serde_urlencoded::to_string(form).map_err(|error| Error::build("form", error));
        self.encoded(ContentType::Form, encoded.map(|text| RequestBody::from(text.into_bytes())))
    }

    /// The body. Bytes and text can be sent again; a stream exists once and gets exactly one attempt, see
    /// [`body_factory`](Self::body_factory).
    pub fn body(self, body: impl Into<reqwest::Body>) -> Self {
        let body = body.into();
        self.with(|_, kept| {
            *kept = RequestBody::from(body);
            Ok(())
        })
    }

    /// A body that is made anew for each attempt: for what is too large to keep, or comes from elsewhere. `make` must make the
    /// same bytes every time.
    pub fn body_factory<B: Into<reqwest::Body>>(self, make: impl Fn() -> B + Send + Sync + 'static) -> Self {
        self.with(|_, kept| {
            *kept = RequestBody::factory(move || Ok(make().into()));
            Ok(())
        })
    }

    /// Feature `stream`. A file, opened anew for each attempt and sent with its length. A file that has another length at a later attempt, or
    /// becomes shorter while it is read, is an error ([`ErrorKind::RequestBody`](crate::ErrorKind::RequestBody)), never a short
    /// upload.
    #[cfg(feature = "stream")]
    pub fn file(self, path: impl Into<std::path::PathBuf>) -> Self {
        let path = path.into();
        self.with(|_, kept| {
            *kept = RequestBody::File(super::upload::File::new(path));
            Ok(())
        })
    }

    /// Feature `multipart`. A multipart form that is made anew for each attempt; it is also made once now. Every attempt sends it under the boundary
    /// of the first, so a form of the same parts is the same body.
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

    /// Feature `multipart`. A form. It exists once, so the request gets exactly one attempt; see
    /// [`multipart_factory`](Self::multipart_factory).
    #[cfg(feature = "multipart")]
    pub fn multipart(self, form: reqwest::multipart::Form) -> Self {
        let http = self.client.http();
        self.with(|request, kept| {
            // reqwest alone can write the headers and the body of a form.
            let blank = reqwest::Request::new(request.method().clone(), request.url().clone());
            let built = reqwest::RequestBuilder::from_parts(http?, blank).multipart(form).build();
            let mut built = built.map_err(|error| Error::build("multipart", error.without_url()))?;
            *kept = built.body_mut().take().map_or(RequestBody::Empty, RequestBody::from);
            request.headers_mut().extend(std::mem::take(built.headers_mut()));
            Ok(())
        })
    }

    /// `Authorization: Bearer …`, marked as sensitive.
    pub fn bearer_auth(self, token: impl Display) -> Self {
        let value = bearer(token);
        self.with(|request, _| {
            request.headers_mut().insert(AUTHORIZATION, value?);
            Ok(())
        })
    }

    /// `Authorization: Basic …`, marked as sensitive.
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

    /// The operation's key, instead of a minted one. It is sent for every method.
    ///
    /// Nothing checks whether this key was used before, for what, and how long ago: that is your knowledge, and its age is counted from now,
    /// in the [resume token](crate::Error::resume_token) of this operation too. [`resume`](Self::resume) checks all of it.
    pub fn idempotency_key(self, key: IdempotencyKey) -> Self {
        self.option(|options| options.key = Some(key))
    }

    /// Asks again for an operation that ended without an answer: same key, same request.
    ///
    /// # Errors
    ///
    /// When it is sent: [`ErrorKind::KeyExpired`](crate::ErrorKind::KeyExpired) if the key is older
    /// than 95 % of the API's [retention](crate::KeyPolicy::retention), if the clock is more than
    /// 30 s behind the token's, or if the request is another one. (A token from up to 30 s ahead
    /// counts as sent now, and the retention is shorter by as much: clocks differ.) Also if the
    /// operation may have been processed and neither you ([`keys`](crate::ClientBuilder::keys)) nor
    /// the API has said that it honours keys: to send it again could carry it out twice. Nothing is
    /// sent then, and the error still has the token.
    pub fn resume(self, token: ResumeToken) -> Self {
        self.option(|options| options.resume = Some(token))
    }

    /// Your word on whether acting twice on this request is harmless, above method and key.
    ///
    /// `true`: a POST that only reads, say. `false`: a PUT or GET with effects; then it is repeated only if the server cannot
    /// have acted, key or not.
    pub fn idempotent(self, yes: bool) -> Self {
        self.option(|options| options.idempotent = Some(yes))
    }

    /// The policy of this operation, instead of the client's. The client's [`timeout`](crate::ClientBuilder::timeout) stays in force
    /// unless this policy sets a [`deadline`](RetryPolicy::deadline).
    pub fn retry(self, policy: RetryPolicy) -> Self {
        self.option(|options| options.retry = Some(policy))
    }

    /// The most time for the whole operation; `None` for no limit. Over every other setting of it.
    pub fn timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        self.option(|options| options.timeout = Some(timeout.into()))
    }

    /// The most time for one attempt; `None` for no limit.
    pub fn attempt_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        self.option(|options| options.attempt_timeout = Some(timeout.into()))
    }

    /// Overrides the client's [`hedge`](crate::ClientBuilder::hedge) for this request; `None` turns hedging off.
    ///
    /// For a method that is not safe, calling this is also your statement that two requests at once are acceptable: two PUTs may race other
    /// writers. A request under a key needs a [`KeyPolicy`](crate::KeyPolicy::concurrent_duplicates_safe) which says that the API does not
    /// run both. Without that, and for a request that nothing makes harmless to repeat, sending it is an error. A body that is a stream or a
    /// file is not hedged.
    pub fn hedge(self, policy: impl Into<Option<HedgePolicy>>) -> Self {
        self.option(|options| options.hedge = Some(policy.into()))
    }

    /// Overrides the client's [`redirect_post_as_get`](crate::ClientBuilder::redirect_post_as_get)
    /// for this request.
    pub fn redirect_post_as_get(mut self, yes: bool) -> Self {
        if let Ok(wire_request) = &mut self.wire_request {
            wire_request.post_as_get = Some(yes);
        }
        self
    }

    /// The most decoded bytes that [`fetch`](Self::fetch) reads.
    pub fn body_limit(self, bytes: usize) -> Self {
        self.option(|options| options.body_limit = Some(bytes))
    }

    /// Sends it, and again where that is safe; returns the final answer, whatever its status, as soon as its head is there.
    ///
    /// The body is yours to read, outside of the operation: what happens to it is not retried, and
    /// is bounded by [`read_timeout`](crate::ClientBuilder::read_timeout) alone. A body that is cut
    /// off ends in an error, also where reqwest by itself would take it for a whole one; [the
    /// guide](crate::guide::failures) says where nothing can tell.
    /// [`ResponseExt`](crate::ResponseExt) has the report.
    ///
    /// A redirect that is [not followed](crate::ClientBuilder::max_redirects) is such an answer.
    ///
    /// # Errors
    ///
    /// There was no final answer, or the request is invalid.
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

    /// Sends it, and again where that is safe; decodes the 2xx answer from JSON.
    ///
    /// The body is read inside the attempt, so a truncated answer is one more ambiguous outcome that is repeated under the same
    /// licence. An empty 2xx body decodes as `null`: to `()` or to `None`.
    ///
    /// # Errors
    ///
    /// There was no final answer, or it was not 2xx, not the JSON of a `T`, or over the
    /// [limit](crate::ClientBuilder::body_limit); or the request is invalid. A redirect that is
    /// [not followed](crate::ClientBuilder::max_redirects) is an
    /// [`ErrorKind::Redirect`](crate::ErrorKind::Redirect) that names where it leads.
    #[cfg(feature = "json")]
    #[allow(clippy::manual_async_fn, reason = "an async fn keeps its argument beside what it makes of it")]
    pub fn fetch<T: serde::de::DeserializeOwned>(mut self) -> impl Future<Output = Result<T>> {
        async move {
            let (context, wire_request) = self.prepare(true)?;
            let mut progress = AttemptProgress::new(0, false, RedirectState::default());
            let (response, report) = run::run(&context, wire_request, &mut progress).await?;
            let url = wire_request.current(&progress).request.url();
            let decoded = response::decode(response, context.read, url);
            decoded.map_err(|error| response::with_report(error, report, &context, wire_request))
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

    /// Fixes the terms of the operation. The request is sent from where it is: it is large, and is
    /// not moved again.
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

/// Method, address and the names of the headers: values, query and body may be secret.
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

/// A request of which nothing but method and URL is known. User information in the URL becomes a header, as reqwest's builder has it.
pub(super) fn bare(http: &reqwest::Client, method: Method, url: reqwest::Url) -> Result<reqwest::Request> {
    if !has_user(&url) {
        return Ok(reqwest::Request::new(method, url));
    }
    http.request(method, url).build().map_err(|error| Error::build("url", error.without_url()))
}

fn has_user(url: &reqwest::Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}
