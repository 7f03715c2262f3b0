//! One request: its headers and query, and how it is sent. The body, the terms of the operation
//! and the ways to read a response inside the attempt are in files of their own below this one.
//!
//! The builder keeps the first mistake. Sending the request returns it as an error, and nothing is
//! sent.

mod body;
mod fetch;
mod terms;

use std::fmt::{self, Display};
use std::future::Future;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Serialize;

use super::attempt_result::{AttemptProgress, AttemptResponse};
use super::checks::{bearer, parse_header};
use super::detached::DetachedRequest;
use super::durable::DurableRequest;
use super::operation::{OperationContext, Options};
use super::prepared::PreparedRequest;
use super::redirect::RedirectState;
use super::request_body::{ContentType, RequestBody};
use super::transport::{Own, Through, TransportError};
use super::transport_view::TransportView;
use super::wire_request::WireRequest;
use super::{operation, run, target};
use crate::Client;
use crate::clock;
use crate::error::{Error, Result};
use crate::journal::OperationReport;
use crate::resume::SafeUrl;

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

    /// Creates the builder of a finished request, as reqwest's `from_parts` does. Its timeout becomes
    /// the attempt timeout. If it has a key header, that is the operation's key.
    ///
    /// ```
    /// use steadfast::{Client, RequestBuilder, http::Method, reqwest::Request};
    ///
    /// # fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let request = Request::new(Method::POST, "https://api.example.com/search".parse()?);
    /// let search = RequestBuilder::from_parts(Client::new(), request).idempotent(true);
    /// # drop(search);
    /// # Ok(())
    /// # }
    /// # example().unwrap();
    /// ```
    pub fn from_parts(client: Client, mut request: reqwest::Request) -> Self {
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
            let (context, wire_request) = self.start(false, None)?;
            let mut progress = AttemptProgress::new(0, false, RedirectState::default());
            let (response, report) = run::run(Own, &context, wire_request, &mut progress).await?;
            Ok(head_with(response, report))
        }
    }

    /// Sends the request through a transport of yours, as one operation: see
    /// [`Client::execute_through`]. Returns the final response, whatever its status, once its
    /// headers have arrived.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// ```no_run
    /// use steadfast::{Client, IdempotencyKey, RequestBuilder, TransportError, reqwest};
    ///
    /// # async fn example(
    /// #     client: Client, plain: reqwest::Client, request: reqwest::Request, key: IdempotencyKey,
    /// # ) -> steadfast::Result<()> {
    /// let request = RequestBuilder::from_parts(client, request).idempotency_key(key);
    /// let response = request
    ///     .send_through(|request| async { plain.execute(request).await.map_err(TransportError::from) })
    ///     .await?;
    /// # drop(response);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn send_through<F, R>(self, send: F) -> Result<reqwest::Response>
    where
        F: Fn(reqwest::Request) -> R,
        R: Future<Output = std::result::Result<reqwest::Response, TransportError>>,
    {
        self.send_as_seen(&TransportView::opaque(), send).await
    }

    /// Sends the request through a transport of which `view` is known.
    pub(crate) async fn send_as_seen<F, R>(self, view: &TransportView, send: F) -> Result<reqwest::Response>
    where
        F: Fn(reqwest::Request) -> R,
        R: Future<Output = std::result::Result<reqwest::Response, TransportError>>,
    {
        let mut request = self.leaving_pauses();
        let (context, wire_request) = request.start(false, Some(view))?;
        let mut progress = AttemptProgress::new(0, false, RedirectState::default());
        let (response, report) = run::run(Through(&send), &context, wire_request, &mut progress).await?;
        Ok(head_with(response, report))
    }

    /// Fixes the operation before anything is sent: mints its key, and gives you a token to store.
    ///
    /// With the token in your database, a crash of this process loses nothing: the next one
    /// [resumes](Self::resume) the operation, under the same key.
    ///
    /// # Errors
    ///
    /// A setting is invalid. It is the error that [`send`](Self::send) would return.
    ///
    /// ```no_run
    /// # fn save(_: String) -> Result<(), std::io::Error> { Ok(()) }
    /// # async fn example(client: steadfast::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let charge = client.post("https://api.example.com/charges").body("12 EUR").prepare()?;
    /// save(serde_json::to_string(&charge.resume_token())?)?; // in the transaction of the order
    /// let response = charge.send().await?;
    /// # drop(response);
    /// # Ok(())
    /// # }
    /// ```
    pub fn prepare(mut self) -> Result<PreparedRequest> {
        let mut options = self.options.clone().unwrap_or_default();
        let headers = self.wire_request.as_ref().map(|request| request.template.headers().clone()).unwrap_or_default();
        options.prepared.get_or_insert_with(clock::wall);
        self.options = Some(options.clone());
        let (context, wire_request) = self.begin(false, None)?;
        // Whether it will have been sent when the token is used, nobody knows.
        let token = context.resume_token(wire_request, true).map(|token| *token);
        let was_given = context.key_was_given;
        let minted = context.key.filter(|_| !was_given);
        options.key = options.key.or(minted);
        self.options = Some(options);
        Ok(PreparedRequest::new(self, token, headers))
    }

    /// Makes the operation independent of its caller. It runs in a task of its own from the first
    /// poll of `send` or `fetch`, and goes on if that future is dropped: by `select!`, by a timeout
    /// around it, or because the client of your server has disconnected.
    ///
    /// It needs a [`timeout`](Self::timeout) or another deadline, which ends it. It inherits the
    /// tracing span and the [deadline](crate::with_deadline) of its caller. At shutdown, wait for
    /// such operations with [`Client::drain`].
    ///
    /// ```no_run
    /// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
    /// let charge = client.post("https://api.example.com/charges").body("12 EUR");
    /// let response = charge.detached().send().await?;
    /// # drop(response);
    /// # Ok(())
    /// # }
    /// ```
    pub fn detached(self) -> DetachedRequest {
        DetachedRequest::new(self)
    }

    /// Returns the parts of the request that can be written down. `headers`: those that its caller
    /// has set.
    ///
    /// # Errors
    ///
    /// A part cannot be written down. The error names it.
    pub(super) fn durable_parts(mut self, headers: HeaderMap) -> Result<DurableRequest> {
        let options = self.options.clone().unwrap_or_default();
        options.check_durable()?;
        let (context, wire_request) = self.begin(false, None)?;
        DurableRequest::of(&context, wire_request, (headers, options.idempotent))
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Checks that the operation ends at some time.
    pub(super) fn check_deadline(&self) -> Result<()> {
        if operation::has_deadline(self.client.inner()?, self.options.as_deref())? {
            return Ok(());
        }
        Err(Error::build("detached", "the operation has no timeout, and nobody would end it; set one with timeout"))
    }

    /// Adds method and URL of this request to an error.
    pub(super) fn locate(&self, error: Error) -> Error {
        let error = match &self.wire_request {
            Ok(WireRequest { template, .. }) => error.at(template.method(), SafeUrl(template.url())),
            Err(_) => error,
        };
        // What it resumes may have been processed.
        error.resuming(self.options.as_ref().and_then(|options| options.resume.clone()))
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

    /// Fixes the terms of an operation that starts now, and starts its span.
    #[inline]
    fn start<'a>(
        &'a mut self,
        reads_body: bool,
        view: Option<&'a TransportView>,
    ) -> Result<(OperationContext<'a>, &'a mut WireRequest)> {
        let (mut context, wire_request) = self.begin(reads_body, view)?;
        context.start_span(wire_request);
        Ok((context, wire_request))
    }

    /// Fixes the terms of the operation. Lends the request instead of moving it, because it is
    /// large. `view`: what is known of the transport, if it is not the client's own.
    pub(super) fn begin<'a>(
        &'a mut self,
        reads_body: bool,
        view: Option<&'a TransportView>,
    ) -> Result<(OperationContext<'a>, &'a mut WireRequest)> {
        let options = self.options.take();
        let resumed = || options.as_ref().and_then(|options| options.resume.clone());
        let wire_request = match &mut self.wire_request {
            Ok(wire_request) => wire_request,
            Err(error) => {
                let sent = Error::new(crate::ErrorKind::Build, "the request was sent already");
                return Err(std::mem::replace(error, sent).resuming(resumed()));
            }
        };
        match OperationContext::new(&self.client, wire_request, options.as_deref(), reads_body, view) {
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

/// Returns the response of an operation whose body was not read, with its report.
fn head_with(response: AttemptResponse, report: OperationReport) -> reqwest::Response {
    let mut response = match response {
        AttemptResponse::Head { response, .. } => response,
        // Not reached: only `ReadMode::Whole` reads the body.
        AttemptResponse::Whole { body, .. } => http::Response::new(body).into(),
    };
    response.extensions_mut().insert(report);
    response
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
