//! Where a redirect leads, and what may travel there.
//!
//! A client that follows redirects for you decides, unasked, whether a POST is sent again and who gets to see your credentials.
//! The rules here (RFC 9110 §15.4, tightened):
//!
//! * 307 and 308 keep method, body and key, on the same origin only. They say that the server has not acted.
//! * 301 and 302 are followed for safe methods only. To a POST, PUT, PATCH or DELETE they say
//!   neither that it was carried out nor that it was not: some servers move an address with them,
//!   others answer them after they have acted. So the operation ends there. On request a POST
//!   becomes a GET, as in browsers.
//! * 303 says "done, look there" and becomes a GET without body and key. From then on the operation
//!   *was processed*, and what is repeated after a failure is that GET.
//! * Another origin gets GET and HEAD without a body only, and neither credentials, cookies, key,
//!   `Referer` nor any header of the caller's but `Accept`, `Accept-Language`, `Range` and
//!   `User-Agent`, on that hop and on every later one. A transport that the user has configured may
//!   add credentials by itself. With one no hop leaves its origin, unless the user says that it
//!   adds none.
//! * https to http is never followed; http to https on the same host is another origin.
//!
//! What is not followed is handed to the caller as it is. Values only: no I/O. The wire tests are in `tests/it/redirects.rs`.

use http::header::{
    ACCEPT, ACCEPT_LANGUAGE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_TYPE,
    EXPECT, LOCATION, RANGE, TRANSFER_ENCODING, USER_AGENT,
};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use reqwest::Url;

use super::operation::is_safe;
use super::request_body::RequestBody;
use super::response_body::AttemptError;
use super::upstream::origin;
use crate::journal::NotFollowed;
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
    /// The server may have acted on the request that it redirects.
    pub(super) may_have_acted: bool,
}

/// What decides, beside the answer, whether a redirect is followed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// The request does nothing, so nothing can have been done.
    pub(super) is_harmless: bool,
    /// A 301 or 302 to a POST becomes a GET, as in browsers.
    pub(super) post_as_get: bool,
    /// A GET or HEAD may go to another origin; else, why not.
    pub(super) cross_origin: Result<(), NotFollowed>,
}

/// Returns the hop that this answer asks for, `None` if it asks for none, or why it is not
/// followed.
pub(super) fn next(
    from: &reqwest::Request,
    status: StatusCode,
    headers: &HeaderMap,
    payload: &RequestBody,
    rules: Rules,
) -> Result<Option<Next>, NotFollowed> {
    let method = from.method();
    let see_other = match status.as_u16() {
        303 => *method != Method::GET && *method != Method::HEAD,
        301 | 302 if rules.post_as_get && *method == Method::POST => true,
        301 | 302 if !is_safe(method) => return Err(NotFollowed::HasEffects),
        301 | 302 | 307 | 308 => false,
        _ => return Ok(None),
    };
    let url = location(from.url(), headers).ok_or(NotFollowed::NoAddress)?;
    if from.url().scheme() == "https" && url.scheme() != "https" {
        return Err(NotFollowed::Downgrade);
    }
    let method = if see_other { Method::GET } else { method.clone() };
    let leaves = origin(&url) != origin(from.url());
    let is_read = method == Method::GET || method == Method::HEAD;
    if leaves && !(is_read && (see_other || payload.is_empty())) {
        return Err(NotFollowed::LeavesOrigin);
    }
    if leaves {
        rules.cross_origin?;
    }
    if !see_other && !payload.is_replayable() {
        return Err(NotFollowed::BodyGone);
    }
    // 307 and 308 say that the server has not acted; 301 and 302 do not, and 303 says that it has.
    let may_have_acted = matches!(status.as_u16(), 301..=303) && !rules.is_harmless;
    Ok(Some(Next { url, method, see_other, leaves, may_have_acted }))
}

