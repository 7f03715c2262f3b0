//! Headers that belong to the operation's result, and headers that belong to one exchange.
//!
//! A record is replayed to a later request, over another connection, perhaps on another day.
//! `Set-Cookie` may hold a caller's session. A trace or a request id names the first request. A
//! rate limit has changed since, and a challenge may hold a nonce for one use.
//!
//! `Retry-After` is stored. On a 202 it is the interval at which to poll for the result, and a
//! client that lost the first response needs it. On an error it does no harm, because a replayed
//! response is final.

use http::header::CONNECTION;
use http::{HeaderMap, HeaderName};

/// The headers that are stored: the default list with the user's changes.
#[derive(Clone, Debug, Default)]
pub(super) struct StoredHeaders {
    keep: Vec<HeaderName>,
    omit: Vec<HeaderName>,
}

impl StoredHeaders {
    /// Stores these headers from now on.
    pub(super) fn keep(&mut self, names: impl IntoIterator<Item = HeaderName>) {
        for name in names {
            self.omit.retain(|omitted| *omitted != name);
            self.keep.push(name);
        }
    }

    /// Leaves these headers out from now on.
    pub(super) fn omit(&mut self, names: impl IntoIterator<Item = HeaderName>) {
        for name in names {
            self.keep.retain(|kept| *kept != name);
            self.omit.push(name);
        }
    }

    /// Returns the headers that may be stored.
    pub(super) fn of(&self, headers: &HeaderMap) -> HeaderMap {
        let nominated: Vec<String> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|name| name.trim().to_ascii_lowercase())
            .collect();
        let stays =
            |name: &HeaderName| self.stores(name) && !nominated.iter().any(|nominated| nominated == name.as_str());
        headers.iter().filter(|(name, _)| stays(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    fn stores(&self, name: &HeaderName) -> bool {
        if is_never_stored(name.as_str()) || self.omit.contains(name) {
            return false;
        }
        !is_of_the_exchange(name.as_str()) || self.keep.contains(name)
    }
}

/// Returns whether a header belongs to one connection or one message (RFC 9110 §7.6.1, §6.6.1), or
/// is set by the layer itself. Users cannot keep these: a replay with another response's length
/// would be invalid HTTP.
pub(super) fn is_never_stored(name: &str) -> bool {
    match name {
        "connection" | "content-length" | "date" | "keep-alive" | "te" | "trailer" | "transfer-encoding"
        | "upgrade" => true,
        "idempotency-status" | "idempotent-replayed" => true,
        _ => name.starts_with("proxy-"),
    }
}

/// Returns whether a header belongs to one exchange. Sources: RFC 9110 §11.6 (challenges), RFC 7615
/// (`Authentication-Info`), RFC 9111 §5.1 (`Age`), the W3C's Trace Context and Server Timing,
/// draft-ietf-httpapi-ratelimit-headers, and names in common use.
fn is_of_the_exchange(name: &str) -> bool {
    match name {
        "set-cookie" | "www-authenticate" | "authentication-info" | "age" | "server-timing" => true,
        "traceparent" | "tracestate" | "traceresponse" | "x-request-id" => true,
        "ratelimit" => true,
        _ => ["ratelimit-", "x-ratelimit-", "x-rate-limit-"].iter().any(|prefix| name.starts_with(prefix)),
    }
}

#[cfg(test)]
mod tests {
    use http::header::{AGE, CONTENT_LENGTH, LOCATION, SET_COOKIE};

    use super::*;

    fn stored(headers: &StoredHeaders, lines: &[(&'static str, &str)]) -> Vec<String> {
        let map: HeaderMap =
            lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect();
        headers.of(&map).iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn headers_of_the_exchange_are_left_out() {
        let lines = [
            ("connection", "close, X-Nominated"),
            ("x-nominated", "1"),
            ("keep-alive", "timeout=5"),
            ("set-cookie", "a=b"),
            ("date", "Tue, 24 Nov 2026 00:00:00 GMT"),
            ("content-length", "3"),
            ("idempotent-replayed", "true"),
            ("proxy-authentication-info", "nextnonce=\"x\""),
            ("authentication-info", "nextnonce=\"x\""),
            ("www-authenticate", "Digest nonce=\"x\""),
            ("age", "3"),
            ("server-timing", "db;dur=53"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("tracestate", "a=b"),
            ("x-request-id", "1"),
            ("ratelimit", "limit=100"),
            ("ratelimit-policy", "100;w=60"),
            ("x-ratelimit-remaining", "7"),
            ("x-rate-limit-reset", "60"),
            ("location", "/orders/1"),
            ("retry-after", "2"),
            ("x-multi", "a"),
            ("x-multi", "b"),
        ];
        let kept = stored(&StoredHeaders::default(), &lines);
        assert_eq!(kept, ["location: /orders/1", "retry-after: 2", "x-multi: a", "x-multi: b"]);
    }

    #[test]
    fn user_changes_override_default_list() {
        let lines = [("set-cookie", "a=b"), ("age", "3"), ("location", "/orders/1"), ("content-length", "3")];
        let mut headers = StoredHeaders::default();
        headers.keep([SET_COOKIE, CONTENT_LENGTH]);
        headers.omit([LOCATION]);
        assert_eq!(stored(&headers, &lines), ["set-cookie: a=b"]);
        headers.omit([SET_COOKIE]);
        headers.keep([LOCATION, AGE]);
        assert_eq!(stored(&headers, &lines), ["age: 3", "location: /orders/1"]);
    }
}
