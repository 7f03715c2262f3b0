//! Default headers: headers for requests that do not set them, and the origins to which they may
//! go.

use http::header::{ACCEPT, ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_TYPE, COOKIE, PROXY_AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::error::{Error, Result};

/// Headers for requests that do not set them.
#[derive(Debug, Default)]
pub(super) struct Defaults {
    headers: HeaderMap,
}

impl Defaults {
    pub(super) fn new(
        headers: Vec<Result<(HeaderName, HeaderValue)>>,
        has_base: bool,
        key_header: &HeaderName,
    ) -> Result<Self> {
        let mut defaults = Self::default();
        for header in headers {
            let (name, mut value) = header?;
            if name == *key_header {
                return Err(Error::build("default_header", format!("{name} would give every operation the same key")));
            }
            if is_credential(&name, &value) {
                if !has_base {
                    let reason = format!("{name} is a credential and would go to every origin; set base_url");
                    return Err(Error::build("default_header", reason));
                }
                value.set_sensitive(true);
            }
            let full = |_| Error::build("default_header", "there are more headers than a request can have");
            defaults.headers.try_append(name, value).map_err(full)?;
        }
        Ok(defaults)
    }

    /// Adds the headers that a request does not set. `at_home`: it goes to the base URL's origin,
    /// or there is no base URL. `says_type`: its body has a content type.
    pub(super) fn add_to(&self, headers: &mut HeaderMap, at_home: bool, says_type: bool) {
        for name in self.headers.keys() {
            let travels = at_home || [ACCEPT, ACCEPT_LANGUAGE, USER_AGENT].contains(name);
            let is_said = headers.contains_key(name) || (says_type && *name == CONTENT_TYPE);
            if travels && !is_said {
                for value in self.headers.get_all(name) {
                    headers.append(name, value.clone());
                }
            }
        }
    }

    /// Returns whether there is a credential that `headers` do not have.
    pub(super) fn has_credential_beside(&self, headers: &HeaderMap) -> bool {
        self.headers.iter().any(|(name, value)| is_credential(name, value) && !headers.contains_key(name))
    }
}

/// Returns whether a request carries credentials of the caller's.
pub(super) fn has_credential(headers: &HeaderMap) -> bool {
    headers.iter().any(|(name, value)| is_credential(name, value))
}

fn is_credential(name: &HeaderName, value: &HeaderValue) -> bool {
    let known = [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(name);
    let customary = ["x-api-key", "api-key", "apikey", "x-auth-token", "x-access-token"].contains(&name.as_str());
    known || customary || value.is_sensitive()
}
