//! The identity of a request: its key, its scope, its fingerprint.

use std::borrow::Cow;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Version};
use http_body::Body;
use steadfast_core::protocol::{IDEMPOTENCY_KEY, PREFER};
use steadfast_core::{digits, is_safe, key};

use super::body::{Cut, whole};
use super::body_fingerprint::Compared;
use super::config::Config;
use super::host::host_of;
use super::nested;
use super::rejection::Rejection;
use super::shared_store::SharedStore;
use super::store::{Fingerprint, RecordId, ScopeId, Store};

/// A request that the layer recognises when it is repeated.
pub(super) struct Operation {
    pub(super) id: RecordId,
    /// The scope of its key, if the store limits scopes.
    pub(super) scope: Option<ScopeId>,
    pub(super) fingerprint: Fingerprint,
    /// How long a repeat waits for the first request.
    pub(super) wait: Option<Duration>,
    pub(super) body: Bytes,
}

/// What the layer does with a request that it has read.
pub(super) enum ReadRequest<B> {
    Operation(Operation),
    /// It passes through: it has no key and needs none, or an outer layer runs it under the same
    /// record.
    NotAsked(B),
}

impl Config {
    /// Reads the identity of a request, and its body if the layer has to recognise it.
    pub(super) async fn read<S, B>(
        &self,
        parts: &Parts,
        body: B,
        store: &SharedStore<S>,
    ) -> Result<ReadRequest<B>, Rejection>
    where
        S: Store,
        B: Body + From<Bytes>,
    {
        let is_entered = |id: &RecordId| nested::is_entered(&parts.extensions, id, store);
        let wait = self.wait(&parts.headers);
        if let Some(event) = &self.event {
            let body = self.body(parts, body).await?;
            let id = event.read(parts, &body).ok_or(Rejection::EventIdMissing)?;
            let scope = self.scope_of(parts)?;
            let id = RecordId::of_event(&scope, &id);
            if is_entered(&id) {
                return Ok(ReadRequest::NotAsked(body.into()));
            }
            let fingerprint = self.body_fingerprint.of_event(parts, &body);
            let scope = store.limits_scopes().then(|| ScopeId::of(&scope));
            return Ok(ReadRequest::Operation(Operation { id, scope, fingerprint, wait, body }));
        }
        let Some(key) = self.key(&parts.headers)? else { return Ok(ReadRequest::NotAsked(body)) };
        let scope = self.scope_of(parts)?;
        let id = RecordId::new(&scope, &key);
        if is_entered(&id) {
            return Ok(ReadRequest::NotAsked(body));
        }
        let scope = store.limits_scopes().then(|| ScopeId::of(&scope));
        let body = self.body(parts, body).await?;
        Ok(ReadRequest::Operation(Operation { id, scope, fingerprint: self.fingerprint(parts, &body), wait, body }))
    }

    /// Returns whether the layer covers this method.
    pub(super) fn covers(&self, method: &Method) -> bool {
        !is_safe(method) && self.methods.contains(method)
    }

