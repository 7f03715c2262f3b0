//! Finds out from a transport's error what the server can have received, and what lies behind it.
//!
//! reqwest prints "error sending request" both for a refused connection and for a charge that was
//! made without a response. The difference is in the chain of sources, and only this file walks it.
//! An error that it does not recognise, or a failed downcast, is `Unknown`, which is ambiguous.
//! Unsure never becomes "safe to repeat".
//!
//! The table is in `guide/failures.md`. Each row is a test over a real socket in `tests/it/wire/`.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::io;

use hyper_util::client::legacy;

use super::send_probe::SendProbe;
use crate::cause::Cause;
#[cfg(feature = "json")]
use crate::decode::DecodeError;
use crate::error::{BoxError, Error, ErrorKind};
use crate::policy::Failure;

/// Returns the failure of a failed `execute`. `probe` watches the request's body, if it has one.
/// `is_as_made`: the transport is as this crate made it, so it speaks HTTP/2 only where TLS has
/// negotiated it.
pub(super) fn of_transport(error: &reqwest::Error, probe: Option<&SendProbe>, is_as_made: bool) -> Failure {
    if error.is_builder() || error.is_redirect() {
        return Failure::InvalidRequest;
    }
    // First, because the body may come from another connection, whose failure looks the same.
    if probe.is_some_and(SendProbe::failed) {
        return Failure::RequestBody;
    }
    // Before timeouts, because a connect timeout is both.
    if error.is_connect() {
        return of_connecting(error);
    }
    // TLS 1.3 reports a missing client certificate only after the handshake.
    if client_certificate_alert(error).is_some() {
        return Failure::Certificate;
    }
    if has_left_the_pool(error) {
        return Failure::NotSent;
    }
    if let Some(error) = find::<h2::Error>(error) {
        return of_http2(error);
    }
    let first = find::<hyper::Error>(error);
    if first.is_some_and(hyper::Error::is_parse) {
        return Failure::BadResponse;
    }
    // It nests an incomplete message, so only the first in the chain counts.
    if first.is_some_and(hyper::Error::is_canceled) {
        return Failure::NotSent;
    }
    let was_cut = first.is_some_and(hyper::Error::is_incomplete_message) || find::<io::Error>(error).is_some();
    // A mistake in the caller's headers is found while the head is written. It is not known how
    // much was written by then.
    let is_ours = first.is_some_and(hyper::Error::is_user);
    if let Some(probe) = probe
        && probe.seal()
        && !is_ours
        && (probe.is_http1() || (was_cut && is_as_made && was_on_http1(error)))
    {
        return Failure::NotSent;
    }
    if error.is_timeout() {
        return Failure::Timeout;
    }
    if was_cut || first.is_some_and(hyper::Error::is_closed) { Failure::Disconnected } else { Failure::Unknown }
}

/// Returns whether a timer of reqwest's ended the attempt: its `timeout` or `read_timeout`. A silent
/// HTTP/2 connection that did not answer a ping is another timeout, and has an error of hyper.
pub(super) fn is_timer(error: &reqwest::Error) -> bool {
    error.is_timeout() && find::<hyper::Error>(error).is_none() && find::<io::Error>(error).is_none()
}

/// Returns the failure of an attempt that the client's own timer ended. Over HTTP/2 its head may
/// still be sent.
pub(super) fn of_timeout(probe: Option<&SendProbe>) -> Failure {
    match probe {
        Some(probe) if probe.seal() && probe.is_http1() => Failure::NotSent,
        _ => Failure::Timeout,
    }
}

/// Returns why there was no connection. A lack in this process must not count against the origin.
fn of_connecting(error: &reqwest::Error) -> Failure {
    if is_certificate(error) {
        return Failure::Certificate;
    }
    if tunnel_error(error) == Some(PROXY_LOGIN) {
        return Failure::ProxyLogin;
    }
    if io_errors(error).any(lacks_resources) { Failure::LocalResources } else { Failure::Connect }
}

/// Returns whether hyper-util gave the request up before it had a connection. It dials one
/// connection for each of the first requests to an origin. If TLS chooses HTTP/2 on several at
/// once, it keeps one, and the others wait for that. A request whose wait was cancelled before ends
/// with this text. hyper-util has no other mark. With another text the failure is ambiguous again.
fn has_left_the_pool(error: &reqwest::Error) -> bool {
    let Some(error) = find::<legacy::Error>(error).filter(|error| error.connect_info().is_none()) else { return false };
    error.source().is_some_and(|source| source.to_string() == "ALPN upgraded to HTTP/2")
}

/// Returns whether the operating system refused to open a socket. `EADDRNOTAVAIL` does not count,
/// although it also means that no port is left: on a host without IPv6, a server that is down looks
/// like this if its name has both kinds of address.
fn lacks_resources(error: &io::Error) -> bool {
    lacking_resource(error).is_some()
}

