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

/// Maximum length of a server's words on an error line, in characters.
const MAX_WORDS: usize = 120;

/// Returns the server's own words about an error, on one line: the title and detail of a problem,
/// the message of another JSON body, or the beginning of a plain text.
///
/// `hidden` is left out, because a server may quote the key.
pub(crate) fn words(headers: &HeaderMap, body: &[u8], hidden: Option<(&str, &str)>) -> Option<String> {
    let content_type = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let media_type = content_type.split(';').next()?.trim().to_ascii_lowercase();
    let text = match media_type.as_str() {
        "text/plain" => String::from_utf8_lossy(body).into_owned(),
        "application/problem+json" => {
            let Problem { title, detail, .. } = Problem::read(headers, body)?;
            match (title, detail) {
                (Some(title), Some(detail)) if title != detail => format!("{title}: {detail}"),
                (title, detail) => title.or(detail)?,
            }
        }
        "application/json" => message(body)?,
        json if json.ends_with("+json") => message(body)?,
        _ => return None,
    };
    let text = match hidden {
        Some((hidden, shown)) => text.replace(hidden, shown),
        None => text,
    };
    one_line(&text)
}

/// Returns the message of a JSON error body, where common APIs have it.
fn message(body: &[u8]) -> Option<String> {
    let body = serde_json::from_slice::<serde_json::Value>(body).ok()?;
    let places = ["/error/message", "/message", "/error_description", "/detail", "/error"];
    places.iter().find_map(|place| Some(body.pointer(place)?.as_str()?.to_owned()))
}

/// Returns a text on one line, shortened, without control characters and up to its first HTML tag.
/// `None` if nothing is left.
pub(crate) fn one_line(text: &str) -> Option<String> {
    let before_tag = text.match_indices('<').find(|(at, _)| {
        let next = text.get(at + 1..).and_then(|rest| rest.chars().next());
        next.is_some_and(|next| next.is_ascii_alphabetic() || matches!(next, '/' | '!' | '?'))
    });
    let text = before_tag.and_then(|(at, _)| text.get(..at)).unwrap_or(text);
    let words: Vec<String> = text.split(|c: char| c.is_whitespace() || c.is_control()).map(visible).collect();
    let mut line = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(MAX_WORDS) {
        line.truncate(end);
        line.push('…');
    }
    (!line.is_empty()).then_some(line)
}

/// Removes characters that change the direction of a line, or that nobody can see. A quotation mark
/// would end the quotation.
fn visible(word: &str) -> String {
    let is_hidden =
        |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    word.chars().filter(|c| !is_hidden(*c)).map(|c| if c == '"' { '\'' } else { c }).collect()
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

    fn said(content_type: &'static str, body: &str) -> Option<String> {
        let headers = [(CONTENT_TYPE, http::HeaderValue::from_static(content_type))].into_iter().collect();
        words(&headers, body.as_bytes(), Some(("whole-key", "whole…")))
    }

    #[test]
    fn words_of_a_server_are_read() {
        let problem = |body| said("application/problem+json", body);
        assert_eq!(problem(r#"{"title":"No credit","detail":"Balance: 30"}"#).unwrap(), "No credit: Balance: 30");
        assert_eq!(problem(r#"{"title":"No credit","detail":"No credit"}"#).unwrap(), "No credit");
        assert_eq!(problem(r#"{"type":"https://x/y"}"#), None);
        let json = |body| said("application/json; charset=utf-8", body);
        assert_eq!(json(r#"{"error":{"message":"Card declined","code":"x"}}"#).unwrap(), "Card declined");
        assert_eq!(json(r#"{"error":"invalid_grant","error_description":"Expired"}"#).unwrap(), "Expired");
        assert_eq!(json(r#"{"error":"invalid_grant"}"#).unwrap(), "invalid_grant");
        assert_eq!(json(r#"{"echo":"s3cret"}"#), None);
        assert_eq!(said("text/plain", "upstream connect error").unwrap(), "upstream connect error");
        for content_type in ["text/html", "application/octet-stream"] {
            assert_eq!(said(content_type, "text"), None);
        }
    }

    #[test]
    fn words_of_a_server_stay_on_one_short_line() {
        let text = |body: &str| said("text/plain", body);
        assert_eq!(text("a\r\n\tb\u{1b}[31m \"c\"").unwrap(), "a b [31m 'c'");
        assert_eq!(text("a\u{202e}b\u{200b}").unwrap(), "ab");
        assert_eq!(text("1 < 2, <b>bold</b>").unwrap(), "1 < 2,");
        assert_eq!(text("<!doctype html><p>no"), None);
        assert_eq!(text(" \u{0}"), None);
        assert_eq!(text(&"é".repeat(500)).unwrap(), format!("{}…", "é".repeat(120)));
        assert_eq!(text("the key whole-key is taken").unwrap(), "the key whole… is taken");
        assert!(!text(&format!("{} whole-key", "x".repeat(112))).unwrap().contains("whole-k"), "hidden before the cut");
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
