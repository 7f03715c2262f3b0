//! Headers as they are stored.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

/// Headers in their order, with the bytes of their values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredHeaders(Vec<(String, Vec<u8>)>);

impl StoredHeaders {
    pub(crate) fn to_map(&self) -> HeaderMap {
        let parsed = |(name, value): &(String, Vec<u8>)| {
            Some((HeaderName::try_from(name).ok()?, HeaderValue::from_bytes(value).ok()?))
        };
        self.0.iter().filter_map(parsed).collect()
    }
}

impl<'a> FromIterator<(&'a HeaderName, &'a HeaderValue)> for StoredHeaders {
    fn from_iter<I: IntoIterator<Item = (&'a HeaderName, &'a HeaderValue)>>(headers: I) -> Self {
        Self(headers.into_iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_owned())).collect())
    }
}
