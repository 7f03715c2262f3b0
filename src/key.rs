//! The idempotency key: one name for one logical operation, however often it is sent.
//!
//! A retried POST is safe only if the server can tell that it is the same one. The key says so: minted before the first attempt
//! from the operating system's randomness, the same on every attempt, new for the next operation. It is never taken from a
//! generator that lives in the process, because `fork` or a restored VM snapshot would clone that generator, and two charges
//! under one key are one silently lost payment.
//!
//! Floor 1: words shared with callers. The wire tests are in `tests/it/keys.rs`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use uuid::Uuid;

/// An idempotency key.
///
/// `Display` and `Debug` show its beginning only (8 characters of a minted key; the first quarter of any other, at most 8): a
/// key is a capability for the stored answer, so it does not belong in logs. [`as_str`](Self::as_str) is the only way to the
/// whole.
///
/// ```
/// use steadfast::IdempotencyKey;
///
/// let key: IdempotencyKey = "order-1042-charge".parse()?;
/// assert_eq!(key.as_str(), "order-1042-charge");
/// assert_eq!(key.to_string(), "orde…");
/// # Ok::<(), steadfast::KeyError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    /// Bare, visible ASCII. A header value, so that sending it copies nothing.
    value: HeaderValue,
    minted: bool,
}

impl IdempotencyKey {
    /// A new random key (UUID v4) from the operating system's randomness.
    ///
    /// # Errors
    ///
    /// [`KeyError::NoRandomness`] if the operating system has none to give.
    pub fn mint() -> Result<Self, KeyError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| KeyError::NoRandomness(error.to_string()))?;
        Ok(Self::from_uuid(uuid::Builder::from_random_bytes(bytes).into_uuid(), true))
    }

    /// The key that business data gives (UUID v5 of `name` in `namespace`, RFC 9562 §5.5): the same operation gets the same key
    /// in every process and after every crash.
    ///
    /// Everything that makes two operations different must be part of `name`: an order's number, and what is done to it.
    ///
    /// ```
    /// use steadfast::{IdempotencyKey, uuid::Uuid};
    ///
    /// let orders = Uuid::from_u128(0x6b1d_26e5_8f0c_4a55_9f3e_2c7d_0a4b_91e6);
    /// let key = IdempotencyKey::derive(&orders, "order 1042: charge");
    /// assert_eq!(key, IdempotencyKey::derive(&orders, "order 1042: charge"));
    /// assert_ne!(key, IdempotencyKey::derive(&orders, "order 1042: refund"));
    /// ```
    #[must_use]
    pub fn derive(namespace: &Uuid, name: impl AsRef<[u8]>) -> Self {
        Self::from_uuid(Uuid::new_v5(namespace, name.as_ref()), false)
    }

    fn from_uuid(uuid: Uuid, minted: bool) -> Self {
        let mut buffer = Uuid::encode_buffer();
        let text = uuid.hyphenated().encode_lower(&mut buffer);
        // Hex digits and hyphens are always a header value.
        let value = HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""));
        Self { value, minted }
    }

    /// The whole key, bare. Keep it out of logs and URLs.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.value.to_str().unwrap_or_default()
    }

    /// Reads a header value in either spelling: `abc`, or the structured field `"abc"`.
    pub(crate) fn from_header(value: &HeaderValue) -> Result<Self, KeyError> {
        value.to_str().map_err(|_| KeyError::Character)?.parse()
    }

    /// The key as this form puts it on the wire, marked as sensitive so that nobody's `Debug` prints it.
    pub(crate) fn to_header(&self, form: KeyForm) -> HeaderValue {
        let mut value = match form {
            KeyForm::Bare => self.value.clone(),
            KeyForm::Quoted => {
                let escaped = self.as_str().replace('\\', r"\\").replace('"', "\\\"");
                HeaderValue::try_from(format!("\"{escaped}\"")).unwrap_or_else(|_| self.value.clone())
            }
        };
        value.set_sensitive(true);
        value
    }

    pub(crate) fn is_minted(&self) -> bool {
        self.minted
    }

    /// As [`FromStr`], for a key that this crate minted in an earlier process.
    pub(crate) fn restore(text: &str, minted: bool) -> Result<Self, KeyError> {
        Ok(Self { minted, ..text.parse()? })
    }

    fn shown(&self) -> &str {
        let whole = self.as_str();
        let length = if self.minted { 8 } else { (whole.len() / 4).min(8) };
        whole.get(..length).unwrap_or_default()
    }
}

