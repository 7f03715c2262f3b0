//! Where a redirect leads, and what may travel there.
//!
//! A client that follows redirects for you decides, unasked, whether a POST is sent again and who gets to see your credentials.
//! The rules here (RFC 9110 §15.4, tightened):
//!
//! * 307 and 308 keep method, body and key, on the same origin only. They say that the server has not acted.
//! * 301 and 302 to another method keep it too, and do not say that the server has not acted: what comes of a later hop is never
//!   not processed, unless the method is safe and nobody has said that this request is not.
//! * 303, and 301 or 302 to a POST, become a GET without body and key. From then on the operation *was processed*, and what is
//!   repeated after a failure is that GET.
//! * Another origin gets GET and HEAD without a body only, and neither credentials, cookies, key, `Referer` nor any header of the
//!   caller's but `Accept`, `Accept-Language`, `Range` and `User-Agent`, on that hop and on every later one. https to http is never
//!   followed; http to https on the same host is another origin.
//!
//! What is not followed is handed to the caller as it is. Values only: no I/O. The wire tests are in `tests/it/redirects.rs`.

use http::header::{
    ACCEPT, ACCEPT_LANGUAGE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_TYPE,
    EXPECT, LOCATION, RANGE, TRANSFER_ENCODING, USER_AGENT,
};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use reqwest::Url;

use super::answer::Failed;
use super::payload::Payload;
use super::upstream::origin;
use crate::policy::Failure;

/// The next hop of a redirect that is followed.
#[derive(Debug, PartialEq)]
pub(super) struct Next {
    pub(super) url: Url,
    pub(super) method: Method,
    /// The request is done, and this is where its result is.
    pub(super) see_other: bool,
    /// The hop goes to another origin than the one before it.
    pub(super) leaves: bool,
    /// The method is kept, and the server may have acted on it all the same.
    pub(super) may_have_acted: bool,
}

/// The hop that this answer asks for; `None` if it asks for none, or for one that is not followed. `is_harmless`: it does nothing, so nothing
/// can have been done.
pub(super) fn next(
    from: &reqwest::Request,
    status: StatusCode,
    headers: &HeaderMap,
    payload: &Payload,
    is_harmless: bool,
) -> Option<Next> {
    let method = from.method();
    let see_other = match status.as_u16() {
        303 => *method != Method::GET && *method != Method::HEAD,
        301 | 302 => *method == Method::POST,
        307 | 308 => false,
        _ => return None,
    };
    let mut url = from.url().join(headers.get(LOCATION)?.to_str().ok()?).ok()?;
    take_off_user(&mut url)?;
    let leaves = origin(&url) != origin(from.url());
    let downgrade = from.url().scheme() == "https" && url.scheme() != "https";
    let method = if see_other { Method::GET } else { method.clone() };
    let is_read = method == Method::GET || method == Method::HEAD;
    let may_leave = is_read && (see_other || payload.is_empty());
    let may_follow = !downgrade && (!leaves || may_leave) && (see_other || payload.is_replayable());
    // 307 and 308 say that the server has not acted; 301 and 302 do not, and 303 says that it has.
    let may_have_acted = matches!(status.as_u16(), 301..=303) && !is_harmless;
    may_follow.then_some(Next { url, method, see_other, leaves, may_have_acted })
}

/// User information in a `Location` is the server's idea, not the caller's.
fn take_off_user(url: &mut Url) -> Option<()> {
    matches!(url.scheme(), "http" | "https").then_some(())?;
    url.set_username("").ok()?;
    url.set_password(None).ok()
}

/// The request of the hop. `foreign`: this hop, or one before it, left the origin.
pub(super) fn request(from: &reqwest::Request, next: Next, foreign: bool, key_header: &HeaderName) -> reqwest::Request {
    let mut request = from.try_clone().unwrap_or_else(|| reqwest::Request::new(next.method.clone(), next.url.clone()));
    *request.method_mut() = next.method;
    *request.url_mut() = next.url;
    let headers = request.headers_mut();
    if next.see_other {
        headers.remove(key_header);
        for name in OF_A_BODY {
            headers.remove(name);
        }
    }
    if foreign {
        let own = std::mem::take(headers);
        let travels = own.iter().filter(|(name, _)| TRAVELS.contains(name));
        headers.extend(travels.map(|(name, value)| (name.clone(), value.clone())));
    }
    request
}

const OF_A_BODY: [HeaderName; 7] =
    [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LOCATION, TRANSFER_ENCODING, EXPECT];
const TRAVELS: [HeaderName; 4] = [ACCEPT, ACCEPT_LANGUAGE, RANGE, USER_AGENT];

/// Where the redirects of one attempt have led so far.
pub(super) struct Trail {
    most: u32,
    steps: Vec<String>,
}

impl Trail {
    pub(super) fn new(most: u32) -> Self {
        Self { most, steps: Vec::new() }
    }

