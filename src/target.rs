//! Builds the URL of a request from the caller's text.
//!
//! `Url::join` loses the path of the base (`https://api.x/v1` + `/charges` =
//! `https://api.x/charges`) and follows `..` silently. A client for one API wants neither. So a
//! relative path is *appended*, and it cannot leave the base. A path segment cannot be empty,
//! because an empty identifier would address the collection instead of the item.

use reqwest::Url;

use super::origin::origin;
use crate::error::{Error, Result};

/// A segment as long as most paths are. Without it each appended path moves the text of its URL to a
/// larger place.
const ROOM: &str = "--------------------------------";

/// A base URL. Its path ends in a slash.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) url: Url,
    /// The same with [`ROOM`] at the end, which a path takes the place of.
    roomy: Url,
}

impl Base {
    fn new(url: Url) -> Self {
        let mut roomy = url.clone();
        roomy.set_path(&format!("{}{ROOM}", url.path()));
        Self { url, roomy }
    }
}

/// Parses and checks a base URL.
pub(super) fn base(text: &str) -> Result<Base> {
    let mut url = absolute("base_url", text)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Error::build("base_url", "it may not have a query or a fragment, since paths are appended to it"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::build("base_url", "it may not have user information; use bearer_auth or a default header"));
    }
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(Base::new(url))
}

/// Returns the URL of a request: `text` itself if it is absolute, otherwise appended to `base`.
pub(super) fn resolve(base: Option<&Base>, text: &str) -> Result<Url> {
    if let Some(url) = base.and_then(|base| append_plain(base, text)) {
        return Ok(url);
    }
    if has_scheme(text) {
        return absolute("url", text);
    }
    let Some(Base { url: base, .. }) = base else {
        let hint = missing_scheme(text).map(|hint| format!("; if it begins with a host, {hint}"));
        let hint = hint.unwrap_or_default();
        return Err(Error::build("url", format!("it is relative and the client has no base_url{hint}")));
    };
    if text.starts_with("//") || text.starts_with('\\') || text.starts_with("/\\") {
        return Err(Error::build("url", "it begins like a network path; one slash, or none, appends to the base_url"));
    }
    let url = append(base, text)?;
    let base_path = base.path().trim_end_matches('/');
    let below = url.path().strip_prefix(base_path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if origin(&url) != origin(base) || !below {
        return Err(Error::build("url", "`..` leaves the base_url"));
    }
    Ok(url)
}

/// Appends a path that needs no parsing: letters, digits, `-`, `_` and `~` (unreserved, RFC 3986
/// §2.3), in segments that are not empty. Most paths are such. The result is that of [`append`], at
/// half the cost.
fn append_plain(base: &Base, text: &str) -> Option<Url> {
    let below = text.strip_prefix('/').unwrap_or(text);
    let mut previous = b'/';
    for &byte in below.as_bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~');
        if !is_plain && (byte != b'/' || previous == b'/') {
            return None;
        }
        previous = byte;
    }
    if previous == b'/' {
        return None;
    }
    let mut url = base.roomy.clone();
    let mut path = url.path_segments_mut().ok()?;
    path.pop();
    if below.as_bytes().contains(&b'/') {
        path.extend(below.split('/'))
    } else {
        path.push(below)
    };
    drop(path);
    Some(url)
}

/// Appends a path to `base`. The path of the base ends in a slash, so a join keeps it.
fn append(base: &Url, text: &str) -> Result<Url> {
    if text.is_empty() || text.starts_with(['?', '#']) {
        let mut url = base.clone();
        url.set_path(base.path().trim_end_matches('/'));
        return if text.is_empty() { Ok(url) } else { url.join(text).map_err(|error| Error::build("url", error)) };
    }
    let below = text.strip_prefix('/').unwrap_or(text);
    // `charges:batch` is a path here, and not a URL with the scheme `charges`.
    base.join(&format!("./{below}")).map_err(|error| Error::build("url", error))
}