/// Takes a bare key or its quoted spelling (`"abc"`, RFC 9651 §3.3.3); both name the same key.
impl FromStr for IdempotencyKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bare = if text.starts_with('"') { unquote(text).ok_or(KeyError::Quotes)? } else { text.to_owned() };
        // Written bare, as on most wires and in a resume token, it would be read back as the quoted spelling of another key.
        if bare.starts_with('"') {
            return Err(KeyError::Quotes);
        }
        if bare.is_empty() {
            return Err(KeyError::Empty);
        }
        // A space at either end would not survive the wire (RFC 9110 §5.5).
        if !bare.bytes().all(|byte| (0x20..0x7f).contains(&byte)) || bare.trim_matches(' ') != bare {
            return Err(KeyError::Character);
        }
        let value = HeaderValue::try_from(bare).map_err(|_| KeyError::Character)?;
        Ok(Self { value, minted: false })
    }
}

/// The content of a structured-field string: `\"` and `\\` are its only escapes, and nothing may follow the closing quote.
fn unquote(text: &str) -> Option<String> {
    let inside = text.strip_prefix('"')?.strip_suffix('"').filter(|_| text.len() >= 2)?;
    let mut bare = String::with_capacity(inside.len());
    let mut characters = inside.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => bare.push(characters.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            '"' => return None,
            other => bare.push(other),
        }
    }
    Some(bare)
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", self.shown())
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdempotencyKey({}…)", self.shown())
    }
}

/// Why a text is not an idempotency key. No variant repeats the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It has no characters.
    #[error("an idempotency key has at least one character")]
    Empty,
    /// It has a character other than visible ASCII and inner spaces.
    #[error("an idempotency key has visible ASCII characters only, and no space at either end")]
    Character,
    /// It starts with a quote and is not a well-formed structured-field string, or the key inside that string does.
    #[error("an idempotency key starts with no quote, unless a whole structured-field string is around it")]
    Quotes,
    /// It is longer than the API takes ([`KeyPolicy::max_length`]).
    #[error("the idempotency key has {length} characters and this API takes {max}")]
    TooLong {
        /// Its length.
        length: usize,
        /// The greatest length that the policy allows.
        max: usize,
    },
    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness: {0}")]
    NoRandomness(String),
}

/// How a key is written on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyForm {
    /// `Idempotency-Key: 8e03978e-40d5-43dd-bc93-6894a57f9324`, as deployed APIs take it.
    #[default]
    Bare,
    /// `Idempotency-Key: "8e03978e-40d5-43dd-bc93-6894a57f9324"`, a structured field, as
    /// draft-ietf-httpapi-idempotency-key-header-07 §2.1 has it.
    Quoted,
}

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
/// per key and answers a repeat from its record. It is the licence to repeat a POST whose answer was lost, so it must be true.
/// Without it a client is `KeyPolicy::standard().negotiated()`.
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
    pub(crate) form: KeyForm,
    pub(crate) max_length: usize,
    pub(crate) retention: Duration,
    pub(crate) in_progress: Option<String>,
    pub(crate) trust: Trust,
}

impl Default for KeyPolicy {
    /// [`KeyPolicy::standard`], [negotiated](KeyPolicy::negotiated).
    fn default() -> Self {
        Self::standard().negotiated()
    }
}

