//! The fault server over TLS: a certificate of its own, and a connection with two writers.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;

use super::{FaultServer, lock};

type Error = Box<dyn std::error::Error>;

/// A certificate for `localhost` and loopback, and the authority that signed it.
pub(super) struct Identity {
    pub(super) acceptor: TlsAcceptor,
    authority: String,
}

impl Identity {
    fn new() -> Result<Self, Error> {
        let authority_key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key)?.pem();
        let issuer = Issuer::new(params, authority_key);
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())?;

        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions()?.with_no_client_auth();
        let mut config = config.with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), authority })
    }
}

impl FaultServer {
    /// Makes the server speak TLS, with a certificate that a new authority signs. The client
    /// chooses HTTP/2 or HTTP/1.1 (ALPN, RFC 7301). [`url`](Self::url) then begins with `https`.
    ///
    /// Call it before the first connection. The client must trust
    /// [`root_certificate`](Self::root_certificate).
    ///
    /// Every fault works as without TLS. [`OnAccept`](super::FaultPoint::OnAccept) comes before the
    /// handshake. A close sends `close_notify` first, and a reset does not.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::reqwest::Certificate;
    /// use steadfast::{Client, KeyPolicy};
    /// use steadfast_testing::{FaultPoint, FaultServer, FaultStep, fast_retries};
    ///
    /// let lost = FaultStep::reset(FaultPoint::AfterExecuting);
    /// let server = FaultServer::play([lost, FaultStep::ok()]).await.tls();
    ///
    /// let root = Certificate::from_pem(server.root_certificate().as_bytes()).unwrap();
    /// let client = Client::builder()
    ///     .base_url(server.url(""))
    ///     .http(move |http| http.tls_certs_only([root.clone()]))
    ///     .keys(KeyPolicy::standard())
    ///     .retry(fast_retries())
    ///     .build()
    ///     .unwrap();
    /// client.post("/charges").send().await.unwrap();
    /// assert_eq!((server.received().len(), server.executions()), (2, 1));
    /// # }
    /// ```
    ///
    /// For HTTP/1.1, add `http1_only()` in the closure.
    ///
    /// # Panics
    ///
    /// Panics if no certificate can be made.
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    #[must_use]
    pub fn tls(self) -> Self {
        let identity = match Identity::new() {
            Ok(identity) => identity,
            Err(error) => panic!("FaultServer: cannot make a certificate: {error}"),
        };
        // A second call keeps the first identity.
        let _second = self.shared.tls.set(identity);
        self
    }

    /// Returns the certificate of the authority that signed the server's, as PEM.
    ///
    /// For an example, see [`tls`](Self::tls).
    ///
    /// # Panics
    ///
    /// Panics if the server does not speak TLS.
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    #[must_use]
    pub fn root_certificate(&self) -> &str {
        match self.shared.tls.get() {
            Some(identity) => &identity.authority,
            None => panic!("FaultServer: without `tls` there is no certificate"),
        }
    }
}

/// A handle to an encrypted connection, which ends when its last handle is dropped. The lock is
/// held for one poll.
#[derive(Clone)]
pub(super) struct Encrypted(Arc<Mutex<TlsStream<TcpStream>>>);

impl Encrypted {
    pub(super) async fn accept(acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(acceptor.accept(stream).await?))))
    }

    /// Sends `close_notify` (RFC 8446 §6.1).
    pub(super) async fn close(&self) {
        // If the client has left, nobody needs the notice.
        let _gone = poll_fn(|cx| Pin::new(&mut *lock(&self.0)).poll_shutdown(cx)).await;
    }

    pub(super) fn reset_when_dropped(&self) -> io::Result<()> {
        lock(&self.0).get_ref().0.set_zero_linger()
    }

    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_read(cx, buffer)
    }

    pub(super) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *lock(&self.0)).poll_write(cx, bytes)
    }

    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_flush(cx)
    }
}
