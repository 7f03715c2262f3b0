//! Resuming an operation whose outcome is unknown, in another process or on another day.
//!
//! After an operation without a response, only the key can tell "charged" from "not charged". The
//! client sends the same request again under the same key. The server then replays its stored
//! response, or acts now, once. That holds only while the server remembers the key, and only for
//! the same request. A token has all that is needed to check both.
//!
//! It has types of the public API. Of the other modules it imports only `policy` and those with
//! such types (the list is in `lib.rs`).

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::key::{IdempotencyKey, KeyError, KeyFormat};
use crate::policy::milliseconds;

/// All that is needed to resume an operation: its key, the time of its first attempt, and a digest
/// of its request.
///
/// [`Error::resume_token`](crate::Error::resume_token) returns one, and
/// [`RequestBuilder::resume`](crate::RequestBuilder::resume) takes it. It serialises with serde.
/// Store it beside the business data that it belongs to. It has the *whole* key, and no
/// credentials, query or body.
///
/// ```no_run
/// use serde_json::{Value, json};
/// use steadfast::{Client, ResumeToken};
///
/// # fn save(_: String) {}
/// # fn load() -> String { String::new() }
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let url = "https://api.example.com/charges";
/// let charge = json!({ "amount": 1200 });
/// if let Err(error) = client.post_json::<Value>(url, &charge).await
///     && let Some(token) = error.resume_token()
/// {
///     save(serde_json::to_string(token)?);
/// }
///
/// // Later, perhaps in another process: the same request under the same key.
/// let token: ResumeToken = serde_json::from_str(&load())?;
/// let charged: Value = client.post(url).json(&charge).resume(token).fetch().await?;
/// # drop(charged);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeToken {
    key: String,
    minted: bool,
    /// How the caller has written it in a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spelling: Option<KeyFormat>,
    /// Milliseconds since the Unix epoch.
    first_sent_ms: u64,
    method: String,
    /// Without user information, query and fragment.
    target: String,
    /// UUID v5 over query and body; `None` if the body was a stream.
    digest: Option<Uuid>,
    may_have_been_processed: bool,
}

/// The parts of a request that a token compares.
pub(crate) struct Identity<'a> {
    pub(crate) method: &'a Method,
    pub(crate) url: &'a reqwest::Url,
    /// `None` for a stream, which cannot be compared.
    pub(crate) body: Option<&'a [u8]>,
}

impl Identity<'_> {
    fn target(&self) -> String {
        SafeUrl(self.url).to_string()
    }

    fn digest(&self) -> Option<Uuid> {
        let body = self.body?;
        let query = self.url.query().unwrap_or_default();
        let mut content = Vec::with_capacity(query.len() + 1 + body.len());
        content.extend_from_slice(query.as_bytes());
        content.push(0);
        content.extend_from_slice(body);
        Some(Uuid::new_v5(&Uuid::NAMESPACE_URL, &content))
    }
}

impl ResumeToken {
    pub(crate) fn new(
        key: &IdempotencyKey,
        first_sent: SystemTime,
        identity: &Identity<'_>,
        may_have_been_processed: bool,
    ) -> Self {
        let since_epoch = first_sent.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            key: key.as_str().to_owned(),
            minted: key.is_minted(),
            spelling: key.spelling(),
            first_sent_ms: milliseconds(since_epoch),
            method: identity.method.as_str().to_owned(),
            target: identity.target(),
            digest: identity.digest(),
            may_have_been_processed,
        }
    }

    /// Returns the operation's key.
    ///
    /// # Errors
    ///
    /// The token was changed where it was stored.
    pub fn key(&self) -> Result<IdempotencyKey, KeyError> {
        IdempotencyKey::restore(&self.key, self.minted, self.spelling)
    }

    /// Returns when the first attempt was sent, by the wall clock of the process that sent it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast::ResumeToken;
    ///
    /// fn is_worth_a_try(token: &ResumeToken) -> bool {
    ///     token.first_sent().elapsed().is_ok_and(|age| age < Duration::from_secs(3600))
    /// }
    /// ```
    #[must_use]
    pub fn first_sent(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_millis(self.first_sent_ms)).unwrap_or(UNIX_EPOCH)
    }

    /// Returns whether the server may have acted on an attempt so far.
    #[must_use]
    pub fn may_have_been_processed(&self) -> bool {
        self.may_have_been_processed
    }

    /// Checks that the server still remembers the key, and that the request is the same. An error
    /// names the reason.
    pub(crate) fn check(
        &self,
        now: SystemTime,
        retention: Duration,
        identity: &Identity<'_>,
    ) -> Result<(), &'static str> {
        match age_at(self.first_sent(), now) {
            None => {
                return Err("the clock went backwards since the first attempt, so the age of the key is not known");
            }
            Some(age) if age >= usable(retention) => return Err("the server may have forgotten the key by now"),
            Some(_) => {}
        }
        if self.method != identity.method.as_str() || self.target != identity.target() {
            return Err("the token belongs to a request with another method or target");
        }
        match (self.digest, identity.digest()) {
            (Some(sent), Some(now)) if sent == now => Ok(()),
            (Some(_), Some(_)) => Err("the token belongs to a request with another query or body"),
            // With `idempotency_key`, which checks nothing, a caller who knows the stream can
            // repeat it.
            _ => Err("a streaming body cannot be compared with the one that was sent"),
        }
    }
}

