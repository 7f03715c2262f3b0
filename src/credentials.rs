//! Credentials: a token, a password or an API key, and how a token is renewed.
//!
//! Tokens expire while operations run. A wrapper that meets a 401, gets a fresh token and posts
//! again has minted a second key, and after a lost response it charges twice. So the client renews
//! tokens itself, below the loop: the same operation goes again under the same key. Here is what
//! the user says; `refresh.rs` gets one token for all operations, and `steadfast-core` decides
//! whether an operation may go again.

mod refresh;
mod waiting;

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};

use super::checks::parse_header;
use crate::error::{BoxError, Error, Result};

pub(crate) use self::refresh::{Issued, NoToken, TokenNumber, TokenSource};

/// Default of [`Refreshing::timeout`].
const TIMEOUT: Duration = Duration::from_secs(30);

/// The credentials of a client, for every request to the origin of its
/// [base URL](crate::ClientBuilder::base_url).
///
/// `Debug` shows none of them.
///
/// ```
/// use steadfast::{Client, Credentials};
///
/// # fn example() -> steadfast::Result<()> {
/// let client = Client::builder()
///     .base_url("https://api.example.com")
///     .credentials(Credentials::basic("shop", "password"))
///     .build()?;
/// # drop(client);
/// # Ok(())
/// # }
/// # example().unwrap();
/// ```
pub struct Credentials(pub(super) Kind);

pub(super) enum Kind {
    Static(Result<(HeaderName, HeaderValue)>),
    Refreshing(Refreshing),
}

impl Credentials {
    /// Creates `Authorization: Bearer …` with a token that does not expire.
    pub fn bearer(token: impl Display) -> Self {
        Self::header(AUTHORIZATION, format!("Bearer {token}"))
    }

    /// Creates `Authorization: Basic …` (RFC 7617).
    pub fn basic(username: impl Display, password: impl Display) -> Self {
        let user = username.to_string();
        if user.contains(':') {
            return Self(Kind::Static(Err(Error::build("credentials", "a user name with a colon cannot be sent"))));
        }
        Self::header(AUTHORIZATION, format!("Basic {}", base64(format!("{user}:{password}").as_bytes())))
    }

    /// Creates an API key in a header.
    ///
    /// ```
    /// let credentials = steadfast::Credentials::header("x-api-key", "key");
    /// ```
    pub fn header<K, V>(name: K, value: V) -> Self
    where
        K: TryInto<HeaderName>,
        K::Error: Display,
        V: TryInto<HeaderValue>,
        V::Error: Display,
    {
        Self(Kind::Static(parse_header("credentials", name, value)))
    }
}

impl From<Refreshing> for Credentials {
    fn from(refreshing: Refreshing) -> Self {
        Self(Kind::Refreshing(refreshing))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Static(Ok((name, _))) => f.debug_tuple("Credentials").field(name).finish(),
            Kind::Static(Err(error)) => f.debug_tuple("Credentials").field(error).finish(),
            Kind::Refreshing(refreshing) => refreshing.fmt(f),
        }
    }
}

/// Why the client asks for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Why {
    /// There is no token yet.
    First,
    /// The last token expires soon, or has expired.
    Expiring,
    /// The server has refused the last token (401). A token from your cache would be refused again.
    Refused,
}

/// A token, as your closure returns it.
///
/// A `String` and a `&str` convert into a token of which no lifetime is known. `Debug` does not
/// show its value.
///
/// ```
/// use std::time::Duration;
/// use steadfast::Token;
///
/// let token = Token::new("eyJhbGciOi…").expires_in(Duration::from_secs(3600));
/// assert!(!format!("{token:?}").contains("eyJ"));
/// ```
#[derive(Clone)]
pub struct Token {
    value: String,
    expires_in: Option<Duration>,
    principal: Option<String>,
}

impl Token {
    /// Creates a token with this value, without a lifetime. It is used until the server refuses it.
    pub fn new(value: impl Into<String>) -> Self {
        Self { value: value.into(), expires_in: None, principal: None }
    }