fn lacking_resource(error: &io::Error) -> Option<Cause> {
    const ENOBUFS: i32 = if cfg!(any(target_os = "linux", target_os = "android")) { 105 } else { 55 };
    match (error.raw_os_error()?, cfg!(windows)) {
        (24, false) | (10_024, true) => Some(Cause::ProcessDescriptors), // EMFILE, WSAEMFILE
        (23, false) => Some(Cause::HostDescriptors),                     // ENFILE
        (12 | ENOBUFS, false) | (10_055, true) => Some(Cause::Memory),   // ENOMEM, ENOBUFS, WSAENOBUFS
        _ => None,
    }
}

/// Returns whether the request failed on a connection that spoke HTTP/1. hyper turns errors of h2
/// into an `io::Error`, too, and then only this tells them apart. A connection that is not
/// described may be either.
fn was_on_http1(error: &reqwest::Error) -> bool {
    let connected = find::<legacy::Error>(error).and_then(legacy::Error::connect_info);
    connected.is_some_and(|connected| !connected.is_negotiated_h2())
}

/// Returns what an HTTP/2 error means. A stream that was refused, or is above the last one that a
/// GOAWAY names, was not processed (RFC 9113 §8.7). h2 reports a remote GOAWAY only to the streams
/// above it.
fn of_http2(error: &h2::Error) -> Failure {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if error.is_remote() && (refused || error.is_go_away()) {
        return Failure::Refused;
    }
    if rejects_response(error) { Failure::BadResponse } else { Failure::Disconnected }
}

/// Returns whether h2 itself has rejected a response. It resets the stream in the same way if the
/// head is over the limit and if it is malformed (h2 0.4.20, `Streams::recv_headers`).
fn rejects_response(error: &h2::Error) -> bool {
    error.is_library() && error.is_reset() && error.reason() == Some(h2::Reason::PROTOCOL_ERROR)
}

/// Returns an error of the user's without the URL, if it is one of reqwest's. A URL can hold a secret.
pub(super) fn without_url(error: BoxError) -> BoxError {
    match error.downcast::<reqwest::Error>() {
        Ok(error) => error.without_url().into(),
        Err(error) => error,
    }
}

/// Returns what lies behind a failure of the transport, for the error line. It decides nothing.
/// `lacks_roots`: the client was built without CA certificates.
pub(super) fn cause(failure: Failure, source: &BoxError, lacks_roots: bool) -> Option<Cause> {
    let error = source.downcast_ref::<reqwest::Error>()?;
    // hyper has a question for this in its server half only.
    let too_large = || find::<hyper::Error>(error).is_some_and(|error| error.to_string() == HEAD_TOO_LARGE);
    match failure {
        Failure::Certificate if lacks_roots && is_unknown_issuer(error) => Some(Cause::NoCaCertificates),
        Failure::Certificate => cause_of_tls(error),
        Failure::Connect | Failure::LocalResources => cause_of_connecting(error),
        // Through a client that may have followed a redirect.
        Failure::Unknown if error.is_connect() => cause_of_connecting(error),
        Failure::BadResponse if too_large() => Some(Cause::Http1HeadTooLarge),
        Failure::BadResponse => {
            find::<h2::Error>(error).is_some_and(rejects_response).then_some(Cause::Http2HeadTooLarge)
        }
        Failure::Timeout | Failure::BodyCut | Failure::NotSent | Failure::Unknown if error.is_timeout() => {
            Some(Cause::TransportTimeout)
        }
        Failure::Disconnected | Failure::BodyCut | Failure::Unknown => {
            io_errors(error).any(|error| error.kind() == io::ErrorKind::ConnectionReset).then_some(Cause::Reset)
        }
        _ => None,
    }
}

fn cause_of_connecting(error: &reqwest::Error) -> Option<Cause> {
    if let Some(cause) = io_errors(error).find_map(lacking_resource) {
        return Some(cause);
    }
    match tunnel_error(error) {
        Some("failed to create underlying connection") => return Some(Cause::ProxyUnreachable),
        Some("unsuccessful" | "proxy response headers too long") => return Some(Cause::ProxyRefused),
        Some("unexpected end of file" | "io error establishing tunnel") => return Some(Cause::ProxyClosed),
        _ => {}
    }
    if error.is_dns() || chain(error).any(|error| error.to_string() == "dns error") {
        return Some(cause_of_lookup(error));
    }
    let from_system = io_errors(error).find(|error| error.raw_os_error().is_some());
    if from_system.is_none() && error.is_timeout() {
        return Some(Cause::ConnectTimeout);
    }
    let of_kind = from_system.or_else(|| io_errors(error).next()).and_then(|error| cause_of_kind(error.kind()));
    of_kind.or_else(|| cause_of_tls(error))
}

