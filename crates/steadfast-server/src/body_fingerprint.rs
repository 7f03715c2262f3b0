//! The part of a request's body that tells the request from another one.
//!
//! By default that is every byte. Some clients write a repeat anew: with its members in another
//! order, with the time or the number of the attempt. Some senders of webhooks change an event
//! between two deliveries. Their repeats would be refused as other requests, until the sender gives
//! up.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;

use super::json::Json;
use super::store::Fingerprint;

type Read = Arc<dyn Fn(&Parts, &Bytes) -> Bytes + Send + Sync>;

/// What of a body belongs to the fingerprint of its request, for
/// [`IdempotencyLayer::fingerprint_body`](crate::IdempotencyLayer::fingerprint_body) and
/// [`WebhookLayer::fingerprint_body`](crate::WebhookLayer::fingerprint_body).
///
/// **The layer replays a stored response to every request that it takes for the same.** Leave out
/// only what cannot change the meaning of the request.
///
/// ```
/// use axum::{Router, body::Body, http::Request, routing::post};
/// use steadfast_server::{BodyFingerprint, IdempotencyLayer, MemoryStore, Scope};
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller())
///     .fingerprint_body(BodyFingerprint::ignore_fields(["sent_at"]));
/// let app: Router = Router::new().route("/charges", post(async || "charged")).layer(layer);
/// let charge = |body: &'static str| {
///     Request::post("/charges").header("idempotency-key", "1").body(Body::from(body))
/// };
/// app.clone().oneshot(charge(r#"{"amount":10,"sent_at":1}"#)?).await?;
/// let repeat = app.clone().oneshot(charge(r#"{ "sent_at": 2, "amount": 10 }"#)?).await?;
/// assert_eq!(repeat.headers()["idempotent-replayed"], "true");
/// let other = app.oneshot(charge(r#"{"amount":20,"sent_at":3}"#)?).await?;
/// assert_eq!(other.status(), 422);
/// # Ok(())
/// # }
/// ```
///
/// # A changed setting
///
/// The setting is part of the fingerprint: its kind, the ignored fields, the name of a closure. So
/// records that were written under another setting never match by chance. A repeat of an operation
/// that was recorded before the change is refused with 422, and nothing runs twice. This lasts for
/// the retention at most. A change from the default, or back to it, has the same effect.
#[derive(Clone)]
pub struct BodyFingerprint(Kind);

#[derive(Clone)]
enum Kind {
    Exact,
    /// Canonical JSON without the values at these pointers, which are sorted.
    Json(Arc<[String]>),
    Nothing,
    Custom {
        name: Arc<str>,
        read: Read,
    },
}

impl BodyFingerprint {
    /// Compares every byte. This is the default.
    #[must_use]
    pub fn exact() -> Self {
        Self(Kind::Exact)
    }

    /// Compares JSON by its values: the order of members, white space and the spelling of strings
    /// and numbers do not count.
    ///
    /// It equates what RFC 8785 equates, except for numbers. Those are compared exactly and not as
    /// doubles, so `9007199254740992` and `9007199254740993` differ, and `1` and `1.0` are equal.
    ///
    /// The `Content-Type` does not count. A body that is no JSON, nests deeper than 128 levels, or
    /// has an object with two members of one name is compared byte by byte. (Members that are
    /// [ignored](Self::ignore_fields) do not count.)
    #[must_use]
    pub fn canonical_json() -> Self {
        Self::ignore_fields([] as [&str; 0])
    }

    /// Compares JSON as [`canonical_json`](Self::canonical_json) does, without these fields.
    ///
    /// A field is a name at the top level, or a JSON Pointer (RFC 6901) such as
    /// `/meta/sent_at` or `/items/0/attempt`.
    ///
    /// ```
    /// use steadfast_server::BodyFingerprint;
    ///
    /// let body = BodyFingerprint::ignore_fields(["attempt", "/meta/sent_at"]);
    /// let first = br#"{"id":7,"attempt":1,"meta":{"sent_at":"10:00"}}"#;
    /// let second = br#"{"id":7,"attempt":2,"meta":{"sent_at":"10:05"}}"#;
    /// assert_eq!(body.of_payload(&first[..]), body.of_payload(&second[..]));
    /// ```
    #[must_use]
    pub fn ignore_fields<F: AsRef<str>>(fields: impl IntoIterator<Item = F>) -> Self {
        let mut pointers: Vec<_> = fields.into_iter().map(|field| pointer(field.as_ref())).collect();
        pointers.sort();
        pointers.dedup();
        Self(Kind::Json(pointers.into()))
    }