/// How far the clocks of two hosts may be apart, or one clock before and after it was set.
const SKEW: Duration = Duration::from_secs(30);

/// Returns the age of a key at `now`, by the wall clock alone. `None` if the clock cannot tell.
///
/// A key from the future counts as sent now. A clock that is off by a second one way may be off by
/// a second the other way. So the time ahead counts as age, which shortens the retention. Over 30 s
/// the clock says nothing.
pub(crate) fn age_at(first_sent: SystemTime, now: SystemTime) -> Option<Duration> {
    match now.duration_since(first_sent) {
        Ok(age) => Some(age),
        Err(ahead) => Some(ahead.duration()).filter(|ahead| *ahead <= SKEW),
    }
}

/// Returns the age of a key while its operation runs. The age was `at_start` when the operation
/// began, `running` ago by the steady clock.
///
/// The wall clock may be set back, and the steady clock stands still while the machine sleeps. So
/// the greater age counts.
pub(crate) fn age_after(at_start: Duration, running: Duration, first_sent: SystemTime, now: SystemTime) -> Duration {
    let by_wall = now.duration_since(first_sent).unwrap_or_default();
    at_start.saturating_add(running).max(by_wall)
}

/// Returns for how long a key can be relied on: 95 % of the retention. The server may forget the
/// key a little early, and the clocks differ.
#[must_use]
pub fn usable(retention: Duration) -> Duration {
    retention - retention / 20
}

impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumeToken")
            .field("key", &self.key().ok())
            .field("first_sent", &self.first_sent())
            .field("method", &self.method)
            .field("target", &self.target)
            .field("may_have_been_processed", &self.may_have_been_processed)
            .finish_non_exhaustive()
    }
}

/// A URL that is printed without its secret parts: user information, query and fragment.
#[derive(Clone, Copy)]
pub(crate) struct SafeUrl<'a>(pub(crate) &'a reqwest::Url);

impl fmt::Display for SafeUrl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme(), self.0.host_str().unwrap_or_default())?;
        if let Some(port) = self.0.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(self.0.path())
    }
}

/// Returns the text of another crate's error without the secret parts of the URLs in it.
pub(crate) fn without_queries(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>');
        let (url, tail) = after.split_at(after.find(ends).unwrap_or(after.len()));
        let public = url.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = public.split_at(public.find('/').unwrap_or(public.len()));
        let host = authority.rsplit('@').next().unwrap_or_default();
        shown.extend([before, host, path]);
        // reqwest puts URLs in parentheses.
        if public.len() < url.len() && url.ends_with(')') {
            shown.push(')');
        }
        rest = tail;
    }
    shown.push_str(rest);
    shown
}

