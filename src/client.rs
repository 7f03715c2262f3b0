//! The client: the entry point of the crate, with the methods of reqwest's client.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Method;

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::inner::Inner;
use crate::policy::BreakerState;
use crate::request::{self, RequestBuilder};
use crate::transport::TransportError;
use crate::{ClientBuilder, target};

/// A resilient HTTP client.
///
/// Create one and clone it: clones are cheap, and share connections, budgets and the trust in keys.
///
/// The client remembers the base URL's origin, and the 1,024 other origins that it used last, with
/// their budgets, circuits and trust. A forgotten origin starts anew.
///
/// ```no_run
/// use serde::{Deserialize, Serialize};
/// use steadfast::{Client, KeyPolicy};
///
/// #[derive(Serialize)]
/// struct NewCharge { amount: u64, currency: &'static str }
/// #[derive(Deserialize)]
/// struct Charge { id: String }
///
/// # async fn example() -> steadfast::Result<()> {
/// let client = Client::builder()
///     .base_url("https://api.example.com/v1")
///     .keys(KeyPolicy::standard()) // you state: this API honours idempotency keys
///     .build()?;
/// let new_charge = NewCharge { amount: 1200, currency: "eur" };
/// let charge: Charge = client.post_json("/charges", &new_charge).await?;
/// println!("charged once: {}", charge.id);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Result<Inner, String>>,
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// Creates a client with the default settings.
    ///
    /// It does not panic if TLS cannot be started: every request then returns the error.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = steadfast::Client::new();
    /// let page = client.get("https://www.rust-lang.org").send().await?.text().await?;
    /// # drop(page);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build().unwrap_or_else(|error| Self { inner: Arc::new(Err(error.in_short())) })
    }

    /// Returns a builder, which configures a client.
    ///
    /// ```
    /// # fn example() -> steadfast::Result<()> {
    /// use std::time::Duration;
    ///
    /// let client = steadfast::Client::builder()
    ///     .base_url("https://api.example.com")
    ///     .attempt_timeout(Duration::from_secs(2))
    ///     .build()?;
    /// # drop(client);
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    pub(crate) fn from_inner(inner: Inner) -> Self {
        Self { inner: Arc::new(Ok(inner)) }
    }

    /// Creates a client that could not be built.
    #[cfg(test)]
    pub(crate) fn unbuilt(message: &str) -> Self {
        Self { inner: Arc::new(Err(message.to_owned())) }
    }

    pub(crate) fn inner(&self) -> Result<&Inner> {
        (*self.inner).as_ref().map_err(|message| Error::new(ErrorKind::Build, message.clone()))
    }

    pub(crate) fn http(&self) -> Result<reqwest::Client> {
        self.inner().map(|inner| inner.http.clone())
    }

    /// Starts a GET request. `url` is absolute, or relative to the [base
    /// URL](ClientBuilder::base_url).
    ///
    /// ```no_run
    /// # async fn example() -> steadfast::Result<()> {
    /// let client = steadfast::Client::builder().base_url("https://api.example.com/v1").build()?;
    /// let users = client.get("/users").send().await?; // https://api.example.com/v1/users
    /// let other = client.get("https://status.example.com").send().await?;
    /// # drop((users, other));
    /// # Ok(())
    /// # }
    /// ```
    pub fn get(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::GET, url)
    }

    /// Starts a POST request. The client mints a key for it, unless the
    /// [`KeyPolicy`](crate::KeyPolicy) says otherwise.
    ///
    /// ```no_run
    /// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
    /// let request = client.post("https://api.example.com/orders").body("two apples");
    /// let response = request.send().await?;
    /// # drop(response);
    /// # Ok(())
    /// # }
    /// ```
    pub fn post(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::POST, url)
    }

    /// Starts a PUT request.
    pub fn put(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::PUT, url)
    }

    /// Starts a PATCH request. The client mints a key for it, unless the
    /// [`KeyPolicy`](crate::KeyPolicy) says otherwise.
    pub fn patch(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::PATCH, url)
    }

    /// Starts a DELETE request. A retry may get a 404 because its own first attempt has deleted the
    /// resource: see [the guide](crate::guide::failures).
    pub fn delete(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::DELETE, url)
    }

    /// Starts a HEAD request.
    pub fn head(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::HEAD, url)
    }

    /// Starts a request with any method.
    ///
    /// ```
    /// use steadfast::http::Method;
    ///
    /// let client = steadfast::Client::new();
    /// let request = client.request(Method::OPTIONS, "https://api.example.com/orders");
    /// ```
    pub fn request(&self, method: Method, url: impl AsRef<str>) -> RequestBuilder {
        let build = || {
            let inner = self.inner()?;
            request::bare(&inner.http, method, target::resolve(inner.base.as_ref(), url.as_ref())?)
        };
        RequestBuilder::new(self.clone(), build())
    }

    /// Returns the state of the [breaker](ClientBuilder::breaker) of this URL's origin. Returns
    /// `None` if the client has no breaker, or if `url` is not a URL.
    ///
    /// ```
    /// use steadfast::policy::{BreakerPolicy, BreakerState};
    ///
    /// # fn example() -> steadfast::Result<()> {
    /// let client = steadfast::Client::builder().breaker(BreakerPolicy::new()).build()?;
    /// let state = client.breaker_state("https://api.example.com");
    /// assert_eq!(state, Some(BreakerState::Closed)); // no call has failed yet
    /// # Ok(())
    /// # }
    /// # example().unwrap();
    /// ```
    #[must_use]
    pub fn breaker_state(&self, url: impl AsRef<str>) -> Option<BreakerState> {
        let inner = self.inner().ok()?;
        let url = target::resolve(inner.base.as_ref(), url.as_ref()).ok()?;
        inner.origins.breaker_state(&url, clock::now())
    }

    /// Waits until the [detached](RequestBuilder::detached) operations of this client have ended, and
    /// for `timeout` at most. Returns how many still run. All clones of a client share them.
    ///
    /// Call it at shutdown, after the last request has started. It cancels nothing.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// # async fn example(client: steadfast::Client) {
    /// let left = client.drain(Duration::from_secs(20)).await;
    /// if left > 0 {
    ///     eprintln!("{left} operations were cut off by the shutdown");
    /// }
    /// # }
    /// ```
    pub async fn drain(&self, timeout: Duration) -> usize {
        let Ok(inner) = self.inner() else { return 0 };
        // Closed, it still takes tasks. It only lets `wait` end.
        inner.detached.close();
        let until = clock::now().checked_add(timeout);
        // Whether it is in time, the number tells.
        let _in_time = clock::until(until, inner.detached.wait()).await;
        inner.detached.len()
    }

    /// Sends a finished request as one operation. Its timeout becomes the attempt timeout. If it
    /// has a key header, that is the operation's key.
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::send`].
    ///
    /// ```no_run
    /// use steadfast::http::Method;
    /// use steadfast::reqwest::Request;
    ///
    /// # async fn example(client: steadfast::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let request = Request::new(Method::GET, "https://api.example.com/report".parse()?);
    /// let response = client.execute(request).await?;
    /// # drop(response);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn execute(&self, request: reqwest::Request) -> Result<reqwest::Response> {
        RequestBuilder::from_parts(self.clone(), request).send().await
    }

    /// Sends a request through a transport of yours, as one operation. The loop is the same as that
    /// of [`execute`](Self::execute): one key, the same decisions, the same report.
    ///
    /// The closure is called once for each attempt. It returns a response, or a [`TransportError`]
    /// that says whether anything was sent. This client cannot look into your transport, so it is
    /// more cautious than with its own:
    ///
    /// * A `reqwest::Error` is [unsure](TransportError::unsure), even if a connection was refused.
    ///   Your client may have followed a redirect first, after a POST was carried out. Only
    ///   [`TransportError::not_sent`] says that nothing has left.
    /// * A 421, 425 or 429 is ambiguous for the same reason.
    /// * Redirects are those of your client. A response from another address than the request's
    ///   counts as one that your client has followed. A redirect to the same address cannot be seen.
    ///
    /// The body is read after the operation has ended, as after [`send`](RequestBuilder::send). No
    /// pause in it is too long, unless you set [`read_timeout`](crate::ClientBuilder::read_timeout).
    /// Another operation of this crate inside the closure makes one attempt
    /// ([`StopReason::Nested`](crate::policy::StopReason::Nested)).
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::send`].
    ///
    /// ```no_run
    /// use steadfast::{Client, TransportError, reqwest};
    ///
    /// # async fn example(client: Client, plain: reqwest::Client, request: reqwest::Request) -> steadfast::Result<()> {
    /// let response = client
    ///     .execute_through(request, |request| async { plain.execute(request).await.map_err(TransportError::from) })
    ///     .await?;
    /// # drop(response);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn execute_through<F, R>(&self, request: reqwest::Request, send: F) -> Result<reqwest::Response>
    where
        F: Fn(reqwest::Request) -> R,
        R: Future<Output = std::result::Result<reqwest::Response, TransportError>>,
    {
        RequestBuilder::from_parts(self.clone(), request).send_through(send).await
    }
}

