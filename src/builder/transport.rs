//! The HTTP client below: this crate's defaults on it, and what is left to find out of the
//! environment.

use std::ffi::OsString;
use std::time::Duration;

#[cfg(feature = "rustls")]
use super::super::transport_error;
use crate::error::{Error, Result};
use crate::policy::CENTURY;

/// Under the 5 s after which Node.js, Apache and uvicorn close an idle connection (load balancers
/// wait for 60 s and more). A connection that the server has just closed cannot carry a request.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Time after which a silent HTTP/2 connection is pinged, and after which it is closed if the ping
/// gets no response. The sum is under the attempt timeout, so that a retry does not use the same
/// dead connection.
const HTTP2_PING: Duration = Duration::from_secs(4);

/// Sets this crate's defaults on reqwest, before your own settings, so that you can change them.
pub(super) fn healthy(http: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    // If another crate compiles both TLS libraries in, rustls remains the one in use. Its
    // certificate errors are recognised.
    #[cfg(feature = "rustls")]
    let http = http.tls_backend_rustls();
    // reqwest would look for a system proxy with every request, even if there is none.
    let http = if names_a_proxy(std::env::vars_os()) { http } else { http.no_proxy() };
    http.pool_idle_timeout(POOL_IDLE_TIMEOUT).http2_keep_alive_interval(HTTP2_PING).http2_keep_alive_timeout(HTTP2_PING)
}

/// Returns whether this environment can name a proxy. It does so by a variable such as
/// `HTTPS_PROXY` or `all_proxy`. On Apple's systems and outside of Unix there are also settings
/// that only reqwest reads.
fn names_a_proxy(mut environment: impl Iterator<Item = (OsString, OsString)>) -> bool {
    let has_settings = cfg!(any(not(unix), target_vendor = "apple"));
    has_settings || environment.any(|(name, _)| name.to_ascii_lowercase().to_string_lossy().ends_with("_proxy"))
}

/// Returns whether a proxy may be reached over TLS, and so over HTTP/2.
pub(super) fn names_a_tls_proxy(mut environment: impl Iterator<Item = (OsString, OsString)>) -> bool {
    let lower = |text: &OsString| text.to_ascii_lowercase().to_string_lossy().into_owned();
    environment.any(|(name, value)| lower(&name).ends_with("_proxy") && lower(&value).trim().starts_with("https:"))
}

/// Builds the HTTP client, and turns off all of its own redirects and retries.
pub(super) fn finish(
    http: reqwest::ClientBuilder,
    connect_timeout: Option<Duration>,
) -> reqwest::Result<reqwest::Client> {
    // `never()` alone still clones every request.
    let no_retries = reqwest::retry::never().max_retries_per_request(0);
    let mut http = http.redirect(reqwest::redirect::Policy::none()).retry(no_retries);
    if let Some(timeout) = connect_timeout {
        http = http.connect_timeout(timeout.min(CENTURY));
    }
    http.build()
}

pub(super) fn not_built(error: reqwest::Error) -> Error {
    Error::build("http", "the HTTP client could not be built").with_source(Some(error.without_url().into()))
}

/// Builds the HTTP client of a host without CA certificates, such as a container image without
/// them. Requests to `http` work, and every certificate is rejected. Also returns `true`, so that
/// error lines can name the reason.
///
/// # Errors
///
/// The HTTP client could not be built for another reason.
#[cfg(feature = "rustls")]
pub(super) fn without_roots(
    error: reqwest::Error,
    connect_timeout: Option<Duration>,
) -> Result<(reqwest::Client, bool)> {
    if !transport_error::lacks_roots(&error) {
        return Err(not_built(error));
    }
    let http = healthy(reqwest::Client::builder()).tls_certs_only([]);
    Ok((finish(http, connect_timeout).map_err(not_built)?, true))
}

#[cfg(not(feature = "rustls"))]
pub(super) fn without_roots(error: reqwest::Error, _: Option<Duration>) -> Result<(reqwest::Client, bool)> {
    Err(not_built(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To a proxy over TLS even a request to `http` may be sent in HTTP/2.
    #[test]
    fn proxy_over_tls_is_found_under_any_name() {
        let named = |name: &str, value: &str| names_a_tls_proxy([(name.into(), value.into())].into_iter());
        for name in ["HTTP_PROXY", "http_proxy", "All_Proxy"] {
            assert!(named(name, "https://proxy.internal:3128") && named(name, " HTTPS://proxy.internal"), "{name}");
            assert!(!named(name, "http://proxy.internal:3128") && !named(name, "proxy.internal:3128"), "{name}");
        }
        assert!(!named("PROXY_DOCS", "https://proxy.internal"));
    }
}