impl fmt::Debug for SafeUrl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_lose_secret_parts_of_urls() {
        for (text, shown) in [
            ("no URL here", "no URL here"),
            ("for url (https://u:p@a.x/b/c?sig=1&x=(2)#f)", "for url (https://a.x/b/c)"),
            ("for url (https://a.x/)", "for url (https://a.x/)"),
            ("see http://a.x?q=1 and \"https://b.x/#f\"", "see http://a.x and \"https://b.x/\""),
            ("at https://u@a.x", "at https://a.x"),
        ] {
            assert_eq!(without_queries(text), shown);
        }
    }

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn check(age: i64, retention: Duration, method: &Method, url: &str, body: Option<&[u8]>) -> String {
        let key = "order-1042-charge".parse().unwrap();
        let sent_url = "https://me:pw@api.example.com/v1/charges?expand=a".parse().unwrap();
        let sent = Identity { method: &Method::POST, url: &sent_url, body: Some(b"{}") };
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let first_sent = if age < 0 {
            now + Duration::from_secs(age.unsigned_abs())
        } else {
            now - Duration::from_secs(age.unsigned_abs())
        };
        let token = ResumeToken::new(&key, first_sent, &sent, true);
        let stored = serde_json::to_string(&token).unwrap();
        assert!(!stored.contains("expand") && !stored.contains("pw"), "{stored}");
        let token: ResumeToken = serde_json::from_str(&stored).unwrap();
        assert_eq!(token.key().unwrap(), key);
        let url = url.parse().unwrap();
        token.check(now, retention, &Identity { method, url: &url, body }).err().unwrap_or("ok").to_owned()
    }

    #[test]
    fn same_request_within_retention_is_resumed() {
        let url = "https://api.example.com/v1/charges?expand=a";
        assert_eq!(check(3600, DAY, &Method::POST, url, Some(b"{}")), "ok");
        assert_eq!(check(0, DAY, &Method::POST, url, Some(b"{}")), "ok");
        assert!(check(23 * 3600, DAY, &Method::POST, url, Some(b"{}")).contains("forgotten"), "inside the margin");
    }

    #[test]
    fn token_up_to_30_s_ahead_counts_as_sent_now() {
        let url = "https://api.example.com/v1/charges?expand=a";
        let check = |age, retention| check(age, retention, &Method::POST, url, Some(b"{}"));
        assert_eq!(check(-1, DAY), "ok");
        assert_eq!(check(-30, DAY), "ok");
        assert!(check(-31, DAY).contains("backwards"));
        // 19 s of 20 s are usable, and as much less as the token is ahead.
        let short = Duration::from_secs(20);
        assert_eq!(check(-18, short), "ok");
        assert!(check(-19, short).contains("forgotten"));
    }

    #[test]
    fn clock_set_back_does_not_make_keys_younger() {
        let first_sent = UNIX_EPOCH + DAY;
        let second = Duration::from_secs(1);
        let age = |at_start, running, now| age_after(at_start, running, first_sent, now).as_secs();
        assert_eq!(age(Duration::ZERO, 5 * second, first_sent + 5 * second), 5);
        assert_eq!(age(Duration::ZERO, 5 * second, first_sent - second), 5, "set back after the first attempt");
        assert_eq!(age(3 * second, 5 * second, first_sent - second), 8, "and resumed before that");
        assert_eq!(age(Duration::ZERO, 5 * second, first_sent + DAY), 24 * 3600, "the machine has slept");
    }

    #[test]
    fn another_request_is_not_resumed() {
        let url = "https://api.example.com/v1/charges?expand=a";
        assert!(check(0, DAY, &Method::PATCH, url, Some(b"{}")).contains("method or target"));
        assert!(
            check(0, DAY, &Method::POST, "https://api.example.com/v1/refunds?expand=a", Some(b"{}")).contains("target")
        );
        assert!(
            check(0, DAY, &Method::POST, "https://evil.example.com/v1/charges?expand=a", Some(b"{}"))
                .contains("target")
        );
        assert!(
            check(0, DAY, &Method::POST, "https://api.example.com/v1/charges", Some(b"{}")).contains("query or body")
        );
        assert!(check(0, DAY, &Method::POST, url, Some(b"{ }")).contains("query or body"));
        assert!(check(0, DAY, &Method::POST, url, None).contains("streaming body"));
    }

    #[test]
    fn debug_hides_key_and_query() {
        let url = "https://api.example.com/v1?token=s3cret".parse().unwrap();
        let identity = Identity { method: &Method::POST, url: &url, body: None };
        let key = IdempotencyKey::mint().unwrap();
        let shown = format!("{:?}", ResumeToken::new(&key, UNIX_EPOCH, &identity, false));
        assert!(!shown.contains(key.as_str()) && !shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("https://api.example.com/v1"), "{shown}");
    }
}