/// Feature `json`. JSON in one call. The response is decoded as by [`RequestBuilder::fetch`], with
/// the same errors.
// Not `async`: the future would hold the arguments beside the request.
#[cfg(feature = "json")]
#[allow(clippy::missing_errors_doc, reason = "as stated above, for all of them")]
impl Client {
    /// Sends a GET request and decodes the response from JSON.
    ///
    /// ```no_run
    /// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
    /// let user: serde_json::Value = client.get_json("https://api.example.com/users/7").await?;
    /// println!("{}", user["name"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_json<T: serde::de::DeserializeOwned>(&self, url: impl AsRef<str>) -> impl Future<Output = Result<T>> {
        self.get(url).fetch()
    }

    /// Sends a POST request with a JSON body and decodes the response from JSON.
    ///
    /// ```no_run
    /// use serde_json::{Value, json};
    ///
    /// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
    /// let url = "https://api.example.com/orders";
    /// let order: Value = client.post_json(url, &json!({ "apples": 2 })).await?;
    /// println!("{}", order["id"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn post_json<T: serde::de::DeserializeOwned>(
        &self,
        url: impl AsRef<str>,
        body: &(impl serde::Serialize + ?Sized),
    ) -> impl Future<Output = Result<T>> {
        self.post(url).json(body).fetch()
    }

    /// Sends a PUT request with a JSON body and decodes the response from JSON.
    pub fn put_json<T: serde::de::DeserializeOwned>(
        &self,
        url: impl AsRef<str>,
        body: &(impl serde::Serialize + ?Sized),
    ) -> impl Future<Output = Result<T>> {
        self.put(url).json(body).fetch()
    }

    /// Sends a PATCH request with a JSON body and decodes the response from JSON.
    pub fn patch_json<T: serde::de::DeserializeOwned>(
        &self,
        url: impl AsRef<str>,
        body: &(impl serde::Serialize + ?Sized),
    ) -> impl Future<Output = Result<T>> {
        self.patch(url).json(body).fetch()
    }

    /// Sends a DELETE request and decodes the response from JSON. Ask for `()` if the server sends
    /// no body.
    ///
    /// ```no_run
    /// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
    /// client.delete_json::<()>("https://api.example.com/orders/7").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn delete_json<T: serde::de::DeserializeOwned>(&self, url: impl AsRef<str>) -> impl Future<Output = Result<T>> {
        self.delete(url).fetch()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Client");
        match &*self.inner {
            Ok(inner) => debug.field("base_url", &inner.base.as_ref().map(|base| crate::resume::SafeUrl(&base.url))),
            Err(message) => debug.field("error", message),
        };
        debug.finish_non_exhaustive()
    }
}