/// The http or https URL that an answer from `base` names in its `Location`. User information is
/// removed: it is the server's, not the caller's.
pub(super) fn location(base: &Url, headers: &HeaderMap) -> Option<Url> {
    let mut url = base.join(headers.get(LOCATION)?.to_str().ok()?).ok()?;
    matches!(url.scheme(), "http" | "https").then_some(())?;
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    Some(url)
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
    ) -> Result<(), AttemptError> {
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
        Err(AttemptError {
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
        check_with(RULES, method, from, status, location)
    }

    const RULES: Rules = Rules { is_harmless: true, post_as_get: false, cross_origin: Ok(()) };

    fn check_with(rules: Rules, method: &str, from: &str, status: u16, location: &str) -> String {
        let request = reqwest::Request::new(method.parse().unwrap(), from.parse().unwrap());
        let headers = [(LOCATION, location.parse().unwrap())].into_iter().collect();
        match next(&request, StatusCode::from_u16(status).unwrap(), &headers, &RequestBody::Empty, rules) {
            Ok(None) => "no redirect".to_owned(),
            Err(reason) => format!("{reason:?}"),
            Ok(Some(next)) => {
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
            for method in ["POST", "PUT", "PATCH", "DELETE", "CONNECT", "PROPFIND"] {
                assert_eq!(check(method, status), "HasEffects");
            }
            for method in ["GET", "HEAD", "OPTIONS", "TRACE", "QUERY"] {
                assert_eq!(check(method, status), format!("{method} https://a.x/2"));
            }
        }
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"] {
            assert_eq!(check(method, 303), "GET https://a.x/2 done");
        }
        for method in ["GET", "HEAD"] {
            assert_eq!(check(method, 303), format!("{method} https://a.x/2"));
        }
        for status in [200, 300, 304, 305, 306, 309, 404] {
            assert_eq!(check("POST", status), "no redirect");
        }
    }

    #[test]
    fn post_as_get_concerns_post_alone() {
        let rules = Rules { post_as_get: true, ..RULES };
        let check = |method, status| check_with(rules, method, "https://a.x/1", status, "/2");
        for status in [301, 302] {
            assert_eq!(check("POST", status), "GET https://a.x/2 done");
            assert_eq!(check("PUT", status), "HasEffects");
            assert_eq!(check("GET", status), "GET https://a.x/2");
        }
        assert_eq!(check("POST", 307), "POST https://a.x/2");
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
            assert_eq!(check(method, from, 307, "https://b.x/"), "LeavesOrigin");
        }
        for location in ["http://a.x/", "http://b.x/"] {
            assert_eq!(check("GET", from, 302, location), "Downgrade", "{location}");
        }
        for location in ["ftp://a.x/", "mailto:a@b", "https://[", "data:,x"] {
            assert_eq!(check("GET", from, 302, location), "NoAddress", "{location}");
        }
        assert_eq!(check("GET", from, 302, "https://u:p@a.x/2"), "GET https://a.x/2", "user information is not ours");
    }

    #[test]
    fn a_transport_with_credentials_stays_at_home() {
        let rules = Rules { cross_origin: Err(NotFollowed::MayAddCredentials), ..RULES };
        let check = |method, status, location| check_with(rules, method, "https://a.x/1", status, location);
        for location in ["https://b.x/", "https://a.x:8443/"] {
            assert_eq!(check("GET", 302, location), "MayAddCredentials");
            assert_eq!(check("POST", 303, location), "MayAddCredentials");
        }
        assert_eq!(check("GET", 302, "https://a.x/2"), "GET https://a.x/2");
    }

    #[test]
    fn a_body_that_is_gone_cannot_follow() {
        let request = reqwest::Request::new(Method::PUT, "https://a.x/1".parse().unwrap());
        let gone = RequestBody::Once(None);
        let headers = [(LOCATION, "/2".parse().unwrap())].into_iter().collect();
        let next = |status, headers| next(&request, status, headers, &gone, RULES);
        assert_eq!(next(StatusCode::TEMPORARY_REDIRECT, &headers), Err(NotFollowed::BodyGone));
        assert!(next(StatusCode::SEE_OTHER, &headers).unwrap().is_some());
        assert_eq!(next(StatusCode::SEE_OTHER, &HeaderMap::new()), Err(NotFollowed::NoAddress));
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
