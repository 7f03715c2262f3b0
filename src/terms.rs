//! The terms of one request as a value, for callers who hold no [`RequestBuilder`].
//!
//! A client that takes steadfast as its transport builds its requests itself: kube, octocrab, or
//! one with middlewares. What it hands down is an `http::Request`, or reqwest's. Both have
//! extensions, and this is what to put there.
//!
//! [`RequestBuilder`]: crate::RequestBuilder

use std::borrow::Cow;
use std::time::Duration;

use crate::confirm::{Confirm, Confirmation, Unconfirmed};
use crate::error::BoxError;
use crate::key::IdempotencyKey;
use crate::operation::Options;
use crate::policy::RetryPolicy;
use crate::resume::ResumeToken;

/// The terms of one operation: its key, its policy and its time limits, as a value.
///
/// Put it into the extensions of a request to a [`ClientService`](crate::ClientService), or give it
/// to a [`RequestBuilder`](crate::RequestBuilder::terms). What you set overrides the client's
/// settings, and what you do not set leaves them.
///
/// Clones of a request have the same extensions. With a key in them they are *one* operation, also
/// if a layer above sends one after the other.
///
/// ```
/// use std::time::Duration;
/// use steadfast::http::Request;
/// use steadfast::{IdempotencyKey, RequestTerms, uuid::Uuid};
///
/// const ORDERS: Uuid = Uuid::from_u128(0x6b1d_26e5_8f0c_4a55_9f3e_2c7d_0a4b_91e6);
///
/// # fn example() -> Result<(), steadfast::http::Error> {
/// let terms = RequestTerms::new()
///     .idempotency_key(IdempotencyKey::derive(&ORDERS, "order 1042: charge"))
///     .timeout(Duration::from_secs(5));
/// let request = Request::post("https://api.example.com/charges").extension(terms).body("12 EUR")?;
/// # drop(request);
/// # Ok(())
/// # }
/// # example().unwrap();
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "terms have no effect until a request has them"]
pub struct RequestTerms {
    // Boxed, because builders and futures hold it by value.
    options: Box<Options>,
}

impl RequestTerms {
    /// Creates terms that set nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the operation's key, in place of a minted one and of one in the request's header. See
    /// [`RequestBuilder::idempotency_key`](crate::RequestBuilder::idempotency_key).
    pub fn idempotency_key(self, key: IdempotencyKey) -> Self {
        self.set(|options| options.key = Some(key))
    }

    /// Resumes an operation that ended without a response. See
    /// [`RequestBuilder::resume`](crate::RequestBuilder::resume), also for the errors.
    pub fn resume(self, token: ResumeToken) -> Self {
        self.set(|options| options.resume = Some(token))
    }

    /// Declares whether repeating this request is harmless. Overrides the method and the key. See
    /// [`RequestBuilder::idempotent`](crate::RequestBuilder::idempotent).
    ///
    /// ```
    /// use steadfast::RequestTerms;
    ///
    /// // A second creation under the same name is a 409, and creates nothing.
    /// let create_by_name = RequestTerms::new().idempotent(true);
    /// ```
    pub fn idempotent(self, yes: bool) -> Self {
        self.set(|options| options.idempotent = Some(yes))
    }

    /// Sets the retry policy of this operation, in place of the client's. See
    /// [`RequestBuilder::retry`](crate::RequestBuilder::retry).
    ///
    /// ```
    /// use steadfast::{RequestTerms, policy::RetryPolicy};
    ///
    /// let once = RequestTerms::new().retry(RetryPolicy::never());
    /// ```
    pub fn retry(self, policy: RetryPolicy) -> Self {
        self.set(|options| options.retry = Some(policy))
    }

    /// Sets the timeout of the whole operation, with its waits. `None` disables it. See
    /// [`RequestBuilder::timeout`](crate::RequestBuilder::timeout).
    pub fn timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        self.set(|options| options.timeout = Some(timeout.into()))
    }

    /// Sets the timeout of one attempt. `None` disables it. See
    /// [`RequestBuilder::attempt_timeout`](crate::RequestBuilder::attempt_timeout).
    pub fn attempt_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        self.set(|options| options.attempt_timeout = Some(timeout.into()))
    }

    /// Sets the longest pause in the body of the response. `None` disables it. See
    /// [`RequestBuilder::read_timeout`](crate::RequestBuilder::read_timeout).
    pub fn read_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        self.set(|options| options.read_timeout = Some(timeout.into()))
    }

    /// Sets the read that finds out whether the server has carried out this operation. See
    /// [`RequestBuilder::confirm`](crate::RequestBuilder::confirm).
    ///
    /// ```
    /// use steadfast::http::StatusCode;
    /// use steadfast::{Confirmation, RequestTerms, Unconfirmed};
    ///
    /// async fn find(config: Unconfirmed) -> steadfast::Result<Confirmation> {
    ///     let url = "https://cluster.example.com/api/v1/namespaces/default/configmaps/settings";
    ///     match config.client().get(url).fetch_response().await {
    ///         Ok(found) => Ok(Confirmation::applied(found)),
    ///         Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => Ok(Confirmation::NotApplied),
    ///         Err(error) => Err(error),
    ///     }
    /// }
    /// let create = RequestTerms::new().confirm(find);
    /// ```
    pub fn confirm<F, R, E>(self, ask: F) -> Self
    where
        F: Fn(Unconfirmed) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Confirmation, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.set(|options| options.confirm = Some(Confirm::new(ask)))
    }

    /// Sets after which time a read shows the effect of this operation. See
    /// [`ClientBuilder::settling_time`](crate::ClientBuilder::settling_time).
    pub fn settling_time(self, time: Duration) -> Self {
        self.set(|options| options.settling_time = Some(time))
    }

    /// Names the template of the path, for spans and metrics. See
    /// [`RequestBuilder::template`](crate::RequestBuilder::template).
    ///
    /// ```
    /// use steadfast::RequestTerms;
    ///
    /// let terms = RequestTerms::new().template("/api/v1/namespaces/{namespace}/configmaps/{name}");
    /// ```
    pub fn template(self, template: impl Into<Cow<'static, str>>) -> Self {
        self.set(|options| options.template = Some(template.into()))
    }

    pub(crate) fn into_options(self) -> Options {
        *self.options
    }

    fn set(mut self, set: impl FnOnce(&mut Options)) -> Self {
        set(&mut self.options);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Client;
    use crate::policy::Idempotency;

    #[test]
    fn terms_override_and_the_rest_stays() {
        let seconds = Duration::from_secs;
        let given: IdempotencyKey = "order-1042".parse().unwrap();
        let terms = RequestTerms::new().timeout(seconds(3)).idempotency_key(given.clone());
        let request = Client::new().post("http://127.0.0.1:9/").timeout(seconds(9)).attempt_timeout(seconds(2));
        let mut request = request.terms(terms.clone());
        let (context, _) = request.begin(false, None).unwrap();
        assert_eq!(context.policy().deadline.duration(), Some(seconds(3)));
        assert_eq!((context.key.as_ref(), context.idempotency), (Some(&given), Idempotency::Keyed));
        let until = context.attempt_until(crate::clock::now()).unwrap();
        assert!(until.saturating_duration_since(crate::clock::now()) <= seconds(2));

        let mut later =
            Client::new().post("http://127.0.0.1:9/").terms(terms).terms(RequestTerms::new().idempotent(true));
        let (context, _) = later.begin(false, None).unwrap();
        assert_eq!((context.key.as_ref(), context.idempotency), (Some(&given), Idempotency::Natural));
    }
}
