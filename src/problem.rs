//! Problem details (RFC 9457): an error response that a program can read.
//!
//! It has a type of the public API, and imports no other module of the crate.

use std::collections::BTreeMap;

use http::{HeaderMap, header::CONTENT_TYPE};

/// The members of an `application/problem+json` response. A member is `None` if the server left it
/// out or sent another type.
///
/// [`Error::problem`](crate::Error::problem) returns it.
///
/// ```
/// /// A message for the user, and a number that this API adds.
/// fn explain(error: &steadfast::Error) -> Option<String> {
///     let problem = error.problem()?;
///     let balance = problem.extensions.get("balance")?;
///     Some(format!("{}; balance: {balance}", problem.title?))
/// }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Problem {
    /// The member `type`: a URI that names the kind of problem. `about:blank` is read as `None`.
    pub kind: Option<String>,
    /// A short summary of the kind.
    pub title: Option<String>,
    /// The status that the server meant to send. A proxy may have changed it on the way.
    pub status: Option<u16>,
    /// An explanation of this occurrence.
    pub detail: Option<String>,
    /// A URI that names this occurrence.
    pub instance: Option<String>,
    /// Every other member.
    pub extensions: BTreeMap<String, serde_json::Value>,
}

impl Problem {
    /// Reads a response body, if its content type is that of a problem.
    pub(crate) fn read(headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        let content_type = headers.get(CONTENT_TYPE)?.to_str().ok()?;
        let media_type = content_type.split(';').next()?.trim();
        if !media_type.eq_ignore_ascii_case("application/problem+json") {
            return None;
        }
        let mut members: BTreeMap<String, serde_json::Value> = serde_json::from_slice(without_mark(body)).ok()?;
        let mut text = |name: &str| match members.remove(name)? {
            serde_json::Value::String(text) => Some(text),
            _ => None,
        };
        let (kind, title, detail, instance) = (text("type"), text("title"), text("detail"), text("instance"));
        let status = members.remove("status").and_then(|status| u16::try_from(status.as_u64()?).ok());
        let kind = kind.filter(|kind| kind != "about:blank");
        Some(Self { kind, title, status, detail, instance, extensions: members })
    }
}

/// Returns the codes by which an error body names itself: `type` and `code`, at the top or under
/// `error`.
pub(crate) fn names(body: &[u8]) -> Vec<String> {
    let Ok(body) = serde_json::from_slice::<serde_json::Value>(without_mark(body)) else { return Vec::new() };
    let places = ["/type", "/code", "/error/type", "/error/code"];
    places.iter().filter_map(|place| Some(body.pointer(place)?.as_str()?.to_owned())).collect()
}

/// Returns JSON without the byte order mark before it. A server must not send one, and a client may
/// ignore it (RFC 8259 §8.1).
pub(crate) fn without_mark(json: &[u8]) -> &[u8] {
    json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content_type: &'static str, body: &str) -> Option<Problem> {
        let headers = [(CONTENT_TYPE, http::HeaderValue::from_static(content_type))].into_iter().collect();
        Problem::read(&headers, body.as_bytes())
    }

    #[test]
    fn members_are_read_and_the_rest_is_kept() {
        let body = r#"{"type":"https://x/y","title":"No","status":402,"detail":"d","balance":30,"instance":7}"#;
        let problem = read("application/problem+json; charset=utf-8", body).unwrap();
        assert_eq!(problem.kind.as_deref(), Some("https://x/y"));
        assert_eq!((problem.status, problem.title.as_deref()), (Some(402), Some("No")));
        assert_eq!(problem.instance, None, "a number is no URI");
        assert_eq!(problem.extensions["balance"], 30);
    }

    #[test]
    fn byte_order_mark_is_skipped() {
        let body = "\u{feff}{\"title\":\"No\",\"code\":\"used_up\"}";
        assert_eq!(read("application/problem+json", body).unwrap().title.as_deref(), Some("No"));
        assert_eq!(names(body.as_bytes()), ["used_up"]);
        assert_eq!(without_mark(b"\xef\xbb1"), b"\xef\xbb1");
    }

    #[test]
    fn other_bodies_are_no_problems() {
        assert_eq!(read("application/json", "{}"), None);
        assert_eq!(read("application/problem+json", "no"), None);
        assert_eq!(read("application/problem+json", "[]"), None);
        assert_eq!(read("application/problem+json", r#"{"type":"about:blank"}"#).unwrap().kind, None);
    }

    #[test]
    fn common_error_bodies_have_names() {
        assert_eq!(
            names(br#"{"error":{"type":"api","code":"idempotency_key_in_use"}}"#),
            ["api", "idempotency_key_in_use"]
        );
        assert_eq!(names(br#"{"type":"https://x"}"#), ["https://x"]);
        assert!(names(b"<html>").is_empty());
    }
}
