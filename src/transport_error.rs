//! Finds out from a transport's error what the server can have received.
//!
//! reqwest prints "error sending request" both for a refused connection and for a charge that was
//! made without a response. The difference is in the chain of sources, and only this file walks it.
//! An error that it does not recognise, or a failed downcast, is `Unknown`, which is ambiguous.
//! Unsure never becomes "safe to repeat".
//!
//! The table is in `guide/failures.md`. Each row is a test over a real socket in `tests/it/wire/`.

use std::error::Error as StdError;
use std::io;

use hyper_util::client::legacy;

use super::send_probe::SendProbe;
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
    let mut io_errors = chain(error).filter_map(|error| error.downcast_ref::<io::Error>());
    if io_errors.any(lacks_resources) { Failure::LocalResources } else { Failure::Connect }
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
    const ENOMEM: i32 = 12;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const ENOBUFS: i32 = if cfg!(any(target_os = "linux", target_os = "android")) { 105 } else { 55 };
    const WINDOWS: [i32; 2] = [10_024, 10_055];
    let unix = [ENOMEM, ENFILE, EMFILE, ENOBUFS];
    let codes = if cfg!(windows) { &WINDOWS[..] } else { &unix[..] };
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
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
    if error.is_remote() && (refused || error.is_go_away()) { Failure::Refused } else { Failure::Disconnected }
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

/// native-tls does not distinguish a bad certificate from a broken pipe. A repeat is then a waste,
/// and never unsafe.
#[cfg(not(feature = "rustls"))]
fn is_certificate(_: &reqwest::Error) -> bool {
    false
}
