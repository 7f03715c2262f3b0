//! The `Link` header (RFC 8288): where the API says that the next page is.
//!
//! It is parsed as leniently as Appendix B of the RFC, and it never fails: what cannot be parsed is
//! no link. Whether a link may be followed is decided in `response.rs`.

use std::borrow::Cow;

use http::header::LINK;
use http::{HeaderMap, HeaderValue};
use reqwest::Url;

use super::redirect;

/// Returns a field value as text. URLs from servers may have raw UTF-8, which the URL parser
/// encodes.
fn text(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok()
}

/// Returns the target of the first link with this relation. The links of a response are those of
/// the resource at `context`, unless they name another one (RFC 8288 §3.2).
pub(super) fn find<'h>(headers: &'h HeaderMap, relation: &str, context: &Url) -> Option<&'h str> {
    let links = headers.get_all(LINK).iter().filter_map(text).flat_map(|text| Links { rest: text });
    let is_about = |anchor: &str| redirect::resolve(context, anchor).is_ok_and(|url| is_same(&url, context));
    let fits = |link: &Link<'_>| {
        let is_relation =
            |rel: &Cow<'_, str>| rel.split_ascii_whitespace().any(|rel| rel.eq_ignore_ascii_case(relation));
        link.rel.as_ref().is_some_and(is_relation) && link.anchor.as_ref().is_none_or(|anchor| is_about(anchor))
    };
    links.filter(fits).map(|link| link.target).next()
}

/// Returns whether two URLs name the same resource: all but their fragments is equal.
fn is_same(one: &Url, other: &Url) -> bool {
    one.as_str().split('#').next() == other.as_str().split('#').next()
}

/// One link: its target, and the parameters that matter here. Of two with one name the first counts
/// (RFC 8288 §3.3).
struct Link<'a> {
    target: &'a str,
    rel: Option<Cow<'a, str>>,
    anchor: Option<Cow<'a, str>>,
}

/// The links of one field value.
struct Links<'a> {
    rest: &'a str,
}

const SPACES: [char; 2] = [' ', '\t'];

impl<'a> Iterator for Links<'a> {
    type Item = Link<'a>;

    fn next(&mut self) -> Option<Link<'a>> {
        let start = self.rest.trim_start_matches([',', ' ', '\t']).strip_prefix('<')?;
        let (target, rest) = start.split_once('>')?;
        self.rest = rest;
        let mut link = Link { target: target.trim_matches(SPACES), rel: None, anchor: None };
        while let Some((name, value)) = self.parameter() {
            let place = match name {
                name if name.eq_ignore_ascii_case("rel") => &mut link.rel,
                name if name.eq_ignore_ascii_case("anchor") => &mut link.anchor,
                _ => continue,
            };
            place.get_or_insert(value);
        }
        // What follows the parameters of one link is skipped up to the next.
        self.rest = self.rest.find(',').and_then(|comma| self.rest.get(comma..)).unwrap_or_default();
        Some(link)
    }
}

impl<'a> Links<'a> {
    /// Parses the next parameter, such as `; rel="next"`. A value may be missing.
    fn parameter(&mut self) -> Option<(&'a str, Cow<'a, str>)> {
        let rest = self.rest.trim_start_matches(SPACES).strip_prefix(';')?.trim_start_matches(SPACES);
        let (name, rest) = split_at(rest, ['=', ';', ',']);
        let Some(rest) = rest.strip_prefix('=') else {
            self.rest = rest;
            return Some((name, Cow::Borrowed("")));
        };
        let rest = rest.trim_start_matches(SPACES);
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => unquoted(quoted),
            None => {
                let (value, rest) = split_at(rest, [';', ',', ',']);
                (Cow::Borrowed(value), rest)
            }
        };
        self.rest = rest;
        Some((name, value))
    }
}

/// Splits before the first of these characters. The first part has no spaces around it.
fn split_at(text: &str, characters: [char; 3]) -> (&str, &str) {
    let (first, rest) = text.split_at(text.find(characters).unwrap_or(text.len()));
    (first.trim_matches(SPACES), rest)
}