fn cause_of_kind(kind: io::ErrorKind) -> Option<Cause> {
    match kind {
        io::ErrorKind::ConnectionRefused => Some(Cause::Refused),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Some(Cause::Reset),
        io::ErrorKind::UnexpectedEof => Some(Cause::ClosedEarly),
        io::ErrorKind::TimedOut => Some(Cause::SystemTimeout),
        io::ErrorKind::HostUnreachable => Some(Cause::HostUnreachable),
        io::ErrorKind::NetworkUnreachable => Some(Cause::NetworkUnreachable),
        io::ErrorKind::PermissionDenied => Some(Cause::NotPermitted),
        io::ErrorKind::AddrNotAvailable => Some(Cause::NoLocalAddress),
        _ => None,
    }
}

/// Tells a name that does not exist from a resolver that failed. std keeps only the text of the
/// operating system's error. A text that is not known here is "the name lookup failed".
fn cause_of_lookup(error: &reqwest::Error) -> Cause {
    const UNKNOWN_NAMES: [&str; 5] = [
        "Name or service not known",           // glibc
        "Name does not resolve",               // musl
        "nodename nor servname provided",      // macOS, BSD
        "No address associated with hostname", // glibc, Android
        "No such host is known",               // Windows
    ];
    let says_unknown = |error: &io::Error| UNKNOWN_NAMES.iter().any(|text| error.to_string().contains(text));
    if io_errors(error).any(says_unknown) { Cause::NoSuchHost } else { Cause::NameLookup }
}

const HEAD_TOO_LARGE: &str = "message head is too large";
const TUNNEL_ERROR: &str = "tunnel error: ";
const PROXY_LOGIN: &str = "proxy authorization required";

/// Returns how a proxy's tunnel failed. hyper-util does not export the type of this error, so its
/// text must do (`Tunnel`, 0.1.21). It tells a 407 from other refusals, and no other status. A text
/// that is not known here leaves the failure "could not connect", which is safe to repeat.
fn tunnel_error(error: &reqwest::Error) -> Option<&'static str> {
    const KNOWN: [&str; 6] = [
        PROXY_LOGIN,
        "unsuccessful",
        "unexpected end of file",
        "proxy response headers too long",
        "failed to create underlying connection",
        "io error establishing tunnel",
    ];
    let texts = chain(error).map(ToString::to_string);
    texts.filter_map(|text| KNOWN.into_iter().find(|known| text.strip_prefix(TUNNEL_ERROR) == Some(known))).next()
}

fn io_errors(error: &reqwest::Error) -> impl Iterator<Item = &io::Error> {
    chain(error).filter_map(|error| error.downcast_ref())
}

/// Returns whether reqwest could not be built because this host has no CA certificates.
/// rustls-platform-verifier reports that as a `General` error, which is a text (0.7.1).
#[cfg(feature = "rustls")]
pub(super) fn lacks_roots(error: &reqwest::Error) -> bool {
    let text = |error: &rustls::Error| matches!(error, rustls::Error::General(text) if text.contains("No CA cert"));
    error.is_builder() && find::<rustls::Error>(error).is_some_and(text)
}

/// An error of reqwest itself, as that of reading a response that `send` has returned. Its URL is
/// left out. It knows nothing of the operation, which may have been processed.
impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        let status = error.status();
        let (kind, what) = outside(&error);
        // serde's messages quote the response.
        let is_quoting = kind == ErrorKind::Decode;
        let source = (!is_quoting).then(|| error.without_url().into());
        Self::new(kind, what).with_source(source).of_no_operation(status)
    }
}

/// Returns the kind of an error that comes from outside of an attempt, and what happened.
fn outside(error: &reqwest::Error) -> (ErrorKind, Cow<'static, str>) {
    let json = if error.is_decode() { find::<serde_json::Error>(error) } else { None };
    match json {
        Some(json) => (ErrorKind::Decode, format!("the response is not the expected JSON{}", place(json)).into()),
        // Not `Build`, which says that nothing was sent.
        None if error.is_builder() => (ErrorKind::Transport, "reqwest could not build a request".into()),
        // Before timeouts, because a connect timeout is both.
        None if error.is_connect() && of_connecting(error) == Failure::Certificate => {
            (ErrorKind::Certificate, Failure::Certificate.as_str().into())
        }
        None if error.is_connect() => (ErrorKind::Connect, Failure::Connect.as_str().into()),
        None if error.is_timeout() => (ErrorKind::Timeout, "the time limit has passed".into()),
        None if error.is_status() => {
            let status = error.status().map_or(0, |status| status.as_u16());
            (ErrorKind::Status, format!("status {status}").into())
        }
        None if error.is_redirect() => (ErrorKind::Redirect, "reqwest did not follow a redirect".into()),
        // reqwest calls a body that was cut a decoding error, too.
        None if error.is_decode() || error.is_body() => {
            (ErrorKind::ResponseBody, "the response body could not be read".into())
        }
        None => (ErrorKind::Transport, "reqwest failed".into()),
    }
}

