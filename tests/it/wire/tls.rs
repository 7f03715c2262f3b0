//! Certificates made for the tests, and how the client reports those that it cannot trust.

use std::sync::Arc;

use rcgen::{CertificateParams, Issuer, KeyPair};
use steadfast::policy::{Class, StopReason};
use steadfast::{Client, ErrorKind, KeyPolicy};
use steadfast_testing::fast_retries;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::peer::{Ending, Fault, Peer, Protocol};

/// A server's certificate and the authority that signed it.
pub(crate) struct Identity {
    authority: Vec<u8>,
    authority_pem: String,
    certificate: Vec<u8>,
    certificate_pem: String,
    key: KeyPair,
}

impl Identity {
    /// Makes a certificate for `name`, signed by a new authority. `change` may make it invalid.
    pub(crate) fn new(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let authority_key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).expect("an authority");
        let (authority, authority_pem) = (authority.der().to_vec(), authority.pem());
        let issuer = Issuer::new(params, authority_key);
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        change(&mut params);
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        let (certificate, certificate_pem) = (certificate.der().to_vec(), certificate.pem());
        Self { authority, authority_pem, certificate, certificate_pem, key }
    }

    pub(super) fn acceptor(&self, protocol: Protocol) -> TlsAcceptor {
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let config =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
        let (chain, key) = self.chain_and_key();
        let mut config = config.with_no_client_auth().with_single_cert(chain, key).expect("a certificate and its key");
        config.alpn_protocols = match protocol {
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::Http2 => vec![b"h2".to_vec()],
        };
        TlsAcceptor::from(Arc::new(config))
    }

    /// Returns the certificate and its key, for a server's configuration.
    pub(crate) fn chain_and_key(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).expect("a private key");
        (vec![self.certificate.clone().into()], key)
    }

    /// Returns the certificate and its key, for a client that authenticates itself.
    pub(crate) fn for_client(&self) -> steadfast::reqwest::Identity {
        let pem = format!("{}{}", self.certificate_pem, self.key.serialize_pem());
        steadfast::reqwest::Identity::from_pem(pem.as_bytes()).expect("an identity")
    }

    /// Returns the authority, for a server that trusts it.
    pub(crate) fn authority_der(&self) -> CertificateDer<'static> {
        self.authority.clone().into()
    }

    pub(crate) fn http1_acceptor(&self) -> TlsAcceptor {
        self.acceptor(Protocol::Http1)
    }

    /// Returns the certificate and its key in PEM, for a server's configuration.
    pub(crate) fn pem(&self) -> (String, String) {
        (self.certificate_pem.clone(), self.key.serialize_pem())
    }

    /// Returns the authority in PEM, for a process that trusts it.
    pub(super) fn authority_pem(&self) -> &str {
        &self.authority_pem
    }

    /// Returns the authority, for a client that trusts it.
    pub(crate) fn authority(&self) -> steadfast::reqwest::Certificate {
        steadfast::reqwest::Certificate::from_der(&self.authority).expect("a certificate")
    }
}

#[tokio::test]
async fn rejected_certificate_is_not_retried() {
    let stranger = Identity::new("localhost", |_| {});
    let good = Identity::new("localhost", |_| {});
    let expired = Identity::new("localhost", |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let other = Identity::new("other.example", |_| {});
    let early = Identity::new("localhost", |params| params.not_before = rcgen::date_time_ymd(2999, 1, 1));
    let cases = [
        ("unknown issuer", &good, stranger.authority()),
        ("expired", &expired, expired.authority()),
        ("not valid yet", &early, early.authority()),
        ("wrong name", &other, other.authority()),
    ];
    for (name, identity, trusted) in cases {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let peer = Peer::start(protocol, Some(identity), Ending::Fin, &[Fault::Answer(200)]).await;
            let client = Client::builder()
                .retry(fast_retries())
                .keys(KeyPolicy::standard())
                .http(|http| http.tls_certs_only([trusted.clone()]));
            let url = format!("https://localhost:{}/", peer.address.port());
            let error = client.build().unwrap().post(url).body("x").send().await.unwrap_err();
            assert_eq!(
                (error.kind(), error.stop_reason()),
                (ErrorKind::Certificate, Some(StopReason::Permanent)),
                "{name}: {error:?}"
            );
            assert_eq!(error.attempts()[0].class(), Class::Permanent, "{name}");
            assert!(!error.may_have_been_processed(), "{name}");
            assert_eq!((peer.connections(), peer.counts.received()), (1, 0), "{name}");
        }
    }
}