    /// Compares no body at all: the key, or the event's id, says everything.
    ///
    /// If a client uses a key twice, the second request gets the first one's response. If two
    /// events have one id, the second is never handled. Choose this only if the sender guarantees
    /// unique ids.
    #[must_use]
    pub fn ignore_body() -> Self {
        Self(Kind::Nothing)
    }

    /// Compares the bytes that a closure returns for the request's head and body.
    ///
    /// `name` is part of the fingerprint. **Give the closure another name whenever you change what
    /// it returns**, such as `order-v2` after `order-v1`. Otherwise the new result for one request
    /// can equal the old one for another, whose response would be replayed.
    ///
    /// The closure runs for each request with a key, before the key is claimed. Different requests
    /// must get different bytes: put lengths or separators between joined parts.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use steadfast_server::BodyFingerprint;
    ///
    /// // The API's version is in a header, and changes the meaning of the body.
    /// let body = BodyFingerprint::from_fn("api-version-v1", |parts, body| {
    ///     let version = parts.headers.get("api-version").map_or(&b""[..], |v| v.as_bytes());
    ///     Bytes::from([version, b"\n", body].concat())
    /// });
    /// ```
    #[must_use]
    pub fn from_fn(name: impl Into<String>, read: impl Fn(&Parts, &Bytes) -> Bytes + Send + Sync + 'static) -> Self {
        Self(Kind::Custom { name: name.into().into(), read: Arc::new(read) })
    }

    /// Returns the fingerprint of an event's payload, for
    /// [`Inbox::process`](crate::Inbox::process). A [`WebhookLayer`](crate::WebhookLayer) with this
    /// setting gives the event the same one.
    ///
    /// A closure of [`from_fn`](Self::from_fn) gets the head of an empty request.
    ///
    /// ```
    /// use steadfast_server::{BodyFingerprint, Delivery, Inbox, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let inbox = Inbox::new(MemoryStore::new());
    /// let body = BodyFingerprint::ignore_fields(["attempt"]);
    /// for (attempt, expected) in [(1, Delivery::Handled(())), (2, Delivery::AlreadyHandled)] {
    ///     let payload = body.of_payload(format!(r#"{{"order":7,"attempt":{attempt}}}"#));
    ///     let handled =
    ///         inbox.process("mail", "evt_1", payload, |_| async { Ok::<_, std::io::Error>(()) });
    ///     assert_eq!(handled.await?, expected);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn of_payload(&self, payload: impl AsRef<[u8]>) -> Fingerprint {
        let (parts, ()) = http::Request::new(()).into_parts();
        self.of_event(&parts, &Bytes::copy_from_slice(payload.as_ref()))
    }

    pub(super) fn of_event(&self, parts: &Parts, body: &Bytes) -> Fingerprint {
        match self.read(parts, body) {
            None => Fingerprint::of(body),
            Some(Compared { setting, content }) => Fingerprint::of_parts([setting.as_bytes(), &content]),
        }
    }

    /// Returns what is compared. `None` for the body as it is, without a trace of the setting.
    pub(super) fn read(&self, parts: &Parts, body: &Bytes) -> Option<Compared> {
        let (setting, content) = match &self.0 {
            Kind::Exact => return None,
            Kind::Nothing => (Cow::Borrowed("none"), Bytes::new()),
            Kind::Custom { name, read } => (Cow::Owned(format!("custom {name}")), read(parts, body)),
            Kind::Json(ignored) => match canonical(body, ignored) {
                // A pointer begins with a slash, so no list looks like another one.
                Some(json) => (Cow::Owned(format!("json {}", ignored.join("\0"))), json.into()),
                None => (Cow::Borrowed("bytes"), body.clone()),
            },
        };
        Some(Compared { setting, content })
    }
}