/// Returns where JSON does not fit, without the value.
#[cfg(feature = "json")]
fn place(error: &serde_json::Error) -> String {
    format!(" ({})", DecodeError::new(error))
}

#[cfg(not(feature = "json"))]
fn place(_: &serde_json::Error) -> &'static str {
    ""
}

/// Returns the first error of type `E` in the chain.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref())
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| inner(*error))
}

/// Returns what an error wraps. `io::Error::source` skips the error that it was made from, so this
/// asks for that one by name.
fn inner<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

/// Returns whether the TLS handshake failed for a reason that will recur.
#[cfg(feature = "rustls")]
fn is_certificate(error: &reqwest::Error) -> bool {
    use rustls::Error::{AlertReceived, InvalidCertificate, NoApplicationProtocol, PeerIncompatible};
    find::<rustls::Error>(error).is_some_and(|error| {
        matches!(error, InvalidCertificate(_) | AlertReceived(_) | PeerIncompatible(_) | NoApplicationProtocol)
    })
}

/// Returns the alert by which a server rejects the client's certificate, or misses one.
///
/// With TLS 1.2 it arrives inside the handshake. With TLS 1.3 the handshake is over for the client
/// before the server has seen its certificate (RFC 8446 §4.4.2, §6.2). The server sends the alert
/// instead of reading the request: all of these alerts are about the handshake, and rustls offers
/// neither early data by default nor authentication after the handshake. `handshake_failure` is not
/// one of them: outside of a handshake nobody knows what it is about.
#[cfg(feature = "rustls")]
fn client_certificate_alert(error: &reqwest::Error) -> Option<Cause> {
    use rustls::AlertDescription as Alert;
    const REFUSED: [Alert; 8] = [
        Alert::BadCertificate,
        Alert::UnsupportedCertificate,
        Alert::CertificateRevoked,
        Alert::CertificateExpired,
        Alert::CertificateUnknown,
        Alert::UnknownCA,
        Alert::AccessDenied,
        Alert::DecryptError,
    ];
    // h2 keeps no more than the text of an I/O error, which is that of the error inside.
    let texts: Vec<String> = io_errors(error).map(ToString::to_string).collect();
    let is_alert = |alert| {
        let wanted = rustls::Error::AlertReceived(alert).to_string();
        texts.contains(&wanted)
    };
    if is_alert(Alert::CertificateRequired) {
        return Some(Cause::ClientCertificateMissing);
    }
    REFUSED.into_iter().any(is_alert).then_some(Cause::ClientCertificateRefused)
}

#[cfg(feature = "rustls")]
fn cause_of_tls(error: &reqwest::Error) -> Option<Cause> {
    use rustls::{CertificateError as Invalid, Error, InvalidMessage};
    if let Some(cause) = client_certificate_alert(error) {
        return Some(cause);
    }
    match find::<Error>(error)? {
        Error::InvalidCertificate(Invalid::Expired | Invalid::ExpiredContext { .. }) => Some(Cause::CertificateExpired),
        Error::InvalidCertificate(Invalid::NotValidYet | Invalid::NotValidYetContext { .. }) => {
            Some(Cause::CertificateNotYetValid)
        }
        Error::InvalidCertificate(Invalid::UnknownIssuer) => Some(Cause::CertificateIssuer),
        Error::InvalidCertificate(Invalid::NotValidForName | Invalid::NotValidForNameContext { .. }) => {
            Some(Cause::CertificateName)
        }
        Error::InvalidCertificate(Invalid::Revoked) => Some(Cause::CertificateRevoked),
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Some(Cause::NothingInCommon),
        Error::AlertReceived(_) => Some(Cause::TlsAlert),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => Some(Cause::NotTls),
        _ => None,
    }
}

#[cfg(feature = "rustls")]
fn is_unknown_issuer(error: &reqwest::Error) -> bool {
    let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    find::<rustls::Error>(error) == Some(&unknown)
}

/// native-tls does not distinguish a bad certificate from a broken pipe. A repeat is then a waste,
/// and never unsafe.
#[cfg(not(feature = "rustls"))]
fn is_certificate(_: &reqwest::Error) -> bool {
    false
}

#[cfg(not(feature = "rustls"))]
fn client_certificate_alert(_: &reqwest::Error) -> Option<Cause> {
    None
}

#[cfg(not(feature = "rustls"))]
fn cause_of_tls(_: &reqwest::Error) -> Option<Cause> {
    None
}

#[cfg(not(feature = "rustls"))]
fn is_unknown_issuer(_: &reqwest::Error) -> bool {
    false
}