impl KeyPolicy {
    /// `Idempotency-Key`, bare, minted for POST and PATCH, at most 255 characters, honoured for 24 hours.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            header: HeaderName::from_static("idempotency-key"),
            methods: vec![Method::POST, Method::PATCH],
            form: KeyForm::Bare,
            max_length: 255,
            retention: Duration::from_secs(24 * 3600),
            in_progress: None,
            trust: Trust::Declared,
        }
    }

    /// Stripe's API v1: as [`standard`](Self::standard), for POST alone, and a 409 with `idempotency_key_in_use` means that the
    /// first attempt still runs (<https://docs.stripe.com/api/idempotent_requests>, <https://docs.stripe.com/error-codes>).
    #[must_use]
    pub fn stripe() -> Self {
        Self { methods: vec![Method::POST], ..Self::standard().in_progress_mark("idempotency_key_in_use") }
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
    /// What shows it, per origin, method and path: an `Idempotency-Status` or `Idempotent-Replayed` header, or the key echoed in
    /// the answer. The `scope` parameter of `Idempotency-Status` widens the path to a prefix. `Idempotency-Status: ignored`, or
    /// one 2xx answer to a keyed request without any sign, takes the trust back. Until then an ambiguous failure ends the
    /// operation as [`KeyNotTrusted`](crate::policy::StopReason::KeyNotTrusted).
    #[must_use]
    pub fn negotiated(mut self) -> Self {
        self.trust = Trust::Negotiated;
        self
    }

    /// The name of the header.
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = name;
        self
    }

    /// The methods that a key is minted for.
    #[must_use]
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.methods = methods.into_iter().collect();
        self
    }

    /// How the key is written on the wire.
    #[must_use]
    pub fn form(mut self, form: KeyForm) -> Self {
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
    pub fn in_progress_mark(mut self, word: impl Into<String>) -> Self {
        self.in_progress = Some(word.into());
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
        if self.retention.is_zero() { Err("retention is zero") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<String, KeyError> {
        text.parse::<IdempotencyKey>().map(|key| key.as_str().to_owned())
    }

    #[test]
    fn both_spellings_name_the_same_key() {
        assert_eq!(check("abc").unwrap(), "abc");
        assert_eq!(check("\"abc\"").unwrap(), "abc");
        assert_eq!(check(r#""a\"b\\c""#).unwrap(), r#"a"b\c"#);
        let key: IdempotencyKey = r#"a"b\c"#.parse().unwrap();
        assert_eq!(key.to_header(KeyForm::Quoted), r#""a\"b\\c""#);
        assert_eq!(IdempotencyKey::from_header(&key.to_header(KeyForm::Quoted)).unwrap(), key);
    }

    #[test]
    fn what_is_no_key() {
        assert_eq!(check(""), Err(KeyError::Empty));
        assert_eq!(check("\"\""), Err(KeyError::Empty));
        for text in ["a\nb", "a\tb", "a\0", "clé", " a", "a ", "\u{7f}"] {
            assert_eq!(check(text), Err(KeyError::Character), "{text:?}");
        }
        for text in ["\"", "\"a", "\"a\"b\"", r#""a\b""#, "\"a\";p=1", r#""\"a\"""#] {
            assert_eq!(check(text), Err(KeyError::Quotes), "{text:?}");
        }
    }

    #[test]
    fn a_minted_key_is_a_version_4_uuid_and_each_is_new() {
        let (one, two) = (IdempotencyKey::mint().unwrap(), IdempotencyKey::mint().unwrap());
        assert_ne!(one, two);
        let uuid = Uuid::parse_str(one.as_str()).unwrap();
        assert_eq!((uuid.get_version_num(), uuid.get_variant()), (4, uuid::Variant::RFC4122));
    }

    #[test]
    fn a_derived_key_is_the_version_5_uuid_of_the_rfc() {
        // RFC 9562, appendix A.4.
        let key = IdempotencyKey::derive(&Uuid::NAMESPACE_DNS, "www.example.com");
        assert_eq!(key.as_str(), "2ed6657d-e927-568b-95e1-2665a8aea6a2");
    }

    #[test]
    fn only_the_beginning_is_shown() {
        let minted = IdempotencyKey::mint().unwrap();
        assert_eq!(minted.to_string(), format!("{}…", &minted.as_str()[..8]));
        for (text, shown) in [("abc", "…"), ("abcdefgh", "ab…"), (&"x".repeat(255), "xxxxxxxx…")] {
            let key: IdempotencyKey = text.parse().unwrap();
            assert_eq!(key.to_string(), shown);
            assert_eq!(format!("{key:?}"), format!("IdempotencyKey({shown})"));
            assert!(!format!("{:?}", key.to_header(KeyForm::Bare)).contains(text));
        }
    }

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
        assert!(KeyPolicy::standard().retention(Duration::ZERO).validate().is_err());
        for policy in [KeyPolicy::standard(), KeyPolicy::stripe(), KeyPolicy::paypal(), KeyPolicy::default()] {
            assert!(policy.validate().is_ok());
        }
    }
}
