//! The client: reqwest's, with one key per operation and a retry only where it is safe.
//!
//! To find out why a request was repeated, read `run.rs` (the loop) and `attempt.rs` (one attempt),
//! and of the policy `retry.rs` (the decision) and `class.rs` (the table).
//!
//! | file | purpose |
//! | --- | --- |
//! | `builder`, `settings`, `request`, `checks`, `defaults` | the settings of a client and of a request |
//! | `target`, `request_body`, `upload` | the URL and the body |
//! | `operation`, `wire_request`, `common_headers` | the terms of one operation, and its request |
//! | `run` | the loop |
//! | `hedge` | a second attempt beside a late one |
//! | `attempt`, `redirect`, `send_probe` | one attempt: send, follow redirects, watch the body |
//! | `attempt_result`, `response_body`, `ending`, `transport_error` | what an attempt has done, and what came back |
//! | `assessment` | the class of an attempt |
//! | `admission`, `cooldown` | whether an attempt is admitted |
//! | `origin`, `key_trust` | what the client remembers of each origin |
//! | `recorder`, `event`, `response` | the journal, the events and the report |
//!
//! This is floor 2: it imports `policy` and the modules of floor 1 (`key`, `error`, `journal`,
//! `problem`, `resume`). No file here imports one that imports it.

mod admission;
mod assessment;
mod attempt;
mod attempt_result;
mod builder;
mod checks;
mod common_headers;
mod cooldown;
mod defaults;
mod ending;
mod event;
mod hedge;
mod key_trust;
mod operation;
mod origin;
mod recorder;
mod redirect;
mod request;
mod request_body;
mod response;
mod response_body;
mod run;
mod send_probe;
mod settings;
mod target;
mod transport_error;
#[cfg(any(feature = "stream", feature = "multipart"))]
mod upload;
mod wire_request;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method};

pub use self::builder::ClientBuilder;
pub use self::event::{Event, EventKind};
pub use self::request::RequestBuilder;
pub use self::response::ResponseExt;

use self::defaults::Defaults;
use self::origin::OriginMap;
use self::settings::OverloadSettings;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::NotFollowed;
use crate::key_policy::KeyPolicy;
use crate::policy::{BreakerState, Class, Outcome, RetryPolicy};

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

type Classifier = Arc<dyn Fn(&Outcome<'_>) -> Class + Send + Sync>;
type OnEvent = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

pub(crate) struct Inner {
    http: reqwest::Client,
    /// A client that we were given and cannot look into.
    opaque: bool,
    /// The transport is as this crate made it: nobody can have told it to speak HTTP/2 with prior
    /// knowledge.
    is_as_made: bool,
    /// What is sent in the clear is HTTP/1: the transport is as we made it, and no proxy stands in between over TLS.
    clear_is_http1: bool,
    origins: OriginMap,
    base: Option<reqwest::Url>,
    defaults: Defaults,
    retry: RetryPolicy,
    keys: KeyPolicy,
    attempt_timeout: Option<Duration>,
    body_limit: usize,
    max_redirects: u32,
    redirect_post_as_get: bool,
    /// An error says why redirects to another origin are not followed.
    cross_origin_redirects: Result<(), NotFollowed>,
    attempt_header: Option<HeaderName>,
    overload: OverloadSettings,
    classifier: Option<Classifier>,
    on_event: Option<OnEvent>,
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

    fn from_inner(inner: Inner) -> Self {
        Self { inner: Arc::new(Ok(inner)) }
    }

    fn inner(&self) -> Result<&Inner> {
        (*self.inner).as_ref().map_err(|message| Error::new(ErrorKind::Build, message.clone()))
    }

    fn http(&self) -> Result<reqwest::Client> {
        self.inner().map(|inner| inner.http.clone())
    }

    /// A GET. `url` is absolute, or relative to the [base URL](ClientBuilder::base_url).
    pub fn get(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::GET, url)
    }

    /// A POST. A key is minted for it, unless the [`KeyPolicy`] says otherwise.
    pub fn post(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::POST, url)
    }

    /// A PUT.
    pub fn put(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::PUT, url)
    }

    /// A PATCH. A key is minted for it, unless the [`KeyPolicy`] says otherwise.
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
