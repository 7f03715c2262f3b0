//! The ways to the server: an address or a name, in the clear or over TLS, HTTP/1.1 or HTTP/2.

use std::path::PathBuf;

/// One way to the server.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Wire {
    /// HTTP/1.1 in the clear, with an IP address as the host.
    Address,
    /// HTTP/1.1 in the clear, with a name as the host.
    Name,
    /// HTTP/2 in the clear, with a name.
    Clear2,
    /// HTTP/1.1 over TLS, with a name.
    Tls1,
    /// HTTP/2 over TLS, with a name.
    Tls2,
}

impl Wire {
    pub fn title(self) -> &'static str {
        match self {
            Self::Address => "in the clear, HTTP/1.1, to an IP address",
            Self::Name => "in the clear, HTTP/1.1, to a name",
            Self::Clear2 => "in the clear, HTTP/2, to a name",
            Self::Tls1 => "over TLS, HTTP/1.1, to a name",
            Self::Tls2 => "over TLS, HTTP/2, to a name",
        }
    }

    pub fn is_tls(self) -> bool {
        matches!(self, Self::Tls1 | Self::Tls2)
    }
}

/// Where the server listens, and the certificate that its clients trust.
#[derive(Clone)]
pub struct Ports {
    /// HTTP/1.1 and HTTP/2 in the clear, HTTP/1.1 and HTTP/2 over TLS.
    pub ports: [u16; 4],
    pub certificate: PathBuf,
}

impl Ports {
    /// Returns the server as this wire reaches it.
    pub fn site(&self, wire: Wire) -> Site {
        let [clear, clear2, tls1, tls2] = self.ports;
        let port = match wire {
            Wire::Address | Wire::Name => clear,
            Wire::Clear2 => clear2,
            Wire::Tls1 => tls1,
            Wire::Tls2 => tls2,
        };
        Site { wire, port, certificate: self.certificate.clone() }
    }
}

/// The server as one client reaches it.
#[derive(Clone)]
pub struct Site {
    pub wire: Wire,
    pub port: u16,
    certificate: PathBuf,
}

impl Site {
    pub fn new(wire: Wire, port: u16, certificate: PathBuf) -> Self {
        Self { wire, port, certificate }
    }

    pub fn base(&self) -> String {
        let scheme = if self.wire.is_tls() { "https" } else { "http" };
        let host = if self.wire == Wire::Address { "127.0.0.1" } else { "localhost" };
        format!("{scheme}://{host}:{}/v1", self.port)
    }

    pub fn certificate(&self) -> &PathBuf {
        &self.certificate
    }

    /// Returns whether a client has to be told of anything but the base URL.
    pub fn needs_settings(&self) -> bool {
        !matches!(self.wire, Wire::Address | Wire::Name)
    }

    /// Tells reqwest what it has to know of the wire.
    pub fn configure(&self, builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
        match self.wire {
            Wire::Address | Wire::Name => builder,
            Wire::Clear2 => builder.http2_prior_knowledge(),
            Wire::Tls1 | Wire::Tls2 => {
                let pem = std::fs::read(&self.certificate).unwrap();
                builder.tls_certs_only([reqwest::Certificate::from_pem(&pem).unwrap()])
            }
        }
    }
}
