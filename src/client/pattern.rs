//! The headers that all requests to an origin have in common, where `Host` is ours to write: filled in once for the origin, and cloned for
//! every attempt of a request that has no others, which takes half as long as to fill them in.

use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::request_body::ContentType;

/// So many headers have room in a map's index. One that is full grows whenever a header is set, even if that header is there already.
const ROOM: usize = 6;

/// The headers that requests to one origin have in common.
#[derive(Debug)]
pub(super) struct Pattern {
    /// Of a request without a key and a body.
    bare: HeaderMap,
    /// Of one with a key, whose place is there, and with the body that most of those have.
    keyed: HeaderMap,
}

impl Pattern {
    /// `Host`, which the transport would write otherwise, and `Accept: */*`, which it would add.
    pub(super) fn new(host: &HeaderValue, key: &HeaderName) -> Self {
        let mut bare = HeaderMap::with_capacity(ROOM);
        bare.insert(HOST, host.clone());
        bare.insert(ACCEPT, HeaderValue::from_static("*/*"));
        let mut keyed = bare.clone();
        keyed.insert(key.clone(), HeaderValue::from_static(""));
        keyed.extend(ContentType::USUAL.value().map(|usual| (CONTENT_TYPE, usual)));
        Self { bare, keyed }
    }

    /// The headers of a request that has none of its own.
    pub(super) fn headers(&self, key: Option<(&HeaderName, HeaderValue)>, body: ContentType) -> HeaderMap {
        let (mut headers, said) = match key {
            None => (self.bare.clone(), ContentType::Unset),
            Some((name, key)) => {
                let mut headers = self.keyed.clone();
                headers.insert(name, key);
                (headers, ContentType::USUAL)
            }
        };
        if body != said {
            match body.value() {
                Some(content_type) => headers.insert(CONTENT_TYPE, content_type),
                None => headers.remove(CONTENT_TYPE),
            };
        }
        headers
    }

    /// Adds what a request with headers of its own does not say.
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
    fn a_request_has_its_own_key_and_type_and_no_place_that_is_empty() {
        let name = HeaderName::from_static("idempotency-key");
        let pattern = Pattern::new(&HeaderValue::from_static("api.example.com"), &name);
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
