//! From a transport's error to what the server can have seen.
//!
//! reqwest says "error sending request" for a refused connection and for a charge that went through without an answer. The
//! difference is in the chain of sources, and this is the only file that walks it. Whatever it does not recognise, a failed
//! downcast included, is `Unknown`, which is ambiguous: unsure never becomes "safe to repeat".
//!
//! The table that this implements is in `guide/failures.md`; each row is a test over a real socket in `tests/it/wire/`.

use std::error::Error as StdError;
use std::io;

use hyper_util::client::legacy;

use super::send_probe::SendProbe;
use crate::policy::Failure;

/// What a failed `execute` means. `probe` is the request body's, where it had one. `is_as_made`:
/// the transport is as this crate made it, so that it speaks HTTP/2 only where TLS has negotiated
/// it.
pub(super) fn of_transport(error: &reqwest::Error, probe: Option<&SendProbe>, is_as_made: bool) -> Failure {
    if error.is_builder() || error.is_redirect() {
        return Failure::InvalidRequest;
    }
    // Before all else: the body may come from another connection, and then its failure looks like one of ours.
    if probe.is_some_and(SendProbe::failed) {
        return Failure::RequestBody;
    }
    // Before the timeouts: a connect timeout is both.
    if error.is_connect() {
        return of_connecting(error);
    }
    if let Some(error) = find::<h2::Error>(error) {
        return of_http2(error);
    }
    let first = find::<hyper::Error>(error);
    if first.is_some_and(hyper::Error::is_parse) {
        return Failure::BadResponse;
    }
    // It nests an incomplete message, so only the first in the chain counts.
    let never_written = first.is_some_and(hyper::Error::is_canceled);
    let cut = first.is_some_and(hyper::Error::is_incomplete_message) || find::<io::Error>(error).is_some();
    // A caller's mistake in the head of the request is found while writing; what had been written by then is not known.
    let is_ours = first.is_some_and(hyper::Error::is_user);
    let was_http1 = || cut && is_as_made && was_on_http1(error);
    let was_sealed = |probe: &SendProbe| probe.seal() && !is_ours && (probe.is_http1() || was_http1());
    if never_written || probe.is_some_and(was_sealed) {
        return Failure::NotSent;
    }
    if error.is_timeout() {
        return Failure::Timeout;
    }
    let lost = cut || first.is_some_and(hyper::Error::is_closed);
    if lost { Failure::Disconnected } else { Failure::Unknown }
}

/// An attempt that our own timer ended. Over HTTP/2 its head may go out all the same.
pub(super) fn of_timeout(probe: Option<&SendProbe>) -> Failure {
    let was_sealed = |probe: &SendProbe| probe.seal() && probe.is_http1();
    if probe.is_some_and(was_sealed) { Failure::NotSent } else { Failure::Timeout }
}

/// There was no connection. Who is to blame for it is told apart, since an origin must not pay for
/// what this process lacks.
fn of_connecting(error: &reqwest::Error) -> Failure {
    if is_certificate(error) {
        return Failure::Certificate;
    }
    let mut io_errors = chain(error).filter_map(|error| error.downcast_ref::<io::Error>());
    if io_errors.any(lacks_resources) { Failure::LocalResources } else { Failure::Connect }
}

/// The operating system refused to open a socket. `EADDRNOTAVAIL` is not among the signs, although
/// it also means that no port is left: on a host without IPv6 it is what a server that is down
/// looks like under a name that has both kinds of address.
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

/// The connection on which the request failed spoke HTTP/1. HTTP/2 is the other one: hyper makes an
/// `io::Error` of h2's too, and then nothing else in the chain tells them apart. A connection of
/// which nothing is said may be either.
fn was_on_http1(error: &reqwest::Error) -> bool {
    let connected = find::<legacy::Error>(error).and_then(legacy::Error::connect_info);
    connected.is_some_and(|connected| !connected.is_negotiated_h2())
}

/// RFC 9113 §8.7: a stream refused, or above the last that a GOAWAY names, was not processed. h2 gives a remote GOAWAY only to
/// the streams above it.
fn of_http2(error: &h2::Error) -> Failure {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if error.is_remote() && (refused || error.is_go_away()) { Failure::Refused } else { Failure::Disconnected }
}

/// The first error of type `E` in the chain.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref())
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| inner(*error))
}

/// What an error wraps. `io::Error::source` skips the error that it was made from, so that one is asked for by name.
fn inner<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

/// The handshake failed for a reason that the next one will meet too.
#[cfg(feature = "rustls")]
fn is_certificate(error: &reqwest::Error) -> bool {
    use rustls::Error::{AlertReceived, InvalidCertificate, NoApplicationProtocol, PeerIncompatible};
    find::<rustls::Error>(error).is_some_and(|error| {
        matches!(error, InvalidCertificate(_) | AlertReceived(_) | PeerIncompatible(_) | NoApplicationProtocol)
    })
}

/// native-tls does not tell a certificate from a broken pipe: repeating is wasteful there, and never unsafe.
#[cfg(not(feature = "rustls"))]
fn is_certificate(_: &reqwest::Error) -> bool {
    false
}
