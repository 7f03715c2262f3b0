//! The rules of redirects: which one is followed, and what is sent to the new address.
//!
//! They decide whether a POST is sent again, and who sees its credentials (RFC 9110 §15.4,
//! tightened):
//!
//! * 307 and 308 keep method, body and key, on the same origin only. They mean that the server has
//!   not acted.
//! * 301 and 302 are followed for safe methods only. To a POST, PUT, PATCH or DELETE they leave
//!   open whether the request was carried out: some servers send them when an address has moved,
//!   others after they have acted. So the operation ends there. At the user's request a POST
//!   becomes a GET, as in browsers.
//! * 303 means "done, look there" and becomes a GET without body and key. From then on the
//!   operation *was processed*, and after a failure that GET is repeated.
//! * Another origin gets GET and HEAD without a body only. It gets neither credentials, cookies,
//!   key nor `Referer`, on that hop and on every later one. Of the caller's headers it gets
//!   `Accept`, `Accept-Language`, `Range` and `User-Agent`.
//! * A transport that the user has configured may add credentials by itself. With one no hop leaves
//!   its origin, unless the user states that it adds none.
//! * https to http is never followed; http to https on the same host is another origin.
//!
//! A redirect that is not followed is returned to the caller. This file does no I/O. The wire tests
//! are in `tests/it/redirects.rs`.

use http::header::{
    ACCEPT, ACCEPT_LANGUAGE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_TYPE,
    EXPECT, LOCATION, RANGE, TRANSFER_ENCODING, USER_AGENT,
};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use reqwest::Url;

use super::origin::origin;
use super::request_body::RequestBody;
use crate::journal::NotFollowed;
use crate::policy::is_safe;

/// How the error of redirects in a circle begins.
pub(super) const CIRCLE: &str = "a circle of redirects";

/// The evidence of an attempt's redirects about the operation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RedirectState {
    /// A 303 has ended the operation. The next request is the GET of its result.
    pub(super) is_done: bool,
    /// A redirect was followed after which the server may have acted.
    pub(super) may_have_acted: bool,
    /// A hop has left the origin. The response is another server's.
    pub(super) is_elsewhere: bool,
    /// The transport may have followed redirects unseen.
    pub(super) is_opaque: bool,
    /// Why the last redirect was not followed.
    pub(super) not_followed: Option<NotFollowed>,
}

/// The redirects that one attempt has followed.
#[derive(Debug, Default)]
pub(super) struct RedirectTrail {
    steps: Vec<String>,
    /// The GET of the result, once a 303 has named it. Later attempts start from here.
    pub(super) result: Option<ResultRequest>,
    /// The last hop that kept the method. Later attempts start without it.
    pub(super) same_method: Option<reqwest::Request>,
}

/// The GET of an operation's result.
#[derive(Debug)]
pub(super) struct ResultRequest {
    pub(super) request: reqwest::Request,
    pub(super) is_elsewhere: bool,
}

impl RedirectTrail {
    /// Returns the request of the last hop.
    pub(super) fn hop(&self) -> Option<&reqwest::Request> {
        let result = || self.result.as_ref().map(|result| &result.request);
        self.same_method.as_ref().or_else(result)
    }

    /// Records that a redirect leads from the last hop, or from `first`, to `hop`.
    ///
    /// # Errors
    ///
    /// The hop closes a loop, or is one more than `max_redirects`. The text lists all hops.
    pub(super) fn add_step(&mut self, first: &reqwest::Request, hop: &Hop, max_redirects: u32) -> Result<(), String> {
        let target = format!("{} {}", hop.method, hop.url);
        let from = self.hop().unwrap_or(first);
        let from = format!("{} {}", from.method(), from.url());
        self.steps.push(from);
        let reason = if self.steps.contains(&target) {
            CIRCLE
        } else if self.steps.len() > usize::try_from(max_redirects).unwrap_or(usize::MAX) {
            "too many redirects"
        } else {
            return Ok(());
        };
        self.steps.push(target);
        // Query and fragment may be secret.
        let without_query = |step: &String| step.split(['?', '#']).next().unwrap_or_default().to_owned();
        let steps: Vec<String> = self.steps.iter().map(without_query).collect();
        Err(format!("{reason}: {}", steps.join(" -> ")))
    }
}

/// A request, and the body that it was sent with.
#[derive(Clone, Copy, Debug)]
pub(super) struct SentRequest<'a> {
    pub(super) request: &'a reqwest::Request,
    pub(super) body: &'a RequestBody,
}

/// The next hop of a redirect that is followed.
#[derive(Debug, PartialEq)]
pub(super) struct Hop {
    pub(super) url: Url,
    pub(super) method: Method,
    /// The operation is done, and its result is at this URL.
    pub(super) is_result: bool,
    /// This hop goes to another origin than the one before it.
    pub(super) leaves_origin: bool,
    /// The server may have acted on the request that it redirects.
    pub(super) may_have_acted: bool,
}

