//! Where a delivery carries the id of its event.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderName;
use http::request::Parts;

use super::body_fingerprint::BodyFingerprint;
use super::json::Json;

type ReadId = Arc<dyn Fn(&Parts, &Bytes) -> Option<String> + Send + Sync>;

/// The place of an event's id in its delivery, for a [`WebhookLayer`](super::WebhookLayer).
///
/// ```
/// use http::HeaderName;
/// use steadfast_server::EventId;
///
/// let in_header = EventId::header(HeaderName::from_static("x-github-delivery"));
/// let in_body = EventId::json("/event/id");
/// // Several senders at one endpoint: the sender's name keeps equal ids apart.
/// let by_sender = EventId::from_fn(|parts, _body| {
///     let sender = parts.uri.path().strip_prefix("/webhooks/")?;
///     let id = parts.headers.get("x-event-id")?.to_str().ok()?;
///     Some(format!("{}:{sender}{id}", sender.len()))
/// });
/// ```
#[derive(Clone)]
pub struct EventId {
    read: ReadId,
    stable_body: BodyFingerprint,
}

impl EventId {
    /// Takes the id from a closure over the request's head and body. `None` or an empty id refuses
    /// the delivery with 400.
    #[must_use]
    pub fn from_fn(read: impl Fn(&Parts, &Bytes) -> Option<String> + Send + Sync + 'static) -> Self {
        Self { read: Arc::new(read), stable_body: BodyFingerprint::exact() }
    }

    /// Takes the id from this header.
    #[must_use]
    pub fn header(name: HeaderName) -> Self {
        Self::from_fn(move |parts, _| header(parts, name.as_str()))
    }

    /// Takes the id from the JSON body, at this pointer (RFC 6901). It may be a string or a number.
    /// A number keeps its digits, however many it has.
    ///
    /// ```
    /// use axum::{Router, body::Body, http::Request, routing::post};
    /// use steadfast_server::{EventId, MemoryStore, WebhookLayer};
    /// use tower::ServiceExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let layer = WebhookLayer::new(MemoryStore::new(), "billing", EventId::json("/event/id"));
    /// let app: Router =
    ///     Router::new().route("/events", post(async || "handled")).layer(layer.clone());
    /// let deliver = || Request::post("/events").body(Body::from(r#"{"event":{"id":7}}"#));
    /// app.clone().oneshot(deliver()?).await?;
    /// app.oneshot(deliver()?).await?;
    /// assert_eq!((layer.metrics().executed, layer.metrics().replayed), (1, 1));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn json(pointer: impl Into<String>) -> Self {
        let pointer = pointer.into();
        Self::from_fn(move |_, body| text(Json::read(body)?.at(&pointer)?))
    }

    /// Takes Stripe's id: `id` of the event object
    /// (<https://docs.stripe.com/webhooks#handle-duplicate-events>).
    ///
    /// A [`WebhookLayer`](super::WebhookLayer) then compares the payload without
    /// `pending_webhooks`, which counts the deliveries that are still to come
    /// (<https://docs.stripe.com/api/events/object#event_object-pending_webhooks>).
    #[must_use]
    pub fn stripe() -> Self {
        let stable_body = BodyFingerprint::ignore_fields(["pending_webhooks"]);
        Self { stable_body, ..Self::json("/id") }
    }

    /// Takes Twilio's id: the header `I-Twilio-Idempotency-Token`
    /// (<https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides>).
    #[must_use]
    pub fn twilio() -> Self {
        Self::header(HeaderName::from_static("i-twilio-idempotency-token"))
    }

    /// Takes the id of CloudEvents 1.0: `source` and `id`, which are unique together. They are in
    /// the `ce-` headers (binary mode) or in the body (structured mode). See
    /// <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md#id>.
    #[must_use]
    pub fn cloud_events() -> Self {
        Self::from_fn(|parts, body| {
            let (source, id) = match (header(parts, "ce-source"), header(parts, "ce-id")) {
                (Some(source), Some(id)) => (source, id),
                _ => {
                    let event = Json::read(body)?;
                    (text(event.at("/source")?)?, text(event.at("/id")?)?)
                }
            };
            // The length keeps ("a", "bc") and ("ab", "c") apart.
            Some(format!("{}:{source}{id}", source.len()))
        })
    }

    /// Returns what of the payload stays the same in each delivery, if the sender changes the rest.
    pub(super) fn stable_body(&self) -> BodyFingerprint {
        self.stable_body.clone()
    }

    pub(super) fn read(&self, parts: &Parts, body: &Bytes) -> Option<String> {
        (self.read)(parts, body).filter(|id| !id.is_empty())
    }
}

fn header(parts: &Parts, name: &str) -> Option<String> {
    parts.headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn text(value: &Json<'_>) -> Option<String> {
    match value {
        Json::String(text) => Some(text.to_string()),
        Json::Number(text) => Some((*text).to_owned()),
        _ => None,
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventId(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(id: &EventId, headers: &[(&str, &str)], body: &'static str) -> Option<String> {
        let mut request = http::Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        id.read(&request.body(()).unwrap().into_parts().0, &Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn each_senders_id_is_read_from_its_place() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read(&EventId::stripe(), &[], r#"{"id":"evt_1"}"#), some("evt_1"));
        assert_eq!(read(&EventId::json("/event/number"), &[], r#"{"event":{"number":7}}"#), some("7"));
        // A double, or 64 bits, would make these one event.
        for number in ["9007199254740993", "18446744073709551616", "18446744073709551617", "-1", "1.50"] {
            let body = format!(r#"{{"id": {number} }}"#);
            let found = EventId::json("/id").read(&http::Request::new(()).into_parts().0, &body.into());
            assert_eq!(found, some(number));
        }
        assert_eq!(read(&EventId::twilio(), &[("I-Twilio-Idempotency-Token", "t")], ""), some("t"));
        let structured = r#"{"specversion":"1.0","source":"/shop","id":"1"}"#;
        let binary = [("ce-source", "/shop"), ("ce-id", "1")];
        assert_eq!(read(&EventId::cloud_events(), &[], structured), read(&EventId::cloud_events(), &binary, "x"));
        assert_ne!(
            read(&EventId::cloud_events(), &[("ce-source", "a"), ("ce-id", "bc")], ""),
            read(&EventId::cloud_events(), &[("ce-source", "ab"), ("ce-id", "c")], "")
        );
        for nothing in [r#"{"id":""}"#, r#"{"id":null}"#, r#"{"id":{}}"#, "[]", "", "{"] {
            assert_eq!(read(&EventId::stripe(), &[], nothing), None, "{nothing}");
        }
    }
}
