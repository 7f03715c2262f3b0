//! What an API does with idempotency keys, and on whose statement the client relies.
//!
//! A key is a licence to repeat only where the API honours it. So the policy has two parts: how the
//! key is sent, and whose statement makes it a licence.
//!
//! It has a type of the public API, and imports no other module of the crate. The wire tests are in
//! `tests/it/keys.rs`.

use std::time::Duration;

use http::header::{
    ACCEPT, ACCEPT_LANGUAGE, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, RANGE, TRANSFER_ENCODING, USER_AGENT,
};
use http::{HeaderName, Method};

use crate::key::{IdempotencyKey, KeyError, KeyFormat};

/// On whose statement the client relies that the API honours keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The user, by `.keys(KeyPolicy::standard())`.
    Declared,
    /// The API itself, by signs in its responses.
    Negotiated,
    /// Nobody, so a key is never a licence.
    Nobody,
}

/// What an API does with idempotency keys.
///
/// When you give one to [`ClientBuilder::keys`](crate::ClientBuilder::keys), you state that this
/// API honours keys: it acts once per key, and replays its stored response to a repeat. That
/// statement is the licence to repeat a POST whose response was lost, so it must be true. The
/// command `steadfast-probe` checks it on a staging server.
///
/// Two policies state nothing: [`off`](KeyPolicy::off) and [`negotiated`](KeyPolicy::negotiated).
/// The default is `KeyPolicy::standard().negotiated()`.
///
/// ```
/// use std::time::Duration;
/// use steadfast::{Client, KeyPolicy};
///
/// # fn example() -> steadfast::Result<()> {
/// // Stripe documents its keys.
/// let stripe = Client::builder().base_url("https://api.stripe.com").keys(KeyPolicy::stripe()).build()?;
///
/// // An API of your own, which remembers a key for a week.
/// let week = Duration::from_secs(7 * 24 * 3600);
/// let ours = Client::builder()
///     .base_url("https://payments.internal.example")
///     .keys(KeyPolicy::standard().max_length(64).retention(week))
///     .build()?;
/// # Ok(())
/// # }
/// # example().unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct KeyPolicy {
    pub(crate) header: HeaderName,
    pub(crate) methods: Vec<Method>,
    pub(crate) form: KeyFormat,
    pub(crate) max_length: usize,
    pub(crate) retention: Duration,
    pub(crate) in_progress: Option<String>,
    pub(crate) concurrent_duplicates: bool,
    /// In whole seconds.
    pub(crate) wait: Option<Duration>,
    pub(crate) trust: Trust,
}

impl Default for KeyPolicy {
    /// [`KeyPolicy::standard`], [negotiated](KeyPolicy::negotiated).
    fn default() -> Self {
        Self::standard().negotiated()
    }
}

/// Headers with a meaning of their own. Some of them also follow a redirect to another origin, and
/// a key must not.
const RESERVED_HEADERS: [HeaderName; 9] =
    [ACCEPT, ACCEPT_LANGUAGE, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, RANGE, TRANSFER_ENCODING, USER_AGENT];