/// The settings that decide, together with the response, whether a redirect is followed.
#[derive(Clone, Copy, Debug)]
pub(super) struct RedirectRules {
    /// The request has no effects, so the server cannot have acted.
    pub(super) is_harmless: bool,
    /// A 301 or 302 to a POST becomes a GET, as in browsers.
    pub(super) post_as_get: bool,
    /// Whether a GET or HEAD may go to another origin, and why not.
    pub(super) cross_origin: Result<(), NotFollowed>,
}

/// Returns the hop that a response asks for, or `None` if it is no redirect.
///
/// # Errors
///
/// The response is a redirect that must not be followed.
pub(super) fn next_hop(
    from: SentRequest<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    rules: RedirectRules,
) -> Result<Option<Hop>, NotFollowed> {
    let SentRequest { request, body } = from;
    let method = request.method();
    let is_result = match status.as_u16() {
        303 => *method != Method::GET && *method != Method::HEAD,
        301 | 302 if rules.post_as_get && *method == Method::POST => true,
        301 | 302 if !is_safe(method) => return Err(NotFollowed::HasEffects),
        301 | 302 | 307 | 308 => false,
        _ => return Ok(None),
    };
    let url = location(request.url(), headers)?;
    if request.url().scheme() == "https" && url.scheme() != "https" {
        return Err(NotFollowed::Downgrade);
    }
    let method = if is_result { Method::GET } else { method.clone() };
    let leaves_origin = origin(&url) != origin(request.url());
    if leaves_origin {
        let is_read = method == Method::GET || method == Method::HEAD;
        if !is_read || !(is_result || body.is_empty()) {
            return Err(NotFollowed::LeavesOrigin);
        }
        rules.cross_origin?;
    }
    if !is_result && !body.is_replayable() {
        return Err(NotFollowed::BodyGone);
    }
    // 307 and 308 mean that the server has not acted, 303 that it has. 301 and 302 leave it open.
    let may_have_acted = matches!(status.as_u16(), 301..=303) && !rules.is_harmless;
    Ok(Some(Hop { url, method, is_result, leaves_origin, may_have_acted }))
}

/// Returns whether a response with this status asks for another request.
pub(super) fn asks_for_hop(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301..=303 | 307 | 308)
}

/// Returns the http or https URL in the `Location` of a response from `base`.
///
/// A `Location` is ASCII (RFC 9110 §10.2.2, RFC 3986). Many servers send raw UTF-8 nevertheless.
/// As browsers and curl do, this percent-encodes every other byte.
///
/// # Errors
///
/// There is no `Location`, or it is no such URL.
pub(super) fn location(base: &Url, headers: &HeaderMap) -> Result<Url, NotFollowed> {
    let location = headers.get(LOCATION).ok_or(NotFollowed::NoAddress)?;
    resolve(base, &escaped(location.as_bytes()))
}

/// Resolves the http or https URL in a header of a response from `base`. User information is
/// removed, since it is the server's and not the caller's.
///
/// # Errors
///
/// It is no such URL.
pub(super) fn resolve(base: &Url, target: &str) -> Result<Url, NotFollowed> {
    let mut url = base.join(target).map_err(|_| NotFollowed::BadAddress)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(NotFollowed::NotHttp);
    }
    url.set_username("").map_err(|()| NotFollowed::BadAddress)?;
    url.set_password(None).map_err(|()| NotFollowed::BadAddress)?;
    Ok(url)
}