/// Parses a quoted string after its opening quote, and returns what follows it. One that is not
/// closed ends with the text.
fn unquoted(text: &str) -> (Cow<'_, str>, &str) {
    let mut is_escaped = false;
    let closing = text.find(|c: char| {
        let is_closing = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_closing
    });
    let (inside, rest) = text.split_at(closing.unwrap_or(text.len()));
    let rest = rest.strip_prefix('"').unwrap_or(rest);
    if !inside.contains('\\') {
        return (Cow::Borrowed(inside), rest);
    }
    let mut characters = inside.chars();
    let mut plain = String::with_capacity(inside.len());
    while let Some(character) = characters.next() {
        plain.push(if character == '\\' { characters.next().unwrap_or(character) } else { character });
    }
    (Cow::Owned(plain), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(relation: &str, values: &[&str]) -> Option<String> {
        let headers: HeaderMap =
            values.iter().map(|value| (LINK, HeaderValue::from_bytes(value.as_bytes()).unwrap())).collect();
        let context = Url::parse("https://api.x/items?page=1").unwrap();
        find(&headers, relation, &context).map(str::to_owned)
    }

    #[test]
    fn first_link_with_the_relation_is_found() {
        let next = |value: &str| check("next", &[value]);
        let github = r#"<https://api.x/items?page=2>; rel="next", <https://api.x/items?page=9>; rel="last""#;
        assert_eq!(next(github).as_deref(), Some("https://api.x/items?page=2"));
        assert_eq!(check("LAST", &[github]).as_deref(), Some("https://api.x/items?page=9"));
        assert_eq!(check("prev", &[github]), None);
        assert_eq!(check("next", &["</a>; rel=prev", "</b>; rel=next", "</c>; rel=next"]).as_deref(), Some("/b"));
        for value in [
            "</b>;rel=next",
            "</b> ; rel = next",
            "</b>;rel=Next;title=x",
            "</b>; rel=\"prev next\"",
            "</b>; title=\"a, <c>; rel=prev\"; rel=next",
            "</b>; title=\"a \\\" b\"; rel=\"next\"",
            "</b>; rel=\"n\\ext\"",
            "</b>; crossorigin; rel=next",
            ",, </a>, </b>; rel=next",
            "</a>; junk \u{e9} = ; x, </b>; rel=next",
            "< /b >; rel=next; rel=prev",
            "</b>; rel=next; anchor=\"\"",
            "</b>; rel=next; anchor=\"#top\"",
            "</b>; rel=next; anchor=\"/items?page=1\"",
        ] {
            assert_eq!(next(value).as_deref(), Some("/b"), "{value}");
        }
        assert_eq!(next("</b,c;d>; rel=next").as_deref(), Some("/b,c;d"));
        assert_eq!(next("<>; rel=next").as_deref(), Some(""));
    }

    #[test]
    fn other_links_and_junk_are_no_link() {
        for value in [
            "",
            "/b; rel=next",
            "</b; rel=next",
            "</b>",
            "</b>; rel",
            "</b>; rel=",
            "</b>; rel=prev; rel=next",
            "</b>; title=\"; rel=next",
            "</b>; rel=nextpage",
            "</b>; rel=next; anchor=\"/other\"",
            "</b>; rel=next; anchor=\"https://[\"",
            "x, </b>; rel=next",
        ] {
            assert_eq!(check("next", &[value]), None, "{value}");
        }
        assert_eq!(check("", &["</b>; rel=\"\""]), None);
    }

    #[test]
    fn any_link_header_is_read_without_panic() {
        let parts = ["<", ">", ";", ",", "=", "\"", "\\", "rel", "next", " ", "\u{e9}", "anchor"];
        for first in parts {
            for second in parts {
                for third in parts {
                    for start in ["", "</b>", "</b>;rel=\""] {
                        check("next", &[&format!("{start}{first}{second}{third}{second}{first}")]);
                    }
                }
            }
        }
    }
}
