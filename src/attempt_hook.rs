//! Hooks that write headers of an attempt, last before the wire.
//!
//! A signature with a timestamp, and the trace context of a span, differ from attempt to attempt. A
//! closure around the client writes them once per operation: the retry then carries an old
//! signature. So the hooks run below the loop, for every request that is sent. They see the request
//! as it will be sent and can add headers to it, but cannot change what it asks for.

use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, RANGE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::checks::parse_header;
use crate::error::BoxError;
use crate::resume::SafeUrl;

/// Headers that say where a message goes, where it ends, what its body is and which response is
/// asked for. The names that begin with `if-` and the key's header belong to them.
const NOT_WRITABLE: [HeaderName; 10] = [
    HOST,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    CONNECTION,
    UPGRADE,
    EXPECT,
    RANGE,
    ACCEPT_ENCODING,
    CONTENT_ENCODING,
    CONTENT_TYPE,
];

pub(crate) type OnAttempt = Arc<dyn Fn(&mut AttemptHead<'_>) -> Result<(), BoxError> + Send + Sync>;

/// The head of one request, just before it is sent, as the argument of a
/// [hook](crate::ClientBuilder::on_attempt).
///
/// ```
/// use steadfast::Client;
///
/// let client = Client::builder().on_attempt(|head| {
///     let (path, length) = (head.url().path(), head.body()?.len());
///     let signature = format!("{} {path} {length}", head.method()); // your signature
///     head.insert("x-signature", signature)
/// });
/// ```
pub struct AttemptHead<'a> {
    pub(super) number: u32,
    pub(super) method: &'a Method,
    pub(super) url: &'a reqwest::Url,
    pub(super) body: Option<&'a [u8]>,
    pub(super) last: Option<&'a LastResponse>,
    pub(super) key_header: &'a HeaderName,
    pub(super) headers: &'a mut HeaderMap,
    /// Why a header could not be written. It ends the operation even if the hook ignores it.
    pub(super) refused: Option<String>,
}

/// The head of the response before this request.
#[derive(Clone, Debug)]
pub(super) struct LastResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
}

impl AttemptHead<'_> {
    /// Returns the number of the attempt, from 1. The redirects of an attempt have its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Returns the method of this request. After a 303 it is GET.
    #[must_use]
    pub fn method(&self) -> &Method {
        self.method
    }

    /// Returns the URL of this request, with its query. After a redirect it is the new address.
    #[must_use]
    pub fn url(&self) -> &reqwest::Url {
        self.url
    }

    /// Returns the bytes of the body, empty if there is none.
    ///
    /// # Errors
    ///
    /// The body is a stream, a file or a multipart form, so its bytes are not in memory. Sign such a
    /// request without its body, or send bytes.
    ///
    /// ```
    /// let client = steadfast::Client::builder().on_attempt(|head| {
    ///     let digest = match head.body() {
    ///         Ok(bytes) => format!("{} bytes", bytes.len()), // your hash function
    ///         Err(_) => "UNSIGNED-PAYLOAD".to_owned(),
    ///     };
    ///     head.insert("x-content-sha256", digest)
    /// });
    /// ```
    pub fn body(&self) -> Result<&[u8], BodyNotInMemory> {
        self.body.ok_or(BodyNotInMemory(()))
    }

    /// Returns status and headers of the last response of this operation, of an earlier attempt or
    /// of a redirect. Returns `None` if there was none.
    ///
    /// ```
    /// let client = steadfast::Client::builder().on_attempt(|head| {
    ///     let nonce = head.last_response().and_then(|(_, headers)| headers.get("dpop-nonce"));
    ///     let nonce = nonce.and_then(|nonce| nonce.to_str().ok()).unwrap_or("none yet");
    ///     head.insert("dpop", format!("a proof with {nonce}"))
    /// });
    /// ```
    #[must_use]
    pub fn last_response(&self) -> Option<(StatusCode, &HeaderMap)> {
        self.last.map(|last| (last.status, &last.headers))
    }

    /// Returns the headers of this request, with those of earlier hooks. What the HTTP client adds
    /// itself is not among them: `Content-Length`, and over TLS `Host` or `:authority`.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.headers
    }

    /// Sets a header of this request, in place of one of the same name. Its value is marked as
    /// sensitive.
    ///
    /// # Errors
    ///
    /// Name or value is invalid, or the header is one of those that no hook may write: the key's
    /// header, `Host`, `Content-Length`, `Transfer-Encoding`, `Connection`, `Upgrade`, `Expect`,
    /// `Range`, `If-*`, `Accept-Encoding`, `Content-Encoding` and `Content-Type`. The operation then
    /// ends, even if the hook returns `Ok`.
    pub fn insert<K, V>(&mut self, name: K, value: V) -> Result<(), BoxError>
    where
        K: TryInto<HeaderName>,
        K::Error: Display,
        V: TryInto<HeaderValue>,
        V::Error: Display,
    {
        let written = self.write(name, value);
        if let Err(reason) = &written {
            self.refused.get_or_insert_with(|| reason.clone());
        }
        written.map_err(BoxError::from)
    }

    fn write<K, V>(&mut self, name: K, value: V) -> Result<(), String>
    where
        K: TryInto<HeaderName>,
        K::Error: Display,
        V: TryInto<HeaderValue>,
        V::Error: Display,
    {
        let (name, mut value) = parse_header("a header", name, value).map_err(|error| error.in_short())?;
        if !is_writable(&name, self.key_header) {
            return Err(format!("a hook cannot write {name}"));
        }
        value.set_sensitive(true);
        self.headers.try_insert(name, value).map_err(|_| "there are more headers than a request can have")?;
        Ok(())
    }
}