    /// Takes note of a hop; an error if it closes a circle or is one too many.
    pub(super) fn step(
        &mut self,
        from: &reqwest::Request,
        next: &Next,
        response: &reqwest::Response,
    ) -> Result<(), Failed> {
        let name = |method: &http::Method, url: &reqwest::Url| format!("{method} {url}");
        let here = name(from.method(), from.url());
        let there = name(&next.method, &next.url);
        self.steps.push(here);
        let reason = if self.steps.contains(&there) {
            "a circle of redirects"
        } else if self.steps.len() > usize::try_from(self.most).unwrap_or(usize::MAX) {
            "too many redirects"
        } else {
            return Ok(());
        };
        self.steps.push(there);
        // Without query and fragment, which may be secret.
        let shown: Vec<&str> =
            self.steps.iter().map(|step| step.split(['?', '#']).next().unwrap_or_default()).collect();
        Err(Failed {
            failure: Failure::Redirects,
            timed_out: false,
            head: Some(Box::new((response.status(), response.headers().clone()))),
            taken: None,
            source: Some(format!("{reason}: {}", shown.join(" -> ")).into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where `method from` goes on `status` with this `Location`.
    fn check(method: &str, from: &str, status: u16, location: &str) -> String {
        let request = reqwest::Request::new(method.parse().unwrap(), from.parse().unwrap());
        let headers = [(LOCATION, location.parse().unwrap())].into_iter().collect();
        match next(&request, StatusCode::from_u16(status).unwrap(), &headers, &Payload::Empty, true) {
            None => "stays".to_owned(),
            Some(next) => {
                let marks = [(next.see_other, " done"), (next.leaves, " leaves")];
                let marks: String = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
                format!("{} {}{marks}", next.method, next.url)
            }
        }
    }

    #[test]
    fn the_method_follows_the_status() {
        let check = |method, status| check(method, "https://a.x/1", status, "/2");
        for status in [307, 308] {
            for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
                assert_eq!(check(method, status), format!("{method} https://a.x/2"));
            }
        }
        for status in [301, 302] {
            assert_eq!(check("POST", status), "GET https://a.x/2 done");
            assert_eq!(check("PUT", status), "PUT https://a.x/2");
            assert_eq!(check("HEAD", status), "HEAD https://a.x/2");
        }
        assert_eq!(check("PUT", 303), "GET https://a.x/2 done");
        assert_eq!(check("GET", 303), "GET https://a.x/2");
        for status in [200, 300, 304, 305, 306, 309, 404] {
            assert_eq!(check("GET", status), "stays");
        }
    }

    #[test]
    fn another_origin_gets_reads_only_and_never_over_plain_text() {
        let from = "https://a.x/1";
        assert_eq!(check("GET", from, 302, "https://b.x/"), "GET https://b.x/ leaves");
        assert_eq!(check("GET", from, 302, "//b.x/"), "GET https://b.x/ leaves");
        assert_eq!(check("GET", from, 302, "https://a.x:8443/"), "GET https://a.x:8443/ leaves");
        assert_eq!(check("GET", from, 302, "https://a.x:443/"), "GET https://a.x/");
        assert_eq!(check("GET", "http://a.x/", 302, "https://a.x/"), "GET https://a.x/ leaves");
        assert_eq!(check("POST", from, 303, "https://b.x/"), "GET https://b.x/ done leaves");
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            assert_eq!(check(method, from, 307, "https://b.x/"), "stays");
        }
        for location in ["http://a.x/", "http://b.x/", "ftp://a.x/", "mailto:a@b", "https://[", "data:,x"] {
            assert_eq!(check("GET", from, 302, location), "stays", "{location}");
        }
        assert_eq!(check("GET", from, 302, "https://u:p@a.x/2"), "GET https://a.x/2", "user information is not ours");
    }

    #[test]
    fn a_body_that_is_gone_cannot_follow() {
        let request = reqwest::Request::new(Method::PUT, "https://a.x/1".parse().unwrap());
        let gone = Payload::Once(None);
        let headers = [(LOCATION, "/2".parse().unwrap())].into_iter().collect();
        assert_eq!(next(&request, StatusCode::TEMPORARY_REDIRECT, &headers, &gone, true), None);
        assert!(next(&request, StatusCode::SEE_OTHER, &headers, &gone, true).is_some());
        assert_eq!(next(&request, StatusCode::SEE_OTHER, &HeaderMap::new(), &gone, true), None, "no Location");
    }

    #[test]
    fn only_four_headers_go_abroad() {
        let mut from = reqwest::Request::new(Method::GET, "https://a.x/1".parse().unwrap());
        for name in
            ["accept", "accept-language", "range", "user-agent", "authorization", "cookie", "x-api-key", "referer"]
        {
            from.headers_mut().insert(HeaderName::from_static(name), "v".parse().unwrap());
        }
        let hop = || Next {
            url: "https://b.x/".parse().unwrap(),
            method: Method::GET,
            see_other: false,
            leaves: true,
            may_have_acted: false,
        };
        let key_header = HeaderName::from_static("idempotency-key");
        let request = request(&from, hop(), true, &key_header);
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "accept-language", "range", "user-agent"]);
    }
}