impl KeyPolicy {
    /// Creates the policy of most APIs: the header `Idempotency-Key`, written bare, minted for POST
    /// and PATCH, at most 255 characters long, and remembered for 24 hours.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            header: HeaderName::from_static("idempotency-key"),
            methods: vec![Method::POST, Method::PATCH],
            form: KeyFormat::Bare,
            max_length: 255,
            retention: Duration::from_secs(24 * 3600),
            in_progress: None,
            concurrent_duplicates: false,
            wait: None,
            trust: Trust::Declared,
        }
    }

    /// Creates the policy of Stripe's API v1.
    ///
    /// It is [`standard`](Self::standard) for POST alone. A 409 with `idempotency_key_in_use` means
    /// that the first attempt still runs. Sources:
    /// <https://docs.stripe.com/api/idempotent_requests> and
    /// <https://docs.stripe.com/error-codes>.
    #[must_use]
    pub fn stripe() -> Self {
        let standard = Self::standard().in_progress_code("idempotency_key_in_use").concurrent_duplicates_safe();
        Self { methods: vec![Method::POST], ..standard }
    }

    /// Creates the policy of PayPal's REST API: the header `PayPal-Request-Id`, for POST alone.
    ///
    /// Retention and maximum length depend on the call. The defaults are 6 hours and 38 characters,
    /// the strictest that PayPal's reference names. Set [`retention`](Self::retention) from the
    /// page of the call that you make. Source:
    /// <https://developer.paypal.com/api/rest/reference/idempotency>.
    #[must_use]
    pub fn paypal() -> Self {
        let header = HeaderName::from_static("paypal-request-id");
        let retention = Duration::from_secs(6 * 3600);
        Self { header, methods: vec![Method::POST], max_length: 38, retention, ..Self::standard() }
    }

    /// Creates a policy that mints no keys. A key that you set on a request is sent, but it is no
    /// licence to repeat.
    ///
    /// ```
    /// use steadfast::{Client, KeyPolicy};
    ///
    /// // An API that rejects unknown headers.
    /// let client = Client::builder().keys(KeyPolicy::off());
    /// ```
    #[must_use]
    pub fn off() -> Self {
        Self { methods: Vec::new(), trust: Trust::Nobody, ..Self::standard() }
    }

    /// Trusts keys only where the API has shown that it honours them. They are sent in any case.
    ///
    /// The sign is an `Idempotency-Status` or `Idempotent-Replayed` header. It counts for its
    /// origin, method and path. The `scope` parameter of `Idempotency-Status` widens the path to a
    /// prefix, and `retention` shortens [`retention`](Self::retention). An echo of the key is no
    /// sign, since any proxy that reflects headers sends one.
    ///
    /// `Idempotency-Status: ignored` ends the trust, and so does one 2xx response without a sign to
    /// a request with a key. Without trust, an ambiguous failure ends the operation with
    /// [`KeyNotTrusted`](crate::policy::StopReason::KeyNotTrusted).
    ///
    /// A sign behind a 307 or 308 counts for the path that answered. A redirected operation is
    /// repeated only if the `scope` of one sign covers both that path and the requested one.
    ///
    /// The client remembers at most 256 pairs of method and path per origin, and each pair needs a
    /// sign of its own. Where paths contain identifiers (`/orders/17/charge`), an API that sends a
    /// `scope` is trusted, and others hardly ever are.
    #[must_use]
    pub fn negotiated(mut self) -> Self {
        self.trust = Trust::Negotiated;
        self
    }

    /// Sets the name of the header. Default: `Idempotency-Key`.
    ///
    /// A header with a meaning of its own, such as `Accept`, `Content-Type` or `Host`, is an error
    /// when you build the client.
    ///
    /// ```
    /// use steadfast::{KeyPolicy, http::HeaderName};
    ///
    /// let policy = KeyPolicy::standard().header(HeaderName::from_static("x-request-id"));
    /// ```
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = name;
        self
    }

    /// Sets the methods for which the API takes keys. Default: POST and PATCH.
    ///
    /// The client mints keys for these methods, and your statement covers them alone. A key that
    /// you set on a request with another method is sent too. It is a licence only where the API
    /// shows that it honours it.
    ///
    /// ```
    /// use steadfast::{KeyPolicy, http::Method};
    ///
    /// let policy = KeyPolicy::standard().methods([Method::POST, Method::PUT]);
    /// ```
    #[must_use]
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.methods = methods.into_iter().collect();
        self
    }

    /// Sets how the key is written in its header. Default: [`KeyFormat::Bare`].
    ///
    /// ```
    /// use steadfast::{KeyFormat, KeyPolicy};
    ///
    /// let policy = KeyPolicy::standard().form(KeyFormat::Quoted); // as the IETF draft has it
    /// ```
    #[must_use]
    pub fn form(mut self, form: KeyFormat) -> Self {
        self.form = form;
        self
    }

    /// Sets the maximum length of a key, in characters. Default: 255.
    ///
    /// A longer key is an error before anything is sent. A minted key has 36 characters, so a limit
    /// below 36 is an error when you build the client.
    #[must_use]
    pub fn max_length(mut self, characters: usize) -> Self {
        self.max_length = characters;
        self
    }

    /// Sets how long the API remembers a key. Default: 24 hours.
    ///
    /// An operation that is older than 95 % of this cannot be resumed. Zero is an error when you
    /// build the client.
    #[must_use]
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Sets the code of a 409 that means "the first attempt under this key still runs". Default:
    /// none.
    ///
    /// The client compares it with `type` and `code` in the JSON body, at the top level and under
    /// `error`. On a match it retries later under the same key.
    ///
    /// ```
    /// let policy = steadfast::KeyPolicy::standard().in_progress_code("request_in_progress");
    /// ```
    #[must_use]
    pub fn in_progress_code(mut self, code: impl Into<String>) -> Self {
        self.in_progress = Some(code.into());
        self
    }

    /// States that this API never runs two requests under one key at the same time. The second one
    /// gets a 409, or waits for the first.
    ///
    /// Without this statement, a request with a key cannot be
    /// [hedged](crate::RequestBuilder::hedge). [`stripe`](Self::stripe) makes it, and this crate's
    /// server layer keeps it.
    #[must_use]
    pub fn concurrent_duplicates_safe(mut self) -> Self {
        self.concurrent_duplicates = true;
        self
    }

    /// Asks the server to delay its response to a retry while the first attempt still runs, instead
    /// of responding 409. Default: off.
    ///
    /// A retry sends `Prefer: wait=N` (RFC 7240 §4.3), in whole seconds. A server that does not
    /// know the preference ignores it. A time under one second, or one that is not shorter than the
    /// client's attempt timeout, is an error when you build the client.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let policy = steadfast::KeyPolicy::standard().wait_on_retry(Duration::from_secs(5));
    /// ```
    #[must_use]
    pub fn wait_on_retry(mut self, wait: Duration) -> Self {
        self.wait = Some(Duration::from_secs(wait.as_secs()));
        self
    }

    /// Returns the key of an operation: the given one, checked, or a minted one.
    pub(crate) fn key_for(
        &self,
        method: &Method,
        given: Option<IdempotencyKey>,
    ) -> Result<Option<IdempotencyKey>, KeyError> {
        match given {
            Some(key) => self.check_length(key).map(Some),
            None if self.methods.contains(method) => IdempotencyKey::mint().map(Some),
            None => Ok(None),
        }
    }

    fn check_length(&self, key: IdempotencyKey) -> Result<IdempotencyKey, KeyError> {
        let (length, max) = (key.as_str().len(), self.max_length);
        if length > max { Err(KeyError::TooLong { length, max }) } else { Ok(key) }
    }

    pub(crate) fn validate(&self) -> Result<(), &'static str> {
        if !self.methods.is_empty() && self.max_length < uuid::fmt::Hyphenated::LENGTH {
            return Err("max_length is under 36, the length of a minted key");
        }
        if RESERVED_HEADERS.contains(&self.header) {
            return Err("the key's header has another meaning");
        }
        if self.wait.is_some_and(|wait| wait.is_zero()) {
            return Err("wait_on_retry is under a second");
        }
        if self.retention.is_zero() { Err("retention is zero") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_mints_for_its_methods_and_checks_given_keys() {
        let minted = |policy: &KeyPolicy, method| policy.key_for(&method, None).unwrap().is_some();
        let standard = KeyPolicy::standard();
        assert!(minted(&standard, Method::POST) && minted(&standard, Method::PATCH));
        assert!(
            !minted(&standard, Method::GET) && !minted(&standard, Method::PUT) && !minted(&standard, Method::DELETE)
        );
        assert!(minted(&KeyPolicy::paypal(), Method::POST) && !minted(&KeyPolicy::paypal(), Method::PATCH));
        assert!(!minted(&KeyPolicy::off(), Method::POST));

        let given = |length: usize| "x".repeat(length).parse().map(Some).unwrap();
        assert!(standard.key_for(&Method::POST, given(255)).is_ok());
        let too_long = KeyError::TooLong { length: 256, max: 255 };
        assert_eq!(standard.key_for(&Method::POST, given(256)), Err(too_long));
    }

    #[test]
    fn invalid_policy_is_an_error() {
        assert!(KeyPolicy::standard().max_length(35).validate().is_err());
        assert!(KeyPolicy::off().max_length(35).validate().is_ok());
        for taken in [CONTENT_TYPE, RANGE] {
            assert!(KeyPolicy::standard().header(taken).validate().is_err());
        }
        assert!(KeyPolicy::standard().retention(Duration::ZERO).validate().is_err());
        assert!(KeyPolicy::standard().wait_on_retry(Duration::from_millis(999)).validate().is_err());
        for policy in [KeyPolicy::standard(), KeyPolicy::stripe(), KeyPolicy::paypal(), KeyPolicy::default()] {
            assert!(policy.validate().is_ok());
        }
    }
}