fn escaped(location: &[u8]) -> String {
    let mut text = String::with_capacity(location.len());
    for &byte in location {
        if byte.is_ascii() {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

impl Hop {
    /// Makes the request of this hop. `is_elsewhere`: this hop, or one before it, left the origin.
    pub(super) fn into_request(
        self,
        from: &reqwest::Request,
        is_elsewhere: bool,
        key_header: &HeaderName,
    ) -> reqwest::Request {
        let blank = || reqwest::Request::new(self.method.clone(), self.url.clone());
        let mut request = from.try_clone().unwrap_or_else(blank);
        *request.method_mut() = self.method;
        *request.url_mut() = self.url;
        let headers = request.headers_mut();
        if self.is_result {
            headers.remove(key_header);
            for name in BODY_HEADERS {
                headers.remove(name);
            }
        }
        if is_elsewhere {
            let all = std::mem::take(headers);
            let kept = all.iter().filter(|(name, _)| CROSS_ORIGIN_HEADERS.contains(name));
            headers.extend(kept.map(|(name, value)| (name.clone(), value.clone())));
        }
        request
    }
}

/// Headers that describe a body.
const BODY_HEADERS: [HeaderName; 7] =
    [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LOCATION, TRANSFER_ENCODING, EXPECT];
/// The only headers that another origin gets.
const CROSS_ORIGIN_HEADERS: [HeaderName; 4] = [ACCEPT, ACCEPT_LANGUAGE, RANGE, USER_AGENT];

#[cfg(test)]
mod tests {
    use super::*;

    /// Where `method from` goes on `status` with this `Location`.
    fn check(method: &str, from: &str, status: u16, location: &str) -> String {
        check_with(RULES, method, from, status, location)
    }

    const RULES: RedirectRules = RedirectRules { is_harmless: true, post_as_get: false, cross_origin: Ok(()) };

    fn check_with(rules: RedirectRules, method: &str, from: &str, status: u16, location: &str) -> String {
        let request = reqwest::Request::new(method.parse().unwrap(), from.parse().unwrap());
        let headers = [(LOCATION, location.parse().unwrap())].into_iter().collect();
        let from = SentRequest { request: &request, body: &RequestBody::Empty };
        match next_hop(from, StatusCode::from_u16(status).unwrap(), &headers, rules) {
            Ok(None) => "no redirect".to_owned(),
            Err(reason) => format!("{reason:?}"),
            Ok(Some(hop)) => {
                let marks = [(hop.is_result, " done"), (hop.leaves_origin, " leaves")];
                let marks: String = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
                format!("{} {}{marks}", hop.method, hop.url)
            }
        }
    }

    #[test]
    fn status_decides_the_method_of_the_hop() {
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
        let rules = RedirectRules { post_as_get: true, ..RULES };
        let check = |method, status| check_with(rules, method, "https://a.x/1", status, "/2");
        for status in [301, 302] {
            assert_eq!(check("POST", status), "GET https://a.x/2 done");
            assert_eq!(check("PUT", status), "HasEffects");
            assert_eq!(check("GET", status), "GET https://a.x/2");
        }
        assert_eq!(check("POST", 307), "POST https://a.x/2");
    }

    #[test]
    fn another_origin_gets_reads_and_no_downgrade() {
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
        for location in ["ftp://a.x/", "mailto:a@b", "data:,x"] {
            assert_eq!(check("GET", from, 302, location), "NotHttp", "{location}");
        }
        assert_eq!(check("GET", from, 302, "https://["), "BadAddress");
        assert_eq!(check("GET", from, 302, "https://u:p@a.x/2"), "GET https://a.x/2", "user information is not ours");
    }

    /// As Chromium and curl read them: `é` in UTF-8 and in Latin-1, and a host name in UTF-8.
    #[test]
    fn raw_bytes_in_location_are_percent_encoded() {
        let base = "https://a.x/1".parse().unwrap();
        let read = |bytes: &[u8]| {
            let value = http::HeaderValue::from_bytes(bytes).unwrap();
            location(&base, &[(LOCATION, value)].into_iter().collect()).unwrap().to_string()
        };
        assert_eq!(read("/é?q=é".as_bytes()), "https://a.x/%C3%A9?q=%C3%A9");
        assert_eq!(read(b"/\xe9"), "https://a.x/%E9");
        assert_eq!(read("https://bücher.example/".as_bytes()), "https://xn--bcher-kva.example/");
    }

    #[test]
    fn transport_with_credentials_stays_on_its_origin() {
        let rules = RedirectRules { cross_origin: Err(NotFollowed::MayAddCredentials), ..RULES };
        let check = |method, status, location| check_with(rules, method, "https://a.x/1", status, location);
        for location in ["https://b.x/", "https://a.x:8443/"] {
            assert_eq!(check("GET", 302, location), "MayAddCredentials");
            assert_eq!(check("POST", 303, location), "MayAddCredentials");
        }
        assert_eq!(check("GET", 302, "https://a.x/2"), "GET https://a.x/2");
    }

    #[test]
    fn consumed_body_cannot_be_redirected() {
        let request = reqwest::Request::new(Method::PUT, "https://a.x/1".parse().unwrap());
        let gone = RequestBody::Once(None);
        let headers = [(LOCATION, "/2".parse().unwrap())].into_iter().collect();
        let from = SentRequest { request: &request, body: &gone };
        let next = |status, headers| next_hop(from, status, headers, RULES);
        assert_eq!(next(StatusCode::TEMPORARY_REDIRECT, &headers), Err(NotFollowed::BodyGone));
        assert!(next(StatusCode::SEE_OTHER, &headers).unwrap().is_some());
        assert_eq!(next(StatusCode::SEE_OTHER, &HeaderMap::new()), Err(NotFollowed::NoAddress));
    }

    #[test]
    fn four_headers_go_to_another_origin() {
        let mut from = reqwest::Request::new(Method::GET, "https://a.x/1".parse().unwrap());
        for name in
            ["accept", "accept-language", "range", "user-agent", "authorization", "cookie", "x-api-key", "referer"]
        {
            from.headers_mut().insert(HeaderName::from_static(name), "v".parse().unwrap());
        }
        let hop = Hop {
            url: "https://b.x/".parse().unwrap(),
            method: Method::GET,
            is_result: false,
            leaves_origin: true,
            may_have_acted: false,
        };
        let key_header = HeaderName::from_static("idempotency-key");
        let request = hop.into_request(&from, true, &key_header);
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "accept-language", "range", "user-agent"]);
    }
}
