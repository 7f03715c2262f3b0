//! The idempotency key: one name for one logical operation, however often it is sent.
//!
//! A retried POST is safe only if the server can tell that it is the same one. The key says so: minted before the first attempt
//! from the operating system's randomness, the same on every attempt, new for the next operation. It is never taken from a
//! generator that lives in the process, because `fork` or a restored VM snapshot would clone that generator, and two charges
//! under one key are one silently lost payment.
//!
//! Floor 1: words shared with callers. The wire tests are in `tests/it/keys.rs`.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use bytes::Bytes;
use http::HeaderValue;
use serde::{Deserialize, Serialize};
use uuid::{Uuid, fmt::Hyphenated};

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
#[derive(Clone)]
pub struct IdempotencyKey {
    /// Bare, visible ASCII. A header value, so that sending it copies nothing.
    value: HeaderValue,
    minted: bool,
    /// How the caller has spelt it in a header. An API that takes the text as it comes would take another spelling for another key.
    spelling: Option<KeyFormat>,
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

    #[doc(hidden)]
    pub fn from_custom(uuid: Uuid) -> Self {
        Self::from_uuid(uuid, false)
    }

    fn of(value: HeaderValue, minted: bool) -> Self {
        Self { value, minted, spelling: None }
    }

    fn from_uuid(uuid: Uuid, minted: bool) -> Self {
        let mut text = [0; Hyphenated::LENGTH];
        uuid.hyphenated().encode_lower(&mut text);
        // With an owner, because bytes that are copied allocate once more when they are first cloned, and a key always is. Hex digits
        // and hyphens are always a header value.
        let value = HeaderValue::from_maybe_shared(Bytes::from_owner(text));
        Self::of(value.unwrap_or_else(|_| HeaderValue::from_static("")), minted)
    }

    /// The whole key, bare. Keep it out of logs and URLs.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.value.to_str().unwrap_or_default()
    }

    /// Reads a header value in either spelling: `abc`, or the structured field `"abc"`. It keeps to the one that it was read in.
    #[doc(hidden)]
    pub fn from_header(value: &HeaderValue) -> Result<Self, KeyError> {
        let text = value.to_str().map_err(|_| KeyError::Character)?;
        let spelling = if text.starts_with('"') { KeyFormat::Quoted } else { KeyFormat::Bare };
        Ok(Self { spelling: Some(spelling), ..text.parse()? })
    }

    /// The key as this form puts it on the wire, unless its caller has spelt it; marked as sensitive so that nobody's `Debug` prints it.
    #[doc(hidden)]
    pub fn to_header(&self, form: KeyFormat) -> HeaderValue {
        let mut value = match self.spelling.unwrap_or(form) {
            KeyFormat::Bare => self.value.clone(),
            KeyFormat::Quoted => {
                let escaped = self.as_str().replace('\\', r"\\").replace('"', "\\\"");
                HeaderValue::try_from(format!("\"{escaped}\"")).unwrap_or_else(|_| self.value.clone())
            }
        };
        value.set_sensitive(true);
        value
    }

    #[doc(hidden)]
    pub fn is_minted(&self) -> bool {
        self.minted
    }

    #[doc(hidden)]
    pub fn spelling(&self) -> Option<KeyFormat> {
        self.spelling
    }

    /// As [`FromStr`], for a key that was sent in an earlier process.
    #[doc(hidden)]
    pub fn restore(text: &str, minted: bool, spelling: Option<KeyFormat>) -> Result<Self, KeyError> {
        Ok(Self { minted, spelling, ..text.parse()? })
    }

    fn shown(&self) -> &str {
        let whole = self.as_str();
        let length = if self.minted { 8 } else { (whole.len() / 4).min(8) };
        whole.get(..length).unwrap_or_default()
    }
}

/// A key is its text: one that was stored and read back is the one that was minted.
impl PartialEq for IdempotencyKey {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Eq for IdempotencyKey {}

impl Hash for IdempotencyKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.value.hash(state);
    }
}

