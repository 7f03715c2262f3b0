//! Checks of settings that the client's builder and the request's builder share.

use std::fmt::Display;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::error::{Error, Result};

pub(super) fn check_timeout(setting: &'static str, timeout: Option<Duration>) -> Result<()> {
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err(Error::build(setting, "zero leaves no time for an attempt; use None for no limit"));
    }
    Ok(())
}

pub(super) fn parse_header<K, V>(setting: &'static str, name: K, value: V) -> Result<(HeaderName, HeaderValue)>
where
    K: TryInto<HeaderName>,
    K::Error: Display,
    V: TryInto<HeaderValue>,
    V::Error: Display,
{
    let name = name.try_into().map_err(|error| Error::build(setting, error))?;
    let value = value.try_into().map_err(|error| Error::build(setting, format!("{name}: {error}")))?;
    Ok((name, value))
}

pub(super) fn bearer(token: impl Display) -> Result<HeaderValue> {
    let value = HeaderValue::try_from(format!("Bearer {token}"));
    let mut value = value.map_err(|error| Error::build("bearer_auth", error))?;
    value.set_sensitive(true);
    Ok(value)
}