/// What is compared of a body.
pub(super) struct Compared {
    /// Keeps the records of different settings apart.
    pub(super) setting: Cow<'static, str>,
    pub(super) content: Bytes,
}

fn canonical(body: &Bytes, ignored: &[String]) -> Option<Vec<u8>> {
    let mut json = Json::read(body)?;
    for pointer in ignored {
        json.remove(pointer);
    }
    json.canonical()
}

/// Returns the pointer to a field.
fn pointer(field: &str) -> String {
    if field.starts_with('/') {
        return field.to_owned();
    }
    format!("/{}", field.replace('~', "~0").replace('/', "~1"))
}

impl fmt::Debug for BodyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Exact => f.write_str("exact"),
            Kind::Json(ignored) => write!(f, "JSON without {ignored:?}"),
            Kind::Nothing => f.write_str("nothing"),
            Kind::Custom { name, .. } => write!(f, "closure {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_different_settings_never_match() {
        let custom = |name: &str, found: &'static str| BodyFingerprint::from_fn(name, move |_, _| Bytes::from(found));
        let all = [
            BodyFingerprint::exact(),
            BodyFingerprint::canonical_json(),
            BodyFingerprint::ignore_fields(["a"]),
            BodyFingerprint::ignore_fields(["b"]),
            BodyFingerprint::ignore_fields(["a", "b"]),
            BodyFingerprint::ignore_fields(["a/b"]),
            BodyFingerprint::ignore_body(),
            custom("v1", ""),
            custom("v2", ""),
            custom("v1", "{}"),
        ];
        // Every setting compares the same bytes of this body, or none.
        for (index, one) in all.iter().enumerate() {
            for other in all.iter().skip(index + 1) {
                assert_ne!(one.of_payload("{}"), other.of_payload("{}"), "{one:?} and {other:?}");
            }
        }
        let ordered = BodyFingerprint::ignore_fields(["b", "a", "b"]);
        assert_eq!(ordered.of_payload("{}"), BodyFingerprint::ignore_fields(["/a", "/b"]).of_payload("{}"));
    }

    #[test]
    fn only_ignored_fields_may_change() {
        let body = BodyFingerprint::ignore_fields(["attempt", "/meta/sent_at"]);
        let first = body.of_payload(r#"{"id":1,"attempt":1,"meta":{"sent_at":1,"by":"a"}}"#);
        for (text, is_same) in [
            (r#"{"meta":{"by":"a","sent_at":2},"attempt":2,"id":1}"#, true),
            (r#"{"id":1,"meta":{"by":"a"}}"#, true),
            (r#"{"id":2,"attempt":1,"meta":{"sent_at":1,"by":"a"}}"#, false),
            (r#"{"id":1,"attempt":1,"meta":{"sent_at":1,"by":"b"}}"#, false),
            (r#"{"id":1,"attempt":1}"#, false),
            (r#"{"id":1,"sent_at":1,"meta":{"by":"a"}}"#, false),
        ] {
            assert_eq!(body.of_payload(text) == first, is_same, "{text}");
        }
    }

    #[test]
    fn what_is_no_json_is_compared_exactly() {
        let body = BodyFingerprint::canonical_json();
        for (one, other) in [("a=1&b=2", "b=2&a=1"), (r#"{"a":1,"a":2}"#, r#"{"a":2,"a":2}"#), ("", "{}"), ("{", "{ ")]
        {
            assert_eq!(body.of_payload(one), body.of_payload(one));
            assert_ne!(body.of_payload(one), body.of_payload(other), "{one}");
        }
    }

    #[test]
    fn ignored_items_leave_the_places_of_the_others() {
        let body = BodyFingerprint::ignore_fields(["/items/0", "/items/1"]);
        let first = body.of_payload(r#"{"items":[1,2,3]}"#);
        assert_eq!(first, body.of_payload(r#"{"items":[8,9,3]}"#));
        assert_ne!(first, body.of_payload(r#"{"items":[1,2,999]}"#));
    }
}