    /// Sets how long the token is valid from now, as `expires_in` of OAuth 2.0 says it (RFC 6749
    /// §5.1). Default: `None`, not known.
    #[must_use]
    pub fn expires_in(mut self, lifetime: impl Into<Option<Duration>>) -> Self {
        self.expires_in = lifetime.into();
        self
    }

    /// Sets the name of the user or account that the token speaks for. Default: none.
    ///
    /// A repeat with the token of somebody else is another operation. If the name changes, the
    /// operations that were sent under the earlier name end with an error. Operations that begin
    /// afterwards use the new token.
    #[must_use]
    pub fn principal(mut self, name: impl Into<String>) -> Self {
        self.principal = Some(name.into());
        self
    }
}

impl From<String> for Token {
    fn from(value: String) -> Self {
        Self::new(value)
    }
}

impl From<&str> for Token {
    fn from(value: &str) -> Self {
        Self::new(value)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

type Fetching = Pin<Box<dyn Future<Output = std::result::Result<Token, BoxError>> + Send>>;

/// A token that a closure of yours gets, and gets again before it expires.
///
/// One refresh runs at a time, for all operations of the client and its clones. Your closure runs
/// when
///
/// * an operation needs a token and there is none,
/// * the token expires within the [`margin`](Self::margin),
/// * the server has refused the token with a 401. The operation then goes [again
///   once](crate::policy::RetryPolicy#fresh-tokens), under the same key. A token that was refused is
///   not sent again.
///
/// While a valid token is renewed, one operation waits for it, and the others use the valid one. A
/// refresh that fails is one error for all operations that wait
/// ([`ErrorKind::Credentials`](crate::ErrorKind::Credentials)). The next one starts after a pause: 1
/// s, doubled with each failure up to 30 s, and up to half as much again by chance. Until then
/// operations without a valid token end with the same error.
///
/// There is no background task. The operations that wait drive the refresh, and if they are all
/// dropped, the next one drives it on. So a refresh token that can be used once is not lost.
///
/// Your closure must not use this client for the same origin: the request would wait for its own
/// token.
///
/// ```
/// use std::time::Duration;
/// use steadfast::{Client, Refreshing, Token, Why};
///
/// # async fn ask_the_identity_provider() -> Result<(String, u64), std::io::Error> { unreachable!() }
/// # fn example() -> steadfast::Result<()> {
/// let tokens = Refreshing::bearer(|_why: Why| async move {
///     let (token, seconds) = ask_the_identity_provider().await?;
///     Ok::<_, std::io::Error>(Token::new(token).expires_in(Duration::from_secs(seconds)))
/// });
/// let client = Client::builder().base_url("https://api.example.com").credentials(tokens).build()?;
/// # drop(client);
/// # Ok(())
/// # }
/// # example().unwrap();
/// ```
pub struct Refreshing {
    header: Result<HeaderName>,
    /// The word before the token, with its space.
    scheme: Cow<'static, str>,
    fetch: Arc<dyn Fn(Why) -> Fetching + Send + Sync>,
    margin: Option<Duration>,
    timeout: Duration,
}

impl Refreshing {
    /// Creates `Authorization: Bearer …` (RFC 6750) from a closure that gets a token.
    pub fn bearer<F, R, T, E>(fetch: F) -> Self
    where
        F: Fn(Why) -> R + Send + Sync + 'static,
        R: Future<Output = std::result::Result<T, E>> + Send + 'static,
        T: Into<Token>,
        E: Into<BoxError>,
    {
        Self::new(Ok(AUTHORIZATION), "Bearer ".into(), fetch)
    }

    /// Creates `Authorization` with another scheme, such as `DPoP` (RFC 9449), from a closure that
    /// gets a token.
    ///
    /// ```
    /// use steadfast::{Refreshing, Why};
    ///
    /// # async fn token() -> Result<String, std::io::Error> { unreachable!() }
    /// let tokens = Refreshing::with_scheme("DPoP", |_: Why| token());
    /// ```
    pub fn with_scheme<F, R, T, E>(scheme: &str, fetch: F) -> Self
    where
        F: Fn(Why) -> R + Send + Sync + 'static,
        R: Future<Output = std::result::Result<T, E>> + Send + 'static,
        T: Into<Token>,
        E: Into<BoxError>,
    {
        Self::new(Ok(AUTHORIZATION), format!("{scheme} ").into(), fetch)
    }

    /// Creates a header of another name, whose value is the token alone, from a closure that gets
    /// a token.
    ///
    /// ```
    /// use steadfast::{Refreshing, Why};
    ///
    /// # async fn token() -> Result<String, std::io::Error> { unreachable!() }
    /// let tokens = Refreshing::in_header("x-access-token", |_: Why| token());
    /// ```
    pub fn in_header<N, F, R, T, E>(name: N, fetch: F) -> Self
    where
        N: TryInto<HeaderName>,
        N::Error: Display,
        F: Fn(Why) -> R + Send + Sync + 'static,
        R: Future<Output = std::result::Result<T, E>> + Send + 'static,
        T: Into<Token>,
        E: Into<BoxError>,
    {
        Self::new(name.try_into().map_err(|error| Error::build("credentials", error)), "".into(), fetch)
    }

    fn new<F, R, T, E>(header: Result<HeaderName>, scheme: Cow<'static, str>, fetch: F) -> Self
    where
        F: Fn(Why) -> R + Send + Sync + 'static,
        R: Future<Output = std::result::Result<T, E>> + Send + 'static,
        T: Into<Token>,
        E: Into<BoxError>,
    {
        let fetch = move |why| -> Fetching {
            let fetching = fetch(why);
            Box::pin(async move { fetching.await.map(Into::into).map_err(Into::into) })
        };
        Self { header, scheme, fetch: Arc::new(fetch), margin: None, timeout: TIMEOUT }
    }

    /// Sets how long before its end a token is renewed. Default: 60 s, or a tenth of its lifetime if
    /// that is less.
    ///
    /// By chance it is up to half as much again, so that many processes do not renew their tokens
    /// at once. It is never more than half of the lifetime.
    #[must_use]
    pub fn margin(mut self, margin: Duration) -> Self {
        self.margin = Some(margin);
        self
    }

    /// Sets the time limit of one refresh. Default: 30 s. It passes while operations wait, and ends
    /// the refresh as a failure. Each operation also has its own
    /// [`timeout`](crate::ClientBuilder::timeout), which counts the refresh. The
    /// [`attempt_timeout`](crate::ClientBuilder::attempt_timeout) does not.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Checks the settings.
    pub(super) fn into_source(self) -> Result<TokenSource> {
        let Self { header, scheme, fetch, margin, timeout } = self;
        if timeout.is_zero() {
            return Err(Error::build("credentials", "a timeout of zero leaves no time for a refresh"));
        }
        HeaderValue::try_from(&*scheme).map_err(|error| Error::build("credentials", format!("scheme: {error}")))?;
        Ok(TokenSource::new(header?, scheme, fetch, margin, timeout))
    }
}

impl fmt::Debug for Refreshing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refreshing")
            .field("margin", &self.margin)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Encodes bytes by RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let sextet = usize::try_from(bits >> (18 - 6 * at) & 63).unwrap_or_default();
            let is_padding = usize::try_from(at).is_ok_and(|at| at > chunk.len());
            text.push(if is_padding { '=' } else { char::from(ALPHABET[sextet]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test vectors of RFC 4648 §10 and RFC 7617 §2.
    #[test]
    fn base64_agrees_with_the_standard() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("do", "ZG8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
            ("Aladdin:open sesame", "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn debug_shows_no_credential() {
        let refreshing = Refreshing::bearer(|_| async { Ok::<_, BoxError>("s3cret") });
        for shown in [
            format!("{:?}", Credentials::bearer("s3cret")),
            format!("{:?}", Credentials::basic("s3cret", "s3cret")),
            format!("{:?}", Credentials::basic("s3cret:", "s3cret")),
            format!("{:?}", Credentials::header("x-api-key", "s3cret\n")),
            format!("{refreshing:?} {:?}", Token::new("s3cret").principal("s3cret")),
        ] {
            assert!(!shown.contains("s3cret") && !shown.contains("czNj"), "{shown}");
        }
    }
}