/// Takes a bare key or its quoted spelling (`"abc"`, RFC 9651 §3.3.3); both name the same key.
impl FromStr for IdempotencyKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let value = HeaderValue::try_from(bare(text)?.into_owned()).map_err(|_| KeyError::Character)?;
        Ok(Self::of(value, false))
    }
}

/// The key that a text in either spelling is; the text itself where that is how it is written, as on most wires.
#[doc(hidden)]
pub fn bare(text: &str) -> Result<Cow<'_, str>, KeyError> {
    let bare = if text.starts_with('"') { unquote(text).ok_or(KeyError::Quotes)?.into() } else { Cow::Borrowed(text) };
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
    Ok(bare)
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
    /// It is longer than the API takes ([`KeyPolicy::max_length`](https://docs.rs/steadfast/latest/steadfast/struct.KeyPolicy.html#method.max_length)).
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum KeyFormat {
    /// `Idempotency-Key: 8e03978e-40d5-43dd-bc93-6894a57f9324`, as deployed APIs take it.
    #[default]
    Bare,
    /// `Idempotency-Key: "8e03978e-40d5-43dd-bc93-6894a57f9324"`, a structured field, as
    /// draft-ietf-httpapi-idempotency-key-header-07 §2.1 has it.
    Quoted,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<String, KeyError> {
        text.parse::<IdempotencyKey>().map(|key| key.as_str().to_owned())
    }

    #[test]
    fn both_spellings_are_the_same_key() {
        assert_eq!(check("abc").unwrap(), "abc");
        assert_eq!(check("\"abc\"").unwrap(), "abc");
        assert_eq!(check(r#""a\"b\\c""#).unwrap(), r#"a"b\c"#);
        let key: IdempotencyKey = r#"a"b\c"#.parse().unwrap();
        assert_eq!(key.to_header(KeyFormat::Quoted), r#""a\"b\\c""#);
        assert_eq!(IdempotencyKey::from_header(&key.to_header(KeyFormat::Quoted)).unwrap(), key);
    }

    #[test]
    fn key_is_equal_however_made() {
        let minted = IdempotencyKey::mint().unwrap();
        let stored: IdempotencyKey = minted.as_str().parse().unwrap();
        assert_eq!(stored, minted);
        assert!(std::collections::HashSet::from([minted]).contains(&stored));
    }

    #[test]
    fn invalid_keys_are_refused() {
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
    fn minted_key_is_a_new_version_4_uuid() {
        let (one, two) = (IdempotencyKey::mint().unwrap(), IdempotencyKey::mint().unwrap());
        assert_ne!(one, two);
        let uuid = Uuid::parse_str(one.as_str()).unwrap();
        assert_eq!((uuid.get_version_num(), uuid.get_variant()), (4, uuid::Variant::RFC4122));
    }

    #[test]
    fn derived_key_is_version_5_uuid_of_rfc() {
        // RFC 9562, appendix A.4.
        let key = IdempotencyKey::derive(&Uuid::NAMESPACE_DNS, "www.example.com");
        assert_eq!(key.as_str(), "2ed6657d-e927-568b-95e1-2665a8aea6a2");
    }

    #[test]
    fn debug_shows_only_beginning() {
        let minted = IdempotencyKey::mint().unwrap();
        assert_eq!(minted.to_string(), format!("{}…", &minted.as_str()[..8]));
        for (text, shown) in [("abc", "…"), ("abcdefgh", "ab…"), (&"x".repeat(255), "xxxxxxxx…")] {
            let key: IdempotencyKey = text.parse().unwrap();
            assert_eq!(key.to_string(), shown);
            assert_eq!(format!("{key:?}"), format!("IdempotencyKey({shown})"));
            assert!(!format!("{:?}", key.to_header(KeyFormat::Bare)).contains(text));
        }
    }
}