    /// Returns the operation's key. `None` if there is none and none is required.
    fn key<'a>(&self, headers: &'a HeaderMap) -> Result<Option<Cow<'a, str>>, Rejection> {
        let malformed = |reason| Rejection::KeyMalformed { reason };
        let mut lines = headers.get_all(IDEMPOTENCY_KEY).iter();
        let line = match (lines.next(), lines.next()) {
            (None, _) if self.required => return Err(Rejection::KeyMissing),
            (None, _) => return Ok(None),
            (Some(_), Some(_)) => return Err(malformed("there are two keys")),
            (Some(line), None) => line,
        };
        let text = line.to_str().map_err(|_| malformed("it is not ASCII"))?.trim_matches([' ', '\t']);
        let key = key::bare(without_parameters(text))
            .map_err(|_| malformed("it is neither a key nor a structured-field string (RFC 9651 §3.3.3)"))?;
        if key.len() > self.max_key {
            return Err(malformed("it is too long"));
        }
        Ok(Some(key))
    }

    pub(super) fn fingerprint(&self, parts: &Parts, body: &Bytes) -> Fingerprint {
        let host = match &self.host {
            Some(host) => host(parts).map(Cow::Owned),
            None => host_of(parts),
        };
        let target = match &self.target {
            Some(target) => Cow::Owned(target(parts)),
            None => Cow::Borrowed(target_of(parts)),
        };
        let (method, host, target) =
            (parts.method.as_str().as_bytes(), host.as_deref().unwrap_or_default().as_bytes(), target.as_bytes());
        match self.body_fingerprint.read(parts, body) {
            None => Fingerprint::of_parts([method, host, target, body]),
            // A fifth part makes it a hash that no body alone has.
            Some(Compared { setting, content }) => {
                Fingerprint::of_parts([method, host, target, setting.as_bytes(), &content])
            }
        }
    }

    fn scope_of(&self, parts: &Parts) -> Result<Cow<'_, str>, Rejection> {
        self.scope.of(parts).ok_or(Rejection::NoCaller)
    }

    /// Returns how long a repeat waits for the first request, if it asks for that (RFC 7240 §4.3).
    fn wait(&self, headers: &HeaderMap) -> Option<Duration> {
        let preferences = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
        let wait = preferences.flat_map(|value| value.split(',')).find_map(|preference| {
            let (name, seconds) = preference.split(';').next()?.split_once('=')?;
            let seconds = seconds.trim().trim_matches('"');
            digits(seconds).filter(|_| name.trim().eq_ignore_ascii_case("wait"))
        });
        wait.map(|seconds| Duration::from_secs(seconds).min(self.max_wait))
    }

    /// Reads the whole body, up to the limit.
    async fn body<B: Body>(&self, parts: &Parts, body: B) -> Result<Bytes, Rejection> {
        // A server knows a body's length from `Content-Length`, so a long one is refused without
        // reading it.
        if usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) > self.max_body {
            return Err(Rejection::BodyTooLarge { limit: self.max_body });
        }
        let mut body = pin!(body);
        let bytes = match whole(body.as_mut(), self.max_body).await {
            // The trailers of a request are not part of its fingerprint.
            Ok((bytes, _trailers)) => bytes,
            Err(Cut::TooLong) => return Err(Rejection::BodyTooLarge { limit: self.max_body }),
            Err(Cut::Failed) => return Err(Rejection::BodyBroken),
        };
        let may_be_cut = parts.version >= Version::HTTP_2 && !body.is_end_stream();
        if may_be_cut && is_cut_off(&parts.headers, &bytes).await {
            return Err(Rejection::BodyBroken);
        }
        Ok(bytes)
    }
}

/// Returns whether a body that seems to have ended was cut off.
///
/// hyper ends the body of a request over HTTP/2 without an error if its stream is reset with
/// NO_ERROR or CANCEL (RFC 9113 §7). A client that gives up in the middle of an upload sends
/// CANCEL. The body itself knows whether it ended, unless a layer has wrapped it in one that does
/// not ask. So this check is for bodies that may have ended early.
///
/// An announced length shows it (RFC 9113 §8.1.1). Without one, the server gets a turn: it drops
/// the request of a stream that was reset.
async fn is_cut_off(headers: &HeaderMap, body: &Bytes) -> bool {
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_none() {
        tokio::task::yield_now().await;
    }
    length.is_some_and(|length| body.len() < length)
}

/// Cuts off the parameters of a structured field, which do not change the key: `"abc";v=1` is the
/// key `abc`.
fn without_parameters(text: &str) -> &str {
    if !text.starts_with('"') {
        return text;
    }
    let mut escaped = false;
    let closing = text.char_indices().skip(1).find_map(|(at, character)| {
        let closes = character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
        closes.then_some(at)
    });
    match closing.and_then(|at| text.split_at_checked(at + 1)) {
        Some((key, parameters)) if parameters.starts_with(';') => key,
        _ => text,
    }
}

fn target_of(parts: &Parts) -> &str {
    parts.uri.path_and_query().map_or("/", PathAndQuery::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IdempotencyLayer, MemoryStore, Scope};

    #[test]
    fn only_parameters_after_the_quote_are_cut() {
        for (text, key) in [
            (r#""abc""#, r#""abc""#),
            (r#""abc";v=1"#, r#""abc""#),
            (r#""a\";b";v=1"#, r#""a\";b""#),
            (r#""a\\";v"#, r#""a\\""#),
            (r#""abc"x"#, r#""abc"x"#),
            (r#""abc"#, r#""abc"#),
            ("abc;v=1", "abc;v=1"),
            ("", ""),
        ] {
            assert_eq!(without_parameters(text), key, "{text}");
        }
    }

    #[test]
    fn different_requests_differ_in_fingerprint() {
        let of = |method: &str, uri: &str, body: &'static str| {
            let (parts, ()) = http::Request::builder().method(method).uri(uri).body(()).unwrap().into_parts();
            let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
            layer.state.config.fingerprint(&parts, &Bytes::from_static(body.as_bytes()))
        };
        let all = [
            of("POST", "/a?b=1", "x"),
            of("PUT", "/a?b=1", "x"),
            of("POST", "/a?b=2", "x"),
            of("POST", "/a", "x"),
            of("POST", "/a?b=1", "y"),
            of("POST", "/a?b=1x", ""),
            of("POST", "/a?b=", "1x"),
            of("POST", "http://a/a?b=1", "x"),
            of("POST", "http://b/a?b=1", "x"),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all.iter().skip(index + 1).all(|other| other != one), "{index}");
        }
    }
}
