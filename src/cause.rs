//! What lies behind a failure, in a few words: "connection refused", "no such host".
//!
//! A failure tells how far a request can have got, and decides its class. A cause only helps a
//! person to find the fault, and names the setting that would change it. `transport_error.rs` finds
//! it in the transport's error. A failure without a known cause has none.

use std::fmt;

use crate::policy::Failure;

/// What lies behind a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "rustls"), allow(dead_code, reason = "only rustls tells errors of TLS apart"))]
pub(crate) enum Cause {
    Refused,
    Reset,
    ClosedEarly,
    NoSuchHost,
    NameLookup,
    ConnectTimeout,
    SystemTimeout,
    HostUnreachable,
    NetworkUnreachable,
    NotPermitted,
    NoLocalAddress,
    ProcessDescriptors,
    HostDescriptors,
    Memory,
    NotTls,
    ProxyUnreachable,
    ProxyRefused,
    ProxyClosed,
    CertificateExpired,
    CertificateNotYetValid,
    CertificateIssuer,
    CertificateName,
    CertificateRevoked,
    NoCaCertificates,
    ClientCertificateMissing,
    ClientCertificateRefused,
    NothingInCommon,
    TlsAlert,
    Http1HeadTooLarge,
    Http2HeadTooLarge,
    RedirectCircle,
    TooManyRedirects,
    AttemptTimeout,
    ReadTimeout,
    OperationTimeout,
    TaskDeadline,
    KeyForgotten,
    TransportTimeout,
}

impl Cause {
    /// Returns the words, and whether they replace those of the failure.
    fn words(self) -> (&'static str, bool) {
        match self {
            Self::Refused => ("connection refused", false),
            Self::Reset => ("connection reset", false),
            Self::ClosedEarly => ("closed during the handshake", false),
            Self::NoSuchHost => ("no such host", false),
            Self::NameLookup => ("the name lookup failed", false),
            Self::ConnectTimeout => ("timed out (connect_timeout)", false),
            Self::SystemTimeout => ("timed out", false),
            Self::HostUnreachable => ("host unreachable", false),
            Self::NetworkUnreachable => ("network unreachable", false),
            Self::NotPermitted => ("not permitted on this host", false),
            Self::NoLocalAddress => ("no local address or port left (EADDRNOTAVAIL)", false),
            Self::ProcessDescriptors => ("could not connect: no descriptor left in this process (EMFILE)", true),
            Self::HostDescriptors => ("could not connect: no descriptor left on this host (ENFILE)", true),
            Self::Memory => ("could not connect: no memory left on this host", true),
            Self::NotTls => ("the server does not speak TLS on this port", false),
            Self::ProxyUnreachable => ("the proxy cannot be reached", false),
            Self::ProxyRefused => ("the proxy refused the tunnel (CONNECT)", false),
            Self::ProxyClosed => ("the proxy closed the connection", false),
            Self::CertificateExpired => ("expired", false),
            Self::CertificateNotYetValid => ("not valid yet", false),
            Self::CertificateIssuer => ("unknown issuer", false),
            Self::CertificateName => ("issued for another name", false),
            Self::CertificateRevoked => ("revoked", false),
            Self::NoCaCertificates => {
                ("this host has no CA certificates (install ca-certificates, or set SSL_CERT_FILE)", false)
            }
            Self::ClientCertificateMissing => ("the server requires a client certificate", true),
            Self::ClientCertificateRefused => ("the server refused the client certificate, or misses one", true),
            Self::NothingInCommon => ("no TLS version, cipher or protocol in common with the server", true),
            Self::TlsAlert => ("the server refused the TLS handshake", true),
            Self::Http1HeadTooLarge => {
                ("the head of the response is over the limit (http1_max_headers, or about 400 KiB)", true)
            }
            Self::Http2HeadTooLarge => {
                ("the head of the response is over the limit (http2_max_header_list_size), or malformed", true)
            }
            Self::RedirectCircle => ("a circle of redirects", true),
            Self::TooManyRedirects => ("too many redirects (max_redirects)", true),
            Self::AttemptTimeout => ("the attempt_timeout has passed", false),
            Self::ReadTimeout => ("the read_timeout has passed", false),
            Self::OperationTimeout => ("the operation's timeout has passed", false),
            Self::TaskDeadline => ("the task's deadline has passed (with_deadline)", false),
            Self::KeyForgotten => ("the API may have forgotten the key (KeyPolicy::retention)", false),
            Self::TransportTimeout => {
                ("a timeout of the HTTP client has passed, such as reqwest's read_timeout or an HTTP/2 ping", false)
            }
        }
    }

    /// Returns whether the words name the deadline that has passed.
    pub(crate) fn names_deadline(self) -> bool {
        matches!(self, Self::OperationTimeout | Self::TaskDeadline | Self::KeyForgotten)
    }

    /// Returns the words alone.
    pub(crate) fn as_str(self) -> &'static str {
        self.words().0
    }
}

/// Displays a failure with its cause: `could not connect: connection refused`.
pub(crate) struct FailureAndCause {
    pub(crate) failure: Failure,
    pub(crate) cause: Option<Cause>,
}

impl fmt::Display for FailureAndCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause.map(Cause::words) {
            None => f.write_str(self.failure.as_str()),
            Some((words, true)) => f.write_str(words),
            Some((words, false)) => write!(f, "{}: {words}", self.failure.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cause_follows_or_replaces_the_failure() {
        let line = |failure, cause| FailureAndCause { failure, cause }.to_string();
        assert_eq!(line(Failure::Connect, None), "could not connect");
        assert_eq!(line(Failure::Connect, Some(Cause::Refused)), "could not connect: connection refused");
        let descriptors = line(Failure::LocalResources, Some(Cause::ProcessDescriptors));
        assert_eq!(descriptors, "could not connect: no descriptor left in this process (EMFILE)");
    }
}