/// Appends segments to the path, each percent-encoded.
pub(super) fn append_segments<S: AsRef<str>>(url: &mut Url, parts: impl IntoIterator<Item = S>) -> Result<()> {
    let mut path = url.path_segments_mut().map_err(|()| Error::build("path_segments", "the URL cannot have a path"))?;
    path.pop_if_empty();
    for (index, part) in parts.into_iter().enumerate() {
        let part = part.as_ref();
        let position = index + 1;
        match part {
            "" => return Err(Error::build("path_segments", format!("part {position} is empty"))),
            // The url crate drops them silently, so the request would go to another address.
            "." | ".." => return Err(Error::build("path_segments", format!("part {position} is `{part}`"))),
            // The url crate drops these too, and `.\n.` would become `..`.
            part if part.contains(['\t', '\n', '\r']) => {
                return Err(Error::build("path_segments", format!("part {position} has a tab or a line break")));
            }
            part => path.push(part),
        };
    }
    Ok(())
}

fn absolute(setting: &str, text: &str) -> Result<Url> {
    // `localhost:8080` is a URL with the scheme `localhost`, if one reads it by the letter.
    if let Some(hint) = missing_scheme(text).filter(|_| names_port(text) || !has_scheme(text)) {
        return Err(Error::build(setting, hint));
    }
    let url = Url::parse(text).map_err(|error| Error::build(setting, error))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Error::build(setting, format!("the scheme `{}` is neither http nor https", url.scheme())));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(Error::build(setting, "it has no host"));
    }
    Ok(url)
}

/// Returns the advice to write the scheme, if a text begins like a host. It quotes the host alone,
/// since the rest may be secret.
fn missing_scheme(text: &str) -> Option<String> {
    let text = text.strip_prefix("//").unwrap_or(text);
    let host = text.split(['/', '?', '#', '\\']).next().filter(|host| !host.is_empty() && !host.contains('@'))?;
    // Such a host is most likely this machine.
    let name = host.split(':').next().unwrap_or(host);
    let is_local = name == "localhost" || name.starts_with("127.") || host.starts_with("[::1]");
    let scheme = if is_local { "http" } else { "https" };
    Some(format!("the scheme is missing: write {scheme}://{host}"))
}

