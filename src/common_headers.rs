//! The headers that all requests to an origin have in common, where this client writes `Host`.
//!
//! They are built once per origin. Every attempt of a request without other headers clones them,
//! which takes half as long as to build them.

use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::request_body::ContentType;

/// Capacity of the header maps. A full map grows even if the header that is set is there already.
const CAPACITY: usize = 6;

/// The headers that requests to one origin have in common.
#[derive(Debug)]
pub(super) struct CommonHeaders {
    /// The headers of a request without a key and without a body.
    bare: HeaderMap,
    /// The headers of a request with a key, as a placeholder, and the usual content type.
    keyed: HeaderMap,
}

impl CommonHeaders {
    /// Builds `Host` and `Accept: */*`, which the transport would add otherwise.
    pub(super) fn new(host: &HeaderValue, key: &HeaderName) -> Self {
        let mut bare = HeaderMap::with_capacity(CAPACITY);
        bare.insert(HOST, host.clone());
        bare.insert(ACCEPT, HeaderValue::from_static("*/*"));
        let mut keyed = bare.clone();
        keyed.insert(key.clone(), HeaderValue::from_static(""));
        keyed.extend(ContentType::USUAL.value().map(|usual| (CONTENT_TYPE, usual)));
        Self { bare, keyed }
    }

    /// Returns the headers of a request that has none of its own.
    pub(super) fn headers(&self, key: Option<(&HeaderName, HeaderValue)>, body: ContentType) -> HeaderMap {
        let (mut headers, content_type) = match key {
            None => (self.bare.clone(), ContentType::Unset),
            Some((name, key)) => {
                let mut headers = self.keyed.clone();
                headers.insert(name, key);
                (headers, ContentType::USUAL)
            }
        };
        if body != content_type {
            match body.value() {
                Some(content_type) => headers.insert(CONTENT_TYPE, content_type),
                None => headers.remove(CONTENT_TYPE),
            };
        }
        headers
    }

    /// Adds the headers that a request does not set itself.
    pub(super) fn add_to(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.bare {
            headers.entry(name).or_insert_with(|| value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_headers_have_key_and_type_of_request() {
        let name = HeaderName::from_static("idempotency-key");
        let pattern = CommonHeaders::new(&HeaderValue::from_static("api.example.com"), &name);
        for key in [None, Some("k")] {
            for body in [ContentType::Unset, ContentType::Form, ContentType::USUAL] {
                let own = key.map(|key| (&name, HeaderValue::from_static(key)));
                let headers = pattern.headers(own, body);
                let content_type = body.value();
                let content_type = content_type.as_ref().map(|value| value.to_str().unwrap());
                let value = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap());
                let all = [value(&HOST), value(&ACCEPT), value(&name), value(&CONTENT_TYPE)];
                assert_eq!(all, [Some("api.example.com"), Some("*/*"), key, content_type]);
                assert_eq!(headers.len(), all.iter().flatten().count());
            }
        }
    }
}
