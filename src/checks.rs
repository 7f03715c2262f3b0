//! Checks of settings that the client's builder and the request's builder share.

use std::fmt::Display;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};

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

/// Checks the headers that say where a message goes and where it ends. `length` is that of the
/// body, if it is known. A server refuses a second `Host` (RFC 9112 §3.2). It takes what follows a
/// wrong `Content-Length` for another request, or waits for the rest (RFC 9112 §11.2).
pub(super) fn check_framing(headers: &HeaderMap, length: Option<u64>) -> Result<()> {
    if headers.is_empty() {
        return Ok(());
    }
    if headers.get_all(HOST).iter().nth(1).is_some() {
        return Err(Error::build("host", "the header is there twice"));
    }
    check_length(headers, length).map_err(|reason| Error::build("content-length", reason))
}

/// Checks the `Content-Length` of a body. `length` is its length, if it is known.
pub(super) fn check_length(headers: &HeaderMap, length: Option<u64>) -> std::result::Result<(), String> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(()) };
    if values.next().is_some() {
        return Err("the header is there twice".to_owned());
    }
    let is_number = value.as_bytes().iter().all(u8::is_ascii_digit);
    let Some(said) = value.to_str().ok().filter(|_| is_number).and_then(|text| text.parse::<u64>().ok()) else {
        return Err("the header is no number".to_owned());
    };
    match length {
        Some(length) if length != said => Err(format!("it says {said}, and the body has {length} bytes")),
        _ => Ok(()),
    }
}