/// Returns whether a port follows the first colon, as in `localhost:8080/path`.
fn names_port(text: &str) -> bool {
    let Some((_, rest)) = text.split_once(':') else { return false };
    let port = rest.split(['/', '?', '#']).next().unwrap_or_default();
    !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns whether a URL begins with a scheme (RFC 3986 §3.1): a letter, then letters, digits, `+`,
/// `-` and `.`, up to a colon.
fn has_scheme(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once(':') else { return false };
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colon_below_the_base_is_part_of_the_path() {
        let base = base("https://api.x/v1").unwrap();
        for (text, expected) in [
            ("/charges:batch", "https://api.x/v1/charges:batch"),
            ("/urn:isbn:1", "https://api.x/v1/urn:isbn:1"),
            ("/https:charges", "https://api.x/v1/https:charges"),
            ("/https://api.x/v1", "https://api.x/v1/https://api.x/v1"),
            ("/a/b.c", "https://api.x/v1/a/b.c"),
        ] {
            assert_eq!(resolve(Some(&base), text).unwrap().as_str(), expected);
        }
        assert!(resolve(Some(&base), "charges:batch").is_err(), "without a slash it is a scheme that is not ours");
    }

    fn check(base_text: &str, text: &str) -> String {
        let base = base(base_text).unwrap();
        resolve(Some(&base), text).map_or_else(|error| error.to_string(), |url| url.to_string())
    }

    #[test]
    fn relative_path_is_appended() {
        for (base, text, expected) in [
            ("https://api.x/v1", "/charges", "https://api.x/v1/charges"),
            ("https://api.x/v1/", "charges", "https://api.x/v1/charges"),
            ("https://api.x", "charges", "https://api.x/charges"),
            ("https://api.x/v1", "", "https://api.x/v1"),
            ("https://api.x/v1", "?a=1", "https://api.x/v1?a=1"),
            ("https://api.x/v1", "/a/../b?c=/..", "https://api.x/v1/b?c=/.."),
            ("https://api.x/v1", "items/a:b", "https://api.x/v1/items/a:b"),
            ("https://api.x/v1", "https://other.x/y", "https://other.x/y"),
            ("http://[::1]:8080/v1", "/y", "http://[::1]:8080/v1/y"),
        ] {
            assert_eq!(check(base, text), expected);
        }
    }

    #[test]
    fn plain_path_is_appended_as_if_parsed() {
        let (mut plain, mut parsed) = (0, 0);
        for base_text in ["https://api.x", "https://api.x/v1", "http://[::1]:8080/a/b/"] {
            let base = base(base_text).unwrap();
            for first in ["", "/", "a", "A-1_~", "..", "%2e", "a.b", "é", "?", "a b", "c:d", "//", "\\", "\t"] {
                for then in ["", "/", "/b", "/..", "//b", "b/c", "#d", ".", "@e"] {
                    let text = format!("{first}{then}");
                    match append_plain(&base, &text) {
                        Some(url) => {
                            assert_eq!(Some(url), append(&base.url, &text).ok(), "{base_text} and {text}");
                            plain += 1;
                        }
                        None => parsed += 1,
                    }
                }
            }
        }
        assert!(plain > 10 && parsed > 100, "{plain} and {parsed}");
    }

    #[test]
    fn path_cannot_leave_the_base() {
        for text in ["..", "/../v2", "a/../../v2", "%2e%2e/v2", "..\\v2", "/../v10", "a/..//../../v2"] {
            assert!(check("https://api.x/v1", text).contains("leaves the base_url"), "{text}");
        }
        for text in ["//evil.x/", "\\\\evil.x", "/\\evil.x", "\\evil.x"] {
            assert!(check("https://api.x/v1", text).contains("network path"), "{text}");
        }
        // Appended, an `@` or a colon stays part of the path.
        assert_eq!(check("https://api.x", "@evil.x/"), "https://api.x/@evil.x/");
        assert_eq!(check("https://api.x", ":80@evil.x/"), "https://api.x/:80@evil.x/");
    }

    #[test]
    fn bad_base_url_is_an_error() {
        for (text, reason) in [
            ("api.x/v1", "the scheme is missing: write https://api.x ("),
            ("api.x:8443/v1", "the scheme is missing: write https://api.x:8443 ("),
            ("//api.x/v1", "the scheme is missing: write https://api.x ("),
            ("localhost:8080", "the scheme is missing: write http://localhost:8080 ("),
            ("127.0.0.1:8080/v1", "the scheme is missing: write http://127.0.0.1:8080 ("),
            ("[::1]:8080", "the scheme is missing: write http://[::1]:8080 ("),
            ("me:pw@api.x", "neither http nor https"),
            ("ftp://api.x", "neither http nor https"),
            ("https://api.x?key=1", "query"),
            ("https://me:pw@api.x", "user information"),
            ("https://", "empty host"),
            ("", "relative URL without a base"),
        ] {
            let error = base(text).unwrap_err().to_string();
            assert!(error.starts_with("base_url: ") && error.contains(reason), "{text}: {error}");
        }
        let unbased = |text| resolve(None, text).unwrap_err().to_string();
        assert_eq!(unbased("/charges"), "url: it is relative and the client has no base_url (nothing was sent)");
        for text in ["api.x/v1?token=s3cret", "api.x"] {
            let line = "url: it is relative and the client has no base_url; if it begins with a host, the scheme is \
                        missing: write https://api.x (nothing was sent)";
            assert_eq!(unbased(text), line);
        }
        for base in [None, Some(&base("https://api.x").unwrap())] {
            let line = "url: the scheme is missing: write http://localhost:8080 (nothing was sent)";
            assert_eq!(resolve(base, "localhost:8080/x?token=s3cret").unwrap_err().to_string(), line);
        }
        assert!(resolve(None, "mailto:a@b").unwrap_err().to_string().contains("neither http nor https"));
    }

    #[test]
    fn segments_stay_apart() {
        let with = |parts: &[&str]| {
            let mut url = Url::parse("https://api.x/v1/").unwrap();
            append_segments(&mut url, parts).map_or_else(|error| error.to_string(), |()| url.to_string())
        };
        assert_eq!(with(&["orders", "a/b c?d%2f"]), "https://api.x/v1/orders/a%2Fb%20c%3Fd%252f");
        assert_eq!(with(&["orders", "..."]), "https://api.x/v1/orders/...");
        assert!(with(&["orders", ""]).starts_with("path_segments: part 2 is empty"));
        assert!(with(&[".."]).starts_with("path_segments: part 1 is `..`"));
        assert!(with(&["a", ".", "b"]).starts_with("path_segments: part 2 is `.`"));
    }
}
