//! What an API does with idempotency keys, and whose word it is that it does.
//!
//! A key is a licence to repeat only where the API honours it, so the policy carries both: how the key travels, and who vouches.
//!
//! Floor 1: words shared with callers. The wire tests are in `tests/it/keys.rs`.

use std::time::Duration;

use http::header::{
    ACCEPT, ACCEPT_LANGUAGE, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, RANGE, TRANSFER_ENCODING, USER_AGENT,
};
use http::{HeaderName, Method};

use crate::key::{IdempotencyKey, KeyError, KeyFormat};

/// Whose word it is that this API honours keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The user's: `.keys(KeyPolicy::standard())`.
    Declared,
    /// The API's own, learnt from its answers.
    Negotiated,
    /// Nobody's.
    Nobody,
}

/// What an API does with idempotency keys.
///
/// Giving one to [`ClientBuilder::keys`](crate::ClientBuilder::keys) is your statement that this API honours keys: it acts once
/// per key and answers a repeat from its record. (Two policies state nothing: [`off`](KeyPolicy::off) and
/// [`negotiated`](KeyPolicy::negotiated).) It is the licence to repeat a POST whose answer was lost, so it must be true. A client that is
/// given none has `KeyPolicy::standard().negotiated()`. The command `steadfast-probe` asks an API, in
/// staging, whether it is true.
///
/// ```
/// use std::time::Duration;
/// use steadfast::KeyPolicy;
///
/// let stripe = KeyPolicy::stripe();
/// let ours = KeyPolicy::standard().max_length(64).retention(Duration::from_secs(7 * 24 * 3600));
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

/// Headers that say something else already; some of them go to another origin with a redirect, as no key may.
const TAKEN: [HeaderName; 9] =
    [ACCEPT, ACCEPT_LANGUAGE, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, RANGE, TRANSFER_ENCODING, USER_AGENT];

impl KeyPolicy {
    /// `Idempotency-Key`, bare, minted for POST and PATCH, at most 255 characters, honoured for 24 hours.
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

    /// Stripe's API v1: as [`standard`](Self::standard), for POST alone, and a 409 with `idempotency_key_in_use` means that the
    /// first attempt still runs (<https://docs.stripe.com/api/idempotent_requests>, <https://docs.stripe.com/error-codes>).
    #[must_use]
    pub fn stripe() -> Self {
        let standard = Self::standard().in_progress_code("idempotency_key_in_use").concurrent_duplicates_safe();
        Self { methods: vec![Method::POST], ..standard }
    }

    /// PayPal's REST API: `PayPal-Request-Id`, for POST alone (<https://developer.paypal.com/api/rest/reference/idempotency>).
    ///
    /// How long PayPal keeps a key and how long a key may be depends on the call; 6 hours and 38 characters are assumed here,
    /// the strictest that its reference names. Set [`retention`](Self::retention) from the page of the call that you make.
    #[must_use]
    pub fn paypal() -> Self {
        let header = HeaderName::from_static("paypal-request-id");
        let retention = Duration::from_secs(6 * 3600);
        Self { header, methods: vec![Method::POST], max_length: 38, retention, ..Self::standard() }
    }

    /// No key is minted, and a key that the caller gives is sent but is no licence to repeat.
    #[must_use]
    pub fn off() -> Self {
        Self { methods: Vec::new(), trust: Trust::Nobody, ..Self::standard() }
    }

    /// Send keys, but trust them only where the API has shown that it honours them.
    ///
    /// What shows it, per origin, method and path: an `Idempotency-Status` or `Idempotent-Replayed`
    /// header. (An echo of the key is no sign: any proxy that reflects headers sends one.) The
    /// `scope` parameter of `Idempotency-Status` widens the path to a prefix, and its `retention`
    /// shortens [`retention`](Self::retention). `Idempotency-Status: ignored`, or one 2xx answer to
    /// a keyed request without any sign, takes the trust back. Without trust an ambiguous failure
    /// ends the operation as [`KeyNotTrusted`](crate::policy::StopReason::KeyNotTrusted).
    ///
    /// A sign behind a 307 or 308 speaks for the path that answered. A redirected operation is
    /// repeated only if the `scope` of one sign covers both that path and the one that was asked
    /// for.
    ///
    /// At most 256 pairs of method and path are remembered for an origin, and each has to show it anew: where paths contain identifiers
    /// (`/orders/17/charge`), an API that gives a `scope` is trusted, and others hardly ever.
    #[must_use]
    pub fn negotiated(mut self) -> Self {
        self.trust = Trust::Negotiated;
        self
    }

    /// The name of the header. One that says something else already (`Accept`, `Connection`, `Content-Length`, `Content-Type`, `Host`,
    /// `Transfer-Encoding`) is an error when the client is built.
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = name;
        self
    }

    /// The methods for which the API takes keys: one is minted for them, and your word holds for them alone. A key of your own for another
    /// method is sent, and is a licence only where the API shows that it honours it.
    #[must_use]
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.methods = methods.into_iter().collect();
        self
    }

    /// How the key is written on the wire.
    #[must_use]
    pub fn form(mut self, form: KeyFormat) -> Self {
        self.form = form;
        self
    }

    /// The greatest length that the API takes, in characters. A longer key is refused before anything is sent; a minted key
    /// has 36 characters, so a limit under 36 is an error when the client is built.
    #[must_use]
    pub fn max_length(mut self, characters: usize) -> Self {
        self.max_length = characters;
        self
    }

    /// How long the API remembers a key. A resumed operation that is older, less a margin of a twentieth, is refused. Zero is an
    /// error when the client is built.
    #[must_use]
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// The word by which a 409 says that the first attempt under this key still runs: the value of `type` or `code` in its JSON
    /// body, at the top or under `error`.
    #[must_use]
    pub fn in_progress_code(mut self, word: impl Into<String>) -> Self {
        self.in_progress = Some(word.into());
        self
    }

    /// Your statement that this API never runs two requests under one key at the same time: the second gets a 409, or waits for the first.
    /// Without it a keyed request is not [hedged](crate::RequestBuilder::hedge). [`stripe`](Self::stripe) says so, and so does the layer of
    /// this crate.
    #[must_use]
    pub fn concurrent_duplicates_safe(mut self) -> Self {
        self.concurrent_duplicates = true;
        self
    }

    /// A retry asks the server to hold its answer back while the first attempt still runs, instead of a 409: `Prefer: wait=N` (RFC 7240
    /// §4.3), in whole seconds. Default: it does not ask. A server that does not know the preference ignores it.
    ///
    /// Under a second, or not shorter than the client's attempt timeout, it is an error when the client is built.
    #[must_use]
    pub fn wait_on_retry(mut self, wait: Duration) -> Self {
        self.wait = Some(Duration::from_secs(wait.as_secs()));
        self
    }

    /// Mints or checks the key of an operation.
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
        if TAKEN.contains(&self.header) {
            return Err("the key's header is one that says something else");
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
    fn a_policy_mints_for_its_methods_and_checks_what_it_is_given() {
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
    fn a_policy_that_cannot_work_is_refused() {
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
