//! Which headers of an answer may be handed out again.
//!
//! `Set-Cookie` may be somebody's session, `Date` is a lie on the second day, and the headers of a connection belong to the
//! connection that carried the first answer.

use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName};

const NEVER: [HeaderName; 10] = [
    CONNECTION,
    CONTENT_LENGTH,
    DATE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    SET_COOKIE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What the layer itself says, and the two that `http` has no constant for.
const NEVER_EITHER: [&str; 4] = ["idempotency-status", "idempotent-replayed", "keep-alive", "proxy-connection"];

/// `headers` without what must not be stored.
pub(super) fn storable(headers: &HeaderMap) -> HeaderMap {
    let nominated: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let stays = |name: &HeaderName| {
        !NEVER.contains(name)
            && !NEVER_EITHER.contains(&name.as_str())
            && !nominated.iter().any(|nominated| nominated == name.as_str())
    };
    headers.iter().filter(|(name, _)| stays(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_first_answer_alone_is_left_out() {
        let lines = [
            ("connection", "close, X-Nominated"),
            ("x-nominated", "1"),
            ("keep-alive", "timeout=5"),
            ("set-cookie", "a=b"),
            ("date", "Tue, 24 Nov 2026 00:00:00 GMT"),
            ("content-length", "3"),
            ("idempotent-replayed", "true"),
            ("location", "/orders/1"),
            ("x-multi", "a"),
            ("x-multi", "b"),
        ];
        let headers: HeaderMap =
            lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect();
        let kept: Vec<_> = storable(&headers).iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        let expected = [("location", "/orders/1"), ("x-multi", "a"), ("x-multi", "b")];
        assert_eq!(kept, expected.map(|(name, value)| (name.to_owned(), value.parse().unwrap())));
    }
}