// The values of headers, the query and the body may be secret.
impl fmt::Debug for AttemptHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttemptHead")
            .field("number", &self.number)
            .field("method", self.method)
            .field("url", &SafeUrl(self.url))
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// The error of [`AttemptHead::body`]: the body is a stream, a file or a form.
#[derive(Clone, Copy, Debug)]
pub struct BodyNotInMemory(());

impl fmt::Display for BodyNotInMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the request body is a stream, a file or a form, so its bytes cannot be signed: send bytes, or sign \
             without the body",
        )
    }
}

impl std::error::Error for BodyNotInMemory {}

/// Returns whether this client's user may write a header of each attempt.
pub(super) fn is_writable(name: &HeaderName, key_header: &HeaderName) -> bool {
    name != key_header && !NOT_WRITABLE.contains(name) && !name.as_str().starts_with("if-")
}

/// Runs the hooks in their order. The first that fails is the last that runs.
///
/// # Errors
///
/// A hook has returned an error, has panicked, or has written a header that it may not write.
pub(super) fn run(hooks: &[OnAttempt], head: &mut AttemptHead<'_>) -> Result<(), BoxError> {
    for hook in hooks {
        // The message of a panic may hold a secret, so it is not repeated here.
        let ran = catch_unwind(AssertUnwindSafe(|| hook(head)));
        ran.unwrap_or_else(|_panic| Err("it panicked".into()))?;
        if let Some(refused) = head.refused.take() {
            return Err(refused.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(hooks: &[OnAttempt]) -> (Result<(), String>, HeaderMap) {
        let mut headers: HeaderMap = [(HOST, HeaderValue::from_static("api.test"))].into_iter().collect();
        let url = "https://api.test/charges?q=s3cret".parse().unwrap();
        let mut head = AttemptHead {
            number: 1,
            method: &Method::POST,
            url: &url,
            body: None,
            last: None,
            key_header: &HeaderName::from_static("idempotency-key"),
            headers: &mut headers,
            refused: None,
        };
        let ran = run(hooks, &mut head).map_err(|error| error.to_string());
        assert!(!format!("{head:?}").contains("s3cret"), "{head:?}");
        (ran, headers)
    }

    fn hook(hook: impl Fn(&mut AttemptHead<'_>) -> Result<(), BoxError> + Send + Sync + 'static) -> OnAttempt {
        Arc::new(hook)
    }

    #[test]
    fn last_hook_sees_headers_of_all_others() {
        let first = hook(|head| head.insert("x-date", "s3cret-date"));
        let last = hook(|head| {
            let names: Vec<_> = head.headers().keys().map(HeaderName::to_string).collect();
            head.insert("x-signed", names.join(" "))
        });
        let (ran, headers) = check(&[first, last]);
        assert_eq!((ran, headers["x-signed"].to_str().unwrap()), (Ok(()), "host x-date"));
        assert!(headers["x-date"].is_sensitive());
    }

    #[test]
    fn framing_key_and_conditions_are_not_writable() {
        for name in [
            "idempotency-key",
            "Host",
            "Content-Length",
            "Transfer-Encoding",
            "Connection",
            "Upgrade",
            "Expect",
            "Range",
            "If-Match",
            "If-None-Match",
            "If-Range",
            "Accept-Encoding",
            "Content-Encoding",
            "Content-Type",
        ] {
            // It fails even if the hook ignores the error.
            let ignores = hook(move |head| {
                let _ignored = head.insert(name, "x");
                Ok(())
            });
            let never = hook(|_| panic!("no hook runs after that"));
            let (ran, headers) = check(&[ignores, never]);
            assert_eq!(ran, Err(format!("a hook cannot write {}", name.to_lowercase())));
            assert_eq!(headers.len(), 1);
        }
        let invalid = hook(|head| head.insert("x-a", "s3cret\n"));
        assert_eq!(check(&[invalid]).0, Err("a header: x-a: failed to parse header value".to_owned()));
    }

    #[test]
    fn failed_hook_names_no_secret() {
        assert_eq!(check(&[hook(|_| panic!("s3cret"))]).0, Err("it panicked".to_owned()));
        assert_eq!(check(&[hook(|_| Err("no key".into()))]).0, Err("no key".to_owned()));
        let reads = hook(|head| head.body().map(|_| ()).map_err(Into::into));
        assert!(check(&[reads]).0.unwrap_err().starts_with("the request body is a stream"));
    }
}
