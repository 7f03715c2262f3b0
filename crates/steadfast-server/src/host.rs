//! The host of a request.
//!
//! One process may serve several hosts, and equal paths on two of them are two different requests.
//! The port is left out: two instances of one service often differ in nothing else (RFC 9110 §4.3.1
//! would call them two origins).

use std::borrow::Cow;

use http::header::HOST;
use http::request::Parts;

/// Returns the request's host name, in lower case, without its port and without the dot of the DNS
/// root. `None` if it has none.
///
/// The target comes first: `:authority` of HTTP/2, the absolute form of HTTP/1. A server has to
/// ignore a `Host` header beside it (RFC 9112 §3.2.2, RFC 9113 §8.3.1). Two `Host` headers,
/// or one that is no text, count as none. `Forwarded` and similar headers are never read, because
/// any client can send them.
pub(super) fn host_of(parts: &Parts) -> Option<Cow<'_, str>> {
    let host = match parts.uri.host() {
        Some(host) => host,
        None => without_port(host_header(parts)?),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_lower = !host.bytes().any(|byte| byte.is_ascii_uppercase());
    let host = if is_lower { Cow::Borrowed(host) } else { Cow::Owned(host.to_ascii_lowercase()) };
    Some(host).filter(|host| !host.is_empty())
}

fn host_header(parts: &Parts) -> Option<&str> {
    let mut lines = parts.headers.get_all(HOST).iter();
    match (lines.next(), lines.next()) {
        (Some(line), None) => Some(line.to_str().ok()?.trim_matches([' ', '\t'])),
        _ => None,
    }
}

/// Cuts off the port: `example.com:8080` becomes `example.com`, and `[::1]:8080` becomes `[::1]`.
fn without_port(authority: &str) -> &str {
    let port = match authority.rfind(']') {
        Some(bracket) => bracket + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    authority.get(..port).unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(uri: &str, hosts: &[&[u8]]) -> Option<String> {
        let mut request = http::Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        host_of(&parts).map(Cow::into_owned)
    }

    #[test]
    fn host_is_lower_case_without_port() {
        for (header, expected) in [
            ("example.com", "example.com"),
            ("API.Example.com:8443", "api.example.com"),
            ("example.com.", "example.com"),
            ("example.com.:80", "example.com"),
            ("example.com:", "example.com"),
            (" example.com\t", "example.com"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]:8080", "[::1]"),
            ("[2001:DB8::1]", "[2001:db8::1]"),
        ] {
            assert_eq!(host("/orders", &[header.as_bytes()]).as_deref(), Some(expected), "{header}");
        }
    }

    #[test]
    fn target_outranks_host_header() {
        let other: &[&[u8]] = &[b"other.example"];
        assert_eq!(host("https://Example.com:443/orders", other).as_deref(), Some("example.com"));
        assert_eq!(host("http://[::1]:8080/", &[]).as_deref(), Some("[::1]"));
        assert_eq!(host("https://user:secret@example.com/", &[]).as_deref(), Some("example.com"));
    }

    #[test]
    fn missing_or_unreadable_host_is_none() {
        let none: [&[&[u8]]; 6] = [&[], &[b""], &[b"."], &[b":80"], &[b"k\xe9y"], &[b"a.example", b"b.example"]];
        for hosts in none {
            assert_eq!(host("/orders", hosts), None, "{hosts:?}");
        }
    }
}
