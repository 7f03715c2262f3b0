//! The client: the entry point of the crate, in reqwest's words.

use std::fmt;
use std::sync::Arc;

use http::Method;

use crate::error::{Error, ErrorKind, Result};
use crate::inner::Inner;
use crate::policy::BreakerState;
use crate::request::{self, RequestBuilder};
use crate::{ClientBuilder, target};

/// A resilient HTTP client. Cloning it is cheap and shares connections, budgets and what was learnt about keys.
///
/// Of origins other than the base URL's the 1,024 that were used last are remembered, with their budgets, circuits and trust; one that is
/// forgotten starts anew.
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
///     .keys(KeyPolicy::standard()) // our word that this API honours idempotency keys
///     .build()?;
/// let charge: Charge = client.post_json("/charges", &NewCharge { amount: 1200, currency: "eur" }).await?;
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
    /// A client with the defaults. If TLS cannot be started, every request says so; nothing panics.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build().unwrap_or_else(|error| Self { inner: Arc::new(Err(error.in_short())) })
    }

    /// Configures a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    pub(crate) fn from_inner(inner: Inner) -> Self {
        Self { inner: Arc::new(Ok(inner)) }
    }

    pub(crate) fn inner(&self) -> Result<&Inner> {
        (*self.inner).as_ref().map_err(|message| Error::new(ErrorKind::Build, message.clone()))
    }

    pub(crate) fn http(&self) -> Result<reqwest::Client> {
        self.inner().map(|inner| inner.http.clone())
    }

    /// A GET. `url` is absolute, or relative to the [base URL](ClientBuilder::base_url).
    pub fn get(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::GET, url)
    }

    /// A POST. A key is minted for it, unless the [`KeyPolicy`](crate::KeyPolicy) says otherwise.
    pub fn post(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::POST, url)
    }

    /// A PUT.
    pub fn put(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::PUT, url)
    }

    /// A PATCH. A key is minted for it, unless the [`KeyPolicy`](crate::KeyPolicy) says otherwise.
    pub fn patch(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::PATCH, url)
    }

    /// A DELETE. A repeat may meet a 404 that its own first attempt caused; see the guide.
    pub fn delete(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::DELETE, url)
    }

    /// A HEAD.
    pub fn head(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::HEAD, url)
    }

    /// A request of any method.
    pub fn request(&self, method: Method, url: impl AsRef<str>) -> RequestBuilder {
        let build = || {
            let inner = self.inner()?;
            request::bare(&inner.http, method, target::resolve(inner.base.as_ref(), url.as_ref())?)
        };
        RequestBuilder::new(self.clone(), build())
    }

    /// What the [breaker](ClientBuilder::breaker) of this URL's origin lets through now. `None` if there is none, or if it is no URL.
    #[must_use]
    pub fn breaker_state(&self, url: impl AsRef<str>) -> Option<BreakerState> {
        let inner = self.inner().ok()?;
        let url = target::resolve(inner.base.as_ref(), url.as_ref()).ok()?;
        inner.origins.breaker_state(&url, crate::clock::now())
    }

    /// Sends a finished request as one operation. Its own timeout becomes the attempt timeout, and a key header on it is the
    /// operation's key.
    ///
    /// # Errors
    ///
    /// As [`RequestBuilder::send`].
    pub async fn execute(&self, request: reqwest::Request) -> Result<reqwest::Response> {
        RequestBuilder::from_request(self.clone(), request).send().await
    }
}

/// Typed one-liners: the answer decoded from JSON, as by [`RequestBuilder::fetch`], with its errors.
// Not `async`, which would hold the arguments beside the request that is made of them.
#[cfg(feature = "json")]
#[allow(clippy::missing_errors_doc, reason = "as stated above, for all of them")]
impl Client {
    /// GET.
    pub fn get_json<T: serde::de::DeserializeOwned>(&self, url: impl AsRef<str>) -> impl Future<Output = Result<T>> {
        self.get(url).fetch()
    }

    /// POST of a JSON body.
    pub fn post_json<T: serde::de::DeserializeOwned>(
        &self,
        url: impl AsRef<str>,
        body: &(impl serde::Serialize + ?Sized),
    ) -> impl Future<Output = Result<T>> {
        self.post(url).json(body).fetch()
    }

    /// PUT of a JSON body.
    pub fn put_json<T: serde::de::DeserializeOwned>(
        &self,
        url: impl AsRef<str>,
        body: &(impl serde::Serialize + ?Sized),
    ) -> impl Future<Output = Result<T>> {
        self.put(url).json(body).fetch()
    }

    /// PATCH of a JSON body.
    pub fn patch_json<T: serde::de::DeserializeOwned>(
        &self,
        url: impl AsRef<str>,
        body: &(impl serde::Serialize + ?Sized),
    ) -> impl Future<Output = Result<T>> {
        self.patch(url).json(body).fetch()
    }

    /// DELETE.
    pub fn delete_json<T: serde::de::DeserializeOwned>(&self, url: impl AsRef<str>) -> impl Future<Output = Result<T>> {
        self.delete(url).fetch()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Client");
        match &*self.inner {
            Ok(inner) => debug.field("base_url", &inner.base.as_ref().map(crate::resume::SafeUrl)),
            Err(message) => debug.field("error", message),
        };
        debug.finish_non_exhaustive()
    }
}
